# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest

from monai_segshap.geometry import VoxelGrid
from monai_segshap.units import (
    cube_partition,
    fcc_labels,
    fcc_partition,
    hybrid_partition,
    merge_fragments,
    organ_partition,
    partition_from_labels,
    predicted_class_partition,
)

SHAPE = (16, 18, 10)
GRID = VoxelGrid(SHAPE, np.diag([-2.0, 1.5, 4.0, 1.0]))
NAMES = {1: "spleen", 2: "liver", 5: "aorta", 9: "brain"}


@pytest.fixture
def organs() -> np.ndarray:
    volume = np.zeros(SHAPE, np.uint8)
    volume[1:8, 2:16, 1:9] = 2
    volume[9:15, 3:10, 2:8] = 1
    volume[8, 8, :] = 5
    return volume


def sheared() -> VoxelGrid:
    affine = np.diag([2.0, 1.5, 4.0, 1.0])
    affine[0, 2] = 1.0
    return VoxelGrid(SHAPE, affine)


def same_cells(labels: np.ndarray, reference: np.ndarray) -> bool:
    """Whether two labelings cut the volume alike, whatever the numbers."""
    pairs = np.unique(np.stack([labels.ravel(), reference.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def test_organs_are_units_and_missing_ones_are_listed(organs):
    partition = organ_partition(organs, GRID, NAMES)
    assert partition.names == ("spleen", "liver", "aorta")
    assert partition.skipped == ("brain",)
    for number, unit in ((1, 1), (2, 2), (5, 3), (0, 0)):
        np.testing.assert_array_equal(partition.labels == unit, organs == number)


def test_organs_without_a_name_are_called_by_their_label(organs):
    assert organ_partition(organs, GRID, {2: "liver"}).names == ("label 1", "liver", "label 5")
    assert organ_partition(organs, GRID).names == ("label 1", "label 2", "label 5")


def test_labels_that_share_a_name_stay_apart(organs):
    partition = organ_partition(organs, GRID, {1: "node", 2: "node", 5: "aorta"})
    assert partition.names == ("node (1)", "node (2)", "aorta")


def test_selected_organs_are_the_only_units(organs):
    partition = organ_partition(organs, GRID, NAMES, select=["aorta", "brain"])
    assert partition.names == ("aorta",)
    assert partition.skipped == ("brain",)
    np.testing.assert_array_equal(partition.labels > 0, organs == 5)


def test_selecting_leaves_the_label_map_alone(organs):
    before = organs.copy()
    organ_partition(organs, GRID, NAMES, select=["aorta"])
    np.testing.assert_array_equal(organs, before)


def test_unknown_selection_lists_what_there_is(organs):
    with pytest.raises(ValueError, match=r"organs \['heart'\] are not among the names of the label map: \['aorta',"):
        organ_partition(organs, GRID, NAMES, select=["heart", "liver"])


@pytest.mark.parametrize(
    ("labels", "select"), [(np.zeros(SHAPE, np.uint8), None), (np.ones(SHAPE, np.uint8), ["brain"])]
)
def test_no_organ_present_is_an_error(labels, select):
    with pytest.raises(ValueError, match="organs partition has no unit"):
        organ_partition(labels, GRID, NAMES, select=select)


@pytest.mark.parametrize("value", [128, 200, 255, 300, 40000])
def test_large_organ_numbers_do_not_wrap(value):
    organs = np.zeros(SHAPE, np.uint16)
    organs[2] = value
    partition = organ_partition(organs, GRID, {value: "far"})
    assert partition.names == ("far",)
    assert partition.voxels.tolist() == [18 * 10]


def test_fcc_partition_covers_the_volume_with_the_cells_of_the_lattice():
    partition = fcc_partition(GRID, 12.0)
    assert partition.kind == "fcc"
    assert partition.names[:2] == ("cell 1", "cell 2")
    assert (partition.labels > 0).all()
    np.testing.assert_array_equal(partition.labels, fcc_labels(SHAPE, (2.0, 1.5, 4.0), 12.0))


def test_fcc_partition_within_a_mask_is_centered_on_its_box_and_leaves_the_rest():
    mask = np.zeros(SHAPE, bool)
    mask[3:14, 5:9, 2:9] = True
    partition = fcc_partition(GRID, 9.0, within=mask)
    np.testing.assert_array_equal(partition.labels > 0, mask)
    center = np.array([8.0, 6.5, 5.0]) * [2.0, 1.5, 4.0]
    lattice = fcc_labels(SHAPE, (2.0, 1.5, 4.0), 9.0, origin_mm=center)
    assert same_cells(partition.labels[mask], lattice[mask])


def test_more_than_255_cells_do_not_wrap():
    partition = fcc_partition(GRID, 3.0)
    assert partition.n_units > 300
    assert partition.names[299] == "cell 300"
    assert partition.labels.max() == partition.n_units


def test_cube_partition_within_a_mask():
    mask = np.random.default_rng(0).random(SHAPE) < 0.5
    whole, part = cube_partition(GRID, 8.0), cube_partition(GRID, 8.0, within=mask)
    assert whole.kind == "cubes"
    assert whole.names[0] == "cube 1"
    np.testing.assert_array_equal(part.labels > 0, mask)
    assert same_cells(part.labels[mask], whole.labels[mask])


@pytest.mark.parametrize("make", [lambda g: fcc_partition(g, 9.0), lambda g: cube_partition(g, 9.0)])
def test_lattices_refuse_a_sheared_grid(make):
    with pytest.raises(ValueError, match="sheared"):
        make(sheared())


@pytest.mark.parametrize("mask", [np.zeros(SHAPE, bool), np.ones((3, 3, 3), bool)])
def test_fcc_refuses_an_empty_or_foreign_mask(mask):
    with pytest.raises(ValueError, match="at least one voxel"):
        fcc_partition(GRID, 9.0, within=mask)


def test_cubes_refuse_an_empty_mask():
    with pytest.raises(ValueError, match="no unit"):
        cube_partition(GRID, 9.0, within=np.zeros(SHAPE, bool))


@pytest.mark.parametrize("scale", [6.0, 14.0, 500.0])
def test_hybrid_units_are_the_pairs_of_organ_and_cell(organs, scale):
    partition = hybrid_partition(organs, GRID, scale, NAMES)
    cells = fcc_partition(GRID, scale).labels
    inside = organs > 0
    np.testing.assert_array_equal(partition.labels > 0, inside)
    assert same_cells(partition.labels[inside], organs[inside].astype(int) * 10**6 + cells[inside])
    for unit, organ in enumerate(partition.organs, start=1):
        assert {NAMES[n] for n in np.unique(organs[partition.labels == unit])} == {organ}


def test_random_labels_never_mix_organs_in_hybrid_units():
    organs = np.random.default_rng(4).integers(0, 4, size=SHAPE)
    partition = hybrid_partition(organs, GRID, 15.0)
    for unit in range(1, partition.n_units + 1):
        assert len(np.unique(organs[partition.labels == unit])) == 1
    assert not partition.labels[organs == 0].any()


def test_hybrid_names_count_within_the_organ(organs):
    partition = hybrid_partition(organs, GRID, 14.0, NAMES)
    liver = [name for name, organ in zip(partition.names, partition.organs, strict=True) if organ == "liver"]
    assert liver == [f"liver {i}" for i in range(1, len(liver) + 1)]
    assert len(liver) > 1


def test_an_organ_in_one_cell_keeps_its_name(organs):
    assert hybrid_partition(organs, GRID, 500.0, NAMES).names == ("spleen", "liver", "aorta")


def test_hybrid_names_stay_distinct_when_an_organ_is_called_like_a_piece():
    organs = np.zeros(SHAPE, np.uint8)
    organs[:, :14], organs[0, 16:, 0] = 1, 2
    partition = hybrid_partition(organs, GRID, 20.0, {1: "node", 2: "node 1"})
    assert len(set(partition.names)) == partition.n_units > 2


def test_hybrid_lists_organs_outside_the_receptive_field(organs):
    within = np.zeros(SHAPE, bool)
    within[:8] = True
    partition = hybrid_partition(organs, GRID, 14.0, NAMES, within=within)
    assert set(partition.organs) == {"liver"}
    assert set(partition.skipped) == {"brain", "spleen", "aorta"}
    np.testing.assert_array_equal(partition.labels > 0, (organs > 0) & within)


def test_hybrid_without_an_organ_in_the_field_is_an_error(organs):
    with pytest.raises(ValueError, match="no labeled organ lies inside the receptive field"):
        hybrid_partition(organs, GRID, 14.0, NAMES, within=organs == 0)


@pytest.mark.parametrize("include_background", [False, True])
def test_predicted_classes_are_units(include_background):
    prediction = np.zeros(SHAPE, np.uint8)
    prediction[2:5], prediction[9:12] = 1, 255
    names = ["background", "spleen", "node"]
    partition = predicted_class_partition(prediction, GRID, names, include_background)
    expected = {"background": 0, "spleen": 1, "class 255": 255}
    if not include_background:
        del expected["background"]
        assert not partition.labels[prediction == 0].any()
    assert partition.names == tuple(expected)
    assert partition.skipped == ("node",)
    for unit, value in enumerate(expected.values(), start=1):
        np.testing.assert_array_equal(partition.labels == unit, prediction == value)


def test_nothing_but_background_is_no_partition():
    prediction = np.zeros(SHAPE, np.int64)
    with pytest.raises(ValueError, match="predicted partition has no unit"):
        predicted_class_partition(prediction, GRID)
    assert predicted_class_partition(prediction, GRID, include_background=True).names == ("class 0",)


def line(values: list[int], organ_of: dict[int, str] | None = None):
    labels = np.array(values).reshape(-1, 1, 1)
    names = {n: f"u{n}" for n in set(values) if n > 0}
    grid = VoxelGrid(labels.shape, np.eye(4))
    return partition_from_labels(labels, grid, "hybrid" if organ_of else "fcc", names, organ_of)


def test_small_units_merge_into_the_neighbor_with_the_largest_contact():
    labels = np.zeros((4, 4, 1), int)
    labels[:3, 0], labels[3, 0] = 1, 1
    labels[0, 1], labels[1:3, 1] = 2, 3
    labels[:, 2:] = 4
    partition = partition_from_labels(
        labels, VoxelGrid(labels.shape, np.eye(4)), "fcc", {n: f"u{n}" for n in range(1, 5)}
    )
    merged = merge_fragments(partition, 3)
    assert merged.names == ("u1", "u4")
    assert merged.voxels.sum() == partition.voxels.sum()
    np.testing.assert_array_equal(merged.labels > 0, partition.labels > 0)


def test_merging_respects_organs():
    organ_of = {1: "liver", 2: "spleen", 3: "liver", 4: "spleen"}
    merged = merge_fragments(line([1, 1, 1, 2, 3, 4, 4, 4], organ_of), 2)
    assert merged.names == ("u1", "u2", "u3", "u4")
    merged = merge_fragments(line([1, 1, 1, 3, 2, 4, 4, 4], organ_of), 2)
    assert merged.names == ("u1", "u4")
    assert merged.organs == ("liver", "spleen")
    assert merged.labels.ravel().tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_isolated_fragments_stay():
    merged = merge_fragments(line([1, 0, 2, 2, 2]), 3)
    assert merged.labels.ravel().tolist() == [1, 0, 2, 2, 2]


def test_the_smallest_merges_first_and_chains_end():
    merged = merge_fragments(line([1, 1, 1, 1, 2, 3, 3, 4, 4, 4]), 3)
    assert merged.labels.ravel().tolist() == [1, 1, 1, 1, 1, 1, 1, 2, 2, 2]
    assert merged.names == ("u1", "u4")


def test_opposite_faces_are_no_neighbors():
    merged = merge_fragments(line([1, 2, 2, 2, 0, 3, 3, 3, 3]), 2)
    assert merged.labels.ravel().tolist() == [1, 1, 1, 1, 0, 2, 2, 2, 2]
    assert merged.names == ("u2", "u3")


def test_units_of_the_least_size_are_left_alone():
    partition = line([1, 1, 2, 2, 3, 3])
    assert merge_fragments(partition, 2).names == ("u1", "u2", "u3")


def test_merged_hybrids_have_no_small_unit_that_could_merge(organs):
    partition = hybrid_partition(organs, GRID, 9.0, NAMES)
    merged = merge_fragments(partition, 20)
    assert merged.n_units < partition.n_units
    for unit, organ in enumerate(merged.organs, start=1):
        assert {NAMES[n] for n in np.unique(organs[merged.labels == unit])} == {organ}
    np.testing.assert_array_equal(merged.labels > 0, partition.labels > 0)
    liver = [v for v, organ in zip(merged.voxels, merged.organs, strict=True) if organ == "liver"]
    assert min(liver) >= 20
