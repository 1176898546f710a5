# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What all estimators have in common: exactness, budgets, errors of sums, and when enough is enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapley_oracles import DividendGame, VoxelGame, by_orderings

from monai_segshap.shapley import METHODS, Locality, ShapleyEstimate, estimate_shapley, exact_shapley, plan_coalitions

DETERMINED = [method for method in METHODS if method not in ("walks", "published")]


def random_game(n_units: int, seed: int = 0, n_scores: int = 2):
    table = np.random.default_rng(seed).normal(size=(2**n_units, n_scores))
    return table, lambda rows: table[rows @ (1 << np.arange(n_units))]


@pytest.mark.parametrize("method", DETERMINED)
@pytest.mark.parametrize("n_units", [2, 3, 5, 6])
def test_all_coalitions_give_the_exact_values(method, n_units):
    table, game = random_game(n_units, n_units)
    where = Locality(np.arange(n_units) * 9.0, 10.0)
    found = estimate_shapley(game, n_units, 2**n_units, method, locality=where)
    expected = np.stack([by_orderings(column) for column in table.T], axis=1)
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.standard_errors, 0.0, atol=1e-10)
    assert plan_coalitions(n_units, 2**n_units, method).is_complete == (found.method != "exact")
    assert found.diagnostics["warnings"] == []


@pytest.mark.parametrize("method", ["walks", "published"])
def test_drawn_coalitions_tend_to_the_exact_values(method):
    table, game = random_game(5)
    found = estimate_shapley(game, 5, 6000, method)
    assert np.abs(found.values - exact_shapley(table)).max() < 4 * found.standard_errors.max() < 0.4


@given(
    n_units=st.integers(1, 60),
    budget=st.integers(0, 700),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 5),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_no_more_is_evaluated_than_the_budget(n_units, budget, method, seed):
    evaluated = []
    effects = np.random.default_rng(seed).normal(size=(n_units, 1))

    def game(rows):
        evaluated.append(len(rows))
        return rows @ effects

    try:
        found = estimate_shapley(game, n_units, budget, method, seed)
    except ValueError as error:
        assert not evaluated, "refused after an evaluation"
        assert "budget" in str(error) or "one unit" in str(error)  # noqa: PT017 (refusal is allowed, not required)
        return
    assert evaluated == [found.n_evaluations]
    assert found.n_evaluations <= budget + 2
    assert np.abs(found.efficiency_gap).max() < 1e-9


@pytest.mark.parametrize("method", ["kernelshap", "gaussian_process", "ridge", "walks", "published"])
def test_constant_scores_have_no_value_no_error_and_no_warning_of_the_audit(method):
    game = DividendGame.random(22, (1, 2), 5, seed=0)
    found = estimate_shapley(lambda rows: np.hstack([np.full((len(rows), 1), 3.7), game(rows)]), 22, 300, method)
    np.testing.assert_allclose(found.values[:, 0], 0.0, atol=1e-12)
    np.testing.assert_allclose(found.standard_errors[:, 0], 0.0, atol=1e-12)
    assert not any("score number 1" in w for w in found.diagnostics["warnings"])
    if method == "gaussian_process":
        assert not found.values[:, 0].any()
        assert not found.standard_errors[:, 0].any()


@pytest.mark.parametrize("method", ["kernelshap", "gaussian_process", "ridge", "walks", "published"])
def test_errors_of_sums_know_how_the_units_are_related(method):
    game = VoxelGame.anywhere(22, 50, seed=1)
    found = estimate_shapley(game, 22, 400, method)
    groups = np.vstack([np.eye(22), np.arange(22) < 7, np.random.default_rng(0).normal(size=22)])
    errors = found.group_errors(groups)
    assert errors.shape == (24, 4)
    np.testing.assert_allclose(errors[:22], found.standard_errors, rtol=1e-10)
    for number, group in enumerate(groups):
        for t in range(4):
            variance = sum(a * b * found.covariances[t, i, j] for i, a in enumerate(group) for j, b in enumerate(group))
            assert errors[number, t] == pytest.approx(np.sqrt(max(variance, 0.0)), rel=1e-6, abs=1e-12)
    everything = found.group_errors(np.ones((1, 22)))[0]
    # the sum is known; the process knows it up to the little noise that it grants the full and the empty coalition
    assert (everything <= (0.2 if method == "gaussian_process" else 1e-6) * found.standard_errors.max(axis=0)).all()


def test_sums_of_exact_values_have_no_error():
    _, game = random_game(4)
    assert estimate_shapley(game, 4, 16).group_errors(np.ones((3, 4))).tolist() == [[0.0, 0.0]] * 3


def test_converged_compares_the_widest_interval_with_the_largest_value():
    values = np.array([[1.0, 0.0, -2.0], [0.2, 0.0, 1.0]])
    errors = np.array([[0.01, 0.0, 0.1], [0.05, 0.0, 0.2]])
    found = ShapleyEstimate(values, errors, 10, "kernelshap", np.zeros(3), np.zeros(3))
    # 1.96 x 0.05 / 1 = 0.098; nothing over nothing; 1.96 x 0.2 / 2 = 0.196
    assert found.converged(0.19).tolist() == [True, True, False]
    assert found.converged(0.197).tolist() == [True, True, True]
    assert found.converged(0.097).tolist() == [False, True, False]


def test_more_coalitions_converge_further():
    game = VoxelGame.anywhere(40, 60, seed=3)
    few, many = (estimate_shapley(lambda rows: game(rows)[:, [3]], 40, budget) for budget in (160, 1280))
    assert many.standard_errors.max() < 0.6 * few.standard_errors.max()
    tolerance = 1.96 * many.standard_errors.max() / np.abs(many.values).max() + 1e-9
    assert many.converged(tolerance).all()
    assert not few.converged(tolerance).any()
