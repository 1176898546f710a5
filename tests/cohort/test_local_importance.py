# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_segshap.cohort import RegionMasks, importance, join_maps, local_importance, measure_importance

# two classes on eight voxels; region 0 has four voxels, 1 has three, 2 has one, 3 has none
LABELS = np.array([[[0, 0, 0, 0], [1, 1, 1, 2]]])
FIRST = np.array([[[1.0, -1.0, 0.0, 0.0], [2.0, 0.0, 0.0, -4.0]]])
SECOND = np.array([[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -5.0, 5.0]]])
MAPS = np.stack([FIRST, SECOND])


@pytest.mark.parametrize(
    ("variant", "part", "expected"),
    [
        ("mass", "absolute", [[2 / 8, 2 / 8, 4 / 8, 0], [0, 0.5, 0.5, 0]]),
        ("mass", "positive", [[1 / 3, 2 / 3, 0, 0], [0, 0, 1, 0]]),
        ("mass", "negative", [[1 / 5, 0, 4 / 5, 0], [0, 1, 0, 0]]),
        ("mean", "absolute", [[2 / 4, 2 / 3, 4, np.nan], [0, 5 / 3, 5, np.nan]]),
        ("mean", "positive", [[1 / 4, 2 / 3, 0, np.nan], [0, 0, 5, np.nan]]),
        ("enrichment", "absolute", [[0.5, 0.25 * 8 / 3, 4, np.nan], [0, 0.5 * 8 / 3, 4, np.nan]]),
    ],
)
def test_matrices_by_hand(variant, part, expected):
    regions = RegionMasks.from_labels(LABELS, ["a", "b", "c", "empty"])
    found = local_importance(MAPS, regions, variant=variant, part=part)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15, equal_nan=True)


def test_rows_are_explained_classes_and_columns_are_regions():
    # class 0 is explained by region 2 alone; nothing of class 2 lies in region 0
    maps = np.zeros((3, 1, 2, 4))
    maps[0, 0, 1, 3] = 1.0
    maps[1][LABELS == 1] = 1.0
    maps[2][LABELS == 1] = 1.0
    found = local_importance(maps, LABELS)
    assert found.tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert found[0, 2] != found[2, 0]


def test_equals_a_plain_loop_over_voxels_on_random_maps(monkeypatch):
    generator = np.random.default_rng(3)
    maps = generator.normal(size=(3, 2, 7, 5, 4)).astype(np.float32)
    masks = generator.random((4, 7, 5, 4)) > 0.5
    monkeypatch.setattr(importance, "_BLOCK", 2 * 20 * 2)  # blocks of two slices: 7 do not divide by 2
    for part, sign in (("absolute", np.abs), ("positive", lambda v: max(v, 0.0)), ("negative", lambda v: max(-v, 0.0))):
        expected = np.zeros((3, 4))
        for t in range(3):
            total = 0.0
            for c, i, j, k in np.ndindex(2, 7, 5, 4):
                weight = sign(float(maps[t, c, i, j, k]))
                total += weight
                expected[t] += weight * masks[:, i, j, k]
            expected[t] /= total
        np.testing.assert_allclose(local_importance(maps, masks, part=part), expected, rtol=1e-12)


def test_rows_sum_to_one_where_regions_partition_and_to_more_with_further_masks():
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(5, 8, 9, 10))
    labels = generator.integers(0, 6, size=(8, 9, 10))
    regions = RegionMasks.from_labels(labels, [f"organ {n}" for n in range(6)])
    for part in ("absolute", "positive", "negative"):
        np.testing.assert_allclose(local_importance(maps, regions, part=part).sum(axis=1), 1, atol=1e-12)
    more = regions.with_masks({"pathology": labels < 3})
    found = local_importance(maps, more)
    np.testing.assert_allclose(found[:, -1], found[:, :3].sum(axis=1), atol=1e-12)
    assert (found.sum(axis=1) > 1.3).all()
    shares = local_importance(np.ones((1, 8, 9, 10)), regions, variant="enrichment")
    np.testing.assert_allclose(shares, 1, atol=1e-12)


@pytest.mark.parametrize("variant", ["mass", "mean", "enrichment"])
def test_an_absent_class_is_nan_never_zero(variant):
    maps = np.stack([FIRST, np.zeros_like(FIRST), np.full_like(FIRST, np.nan), SECOND])
    found = local_importance(maps, LABELS, variant=variant, absent=[3])
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).all()


def test_a_class_without_the_asked_part_has_no_share_but_a_mean_of_zero():
    maps = -np.abs(FIRST)[None]
    assert np.isnan(local_importance(maps, LABELS, part="positive")).all()
    assert np.isnan(local_importance(maps, LABELS, part="positive", variant="enrichment")).all()
    assert local_importance(maps, LABELS, part="positive", variant="mean").tolist() == [[0, 0, 0]]


def test_tensors_of_any_floating_type_and_meta_tensors_give_the_same():
    expected = local_importance(MAPS, LABELS)
    for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        tensor = torch.tensor(MAPS).to(kind).requires_grad_()
        np.testing.assert_array_equal(local_importance(tensor, torch.tensor(LABELS)), expected)
    np.testing.assert_array_equal(local_importance(MetaTensor(MAPS), MetaTensor(LABELS[None])), expected)


def test_sums_are_in_double_precision():
    # 2**24 + 1 is no single-precision number: adding ones to it one by one would lose them
    values = np.ones((1, 1, 1, 1001), dtype=np.float32)
    values[0, 0, 0, 0] = 2.0**24
    labels = np.zeros((1, 1, 1001), dtype=int)
    labels[0, 0, 0] = 1
    found = local_importance(values, labels)
    np.testing.assert_allclose(found[0, 0], 1000 / (2**24 + 1000), rtol=1e-14)


def test_joined_columns_add_up_and_joined_rows_explain_the_sum():
    regions = RegionMasks.from_labels(LABELS, ["a", "b", "c"])
    plain, joined = local_importance(MAPS, regions), local_importance(MAPS, regions.joined({"bc": ["b", "c"]}))
    np.testing.assert_allclose(joined, np.stack([plain[:, 0], plain[:, 1] + plain[:, 2]], axis=1))

    maps, names = join_maps(torch.tensor(MAPS), ["first", "second"], {"both": ["first", "second"]})
    assert names == ("both",)
    assert isinstance(maps, torch.Tensor)
    # the sum: |1|, |-1|, |2|, |-5|, |1|; -4 and 5 cancel to 1
    np.testing.assert_allclose(local_importance(maps, regions), [[2 / 10, 7 / 10, 1 / 10]])


def test_an_absent_member_of_a_joined_class_adds_nothing():
    nothing = np.full_like(FIRST, np.nan)
    maps, names = join_maps(np.stack([FIRST, nothing, SECOND]), ["a", "b", "c"], {"ab": ["b", "a"]})
    assert names == ("ab", "c")
    np.testing.assert_array_equal(maps, MAPS)
    empty, _ = join_maps(np.stack([nothing, nothing]), ["a", "b"], {"ab": ["a", "b"]})
    assert np.isnan(local_importance(empty, LABELS)).all()


def test_one_pass_measures_every_variant_and_part_of_a_case():
    regions = RegionMasks.from_labels(LABELS, ["a", "b", "c"])
    found = measure_importance(
        "case 7",
        MAPS,
        ["a", "c"],
        regions,
        variants=("mass", "mean"),
        parts=("absolute", "negative"),
        absent=["c"],
        dice={"a": 0.5},
    )
    assert [(m.variant, m.part) for m in found] == [
        ("mass", "absolute"), ("mean", "absolute"), ("mass", "negative"), ("mean", "negative")
    ]  # fmt: skip
    for matrix in found:
        expected = local_importance(MAPS, regions, variant=matrix.variant, part=matrix.part, absent=[1])
        np.testing.assert_array_equal(matrix.values, expected)
        assert (matrix.case, dict(matrix.dice)) == ("case 7", {"a": 0.5})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: local_importance(MAPS, LABELS, variant="share"), "variant 'share'"),
        (lambda: local_importance(MAPS, LABELS, part="both"), "part 'both'"),
        (lambda: local_importance(MAPS[0], LABELS), "expected \\(T, H, W, D\\)"),
        (lambda: local_importance(MAPS[..., :3], LABELS), "on a volume of \\(1, 2, 4\\)"),
        (lambda: local_importance(MAPS, LABELS, absent=[2]), "indices of the 2 maps"),
        (lambda: local_importance(MAPS, np.ones((3, 1, 2, 4))), "of type bool"),
        (lambda: local_importance(np.where(MAPS == 5, np.nan, MAPS), LABELS), "class 1 holds 1 of 8 values"),
        (lambda: local_importance(np.full_like(MAPS, np.inf), LABELS), "class 0 holds 8 of 8 values"),
        (lambda: join_maps(MAPS, ["a"], {}), "2 maps and 1 names"),
        (lambda: join_maps(MAPS, ["a", "b"], {"c": ["d"]}), r"unknown \['d'\]"),
        (
            lambda: measure_importance("x", MAPS, ["a"], RegionMasks.from_labels(LABELS, "abc")),
            "expected one name for each map",
        ),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
