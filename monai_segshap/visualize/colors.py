# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Attributions, grey images and outlines in color: one look for every picture of this package.

Red is positive, blue is negative, and 0 is transparent.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POSITIVE_COLOR, NEGATIVE_COLOR = "#c0392b", "#2f6fb3"
REGION_COLOR, PREDICTION_COLOR = "#ffe100", "#39ff14"
REGION_WIDTH, PREDICTION_WIDTH, _CASING = 3.0, 0.9, 0.9  # points
TEXT_COLOR, FAINT_COLOR, PANEL_GREY = "#1a1a1a", "#666666", "0.35"
_MAX_OPACITY, _WEAKEST_HUE = 0.7, 0.3
_INTERVAL = 1.96  # standard errors on each side of a 95 % interval


def require_matplotlib() -> None:
    """Raise an ImportError that names the extra to install if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib, which is not installed; install it with: pip install monai_segshap[plots]"
        ) from error


def symmetric_limit(*arrays: np.ndarray) -> float:
    """Return L of the color range -L to L: the largest absolute value in all arrays, or 1.0 if all values are 0."""
    largest = max((float(np.max(np.abs(array))) for array in arrays if array.size), default=0.0)
    return largest if largest > 0 else 1.0


def overlay_rgba(values: np.ndarray, limit: float) -> np.ndarray:
    """Turn attribution values into colors to lay over a grey image.

    The opacity grows with the square root of the absolute value and is 0 where the value is 0. The hue starts off
    the white middle of the diverging color map, so that the sign of a weak unit can be seen.

    Args:
        values: finite values in the score's unit, any shape.
        limit: positive color limit; -limit is the darkest blue, +limit the darkest red.

    Returns:
        Red, green, blue and opacity in [0, 1], float64, shape ``values.shape + (4,)``.
    """
    import matplotlib

    fraction = np.clip(np.asarray(values, dtype=np.float64) / limit, -1.0, 1.0)
    hue = np.sign(fraction) * (_WEAKEST_HUE + (0.9 - _WEAKEST_HUE) * np.abs(fraction))
    rgba = np.asarray(matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * hue), dtype=np.float64)
    rgba[..., 3] = _MAX_OPACITY * np.sqrt(np.abs(fraction))
    return rgba


def grey_window(image: np.ndarray, region: np.ndarray) -> tuple[float, float]:
    """Choose the intensities shown black and white.

    An image that falls below -500 is CT in HU: -160 to 240, or -1000 to 200 if the region is mostly lung or air
    (median below -400). Any other image: its 1st to 99th percentile; a flat image its value -+ 0.5.
    """
    if image.min() < -500:
        return (-1000.0, 200.0) if np.median(image[region]) < -400 else (-160.0, 240.0)
    low, high = np.percentile(image, [1, 99])
    return (float(low), float(high)) if low < high else (float(low) - 0.5, float(low) + 0.5)


def number(value: float, digits: int = 3, signed: bool = True) -> str:
    """Write a number for a picture: few significant digits, a true minus sign, 0 without a sign."""
    text = "0" if value == 0 else f"{value:.{digits}g}"
    if 1e-4 <= abs(value) < 1e6:
        text = np.format_float_positional(value, precision=digits, unique=False, fractional=False, trim="-")
    return ("+" if signed and value > 0 else "") + text.replace("-", "\N{MINUS SIGN}")


def plain_text(text: str) -> str:
    """Escape dollar signs, so that matplotlib never reads a name or a title as mathematics."""
    return text.replace("$", r"\$")


def wrapped(text: str, inches: float, points: float) -> str:
    """Break a text of a font size in points into lines of a width in inches, keeping its own line breaks."""
    characters = max(12, int(inches * 72 / (0.56 * points)))
    return plain_text("\n".join("\n".join(textwrap.wrap(line, characters)) for line in text.splitlines()))


def shortened(name: str, length: int = 30) -> str:
    """Shorten a long name in its middle, keeping its start and its end (where sides and cell numbers stand)."""
    tail = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{name[-tail:]}"


def _size(axes: Axes) -> tuple[float, float]:
    """Return the width and height of an axes in inches."""
    extent = axes.get_window_extent()
    return float(extent.width / axes.figure.dpi), float(extent.height / axes.figure.dpi)


def outline_segments(mask: np.ndarray) -> np.ndarray:
    """Return the pixel edges between a mask and everything else, the border of the picture included.

    Args:
        mask: (H, W) bool.

    Returns:
        (N, 2, 2) float64: N line segments of 2 points of (column, row), in pixels from the upper left corner.
    """
    padded = np.pad(mask, 1)
    row, column = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    flat = np.stack([np.stack([column, row], -1), np.stack([column + 1, row], -1)], 1)
    row, column = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([np.stack([column, row], -1), np.stack([column, row + 1], -1)], 1)
    return np.concatenate([flat, upright]).astype(np.float64)


def draw_panel(
    axes: Axes, sections: Sequence[np.ndarray], pixel_mm: tuple[float, float], window: tuple[float, float], limit: float
) -> None:
    """Draw one slice: grey image, attribution, region outline and, if there is one, the prediction's outline.

    Args:
        axes: where to draw; gets mm axes from its upper left corner.
        sections: (H, W) image, attribution, region and maybe prediction, as displayed.
        pixel_mm: width and height of a pixel in mm.
        window: intensities shown black and white.
        limit: positive color limit in the score's unit.
    """
    from matplotlib.collections import LineCollection

    image, attribution, *masks = sections
    extent = (0.0, image.shape[1] * pixel_mm[0], image.shape[0] * pixel_mm[1], 0.0)
    axes.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="bilinear")
    axes.imshow(overlay_rgba(attribution, limit), extent=extent, interpolation="nearest")
    styles = ((REGION_COLOR, REGION_WIDTH), (PREDICTION_COLOR, PREDICTION_WIDTH))
    for mask, (color, width) in zip(masks, styles, strict=False):
        lines = list(outline_segments(mask) * np.asarray(pixel_mm))
        for line_color, line_width in (("black", width + _CASING), (color, width)):
            outline = LineCollection(lines, colors=line_color, linewidths=line_width, capstyle="round")
            axes.add_collection(outline, autolim=False)
    axes.set(xticks=[], yticks=[], aspect="auto")


def draw_marks(axes: Axes, letters: Sequence[str], with_scale: bool) -> None:
    """Write the letters of the left, right, top and bottom edge and, if wanted, a scale bar in mm.

    Two letters that would collide, because the panel is narrower than 0.4 inches, are left out.
    """
    from matplotlib.patheffects import withStroke

    style: dict[str, Any] = {"color": "white", "path_effects": [withStroke(linewidth=2.2, foreground="black")]}
    places = ((0, 0.5, 4, 0), (1, 0.5, -4, 0), (0.5, 1, 0, -4), (0.5, 0, 0, 4))
    sides = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    where: dict[str, Any] = {
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "fontsize": 10,
        "fontweight": "bold",
    }
    fits = np.repeat(np.array(_size(axes)) > 0.4, 2)
    for letter, (x, y, dx, dy), (ha, va), fit in zip(letters, places, sides, fits, strict=True):
        axes.annotate(letter if fit else "", (x, y), (dx, dy), ha=ha, va=va, **where, **style)
    if with_scale:
        width, height = axes.get_xlim()[1], axes.get_ylim()[0]
        length = next((step for step in (200, 100, 50, 20, 10, 5, 2) if step < 0.3 * width), 1)
        x, y = 0.04 * width, height - 0.04 * width
        axes.plot([x, x + length], [y, y], linewidth=2.5, solid_capstyle="butt", **style)
        axes.annotate(f"{length} mm", (x, y), (0, 4), textcoords="offset points", fontsize=8.5, va="bottom", **style)


def draw_key(axes: Axes, with_prediction: bool, tilt: float, window: tuple[float, float]) -> None:
    """Say which line is which at the top of an axes, and how slices are shown at its foot.

    Args:
        axes: where to write; its own frame disappears.
        with_prediction: whether the panels show the prediction's outline.
        tilt: angle between the slices and the patient's axes in degrees; said if above 1.
        window: intensities shown black and white.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    entries = [("explained region", REGION_COLOR, REGION_WIDTH)]
    if with_prediction:
        entries.append(("predicted class", PREDICTION_COLOR, PREDICTION_WIDTH))
    lines = []
    for label, color, width in entries:
        casing = [withStroke(linewidth=width + _CASING, foreground="black")]
        lines.append(Line2D([], [], color=color, linewidth=width, label=label, path_effects=casing))
    legend = axes.legend(handles=lines, loc="upper left", fontsize=8.5, borderaxespad=0, labelcolor="white")
    legend.get_frame().set(facecolor=PANEL_GREY, edgecolor="none", alpha=1)
    axes.set_axis_off()
    low, high = (number(value, signed=False) for value in window)
    remarks = f"The patient's right is on the image's left. All panels share one scale. Black {low}, white {high}."
    if tilt > 1:
        remarks += (
            f" Slices follow the voxel grid ({tilt:.0f}\N{DEGREE SIGN} oblique): letters give the nearest direction."
        )
    axes.text(0, 0, wrapped(remarks, _size(axes)[0], 8), va="bottom", fontsize=8, color=FAINT_COLOR)


def draw_color_bar(axes: Axes, limit: float, label: str) -> None:
    """Fill an axes with the colors from -limit to limit (in the score's unit), as they look on mid-grey tissue."""
    axes.set_facecolor(PANEL_GREY)
    ramp = overlay_rgba(np.linspace(-limit, limit, 513)[None], limit)
    axes.imshow(ramp, extent=(-limit, limit, 0, 1), aspect="auto", interpolation="nearest")
    ticks = limit * np.linspace(-1, 1, 5 if len(number(limit / 2)) <= 6 else 3)
    axes.set_xticks(ticks, [number(tick) for tick in ticks])
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[-1].set_horizontalalignment("right")
    axes.set_yticks([])
    axes.tick_params(colors=TEXT_COLOR, labelsize=8, length=2.5, pad=2)
    axes.set_xlabel(wrapped(label, _size(axes)[0], 8.5), fontsize=8.5, color=TEXT_COLOR, labelpad=3)


def checked_units(
    names: Sequence[str], values: np.ndarray, standard_errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return values and standard errors as float64 (M,), or say what is wrong with them."""
    numbers = np.asarray(values, dtype=np.float64), np.asarray(standard_errors, dtype=np.float64)
    if len(names) == 0 or any(array.shape != (len(names),) for array in numbers):
        raise ValueError(
            "names, values and standard_errors need one entry per unit and at least one unit, "
            f"got {len(names)} names, values {numbers[0].shape}, standard_errors {numbers[1].shape}"
        )
    for label, array in zip(("values", "standard_errors"), numbers, strict=True):
        bad = [name for name, finite in zip(names, np.isfinite(array), strict=True) if not finite]
        if bad:
            raise ValueError(f"{label} must be finite, got NaN or infinity for {len(bad)} units, first {bad[0]!r}")
    if numbers[1].min() < 0:
        raise ValueError(f"standard_errors must be at least 0, got {numbers[1].min()}")
    return numbers


def draw_unit_bars(
    axes: Axes, names: Sequence[str], values: np.ndarray, standard_errors: np.ndarray, n_units: int, score_label: str
) -> None:
    """Draw the most important units as horizontal bars, the largest absolute value on top.

    Args:
        axes: where to draw; its left edge moves right to make room for the names, its right edge for the numbers.
        names: (M,) names of the units.
        values: (M,) attributions in the score's unit.
        standard_errors: (M,) standard errors in the same unit; all 0 means exact values.
        n_units: how many units to show at most.
        score_label: name of the score and its unit.
    """
    order = np.argsort(-np.abs(values), kind="stable")[:n_units]
    rows, shown, half_widths = np.arange(len(order)), values[order], _INTERVAL * standard_errors[order]
    axes.barh(rows, shown, height=0.68, color=[POSITIVE_COLOR if value >= 0 else NEGATIVE_COLOR for value in shown])
    certainty = "exact values, no sampling error"
    if np.any(standard_errors > 0):
        certainty = "whiskers: 95 % interval (1.96 SE)"
        axes.errorbar(shown, rows, xerr=half_widths, fmt="none", ecolor=TEXT_COLOR, elinewidth=1.1, capsize=2.5)
    axes.axvline(0, color=TEXT_COLOR, linewidth=0.9)
    across = axes.get_yaxis_transform()
    for row, value in zip(rows, shown, strict=True):
        axes.text(1.02, float(row), number(value), transform=across, va="center", fontsize=8.5, color=TEXT_COLOR)
    axes.set_yticks(rows, [plain_text(shortened(names[index])) for index in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    _style_value_axis(axes, min(0.0, np.min(shown - half_widths)), max(0.0, np.max(shown + half_widths)))
    axes.set_xlabel(wrapped(f"{score_label}\n{certainty}", 3.0, 8.5), fontsize=8.5, color=TEXT_COLOR)
    count = f"{len(order)} of {len(values)}" if len(order) < len(values) or len(values) == 1 else f"all {len(values)}"
    axes.set_title(f"Most important: {count} units shown", fontsize=9.5, color=TEXT_COLOR, loc="left", pad=5)


def _style_value_axis(axes: Axes, low: float, high: float) -> None:
    """Set limits around low to high, about four ticks and a light grid, then make room for names and numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = (low, high) if low < high else (-1.0, 1.0)
    axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, signed=False)))
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", colors=TEXT_COLOR, labelsize=8.5, length=3)
    axes.tick_params(axis="y", colors=TEXT_COLOR, labelsize=9, length=0, pad=4)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FAINT_COLOR)
    place, inch = axes.get_position(), axes.get_position().width / _size(axes)[0]
    widest = max(label.get_window_extent().width for label in axes.get_yticklabels())
    names_room = (widest / axes.get_window_extent().width) * place.width + 0.1 * inch
    axes.set_position((place.x0 + names_room, place.y0, place.width - names_room - 0.75 * inch, place.height))
