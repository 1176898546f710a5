# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_segshap.cohort import RegionMasks

LABELS = np.array([[[0, 1, 1, 2], [3, 3, 3, 0]]])
NAMES = ["background", "lung_left", "lung_right", "heart"]


def test_regions_of_a_label_map_partition_it_and_count_its_voxels():
    regions = RegionMasks.from_labels(LABELS, NAMES)
    assert regions.names == tuple(NAMES)
    assert regions.voxels.tolist() == [2, 2, 1, 3]
    assert regions.is_partition
    assert regions.mask("heart").tolist() == (LABELS == 3).tolist()


@pytest.mark.parametrize("wrap", [lambda v: torch.tensor(v)[None], lambda v: MetaTensor(v[None]), lambda v: v * 1.0])
def test_tensors_channels_and_whole_floats_are_read(wrap):
    assert RegionMasks.from_labels(wrap(LABELS), NAMES).voxels.tolist() == [2, 2, 1, 3]


def test_a_dictionary_names_some_numbers_and_rest_makes_a_partition():
    some = RegionMasks.from_labels(LABELS, {3: "heart", 9: "spleen"})
    assert some.voxels.tolist() == [3, 0]
    assert not some.is_partition
    whole = RegionMasks.from_labels(LABELS, {3: "heart", 9: "spleen"}, rest="elsewhere")
    assert whole.voxels.tolist() == [3, 0, 5]
    assert whole.is_partition


def test_overlapping_masks_are_no_partition_even_if_their_voxels_add_up():
    masks = {"a": LABELS < 2, "b": LABELS == 1}
    regions = RegionMasks.from_masks(masks)
    assert regions.voxels.sum() == 6
    twice_and_never = RegionMasks.from_masks({"a": LABELS > 0, "b": LABELS == 1})
    assert twice_and_never.voxels.sum() == LABELS.size
    assert not regions.is_partition
    assert not twice_and_never.is_partition


def test_joined_regions_stand_where_their_first_member_stood():
    joined = RegionMasks.from_labels(LABELS, NAMES).joined({"lung": ["lung_right", "lung_left"]})
    assert joined.names == ("background", "lung", "heart")
    assert joined.voxels.tolist() == [2, 3, 3]
    kept = RegionMasks.from_labels(LABELS, NAMES).joined({"lung": ["lung_right", "lung_left"]}, keep=True)
    assert kept.names == (*NAMES, "lung")
    assert kept.voxels.tolist() == [2, 2, 1, 3, 3]


def test_a_union_over_several_volumes_counts_each_voxel_once():
    effusion = np.zeros(LABELS.shape, dtype=bool)
    effusion[0, 0, :2] = True
    regions = RegionMasks.from_labels(LABELS, NAMES).with_masks({"effusion": effusion})
    assert regions.voxels.tolist() == [2, 2, 1, 3, 2]
    union = regions.joined({"left chest": ["lung_left", "effusion"]})
    assert union.names == ("background", "left chest", "lung_right", "heart")
    assert union.voxels.tolist() == [2, 3, 1, 3]


def test_regions_of_softmax_logits_are_the_argmax_classes():
    logits = torch.nn.functional.one_hot(torch.tensor(LABELS), 4).permute(3, 0, 1, 2) * 5.0
    assert RegionMasks.from_prediction(logits, NAMES).voxels.tolist() == [2, 2, 1, 3]


def test_regions_of_sigmoid_logits_overlap_and_leave_a_background():
    whole, core = LABELS > 0, LABELS == 3
    logits = torch.tensor(np.stack([whole, core]) * 4.0 - 2.0)
    regions = RegionMasks.from_prediction(logits, ["whole", "core"], heads="sigmoid")
    assert regions.names == ("whole", "core", "background")
    assert regions.voxels.tolist() == [6, 3, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegionMasks.from_labels(LABELS, NAMES[:3]), "holds number 3; expected less than 3"),
        (lambda: RegionMasks.from_labels(LABELS - 1, NAMES), "holds -1"),
        (lambda: RegionMasks.from_labels(LABELS / 2, NAMES), "fractions"),
        (lambda: RegionMasks.from_labels(LABELS[0], NAMES), "expected \\(H, W, D\\)"),
        (lambda: RegionMasks.from_masks({}), "got no mask"),
        (lambda: RegionMasks.from_masks({"a": LABELS}), "'a' holds values other than 0 and 1"),
        (lambda: RegionMasks.from_labels(LABELS, ["a", "a", "b", "c"]), r"called \['a'\]"),
        (lambda: RegionMasks.from_labels(LABELS, NAMES).mask("liver"), "no region is called 'liver'"),
        (lambda: RegionMasks.from_labels(LABELS, NAMES).with_masks({"x": LABELS[:, :1] > 0}), "shapes"),
        (lambda: RegionMasks.from_labels(LABELS, NAMES).joined({"lung": ["liver"]}), r"unknown \['liver'\]"),
        (lambda: RegionMasks.from_labels(LABELS, NAMES).joined({"lung": "heart"}), "a list of one or more"),
        (
            lambda: RegionMasks.from_labels(LABELS, NAMES).joined({"a": ["heart"], "b": ["heart"]}),
            r"in several groups \['heart'\]",
        ),
        (lambda: RegionMasks.from_prediction(torch.zeros(3, 1, 2, 4), NAMES), "C names"),
    ],
)
def test_wrong_regions_are_refused_with_a_way_out(make, message):
    with pytest.raises(ValueError, match=message):
        make()
