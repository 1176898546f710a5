# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from monai_segshap.cohort import ImportanceMatrix, ImportanceTable, global_importance
from monai_segshap.visualize import (
    SYSTEM_COLORS,
    plot_boxplots,
    plot_context_use,
    plot_heatmap,
    plot_outlier_scores,
    save_heatmap,
    system_of,
)

NAMES = ("background", "heart", "rib_left_4")
VALUES = np.array([[0.7, 0.1, 0.2], [0.04, 0.5, 0.46], [np.nan] * 3])


def matrix(**changes):
    return ImportanceMatrix(**{"case": "case_7", "explained": NAMES, "regions": NAMES, "values": VALUES, **changes})


def all_texts(figure: Figure) -> str:
    parts = [t.get_text() for t in figure.texts]
    for axes in figure.axes:
        parts += [t.get_text() for t in axes.texts] + [axes.get_xlabel(), axes.get_ylabel()]
        parts += [axes.get_title(loc="left"), *(t.get_text() for t in axes.get_yticklabels())]
    for legend in figure.legends:
        parts += [legend.get_title().get_text(), *(t.get_text() for t in legend.get_texts())]
    return "\n".join(parts)


def test_heat_map_has_explained_classes_as_rows_and_regions_as_columns():
    turned = matrix(explained=NAMES[:2], values=VALUES[:2])
    figure = plot_heatmap(turned)
    axes, bar = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["background", "heart"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["background", "heart", "rib left 4"]
    assert axes.get_ylabel() == "Explained class"
    assert axes.get_xlabel() == "Region in which the attribution lies"
    shown = axes.get_images()[0].get_array()
    assert shown.shape == (2, 3)
    assert shown[1, 2] == 0.46  # heart explained by the rib
    numbers = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}
    assert numbers[(1, 2)] == "46"
    assert numbers[(1, 0)] == "4.0"
    assert "share of the absolute attribution" in bar.get_ylabel().replace("\n", " ")
    assert "case_7: what each class relies on" in all_texts(figure)


def test_cells_without_a_value_are_hatched_and_own_regions_framed():
    axes = plot_heatmap(matrix()).axes[0]
    boxes = [p for p in axes.patches if isinstance(p, Rectangle)]
    hatched = [(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in boxes if p.get_hatch()]
    framed = [(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in boxes if not p.get_fill()]
    assert sorted(hatched) == [(2, 0), (2, 1), (2, 2)]
    assert sorted(framed) == [(0, 0), (1, 1), (2, 2)]
    assert len(axes.texts) == 6
    assert np.ma.is_masked(axes.get_images()[0].get_array()[2, 0])


def test_more_mass_is_darker_and_enrichment_turns_at_one():
    image = plot_heatmap(matrix(values=np.array([[0.0, 0.2, 0.8]] * 3))).axes[0].get_images()[0]
    light = image.cmap(image.norm(np.array([0.0, 0.2, 0.8])))[:, :3].sum(axis=1)
    assert light[0] > light[1] > light[2]
    rich = plot_heatmap(matrix(values=np.array([[0.0, 1.0, 8.0]] * 3), variant="enrichment"))
    image = rich.axes[0].get_images()[0]
    low, middle, high = image.cmap(image.norm(np.array([0.25, 1.0, 4.0])))[:, :3]
    assert np.ptp(middle) < 0.02  # no hue
    assert low[2] > low[0]  # blue
    assert high[0] > high[2]  # red
    assert "share of the volume" in rich.axes[1].get_ylabel().replace("\n", " ")


def test_means_of_a_cohort_and_tiny_values_are_drawn():
    table = ImportanceTable(("a", "b"), NAMES, NAMES, np.stack([VALUES, VALUES]) * 1e-9, variant="mean")
    figure = plot_heatmap(global_importance(table))
    assert "Mean of 2 cases" in all_texts(figure)
    assert not list(figure.axes[0].texts)  # numbers of 1e-9 would not be read
    ticks = figure.axes[1].get_yticks()
    assert ticks[0] == 0
    assert ticks[-1] == pytest.approx(0.7e-9)
    nothing = plot_heatmap(matrix(values=np.full((3, 3), np.nan)))
    assert len(nothing.axes[0].patches) == 12


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    path = save_heatmap(matrix(), tmp_path / "matrix.png")
    assert imread(path).shape[2] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["matrix.png"]
    with pytest.raises(ValueError, match=r"end in \.png"):
        save_heatmap(matrix(), tmp_path / "matrix.pdf")


def cohort(n=11):
    generator = np.random.default_rng(0)
    values = generator.dirichlet([1.0, 5.0, 3.0], size=(n, 3))
    values[:4, 1] = np.nan
    return ImportanceTable(tuple(f"case {k}" for k in range(n)), NAMES, NAMES, values)


def lines(axes, label):
    return [line for line in axes.lines if isinstance(line, Line2D) and line.get_label() == label]


def test_box_plots_show_quartiles_of_the_cases_that_hold_the_class():
    table = cohort()
    figure = plot_boxplots(table, ["heart", "background"])
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "heart, n = 7"
    row = table.row("heart").dropna()
    order = list(row.median().sort_values(ascending=False).index)
    assert [t.get_text() for t in axes.get_yticklabels()] == [name.replace("_", " ") for name in order]
    for place, name in enumerate(order):
        low, middle, high = np.quantile(row[name], [0.25, 0.5, 0.75])
        box = axes.patches[place]
        assert box.get_x() == pytest.approx(low)
        assert box.get_width() == pytest.approx(high - low)
        assert to_hex(box.get_edgecolor()) == SYSTEM_COLORS[system_of(name)]
        assert lines(axes, "median")[place].get_xdata()[0] == pytest.approx(middle)
        ends = lines(axes, "whisker")[place].get_xdata()
        beyond = lines(axes, "beyond")[place].get_xdata()
        assert len(beyond) + ((row[name] >= ends[0]) & (row[name] <= ends[1])).sum() == 7
        assert ends[1] <= high + 1.5 * (high - low)
    assert len(plot_boxplots(table, "heart", n_regions=2).axes[0].patches) == 2
    with pytest.raises(ValueError, match="no explained class is called 'liver'"):
        plot_boxplots(table, "liver")


def test_context_use_is_drawn_for_each_class_with_its_count():
    table = cohort()
    figure = plot_context_use(table)
    axes = figure.axes[0]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert sorted(labels) == ["background (11)", "heart (7)", "rib left 4 (11)"]
    assert axes.get_xlabel() == "attribution mass outside the class (0 to 1)"
    place = labels.index("heart (7)")
    expected = np.median(1 - table.values[4:, 1, 1])
    assert lines(axes, "median")[place].get_xdata()[0] == pytest.approx(expected)


def test_outlier_scores_say_that_low_is_abnormal_and_name_the_lowest_case():
    scores = pd.DataFrame({"heart": [0.1, -0.2, -0.1], "liver": [0.1, np.nan, 0.2]}, index=["a", "b_7", "c"])
    figure = plot_outlier_scores(scores)
    axes = figure.axes[0]
    assert "LOW = abnormal" in axes.get_xlabel()
    assert [t.get_text() for t in axes.get_yticklabels()] == ["heart", "liver"]
    assert [t.get_text() for t in axes.texts] == ["b_7"]
    places = [collection.get_offsets() for collection in axes.collections]
    assert [len(p) for p in places] == [3, 2]
    np.testing.assert_allclose(places[0][:, 0], [-0.2, -0.1, 0.1])
    with pytest.raises(ValueError, match="no score"):
        plot_outlier_scores(scores * np.nan)


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("pulmonary_vein", "cardiovascular"),
        ("Heart atrium left", "cardiovascular"),
        ("autochthon_left", "muscles"),
        ("costal_cartilages", "skeleton"),
        ("vertebrae_L1", "skeleton"),
        ("hip_left", "skeleton"),
        ("hippocampus", "other organs"),
        ("trachea", "other organs"),
        ("pleural_effusion", "pathology"),
        ("background", "background"),
    ],
)
def test_body_systems_are_guessed_from_names(name, system):
    assert system_of(name) == system
