# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""An importance matrix as a directed graph: an edge from a region to each class that relies on it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monai_segshap.cohort import GlobalImportance, ImportanceMatrix

from . import colors
from .curves import new_figure, save_figure
from .importance import matrix_of, readable
from .systems import SYSTEM_COLORS, color_of, systems_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["importance_graph", "plot_graph", "save_graph"]

Point = NDArray[np.float64]
_NODE, _WIDEST, _THINNEST = 0.055, 5.5, 0.5  # radius where the circle has 1; points
_SIZE, _SIDE = 6.6, 1.75  # inches: the circle, room for names on each side


def importance_graph(
    matrix: ImportanceMatrix | GlobalImportance, top_k: int = 3, drop: Sequence[str] = ("background",)
) -> Any:
    """The most important other regions of each class, as a ``networkx.DiGraph``.

    Edges lead from a region to the explained class that relies on it, with the attribute "weight" (the matrix's value).
    A class's own region makes no edge: it is the node's attribute "own". Nodes without a value (an absent class) have
    "absent" True. Regions that are no explained class, such as pathologies, are nodes where they have an edge.

    Args:
        matrix: of one case, or the means of a cohort.
        top_k: incoming edges of each class, the largest values above 0; ties go to the first region.
        drop: names that are neither regions nor classes of the graph; those that are not there do not matter.

    Raises:
        ImportError: if networkx is not installed.
        ValueError: for ``top_k`` below 1, or if every class is dropped.
    """
    networkx = _networkx()
    shown = matrix_of(matrix)
    classes = [name for name in shown.explained if name not in drop]
    if top_k < 1 or not classes:
        raise ValueError(f"top_k is {top_k}, with {len(classes)} classes beside {list(drop)}; expected at least 1.")
    graph = networkx.DiGraph()
    for name in classes:
        row = dict(zip(shown.regions, map(float, shown.values[shown.explained.index(name)]), strict=True))
        graph.add_node(name, own=row.get(name, float("nan")), absent=all(np.isnan(v) for v in row.values()))
    for name in classes:
        row = dict(zip(shown.regions, map(float, shown.values[shown.explained.index(name)]), strict=True))
        others = [(value, region) for region, value in row.items() if region != name and region not in drop]
        for value, region in sorted((o for o in others if o[0] > 0), key=lambda o: -o[0])[:top_k]:
            if region not in graph:
                graph.add_node(region, own=float("nan"), absent=False)
            graph.add_edge(region, name, weight=value)
    return graph


def plot_graph(
    matrix: ImportanceMatrix | GlobalImportance,
    *,
    top_k: int = 3,
    drop: Sequence[str] = ("background",),
    systems: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw `importance_graph` around a circle, systems side by side.

    An arrow leads from a region to the class that relies on it; it has the color of the region's system, and its width
    grows with the value. Under a class's name stands what it draws from itself.

    Args:
        matrix: of one case, or the means of a cohort.
        top_k: incoming edges of each class.
        drop: names left out.
        systems: name -> "cardiovascular", "muscles", "skeleton", "other organs", "pathology" or "background"; guessed
            for names that are not given.
        title: heading; default names the case.

    Raises:
        ImportError: if matplotlib or networkx is not installed.
        ValueError: as for `importance_graph`, or for an unknown system.
    """
    colors.require_matplotlib()
    shown = matrix_of(matrix)
    graph = importance_graph(shown, top_k, drop)
    kinds = systems_of(graph.nodes, systems)
    order = sorted(graph.nodes, key=lambda name: list(SYSTEM_COLORS).index(kinds[name]))
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(order)) / len(order)
    places = {name: np.array([np.cos(a), np.sin(a)]) for name, a in zip(order, angles, strict=True)}
    notes = f"Arrows lead from a region to the class that relies on it: the {top_k} largest for each class."
    notes += f" Left out: {', '.join(drop)}." if any(d in shown.explained + shown.regions for d in drop) else ""
    heading = f"{shown.case}: what each class relies on" if title is None else title
    width, height = _SIZE + 2 * _SIDE, _SIZE + 2.35
    figure, _ = new_figure(width, height, heading, notes)
    frame = (0, 0.72 / height, 1, (_SIZE + 0.75) / height)
    axes = figure.add_axes(frame)
    half = (_SIZE + 0.75) / _SIZE * 1.06
    axes.set(xlim=(-half * width / (_SIZE + 0.75), half * width / (_SIZE + 0.75)), ylim=(-half, half), aspect="equal")
    axes.set_axis_off()
    weights = [data["weight"] for _, _, data in graph.edges(data=True)]
    largest = max(weights, default=1.0)
    for source, target, data in sorted(graph.edges(data=True), key=lambda edge: edge[2]["weight"]):
        _draw_edge(axes, places[source], places[target], data["weight"] / largest, color_of(kinds[source]))
    for name, angle in zip(order, angles, strict=True):
        _draw_node(axes, places[name], angle, name, graph.nodes[name], shown.variant, color_of(kinds[name]))
    _draw_legend(figure, [s for s in SYSTEM_COLORS if s in kinds.values()], largest, shown.variant)
    return figure


def save_graph(matrix: ImportanceMatrix | GlobalImportance, path: str | os.PathLike[str], **options: Any) -> Path:
    """Draw an importance matrix as a graph and write it as a PNG, see `plot_graph`."""
    return save_figure(plot_graph(matrix, **options), path)


def _line_width(share: float) -> float:
    return _THINNEST + (_WIDEST - _THINNEST) * share


def _draw_edge(axes: Axes, start: Point, end: Point, share: float, color: str) -> None:
    """An arrow that bends towards the middle; both directions of a pair bend to their own right."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Outline

    along = end - start
    bend = 0.42 * (start + end) / 2 + 0.07 * np.array([along[1], -along[0]])
    t = np.linspace(0, 1, 201)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    near = (np.linalg.norm(curve - start, axis=1) < 1.15 * _NODE) | (np.linalg.norm(curve - end, axis=1) < 1.4 * _NODE)
    first, last = (float(s) for s in t[~near][[0, -1], 0])
    control = (1 - first) * (1 - last) * start + (first + last - 2 * first * last) * bend + first * last * end
    path = Outline([curve[~near][0], control, curve[~near][-1]], [Outline.MOVETO, Outline.CURVE3, Outline.CURVE3])
    arrow = FancyArrowPatch(
        path=path,
        arrowstyle="-|>",
        mutation_scale=5.0 + 1.3 * _line_width(share),
        linewidth=_line_width(share),
        color=color,
        alpha=0.35 + 0.5 * share,
        capstyle="butt",
        joinstyle="miter",
        zorder=2 + share,
    )
    axes.add_patch(arrow)


def _draw_node(
    axes: Axes, place: Point, angle: float, name: str, node: Mapping[str, Any], variant: str, color: str
) -> None:
    from matplotlib.patches import Circle

    fill = "white" if node["absent"] else color
    axes.add_patch(Circle((float(place[0]), float(place[1])), _NODE, facecolor=fill, edgecolor=color, zorder=5))
    text = readable(name)
    if node["absent"]:
        text += "\nabsent"
    elif np.isfinite(node["own"]):
        text += f"\n{_value(node['own'], variant)} in itself"
    x, y = place * (1 + 1.6 * _NODE)
    side = "center" if abs(np.cos(angle)) < 0.12 else "left" if np.cos(angle) > 0 else "right"
    level = "center" if side != "center" else "bottom" if np.sin(angle) > 0 else "top"
    axes.text(x, y, text, ha=side, va=level, fontsize=8, color=colors.TEXT_COLOR, zorder=6, linespacing=1.15)


def _value(value: float, variant: str) -> str:
    return f"{100 * value:.2g} %" if variant == "mass" else colors.number(value, 2, signed=False)


def _draw_legend(figure: Figure, systems: Sequence[str], largest: float, variant: str) -> None:
    """Colors of systems, and what widths mean."""
    from matplotlib.lines import Line2D

    dots = [
        Line2D([], [], marker="o", linestyle="", markersize=8, color=color_of(system), label=system)
        for system in systems
    ]
    widths = [
        Line2D([], [], color=colors.FAINT_COLOR, linewidth=_line_width(share), label=_value(share * largest, variant))
        for share in (0.1, 0.5, 1.0)
    ]
    style: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": colors.TEXT_COLOR, "handletextpad": 0.5}
    first = figure.legend(handles=dots, loc="lower left", bbox_to_anchor=(0.01, 0.005), ncols=3, **style)
    figure.add_artist(first)
    label = {"mass": "share of the class's attribution", "mean": "mean attribution of a voxel"}.get(variant, variant)
    figure.legend(
        handles=widths, loc="lower right", bbox_to_anchor=(0.99, 0.005), ncols=3, title=label, title_fontsize=8, **style
    )


def _networkx() -> Any:
    try:
        return importlib.import_module("networkx")
    except ImportError as error:
        raise ImportError(
            "graphs need networkx, which is not installed; install it with: pip install monai_segshap[plots]"
        ) from error
