# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from metric_oracles import additive_table, random_table

from monai_segshap.metrics import convergence_report
from monai_segshap.shapley import (
    Locality,
    estimate_shapley,
    exact_shapley,
    plan_coalitions,
    restrict_plan,
)

CLOSE = {"rtol": 0, "atol": 1e-10}


class Cubic:
    """Two scores: linear plus products of three units, and linear alone.

    Differences of complements cancel products of two, so that paired regression gives a game of these exactly.
    """

    def __init__(self, n_units: int, seed: int = 0, strength: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.linear = rng.normal(size=n_units)
        self.triples = np.stack([rng.choice(n_units, 3, replace=False) for _ in range(3 * n_units)])
        self.weights = strength * rng.normal(size=len(self.triples))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        additive = 2.0 + rows @ self.linear
        return np.stack([additive + rows[:, self.triples].all(axis=2) @ self.weights, additive], axis=1)


def condition_by_loops(rows: np.ndarray, weights: np.ndarray) -> float:
    """Of the differences of pairs, in an orthonormal basis of the values that sum to zero."""
    n_units = rows.shape[1]
    basis = np.linalg.svd(np.ones((1, n_units)))[2][1:]
    design = []
    for pair, weight in enumerate(weights):
        difference = rows[2 + 2 * pair].astype(float) - rows[3 + 2 * pair]
        design.append(math.sqrt(weight) * basis @ difference)
    return float(np.linalg.cond(np.array(design)))


@pytest.mark.parametrize("method", ["kernelshap", "ridge", "gaussian_process"])
def test_every_number_equals_loops_over_prefixes(method):
    game = Cubic(12)
    plan = plan_coalitions(12, 200, method, seed=3)
    scores = game(plan.rows)
    budgets = [60, 100, 160]
    found = convergence_report(plan, scores, budgets=budgets, names=["a", "b"])
    assert (found.method, found.budgets.tolist(), found.names) == (method, budgets, ("a", "b"))
    held = range(2 + 160, 2 + 200)
    assert found.held_out.tolist() == plan.rows[list(held)].tolist()
    before = None
    for b, budget in enumerate(budgets):
        smaller = plan_coalitions(12, budget, method, seed=3)
        values = estimate_shapley(game, 12, budget, method, seed=3).values
        np.testing.assert_allclose(found.values[b], values, **CLOSE)
        np.testing.assert_allclose(found.condition_number[b], condition_by_loops(smaller.rows, smaller.weights))
        for t in range(2):
            empty, full = scores[1, t], scores[0, t]
            rests, truth = [], []
            for row in held:
                predicted = empty + sum(values[unit, t] for unit in range(12) if plan.rows[row, unit])
                rests.append(scores[row, t] - predicted)
                truth.append(scores[row, t])
            np.testing.assert_allclose(found.residuals[b, :, t], rests, **CLOSE)
            mae = sum(abs(r) for r in rests) / len(rests)
            np.testing.assert_allclose(found.held_out_mae[b, t], mae, **CLOSE)
            np.testing.assert_allclose(found.local_accuracy[b, t], mae / abs(full - empty), **CLOSE)
            mean = sum(truth) / len(truth)
            r2 = 1 - sum(r * r for r in rests) / sum((v - mean) ** 2 for v in truth)
            np.testing.assert_allclose(found.held_out_r2[b, t], r2, **CLOSE)
            inside = [abs(scores[row, t] - empty - plan.rows[row] @ values[:, t]) for row in range(2, 2 + budget)]
            np.testing.assert_allclose(found.in_sample_mae[b, t], sum(inside) / budget, **CLOSE)
            if before is None:
                assert math.isnan(found.stability[b, t])
            else:
                change = sum(abs(a - c) for a, c in zip(values[:, t], before[:, t], strict=True))
                size = sum(abs(a) for a in values[:, t])
                np.testing.assert_allclose(found.stability[b, t], change / size, **CLOSE)
        before = values


def test_additive_game_is_stable_exact_and_predicted_from_the_first_budget():
    plan = plan_coalitions(10, 200, "kernelshap")
    found = convergence_report(plan, Cubic(10)(plan.rows)[:, [1]])
    assert np.nanmax(found.stability) < 1e-12
    assert found.held_out_mae.max() < 1e-12
    np.testing.assert_allclose(found.held_out_r2, 1.0, atol=1e-12)
    assert found.recommended_budget == found.budgets[1]
    assert found.recommended == (found.budgets[1],)
    assert f"{len(found.budgets) - 1} of {len(found.budgets) - 1} steps" in found.reason


def test_condition_number_is_that_of_the_solve():
    plan = plan_coalitions(12, 120, "kernelshap")
    found = convergence_report(plan, Cubic(12)(plan.rows), budgets=[60, 96])
    for b, budget in enumerate((60, 96)):
        diagnostics = estimate_shapley(Cubic(12), 12, budget, "kernelshap").diagnostics
        assert found.condition_number[b] == pytest.approx(diagnostics["condition_number"])


def test_a_prior_may_decide_what_the_design_leaves_open():
    plan = plan_coalitions(40, 160, "ridge")
    where = Locality(np.linspace(5.0, 80.0, 40), 10.0)
    found = convergence_report(plan, Cubic(40, strength=0.05)(plan.rows), budgets=[40, 120], locality=where)
    assert found.condition_number[0] == math.inf
    assert math.isfinite(found.condition_number[1])
    np.testing.assert_allclose(
        found.values[1], estimate_shapley(Cubic(40, strength=0.05), 40, 120, "ridge", locality=where).values
    )


def test_default_budgets_grow_by_1_4_to_all_that_is_not_held_out():
    plan = plan_coalitions(15, 1000, "kernelshap")
    found = convergence_report(plan, Cubic(15)(plan.rows))
    assert found.budgets[-1] == 800
    assert found.budgets[0] >= 60
    assert all(1.3 < b / a < 1.5 for a, b in pairwise(found.budgets))
    assert (found.budgets % 2 == 0).all()


def test_recommended_is_the_first_budget_from_which_every_step_stays_small():
    plan = plan_coalitions(12, 600, "kernelshap", seed=1)
    scores = Cubic(12, strength=1.0)(plan.rows)
    steps = convergence_report(plan, scores).stability[1:, 0]
    reached = set()
    for tolerance in (*(steps * 1.0001), *(steps * 0.9999)):
        found = convergence_report(plan, scores, tolerance=tolerance)
        expected = None
        for b in range(1, len(found.budgets)):
            if all(found.stability[later, 0] <= tolerance for later in range(b, len(found.budgets))):
                expected = int(found.budgets[b])
                break
        assert found.recommended[0] == expected
        assert found.recommended[1] == found.budgets[1]
        assert found.recommended_budget == expected
        reached.add(expected)
        if expected is None:
            assert "still change" in found.reason
            assert "score 1" in found.reason
            assert "score 2" not in found.reason
    assert None in reached
    assert len(reached) > 2


def test_more_coalitions_of_a_game_with_products_bring_the_values_to_rest():
    found = convergence_report(plan := plan_coalitions(12, 1600, "kernelshap"), Cubic(12, strength=1.0)(plan.rows))
    assert found.stability[-1, 0] < found.stability[1, 0]
    # the rest is no lack of coalitions: products of units are not additive
    assert found.held_out_r2[-1, 0] < 0.95
    assert found.held_out_r2[-1, 1] == pytest.approx(1.0)


def test_own_held_out_coalitions_without_those_of_the_plan():
    game, plan = Cubic(10), plan_coalitions(10, 100, "kernelshap")
    rng = np.random.default_rng(0)
    others = rng.random((60, 10)) < 0.5
    known = {row.tobytes() for row in plan.rows}
    fresh = [row for row in others if row.tobytes() not in known]
    rows = np.concatenate([others, plan.rows[:7]])
    found = convergence_report(plan, game(plan.rows), held_out=(rows, game(rows)))
    assert found.held_out.tolist() == np.array(fresh).tolist()
    assert found.budgets[-1] == 100
    np.testing.assert_allclose(
        found.residuals[-1], game(np.array(fresh)) - game(plan.rows[1:2]) - np.array(fresh) @ found.values[-1], **CLOSE
    )


def test_all_coalitions_serve_the_pairs_that_the_seed_draws():
    table = random_table(8, seed=2)
    exact = plan_coalitions(8, 254, "exact", seed=5)
    found = convergence_report(exact, table, budgets=[80, 120])
    drawn = plan_coalitions(8, 254, "kernelshap", seed=5)
    same = convergence_report(drawn, table[drawn.rows.astype(int) @ 2 ** np.arange(8)], budgets=[80, 120])
    assert found.table().equals(same.table())
    ridge = convergence_report(exact, table, method="ridge")
    assert ridge.method == "ridge"
    assert ridge.budgets[0] >= 32  # fewer pairs are no plan for it
    additive = additive_table(np.arange(8.0))
    np.testing.assert_allclose(convergence_report(exact, additive).values[-1][:, 0], exact_shapley(additive), atol=1e-9)


def test_pairs_serve_every_estimator_of_pairs():
    plan = plan_coalitions(12, 200, "kernelshap")
    scores = Cubic(12)(plan.rows)
    ridge = convergence_report(plan, scores, method="ridge", budgets=[80, 160])
    own = plan_coalitions(12, 200, "ridge")
    assert ridge.table().equals(convergence_report(own, scores, budgets=[80, 160]).table())


def test_walks_and_published_draws():
    game = Cubic(9)
    walks = plan_coalitions(9, 16 * 10, "walks")
    found = convergence_report(walks, game(walks.rows))
    assert (found.budgets % 16 == 0).all()
    assert np.isnan(found.condition_number).all()
    assert "walks solve no regression" in found.notes[0]
    np.testing.assert_allclose(found.values[-1], estimate_shapley(game, 9, int(found.budgets[-1]), "walks").values)
    seen = {row.tobytes() for row in walks.rows[: 2 + found.budgets[-1]]}
    assert not [row for row in found.held_out if row.tobytes() in seen]
    published = plan_coalitions(9, 200, "published")
    report = convergence_report(published, game(published.rows), budgets=[50, 160])
    regressors = published.rows[2:52] - published.rows[2:52].mean(axis=1, keepdims=True)
    singular = np.linalg.svd(regressors, compute_uv=False)[:8]
    assert report.condition_number[0] == pytest.approx(singular[0] / singular[-1])
    np.testing.assert_allclose(report.values[1][:, 1], game.linear, atol=1e-9)


def test_scores_without_values_are_nan_with_a_note_and_do_not_hold_up_the_others():
    plan = plan_coalitions(10, 200, "kernelshap")
    additive = Cubic(10)(plan.rows)[:, 1]
    size = plan.rows.sum(axis=1).astype(float)
    scores = np.stack([additive, np.full(len(size), 0.7), (size - 5.0) ** 2], axis=1)
    found = convergence_report(plan, scores, names=["alive", "constant", "even"])
    assert np.isnan(found.stability[:, 1:]).all()
    assert np.isnan(found.held_out_r2[:, 1]).all()
    assert np.isnan(found.local_accuracy[:, 1:]).all()
    assert np.isfinite(found.held_out_r2[:, 2]).all()
    assert found.recommended == (found.budgets[1], None, None)
    assert found.recommended_budget == found.budgets[1]
    for text in (
        "constant: no unit has a value; stability is NaN",
        "constant: the held-out coalitions have the same score; R2 is NaN",
        "even: the full and the empty coalition have about the same score; local accuracy is NaN",
    ):
        assert text in found.notes
    dead = convergence_report(plan, scores[:, 1])
    assert dead.recommended_budget is None
    assert "nothing to converge" in dead.reason


def test_table_has_a_row_for_each_score_and_budget():
    plan = plan_coalitions(10, 200, "kernelshap")
    found = convergence_report(plan, Cubic(10)(plan.rows), budgets=[60, 80, 120], names=("tp", "fp"))
    table = found.table()
    assert " ".join(table) == (
        "score budget evaluations stability local_accuracy in_sample_mae held_out_mae held_out_r2 condition_number"
    )
    assert table["score"].tolist() == ["tp"] * 3 + ["fp"] * 3
    assert table["evaluations"].tolist() == [62, 82, 122] * 2
    assert table["held_out_mae"].tolist() == found.held_out_mae.T.ravel().tolist()
    assert table["condition_number"].tolist() == found.condition_number.tolist() * 2


PLAN = plan_coalitions(10, 100, "kernelshap")
SCORES = Cubic(10)(PLAN.rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": [80]}, r"budgets are \[80\]; expected two or more growing numbers up to 80"),
        ({"budgets": [60, 90]}, "growing numbers up to 80"),
        ({"budgets": [60, 40]}, "growing"),
        ({"budgets": [60, 61]}, r"\[60, 60\] in whole steps"),
        ({"budgets": [10, 60]}, "needs at least 13"),
        ({"held_out": 0.0}, "held_out is 0.0; expected a share"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"held_out": (PLAN.rows[2:9], SCORES[2:9])}, "all 7 held-out coalitions are among the 102"),
        ({"held_out": (PLAN.rows[2:9, 1:], SCORES[2:9])}, r"coalitions \(7, 9\).*expected bool \(H, 10\)"),
        ({"held_out": (PLAN.rows[2:9], SCORES[2:9, :1])}, r"scores \(7, 1\).*\(H, 2\)"),
        ({"tolerance": 0.0}, "tolerance of 0.0"),
        ({"names": ["one"]}, "1 names for 2 scores"),
        ({"method": "walks"}, "'kernelshap' does not serve 'walks'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        convergence_report(PLAN, SCORES, **options)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (SCORES[:-1], r"shape \(101, 2\); expected \(102, T\)"),
        (np.where(np.arange(102)[:, None] == 5, np.nan, SCORES), "coalition 5 has a score that is not finite"),
    ],
)
def test_bad_scores(scores, message):
    with pytest.raises(ValueError, match=message):
        convergence_report(PLAN, scores)


def test_restricted_plans_and_plans_of_few_units_are_refused():
    restricted, rows = restrict_plan(PLAN, np.arange(10) < 8)
    with pytest.raises(ValueError, match="not restricted to some units"):
        convergence_report(restricted, SCORES[rows])
    few = plan_coalitions(3, 8, "exact")
    with pytest.raises(ValueError, match="3 units have 8 coalitions, too few"):
        convergence_report(few, random_table(3))
    with pytest.raises(ValueError, match="'exact' does not serve 'exact'"):
        convergence_report(plan_coalitions(6, 64, "exact"), random_table(6), method="exact")
