# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import importlib

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("networkx")

from matplotlib.colors import to_hex
from matplotlib.image import imread
from matplotlib.patches import Circle, FancyArrowPatch

from monai_segshap.cohort import ImportanceMatrix
from monai_segshap.visualize import SYSTEM_COLORS, importance_graph, plot_graph, save_graph

CLASSES = ("background", "liver", "aorta", "ribs")
REGIONS = (*CLASSES, "effusion")
VALUES = np.array(
    [
        [0.9, 0.1, 0.0, 0.0, 0.0],
        [0.3, 0.4, 0.2, 0.1, 0.0],  # liver: own 0.4, then aorta, ribs
        [0.1, 0.2, 0.1, 0.15, 0.45],  # aorta: effusion, liver, ribs
        [np.nan] * 5,
    ]
)
MATRIX = ImportanceMatrix("case 1", CLASSES, REGIONS, VALUES)


def test_edges_lead_from_the_largest_other_regions_to_the_explained_class():
    graph = importance_graph(MATRIX, top_k=2)
    edges = {(source, target): data["weight"] for source, target, data in graph.edges(data=True)}
    assert edges == {
        ("aorta", "liver"): 0.2,
        ("ribs", "liver"): 0.1,
        ("effusion", "aorta"): 0.45,
        ("liver", "aorta"): 0.2,
    }
    assert graph.nodes["liver"] == {"own": 0.4, "absent": False}
    assert graph.nodes["ribs"]["absent"]
    assert "background" not in graph


def test_k_counts_incoming_edges_and_zero_mass_makes_none():
    graph = importance_graph(MATRIX, top_k=9, drop=())
    assert dict(graph.in_degree()) == {"background": 1, "liver": 3, "aorta": 4, "ribs": 0, "effusion": 0}
    assert dict(importance_graph(MATRIX, top_k=1).in_degree()) == {"liver": 1, "aorta": 1, "ribs": 0, "effusion": 0}
    assert "effusion" not in importance_graph(MATRIX, drop=("background", "effusion", "not there"))


def test_wrong_requests_and_a_missing_library_are_named(monkeypatch):
    with pytest.raises(ValueError, match="top_k is 0"):
        importance_graph(MATRIX, top_k=0)
    with pytest.raises(ValueError, match="0 classes beside"):
        importance_graph(MATRIX, drop=CLASSES)

    def without(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"pip install monai_segshap\[plots\]"):
        importance_graph(MATRIX)


def arrows(figure):
    return [p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)]


def test_arrows_start_at_the_region_end_at_the_class_and_grow_with_the_value():
    figure = plot_graph(MATRIX, top_k=2)
    axes = figure.axes[0]
    circles = [p for p in axes.patches if isinstance(p, Circle)]
    names = [t.get_text().split("\n")[0] for t in axes.texts]
    place = {name: np.array(circle.center) for name, circle in zip(names, circles, strict=True)}
    graph = importance_graph(MATRIX, top_k=2)
    expected = sorted(graph.edges(data=True), key=lambda edge: edge[2]["weight"])
    found = arrows(figure)
    assert len(found) == 4
    for arrow, (source, target, _) in zip(found, expected, strict=True):
        points = arrow._path_original.vertices
        assert min(place, key=lambda n: np.linalg.norm(place[n] - points[0])) == source
        assert min(place, key=lambda n: np.linalg.norm(place[n] - points[-1])) == target
        assert len(points) == 3
    widths = [arrow.get_linewidth() for arrow in found]
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0]
    assert to_hex(found[-1].get_edgecolor()) == SYSTEM_COLORS["pathology"]  # the effusion's color


def test_labels_say_what_a_class_draws_from_itself_and_who_is_absent():
    figure = plot_graph(MATRIX, systems={"liver": "muscles"})
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert "liver\n40 % in itself" in texts
    assert "ribs\nabsent" in texts
    legends = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    assert legends[:4] == ["cardiovascular", "muscles", "skeleton", "pathology"]
    assert "45 %" in legends
    heads = "\n".join(t.get_text() for t in figure.texts)
    assert "Arrows lead from a region to the class that relies on it" in heads
    assert "Left out: background" in heads
    with pytest.raises(ValueError, match="got the systems"):
        plot_graph(MATRIX, systems={"liver": "digestive"})


def test_seventeen_classes_stay_apart(tmp_path):
    names = tuple(f"organ number {n}" for n in range(17))
    values = np.random.default_rng(0).dirichlet(np.ones(17), size=17)
    figure = plot_graph(ImportanceMatrix("x", names, names, values))
    assert len(arrows(figure)) == 51
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in figure.axes[0].texts]
    overlaps = [(i, j) for i in range(17) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert overlaps == []
    page = figure.bbox
    assert all(box.x0 >= 0 and box.x1 <= page.x1 for box in boxes)
    path = save_graph(MATRIX, tmp_path / "graph.png")
    assert imread(path).std() > 0.01
