# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Flip, SpatialPad

from monai_segshap.geometry import VoxelGrid
from monai_segshap.units import Partition, organ_partition, partition_from_labels


def rotation(degrees: float) -> np.ndarray:
    a = np.deg2rad(degrees)
    around_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    around_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    return around_z @ around_x


def affine(directions: np.ndarray, spacing, offset) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = directions @ np.diag(spacing)
    matrix[:3, 3] = offset
    return matrix


AFFINES = {
    "flipped": affine(np.diag([-1.0, -1.0, 1.0]), (1.5, 1.5, 5.0), (120.0, 90.0, -300.0)),
    "permuted": affine(np.eye(3)[[2, 0, 1]], (1.5, 2.0, 5.0), (1.0, 2.0, 3.0)),
    "oblique": affine(rotation(25.0), (0.8, 0.9, 3.0), (-10.0, 40.0, 7.0)),
}
SHAPE = (6, 7, 8)


def random_labels(seed: int = 0, n_units: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n_units + 1, size=SHAPE).astype(np.int32)


@pytest.fixture(params=AFFINES)
def grid(request) -> VoxelGrid:
    return VoxelGrid(SHAPE, AFFINES[request.param])


def test_volumes_and_centroids_equal_a_loop_over_voxels(grid):
    labels = random_labels()
    partition = partition_from_labels(labels, grid, "organs")
    edges = grid.affine[:3, :3].T
    voxel_ml = abs(np.dot(edges[0], np.cross(edges[1], edges[2]))) / 1000.0
    for unit in range(1, 6):
        points = [grid.affine @ [*voxel, 1.0] for voxel in np.ndindex(SHAPE) if labels[voxel] == unit]
        assert partition.voxels[unit - 1] == len(points)
        assert partition.volumes_ml[unit - 1] == pytest.approx(len(points) * voxel_ml)
        np.testing.assert_allclose(partition.centroids_mm[unit - 1], np.mean(points, axis=0)[:3], atol=1e-9)


def test_a_cube_of_one_centimeter_has_one_milliliter():
    labels = np.zeros((20, 20, 6), np.int32)
    labels[:10, :10, :2] = 1
    grid = VoxelGrid((20, 20, 6), np.diag([-1.0, 1.0, 5.0, 1.0]))
    assert partition_from_labels(labels, grid, "organs").volumes_ml.tolist() == pytest.approx([1.0])


def test_numbers_are_closed_up_in_ascending_order():
    labels = np.zeros(SHAPE, np.uint16)
    labels[0], labels[2], labels[4] = 40000, 3, 117
    grid = VoxelGrid(SHAPE, np.eye(4))
    partition = partition_from_labels(labels, grid, "organs", {3: "a", 117: "b", 40000: "c", 9: "absent"})
    assert partition.names == ("a", "b", "c")
    assert [int(partition.labels[i, 0, 0]) for i in range(6)] == [3, 0, 1, 0, 2, 0]
    assert partition.labels.dtype == np.int32


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float32, np.float64])
def test_any_whole_number_type_is_read(dtype):
    labels = (random_labels() > 2).astype(dtype)
    partition = partition_from_labels(labels, VoxelGrid(SHAPE, np.eye(4)), "organs")
    np.testing.assert_array_equal(partition.labels, labels.astype(np.int32))


def test_units_without_a_name_are_numbered_as_in_the_volume():
    partition = partition_from_labels(
        np.where(random_labels() == 2, 0, random_labels()), VoxelGrid(SHAPE, np.eye(4)), "x"
    )
    assert partition.names == ("unit 1", "unit 3", "unit 4", "unit 5")
    assert partition.organs == partition.names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(SHAPE, np.int32), "the organs partition has no unit: every voxel is 0"),
        (np.full(SHAPE, -1), r"labels hold -1; expected 0 \(never perturbed\)"),
        (np.full(SHAPE, 0.5), "no whole numbers; was the label map resampled by interpolation"),
        (np.full(SHAPE, np.nan), "no whole numbers"),
        (np.ones((6, 7, 9), np.int32), r"labels have shape \(6, 7, 9\); the grid says \(6, 7, 8\)"),
    ],
)
def test_refuses_labels_that_are_no_partition(labels, message):
    with pytest.raises(ValueError, match=message):
        partition_from_labels(labels, VoxelGrid(SHAPE, np.eye(4)), "organs")


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
def test_names_and_labels_must_match(names):
    labels = np.ones(SHAPE, np.int32)
    labels[0] = 2
    with pytest.raises(ValueError, match=r"Build partitions with partition_from_labels"):
        Partition(labels, names, VoxelGrid(SHAPE, np.eye(4)), "organs")


def test_repeated_names_are_refused():
    labels = np.ones(SHAPE, np.int32)
    labels[0] = 2
    with pytest.raises(ValueError, match=r"unit names repeat: \['rib'\]"):
        Partition(labels, ("rib", "rib"), VoxelGrid(SHAPE, np.eye(4)), "organs")


@pytest.mark.parametrize("n_units", [1, 2, 24, 120])
def test_colors_are_distinct_and_the_same_in_every_run(n_units):
    labels = np.arange(1, n_units + 1, dtype=np.int32).reshape(n_units, 1, 1)
    colors = [partition_from_labels(labels, VoxelGrid((n_units, 1, 1), np.eye(4)), "x").colors for _ in range(2)]
    assert colors[0].dtype == np.uint8
    assert colors[0].shape == (n_units, 3)
    assert len(np.unique(colors[0], axis=0)) == n_units
    np.testing.assert_array_equal(*colors)


def named_partition(grid: VoxelGrid, seed: int = 0) -> Partition:
    names = {1: "spleen", 2: "liver", 3: 'left, "lung"', 4: "ö", 5: "e", 6: "appendix"}
    return organ_partition(random_labels(seed), grid, names)


def assert_same(read: Partition, written: Partition):
    np.testing.assert_array_equal(read.labels, written.labels)
    assert read.labels.dtype == np.int32
    assert (read.names, read.kind, read.organs, read.skipped) == (
        written.names,
        written.kind,
        written.organs,
        written.skipped,
    )
    assert read.grid.same_as(written.grid, tolerance_mm=1e-9)


def test_metatensor_round_trip(grid):
    partition = named_partition(grid)
    volume = partition.to_metatensor()
    assert isinstance(volume, MetaTensor)
    assert volume.dtype == torch.int32
    assert volume.shape == (1, *SHAPE)
    np.testing.assert_allclose(volume.affine.numpy(), grid.affine)
    assert partition.skipped == ("appendix",)
    assert_same(Partition.from_metatensor(volume), partition)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_round_trip_through_collate_and_decollate(grid, batch_size):
    partitions = [named_partition(grid, seed) for seed in range(batch_size)]
    batch = list_data_collate([{"units": p.to_metatensor(), "image": torch.zeros(1, *SHAPE)} for p in partitions])
    assert batch["units"].shape == (batch_size, 1, *SHAPE)
    for item, written in zip(decollate_batch(batch), partitions, strict=True):
        assert_same(Partition.from_metatensor(item["units"]), written)


def test_round_trip_through_a_data_loader(grid):
    partitions = [named_partition(grid, seed) for seed in range(3)]
    loader = DataLoader(Dataset([{"units": p.to_metatensor()} for p in partitions]), batch_size=2, num_workers=0)
    items = [item for batch in loader for item in decollate_batch(batch)]
    for item, written in zip(items, partitions, strict=True):
        assert_same(Partition.from_metatensor(item["units"]), written)


@pytest.mark.parametrize("n_units", [128, 200, 256, 300, 70000])
def test_many_labels_do_not_wrap(n_units):
    labels = np.arange(n_units, dtype=np.int32).reshape(n_units, 1, 1) + 1
    partition = partition_from_labels(labels, VoxelGrid((n_units, 1, 1), np.eye(4)), "fcc")
    read = Partition.from_metatensor(decollate_batch(list_data_collate([{"u": partition.to_metatensor()}]))[0]["u"])
    np.testing.assert_array_equal(read.labels, labels)
    assert read.n_units == n_units


@pytest.mark.parametrize("n_labels", [200, 255])
def test_unsigned_bytes_above_127_stay_positive(n_labels):
    labels = np.arange(1, n_labels + 1).astype(np.uint8).reshape(-1, 1, 1)
    volume = MetaTensor(torch.from_numpy(labels)[None])
    np.testing.assert_array_equal(Partition.from_metatensor(volume).labels, labels.astype(np.int32))


def test_spatial_transforms_keep_names_and_move_labels(grid):
    partition = named_partition(grid)
    moved = Partition.from_metatensor(Flip(spatial_axis=1)(partition.to_metatensor()))
    np.testing.assert_array_equal(moved.labels, partition.labels[:, ::-1])
    assert moved.names == partition.names
    np.testing.assert_allclose(moved.centroids_mm, partition.centroids_mm, atol=1e-9)


def test_padding_adds_no_unit(grid):
    padded = Partition.from_metatensor(SpatialPad((10, 10, 10))(named_partition(grid).to_metatensor()))
    assert padded.labels.shape == (10, 10, 10)
    np.testing.assert_array_equal(padded.voxels, named_partition(grid).voxels)


def test_plain_label_volumes_become_numbered_units():
    labels = torch.as_tensor(random_labels())[None] * 10
    partition = Partition.from_metatensor(labels)
    assert partition.names == ("unit 10", "unit 20", "unit 30", "unit 40", "unit 50")
    np.testing.assert_array_equal(partition.labels, random_labels())


def test_metatensor_shares_no_memory_with_the_partition(grid):
    partition = named_partition(grid)
    before_labels, before_affine = partition.labels.copy(), partition.grid.affine.copy()
    volume = partition.to_metatensor()
    volume.zero_()
    volume.affine[:3, 3] += 100.0
    np.testing.assert_array_equal(partition.labels, before_labels)
    np.testing.assert_array_equal(partition.grid.affine, before_affine)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (torch.ones(2, *SHAPE, dtype=torch.int32), "the unit volume has 2 channels; expected 1"),
        (torch.ones(SHAPE, dtype=torch.int32), r"expected a channel-first image"),
        (torch.full((1, *SHAPE), 1.5), "no whole numbers"),
    ],
)
def test_refuses_volumes_that_hold_no_units(volume, message):
    with pytest.raises(ValueError, match=message):
        Partition.from_metatensor(volume)


def test_mask_of_named_units_is_where_their_labels_are():
    labels = np.array([[[0, 1, 2], [2, 3, 3]]], dtype=np.int32)
    partition = Partition(labels, ("a", "b", "c"), VoxelGrid((1, 2, 3), np.eye(4)), "organs")
    assert np.array_equal(partition.mask("c", "a"), (labels == 1) | (labels == 3))
    with pytest.raises(ValueError, match=r"no unit is called \['d'\]; the units are \['a', 'b', 'c'\]"):
        partition.mask("a", "d")
