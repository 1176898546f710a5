# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from itertools import pairwise
from math import comb

import numpy as np
import pytest
from metric_oracles import CountingGame, additive_table, aopc_along, over_all_orders, random_table

from monai_segshap.metrics import ScoreMemory, beam_aopc_bounds, exact_aopc_bounds, perturbation_curves
from monai_segshap.metrics.bounds import _most_beam_evaluations


def spike_table() -> np.ndarray:
    """Four units; the best first removal (unit 3) leads nowhere, which a beam of width 1 can not see."""
    table = np.full(16, 10.0)
    table[0b0111] = 9.0  # without unit 3
    table[[0b1100, 0b0100, 0b1000]] = 0.0  # without 0 and 1
    table[0] = 0.0
    return table


@pytest.mark.parametrize("n_units", [1, 2, 3, 4, 5, 6, 7])
def test_dynamic_programming_equals_all_orders(n_units):
    table = random_table(n_units, seed=20 + n_units)
    found = exact_aopc_bounds(table)
    every = over_all_orders(aopc_along, table)
    np.testing.assert_allclose([found.lower, found.upper], [every.min(), every.max()], rtol=0, atol=1e-12)
    assert aopc_along(table, tuple(found.lower_order)) == pytest.approx(found.lower, abs=1e-12)
    assert aopc_along(table, tuple(found.upper_order)) == pytest.approx(found.upper, abs=1e-12)
    assert (found.method, found.beam_width, found.n_evaluations) == ("exact", None, 0)


def test_scores_of_any_sign():
    table = -5.0 - np.abs(random_table(5))
    every = over_all_orders(aopc_along, table)
    found = exact_aopc_bounds(table)
    assert (found.lower, found.upper) == (pytest.approx(every.min()), pytest.approx(every.max()))


def test_fifteen_units_of_an_additive_game():
    values = np.random.default_rng(0).normal(size=15)
    rows = (np.arange(2**15)[:, None] >> np.arange(15)) & 1
    found = exact_aopc_bounds(rows @ values)
    for bound, ordered in ((found.upper, np.sort(values)[::-1]), (found.lower, np.sort(values))):
        assert bound == pytest.approx(np.cumsum(ordered).mean(), abs=1e-12)


# with seed 13 two ways to one set, both kept, would crowd the best order out
@pytest.mark.parametrize(("n_units", "seed"), [(1, 1), (2, 2), (3, 3), (5, 5), (6, 6), (6, 13), (7, 7)])
def test_full_beam_equals_exact(n_units, seed):
    table = random_table(n_units, seed)
    memory = ScoreMemory(CountingGame(table), n_units)
    found = beam_aopc_bounds(memory, comb(n_units, n_units // 2))
    exact = exact_aopc_bounds(table)
    np.testing.assert_allclose([found.lower, found.upper], [exact.lower, exact.upper], rtol=0, atol=1e-12)
    assert "every coalition" in found.reason
    assert found.n_evaluations == 2**n_units


@pytest.mark.parametrize("width", [1, 2, 5, 50])
def test_beams_lie_within_the_bounds_are_attained_and_ask_no_coalition_twice(width):
    table = random_table(8, seed=4)
    game = CountingGame(table)
    found = beam_aopc_bounds(ScoreMemory(game, 8), width)
    exact = exact_aopc_bounds(table)
    assert exact.lower - 1e-12 <= found.lower <= found.upper <= exact.upper + 1e-12
    assert aopc_along(table, tuple(found.upper_order)) == pytest.approx(found.upper, abs=1e-12)
    assert aopc_along(table, tuple(found.lower_order)) == pytest.approx(found.lower, abs=1e-12)
    assert len(game.asked) == len(set(game.asked)) == found.n_evaluations
    assert len(game.calls) <= 9
    assert (found.method, found.beam_width) == ("beam", width)


def test_wider_beams_find_at_least_as_much_here():
    memory = ScoreMemory(CountingGame(random_table(9, seed=7)), 9)
    ranges = [(b.lower, b.upper) for b in (beam_aopc_bounds(memory, w) for w in (1, 4, 16, 126))]
    assert all(a[0] >= b[0] - 1e-12 and a[1] <= b[1] + 1e-12 for a, b in pairwise(ranges))
    assert ranges[0][1] < ranges[-1][1]


def test_narrow_beam_by_hand():
    # the most: unit 3 first (drop 1), then no second unit drops anything, the third 10, the last 10
    found = beam_aopc_bounds(ScoreMemory(CountingGame(spike_table()), 4), 1)
    assert found.upper == pytest.approx((1 + 0 + 10 + 10) / 4)
    # best: 0 and 1 first: drops 0, 10, 10, 10
    assert exact_aopc_bounds(spike_table()).upper == pytest.approx((0 + 10 + 10 + 10) / 4)


def test_an_order_beyond_the_beam_is_not_clipped_and_says_so():
    game, values = CountingGame(spike_table()), np.array([4.0, 3.0, 2.0, 1.0])
    found = perturbation_curves(game, values, bounds="beam", beam_width=1)
    assert found.aopc == 7.5
    assert found.naopc > 1.0
    assert "raise beam_width (now 1)" in found.notes["naopc"]
    assert perturbation_curves(game, values).naopc == 1.0
    wide = perturbation_curves(game, values, bounds="beam", beam_width=6)
    assert (wide.naopc, wide.notes) == (1.0, {})


def test_auto_goes_from_exact_to_beam_to_none_as_the_budget_shrinks():
    table, values = random_table(10), np.arange(10.0)
    known = ScoreMemory(CountingGame(table), 10)
    for budget, method in ((1004, "exact"), (1003, "beam"), (200, "none")):
        game = CountingGame(table)
        found = perturbation_curves(game, values, budget=budget, beam_width=3)
        assert found.bounds.method == method
        assert found.bounds.n_evaluations <= budget
        assert found.n_evaluations == len(set(game.asked)) == 20 + found.bounds.n_evaluations
        assert perturbation_curves(known.score(0), values, budget=budget, known=table).bounds.method == "exact"
    asked = perturbation_curves(CountingGame(table), values, bounds="exact", budget=0)
    assert (asked.bounds.method, asked.n_evaluations) == ("exact", 1024)


@pytest.mark.parametrize("n_units", [2, 3, 6, 9])
@pytest.mark.parametrize("width", [1, 3, 200])
def test_beam_asks_for_no_more_than_announced(n_units, width):
    memory = ScoreMemory(CountingGame(random_table(n_units)), n_units)
    found = beam_aopc_bounds(memory, width)
    assert found.n_evaluations <= _most_beam_evaluations(n_units, width) + 2 <= 2**n_units


def test_more_units_than_can_be_enumerated():
    weights = np.random.default_rng(0).normal(size=40)

    def game(rows):
        return rows @ weights

    found = perturbation_curves(game, weights, bounds="beam", beam_width=1)
    assert found.bounds.method == "beam"
    assert found.naopc == pytest.approx(1.0)
    assert found.sufficiency == pytest.approx(0.0, abs=1e-12)
    none = perturbation_curves(game, weights, budget=100)
    assert none.bounds.method == "none"
    assert "below all 2**40" in none.notes["naopc"]
    assert len(none.table()) == 41
    with pytest.raises(ValueError, match=r"40 units need all .* at most 20 units"):
        perturbation_curves(game, weights, bounds="exact")
    large = perturbation_curves(lambda rows: rows.sum(axis=1) + rows[:, 0], np.arange(1100.0))
    assert large.bounds.method == "none"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(6), r"shape \(6,\); expected \(2\*\*M,\)"),
        (np.zeros(1), "expected"),
        (np.zeros((4, 1)), r"shape \(4, 1\)"),
        (np.array([0.0, np.nan]), "1 of 2 values are not finite"),
    ],
)
def test_bad_tables(values, message):
    with pytest.raises(ValueError, match=message):
        exact_aopc_bounds(values)


def test_bad_width():
    with pytest.raises(ValueError, match="beam_width is 0"):
        beam_aopc_bounds(ScoreMemory(CountingGame(additive_table(np.ones(2))), 2), 0)
