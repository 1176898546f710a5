# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A signed voxel attribution over three slices of the image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from . import colors
from .curves import new_figure, save_figure
from .overview import AXIAL, CORONAL, SAGITTAL, Grid, Plane, crossing_slices, display_section, view_box

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_voxel_map", "save_voxel_map"]

_TALL, _SMALLEST, _GAP, _EDGE = 3.4, 1.6, 0.14, 0.15  # inches
_LOUD = 0.25  # share of the color limit above which a voxel is kept in view


def plot_voxel_map(
    attribution: np.ndarray,
    image: np.ndarray,
    mask: np.ndarray,
    grid: ArrayLike,
    *,
    title: str = "",
    notes: str = "",
    label: str = "attribution (unit of the class output)",
    percentile: float = 99.9,
    intensity_window: tuple[float, float] | None = None,
) -> Figure:
    """Draw a voxel attribution: axial, coronal and sagittal slice where the explained class is largest.

    Red is positive, blue is negative. The patient's right is on the image's left, anterior or superior is up, whatever
    the stored axis order. Gradient maps have a few extreme voxels: colors saturate at a percentile of the absolute
    values that are not 0, which the picture says.

    Args:
        attribution: (H, W, D) signed values; or (C, H, W, D), whose channels are added up.
        image: (H, W, D) intensities in any unit.
        mask: (H, W, D) bool, the voxels whose output is explained; outlined.
        grid: (4, 4) affine from voxel to RAS mm, or (3,) spacing in mm for axes that point to R, A, S.
        title: heading.
        notes: lines under it.
        label: name and unit of the values, for the color bar.
        percentile: of the absolute values at which colors saturate, in (0, 100].
        intensity_window: intensities shown black and white; by default as ``colors.grey_window`` chooses.

    Raises:
        ValueError: for other shapes, an empty mask, values that are not finite, or a percentile outside (0, 100].
        ImportError: if matplotlib is not installed.
    """
    colors.require_matplotlib()
    values, picture, region = _checked(attribution, image, mask)
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; expected more than 0 and at most 100.")
    affine = np.asarray(grid, dtype=np.float64)
    lattice = Grid(np.diag([*affine, 1.0]) if affine.shape == (3,) else affine, picture.shape)
    window = intensity_window or colors.grey_window(picture, region)
    values, picture, region = (lattice.turn(volume) for volume in (values, picture, region))
    strengths = np.abs(values[values != 0])
    limit = float(np.percentile(strengths, percentile)) if strengths.size else 1.0
    box = view_box(region, np.where(np.abs(values) > _LOUD * limit, limit, 0.0), lattice.spacing)
    extent = [(part.stop - part.start) * step for part, step in zip(box, lattice.spacing, strict=True)]
    wide = {AXIAL: (extent[0], extent[1]), CORONAL: (extent[0], extent[2]), SAGITTAL: (extent[1], extent[2])}
    scale = min(_TALL / max(h for _, h in wide.values()), 10.5 / sum(w for w, _ in wide.values()))
    sizes = {plane: (scale * w, scale * h) for plane, (w, h) in wide.items()}
    width = sum(max(_SMALLEST, w) for w, _ in sizes.values()) + 2 * _GAP + 2 * _EDGE
    height = max(h for _, h in sizes.values()) + 2.0 + 0.16 * notes.count("\n")
    figure, top = new_figure(width, height, title, notes)
    _draw_slices(figure, 1 - top, lattice, (picture, values, region), box, sizes, window=window, limit=limit)
    _draw_foot(figure, (width, height), limit, window, lattice.tilt(), label, percentile)
    return figure


def save_voxel_map(
    attribution: np.ndarray,
    image: np.ndarray,
    mask: np.ndarray,
    grid: ArrayLike,
    path: str | os.PathLike[str],
    **options: Any,
) -> Path:
    """Draw a voxel attribution and write it as a PNG, see `plot_voxel_map`."""
    return save_figure(plot_voxel_map(attribution, image, mask, grid, **options), path)


def _draw_slices(
    figure: Figure,
    heading: float,
    lattice: Grid,
    volumes: tuple[np.ndarray, ...],
    box: tuple[slice, ...],
    sizes: Mapping[Plane, tuple[float, float]],
    **look: Any,
) -> None:
    """Image, attribution and mask in three panels of these sizes in inches, below the heading's share of the height."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    crossing = crossing_slices(volumes[2])
    x, level = _EDGE, heading * height + 0.3
    for plane, (w, h) in sizes.items():
        axes = figure.add_axes((x / width, 1 - (level + h) / height, w / width, h / height))
        x += max(_SMALLEST, w) + _GAP
        index = crossing[plane.axis] - box[plane.axis].start
        sections = [display_section(volume[box], plane, index) for volume in volumes]
        across, down = (float(step) for step in np.delete(lattice.spacing, plane.axis))
        colors.draw_panel(axes, sections, (across, down), **look)
        colors.draw_marks(axes, plane.letters, with_scale=plane is AXIAL)
        text = f"{plane.name}, {lattice.position(plane.axis, crossing)}"
        axes.set_title(text, fontsize=8.5, loc="left", pad=4, color=colors.TEXT_COLOR)


def _draw_foot(
    figure: Figure,
    size: tuple[float, float],
    limit: float,
    window: tuple[float, float],
    tilt: float,
    label: str,
    percentile: float,
) -> None:
    """Color bar on the left, outline and remarks on the right."""
    width, height = size
    bar = figure.add_axes((_EDGE / width, 0.62 / height, 0.42, 0.15 / height))
    beyond = "" if percentile == 100 else f"; colors saturate at the {percentile:g}th percentile of the size"
    colors.draw_color_bar(bar, limit, f"{label}{beyond}")
    key = figure.add_axes((0.5, 0.1 / height, 0.5 - _EDGE / width, 0.72 / height))
    colors.draw_key(key, False, tilt, window)


def _checked(attribution: np.ndarray, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    values, picture, region = (np.asarray(volume) for volume in (attribution, image, mask))
    values = values.sum(axis=0) if values.ndim == 4 else values
    if not (values.ndim == picture.ndim == 3 and values.shape == picture.shape == region.shape):
        raise ValueError(
            f"got an attribution, an image and a mask of shapes {np.shape(attribution)}, {picture.shape} and "
            f"{region.shape}; expected (H, W, D) or (C, H, W, D), (H, W, D) and (H, W, D)."
        )
    if region.dtype != bool or not region.any():
        raise ValueError(
            f"the mask has type {region.dtype} and {int((region != 0).sum())} voxels; expected bool, not empty."
        )
    if not (np.isfinite(values).all() and np.isfinite(picture).all()):
        raise ValueError("the attribution or the image holds values that are not finite; an absent class has no map.")
    return values, picture, region
