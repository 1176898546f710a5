# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Contrast values of a cohort: a heat map of means, and how each fold ranks the contrasts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.metrics import (
    ContrastCohort,
    RankVariance,
    ReferenceRanking,
    contrast_fold_ranks,
    contrast_value_summary,
    fold_rank_variance,
)

from . import colors
from .curves import new_figure, save_figure, style_axes
from .importance import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "contrast_score_label",
    "counted",
    "mean_words",
    "plot_contrast_ranks",
    "plot_contrast_values",
    "save_contrast_ranks",
    "save_contrast_values",
]

Floats = NDArray[np.float64]

#: Colors that people with a color vision deficiency can tell apart (Okabe and Ito); markers where these repeat.
_LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1a1a1a", "#8c8c8c")
_MARKERS = "osD^v"
_LABELS = {
    "dice_truth": "Dice against ground truth",
    "dice": "Dice with the model's own prediction",
    "tp": "TP score, mean over the volume",
    "fp": "FP score, mean over the volume",
    "soft_dice": "soft Dice score, mean over the volume",
    "class_output": "class output, mean over the volume",
}
_CELL, _ROW, _LETTER = 1.02, 0.5, 0.072  # inches: width and height of a cell, a letter of a name
_NAN_COLOR = "#ececec"


def contrast_score_label(score: str) -> str:
    """What a score is, in words, where it is one of ours."""
    return _LABELS.get(score, score)


def counted(n: int, thing: str) -> str:
    """``counted(2, "case")`` is "2 cases"."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


def mean_words(cohort: ContrastCohort) -> str:
    """What the mean values are means of."""
    return "mean over folds of the mean over cases" if len(cohort.folds) > 1 else "mean over cases"


def plot_contrast_values(
    cohort: ContrastCohort,
    summary: pd.DataFrame | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    title: str | None = None,
) -> Figure:
    """Draw mean values as a heat map: row = contrast, column = sub-region.

    Red raises the score, blue lowers it, white is 0. Each cell holds the mean and its 95 % interval over cases. Cells
    without a value are hatched.

    Args:
        cohort: the values.
        summary: of `contrast_value_summary`; None: it is computed.
        n_resamples: for that.
        seed: for that.
        title: heading.

    Returns:
        a figure that belongs to no window or global state.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    colors.require_matplotlib()
    if summary is None:
        summary = contrast_value_summary(cohort, n_resamples=n_resamples, seed=seed)
    shape = len(cohort.sub_regions), len(cohort.contrasts)
    mean, low, high = (summary[name].to_numpy(np.float64).reshape(shape).T for name in ("mean", "low", "high"))
    columns, rows = (list(map(readable, names)) for names in (cohort.sub_regions, cohort.contrasts))
    left = max(map(len, rows)) * _LETTER + 0.5
    cell = max(_CELL, max(map(len, columns)) * _LETTER + 0.1)
    width, body = max(left + len(columns) * cell + 1.35, 5.2), max(len(rows) * _ROW, 1.2)
    label = contrast_score_label(cohort.score)
    heading = f"What each contrast is worth: {_extent(cohort)}" if title is None else title
    notes = f"Shapley value, in units of {label}: {mean_words(cohort)}. "
    notes += "In brackets its 95\N{NO-BREAK SPACE}% interval over cases (bootstrap). " if np.isfinite(low).any() else ""
    notes += "A column adds up to the score with every contrast minus that with none."
    notes += " Hatched: no value." if np.isnan(mean).any() else ""
    lines = sum(colors.wrapped(t, width - 0.3, s).count("\n") + 1 for t, s in ((heading, 12.0), (notes, 8.5)))
    height = body + 0.75 + 0.2 * lines
    figure, top = new_figure(width, height, heading, notes)
    bottom = top - (body + 0.05) / height
    axes = figure.add_axes((left / width, bottom, len(columns) * cell / width, body / height))
    limit = colors.symmetric_limit(mean[np.isfinite(mean)])
    image = axes.imshow(np.ma.masked_invalid(mean), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    _fill_cells(axes, mean, low, high, limit)
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.tick_params(length=0, colors=colors.TEXT_COLOR)
    axes.set_xlabel("Sub-region", fontsize=9, color=colors.TEXT_COLOR)
    axes.set_ylabel("Contrast", fontsize=9, color=colors.TEXT_COLOR)
    for spine in axes.spines.values():
        spine.set_visible(False)
    place = ((left + len(columns) * cell + 0.15) / width, bottom, 0.14 / width, body / height)
    _draw_scale(figure, figure.add_axes(place), image, limit, colors.wrapped(f"value ({label})", max(body, 1.6), 8))
    return figure


def save_contrast_values(cohort: ContrastCohort, path: str | os.PathLike[str], **options: Any) -> Path:
    """Draw the mean values and write them as a PNG, see `plot_contrast_values`."""
    return save_figure(plot_contrast_values(cohort, **options), path)


def plot_contrast_ranks(
    cohort: ContrastCohort, reference: ReferenceRanking | None = None, *, title: str | None = None
) -> Figure:
    """Draw how each fold ranks the contrasts by their mean values, a panel for each sub-region and 1 at the top.

    On the left stands the reference's ranking, on the right the mean rank over cases and folds. Lines that share a rank
    are drawn a little apart. With one fold only its own ranking is in the middle.

    Args:
        cohort: the values.
        reference: may lack sub-regions.
        title: heading.

    Returns:
        a figure that belongs to no window or global state.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the reference ranks other contrasts.
    """
    colors.require_matplotlib()
    table, variances = contrast_fold_ranks(cohort, reference), fold_rank_variance(cohort)
    mean_ranks = (
        contrast_value_summary(cohort, n_resamples=0)["mean_rank"].to_numpy().reshape(-1, len(cohort.contrasts))
    )
    across = min(3, len(cohort.sub_regions))
    down = -(-len(cohort.sub_regions) // across)
    wide = 0.42 * (len(cohort.folds) + 2) + 0.9
    cell = max(wide, 3.4), 0.3 * max(len(cohort.contrasts), 3) + 1.1
    width, height = across * cell[0] + 0.4, down * cell[1] + 1.15
    heading = f"How the contrasts rank: {_extent(cohort)}" if title is None else title
    place = "of a fold" if len(cohort.folds) > 1 else "over cases"
    notes = (
        f"Rank 1: largest mean value ({contrast_score_label(cohort.score)}) {place}. "
        "Open marks: mean rank over cases" + (" and folds." if len(cohort.folds) > 1 else ".")
    )
    notes += "" if reference is None else " Squares on the left: the reference."
    figure, top = new_figure(width, height, heading, notes)
    for s, region in enumerate(cohort.sub_regions):
        i, j = divmod(s, across)
        x, y = (j * cell[0] + 0.6) / width, top - ((i + 1) * cell[1] - 0.5) / height
        axes = figure.add_axes((x, y, (cell[0] - 0.55) / width, (cell[1] - 0.95) / height))
        part = table[table["sub_region"] == region]
        _draw_bumps(axes, cohort, part, mean_ranks[s], with_reference=reference is not None)
        axes.set_title(
            _rank_title(cohort, s, variances), fontsize=8.5, loc="left", color=colors.TEXT_COLOR, pad=5, linespacing=1.3
        )
        if j == 0:
            axes.set_ylabel("rank", fontsize=8.5, color=colors.TEXT_COLOR)
    _legend(figure, cohort.contrasts)
    return figure


def save_contrast_ranks(
    cohort: ContrastCohort, path: str | os.PathLike[str], reference: ReferenceRanking | None = None, **options: Any
) -> Path:
    """Draw the rankings over folds and write them as a PNG, see `plot_contrast_ranks`."""
    return save_figure(plot_contrast_ranks(cohort, reference, **options), path)


def _extent(cohort: ContrastCohort) -> str:
    folds = "one network" if len(cohort.folds) == 1 else counted(len(cohort.folds), "fold")
    return f"{counted(len(cohort.cases), 'case')}, {folds}"


def _fill_cells(axes: Axes, mean: Floats, low: Floats, high: Floats, limit: float) -> None:
    """Numbers with their intervals; hatches where there is none."""
    from matplotlib.patches import Rectangle

    decimals = int(np.clip(1 - np.floor(np.log10(limit)), limit < 1000, 8))
    text: dict[str, Any] = {"ha": "center", "va": "center"}
    for n, s in np.ndindex(*mean.shape):
        if np.isnan(mean[n, s]):
            style: dict[str, Any] = {"facecolor": _NAN_COLOR, "edgecolor": "#bbbbbb", "hatch": "////", "linewidth": 0}
            axes.add_patch(Rectangle((s - 0.5, n - 0.5), 1, 1, **style))
            box = {"facecolor": _NAN_COLOR, "edgecolor": "none", "pad": 1.5}
            axes.text(s, n, "no value", fontsize=7.5, color=colors.FAINT_COLOR, bbox=box, **text)
            continue
        tint = "white" if abs(mean[n, s]) > 0.62 * limit else "#1a1a1a"
        known = np.isfinite(low[n, s])
        axes.text(s, n - 0.13 * known, _fixed(mean[n, s], decimals), fontsize=9, color=tint, **text)
        if known:
            interval = f"[{_fixed(low[n, s], decimals)}, {_fixed(high[n, s], decimals)}]"
            axes.text(s, n + 0.22, interval, fontsize=6.8, color=tint, **text)


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _draw_scale(figure: Figure, bar: Axes, image: Any, limit: float, label: str) -> None:
    ticks = limit * np.linspace(-1, 1, 5)
    drawn = figure.colorbar(image, cax=bar, ticks=ticks)
    bar.set_yticklabels([colors.number(tick, 2) for tick in ticks])
    drawn.outline.set_visible(False)
    bar.tick_params(labelsize=7.5, colors=colors.TEXT_COLOR, length=2.5)
    bar.set_ylabel(label, fontsize=8, color=colors.TEXT_COLOR)


def _rank_title(cohort: ContrastCohort, s: int, variances: Mapping[str, RankVariance]) -> str:
    region = cohort.sub_regions[s]
    n_cases = int(np.isfinite(cohort.values[:, :, s]).any(axis=(1, 2)).sum())
    head = f"{readable(region)}, {counted(n_cases, 'case')}"
    if region not in variances:
        return f"{head}\none network: no rank variance"
    found = variances[region]
    if np.isnan(found.variance):
        return f"{head}\nrank variance of fold means: undefined"
    return (
        f"{head}\nrank variance of fold means {colors.number(found.variance, 2, signed=False)} "
        f"(chance {colors.number(found.chance, 3, signed=False)})"
    )


def _draw_bumps(
    axes: Axes, cohort: ContrastCohort, part: pd.DataFrame, mean_ranks: Floats, with_reference: bool
) -> None:
    """One panel: the reference at -1.4, folds at 0, 1, ..., the mean over cases behind them."""
    n_folds, n = len(cohort.folds), len(cohort.contrasts)
    ranks = part["rank"].to_numpy(np.float64).reshape(n_folds, n)
    expected = part["reference_rank"].to_numpy(np.float64)[:n]
    end = n_folds + 0.4
    drawn = ranks + np.stack([_apart(row) for row in ranks])
    marked = expected + _apart(expected, 0.36)
    for c in range(n):
        color, marker = _look(c)
        axes.plot(range(n_folds), drawn[:, c], color=color, marker=marker, markersize=5, linewidth=1.8, zorder=3)
        axes.plot([n_folds - 1, end], [drawn[-1, c], mean_ranks[c]], color=color, linewidth=0.9, alpha=0.45, zorder=2)
        hollow: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.5, "zorder": 4}
        axes.plot(end, mean_ranks[c], marker=marker, color=color, markersize=5.5, **hollow)
        if np.isfinite(marked[c]):
            axes.plot([-1.4, 0], [marked[c], drawn[0, c]], color=color, linewidth=1.1, linestyle=":", zorder=2)
            axes.plot(-1.4, marked[c], marker="s", color=color, markersize=7.5, zorder=4)
    if np.isnan(ranks).all():
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", fontsize=9, color=colors.FAINT_COLOR)
    names = [colors.shortened(fold, 8) for fold in cohort.folds] if n_folds > 1 else ["mean\nvalue"]
    ticks = [*range(n_folds), end]
    labels = [*names, "cases"]
    if with_reference:
        ticks, labels = [-1.4, *ticks], ["reference" if np.isfinite(expected).any() else "no ref.", *labels]
    axes.set_xticks(ticks, list(map(colors.plain_text, labels)))
    axes.set_xlim(-1.9 if with_reference else -0.5, end + 0.5)
    axes.set_yticks(range(1, n + 1))
    axes.set_ylim(n + 0.4, 0.6)
    style_axes(axes)
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", labelsize=7.5, length=0)
    if n_folds > 1:
        axes.set_xlabel("fold", fontsize=8, color=colors.FAINT_COLOR, labelpad=1)


def _apart(ranks: Floats, step: float = 0.16) -> Floats:
    """A small shift of each contrast that shares its rank with others, so that lines do not hide each other."""
    shift = np.zeros(len(ranks))
    for rank in np.unique(ranks[np.isfinite(ranks)]):
        tied = np.flatnonzero(ranks == rank)
        shift[tied] = step * (np.arange(len(tied)) - (len(tied) - 1) / 2)
    return shift


def _look(contrast: int) -> tuple[str, str]:
    """Color and marker of a contrast by its number."""
    n = len(_LINE_COLORS)
    return _LINE_COLORS[contrast % n], _MARKERS[(contrast // n) % len(_MARKERS)]


def _legend(figure: Figure, contrasts: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for number, name in enumerate(contrasts):
        color, marker = _look(number)
        handles.append(Line2D([], [], color=color, marker=marker, linewidth=1.8, markersize=5, label=readable(name)))
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": colors.TEXT_COLOR}
    across = max(2, int(figure.get_figwidth() / 1.3))
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 0.0), ncols=across, **style)
