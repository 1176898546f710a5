# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""One picture of one explanation: three slices through the region, and the most important units as bars.

The slices are shown as radiologists see them (the patient's right on the image's left, anterior or superior up),
whatever axis order and flips the volume is stored with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel
import numpy as np

from . import colors
from .curves import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SURROUNDINGS_MM, _SMALLEST_VIEW_MM = 25.0, 100.0
_PANELS_WIDTH, _PANELS_HEIGHT, _SMALLEST_CELL = 6.8, 6.6, 2.35  # inches
_CHART_WIDTH, _CHART_FOOT, _MARGIN, _GAP, _PANEL_TITLE = 5.4, 0.95, 0.2, 0.12, 0.26  # inches


class Plane(NamedTuple):
    """A plane: name, canonical normal axis (0 R, 1 A, 2 S) and the letters of its edges (left, right, top, bottom)."""

    name: str
    axis: int
    letters: str


AXIAL, CORONAL, SAGITTAL = Plane("Axial", 2, "RLAP"), Plane("Coronal", 1, "RLSI"), Plane("Sagittal", 0, "APSI")


class Grid:
    """A voxel grid, turned to the canonical RAS orientation that is closest to it.

    Args:
        affine: (4, 4) stored voxel to RAS mm.
        shape: stored (H, W, D), in voxels.

    Raises:
        ValueError: If the affine is not an invertible, finite (4, 4) matrix with last row 0 0 0 1.
    """

    def __init__(self, affine: np.ndarray, shape: tuple[int, ...]) -> None:
        affine = np.asarray(affine, dtype=np.float64)
        good = affine.shape == (4, 4) and bool(np.isfinite(affine).all()) and np.allclose(affine[3], [0, 0, 0, 1])
        if not good or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ValueError(
                "affine must be an invertible, finite (4, 4) matrix from voxel to RAS mm with last row 0 0 0 1, "
                f"got shape {affine.shape}:\n{affine}"
            )
        self.shape = shape
        self.orientation = nibabel.orientations.io_orientation(affine)
        self.affine = affine @ nibabel.orientations.inv_ornt_aff(self.orientation, shape)
        self.spacing = np.linalg.norm(self.affine[:3, :3], axis=0)

    def turn(self, volume: np.ndarray) -> np.ndarray:
        """Return a stored (H, W, D) volume in canonical axis order and direction."""
        return np.asarray(nibabel.orientations.apply_orientation(volume, self.orientation))

    def tilt(self) -> float:
        """Return the largest angle between a slice plane's normal and the patient's axis, in degrees."""
        normals = np.linalg.inv(self.affine[:3, :3])
        cosines = np.abs(np.diag(normals)) / np.linalg.norm(normals, axis=1)
        return float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))))

    def position(self, axis: int, crossing: Sequence[int]) -> str:
        """Write where a slice lies: RAS mm at the point all three slices share, and the stored voxel index."""
        stored = int(np.flatnonzero(self.orientation[:, 0] == axis)[0])
        index = crossing[axis] if self.orientation[stored, 1] > 0 else self.shape[stored] - 1 - crossing[axis]
        millimeters = colors.number(round(float((self.affine @ [*crossing, 1])[axis]), 1), 6, signed=False)
        return f"{'xyz'[axis]} = {millimeters} mm ({'ijk'[stored]} = {index})"


def display_section(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Cut a canonical (H, W, D) volume as it is shown: row 0 is the plane's top letter, column 0 its left letter."""
    return np.take(volume, index, axis=plane.axis)[::-1, ::-1].T


def crossing_slices(region: np.ndarray, prediction: np.ndarray | None = None) -> tuple[int, ...]:
    """Choose the sagittal, coronal and axial slice with the largest cross-section of the region.

    Ties (a box has only ties) go to the slice with the most predicted voxels inside the region, then to the middle.

    Args:
        region: (H, W, D) bool, canonical, not empty.
        prediction: (H, W, D) bool or None.
    """
    chosen = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        areas = region.sum(axis=others)
        candidates = np.flatnonzero(areas == areas.max())
        if prediction is not None:
            predicted = (region & prediction).sum(axis=others)[candidates]
            candidates = candidates[predicted == predicted.max()]
        chosen.append(int(candidates[(len(candidates) - 1) // 2]))
    return tuple(chosen)


def view_box(region: np.ndarray, attribution: np.ndarray, spacing: np.ndarray) -> tuple[slice, ...]:
    """Choose what the panels show: region and colored units with 25 mm around them, at least 100 mm along each axis.

    An axis of which more than 80 % would be shown is shown whole. Units under 1 % of the largest absolute value are
    too pale to be seen and do not count.

    Args:
        region: (H, W, D) bool, canonical, not empty.
        attribution: (H, W, D) values.
        spacing: (3,) in mm.
    """
    shown = region | (np.abs(attribution) > 0.01 * np.abs(attribution).max())
    box = []
    for axis, size in enumerate(shown.shape):
        used = np.flatnonzero(shown.any(axis=tuple(other for other in range(3) if other != axis)))
        extent = max((used[-1] - used[0] + 1) + 2 * _SURROUNDINGS_MM / spacing[axis], _SMALLEST_VIEW_MM / spacing[axis])
        middle = (used[0] + used[-1] + 1) / 2
        start, stop = max(0, int(np.floor(middle - extent / 2))), min(size, int(np.ceil(middle + extent / 2)))
        box.append(slice(0, size) if stop - start > 0.8 * size else slice(start, stop))
    return tuple(box)


def _checked_volumes(**volumes: np.ndarray | None) -> list[np.ndarray]:
    """Return the volumes that are given, all of the image's shape: finite numbers, and bool for region, prediction."""
    arrays = {name: np.asarray(volume) for name, volume in volumes.items() if volume is not None}
    shape = arrays["image"].shape
    for name, array in arrays.items():
        if array.ndim != 3 or array.shape != shape:
            raise ValueError(f"{name} must be a volume (H, W, D) of the image's shape {shape}, got shape {array.shape}")
        if name in ("region", "prediction"):
            if array.dtype != bool:
                raise ValueError(f"{name} must be a bool mask, got dtype {array.dtype}; compare it first ({name} > 0)")
        elif not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {np.sum(~np.isfinite(array))} NaN or infinite voxels")
    if not arrays["region"].any():
        raise ValueError(f"region must hold at least one voxel, got an empty mask of shape {shape}")
    return list(arrays.values())


def _new_sheet(size: Sequence[float], rows: int, title: str, notes: str) -> tuple[Figure, list[Axes]]:
    """Make a figure with its heading and empty axes, all measured in inches from the upper left corner.

    Coronal lies under axial and sagittal beside coronal, at one scale; the key fills the free corner, bars the right.

    Args:
        size: extent of the shown box in mm, from right to left, front to back and top to bottom.
        rows: number of bars.
        title: heading.
        notes: lines under the heading.

    Returns:
        The figure, and the axes of axial, coronal, sagittal, key, color bar and chart.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = min((_PANELS_WIDTH - _GAP) / (size[0] + size[1]), _PANELS_HEIGHT / (size[1] + size[2]))
    x, y, z = (scale * extent for extent in size)
    cell, column = max(y, _SMALLEST_CELL), _MARGIN + max(x, _SMALLEST_CELL) + _GAP
    chart = column + cell + 3 * _GAP
    width = chart + _CHART_WIDTH + _MARGIN
    texts = colors.wrapped(title, width - 2 * _MARGIN, 13), colors.wrapped(notes, width - 2 * _MARGIN, 9)
    notes_top = _MARGIN + 0.24 * (texts[0].count("\n") + 1)
    top = notes_top + 0.17 * (texts[1].count("\n") + 1) * bool(notes) + _PANEL_TITLE + 0.1
    row = top + cell + _GAP + _PANEL_TITLE
    bars = max(0.23 * rows, min(0.42 * rows, row + z - top - _CHART_FOOT))
    height = max(row + z, top + bars + _CHART_FOOT) + _MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    style: dict[str, Any] = {"x": _MARGIN / width, "va": "top"}
    figure.text(y=1 - _MARGIN / height, s=texts[0], size=13, weight="bold", color=colors.TEXT_COLOR, **style)
    figure.text(y=1 - notes_top / height, s=texts[1], size=9, color=colors.FAINT_COLOR, **style)
    frames = [(_MARGIN, top, x, y), (_MARGIN, row, x, z), (column, row, y, z), (column, top, cell, cell)]
    frames += [(column, top + 0.62, cell, 0.16), (chart, top, _CHART_WIDTH, bars)]
    return figure, [figure.add_axes((a / width, 1 - (b + h) / height, w / width, h / height)) for a, b, w, h in frames]


def _draw_slices(
    panels: Sequence[Axes], grid: Grid, volumes: Sequence[np.ndarray], box: tuple[slice, ...], **look: Any
) -> None:
    """Draw the axial, coronal and sagittal slice of canonical volumes (image, attribution, region, prediction)."""
    crossing = crossing_slices(*volumes[2:])
    scale_panel = next(
        (axes for axes in panels if min(axes.get_window_extent().size) > 0.6 * axes.figure.dpi), panels[0]
    )
    for plane, axes in zip((AXIAL, CORONAL, SAGITTAL), panels, strict=True):
        index = crossing[plane.axis] - box[plane.axis].start
        sections = [display_section(volume[box], plane, index) for volume in volumes]
        across, down = (float(step) for step in np.delete(grid.spacing, plane.axis))
        colors.draw_panel(axes, sections, (across, down), **look)
        colors.draw_marks(axes, plane.letters, with_scale=axes is scale_panel)
        heading = f"{plane.name}, {grid.position(plane.axis, crossing)}"
        axes.set_title(heading, fontsize=9.5, loc="left", pad=5, color=colors.TEXT_COLOR)


def plot_overview(
    image: np.ndarray,
    attribution: np.ndarray,
    region: np.ndarray,
    affine: np.ndarray,
    *,
    names: Sequence[str],
    values: np.ndarray,
    standard_errors: np.ndarray,
    score_label: str,
    title: str,
    notes: str = "",
    prediction: np.ndarray | None = None,
    intensity_window: tuple[float, float] | None = None,
    n_units: int = 12,
) -> Figure:
    """Draw one explanation: axial, coronal and sagittal slices through the region, and the most important units.

    All panels share one scale in mm. On an oblique grid the slices follow the voxel grid, the letters name the
    nearest direction, and the picture says by how many degrees it is oblique.

    Args:
        image: (H, W, D) finite intensities in any unit.
        attribution: (H, W, D) finite attribution of each voxel's unit in the score's unit, 0 outside the units.
        region: (H, W, D) bool, the explained region.
        affine: (4, 4) voxel to RAS mm, of all volumes.
        names: M names of the units.
        values: (M,) attributions in the score's unit; positive values raise the score.
        standard_errors: (M,) standard errors in the same unit; all 0 means exact values.
        score_label: name of the score and its unit, for the color bar and the value axis.
        title: heading, such as the case, the target class and the score.
        notes: one or two lines under it: method, evaluations, baseline, efficiency gap.
        prediction: (H, W, D) bool, the explained class as predicted.
        intensity_window: intensities shown black and white; by default as ``colors.grey_window`` chooses.
        n_units: how many units the bar chart shows at most.

    Returns:
        A figure that belongs to no window or global state, ready for ``savefig`` or a notebook.

    Raises:
        ValueError: If a shape, length, affine or window is wrong, the region is empty or a number is not finite.
        ImportError: If matplotlib is not installed.
    """
    colors.require_matplotlib()
    volumes = _checked_volumes(image=image, attribution=attribution, region=region, prediction=prediction)
    if n_units < 1:
        raise ValueError(f"n_units must be at least 1, got {n_units}")
    values, standard_errors = colors.checked_units(names, values, standard_errors)
    window = colors.grey_window(volumes[0], volumes[2]) if intensity_window is None else intensity_window
    if not (np.isfinite(window).all() and window[0] < window[1]):
        raise ValueError(f"intensity_window must be two finite numbers, low below high, got {window}")
    grid = Grid(affine, volumes[0].shape)
    volumes = [grid.turn(volume) for volume in volumes]
    box = view_box(volumes[2], volumes[1], grid.spacing)
    size = [(part.stop - part.start) * step for part, step in zip(box, grid.spacing, strict=True)]
    limit = colors.symmetric_limit(values, volumes[1])

    figure, (*panels, key, bar, chart) = _new_sheet(size, min(n_units, len(names)), title, notes)
    _draw_slices(panels, grid, volumes, box, window=window, limit=limit)
    colors.draw_key(key, prediction is not None, grid.tilt(), window)
    colors.draw_color_bar(bar, limit, score_label if np.any(values) else f"{score_label}\nall values are 0")
    colors.draw_unit_bars(chart, names, values, standard_errors, n_units, score_label)
    return figure


def save_overview(path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Path:
    """Draw an explanation and write it as a PNG of 150 dpi, which appears whole or not at all.

    Args:
        path: where to write; ends in ``.png``, and its folder exists.
        args: as for ``plot_overview``.
        kwargs: as for ``plot_overview``.

    Returns:
        The path that was written.

    Raises:
        ValueError: If the path does not end in ``.png``, or as ``plot_overview``.
        FileNotFoundError: If the folder does not exist.
        ImportError: If matplotlib is not installed.
    """
    return save_figure(plot_overview(*args, **kwargs), path, dpi=150)
