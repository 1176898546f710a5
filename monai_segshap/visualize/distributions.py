# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A cohort as box plots: importances of each region, context use of each class, outlier scores of each case."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from monai_segshap.cohort import ImportanceTable, context_use

from . import colors
from .curves import new_figure, save_figure, style_axes
from .importance import readable, value_label
from .systems import SYSTEM_COLORS, color_of, systems_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_boxplots",
    "plot_context_use",
    "plot_outlier_scores",
    "save_boxplots",
    "save_context_use",
    "save_outlier_scores",
]

_ROW, _LETTER = 0.24, 0.066  # inches: a box, a letter of a name
_OUTLIER_COLOR = "#c0392b"


def plot_boxplots(
    table: ImportanceTable,
    explained: str | Sequence[str],
    *,
    n_regions: int = 17,
    systems: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the distribution of local importances over cases, a panel for each explained class (paper 001, Fig. 3).

    Regions are ordered by their median, the largest on top. Boxes hold the middle half of the cases, the line is the
    median, whiskers reach the furthest case within 1.5 box lengths, dots are cases beyond. Colors are body systems.

    Args:
        table: the cohort.
        explained: one class, or several.
        n_regions: how many regions a panel shows at most.
        systems: as for `plot_graph`.
        title: heading.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for an unknown class, no class, or ``n_regions`` below 1.
    """
    colors.require_matplotlib()
    classes = [explained] if isinstance(explained, str) else list(explained)
    frames = [_by_median(table.row(name), n_regions) for name in classes]
    if not frames or n_regions < 1:
        raise ValueError(f"got {len(frames)} classes and n_regions {n_regions}; expected at least 1 of each.")
    kinds = systems_of(table.regions, systems)
    across = min(3, len(classes))
    down = -(-len(classes) // across)
    room = max(len(readable(r)) for r in table.regions) * _LETTER + 0.2
    cell = room + 2.6, max(len(f.columns) for f in frames) * _ROW + 0.62
    width, height = across * cell[0] + 0.15, down * cell[1] + 1.4
    heading = f"What each class relies on, over {table.n_cases} cases" if title is None else title
    figure, top = new_figure(width, height, heading, _unit_notes(table))
    for n, (name, frame) in enumerate(zip(classes, frames, strict=True)):
        i, j = divmod(n, across)
        x, y = (j * cell[0] + room) / width, top - ((i + 1) * cell[1] - 0.4) / height
        axes = figure.add_axes((x, y, 2.45 / width, (cell[1] - 0.62) / height))
        _draw_boxes(axes, frame, [color_of(kinds[region]) for region in frame.columns])
        count = int(np.isfinite(table.row(name).to_numpy()).any(axis=1).sum())
        axes.set_title(
            f"{readable(name)}, n = {count}", fontsize=9, fontweight="bold", loc="left", color=colors.TEXT_COLOR, pad=4
        )
    _system_legend(figure, kinds)
    return figure


def save_boxplots(
    table: ImportanceTable, explained: str | Sequence[str], path: str | os.PathLike[str], **options: Any
) -> Path:
    """Draw the local importances of one class or several and write them as a PNG, see `plot_boxplots`."""
    return save_figure(plot_boxplots(table, explained, **options), path)


def plot_context_use(
    table: ImportanceTable,
    *,
    own: Mapping[str, str] | None = None,
    systems: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw how much of each class's attribution lies outside the class, over cases; see `context_use`.

    Args:
        table: masses of a cohort.
        own: explained class -> the region that is the class itself; None: the region of the same name.
        systems: as for `plot_graph`.
        title: heading.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: as for `context_use`.
    """
    colors.require_matplotlib()
    frame = _by_median(context_use(table, own), len(table.explained))
    kinds = systems_of(frame.columns, systems)
    room = max(len(readable(name)) for name in frame.columns) * _LETTER + 0.65
    width, body = room + 4.2, len(frame.columns) * _ROW
    height = body + 1.75
    heading = f"Context use over {table.n_cases} cases" if title is None else title
    notes = (
        "Share of each class's attribution that lies outside the class: 0 none, 1 all. Small classes have more outside."
    )
    figure, top = new_figure(width, height, heading, notes)
    axes = figure.add_axes((room / width, top - (body + 0.1) / height, 4.0 / width, body / height))
    _draw_boxes(axes, frame, [color_of(kinds[name]) for name in frame.columns], with_counts=True)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("attribution mass outside the class (0 to 1)", fontsize=8.5, color=colors.TEXT_COLOR)
    axes.set_ylabel("Explained class", fontsize=9, color=colors.TEXT_COLOR)
    _system_legend(figure, kinds)
    return figure


def save_context_use(table: ImportanceTable, path: str | os.PathLike[str], **options: Any) -> Path:
    """Draw the context use of each class and write it as a PNG, see `plot_context_use`."""
    return save_figure(plot_context_use(table, **options), path)


def plot_outlier_scores(scores: pd.DataFrame, *, n_named: int = 1, title: str | None = None) -> Figure:
    """Draw outlier scores, a row for each class and a dot for each case; LOW (left) means abnormal.

    Args:
        scores: of `OutlierModel.scores`: index cases, columns explained classes.
        n_named: how many of the lowest cases below 0 are named in each row.
        title: heading.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no score.
    """
    colors.require_matplotlib()
    if scores.empty or not np.isfinite(scores.to_numpy(dtype=np.float64)).any():
        raise ValueError(f"there is no score among {scores.shape[0]} cases and {scores.shape[1]} classes.")
    frame = scores[list(scores.min().sort_values(na_position="last").index)]
    room = max(len(readable(name)) for name in frame.columns) * _LETTER + 0.65
    width, body = room + 5.0, len(frame.columns) * 0.3
    height = body + 1.7
    heading = f"Outlier scores of {len(frame)} cases" if title is None else title
    notes = "Isolation forest on each class's importances. LOW means abnormal: red dots, below 0, are called outliers."
    figure, top = new_figure(width, height, heading, notes)
    axes = figure.add_axes((room / width, top - (body + 0.05) / height, 4.8 / width, body / height))
    axes.axvline(0, color=colors.TEXT_COLOR, linewidth=0.9)
    for row, name in enumerate(frame.columns):
        values = frame[name].dropna().sort_values()
        tint = [_OUTLIER_COLOR if value < 0 else "#8a8a8a" for value in values]
        axes.scatter(values, np.full(len(values), row), s=11, c=tint, alpha=0.75, linewidths=0, zorder=3)
        for case, value in values[values < 0].head(n_named).items():
            label = colors.plain_text(colors.shortened(str(case), 18))
            axes.annotate(
                label, (value, row), (0, 3.5), textcoords="offset points", fontsize=6.5, ha="left", color=_OUTLIER_COLOR
            )
    axes.set_yticks(range(len(frame.columns)), [readable(name) for name in frame.columns])
    axes.set_ylim(len(frame.columns) - 0.4, -0.75)
    style_axes(axes)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("outlier score (decision function; LOW = abnormal)", fontsize=8.5, color=colors.TEXT_COLOR)
    axes.set_ylabel("Explained class", fontsize=9, color=colors.TEXT_COLOR)
    return figure


def save_outlier_scores(scores: pd.DataFrame, path: str | os.PathLike[str], **options: Any) -> Path:
    """Draw outlier scores and write them as a PNG, see `plot_outlier_scores`."""
    return save_figure(plot_outlier_scores(scores, **options), path)


def _by_median(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """Columns by their median, the largest first, at most so many; those without a value last."""
    medians = frame.median()
    return frame[list(medians.sort_values(ascending=False, kind="stable", na_position="last").index[: max(count, 0)])]


def _draw_boxes(axes: Axes, frame: pd.DataFrame, tints: Sequence[str], with_counts: bool = False) -> None:
    """A horizontal box plot for each column, the first on top."""
    for row, (name, tint) in enumerate(zip(frame.columns, tints, strict=True)):
        values = frame[name].dropna().to_numpy()
        if not len(values):
            axes.text(0.01, row, "no case", transform=axes.get_yaxis_transform(), fontsize=7, va="center")
            continue
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        inside = values[(values >= low - 1.5 * (high - low)) & (values <= high + 1.5 * (high - low))]
        ends = float(inside.min()), float(inside.max())
        beyond = values[(values < ends[0]) | (values > ends[1])]
        axes.plot(ends, (row, row), color=tint, linewidth=1.0, zorder=2, label="whisker")
        box: dict[str, Any] = {"height": 0.62, "facecolor": "white", "edgecolor": tint, "linewidth": 1.2, "zorder": 3}
        axes.barh(row, high - low, left=low, **box)
        axes.plot((middle, middle), (row - 0.31, row + 0.31), color=tint, linewidth=2.2, zorder=4, label="median")
        axes.plot(beyond, np.full(len(beyond), row), "o", color=tint, markersize=2.6, zorder=3, label="beyond")
    labels = [readable(str(name)) for name in frame.columns]
    if with_counts and frame.isna().any().any():
        labels = [f"{text} ({n})" for text, n in zip(labels, frame.notna().sum(), strict=True)]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    style_axes(axes)
    axes.grid(axis="y", visible=False)
    largest = float(np.nanmax(frame.to_numpy(), initial=0.0)) or 1.0
    axes.set_xlim(-0.02 * largest, 1.05 * largest)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=7.5)


def _unit_notes(table: ImportanceTable) -> str:
    return f"A panel for each class, over the cases that hold it; {value_label(table.variant, table.part)}."


def _system_legend(figure: Figure, kinds: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="s", linestyle="", markersize=7, color=color_of(system), label=system)
        for system in SYSTEM_COLORS
        if system in kinds.values()
    ]
    style: dict[str, Any] = {"frameon": False, "fontsize": 7.5, "labelcolor": colors.TEXT_COLOR, "handletextpad": 0.2}
    across = max(2, int(figure.get_figwidth() / 1.15))
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, 0.0), ncols=across, columnspacing=1.0, **style
    )
