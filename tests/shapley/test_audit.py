# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The second opinion: unbiased whatever the control, and heard where the first one is wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from shapley_oracles import DividendGame, VoxelGame

from monai_segshap.shapley import estimate as estimate_module
from monai_segshap.shapley import exact_shapley, plan_coalitions, restrict_plan, solve
from monai_segshap.shapley.audit import AUDIT_LIMIT, audit_statistic, corrected_estimate


def independent_pairs(n_units: int, n_pairs: int, seed: int) -> np.ndarray:
    """Full, empty, and pairs of complements of uniform sizes, with replacement."""
    rng = np.random.default_rng(seed)
    rank = rng.random((n_pairs, n_units)).argsort(axis=1).argsort(axis=1)
    first = rank < rng.integers(1, n_units, n_pairs)[:, None]
    ends = np.array([[True] * n_units, [False] * n_units])
    return np.concatenate([ends, np.stack([first, ~first], axis=1).reshape(-1, n_units)])


def wrong_control(rows: np.ndarray):
    """An additive game that has nothing to do with the scores, but knows its own values."""
    effects = np.linspace(-2.0, 3.0, rows.shape[1])[:, None]
    return lambda kept: (effects, 5.0 + rows @ effects)


def fitted_badly(rows: np.ndarray, scores: np.ndarray):
    """Main effects of the rows kept, three times too large."""

    def control(kept: np.ndarray):
        effects = 3.0 * np.linalg.lstsq(rows[kept] - 0.5, scores[kept] - scores[kept].mean(), rcond=None)[0]
        return effects, rows @ effects

    return control


@pytest.mark.parametrize("n_units", [6, 8])
@pytest.mark.parametrize("make", ["wrong", "fitted"])
def test_the_mean_over_seeds_is_exact_though_the_control_is_wrong(n_units, make):
    table = np.random.default_rng(n_units).normal(size=(2**n_units, 1))
    exact, n_seeds, found, errors = exact_shapley(table)[:, 0], 400, [], []
    for seed in range(n_seeds):
        rows = independent_pairs(n_units, 24, seed)
        scores = table[rows @ (1 << np.arange(n_units))]
        control = wrong_control(rows) if make == "wrong" else fitted_badly(rows, scores)
        values, error = corrected_estimate(rows, scores, control)
        assert values.sum() == pytest.approx(table[-1, 0] - table[0, 0], abs=1e-9)
        found.append(values[:, 0])
        errors.append(error[:, 0])
    spread = np.std(found, axis=0, ddof=1)
    assert np.abs((np.mean(found, axis=0) - exact) / (spread / math.sqrt(n_seeds))).max() < 4.0
    if make == "wrong":  # folds are independent then, so the errors are those of the mean
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors), axis=0)), spread, rtol=0.2)


def test_a_perfect_control_leaves_nothing_to_correct():
    game = DividendGame.random(8, (1, 2, 3), 10, seed=1)
    rows = independent_pairs(8, 40, seed=0)
    values, errors = corrected_estimate(rows, game(rows), lambda kept: (game.shapley[:, None], game(rows)))
    np.testing.assert_allclose(values[:, 0], game.shapley, atol=1e-12)
    np.testing.assert_allclose(errors, 0.0, atol=1e-12)


def test_what_a_fold_corrects_was_not_used_in_its_fit():
    rows = independent_pairs(7, 10, seed=3)
    seen: list[np.ndarray] = []

    def control(kept: np.ndarray):
        seen.append(kept)
        return np.zeros((7, 1)), np.zeros((22, 1))

    corrected_estimate(rows, np.zeros((22, 1)), control)
    left_out = [np.setdiff1d(np.arange(22), kept) for kept in seen]
    assert sorted(np.concatenate(left_out).tolist()) == list(range(2, 22))
    for kept, out in zip(seen, left_out, strict=True):
        assert kept[:2].tolist() == [0, 1]
        np.testing.assert_array_equal(out[1::2], out[::2] + 1)
        assert (out[::2] % 2 == 0).all()
        assert (np.diff(kept) > 0).all()


def test_the_statistic_by_hand():
    values = np.array([[1.0, 5.0], [2.0, 0.0]])
    corrected = np.array([[1.2, 5.0], [1.0, 7.0]])
    errors = np.array([[0.1, 1.0], [0.5, 0.0]])
    np.testing.assert_allclose(audit_statistic(values, corrected, errors), [(4.0 + 4.0) / 2, 0.0])


@pytest.mark.parametrize("method", ["gaussian_process", "ridge"])
@pytest.mark.parametrize("wrong", [False, True])
def test_an_answer_that_is_badly_wrong_is_audited_aloud(monkeypatch, method, wrong):
    game, plan = VoxelGame.anywhere(24, 60, seed=0), plan_coalitions(24, 300, method)
    bent = np.linspace(0.0, 2.5, 24)[:, None] if wrong else 1.0
    process, ridge = estimate_module.process_estimate, estimate_module.ridge_values

    def bent_process(*arguments):
        found = process(*arguments)
        return replace(found, values=found.values * bent)

    calls: list[int] = []

    def bent_ridge(*arguments):
        values, *others = ridge(*arguments)
        calls.append(1)
        return values * bent if len(calls) == 1 else values, *others

    monkeypatch.setattr(estimate_module, "process_estimate", bent_process)
    monkeypatch.setattr(estimate_module, "ridge_values", bent_ridge)
    found = solve(plan, game(plan.rows)[:, [0, 3]])
    warned = [w for w in found.diagnostics["warnings"] if w.startswith("audit: the values of score")]
    assert len(warned) == (np.array(found.diagnostics["audit"]) > AUDIT_LIMIT).sum()
    if wrong:
        assert len(warned) == 2
        assert "raise the budget, or choose method 'kernelshap' or 'walks'" in warned[0]
    elif method == "gaussian_process":
        assert not warned


def test_a_quick_look_is_not_audited():
    game, plan = VoxelGame.anywhere(24, 40, seed=0), plan_coalitions(24, 100, "gaussian_process")
    assert "audit" not in solve(plan, game(plan.rows), quick=True).diagnostics


@pytest.mark.parametrize("method", ["gaussian_process", "ridge"])
def test_a_region_that_sees_two_units_of_many_is_solved(method):
    plan = plan_coalitions(10, 33, method, seed=572)
    for first, second in combinations(range(10), 2):
        seen, rows = restrict_plan(plan, np.isin(np.arange(10), [first, second]))
        scores = np.tanh(plan.rows[rows][:, [first]] + 2.0 * plan.rows[rows][:, [second]])
        assert np.isfinite(solve(seen, scores).values).all()
