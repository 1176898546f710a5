# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Agreement with a reference, and rank variance over folds, each against Dice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.metrics import POOLED, contrast_associations

from . import colors
from .contrast_pictures import counted
from .curves import new_figure, save_figure, style_axes
from .importance import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "association_words",
    "plot_contrast_agreement",
    "plot_contrast_stability",
    "save_contrast_agreement",
    "save_contrast_stability",
]

Floats = NDArray[np.float64]

_POINT, _CHANCE = "#2f6fb3", "#b35c00"
_JITTER = 0.022  # of agreement, to each side; its steps are 0.25 for four contrasts without ties


def plot_contrast_agreement(
    agreement: pd.DataFrame,
    associations: pd.DataFrame | None = None,
    *,
    high: float | None = None,
    seed: int = 0,
    title: str | None = None,
) -> Figure:
    """Draw agreement with the reference against Dice, a panel for each sub-region and a point for each case and fold.

    Points are shifted up or down by up to 0.022, because agreement has few different values.

    Args:
        agreement: of `contrast_agreement`.
        associations: of `contrast_associations`, for the correlations in the headings; None: they are computed.
        high: a line at this Dice; None: no line.
        seed: of the shifts, and of the bootstrap if there is one.
        title: heading.

    Returns:
        a figure that belongs to no window or global state.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if no row has both agreement and Dice.
    """
    found = contrast_associations(agreement, None, seed=seed) if associations is None else associations
    points = agreement.rename(columns={"agreement": "y", "dice": "x"})
    words = (
        "Agreement of contrast rankings with the reference" if title is None else title,
        "A point for each case and fold, shifted up or down by up to 0.022; dashed: mean agreement of random rankings.",
        "agreement (0 to 1)",
        "Dice against ground truth",
    )
    shift = np.random.default_rng(seed).uniform(-_JITTER, _JITTER, len(points))
    return _plot(
        points.assign(shift=shift),
        found[found["measure"] == "agreement"],
        words,
        (-0.05, 1.05),
        high,
        (0, 0.25, 0.5, 0.75, 1),
    )


def save_contrast_agreement(agreement: pd.DataFrame, path: str | os.PathLike[str], **options: Any) -> Path:
    """Draw agreement against Dice and write it as a PNG, see `plot_contrast_agreement`."""
    return save_figure(plot_contrast_agreement(agreement, **options), path)


def plot_contrast_stability(
    stability: pd.DataFrame,
    associations: pd.DataFrame | None = None,
    *,
    high: float | None = None,
    seed: int = 0,
    title: str | None = None,
) -> Figure:
    """Draw rank variance over folds against mean Dice, a panel for each sub-region and a point for each case.

    Args:
        stability: of `contrast_stability`.
        associations: of `contrast_associations`, for the correlations in the headings; None: they are computed.
        high: a line at this Dice; None: no line.
        seed: of the bootstrap if there is one.
        title: heading.

    Returns:
        a figure that belongs to no window or global state.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if no row has both rank variance and Dice.
    """
    found = contrast_associations(None, stability, seed=seed) if associations is None else associations
    points = stability.rename(columns={"rank_variance": "y", "mean_dice": "x"}).assign(shift=0.0)
    words = (
        "Instability of contrast rankings over folds" if title is None else title,
        "A point for each case: rank variance over its folds, 0 where all folds agree; dashed: random rankings.",
        "rank variance",
        "mean Dice over folds",
    )
    largest = float(np.nanmax([points["y"].max(), points["chance"].max(), 0.1]))
    limits = (-0.04 * largest, 1.08 * largest)
    return _plot(points, found[found["measure"] == "rank_variance"], words, limits, high)


def save_contrast_stability(stability: pd.DataFrame, path: str | os.PathLike[str], **options: Any) -> Path:
    """Draw rank variance against Dice and write it as a PNG, see `plot_contrast_stability`."""
    return save_figure(plot_contrast_stability(stability, **options), path)


def association_words(row: pd.Series) -> str:
    """A correlation with its 95 % interval, over cases where there is one: "r = -0.63 [-0.82, -0.23]"."""
    if np.isnan(row["r"]):
        return "r undefined"
    ends = [(row[f"{kind}_low"], row[f"{kind}_high"]) for kind in ("bootstrap", "fisher")]
    low, high = next((pair for pair in ends if np.isfinite(pair).all()), (np.nan, np.nan))
    interval = f" [{_two(low)}, {_two(high)}]" if np.isfinite(low) else ""
    return f"r = {_two(row['r'])}{interval}"


def _plot(
    points: pd.DataFrame,
    associations: pd.DataFrame,
    words: tuple[str, str, str, str],
    limits: tuple[float, float],
    high: float | None,
    steps: Sequence[float] = (),
) -> Figure:
    colors.require_matplotlib()
    known = points[np.isfinite(points["x"]) & np.isfinite(points["y"])]
    if known.empty:
        raise ValueError(f"none of {len(points)} rows has both {words[2]} and Dice; there is nothing to draw.")
    lines = associations.set_index("sub_region")
    regions = list(dict.fromkeys(points["sub_region"]))
    across = min(3, len(regions))
    down = -(-len(regions) // across)
    cell = 2.75, 2.4
    width, height = max(across * cell[0] + 0.35, 4.6), down * cell[1] + 0.95
    title, notes, label, below = words
    notes += "" if high is None else f" Dotted: Dice {high:g}."
    notes += " In brackets: 95\N{NO-BREAK SPACE}% interval over cases."
    if POOLED in lines.index:
        notes += f" All sub-regions together: {association_words(lines.loc[POOLED])}."
    figure, top = new_figure(width, height, title, notes)
    span = float(known["x"].min()), float(known["x"].max())
    room = max(0.06 * (span[1] - span[0]), 0.02)
    for s, region in enumerate(regions):
        i, j = divmod(s, across)
        x, y = (j * cell[0] + 0.62) / width, top - ((i + 1) * cell[1] - 0.5) / height
        axes = figure.add_axes((x, y, (cell[0] - 0.55) / width, (cell[1] - 0.95) / height))
        part, chance = known[known["sub_region"] == region], points[points["sub_region"] == region]["chance"].mean()
        _draw_points(axes, part, chance, high)
        axes.set_xlim(span[0] - room, span[1] + room)
        axes.set_ylim(*limits)
        if len(steps):
            axes.set_yticks(steps)
        count = f"{counted(len(part), 'point')}, {counted(part['case'].nunique(), 'case')}"
        said = association_words(lines.loc[region]) if region in lines.index else ""
        heading = f"{readable(region)}: {count}\n{said}"
        axes.set_title(heading, fontsize=8.5, loc="left", color=colors.TEXT_COLOR, pad=5, linespacing=1.3)
        axes.set_xlabel(below, fontsize=8, color=colors.TEXT_COLOR, labelpad=2)
        if j == 0:
            axes.set_ylabel(label, fontsize=8.5, color=colors.TEXT_COLOR)
    return figure


def _draw_points(axes: Axes, part: pd.DataFrame, chance: float, high: float | None) -> None:
    alpha = float(np.clip(9 / np.sqrt(max(len(part), 1)), 0.12, 0.65))
    axes.scatter(part["x"], part["y"] + part["shift"], s=17, color=_POINT, alpha=alpha, linewidths=0, zorder=3)
    across = axes.get_yaxis_transform()
    if np.isfinite(chance):
        axes.axhline(chance, color=_CHANCE, linewidth=1.2, linestyle="--", zorder=2)
        said = f"chance {colors.number(chance, 3, signed=False)}"
        axes.text(0.99, chance, said, transform=across, ha="right", va="bottom", fontsize=7, color=_CHANCE)
    if high is not None:
        axes.axvline(high, color=colors.FAINT_COLOR, linewidth=0.9, linestyle=":", zorder=1)
    if part.empty:
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", fontsize=9, color=colors.FAINT_COLOR)
    style_axes(axes)


def _two(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
