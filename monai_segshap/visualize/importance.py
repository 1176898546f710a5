# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Importance matrices as heat maps: a row for each explained class, a column for each region."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_segshap.cohort import GlobalImportance, ImportanceMatrix

from . import colors
from .curves import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

__all__ = ["matrix_of", "plot_heatmap", "readable", "save_heatmap", "value_label"]

_CELL, _LETTER, _EDGE = 0.37, 0.068, 0.15  # inches: a cell, a letter of a name, a margin
_PARTS = {"absolute": "absolute", "positive": "positive", "negative": "negative"}
_NAN_COLOR = "#dcdcdc"
_MAX_NUMBERS = 30  # columns up to which each cell carries its number


def matrix_of(matrix: ImportanceMatrix | GlobalImportance) -> ImportanceMatrix:
    """The matrix itself, or the mean of a cohort."""
    return matrix.matrix() if isinstance(matrix, GlobalImportance) else matrix


def readable(name: str) -> str:
    """A name for a picture: blanks for underscores, shortened in the middle, no mathematics."""
    return colors.plain_text(colors.shortened(name.replace("_", " "), 26))


def value_label(variant: str, part: str) -> str:
    """What the values are, with their unit."""
    kind = _PARTS[part]
    return {
        "mass": f"mass: share of the {kind} attribution that lies in the region (0 to 1)",
        "mean": f"mean {kind} attribution of a voxel of the region (unit of the attribution)",
        "enrichment": f"enrichment: share of the {kind} attribution / share of the volume (1: no preference)",
    }[variant]


def plot_heatmap(
    matrix: ImportanceMatrix | GlobalImportance, *, title: str | None = None, notes: str | None = None
) -> Figure:
    """Draw an importance matrix: row = explained class, column = region.

    The color grows with the square root of a mass or mean, so that small ones can be told from none, and with the
    logarithm of an enrichment around 1. Cells of absent classes are grey and hatched. A frame marks the class's own
    region. Up to 30 columns, masses (in percent) and enrichments stand in the cells as numbers.

    Args:
        matrix: of one case, or the means of a cohort.
        title: heading; default names the case.
        notes: lines under it; default explains rows, columns and numbers.

    Returns:
        a figure that belongs to no window or global state.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    colors.require_matplotlib()
    shown = matrix_of(matrix)
    rows, columns = (list(map(readable, names)) for names in (shown.explained, shown.regions))
    left = max(map(len, rows)) * _LETTER + 0.55 + _EDGE
    foot = max(map(len, columns)) * _LETTER * 0.62 + 0.5 + _EDGE
    width = left + max(len(columns) * _CELL, 2.6) + 1.25
    numbers = _numbers(shown)
    if notes is None:
        notes = "Each row is explained by what lies in the columns; a frame marks the class itself."
        notes += " Hatched: class absent, or region empty." if np.isnan(shown.values).any() else ""
        notes += " Numbers are percent." if numbers is not None and shown.variant == "mass" else ""
    heading = f"{shown.case}: what each class relies on" if title is None else title
    lines = sum(colors.wrapped(t, width - 0.3, s).count("\n") + 1 for t, s in ((heading, 12.0), (notes, 8.5)) if t)
    height = foot + len(rows) * _CELL + 0.32 + 0.2 * lines
    figure, top = new_figure(width, height, heading, notes)
    above = (1 - top) * height
    body = height - foot - above
    axes = figure.add_axes((left / width, foot / height, (width - left - 1.25) / width, body / height))
    norm, palette = _scale(shown)
    image = axes.imshow(
        np.ma.masked_invalid(shown.values), cmap=palette, norm=norm, aspect="auto", interpolation="nearest"
    )
    _mark_cells(axes, shown, numbers, norm)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0, colors=colors.TEXT_COLOR)
    axes.set_ylabel("Explained class", fontsize=9, color=colors.TEXT_COLOR)
    axes.set_xlabel("Region in which the attribution lies", fontsize=9, color=colors.TEXT_COLOR)
    for spine in axes.spines.values():
        spine.set_visible(False)
    tall = min(body, 3.6)
    bar = figure.add_axes(((width - 1.1) / width, (foot + body - tall) / height, 0.14 / width, tall / height))
    _draw_bar(figure, bar, image, shown, tall)
    return figure


def save_heatmap(matrix: ImportanceMatrix | GlobalImportance, path: str | os.PathLike[str], **options: Any) -> Path:
    """Draw an importance matrix and write it as a PNG, see `plot_heatmap`."""
    return save_figure(plot_heatmap(matrix, **options), path)


def _scale(shown: ImportanceMatrix) -> tuple[Normalize, Any]:
    """How values become colors."""
    import matplotlib
    from matplotlib.colors import LogNorm, PowerNorm

    known = shown.values[np.isfinite(shown.values)]
    largest = float(known.max()) if known.size and known.max() > 0 else 1.0
    if shown.variant == "enrichment":
        smallest = float(known[known > 0].min()) if (known > 0).any() else 1.0
        span = min(max(largest, 1 / smallest, 2.0), 64.0)
        palette = matplotlib.colormaps["RdBu_r"].with_extremes(under=matplotlib.colormaps["RdBu_r"](0.0))
        return LogNorm(1 / span, span, clip=True), palette
    return PowerNorm(0.5, 0.0, largest), matplotlib.colormaps["YlGnBu"]


def _numbers(shown: ImportanceMatrix) -> list[list[str]] | None:
    """Text of each cell, or None where there is no room or no readable number."""
    if len(shown.regions) > _MAX_NUMBERS or shown.variant == "mean":
        return None
    if shown.variant == "mass":
        return [[f"{100 * v:.0f}" if v >= 0.0995 else f"{100 * v:.1f}" for v in row] for row in shown.values]
    return [["<.01" if v < 0.01 else f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in row] for row in shown.values]


def _mark_cells(axes: Axes, shown: ImportanceMatrix, numbers: list[list[str]] | None, norm: Normalize) -> None:
    """Hatch cells without a value, write numbers, and frame each class's own region."""
    from matplotlib.patches import Rectangle

    for t, r in np.ndindex(*shown.values.shape):
        value, corner = shown.values[t, r], (r - 0.5, t - 0.5)
        if np.isnan(value):
            axes.add_patch(
                Rectangle(corner, 1, 1, facecolor=_NAN_COLOR, edgecolor="#a8a8a8", hatch="////", linewidth=0)
            )
        elif numbers is not None:
            shade = float(norm(value))
            dark = shade > 0.55 if shown.variant == "mass" else abs(shade - 0.5) > 0.3
            axes.text(r, t, numbers[t][r], ha="center", va="center", fontsize=6.5, color="white" if dark else "#222222")
        if shown.explained[t] == shown.regions[r]:
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colors.TEXT_COLOR, linewidth=1.1, zorder=4))


def _draw_bar(figure: Figure, bar: Axes, image: Any, shown: ImportanceMatrix, tall: float) -> None:
    """Color bar with plain numbers and the unit."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    low, high = image.norm.vmin, image.norm.vmax
    if shown.variant == "enrichment":
        ticks = [2.0**n for n in range(-6, 7) if low <= 2.0**n <= high][:: 1 if high <= 8 else 2]
    else:
        power = int(np.floor(np.log10(high)))
        steps = [10.0**n * m for n in range(power - 3, power + 1) for m in (1, 2, 5)]
        ticks = [0.0, *[step for step in steps if 0.008 * high < step < 0.8 * high], high]
    drawn = figure.colorbar(image, cax=bar, ticks=ticks)
    bar.yaxis.set_minor_locator(NullLocator())
    bar.yaxis.set_major_formatter(FuncFormatter(lambda value, _: colors.number(value, 2, signed=False)))
    drawn.outline.set_visible(False)
    bar.tick_params(labelsize=7.5, colors=colors.TEXT_COLOR, length=2.5)
    label = colors.wrapped(value_label(shown.variant, shown.part), max(tall, 2.2), 7.5)
    bar.set_ylabel(label, fontsize=7.5, color=colors.TEXT_COLOR)
