# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapley_oracles import DividendGame, by_orderings

from monai_segshap.shapley import METHODS, all_coalitions, estimate_shapley, exact_shapley, plan_coalitions, solve

BITS = 1 << np.arange(20)


def table_game(table: np.ndarray):
    n_units = len(table).bit_length() - 1
    return lambda rows: table[rows @ BITS[:n_units]]


def random_table(n_units: int, seed: int = 0, n_scores: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2**n_units, n_scores))


@pytest.mark.parametrize("n_units", [3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("extra", [0, 100])
def test_all_pairs_equal_exact_shapley(n_units, extra):
    table = random_table(n_units, seed=n_units, n_scores=2)
    estimate = estimate_shapley(table_game(table), n_units, 2**n_units - 2 + extra, "kernelshap")
    assert estimate.method == "kernelshap"
    np.testing.assert_allclose(estimate.values, exact_shapley(table), rtol=0, atol=1e-10)


def test_all_pairs_equal_the_mean_over_orderings():
    table = random_table(6, seed=77)
    estimate = estimate_shapley(table_game(table), 6, 62, "kernelshap")
    np.testing.assert_allclose(estimate.values[:, 0], by_orderings(table[:, 0]), atol=1e-10)


@pytest.mark.parametrize("n_units", [4, 5, 6, 7, 8, 11])
def test_all_pairs_have_no_sampling_error_and_no_warning(n_units):
    estimate = estimate_shapley(table_game(random_table(n_units)), n_units, 2**n_units - 2, "kernelshap")
    np.testing.assert_allclose(estimate.standard_errors, 0.0, atol=1e-12)
    assert estimate.diagnostics["warnings"] == []


@given(
    n_units=st.integers(2, 40),
    factor=st.floats(4, 20),
    seed=st.integers(0, 1000),
    method=st.sampled_from(["auto", "kernelshap"]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_additive_games_are_recovered_from_any_budget(n_units, factor, seed, method):
    if n_units > 20:
        method = "kernelshap"  # "auto" is the process there, which is exact for no game
    effects = np.random.default_rng(seed).normal(size=(n_units, 3))
    budget = 2 * math.ceil(factor * n_units / 2)
    estimate = estimate_shapley(lambda rows: 0.5 + rows @ effects, n_units, budget, method, seed)
    np.testing.assert_allclose(estimate.values, effects, atol=1e-9)
    np.testing.assert_allclose(estimate.standard_errors, 0.0, atol=1e-5)


@pytest.mark.parametrize("budget", [150, 400])
def test_published_scheme_recovers_additive_games(budget):
    effects = np.random.default_rng(0).normal(size=(30, 2))
    estimate = estimate_shapley(lambda rows: 0.5 + rows @ effects, 30, budget, "published")
    np.testing.assert_allclose(estimate.values, effects, atol=1e-9)


def test_pairing_recovers_games_of_pair_interactions():
    game = DividendGame.random(25, (1, 2), 60, seed=4)
    estimate = estimate_shapley(game, 25, 100, "kernelshap")
    np.testing.assert_allclose(estimate.values[:, 0], game.shapley, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_efficiency_holds_to_rounding(method, scale):
    table = scale * random_table(8, n_scores=3)
    estimate = estimate_shapley(table_game(table), 8, 254 if method == "exact" else 80, method)
    assert np.abs(estimate.efficiency_gap).max() < 1e-12 * np.abs(table).max()
    np.testing.assert_allclose(estimate.values.sum(axis=0), table[-1] - table[0], atol=1e-12 * scale * 10)
    np.testing.assert_array_equal(estimate.full, table[-1])
    np.testing.assert_array_equal(estimate.empty, table[0])


def test_scores_are_solved_independently():
    table = random_table(9, n_scores=2)
    both = estimate_shapley(table_game(table), 9, 100, "kernelshap")
    for score in range(2):
        alone = estimate_shapley(table_game(table[:, [score]]), 9, 100, "kernelshap")
        np.testing.assert_allclose(both.values[:, score], alone.values[:, 0], atol=1e-12)
        np.testing.assert_allclose(both.standard_errors[:, score], alone.standard_errors[:, 0], atol=1e-12)


@pytest.mark.parametrize("method", ["kernelshap", "published"])
def test_estimates_scale_with_the_game(method):
    table = random_table(9)
    once = estimate_shapley(table_game(table), 9, 120, method, seed=1)
    scaled = estimate_shapley(table_game(-4.0 * table + 11.0), 9, 120, method, seed=1)
    np.testing.assert_allclose(scaled.values, -4.0 * once.values, atol=1e-11)
    np.testing.assert_allclose(scaled.standard_errors, 4.0 * once.standard_errors, atol=1e-11)


@pytest.mark.parametrize(("method", "budget"), [("kernelshap", 300), ("published", 300)])
def test_mean_over_seeds_tends_to_the_exact_values(method, budget):
    game = DividendGame.random(10, (1, 2, 3, 5), 8, seed=12)
    n_seeds = 120
    values = np.stack([estimate_shapley(game, 10, budget, method, seed).values[:, 0] for seed in range(n_seeds)])
    error_of_mean = values.std(axis=0, ddof=1) / math.sqrt(n_seeds)
    assert np.abs((values.mean(axis=0) - game.shapley) / error_of_mean).max() < 4.0


@pytest.mark.parametrize(("method", "budget"), [("kernelshap", 300), ("kernelshap", 120), ("published", 300)])
def test_intervals_of_two_standard_errors_cover(method, budget):
    inside = []
    for seed in range(60):
        game = DividendGame.random(10, (1, 2, 3, 4, 6), 10, seed=1000 + seed)
        estimate = estimate_shapley(game, 10, budget, method, seed)
        inside.append(np.abs(estimate.values[:, 0] - game.shapley) <= 1.96 * estimate.standard_errors[:, 0])
    assert 0.90 <= np.mean(inside) <= 0.995


@pytest.mark.parametrize(("n_units", "budget"), [(6, 16), (8, 20), (10, 26)])
def test_no_value_is_wrong_and_certain_at_the_least_budget(n_units, budget):
    certain_and_wrong = 0
    for seed in range(60):
        game = DividendGame.random(n_units, (1, 2, 3, 4), 10, seed)
        try:
            estimate = estimate_shapley(game, n_units, budget, "kernelshap", seed)
        except ValueError as error:
            assert "budget" in str(error)  # noqa: PT017 (refusal is allowed, not required)
            continue
        errors = estimate.standard_errors[:, 0]
        certain_and_wrong += int(((errors < 1e-5) & (np.abs(estimate.values[:, 0] - game.shapley) > 1e-3)).sum())
    assert certain_and_wrong == 0


def test_standard_errors_shrink_with_the_budget():
    game = DividendGame.random(30, (1, 3, 5), 60, seed=2)
    small, large = (estimate_shapley(game, 30, budget, "kernelshap").standard_errors.mean() for budget in (240, 3840))
    assert 0.15 < large / small < 0.35


def captum_values(table: np.ndarray, n_samples: int, seed: int) -> np.ndarray:
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (captum draws from the global state)
    n_units = len(table).bit_length() - 1
    scores = torch.as_tensor(table[:, 0], dtype=torch.float32)
    bits = torch.as_tensor(BITS[:n_units])
    explainer = attr.KernelShap(lambda kept: scores[(kept.round().long() * bits).sum(dim=1)])
    return explainer.attribute(torch.ones(1, n_units), n_samples=n_samples, perturbations_per_eval=64)[0].numpy()


def relative_error(values: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


def test_published_and_captum_agree_and_pairing_beats_both():
    game = DividendGame.random(9, (1, 2, 3), 12, seed=6)
    table = game(all_coalitions(9))
    exact = exact_shapley(table)[:, 0]
    budget = 250
    seeds = range(25)
    captum = np.median([relative_error(captum_values(table, budget + 2, s), exact) for s in seeds])
    ours = {
        method: np.median(
            [relative_error(estimate_shapley(game, 9, budget, method, s).values[:, 0], exact) for s in seeds]
        )
        for method in ("published", "kernelshap")
    }
    assert captum < 0.35
    assert 0.7 < ours["published"] / captum < 1.4
    assert ours["kernelshap"] < 0.5 * min(captum, ours["published"])


@pytest.mark.parametrize("method", ["kernelshap", "published"])
def test_condition_number_is_that_of_the_design_on_differences(method):
    plan = plan_coalitions(12, 150, method, seed=3)
    estimate = solve(plan, random_table(12)[plan.rows @ BITS[:12]])
    design = plan.rows[2::2] * 2.0 - 1.0 if method == "kernelshap" else plan.rows[2:] * 1.0
    basis = np.linalg.qr(np.eye(12)[:, 1:] - np.eye(12)[:, :1])[0]
    expected = np.linalg.cond(np.sqrt(plan.weights)[:, None] * design @ basis)
    assert estimate.diagnostics["condition_number"] == pytest.approx(expected, rel=1e-8)
    assert estimate.diagnostics["rank"] == 11
    assert estimate.diagnostics["residual_dof"] == len(design) - 11 - (3 if method == "kernelshap" else 0)


def test_values_minimize_the_constrained_weighted_squares():
    plan = plan_coalitions(7, 40, "kernelshap", seed=9)
    scores = random_table(7, seed=5)[plan.rows @ BITS[:7]]
    design, target = plan.rows[2::2] * 2.0 - 1.0, scores[2::2] - scores[3::2]
    u = design.mean(axis=1, keepdims=True)
    design = np.hstack([design, u**3 - u, u**5 - u, u**7 - u])
    normal = np.zeros((11, 11))
    normal[:10, :10] = design.T @ (plan.weights[:, None] * design)
    normal[:7, 10] = normal[10, :7] = 1.0
    right = np.append(design.T @ (plan.weights * target[:, 0]), scores[0, 0] - scores[1, 0])
    np.testing.assert_allclose(solve(plan, scores).values[:, 0], np.linalg.solve(normal, right)[:7], atol=1e-9)


def test_exact_estimate_reports_zero_errors_and_a_perfect_condition():
    estimate = estimate_shapley(table_game(random_table(5)), 5, 32)
    assert estimate.method == "exact"
    assert estimate.n_evaluations == 32
    assert not estimate.standard_errors.any()
    assert estimate.diagnostics["condition_number"] == 1.0
    assert estimate.diagnostics["warnings"] == []


def test_warns_near_the_interpolation_peak_and_not_beyond_it():
    effects = np.ones((40, 1))
    near = estimate_shapley(lambda rows: rows @ effects, 40, 110, "kernelshap")
    far = estimate_shapley(lambda rows: rows @ effects, 40, 400, "kernelshap")
    assert any("near the interpolation peak" in w for w in near.diagnostics["warnings"])
    assert far.diagnostics["warnings"] == []


def test_warns_of_a_bad_condition():
    estimate = estimate_shapley(lambda rows: rows.sum(axis=1, keepdims=True), 60, 68, "published", seed=1)
    assert estimate.diagnostics["condition_number"] > 30
    assert any("condition number" in w for w in estimate.diagnostics["warnings"])


def test_game_is_called_once_with_the_rows_of_the_plan():
    calls = []

    def game(rows):
        calls.append(rows)
        return np.zeros((len(rows), 1))

    estimate = estimate_shapley(game, 12, 101, "kernelshap", seed=3)
    assert len(calls) == 1
    assert calls[0].dtype == bool
    np.testing.assert_array_equal(calls[0], plan_coalitions(12, 101, "kernelshap", 3).rows)
    assert estimate.n_evaluations == len(calls[0]) <= 103


def test_same_seed_same_values():
    table = random_table(10)
    first, again, other = (estimate_shapley(table_game(table), 10, 90, "kernelshap", s).values for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_refuses_scores_that_are_not_finite(bad, method):
    plan = plan_coalitions(5, 30, method)
    scores = np.zeros((plan.n_evaluations, 2))
    scores[4, 1] = bad
    with pytest.raises(ValueError, match="coalition 4 of the plan has a score that is not finite"):
        solve(plan, scores)


@pytest.mark.parametrize("shape", [(31, 1), (33, 1), (32,), (32, 1, 1)])
def test_refuses_scores_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"expected \(32, T\), a row a coalition"):
        solve(plan_coalitions(5, 30, "kernelshap"), np.zeros(shape))


@pytest.mark.parametrize(("method", "budget"), [("auto", 30), ("kernelshap", 48), ("published", 19), ("exact", 500)])
def test_refuses_a_budget_that_is_too_small_before_evaluating(method, budget):
    def game(rows):
        raise AssertionError("the game must not be evaluated")

    with pytest.raises(ValueError, match="budget"):
        estimate_shapley(game, 20, budget, method)


def test_refuses_a_design_that_does_not_determine_the_values():
    plan = plan_coalitions(6, 30, "published", seed=0)
    rows = plan.rows.copy()
    rows[2:] = np.arange(6) == 0
    degenerate = type(plan)(rows, "published", 0, plan.weights, plan.inclusion)
    with pytest.raises(ValueError, match="determine only 1 of 5 free values: raise the budget"):
        solve(degenerate, np.zeros((len(rows), 1)))
