# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from shapley_oracles import DividendGame

from monai_segshap.shapley import (
    METHODS,
    all_coalitions,
    default_budget,
    exact_shapley,
    least_rows,
    plan_coalitions,
    restrict_plan,
    solve,
    stop_rows,
)


@pytest.mark.parametrize(
    ("n_units", "smaller", "larger"), [(7, 40, 60), (12, 40, 400), (24, 8100, 8400), (90, 250, 1000)]
)
def test_a_larger_budget_extends_a_smaller_one(n_units, smaller, larger):
    few = plan_coalitions(n_units, smaller, "kernelshap", seed=5).rows
    many = plan_coalitions(n_units, larger, "kernelshap", seed=5).rows
    assert len(many) > len(few)
    np.testing.assert_array_equal(many[: len(few)], few)


@pytest.mark.parametrize(("n_units", "budget"), [(2, 2), (3, 6), (6, 40), (9, 510), (30, 240)])
def test_rows_come_in_distinct_pairs_of_complements(n_units, budget):
    rows = plan_coalitions(n_units, budget, "kernelshap", seed=1).rows
    assert rows[0].all()
    assert not rows[1].any()
    np.testing.assert_array_equal(rows[2::2], ~rows[3::2])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_sampled_sizes_are_uniform():
    n_units, n_pairs = 60, 590
    plan = plan_coalitions(n_units, 2 * n_pairs, "kernelshap", seed=3)
    counts = np.bincount(plan.rows[2:].sum(axis=1), minlength=n_units)[2 : n_units - 1]
    np.testing.assert_allclose(counts, 2 * n_pairs / (n_units - 1), atol=6)


def test_every_unit_is_drawn_alike_within_a_size():
    rows = np.concatenate([plan_coalitions(20, 4000, "kernelshap", seed=s).rows[2::2] for s in range(5)])
    of_size = rows[rows.sum(axis=1) == 7]
    assert stats.chisquare(of_size.sum(axis=0)).pvalue > 1e-3


def test_published_sizes_follow_the_shapley_kernel():
    n_units = 12
    rows = plan_coalitions(n_units, 20000, "published", seed=2).rows[2:]
    sizes = np.arange(1, n_units)
    law = 1.0 / (sizes * (n_units - sizes))
    observed = np.bincount(rows.sum(axis=1), minlength=n_units)[1:]
    assert observed.sum() == 20000
    assert stats.chisquare(observed, 20000 * law / law.sum()).pvalue > 1e-3
    assert stats.chisquare(rows[rows.sum(axis=1) == 3].sum(axis=0)).pvalue > 1e-3


@pytest.mark.parametrize("method", ["kernelshap", "published"])
def test_same_seed_same_plan_and_other_seed_other_plan(method):
    first, again, other = (plan_coalitions(15, 100, method, seed=s).rows for s in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert (first[2:] != other[2:]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("method", ["auto", "kernelshap", "published"])
@pytest.mark.parametrize(("n_units", "budget"), [(5, 29), (5, 60), (11, 60), (11, 1024), (40, 101), (40, 1023)])
def test_budget_is_respected(method, n_units, budget):
    assert plan_coalitions(n_units, budget, method).n_evaluations <= budget + 2


@pytest.mark.parametrize("method", METHODS)
def test_full_and_empty_rows_are_where_the_plan_says(method):
    plan = plan_coalitions(6, 62, method)
    assert plan.rows[plan.full_row].all()
    assert not plan.rows[plan.empty_row].any()


@pytest.mark.parametrize(
    ("n_units", "budget", "method"), [(1, 0, "exact"), (6, 62, "exact"), (6, 61, "kernelshap"), (10, 1024, "exact")]
)
def test_auto_enumerates_where_that_is_no_dearer(n_units, budget, method):
    plan = plan_coalitions(n_units, budget)
    assert plan.method == method
    assert plan.reason


def test_exact_plan_holds_every_coalition_once_in_bit_order():
    np.testing.assert_array_equal(plan_coalitions(7, 126, "exact").rows, all_coalitions(7))


@pytest.mark.parametrize("n_units", [3, 4, 5, 8])
def test_all_pairs_are_found_and_weigh_as_the_shapley_kernel(n_units):
    plan = plan_coalitions(n_units, 2**n_units - 2, "kernelshap")
    assert len(np.unique(plan.rows, axis=0)) == 2**n_units
    sizes = plan.rows[2::2].sum(axis=1)
    kernel = np.array([(n_units - 1) / (math.comb(n_units, k) * k * (n_units - k)) for k in sizes])
    np.testing.assert_allclose(plan.weights / plan.weights[0], kernel / kernel[0], rtol=1e-10)
    np.testing.assert_allclose(plan.inclusion, 1.0, rtol=1e-10)


def test_default_budget_enumerates_up_to_ten_units_and_grows_after():
    assert plan_coalitions(10, default_budget(10)).method == "exact"
    assert [default_budget(m) for m in (11, 64, 65, 100)] == [512, 512, 520, 800]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (5, 100, "lime"),
            "unknown method 'lime'; expected one of auto, exact, kernelshap, gaussian_process, ridge, walks, published",
        ),
        ((0, 100), "got 0 units"),
        ((5, 100, "auto", -1), "seed is -1"),
        ((10, 1000, "exact"), r"needs 2\*\*10 = 1024 coalitions; the budget is 1000"),
        ((25, 10**9, "exact"), r"needs 2\*\*25"),
        ((30, 40, "kernelshap"), r"gives 20 pairs .* at least 38. Raise the budget to 76"),
        ((30, 31), r"gives 15 pairs .* 'gaussian_process' needs at least 16. Raise the budget to 32"),
        ((200, 90, "ridge"), r"gives 45 pairs .* at least 50. Raise the budget to 100"),
        ((30, 29, "published"), "budget of 29 is below the number of units, 30"),
        ((1, 100, "kernelshap"), "one unit needs no sampling"),
        ((1, 100, "published"), "one unit needs no sampling"),
    ],
)
def test_refuses_what_can_not_be_planned(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_coalitions(*arguments)


@pytest.mark.parametrize(
    ("n_units", "budget", "method"), [(30, 76, "kernelshap"), (30, 32, "gaussian_process"), (200, 100, "ridge")]
)
def test_the_budget_named_in_the_error_works(n_units, budget, method):
    assert plan_coalitions(n_units, budget, method).n_evaluations == budget + 2


@pytest.mark.parametrize(
    ("n_units", "budget", "method"),
    [
        (20, 512, "kernelshap"),
        (21, 512, "gaussian_process"),
        (500, 4000, "gaussian_process"),
        (501, 4000, "ridge"),
        (100, 4001, "ridge"),
    ],
)
def test_auto_takes_the_estimator_for_the_number_of_units_and_coalitions(n_units, budget, method):
    plan = plan_coalitions(n_units, budget)
    assert plan.method == method
    assert plan.reason
    np.testing.assert_array_equal(plan.rows, plan_coalitions(n_units, budget, "gaussian_process").rows)


@pytest.mark.parametrize("method", ["auto", "kernelshap", "gaussian_process", "ridge", "walks"])
@pytest.mark.parametrize(("n_units", "budget"), [(5, 30), (7, 120), (13, 900), (20, 1000), (40, 1500), (90, 3000)])
def test_every_stop_is_a_plan_of_its_own(n_units, budget, method):
    for seed in range(8):
        plan = plan_coalitions(n_units, budget, method, seed)
        stops = stop_rows(plan)
        assert stops == sorted(set(stops))
        for stop in (n for n in stops if n >= least_rows(plan)):
            few = plan_coalitions(n_units, stop - 2, plan.method, seed)
            assert few.n_evaluations == stop < plan.n_evaluations
            np.testing.assert_array_equal(few.rows, plan.rows[:stop])


@pytest.mark.parametrize(
    ("n_units", "method", "first"), [(40, "kernelshap", 82), (40, "ridge", 82), (10, "walks", 182)]
)
def test_stops_begin_at_two_coalitions_a_unit_and_grow_by_half(n_units, method, first):
    stops = stop_rows(plan_coalitions(n_units, 4000 if n_units == 40 else 900, method))
    assert stops[0] == first
    growth = np.diff(np.log([s - 2 for s in stops]))
    np.testing.assert_allclose(growth, np.log(2) / 2, atol=0.1)


@pytest.mark.parametrize("method", ["exact", "published"])
def test_plans_whose_beginning_is_no_plan_have_no_stop(method):
    assert stop_rows(plan_coalitions(9, 510, method)) == []


@pytest.mark.parametrize("method", ["kernelshap", "published"])
@pytest.mark.parametrize(("n_units", "budget"), [(6, 16), (8, 20), (12, 30), (20, 50), (20, 100)])
def test_a_plan_determines_the_values_or_is_refused_before_any_evaluation(method, n_units, budget):
    accepted = 0
    for seed in range(60):
        try:
            plan = plan_coalitions(n_units, budget, method, seed)
        except ValueError as error:
            assert "budget" in str(error)  # noqa: PT017 (refusal is allowed, not required)
            continue
        accepted += 1
        design = plan.rows[2::2] * 2.0 - 1.0 if method == "kernelshap" else plan.rows[2:] * 1.0
        assert np.linalg.matrix_rank(np.vstack([design, np.ones(n_units)])) == n_units, f"seed {seed}"
    assert accepted == 60 or budget < 3 * n_units


def with_dummies(n_units: int, dummies: list[int], seed: int) -> tuple[DividendGame, np.ndarray]:
    """A game on fewer units, and which of the units they are."""
    visible = np.ones(n_units, bool)
    visible[dummies] = False
    m = int(visible.sum())
    return DividendGame.random(m, tuple({1, min(2, m), min(3, m), min(5, m)}), 6, seed), visible


@pytest.mark.parametrize("dummies", [[0], [2, 5], [0, 1, 2, 3], [0, 1, 3, 4, 5]])
def test_restricted_exact_plan_solves_the_smaller_game(dummies):
    game, visible = with_dummies(6, dummies, seed=1)
    plan = plan_coalitions(6, 64, "exact")
    restricted, rows = restrict_plan(plan, visible)
    np.testing.assert_array_equal(plan.rows[rows][:, visible], restricted.rows)
    estimate = solve(restricted, game(plan.rows[:, visible])[rows])
    assert estimate.method == "exact"
    np.testing.assert_allclose(estimate.values[:, 0], game.shapley, atol=1e-12)


@pytest.mark.parametrize("method", ["kernelshap", "published"])
def test_restricted_rows_are_the_informative_rows_of_the_plan(method):
    plan = plan_coalitions(20, 300, method, seed=8)
    visible = np.zeros(20, bool)
    visible[[1, 4, 9, 13]] = True
    restricted, rows = restrict_plan(plan, visible)
    np.testing.assert_array_equal(plan.rows[rows][:, visible], restricted.rows)
    assert rows.tolist()[:2] == [0, 1]
    mixed = plan.rows[:, visible].any(axis=1) & ~plan.rows[:, visible].all(axis=1)
    np.testing.assert_array_equal(rows[2:], np.flatnonzero(mixed))


def test_restricted_pairs_stay_complements():
    visible = np.arange(20) % 3 == 0
    restricted, _ = restrict_plan(plan_coalitions(20, 300, "kernelshap"), visible)
    np.testing.assert_array_equal(restricted.rows[2::2], ~restricted.rows[3::2])


@pytest.mark.parametrize("method", ["kernelshap", "published"])
@pytest.mark.parametrize("n_visible", [2, 5, 13])
def test_restricted_sampled_plan_recovers_additive_games(method, n_visible):
    plan = plan_coalitions(18, 200, method, seed=2)
    visible = np.arange(18) < n_visible
    effects = np.random.default_rng(n_visible).normal(size=n_visible)
    restricted, rows = restrict_plan(plan, visible)
    estimate = solve(restricted, (3.0 + plan.rows[:, visible] @ effects)[rows, None])
    np.testing.assert_allclose(estimate.values[:, 0], effects, atol=1e-10)


@pytest.mark.parametrize("method", ["kernelshap", "published"])
def test_restricted_plan_for_one_unit_is_exact(method):
    plan = plan_coalitions(9, 80, method)
    restricted, rows = restrict_plan(plan, np.arange(9) == 4)
    scores = np.where(plan.rows[:, 4], 7.0, 2.0)[rows, None]
    assert solve(restricted, scores).values.tolist() == [[5.0]]


def test_restricted_plan_of_all_pairs_is_exact():
    game, visible = with_dummies(7, [1, 4], seed=5)
    plan = plan_coalitions(7, 2**7 - 2, "kernelshap")
    restricted, rows = restrict_plan(plan, visible)
    estimate = solve(restricted, game(plan.rows[:, visible])[rows])
    np.testing.assert_allclose(estimate.values[:, 0], game.shapley, atol=1e-10)


@pytest.mark.parametrize(("n_units", "budget"), [(11, 512), (22, 512)])
def test_restricted_sampled_plan_is_unbiased_with_honest_errors(n_units, budget):
    n_seeds = 60
    visible = np.arange(n_units) >= 2
    table = np.random.default_rng(3).normal(size=(2**9, 1))
    if n_units == 11:
        exact = exact_shapley(table)[:, 0]

        def score(rows):
            return table[rows @ (1 << np.arange(9))]
    else:
        game = DividendGame.random(n_units - 2, (1, 2, 3, 4), 40, seed=9)
        exact, score = game.shapley, game
    values, errors = [], []
    for seed in range(n_seeds):
        plan = plan_coalitions(n_units, budget, "kernelshap", seed)
        restricted, rows = restrict_plan(plan, visible)
        estimate = solve(restricted, score(plan.rows[rows][:, visible]))
        values.append(estimate.values[:, 0])
        errors.append(estimate.standard_errors[:, 0])
    values, errors = np.array(values), np.array(errors)
    inside = np.abs(values - exact) <= 1.96 * errors
    bias = values.mean(axis=0) - exact
    assert np.abs(bias / (values.std(axis=0, ddof=1) / math.sqrt(n_seeds))).max() < 4.0
    assert 0.90 <= inside.mean() <= 0.998


def test_restricting_to_all_units_changes_nothing():
    plan = plan_coalitions(12, 100, "kernelshap")
    restricted, rows = restrict_plan(plan, np.ones(12, bool))
    np.testing.assert_array_equal(restricted.rows, plan.rows)
    np.testing.assert_array_equal(rows, np.arange(plan.n_evaluations))


@pytest.mark.parametrize("units", [np.zeros(6, bool), np.ones(5, bool)])
def test_restriction_needs_units_of_the_plan(units):
    with pytest.raises(ValueError, match=r"expected \(6,\) and at least one"):
        restrict_plan(plan_coalitions(6, 64), units)


def test_restriction_refuses_when_too_few_informative_rows_are_left():
    plan = plan_coalitions(60, 110, "published")
    keep = np.arange(60) < 59
    plan = replace(plan, rows=plan.rows[:50], weights=plan.weights[:48], inclusion=plan.inclusion[:48])
    with pytest.raises(ValueError, match=r"determine only|rests on one of them alone"):
        restrict_plan(plan, keep)


@pytest.mark.parametrize("n_units", [12, 64, 1030, 1600])
def test_weights_follow_the_closed_form_for_any_number_of_units(n_units):
    plan = plan_coalitions(n_units, 4 * n_units, "kernelshap", seed=1)
    size = plan.rows[2::2].sum(axis=1)
    smaller = np.minimum(size, n_units - size)
    drawn = np.bincount(smaller)[smaller]
    of_both = np.where(2 * smaller == n_units, 2, 1)
    expected = 1.0 / (size * (n_units - size) * drawn * of_both)
    np.testing.assert_allclose(plan.weights / plan.weights.mean(), expected / expected.mean(), rtol=1e-12)
    assert np.isfinite(plan.inclusion).all()
