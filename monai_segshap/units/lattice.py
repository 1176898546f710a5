# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Lattice units: face-centered cubic cells (rhombic dodecahedra) and cubes, in millimeters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCALE_DEFINITIONS", "cube_labels", "fcc_labels"]

#: Edge of the conventional cube of the lattice for a scale of 1, by what the scale means.
SCALE_DEFINITIONS = {"spacing": math.sqrt(2.0), "cubic_cell": 1.0, "volume": 4.0 ** (1.0 / 3.0)}


def fcc_labels(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    scale_mm: float,
    *,
    origin_mm: Sequence[float] | NDArray[np.float64] | None = None,
    scale_definition: str = "spacing",
) -> NDArray[np.int32]:
    """Label each voxel with its nearest center of a face-centered cubic lattice (paper 000, section III-B).

    Closed form, O(1) for each voxel (Conway and Sloane's nearest point of D3): round the coordinates; if their sum is
    odd, round the one with the largest error the other way.

    Args:
        shape: (H, W, D).
        spacing_mm: voxel spacing along each axis.
        scale_mm: S, with the default definition the distance of neighboring centers, which is also the distance
            between opposite faces of a cell; a cell then has S**3 / sqrt(2) mm3.
        origin_mm: a lattice point, in mm along the axes from voxel (0, 0, 0); default the center of the volume.
        scale_definition: "spacing" (as above), "cubic_cell" (edge of the conventional cube; cell S**3 / 4) or
            "volume" (edge of the cube of the cell's volume; cell S**3).

    Returns:
        int32 (H, W, D), labels 1..M, each with at least one voxel, ascending with the position of the center.

    Raises:
        ValueError: for a bad shape, spacing, scale or definition.
    """
    sizes, spacing = _checked(shape, spacing_mm, scale_mm)
    if scale_definition not in SCALE_DEFINITIONS:
        raise ValueError(f"scale_definition is {scale_definition!r}; expected one of {', '.join(SCALE_DEFINITIONS)}.")
    unit_mm = scale_mm * SCALE_DEFINITIONS[scale_definition] / 2.0
    origin = _center(sizes, spacing) if origin_mm is None else np.asarray(origin_mm, dtype=np.float64)
    axes = [(np.arange(n) * s - o) / unit_mm for n, s, o in zip(sizes, spacing, origin, strict=True)]
    low = [math.floor(a[0]) - 2 for a in axes]
    span = [math.ceil(a[-1]) + 3 - lo for a, lo in zip(axes, low, strict=True)]
    cells = np.empty(sizes, dtype=np.int64)
    for i, first in enumerate(axes[0]):
        point = np.stack(np.broadcast_arrays(first, axes[1][:, None], axes[2][None, :]))
        center = _nearest_d3(point)
        cells[i] = ((center[0] - low[0]) * span[1] + (center[1] - low[1])) * span[2] + (center[2] - low[2])
    return _close_up(cells, math.prod(span))


def cube_labels(
    shape: Sequence[int], spacing_mm: Sequence[float], scale_mm: float, *, origin_mm: Sequence[float] | None = None
) -> NDArray[np.int32]:
    """Label each voxel with its cube of a regular grid (paper 001, appendix B.1).

    Args:
        shape: (H, W, D).
        spacing_mm: voxel spacing along each axis.
        scale_mm: edge of a cube.
        origin_mm: a corner of a cube, in mm along the axes from voxel (0, 0, 0); default half a voxel before it, so
            that cubes start at the volume's faces.

    Returns:
        int32 (H, W, D), labels 1..M, each with at least one voxel.

    Raises:
        ValueError: for a bad shape, spacing or scale.
    """
    sizes, spacing = _checked(shape, spacing_mm, scale_mm)
    origin = -0.5 * spacing if origin_mm is None else np.asarray(origin_mm, dtype=np.float64)
    index = [
        np.floor((np.arange(n) * s - o) / scale_mm + 1e-9).astype(np.int64)
        for n, s, o in zip(sizes, spacing, origin, strict=True)
    ]
    index = [i - i[0] for i in index]
    span = [int(i[-1]) + 1 for i in index]
    cells = (index[0][:, None, None] * span[1] + index[1][None, :, None]) * span[2] + index[2][None, None, :]
    return _close_up(cells, math.prod(span))


def _nearest_d3(point: NDArray[np.float64]) -> NDArray[np.int64]:
    """Nearest integer points with an even coordinate sum, shape (3, ...) -> (3, ...)."""
    center = np.floor(point + 0.5)
    error = point - center
    odd = (center.sum(axis=0) % 2) != 0
    worst = np.argmax(np.abs(error), axis=0)
    for axis in range(3):
        turn = odd & (worst == axis)
        center[axis][turn] += np.where(error[axis][turn] >= 0, 1.0, -1.0)
    return center.astype(np.int64)


def _close_up(cells: NDArray[np.int64], n_possible: int) -> NDArray[np.int32]:
    if n_possible <= 4 * cells.size + 1_000_000:
        present = np.zeros(n_possible, dtype=np.int32)
        present[cells.ravel()] = 1
        return np.cumsum(present, dtype=np.int32)[cells]
    _, inverse = np.unique(cells.ravel(), return_inverse=True)
    return (inverse.reshape(cells.shape) + 1).astype(np.int32)


def _center(sizes: tuple[int, ...], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    return (np.asarray(sizes) - 1) * spacing / 2.0


def _checked(
    shape: Sequence[int], spacing_mm: Sequence[float], scale_mm: float
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    sizes = tuple(int(n) for n in shape)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"shape is {tuple(shape)}; expected three positive sizes (H, W, D).")
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)}; expected three positive lengths in mm.")
    if not (math.isfinite(scale_mm) and scale_mm > 0):
        raise ValueError(f"scale_mm is {scale_mm}; expected a positive length in mm.")
    return (sizes[0], sizes[1], sizes[2]), spacing
