# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Distances and blocks against loops over voxels, on grids of long voxels that stand askew."""

from __future__ import annotations

import numpy as np
import pytest

from monai_segshap.geometry import VoxelGrid
from monai_segshap.units import partition_from_labels, region_blocks, typical_unit_size, unit_distances
from monai_segshap.units import positions as positions_module

SHAPE = (9, 8, 6)


def oblique_grid(shape=SHAPE, spacing=(1.5, 2.0, 5.0)) -> VoxelGrid:
    a, b = np.deg2rad(25.0), np.deg2rad(-40.0)
    around_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    around_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = around_z @ around_x @ np.diag(spacing)
    affine[:3, 3] = (-20.0, 7.0, 300.0)
    return VoxelGrid(shape, affine)


def small_case():
    """Five ragged units of fewer than 64 voxels, and a region that shares voxels with some of them."""
    rng = np.random.default_rng(0)
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[:8, :, :5] = 1 + np.add.outer(np.arange(8) // 4 * 2, np.arange(8) // 4)[:, :, None]
    labels[8, 7, 5] = 5
    labels[rng.random(SHAPE) < 0.4] = 0
    labels[8, 7, 5] = 5
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:6, 3:6, 1:3] = rng.random((4, 3, 2)) < 0.7
    return partition_from_labels(labels, oblique_grid(), "organs"), mask


def points_of(grid: VoxelGrid, mask: np.ndarray) -> np.ndarray:
    return np.array([(grid.affine @ [*voxel, 1.0])[:3] for voxel in zip(*np.nonzero(mask), strict=True)])


def test_distances_equal_a_loop_over_voxels():
    partition, mask = small_case()
    assert partition.voxels.max() <= 64
    blocks = region_blocks(mask, partition.grid, 6.0)
    to_region, to_blocks = unit_distances(partition, mask, blocks)
    region = points_of(partition.grid, mask)
    assert to_region.shape == (partition.n_units,)
    assert to_blocks.shape == (blocks.max() + 1, partition.n_units)
    assert blocks.max() >= 1
    for unit in range(partition.n_units):
        own = points_of(partition.grid, partition.labels == unit + 1)
        nearest = [min(np.linalg.norm(point - other) for other in region) for point in own]
        assert to_region[unit] == pytest.approx(np.mean(nearest), abs=1e-9)
        for block in range(blocks.max() + 1):
            center = region[blocks == block].mean(axis=0)
            expected = np.mean([np.linalg.norm(point - center) for point in own])
            assert to_blocks[block, unit] == pytest.approx(expected, abs=1e-9)


def test_a_unit_inside_the_region_has_no_distance():
    partition, _ = small_case()
    mask = partition.labels == 2
    to_region, _ = unit_distances(partition, mask, np.zeros(int(mask.sum()), dtype=np.int64))
    assert to_region[1] == 0.0
    assert (np.delete(to_region, 1) > 0).all()


def test_large_units_are_sampled_close_to_the_mean_of_all_their_voxels():
    grid = oblique_grid((30, 30, 12), (1.0, 1.0, 2.5))
    labels = np.repeat(np.repeat(np.arange(1, 5).reshape(2, 2), 15, axis=0), 15, axis=1)[:, :, None]
    partition = partition_from_labels(np.repeat(labels, 12, axis=2).astype(np.int32), grid, "cubes")
    mask = np.zeros(grid.shape, dtype=bool)
    mask[3:8, 4:9, 2:5] = True
    found, _ = unit_distances(partition, mask, np.zeros(int(mask.sum()), dtype=np.int64))
    region = points_of(grid, mask)
    for unit in range(4):
        own = points_of(grid, partition.labels == unit + 1)
        direct = np.linalg.norm(own[:, None] - region, axis=2).min(axis=1).mean()
        assert found[unit] == pytest.approx(direct, rel=0.15)


def test_a_unit_that_a_coarse_sampling_misses_has_its_distance_nevertheless(monkeypatch):
    partition, mask = small_case()
    blocks = region_blocks(mask, partition.grid, 6.0)
    monkeypatch.setattr(positions_module, "_VOXELS", 10)
    found, _ = unit_distances(partition, mask, blocks)
    region = points_of(partition.grid, mask)
    (lonely,) = points_of(partition.grid, partition.labels == 5)
    assert found[4] == pytest.approx(np.linalg.norm(region - lonely, axis=1).min(), abs=1e-9)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("unit_size", [3.0, 8.0, 20.0, 500.0])
def test_blocks_split_the_region_into_cubes_of_millimeters(unit_size):
    _, mask = small_case()
    grid = oblique_grid()
    blocks = region_blocks(mask, grid, unit_size)
    assert blocks.shape == (mask.sum(),)
    assert np.unique(blocks).tolist() == list(range(blocks.max() + 1))
    assert blocks.max() < 40
    index = np.argwhere(mask)
    offset = (index - index.min(axis=0)) * grid.spacing_mm
    cells = np.floor(offset / (0.72 * unit_size)).astype(int)
    if len(np.unique(cells, axis=0)) <= 40:
        same_cell = (cells[:, None] == cells).all(axis=2)
        np.testing.assert_array_equal(blocks[:, None] == blocks, same_cell)
    for block in range(blocks.max() + 1):
        extent = np.ptp(offset[blocks == block], axis=0)
        assert len(np.unique(extent)) >= 1
        assert (extent < max(0.72 * unit_size * 8, 5.0)).all()
    if unit_size == 500.0:
        assert not blocks.any()


def test_a_large_region_has_forty_blocks_at_most():
    mask = np.ones((40, 30, 20), dtype=bool)
    blocks = region_blocks(mask, oblique_grid(mask.shape, (1.0, 1.0, 3.0)), 2.0)
    counts = np.bincount(blocks)
    assert 10 <= len(counts) <= 40
    assert counts.sum() == mask.size
    assert counts.min() > 0


def test_blocks_of_one_voxel():
    mask = np.zeros(SHAPE, dtype=bool)
    mask[3, 3, 3] = True
    assert region_blocks(mask, oblique_grid(), 5.0).tolist() == [0]


def test_typical_size_is_the_distance_of_neighbors_in_a_close_packing():
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[0, :2], labels[1, :4], labels[2:7] = 1, 2, 3
    partition = partition_from_labels(labels, oblique_grid(), "fcc")
    volume = np.array([12, 24, 240]) * 1.5 * 2.0 * 5.0
    for chosen, expected in (([True] * 3, volume[1]), ([True, False, False], volume[0])):
        found = typical_unit_size(partition, np.array(chosen))
        # four units share a cubic cell of edge a = sqrt(2) d, so V = d^3 / sqrt(2)
        assert found**3 / np.sqrt(2.0) == pytest.approx(expected)
