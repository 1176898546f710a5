# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of curves, paired differences and convergence: what they draw, not how they look."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from monai_segshap.metrics import convergence_report, perturbation_curves
from monai_segshap.shapley import plan_coalitions
from monai_segshap.visualize import (
    plot_convergence,
    plot_curves,
    plot_differences,
    save_convergence,
    save_curves,
    save_differences,
)
from monai_segshap.visualize.curves import SHARES, endpoint_normalized, shared_steps


def curves_of(worth, volumes=None, keep=0.0):
    worth = np.asarray(worth, dtype=float)
    return perturbation_curves(lambda rows: rows @ worth + keep, worth, volumes=volumes, bounds="none")


def test_normalized_curves_have_the_areas_of_the_metrics():
    rng = np.random.default_rng(0)
    table = rng.normal(size=64)
    game = perturbation_curves(lambda rows: table[rows @ (1 << np.arange(6))], rng.normal(size=6), bounds="none")
    scaled = endpoint_normalized(game.table())
    assert scaled is not None
    assert (scaled["morf"].iloc[0], scaled["lerf"].iloc[-1]) == (1.0, 0.0)
    assert np.mean(1 - scaled["morf"].to_numpy()[1:]) == pytest.approx(game.aopc_endpoint_normalized)
    assert np.mean((scaled["lerf"] - scaled["morf"]).to_numpy()[1:]) == pytest.approx(game.abpc_endpoint_normalized)


def test_curves_without_a_difference_are_not_normalized():
    curves = curves_of([2.0, -2.0])
    assert math.isnan(curves.aopc_endpoint_normalized)
    assert endpoint_normalized(curves.table()) is None


def test_cases_of_different_sizes_share_steps():
    a, b = curves_of([3.0, 1.0]).table(), curves_of([1.0, 1.0, 1.0, 1.0], volumes=[1, 1, 1, 1]).table()
    found = shared_steps([a, b], "morf")
    assert found.shape == (2, len(SHARES))
    assert found[0, [0, 25, 50, 100]].tolist() == [4.0, 2.5, 1.0, 0.0]  # straight between the steps
    assert found[1, [0, 25, 50, 100]].tolist() == [4.0, 3.0, 2.0, 0.0]
    by_volume = shared_steps([curves_of([3.0, 1.0], volumes=[1, 3]).table()], "morf", "volume")
    assert by_volume[0, [0, 25, 100]].tolist() == [4.0, 1.0, 0.0]


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines}


def test_medians_and_quartiles_are_drawn():
    worths = [[4.0, 0.0], [3.0, 1.0], [2.0, 2.0], [3.0, 1.0], [3.5, 0.5]]
    tables = [curves_of(w, volumes=[1.0, 1.0]).table() for w in worths]
    figure = plot_curves({"organs": tables, "fcc": tables[:1]}, title="T", score_label="TP")
    upper, _, lower, _ = figure.axes
    morf = lines_of(upper)["MoRF: largest value first"]
    assert morf.get_ydata()[50] == pytest.approx(0.25)  # after one unit: 0, 1/4, 1/2, 1/4, 1/8
    band = upper.collections[0].get_paths()[0].vertices
    middle = band[np.isclose(band[:, 0], 0.5), 1]
    assert (middle.min(), middle.max()) == (pytest.approx(0.125), pytest.approx(0.25))
    assert upper.get_title(loc="left") == "organs (5 cases)"
    assert figure.axes[1].get_title(loc="left") == "fcc (1 case)"
    assert (upper.get_xlabel(), lower.get_xlabel()) == ("share of units removed", "share of volume removed")
    assert upper.get_ylim() == figure.axes[1].get_ylim()


def test_undefined_cases_are_counted_and_left_out():
    tables = [curves_of([2.0, -2.0]).table(), curves_of([3.0, 1.0]).table()]
    figure = plot_curves({"organs": tables, "none": tables[:1]})
    assert figure.axes[0].get_title(loc="left") == "organs (1 of 2 cases)"
    assert figure.axes[1].texts[0].get_text() == "no case to show"
    assert len(figure.axes) == 2  # no volumes, no second row
    raw = plot_curves({"organs": tables}, normalize=False)
    assert max(line.get_ydata().max() for line in raw.axes[0].lines) == 4.0


def test_no_panel_is_refused():
    with pytest.raises(ValueError, match="got no panel"):
        plot_curves({})


def differences(**changes):
    row = {"row": "ABPC", "column": "TP", "comparison": "b - a", "mean": 1.0, "low": 0.5, "high": 1.5}
    return pd.DataFrame([{**row, "differences": [0.5, 1.5], **changes}])


@pytest.mark.parametrize(
    ("changes", "color"), [({}, "#c0392b"), ({"low": -0.5}, "#1a1a1a"), ({"low": -2.0, "high": -1.0}, "#2f6fb3")]
)
def test_the_color_tells_on_which_side_the_interval_lies(changes, color):
    axes = plot_differences(differences(**changes)).axes[0]
    intervals = [line for line in axes.lines if line.get_linewidth() == 2.4]
    assert [line.get_color() for line in intervals] == [color]


def test_undefined_means_leave_the_dots():
    axes = plot_differences(differences(mean=math.nan, low=math.nan, high=math.nan)).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"] == [[0.5, 1.5]]
    assert not [line for line in axes.lines if line.get_linewidth() == 2.4]


def test_a_table_without_its_columns_is_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['mean'\]"):
        plot_differences(differences().drop(columns="mean"))


@pytest.fixture(scope="module")
def report():
    rng, m = np.random.default_rng(0), 8
    plan = plan_coalitions(m, 180, "kernelshap", 0)
    rows = plan.rows.astype(float)
    pairs = np.einsum("ki,kj,ij->k", rows, rows, 0.1 * rng.normal(size=(m, m)))
    scores = np.stack([rows @ rng.normal(size=m), rows @ rng.normal(size=m) + pairs + rows[:, :3].prod(axis=1)], axis=1)
    return convergence_report(plan, scores, names=["tp", "soft_dice"])  # tp is additive: its changes are rounding


def test_the_four_diagnostics_are_drawn(report):
    figure = plot_convergence(report)
    assert len(figure.axes) == 4
    stability, local, held_out, condition = figure.axes
    drawn = lines_of(stability)
    np.testing.assert_allclose(drawn["soft dice"].get_ydata(), report.stability[:, 1])
    np.testing.assert_allclose(drawn["tp"].get_xdata(), report.budgets)
    np.testing.assert_allclose(local.lines[0].get_ydata(), report.local_accuracy[:, 0])
    np.testing.assert_allclose(held_out.lines[1].get_ydata(), report.held_out_r2[:, 1])
    np.testing.assert_allclose(condition.lines[0].get_ydata(), report.condition_number)
    assert report.recommended_budget is not None
    assert any(f"recommended: {report.recommended_budget}" in text.get_text() for text in stability.texts)
    marked = [line.get_xdata()[0] for axes in figure.axes for line in axes.lines if line.get_linestyle() == ":"]
    assert marked == [report.recommended_budget] * 4


def test_walks_have_no_condition_number():
    rng, m = np.random.default_rng(0), 8
    plan = plan_coalitions(m, 112, "walks", 0)
    found = convergence_report(plan, rng.normal(size=(plan.n_evaluations, 1)), tolerance=1e-6)
    assert found.recommended_budget is None
    condition = plot_convergence(found).axes[3]
    assert "none (infinite, or no regression)" in condition.texts[0].get_text()


def test_files_are_whole_pngs_with_that_name_only(report, tmp_path):
    table = curves_of([3.0, 1.0]).table()
    written = [
        save_curves({"tp": [table]}, tmp_path / "curves.png"),
        save_convergence(report, tmp_path / "convergence.png"),
        save_differences(differences(), tmp_path / "differences.png"),
    ]
    assert {p.name for p in tmp_path.iterdir()} == {"curves.png", "convergence.png", "differences.png"}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written)
    with pytest.raises(ValueError, match="must end in"):
        save_curves({"tp": [table]}, tmp_path / "curves.jpg")
    with pytest.raises(FileNotFoundError, match="create it first"):
        save_curves({"tp": [table]}, tmp_path / "nowhere" / "curves.png")
