# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Distances of units to a region and to its blocks, in mm."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from monai_segshap.geometry import VoxelGrid
from monai_segshap.units.partition import Partition

__all__ = ["region_blocks", "typical_unit_size", "unit_distances"]

#: Voxels of a unit whose distances are averaged, voxels of the volume among which they are looked for.
_VOXELS_OF_A_UNIT = 64
_VOXELS = 4_000_000
#: Voxels of a region to which the nearest distance is taken.
_VOXELS_OF_A_REGION = 20_000
#: Edge of a block in units, and most blocks of a region.
_BLOCK_EDGE = 0.72
_BLOCKS = 40


def typical_unit_size(partition: Partition, units: NDArray[np.bool_]) -> float:
    """Distance in mm of neighboring units of median volume V, ``(sqrt(2) V)^(1/3)`` as in a face-centered lattice."""
    volume = float(np.median(partition.volumes_ml[units])) * 1000.0
    return float((np.sqrt(2.0) * volume) ** (1.0 / 3.0))


def region_blocks(mask: NDArray[np.bool_], grid: VoxelGrid, unit_size_mm: float) -> NDArray[np.int64]:
    """Split a region into cubes.

    Args:
        mask: bool (H, W, D), the region.
        grid: of the mask.
        unit_size_mm: the cubes have 0.72 of it as their edge, or more if that made over 40 of them.

    Returns:
        int64 (number of voxels of the region, in C order), block 0..B-1 of each.
    """
    index = np.argwhere(mask)
    position = (index - index.min(axis=0)) * np.asarray(grid.spacing_mm)
    edge = _BLOCK_EDGE * unit_size_mm
    while True:
        cells = np.floor(position / edge).astype(np.int64)
        found = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
        if found.max() < _BLOCKS:
            return np.asarray(found, dtype=np.int64)
        edge *= 1.1


def unit_distances(
    partition: Partition, mask: NDArray[np.bool_], blocks: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean distances of the units' voxels.

    Args:
        partition: the M units.
        mask: bool (H, W, D), the region.
        blocks: see `region_blocks`.

    Returns:
        float64 (M,) in mm, to the nearest voxel of the region; float64 (B, M), to the center of each block.
    """
    grid = partition.grid
    region = grid.to_world(np.argwhere(mask))
    samples, owner = _sampled_voxels(partition)
    points = grid.to_world(samples)
    step = max(1, len(region) // _VOXELS_OF_A_REGION)
    nearest = cKDTree(region[::step]).query(points)[0]
    counts = np.maximum(np.bincount(owner, minlength=partition.n_units), 1)
    to_region = np.bincount(owner, weights=nearest, minlength=partition.n_units) / counts
    centers = np.stack([region[blocks == b].mean(axis=0) for b in range(int(blocks.max()) + 1)])
    to_blocks = np.stack(
        [
            np.bincount(owner, weights=np.linalg.norm(points - c, axis=1), minlength=partition.n_units) / counts
            for c in centers
        ]
    )
    return to_region, to_blocks


def _sampled_voxels(partition: Partition) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (n, 3) of up to 64 voxels of each unit, spread evenly over it, and the unit 0..M-1 of each."""
    labels = partition.labels.ravel()
    step = max(1, labels.size // _VOXELS)
    flat = np.flatnonzero(labels[::step]) * step
    missing = np.setdiff1d(np.arange(1, partition.n_units + 1), labels[flat])
    if len(missing):
        flat = np.concatenate([flat, np.flatnonzero(np.isin(labels, missing))])
    owner = labels[flat].astype(np.int64) - 1
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(partition.n_units + 1))
    chosen = [
        order[np.unique(np.linspace(a, b - 1, min(b - a, _VOXELS_OF_A_UNIT)).astype(np.int64))]
        for a, b in pairwise(starts)
        if b > a
    ]
    picked = np.concatenate(chosen)
    return np.stack(np.unravel_index(flat[picked], partition.labels.shape), axis=1).astype(np.int64), owner[picked]
