# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Perturbation curves of one or many cases, and the plot of a convergence report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.files import whole_file

from . import colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from monai_segshap.metrics import ConvergenceReport

__all__ = [
    "SHARES",
    "endpoint_normalized",
    "new_figure",
    "plot_convergence",
    "plot_curves",
    "save_convergence",
    "save_curves",
    "save_figure",
    "shared_steps",
]

Floats = NDArray[np.float64]

#: Shares of removed evidence at which curves of several cases are compared.
SHARES: Floats = np.linspace(0.0, 1.0, 101)
_DPI = 110
#: Differences below this share of the largest score are rounding of a network in single precision.
_ROUNDING = 1e-6
_AXES = {"": "share of units removed", "volume": "share of volume removed"}
_LINES = (
    ("morf", "MoRF: largest value first", colors.POSITIVE_COLOR),
    ("lerf", "LeRF: smallest first", colors.NEGATIVE_COLOR),
)


def new_figure(width: float, height: float, title: str = "", notes: str = "") -> tuple[Figure, float]:
    """A white figure of a size in inches with a heading, and the share of its height that the heading leaves free."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout=None)
    FigureCanvasAgg(figure)
    used = 0.12
    for text, size, weight, color in ((title, 12.0, "bold", colors.TEXT_COLOR), (notes, 8.5, None, colors.FAINT_COLOR)):
        if text:
            lines = colors.wrapped(text, width - 0.3, size)
            figure.text(0.12 / width, 1 - used / height, lines, size=size, weight=weight, color=color, va="top")
            used += (lines.count("\n") + 1) * size * 1.35 / 72 + 0.04
    return figure, 1 - (used + 0.1) / height


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = _DPI) -> Path:
    """Write a figure as a PNG, which appears whole or not at all.

    Raises:
        ValueError: if the path does not end in ``.png``.
        FileNotFoundError: if its folder does not exist.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder of {target} does not exist; create it first")
    try:
        with whole_file(target) as partial:
            figure.savefig(partial, format="png", dpi=dpi)
    finally:
        figure.clear()
    return target


def endpoint_normalized(table: pd.DataFrame, tolerance: float = 1e-3) -> pd.DataFrame | None:
    """Curves from 1 (all units) to 0 (none): ``(s(k) - s(M)) / (s(0) - s(M))``, paper 000, Eq. 9 without its epsilon.

    Args:
        table: of `monai_segshap.metrics.PerturbationCurves.table`; its "morf" and "lerf" are replaced.
        tolerance: share of the range of the two curves that ``|s(0) - s(M)|`` must exceed.

    Returns:
        another table, or None where the ends are about equal. Values may leave [0, 1]; they are not clipped.
    """
    both = table[["morf", "lerf"]].to_numpy(np.float64)
    drop = both[0, 0] - both[-1, 0]
    if abs(drop) <= max(tolerance * np.ptp(both), _ROUNDING * np.abs(both).max()):
        return None
    scaled = (both - both[-1, 0]) / drop
    return table.assign(morf=scaled[:, 0], lerf=scaled[:, 1])


def shared_steps(tables: Sequence[pd.DataFrame], curve: str, axis: str = "") -> Floats:
    """Curves of N cases at the same shares, by linear interpolation between their steps.

    Args:
        tables: of `monai_segshap.metrics.PerturbationCurves.table`.
        curve: "morf" or "lerf".
        axis: "": share of units; "volume": share of the units' volume.

    Returns:
        float64 (N, 101), at `SHARES`.
    """
    place = f"{curve}_volume_share" if axis == "volume" else "removed_share"
    return np.stack([np.interp(SHARES, t[place].to_numpy(), t[curve].to_numpy()) for t in tables])


def plot_curves(
    panels: Mapping[str, Sequence[pd.DataFrame]],
    *,
    title: str = "",
    notes: str = "",
    score_label: str = "score",
    normalize: bool = True,
) -> Figure:
    """Draw MoRF and LeRF curves: median and interquartile range over cases, as Figures 5 to 7 of paper 000.

    One column for each panel; the upper row by the share of units removed, the lower one by the share of their volume
    (where every table has it). Up to three cases are drawn as lines of their own.

    Args:
        panels: heading -> tables of `monai_segshap.metrics.PerturbationCurves.table`, one for each case.
        title: heading of the figure.
        notes: lines under it.
        score_label: name of the score and its unit.
        normalize: curves from 1 to 0, see `endpoint_normalized`; cases where that is undefined are left out and
            counted in the panel. False: scores as they are.

    Raises:
        ValueError: for no panel.
        ImportError: if matplotlib is not installed.
    """
    colors.require_matplotlib()
    if not panels:
        raise ValueError("got no panel of curves; expected at least one, a heading with the tables of its cases.")
    shown = {name: _usable(tables, normalize) for name, tables in panels.items()}
    with_volume = all("morf_volume_share" in t for tables in shown.values() for t in tables)
    axes_of_x = ["", "volume"] if with_volume else [""]
    width, row = 0.9 + 3.1 * len(shown), 2.55
    figure, top = new_figure(width, row * len(axes_of_x) + 1.25, title, notes)
    grid = figure.subplots(len(axes_of_x), len(shown), sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=0.72 / width, right=1 - 0.12 / width, top=top - 0.2 / figure.get_figheight(), bottom=0.1
    )
    figure.subplots_adjust(hspace=0.36, wspace=0.08, bottom=0.48 / figure.get_figheight())
    for line, axis in enumerate(axes_of_x):
        for column, (name, tables) in enumerate(shown.items()):
            place: Axes = grid[line, column]
            _draw_curves(place, tables, axis)
            place.set_xlabel(_AXES[axis], fontsize=8.5, color=colors.TEXT_COLOR)
            if line == 0:
                total = len(panels[name])
                count = str(total) if len(tables) == total else f"{len(tables)} of {total}"
                heading = f"{colors.plain_text(name)} ({count} case{'s' if total > 1 else ''})"
                place.set_title(heading, fontsize=9.5, loc="left", color=colors.TEXT_COLOR)
        label = f"{score_label}\n(1: all units, 0: none)" if normalize else score_label
        grid[line, 0].set_ylabel(colors.wrapped(label, 2.2, 8.5), fontsize=8.5, color=colors.TEXT_COLOR)
    _set_heights(list(grid.ravel()))
    entries, labels = grid[0, 0].get_legend_handles_labels()
    if entries:
        grid[0, -1].legend(entries, labels, loc="best", fontsize=7.5, frameon=False)
    return figure


def save_curves(panels: Mapping[str, Sequence[pd.DataFrame]], path: str | os.PathLike[str], **options: Any) -> Path:
    """Draw perturbation curves and write them as a PNG, see `plot_curves` and `save_figure`."""
    return save_figure(plot_curves(panels, **options), path)


def _usable(tables: Sequence[pd.DataFrame], normalize: bool) -> list[pd.DataFrame]:
    if not normalize:
        return list(tables)
    return [scaled for table in tables if (scaled := endpoint_normalized(table)) is not None]


def _draw_curves(axes: Axes, tables: Sequence[pd.DataFrame], axis: str) -> None:
    for curve, label, color in _LINES if tables else ():
        values = shared_steps(tables, curve, axis)
        if len(tables) > 3:
            low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
            axes.fill_between(SHARES, low, high, color=color, alpha=0.22, linewidth=0)
            axes.plot(SHARES, middle, color=color, linewidth=1.8, label=label)
        else:
            place = f"{curve}_volume_share" if axis == "volume" else "removed_share"
            for number, table in enumerate(tables):
                named = label if number == 0 else None
                axes.plot(table[place], table[curve], color=color, linewidth=1.3, label=named)
    if not tables:
        axes.text(0.5, 0.5, "no case to show", transform=axes.transAxes, ha="center", color=colors.FAINT_COLOR)
    axes.set_xlim(0, 1)
    style_axes(axes)


def style_axes(axes: Axes) -> None:
    """A light grid, small numbers, and no frame but the lower and the left line."""
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=colors.TEXT_COLOR, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colors.FAINT_COLOR)


def _set_heights(panels: Sequence[Axes]) -> None:
    """One range for all panels: what they show, and never less than from 0 to 1 of it."""
    seen = [axes.dataLim.intervaly for axes in panels if np.isfinite(axes.dataLim.intervaly).all() and axes.lines]
    if not seen:
        return
    low, high = min(float(s[0]) for s in seen), max(float(s[1]) for s in seen)
    room = 0.05 * (high - low) or 0.5
    panels[0].set_ylim(low - room, high + room)


def plot_convergence(report: ConvergenceReport, *, title: str = "") -> Figure:
    """Draw the four diagnostics of paper 000, section IV-B, over growing budgets; the recommended one is marked.

    Args:
        report: of `monai_segshap.metrics.convergence_report`.
        title: heading; default names the estimator.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    colors.require_matplotlib()
    heading = title or f"Convergence of Shapley values, method {report.method}"
    figure, top = new_figure(8.6, 6.4, heading, report.reason)
    grid = figure.subplots(2, 2, squeeze=False).ravel()
    figure.subplots_adjust(left=0.09, right=0.98, top=top - 0.05, bottom=0.085, hspace=0.42, wspace=0.24)
    measures = (
        ("stability", "coefficient stability: relative l1 change\nfrom one budget to the next"),
        ("held_out_mae", "local accuracy: mean |residual| of held-out\ncoalitions, share of |full - empty|"),
        ("held_out_r2", "generalization: R2 on held-out coalitions"),
        ("condition_number", "condition number of the weighted design"),
    )
    names = [score.replace("_", " ") for score in report.names]
    for axes, (measure, label) in zip(grid, measures, strict=True):
        values = _of_report(report, measure)
        for t in range(values.shape[1]):
            several = values.shape[1] > 1
            axes.plot(
                report.budgets,
                values[:, t],
                marker="o",
                markersize=3.2,
                linewidth=1.4,
                color=f"C{t}" if several else colors.TEXT_COLOR,
                label=names[t] if several or len(names) == 1 else None,
            )
        _finish_panel(axes, report, measure, label, values)
    if grid[0].get_legend_handles_labels()[0]:
        grid[0].legend(fontsize=8, frameon=False)
    return figure


def save_convergence(report: ConvergenceReport, path: str | os.PathLike[str], **options: Any) -> Path:
    """Draw a convergence report and write it as a PNG, see `plot_convergence` and `save_figure`."""
    return save_figure(plot_convergence(report, **options), path)


def _of_report(report: ConvergenceReport, measure: str) -> Floats:
    """(B, T), or (B, 1) for what all scores share; the held-out error as a share of the scores' own range."""
    if measure == "condition_number":
        return report.condition_number[:, None]
    return np.asarray(report.local_accuracy if measure == "held_out_mae" else getattr(report, measure))


def _finish_panel(axes: Axes, report: ConvergenceReport, measure: str, label: str, values: Floats) -> None:
    finite = values[np.isfinite(values)]
    axes.set_title(label, fontsize=8.5, loc="left", color=colors.TEXT_COLOR)
    axes.set_xscale("log")
    ticks = [int(b) for b in report.budgets]
    axes.set_xticks(ticks if len(ticks) <= 7 else ticks[:: -(-len(ticks) // 6)])
    axes.get_xaxis().set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.minorticks_off()
    axes.set_xlabel("coalitions", fontsize=8.5, color=colors.TEXT_COLOR)
    if measure == "condition_number":
        open_ones = int((~np.isfinite(values)).sum())
        if len(finite) and finite.max() > 20 * finite.min():
            axes.set_yscale("log")
        elif len(finite):
            axes.set_ylim(0, 1.1 * float(finite.max()))
        if open_ones:
            text = f"{open_ones} of {len(values)} budgets: none (infinite, or no regression)"
            axes.text(0.98, 0.94, text, transform=axes.transAxes, ha="right", fontsize=7.5, color=colors.FAINT_COLOR)
    elif measure == "held_out_r2":
        axes.set_ylim(max(-0.55, min(0.0, float(finite.min(initial=0.0)) - 0.05)), 1.03)
        if len(finite) and finite.min() < -0.55:
            text = f"lowest: {colors.number(float(finite.min()), 2)}, below the frame"
            axes.text(0.98, 0.04, text, transform=axes.transAxes, ha="right", fontsize=7.5, color=colors.FAINT_COLOR)
    else:
        least = 1.25 * report.tolerance if measure == "stability" else 0.01
        axes.set_ylim(0, max(1.05 * float(finite.max(initial=0.0)), least))
    style_axes(axes)
    if measure == "stability":
        axes.axhline(report.tolerance, color=colors.FAINT_COLOR, linewidth=1, linestyle="--")
        axes.annotate(
            f"tolerance {report.tolerance:g}",
            (0.99, report.tolerance),
            xycoords=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=colors.FAINT_COLOR,
        )
    if report.recommended_budget is not None:
        axes.axvline(report.recommended_budget, color="#2e8b57", linewidth=1.4, linestyle=":")
        if measure == "stability":
            axes.annotate(
                f" recommended: {report.recommended_budget}",
                (report.recommended_budget, 0.97),
                xycoords=axes.get_xaxis_transform(),
                va="top",
                fontsize=7.5,
                color="#2e8b57",
            )
