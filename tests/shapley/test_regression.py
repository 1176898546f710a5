# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from shapley_oracles import DividendGame, QuotaGame, by_orderings, errors_of

from monai_segshap.shapley import all_coalitions, estimate_shapley, exact_shapley, plan_coalitions
from monai_segshap.shapley.design import decompose, join_columns, require_determined
from monai_segshap.shapley.regression import constrained_regression, one_step, size_columns


def table_of(n_units: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2**n_units, 1))


def scores_of(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return table[rows @ (1 << np.arange(rows.shape[1]))]


def problem(n_units: int, budget: int, seed: int, game=None, columns: bool = True):
    """Arguments of the regression for a sampled plan."""
    plan = plan_coalitions(n_units, budget, "kernelshap", seed)
    scores = game(plan.rows) if game else scores_of(table_of(n_units, seed), plan.rows)
    sizes = size_columns(plan.rows[2::2].sum(axis=1), n_units) if columns else None
    target, total = scores[2::2] - scores[3::2], scores[0] - scores[1]
    return plan.regressors, target, total, plan.weights, plan.inclusion, sizes


def by_multipliers(regressors, target, total, weights, columns) -> np.ndarray:
    """The constrained fit with appended columns, by the normal equations and a Lagrange multiplier."""
    n_units, s = regressors.shape[1], columns.shape[1]
    design = np.hstack([regressors, columns])
    normal = np.zeros((n_units + s + 1, n_units + s + 1))
    normal[:-1, :-1] = design.T @ (weights[:, None] * design)
    normal[-1, :n_units] = normal[:n_units, -1] = 1.0
    right = np.append(design.T @ (weights * target[:, 0]), total[0])
    return np.linalg.solve(normal, right)[:n_units]


@pytest.mark.parametrize(("n_units", "expected"), [(2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3), (8, 3), (90, 3)])
def test_there_are_as_many_columns_as_the_sizes_carry(n_units, expected):
    columns = size_columns(np.arange(1, n_units), n_units)
    assert columns.shape == (n_units - 1, expected)
    assert np.linalg.matrix_rank(columns) == expected


@pytest.mark.parametrize("n_units", [5, 8, 31])
def test_columns_are_odd_and_vanish_for_the_full_and_the_empty_coalition(n_units):
    columns = size_columns(np.arange(n_units + 1), n_units)
    np.testing.assert_allclose(columns, -columns[::-1], atol=1e-15)
    np.testing.assert_allclose(columns[[0, -1]], 0.0, atol=1e-15)


@pytest.mark.parametrize("n_units", [2, 3, 4, 5, 6])
def test_with_all_pairs_the_values_are_exact_and_certain(n_units):
    table = table_of(n_units, seed=n_units)
    estimate = estimate_shapley(lambda rows: scores_of(table, rows), n_units, 2**n_units - 2, "kernelshap")
    assert estimate.diagnostics["size_columns"] == min(3, (n_units - 1) // 2)
    np.testing.assert_allclose(estimate.values[:, 0], by_orderings(table[:, 0]), atol=1e-12)
    np.testing.assert_allclose(estimate.standard_errors, 0.0, atol=1e-12)


@pytest.mark.parametrize(("n_units", "budget"), [(7, 60), (10, 60), (16, 120)])
def test_columns_are_fitted_jointly(n_units, budget):
    regressors, target, total, weights, inclusion, columns = problem(n_units, budget, seed=3)
    values, _, diagnostics = constrained_regression(regressors, target, total, weights, inclusion, columns)
    expected = by_multipliers(regressors, target, total, weights, columns)
    assert diagnostics["residual_dof"] == len(target) - (n_units - 1) - 3
    np.testing.assert_allclose(values[:, 0], expected, atol=1e-9)


def test_without_columns_it_is_the_plain_regression():
    regressors, target, total, weights, inclusion, _ = problem(10, 60, seed=3)
    values, _, diagnostics = constrained_regression(regressors, target, total, weights, inclusion)
    expected = by_multipliers(regressors, target, total, weights, np.empty((len(target), 0)))
    assert diagnostics["residual_dof"] == len(target) - 9
    np.testing.assert_allclose(values[:, 0], expected, atol=1e-9)


def test_covariances_are_those_of_leaving_out_one_pair_after_the_other():
    regressors, target, total, weights, inclusion, columns = problem(12, 100, seed=1)
    _, covariances, _ = constrained_regression(regressors, target, total, weights, inclusion, columns)
    every = by_multipliers(regressors, target, total, weights, columns)
    shift = []
    for left_out in range(len(target)):
        rest = np.arange(len(target)) != left_out
        shift.append(by_multipliers(regressors[rest], target[rest], total, weights[rest], columns[rest]) - every)
    shift = np.sqrt(1.0 - inclusion)[:, None] * shift
    np.testing.assert_allclose(covariances[0], shift.T @ shift, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("n_units", [12, 25])
def test_a_bent_answer_to_the_size_changes_no_value_and_no_error(n_units):
    game = DividendGame.random(n_units, (1, 2, 3), 12, seed=n_units)

    def bent(rows):
        u = 2.0 * rows.mean(axis=1, keepdims=True) - 1.0
        return game(rows) + 40.0 * u**3 - 25.0 * u**5 + 9.0 * u**7 - 24.0 * u + 5.0 * u**4

    plain = constrained_regression(*problem(n_units, 8 * n_units, 0, game))
    curved = constrained_regression(*problem(n_units, 8 * n_units, 0, bent))
    np.testing.assert_allclose(curved[0], plain[0], atol=1e-9)
    np.testing.assert_allclose(curved[1], plain[1], atol=1e-9)


def test_a_plan_that_determines_the_values_is_solved_whatever_its_columns_do():
    joined = []
    for seed in range(60):
        try:
            arguments = problem(6, 16, seed)
        except ValueError:
            continue
        values, covariances, diagnostics = constrained_regression(*arguments)
        joined.append(diagnostics["size_columns"])
        assert np.isfinite(values).all()
        assert (errors_of(covariances) > 0).all()
    assert len(joined) > 10
    assert min(joined) < max(joined) == 2


def test_a_column_that_a_single_row_would_determine_is_left_out():
    rows = np.array([[a == u or b == u for u in range(4)] for a, b in combinations(range(4), 2)] + [[1, 0, 0, 0]], bool)
    regressors, weights = np.where(rows, 1.0, -1.0), np.ones(7)
    columns = size_columns(rows.sum(axis=1), 4)
    assert np.count_nonzero(columns) == 1
    found = decompose(regressors, weights)
    assert join_columns(found, columns, np.full(7, 0.5))[0] == []
    assert join_columns(found, columns, np.ones(7))[0] == [0]
    require_determined(regressors, weights, np.full(7, 0.5), 14)


def test_collinear_columns_are_joined_once():
    regressors, _, _, weights, inclusion, columns = problem(10, 80, seed=2)
    root = np.sqrt(weights)[:, None]
    doubled = root * np.hstack([columns[:, :1], -2.0 * columns[:, :1], regressors[:, :1] - regressors[:, 1:2], columns])
    kept, basis = join_columns(decompose(regressors, weights), doubled, inclusion)
    assert kept == [0, 4, 5]
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)


def relative_errors(game: QuotaGame, seed: int) -> tuple[float, float]:
    """With and without size control, 8M evaluations."""
    found = []
    for columns in (True, False):
        values = constrained_regression(*problem(64, 512, seed, game, columns))[0][:, 0]
        found.append(float(np.linalg.norm(values - game.shapley) / np.linalg.norm(game.shapley)))
    return found[0], found[1]


def test_quota_games_know_their_values():
    game = QuotaGame.random(8, 4, (0.3, 0.55, 0.8))
    np.testing.assert_allclose(exact_shapley(game(all_coalitions(8)))[:, 0], game.shapley, atol=1e-12)


def test_size_control_pays_on_threshold_games_that_are_not_local():
    quotas = tuple(np.linspace(0.4, 0.95, 12))
    errors = np.array([relative_errors(QuotaGame.random(64, seed, quotas), seed) for seed in range(5)])
    controlled, plain = np.median(errors, axis=0)
    assert plain > 2.0 * controlled


@pytest.mark.parametrize("n_units", [3, 4, 5, 6])
def test_one_step_is_unbiased_over_the_whole_law_of_pairs(n_units):
    table = table_of(n_units, seed=n_units)
    total = table[-1] - table[0]
    expected = np.zeros(n_units)
    for size in range(1, n_units):
        for kept in combinations(range(n_units), size):
            row = np.isin(np.arange(n_units), kept)[None]
            difference = scores_of(table, row) - scores_of(table, ~row)
            value, _ = one_step(np.repeat(row, 2, axis=0), np.repeat(difference, 2, axis=0), total)
            expected += value[:, 0] / ((n_units - 1) * math.comb(n_units, size))
    np.testing.assert_allclose(expected, by_orderings(table[:, 0]), atol=1e-12)


def independent_pairs(n_units: int, n_pairs: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, n_units, n_pairs)
    return rng.random((n_pairs, n_units)).argsort(axis=1).argsort(axis=1) < sizes[:, None]


def test_one_step_intervals_cover():
    game = DividendGame.random(12, (1, 2, 3, 4), 8, seed=5)
    inside, values = [], []
    for seed in range(80):
        rows = independent_pairs(12, 300, seed)
        total = game(np.ones((1, 12), bool))[0] - game(np.zeros((1, 12), bool))[0]
        value, error = one_step(rows, game(rows) - game(~rows), total)
        values.append(value[:, 0])
        inside.append(np.abs(value[:, 0] - game.shapley) <= 1.96 * error[:, 0])
    assert 0.92 <= np.mean(inside) <= 0.98
    np.testing.assert_allclose(np.mean(values, axis=0), game.shapley, atol=4 * np.std(values, axis=0).max() / 80**0.5)


def test_one_step_sums_to_the_total():
    rows = independent_pairs(15, 40, 0)
    values, _ = one_step(rows, np.random.default_rng(1).normal(size=(40, 2)), np.array([3.0, -1.0]))
    np.testing.assert_allclose(values.sum(axis=0), [3.0, -1.0], atol=1e-12)


@pytest.mark.parametrize("member", [np.ones(5, bool), np.zeros(5, bool)])
def test_one_step_refuses_the_pair_of_full_and_empty(member):
    rows = independent_pairs(5, 4, 0)
    rows[2] = member
    with pytest.raises(ValueError, match="no information"):
        one_step(rows, np.zeros((4, 1)), np.zeros(1))


def test_one_step_needs_two_pairs():
    with pytest.raises(ValueError, match="got 1 pairs"):
        one_step(independent_pairs(5, 1, 0), np.zeros((1, 1)), np.zeros(1))
