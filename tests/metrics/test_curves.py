# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_oracles import (
    CountingGame,
    abpc_along,
    additive_table,
    aopc_along,
    curve_along,
    over_all_orders,
    random_table,
    ranks_as_attributions,
)

from monai_segshap.metrics import ScoreMemory, curve_coalitions, perturbation_curves
from monai_segshap.shapley import all_coalitions, exact_shapley, plan_coalitions
from monai_segshap.shapley.walks import walk_order

CLOSE = {"rtol": 0, "atol": 1e-12}


def test_three_units_by_hand():
    # bits: unit 0 lowest; {0}: 1, {1}: 2, {0,1}: 6, {2}: 0, {0,2}: 3, {1,2}: 4, all: 10, none: 0
    table = np.array([0.0, 1.0, 2.0, 6.0, 0.0, 3.0, 4.0, 10.0])
    found = perturbation_curves(CountingGame(table), np.array([0.5, 2.0, -1.0]), volumes=np.array([1.0, 2.0, 5.0]))
    assert found.morf_order.tolist() == [1, 0, 2]
    assert found.lerf_order.tolist() == [2, 0, 1]
    assert found.removed.tolist() == [0, 1, 2, 3]
    assert found.morf.tolist() == [10.0, 3.0, 0.0, 0.0]
    assert found.lerf.tolist() == [10.0, 6.0, 2.0, 0.0]
    assert found.morf_volume.tolist() == [0.0, 0.25, 0.375, 1.0]
    assert found.lerf_volume.tolist() == [0.0, 0.625, 0.75, 1.0]
    assert found.aopc == pytest.approx((7 + 10 + 10) / 3)
    assert found.aopc_lerf == pytest.approx((4 + 8 + 10) / 3)
    assert found.abpc == pytest.approx((3 + 2 + 0) / 3)
    assert found.aopc_endpoint_normalized == pytest.approx(27 / 30)
    assert found.abpc_endpoint_normalized == pytest.approx(5 / 30)
    # orders 012: 4->6, 10; 021: 6, 8; 102: 7, 10; 120: 7, 9; 201: 4, 8; 210: 4, 9
    assert found.bounds.lower == pytest.approx((4 + 8 + 10) / 3)
    assert found.bounds.upper == pytest.approx(27 / 3)
    assert found.bounds.lower_order.tolist() == [2, 0, 1]
    assert found.bounds.upper_order.tolist() == [1, 0, 2]
    assert found.naopc == found.comprehensiveness == 1.0
    assert found.sufficiency == 0.0
    assert found.notes == {}


@pytest.mark.parametrize("n_units", [2, 3, 4, 5, 6])
def test_every_number_equals_loops_over_all_orders(n_units):
    table = random_table(n_units, seed=n_units)
    values = np.random.default_rng(n_units + 50).normal(size=n_units)
    found = perturbation_curves(CountingGame(table), values)
    morf = tuple(sorted(range(n_units), key=lambda unit: -values[unit]))
    every = over_all_orders(aopc_along, table)
    np.testing.assert_allclose(found.morf, curve_along(table, morf), **CLOSE)
    np.testing.assert_allclose(found.lerf, curve_along(table, morf[::-1]), **CLOSE)
    np.testing.assert_allclose(found.aopc, aopc_along(table, morf), **CLOSE)
    np.testing.assert_allclose(found.aopc_lerf, aopc_along(table, morf[::-1]), **CLOSE)
    np.testing.assert_allclose(found.abpc, abpc_along(table, morf), **CLOSE)
    np.testing.assert_allclose(found.abpc, found.aopc - found.aopc_lerf, **CLOSE)
    np.testing.assert_allclose([found.bounds.lower, found.bounds.upper], [every.min(), every.max()], **CLOSE)
    naopc = (aopc_along(table, morf) - every.min()) / (every.max() - every.min())
    np.testing.assert_allclose(found.naopc, naopc, **CLOSE)
    sufficiency = (aopc_along(table, morf[::-1]) - every.min()) / (every.max() - every.min())
    np.testing.assert_allclose(found.sufficiency, sufficiency, **CLOSE)


def test_identity_9_normalizing_the_scores_first_gives_the_same():
    table = random_table(5, seed=3)
    found = perturbation_curves(CountingGame(table), exact_shapley(table))
    low, high = table[0], table[-1]
    morf, lerf = ((curve - low) / (high - low) for curve in (found.morf, found.lerf))
    np.testing.assert_allclose(found.aopc_endpoint_normalized, (1 - morf[1:]).mean(), **CLOSE)
    np.testing.assert_allclose(found.abpc_endpoint_normalized, (lerf[1:] - morf[1:]).mean(), **CLOSE)


@pytest.mark.parametrize("empty", [0.0, -7.5])
def test_in_an_additive_game_the_values_attain_the_bounds(empty):
    values = np.array([0.4, -1.0, 2.5, 0.0, 0.7, -0.2, 1.1])
    table = additive_table(values, empty)
    found = perturbation_curves(CountingGame(table), exact_shapley(table))
    assert found.naopc == pytest.approx(1.0, abs=1e-12)
    assert found.sufficiency == pytest.approx(0.0, abs=1e-12)
    against = perturbation_curves(CountingGame(table), -values)
    assert against.naopc == pytest.approx(0.0, abs=1e-12)
    assert against.sufficiency == pytest.approx(1.0, abs=1e-12)
    by_size = perturbation_curves(CountingGame(table), np.abs(values))
    assert 0.0 < by_size.naopc < 1.0  # signed, not absolute values rank


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 10**6), st.booleans())
def test_reversed_attributions_flip_the_sign_of_abpc_and_swap_the_curves(n_units, seed, tied):
    rng = np.random.default_rng(seed)
    values = rng.integers(-1, 2, n_units).astype(float) if tied else rng.normal(size=n_units)
    game = CountingGame(rng.normal(size=2**n_units))
    one, other = perturbation_curves(game, values), perturbation_curves(game, -values)
    assert other.abpc == -one.abpc
    assert (other.morf.tolist(), other.lerf.tolist()) == (one.lerf.tolist(), one.morf.tolist())


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_relabeling_the_units_changes_nothing(n_units, seed):
    rng = np.random.default_rng(seed)
    table, values = rng.normal(size=2**n_units), rng.normal(size=n_units)
    volumes, new = rng.uniform(1.0, 5.0, n_units), rng.permutation(n_units)
    rows = all_coalitions(n_units)
    # unit u becomes unit new[u]
    moved = np.empty(2**n_units)
    moved[rows.astype(int) @ 2**new] = table
    place = np.argsort(new)
    one = perturbation_curves(CountingGame(table), values, volumes=volumes)
    other = perturbation_curves(CountingGame(moved), values[place], volumes=volumes[place])
    for name in ("morf", "lerf", "morf_volume", "lerf_volume", "aopc", "abpc", "abpc_endpoint_normalized"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), **CLOSE)
    np.testing.assert_allclose([other.naopc, other.sufficiency], [one.naopc, one.sufficiency], rtol=0, atol=1e-9)
    assert other.morf_order.tolist() == new[one.morf_order].tolist()


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(0.01, 100.0), st.floats(-50.0, 50.0))
def test_normalized_numbers_know_neither_scale_nor_offset_of_the_score(n_units, seed, scale, offset):
    rng = np.random.default_rng(seed)
    table, values = rng.normal(size=2**n_units), rng.normal(size=n_units)
    table[0] = table[-1] - 1.0 - table[0] ** 2
    one = perturbation_curves(CountingGame(table), values)
    other = perturbation_curves(CountingGame(offset + scale * table), values)
    for name in ("naopc", "sufficiency", "aopc_endpoint_normalized", "abpc_endpoint_normalized"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-6, atol=1e-6)
    assert 0.0 <= one.naopc <= 1.0


def test_ties_go_by_unit_number_in_both_directions():
    found = perturbation_curves(CountingGame(random_table(5)), np.array([1.0, 0.0, 1.0, -0.0, 3.0]))
    assert found.morf_order.tolist() == [4, 0, 2, 1, 3]
    assert found.lerf_order.tolist() == [1, 3, 0, 2, 4]
    assert found.n_tied == 4
    nothing_said = perturbation_curves(CountingGame(random_table(5)), np.zeros(5))
    assert nothing_said.abpc == 0.0
    assert nothing_said.n_tied == 5


# control


@pytest.mark.parametrize("n_units", [2, 3, 4, 5, 6])
def test_mean_abpc_over_all_orders_is_0(n_units):
    table = random_table(n_units, seed=n_units)
    game = CountingGame(table)
    every = [
        perturbation_curves(game, ranks_as_attributions(order), bounds="none").abpc
        for order in permutations(range(n_units))
    ]
    np.testing.assert_allclose(every, over_all_orders(abpc_along, table), **CLOSE)
    assert math.fsum(every) / len(every) == pytest.approx(0.0, abs=1e-13)
    assert np.ptp(every) > 0.01


def test_random_control_equals_loops_and_its_mean_is_0_within_its_standard_error():
    table = random_table(6, seed=1)
    found = perturbation_curves(CountingGame(table), exact_shapley(table), random_orders=400, seed=5)
    control = found.random
    assert control.orders.shape == (400, 6)
    assert (np.sort(control.orders, axis=1) == np.arange(6)).all()
    for j in (0, 17, 399):
        order = tuple(control.orders[j].tolist())
        np.testing.assert_allclose(control.curves[j], curve_along(table, order), **CLOSE)
        np.testing.assert_allclose(control.curves[400 + j], curve_along(table, order[::-1]), **CLOSE)
        np.testing.assert_allclose(control.abpc[j], abpc_along(table, order), **CLOSE)
        np.testing.assert_allclose(control.aopc[j], aopc_along(table, order), **CLOSE)
    every = over_all_orders(aopc_along, table)
    np.testing.assert_allclose(control.naopc, (control.aopc - every.min()) / np.ptp(every), **CLOSE)
    assert abs(control.abpc.mean()) < 3.0 * control.abpc_spread / 20.0
    assert control.abpc_spread == pytest.approx(over_all_orders(abpc_along, table).std(), rel=0.15)
    np.testing.assert_allclose(control.mean_curve, control.curves.sum(axis=0) / 800)
    # all 64 coalitions are there: orders cost nothing more
    assert found.n_evaluations == 64


def test_more_random_orders_extend_fewer_and_the_seed_changes_them():
    game = CountingGame(random_table(8))
    few, many, other = (
        perturbation_curves(game, np.arange(8.0), bounds="none", random_orders=n, seed=seed).random.orders
        for n, seed in ((3, 0), (5, 0), (3, 1))
    )
    assert (many[:3] == few).all()
    assert (other != few).any()
    assert perturbation_curves(game, np.arange(8.0), random_orders=0).random is None


def test_control_orders_are_not_the_walks_that_attributions_may_rest_on():
    orders = perturbation_curves(CountingGame(random_table(8)), np.arange(8.0), random_orders=4).random.orders
    walks = [walk_order(8, 0, pair).tolist() for pair in range(4)]
    assert not [order for order in orders.tolist() if order in walks or order[::-1] in walks]


def test_one_random_order_has_no_spread_of_abpc():
    found = perturbation_curves(CountingGame(random_table(4)), np.arange(4.0), random_orders=1)
    assert math.isnan(found.random.abpc_spread)


# what is asked of the game


def test_each_distinct_coalition_is_asked_once_in_two_calls():
    game = CountingGame(random_table(6))
    found = perturbation_curves(game, np.array([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]), random_orders=4)
    assert len(game.calls) == found.n_calls == 2
    assert len(game.asked) == len(set(game.asked)) == found.n_evaluations == 64
    assert found.bounds.n_evaluations == len(game.calls[1])
    assert found.n_reused == 0


def test_curves_alone_ask_for_2m_coalitions_and_curve_coalitions_lists_them():
    game, values = CountingGame(random_table(9)), np.random.default_rng(0).normal(size=9)
    found = perturbation_curves(game, values, bounds="none")
    assert len(game.calls) == 1
    assert found.n_evaluations == len(set(game.asked)) == 2 * 9
    listed = curve_coalitions(values)
    assert sorted((listed.astype(int) @ 2 ** np.arange(9)).tolist()) == sorted(game.asked)
    more = CountingGame(game.table)
    perturbation_curves(more, values, bounds="none", random_orders=3, seed=2)
    assert len(curve_coalitions(values, 3, 2)) == len(more.asked)


def test_a_table_of_all_coalitions_needs_no_game():
    table, values = random_table(6), np.random.default_rng(1).normal(size=6)
    game = CountingGame(table)
    found = perturbation_curves(None, values, known=table, random_orders=3)
    asked = perturbation_curves(game, values, random_orders=3)
    assert (found.n_evaluations, found.n_calls, found.n_reused) == (0, 0, 64)
    assert found.summary() == {**asked.summary(), "evaluations": 0, "reused": 64, "bound_evaluations": 0}
    column = perturbation_curves(None, values, known=table[:, None])
    assert column.naopc == found.naopc


def test_stored_coalitions_are_not_asked_again():
    table, values = random_table(7), np.random.default_rng(1).normal(size=7)
    rows = plan_coalitions(7, 40, "kernelshap").rows
    stored = set((rows.astype(int) @ 2 ** np.arange(7)).tolist())
    game = CountingGame(table)
    known = (np.concatenate([rows, rows[:5]]), np.concatenate([CountingGame(table)(rows), np.full(5, 99.0)]))
    found = perturbation_curves(game, values, known=known)
    assert not stored & set(game.asked)
    assert found.n_evaluations == len(game.asked) == 128 - len(stored)
    assert found.n_reused == len(stored)
    assert found.naopc == perturbation_curves(None, values, known=table).naopc


def test_one_memory_serves_several_scores():
    tables = np.stack([random_table(6, 1), random_table(6, 2)], axis=1)
    asked = []

    def game(rows):
        asked.append(len(rows))
        return tables[rows.astype(int) @ 2 ** np.arange(6)]

    memory = ScoreMemory(game, 6)
    first, second = (perturbation_curves(memory.score(t), exact_shapley(tables[:, t])) for t in (0, 1))
    assert sum(asked) == memory.n_evaluations == 64
    for t, found in enumerate((first, second)):
        alone = perturbation_curves(CountingGame(tables[:, t]), exact_shapley(tables[:, t]))
        assert found.naopc == alone.naopc


# NaN with a reason


def test_equal_ends_have_no_endpoint_normalization():
    table = random_table(4)
    table[0] = table[-1] + 1e-5
    found = perturbation_curves(CountingGame(table), np.arange(4.0))
    assert math.isnan(found.aopc_endpoint_normalized)
    assert math.isnan(found.abpc_endpoint_normalized)
    assert set(found.notes) == {"aopc_endpoint_normalized", "abpc_endpoint_normalized"}
    assert "normalizes nothing" in found.notes["abpc_endpoint_normalized"]
    assert math.isfinite(found.naopc)
    finer = perturbation_curves(CountingGame(table), np.arange(4.0), tolerance=1e-7)
    assert finer.aopc_endpoint_normalized == pytest.approx(-finer.aopc / 1e-5, rel=1e-6)
    assert "rises" in finer.notes["aopc_endpoint_normalized"]


def test_constant_game_has_curves_but_no_normalized_number():
    found = perturbation_curves(CountingGame(np.full(16, 3.0)), np.arange(4.0))
    assert (found.aopc, found.abpc) == (0.0, 0.0)
    for name in ("aopc_endpoint_normalized", "abpc_endpoint_normalized", "naopc", "sufficiency"):
        assert math.isnan(getattr(found, name))
        assert found.notes[name].startswith("NaN: ")


def test_game_of_the_size_alone_has_no_naopc():
    size = all_coalitions(5).sum(axis=1)
    found = perturbation_curves(CountingGame(size**2.0), np.arange(5.0))
    assert math.isnan(found.naopc)
    assert "every order" in found.notes["naopc"]
    assert found.aopc_endpoint_normalized == pytest.approx((9 + 16 + 21 + 24 + 25) / 125)
    rounding = np.random.default_rng(0).uniform(-1e-6, 1e-6, 32)
    assert math.isnan(perturbation_curves(CountingGame(size**2.0 + rounding), np.arange(5.0)).naopc)


def test_one_unit_has_one_order():
    found = perturbation_curves(CountingGame(np.array([1.0, 4.0])), np.array([2.0]), volumes=np.array([7.0]))
    assert (found.aopc, found.abpc, found.aopc_endpoint_normalized) == (3.0, 0.0, 1.0)
    assert found.n_evaluations == 2
    assert math.isnan(found.naopc)
    assert "every order" in found.notes["naopc"]


def test_bounds_beyond_the_budget_are_nan_and_say_what_they_need():
    game = CountingGame(random_table(8))
    found = perturbation_curves(game, np.arange(8.0), budget=100)
    assert found.n_evaluations == 16
    assert found.bounds.method == "none"
    assert math.isnan(found.naopc)
    assert "budget of 100 coalitions is below the 240 of all 2**8" in found.notes["naopc"]


# bad input


def one_score(rows):
    return rows.sum(axis=1).astype(float)


@pytest.mark.parametrize(
    ("attributions", "message"),
    [
        (np.array([1.0, np.nan, 0.0]), r"units \[1\] .* not finite; expected finite"),
        (np.array([np.inf, 0.0]), r"units \[0\]"),
        (np.zeros((3, 2)), r"shape \(3, 2\); expected \(M,\).*choose a column"),
        (np.array(1.0), r"shape \(\); expected \(M,\)"),
        (np.empty(0), "nothing to remove without at least one unit"),
    ],
)
def test_bad_attributions(attributions, message):
    with pytest.raises(ValueError, match=message):
        perturbation_curves(one_score, attributions)
    with pytest.raises(ValueError, match=message):
        curve_coalitions(attributions)


@pytest.mark.parametrize(
    ("game", "message"),
    [
        (lambda rows: np.zeros((len(rows), 2)), r"shape \(6, 2\); expected 1 score.*Choose a column"),
        (lambda rows: np.zeros(len(rows) - 1), r"shape \(5,\); expected \(6,\) or \(6, T\)"),
        (lambda rows: 1.0, r"shape \(\); expected \(6,\)"),
        (
            lambda rows: np.where(rows.sum(axis=1) == 1, np.nan, 1.0),
            r"not finite for 2 of 6 coalitions; the first keeps the units \[0\] of 3",
        ),
    ],
)
def test_bad_games(game, message):
    with pytest.raises(ValueError, match=message):
        perturbation_curves(game, np.arange(3.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"volumes": np.ones(4)}, r"volumes have shape \(4,\); expected \(3,\)"),
        ({"volumes": np.array([1.0, -1.0, 1.0])}, "volumes are .* >= 0"),
        ({"volumes": np.zeros(3)}, "sum above 0"),
        ({"known": np.zeros(7)}, r"known has shape \(7,\).*2\*\*3 rows"),
        ({"known": np.full(8, np.nan)}, "known scores are not finite for 8 of 8"),
        ({"known": (np.ones((2, 4), bool), np.ones(2))}, r"known coalitions have shape \(2, 4\); expected \(K, 3\)"),
        ({"known": (np.ones((2, 3), bool), np.ones(3))}, r"known scores have shape \(3,\); expected \(2,\)"),
        ({"known": (np.full((2, 3), 0.5), np.ones(2))}, "values other than 0 and 1"),
        ({"known": (np.ones((2, 3), bool),)}, "tuple of 1"),
        ({"bounds": "best"}, "'best'; expected one of auto, exact, beam, none"),
        ({"beam_width": 0}, "beam_width 0; expected"),
        ({"budget": -1}, "budget is -1"),
        ({"random_orders": -1}, "random_orders is -1"),
        ({"seed": -1}, "seed -1"),
        ({"tolerance": math.nan}, "tolerance is nan"),
    ],
)
def test_bad_options_are_refused_before_the_game_is_asked(options, message):
    def never(rows):
        raise RuntimeError("asked")

    with pytest.raises(ValueError, match=message):
        perturbation_curves(never, np.arange(3.0), **options)


def test_without_a_game_everything_must_be_known():
    known = (np.array([[True, True], [False, False]]), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="2 coalitions are not among the 2 known ones, and game is None"):
        perturbation_curves(None, np.arange(2.0), known=known)


def test_game_may_return_a_column_or_integers():
    flat = perturbation_curves(one_score, np.arange(3.0))
    column = perturbation_curves(lambda rows: rows.sum(axis=1, keepdims=True), np.arange(3.0))
    assert flat.morf.tolist() == column.morf.tolist()
    assert column.morf.dtype == np.float64


def test_table_and_summary():
    found = perturbation_curves(
        CountingGame(random_table(4)), np.arange(4.0), volumes=np.array([1.0, 1.0, 1.0, 7.0]), random_orders=2
    )
    table = found.table()
    assert table["removed_share"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert table["morf_volume_share"].tolist() == pytest.approx([0.0, 0.7, 0.8, 0.9, 1.0])
    assert table["random_sd"].tolist()[0] == 0.0
    names = "removed removed_share morf lerf morf_volume_share lerf_volume_share random_mean random_sd"
    assert " ".join(table) == names
    summary = found.summary()
    assert summary["bounds"] == "exact"
    assert summary["naopc"] == found.naopc
    assert summary["random_orders"] == 2
    assert "morf_volume_share" not in perturbation_curves(one_score, np.arange(3.0)).table()
