# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Paired comparisons as a picture: the difference of each case, their mean, and its interval."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import colors
from .curves import new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_differences", "save_differences"]

_COLUMNS = ("row", "column", "comparison", "mean", "low", "high", "differences")


def plot_differences(table: pd.DataFrame, *, title: str = "", notes: str = "") -> Figure:
    """Draw paired differences: a panel for each row and column of the grid, a line for each comparison.

    Dots are cases, the bar is the mean with its interval; red where the interval lies above 0, blue where below.

    Args:
        table: columns "row" and "column" (headings of the panel, in the order in which they first occur), "comparison"
            (such as "hybrid - organs"), "mean", "low" and "high" (NaN: nothing is drawn but the dots), and
            "differences" (a list of finite numbers, one for each case).
        title: heading.
        notes: lines under it.

    Raises:
        ValueError: for a table without these columns, or without rows.
        ImportError: if matplotlib is not installed.
    """
    colors.require_matplotlib()
    missing = [name for name in _COLUMNS if name not in table]
    if missing or table.empty:
        raise ValueError(f"the table of differences has {len(table)} rows and lacks the columns {missing}.")
    rows, columns = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["column"]))
    comparisons = list(dict.fromkeys(table["comparison"]))
    width, cell = 1.35 + 2.15 * len(columns), 0.44 + 0.24 * len(comparisons)
    figure, top = new_figure(width, cell * len(rows) + 1.0, title, notes)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    height = figure.get_figheight()
    figure.subplots_adjust(left=1.55 / width, right=1 - 0.12 / width, top=top - 0.2 / height, bottom=0.26 / height)
    figure.subplots_adjust(hspace=0.36 / (cell - 0.3), wspace=0.12)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            part = table[(table["row"] == row) & (table["column"] == column)]
            _draw_panel(grid[i, j], part, comparisons, labeled=j == 0)
            if i == 0:
                grid[i, j].set_title(colors.plain_text(column), fontsize=9, color=colors.TEXT_COLOR, pad=5)
            if j == 0:
                grid[i, j].set_ylabel(colors.plain_text(row), fontsize=9, weight="bold", color=colors.TEXT_COLOR)
    return figure


def save_differences(table: pd.DataFrame, path: str | os.PathLike[str], **options: Any) -> Path:
    """Draw paired differences and write them as a PNG, see `plot_differences`."""
    return save_figure(plot_differences(table, **options), path)


def _draw_panel(axes: Axes, part: pd.DataFrame, comparisons: Sequence[str], labeled: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.axvline(0, color=colors.TEXT_COLOR, linewidth=0.9)
    for place, comparison in enumerate(comparisons):
        for found in part[part["comparison"] == comparison].itertuples():
            dots = np.asarray(found.differences, dtype=np.float64)
            axes.plot(dots, np.full(len(dots), place), "o", markersize=2.6, color="#9a9a9a", alpha=0.8, zorder=2)
            if np.isfinite([found.mean, found.low, found.high]).all():
                color = _color(float(found.low), float(found.high))
                axes.plot([found.low, found.high], [place, place], color=color, linewidth=2.4, zorder=3)
                axes.plot([found.mean], [place], "|", markersize=9, markeredgewidth=2.0, color=color, zorder=4)
    style_axes(axes)
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.set_yticks(range(len(comparisons)), [colors.plain_text(c) for c in comparisons] if labeled else [])
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: colors.number(value, 2, signed=False)))


def _color(low: float, high: float) -> str:
    return colors.POSITIVE_COLOR if low > 0 else colors.NEGATIVE_COLOR if high < 0 else colors.TEXT_COLOR
