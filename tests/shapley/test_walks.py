# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy import stats
from shapley_oracles import DividendGame, errors_of

from monai_segshap.inferers import Incidence, plan_jobs
from monai_segshap.shapley import exact_shapley, plan_coalitions, restrict_plan
from monai_segshap.shapley.coalitions import METHODS
from monai_segshap.shapley.plan import CoalitionPlan, draw_key
from monai_segshap.shapley.walks import plan_walks, solve_walks, walk_order


def scores_of(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return table[rows @ (1 << np.arange(rows.shape[1]))]


def halves(plan: CoalitionPlan) -> np.ndarray:
    """Bool (pairs, 2, M-1, M)."""
    return plan.rows[2:].reshape(len(plan.weights), 2, plan.n_units - 1, plan.n_units)


def by_steps(walk: np.ndarray, game) -> np.ndarray:
    """Marginal contributions along one monotone walk (states, M), by looking at which unit changes."""
    n_units = walk.shape[1]
    full, empty = np.ones((1, n_units), bool), np.zeros((1, n_units), bool)
    walk = walk[np.argsort(walk.sum(axis=1))]
    states = np.concatenate([empty, walk, full])
    values = np.zeros(n_units)
    for before, after in pairwise(states):
        (unit,) = np.flatnonzero(before != after)
        values[unit] = (game(after[None]) - game(before[None]))[0, 0]
    return values


def walks_along(orders: list[tuple[int, ...]]) -> CoalitionPlan:
    n_units = len(orders[0])
    rows = [np.ones((1, n_units), bool), np.zeros((1, n_units), bool)]
    for order in orders:
        forward = np.array([np.isin(np.arange(n_units), order[:i]) for i in range(1, n_units)])
        rows += [forward, ~forward]
    return CoalitionPlan(np.concatenate(rows), "walks", 0, np.ones(len(orders)), np.zeros(len(orders)))


@pytest.mark.parametrize("n_units", [2, 3, 12])
def test_consecutive_rows_differ_by_one_unit(n_units):
    for half in halves(plan_walks(n_units, 9 * n_units)).reshape(-1, n_units - 1, n_units):
        assert ((half[1:] != half[:-1]).sum(axis=1) == 1).all()


def test_rows_start_with_full_and_empty_and_have_every_inner_size_in_both_halves():
    plan = plan_walks(9, 70, seed=3)
    assert plan.method == "walks"
    assert plan.rows[plan.full_row].all()
    assert not plan.rows[plan.empty_row].any()
    assert plan.n_evaluations == 2 + 4 * 16 <= 72
    assert (halves(plan)[:, 0].sum(axis=2) == np.arange(1, 9)).all()
    assert (halves(plan)[:, 1].sum(axis=2) == np.arange(8, 0, -1)).all()


def test_the_second_half_adds_the_units_in_reverse_order():
    plan = plan_walks(8, 60, seed=1)
    for pair in range(4):
        order = walk_order(8, 1, pair)
        for half, expected in zip(halves(plan)[pair], (order, order[::-1]), strict=True):
            growing = half[np.argsort(half.sum(axis=1))]
            assert np.flatnonzero(growing[0]).tolist() == [expected[0]]
            added = [np.flatnonzero(growing[i + 1] & ~growing[i])[0] for i in range(6)]
            assert added == expected[1:7].tolist()


def test_a_larger_budget_extends_a_smaller_one():
    few, many = plan_walks(20, 100, seed=5).rows, plan_walks(20, 400, seed=5).rows
    assert len(many) > len(few)
    np.testing.assert_array_equal(many[: len(few)], few)


def test_a_pair_depends_on_seed_units_and_number_alone():
    orders = [tuple(walk_order(m, seed, pair)) for m in (20, 21) for seed in (0, 1) for pair in (0, 1, 2**33)]
    assert len(set(orders)) == len(orders)
    assert tuple(walk_order(20, 0, 2**33)) == orders[2]


def test_walks_never_share_random_numbers_with_pairs():
    pairs = np.random.Generator(np.random.Philox(key=draw_key(0, 20), counter=[0, 0, 0, 0])).random((4096, 20))
    drawn = {tuple(row) for row in pairs.argsort(axis=1)}
    assert not drawn & {tuple(walk_order(20, 0, pair)) for pair in range(50)}


def test_orders_are_uniform():
    counts = np.zeros((5, 5))
    for pair in range(2000):
        counts[walk_order(5, 0, pair), np.arange(5)] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("n_units", [2, 3, 4, 5])
def test_all_orders_give_the_exact_values(n_units):
    table = np.random.default_rng(n_units).normal(size=(2**n_units, 2))
    plan = walks_along(list(permutations(range(n_units))))
    values, _, _ = solve_walks(plan, scores_of(table, plan.rows))
    np.testing.assert_allclose(values, exact_shapley(table), atol=1e-12)


def test_values_are_mean_steps_and_errors_their_spread_over_pairs():
    game = DividendGame.random(9, (1, 2, 3, 5), 9, seed=2)
    plan = plan_walks(9, 100, seed=4)
    values, covariances, diagnostics = solve_walks(plan, game(plan.rows))
    each = np.array([(by_steps(up, game) + by_steps(down, game)) / 2 for up, down in halves(plan)])
    assert len(each) == diagnostics["walk_pairs"] == 6
    np.testing.assert_allclose(values[:, 0], each.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(covariances[0], np.cov(each, rowvar=False) / 6, atol=1e-12)


def test_games_of_pair_interactions_are_exact_and_certain():
    game = DividendGame.random(25, (1, 2), 60, seed=4)
    plan = plan_walks(25, 100)
    values, covariances, _ = solve_walks(plan, game(plan.rows))
    np.testing.assert_allclose(values[:, 0], game.shapley, atol=1e-12)
    np.testing.assert_allclose(covariances, 0.0, atol=1e-12)


def test_values_sum_to_the_total_and_dummies_are_zero():
    game = DividendGame.random(10, (1, 2, 3, 5), 9, seed=2)
    plan = plan_walks(13, 200)
    scores = game(plan.rows[:, :10])
    values, covariances, _ = solve_walks(plan, scores)
    assert values.sum() == pytest.approx((scores[0] - scores[1]).item(), abs=1e-12)
    assert not values[10:].any()
    assert not covariances[0, 10:].any()
    assert abs(covariances[0].sum()) < 1e-12


def test_intervals_cover_the_exact_values():
    inside = []
    for seed in range(60):
        game = DividendGame.random(10, (1, 3, 4, 6), 10, seed)
        plan = plan_walks(10, 600, seed)
        values, covariances, _ = solve_walks(plan, game(plan.rows))
        within = np.abs(values - game.shapley[:, None]) <= stats.t.ppf(0.975, 32) * errors_of(covariances)
        inside.append(within)
    assert 0.92 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize("chosen", [[2, 5], [0, 1, 3, 4, 6, 8], [7, 3, 8]])
def test_restricted_walks_give_the_seen_units_the_values_of_the_full_walks(chosen):
    seen = np.isin(np.arange(9), chosen)
    game = DividendGame.random(len(chosen), (1, 2), 5, seed=1)
    plan = plan_coalitions(9, 160, "walks", seed=2)
    scores = game(plan.rows[:, seen]) ** 3
    restricted, rows = restrict_plan(plan, seen)
    np.testing.assert_array_equal(plan.rows[rows][:, seen], restricted.rows)
    values, covariances, _ = solve_walks(plan, scores)
    part, part_covariances, _ = solve_walks(restricted, scores[rows])
    np.testing.assert_array_equal(part, values[seen])
    np.testing.assert_allclose(part_covariances, covariances[np.ix_([0], seen, seen)], atol=1e-14)
    assert not values[~seen].any()


def test_restricted_walks_are_those_of_the_smaller_game():
    seen = np.isin(np.arange(7), [0, 2, 3, 6])
    table = np.random.default_rng(0).normal(size=(16, 1))
    restricted, _ = restrict_plan(walks_along(list(permutations(range(7)))[::7]), seen)
    values, covariances, _ = solve_walks(restricted, scores_of(table, restricted.rows))
    assert np.abs(values - exact_shapley(table)).max() < 0.2
    assert (np.abs(values - exact_shapley(table)) <= 4 * errors_of(covariances)).all()
    every, _ = restrict_plan(walks_along(list(permutations(range(7)))), seen)
    exact = solve_walks(every, scores_of(table, every.rows))[0]
    np.testing.assert_allclose(exact, exact_shapley(table), atol=1e-11)


def chain(n_units: int = 24, length: int = 6, stride: int = 2) -> Incidence:
    """Windows of six units along a line, every second unit."""
    starts = np.arange(0, n_units - length + 1, stride)[:, None]
    member = (np.arange(n_units) >= starts) & (np.arange(n_units) < starts + length)
    return Incidence(np.arange(len(member)), member, member)


def passes_each(rows: np.ndarray, incidence: Incidence, max_bytes: int) -> float:
    ones = np.ones(len(incidence.active), np.int64)
    return plan_jobs(rows, incidence, ones, ones, max_bytes).n_forwards / len(rows)


@pytest.mark.parametrize(("max_bytes", "factor"), [(20, 2.5), (200, 2.5), (10**9, 1.2)])
def test_a_walk_state_needs_fewer_passes_than_a_random_pair(max_bytes, factor):
    walks, pairs = plan_walks(24, 10 * 46), plan_coalitions(24, 10 * 46, "kernelshap")
    assert walks.n_evaluations == pairs.n_evaluations
    random = passes_each(pairs.rows, chain(), max_bytes)
    assert random > factor * passes_each(walks.rows, chain(), max_bytes)


def test_walks_are_a_method_by_name():
    assert "walks" in METHODS
    plan = plan_coalitions(11, 100, "walks", seed=3)
    np.testing.assert_array_equal(plan.rows, plan_walks(11, 100, 3).rows)
    assert plan.regressors.shape == (0, 11)
    assert plan.reason


@pytest.mark.parametrize(("n_units", "budget"), [(12, 43), (12, 0), (2, 3)])
def test_a_budget_below_two_pairs_is_refused_by_naming_the_least(n_units, budget):
    with pytest.raises(ValueError, match=f"Raise the budget to {4 * (n_units - 1)} or more"):
        plan_walks(n_units, budget)
    assert len(plan_walks(n_units, 4 * (n_units - 1)).weights) == 2


def test_one_unit_needs_no_walk():
    with pytest.raises(ValueError, match="one unit needs no sampling"):
        plan_walks(1, 100)


def test_refuses_other_plans_and_scores_of_another_shape():
    plan = plan_walks(6, 40)
    with pytest.raises(ValueError, match="method 'kernelshap'"):
        solve_walks(plan_coalitions(6, 40, "kernelshap"), np.zeros((42, 1)))
    with pytest.raises(ValueError, match=r"expected \(42, T\)"):
        solve_walks(plan, np.zeros((41, 1)))
    single = replace(plan, rows=plan.rows[:12], weights=plan.weights[:1])
    with pytest.raises(ValueError, match="1 pairs of walks"):
        solve_walks(single, np.zeros((12, 1)))
