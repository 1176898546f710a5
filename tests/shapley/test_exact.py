# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapley_oracles import DividendGame, by_orderings

from monai_segshap.shapley import MAX_EXACT_UNITS, all_coalitions, exact_shapley

SCORES = st.floats(-1e3, 1e3, allow_nan=False, width=32)
TABLES = st.integers(1, 5).flatmap(lambda m: arrays(np.float64, 2**m, elements=SCORES))


def random_table(n_units: int, seed: int = 0, n_scores: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2**n_units, n_scores))


@pytest.mark.parametrize("n_units", [1, 2, 3, 4, 5, 6, 7])
def test_equals_mean_over_all_orderings(n_units):
    table = random_table(n_units, seed=n_units)[:, 0]
    np.testing.assert_allclose(exact_shapley(table), by_orderings(table), rtol=0, atol=1e-10)


def test_glove_game():
    left_and_right = [0, 0, 0, 1, 0, 1, 0, 1]
    np.testing.assert_allclose(exact_shapley(np.array(left_and_right)), [2 / 3, 1 / 6, 1 / 6], atol=1e-15)


def test_majority_game():
    at_least_two = [0, 0, 0, 1, 0, 1, 1, 1]
    np.testing.assert_allclose(exact_shapley(np.array(at_least_two)), [1 / 3] * 3, atol=1e-15)


def test_weighted_vote_with_a_veto_player():
    unit_2_and_one_other = [0, 0, 0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(exact_shapley(np.array(unit_2_and_one_other)), [1 / 6, 1 / 6, 2 / 3], atol=1e-15)


def test_unit_0_is_the_lowest_bit():
    empty, only_0, only_1, both = 0.0, 1.0, 10.0, 11.0
    np.testing.assert_allclose(exact_shapley(np.array([empty, only_0, only_1, both])), [1.0, 10.0])


def test_all_coalitions_rows_are_bit_masks():
    expected = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]]
    rows = all_coalitions(3)
    assert rows.dtype == bool
    assert rows.astype(int).tolist() == expected


def test_all_coalitions_are_distinct():
    assert len(np.unique(all_coalitions(9), axis=0)) == 512


@pytest.mark.parametrize("n_units", [0, -1, MAX_EXACT_UNITS + 1])
def test_all_coalitions_refuses_what_can_not_be_enumerated(n_units):
    with pytest.raises(ValueError, match=f"coalitions of {n_units} units; expected 1 to {MAX_EXACT_UNITS}"):
        all_coalitions(n_units)


@pytest.mark.parametrize("seed", range(3))
def test_dividends_are_shared_equally(seed):
    game = DividendGame.random(8, (1, 2, 3, 5, 8), 4, seed)
    np.testing.assert_allclose(exact_shapley(game(all_coalitions(8)))[:, 0], game.shapley, atol=1e-12)


@given(TABLES)
@settings(derandomize=True)
def test_values_sum_to_full_minus_empty(table):
    assert exact_shapley(table).sum() == pytest.approx(table[-1] - table[0], abs=1e-8)


@given(st.integers(2, 5), st.data())
@settings(max_examples=30, derandomize=True)
def test_dummy_gets_exactly_zero(n_units, data):
    dummy = data.draw(st.integers(0, n_units - 1))
    table = data.draw(arrays(np.float64, 2**n_units, elements=SCORES))
    index = np.arange(2**n_units)
    values = exact_shapley(table[index & ~(1 << dummy)])
    assert values[dummy] == 0.0


@given(st.integers(2, 5), st.data())
@settings(max_examples=30, derandomize=True)
def test_relabeling_units_relabels_values(n_units, data):
    table = data.draw(arrays(np.float64, 2**n_units, elements=SCORES))
    order = data.draw(st.permutations(range(n_units)))
    relabeled = np.empty_like(table)
    for mask in range(2**n_units):
        relabeled[sum(2**new for new, old in enumerate(order) if mask >> old & 1)] = table[mask]
    np.testing.assert_allclose(exact_shapley(relabeled), exact_shapley(table)[list(order)], atol=1e-8)


def test_interchangeable_units_get_equal_values():
    rows = all_coalitions(5)
    score = np.random.default_rng(1).normal(size=(3, 2, 2, 2))
    table = score[rows[:, 1].astype(int) + rows[:, 4], rows[:, 0].astype(int), rows[:, 2].astype(int), 0]
    values = exact_shapley(table)
    assert values[1] == pytest.approx(values[4], abs=1e-14)
    assert abs(values[1] - values[0]) > 1e-3


@given(st.integers(1, 5), st.floats(-5, 5), st.floats(-5, 5), st.integers(0, 2**16))
@settings(max_examples=30, derandomize=True)
def test_linear_in_the_game(n_units, a, b, seed):
    first, second = random_table(n_units, seed), random_table(n_units, seed + 1)
    combined = exact_shapley(a * first + b * second)
    np.testing.assert_allclose(combined, a * exact_shapley(first) + b * exact_shapley(second), atol=1e-12)


def test_columns_are_independent_scores():
    table = random_table(4, n_scores=3)
    values = exact_shapley(table)
    assert values.shape == (4, 3)
    for score in range(3):
        np.testing.assert_allclose(values[:, score], by_orderings(table[:, score]), atol=1e-12)


def test_one_dimensional_input_gives_one_dimensional_values():
    table = random_table(4)
    assert exact_shapley(table[:, 0]).shape == (4,)
    np.testing.assert_array_equal(exact_shapley(table[:, 0]), exact_shapley(table)[:, 0])


def test_single_precision_scores_are_summed_in_double():
    table = random_table(7, seed=3).astype(np.float32)
    values = exact_shapley(table)
    assert values.dtype == np.float64
    assert values.sum() == pytest.approx(float(table[-1, 0]) - float(table[0, 0]), abs=1e-12)


def test_input_is_left_alone():
    table = random_table(3)
    before = table.copy()
    exact_shapley(table)
    np.testing.assert_array_equal(table, before)


@pytest.mark.parametrize("n_rows", [0, 1, 3, 6, 31])
def test_refuses_a_number_of_rows_that_is_no_power_of_two(n_rows):
    with pytest.raises(ValueError, match=rf"got {n_rows} rows; expected 2\*\*M"):
        exact_shapley(np.zeros((n_rows, 1)))


def test_refuses_three_dimensions():
    with pytest.raises(ValueError, match=r"shape \(4, 1, 1\); expected \(2\*\*M, T\) or \(2\*\*M,\)"):
        exact_shapley(np.zeros((4, 1, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_names_the_coalition_that_is_not_finite(bad):
    table = np.zeros((8, 2))
    table[3, 1] = bad
    with pytest.raises(ValueError, match=r"coalition 011 \(unit 0 rightmost\) is not finite"):
        exact_shapley(table)
