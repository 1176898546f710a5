# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Agreement and rank variance against hand cases, all orders, and scipy."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from monai_segshap.metrics import (
    rank_agreement,
    rank_agreement_report,
    rank_variance,
    rank_variance_report,
    ranks_of,
)

ORDERS = {n: np.array(list(permutations(range(1, n + 1))), float) for n in (2, 3, 4, 5)}


def agreement_by_hand(ranks, reference):
    return 1 - sum(abs(r - k) for r, k in zip(ranks, reference, strict=True)) / (len(ranks) ** 2 // 2)


def test_largest_signed_value_has_rank_one_and_ties_share():
    np.testing.assert_array_equal(ranks_of([0.1, 0.7, -0.9, 0.3]), [3, 1, 4, 2])
    np.testing.assert_array_equal(ranks_of([0.1, 0.7, 0.1, 0.0]), [2.5, 1, 2.5, 4])
    np.testing.assert_array_equal(ranks_of([5.0, 5.0, 5.0]), [2, 2, 2])
    table = np.random.default_rng(0).normal(size=(3, 5, 4))
    found = ranks_of(table)
    for place in np.ndindex(3, 5):
        row = table[place]
        assert found[place].tolist() == [1 + sum(other > value for other in row) for value in row]
    assert np.isnan(ranks_of([[0.0, np.nan, 1.0], [1.0, 2.0, 3.0]])).tolist() == [[True] * 3, [False] * 3]


def test_identity_is_one_and_reversal_zero():
    for n in range(2, 9):
        values = np.arange(n, 0, -1.0)
        assert rank_agreement(values, np.arange(1, n + 1)) == 1.0
        assert rank_agreement(-values, np.arange(1, n + 1)) == 0.0


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_order_equals_the_formula_by_hand_and_the_mean_is_the_chance_level(n):
    reference = np.arange(1, n + 1)
    found = rank_agreement(-ORDERS[n], reference)  # the smallest rank from the largest value
    assert found.shape == (math.factorial(n),)
    np.testing.assert_allclose(found, [agreement_by_hand(row, reference) for row in ORDERS[n]], atol=1e-15)
    report = rank_agreement_report(-ORDERS[n][1], reference)
    assert report.chance == pytest.approx(found.mean(), abs=1e-15)
    assert report.chance == pytest.approx(1 - (n * n - 1) / 3 / (n * n // 2))


def test_four_contrasts_have_the_levels_of_the_paper():
    found = rank_agreement(-ORDERS[4], [1, 2, 3, 4])
    assert Counter(found.round(6)) == {0.0: 4, 0.25: 9, 0.5: 7, 0.75: 3, 1.0: 1}
    assert found.mean() == pytest.approx(0.375)
    assert rank_agreement_report(-ORDERS[4][0], [1, 2, 3, 4]).chance == pytest.approx(0.375)


@pytest.mark.parametrize("reference", [[1, 2, 3, 4], [1, 2.5, 2.5, 4], [4, 1.5, 3, 1.5]])
@pytest.mark.parametrize("values", [[0.4, 0.1, 0.2, -0.3], [0.4, 0.1, 0.1, -0.3], [0.0, 0.0, 0.0, 0.5]])
def test_report_equals_enumeration_and_scipy(values, reference):
    report = rank_agreement_report(values, reference)
    ranks = stats.rankdata(-np.array(values))
    orders = [agreement_by_hand(order, reference) for order in permutations(ranks)]
    assert float(report) == report.agreement == rank_agreement(values, reference)
    assert report.agreement == pytest.approx(agreement_by_hand(ranks, reference))
    assert report.chance == pytest.approx(sum(orders) / 24)
    assert report.p_value == pytest.approx(sum(a >= report.agreement - 1e-9 for a in orders) / 24)
    assert report.p_method == "exact"
    assert report.spearman == pytest.approx(stats.spearmanr(ranks, reference).statistic)
    assert report.kendall == pytest.approx(stats.kendalltau(ranks, reference).statistic)
    assert ("ranks" in report.notes) == (len(set(values)) < 4)


def test_many_contrasts_have_a_drawn_p_value_and_the_same_closed_form():
    n = 10
    values = np.array([10, 9, 7, 8, 6, 5, 3, 4, 2, 1.0])
    report = rank_agreement_report(values, np.arange(1, n + 1))
    assert report.agreement == 1 - 4 / 50
    assert report.chance == pytest.approx(1 - 33 / 50)
    assert report.p_method == "drawn"
    middling = rank_agreement_report([9, 2, 8, 3, 7, 10, 1, 4, 6, 5.0], np.arange(1, n + 1), seed=1)
    rng = np.random.default_rng(5)
    drawn = [agreement_by_hand(rng.permutation(n) + 1, range(1, n + 1)) for _ in range(4000)]
    assert middling.p_value == pytest.approx(np.mean(np.array(drawn) >= middling.agreement - 1e-9), abs=0.03)
    assert report.p_value < 0.001 < middling.p_value


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([0.0, 0.0, 0.0, 0.0], "all values are equal"),
        ([0.1, np.nan, 0.2, 0.3], "a value is NaN"),
    ],
)
def test_undefined_agreement_is_nan_with_a_reason(values, why):
    assert math.isnan(rank_agreement(values, [1, 2, 3, 4]))
    report = rank_agreement_report(values, [1, 2, 3, 4])
    assert math.isnan(report.agreement)
    assert math.isnan(report.chance)
    assert why in report.notes["agreement"]
    both = rank_agreement([values, [4.0, 3.0, 2.0, 1.0]], [1, 2, 3, 4])
    assert math.isnan(both[0])
    assert both[1] == 1.0


def test_one_contrast_has_no_order_and_a_tied_reference_no_correlation():
    assert math.isnan(rank_agreement([0.3], [1]))
    assert "no order" in rank_agreement_report([0.3], [1]).notes["agreement"]
    report = rank_agreement_report([3.0, 2.0, 1.0], [2, 2, 2])
    assert report.agreement == pytest.approx(1 - 2 / 4)
    assert math.isnan(report.spearman)
    assert "ranks all contrasts alike" in report.notes["kendall"]


def test_references_may_differ_by_row():
    values = -ORDERS[3]
    np.testing.assert_array_equal(rank_agreement(values, ORDERS[3]), np.ones(6))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([1, 2, 3], r"reference_ranks have shape \(3,\), values \(4,\); expected \(4,\)"),
        ([0, 1, 2, 3], "expected ranks from 1"),
        ([1, 2, 2, 4], r"\[1, 2.5, 2.5, 4\]"),
        ([1, 2, 3, np.nan], "expected ranks from 1"),
    ],
)
def test_bad_references(reference, message):
    with pytest.raises(ValueError, match=message):
        rank_agreement([4.0, 3.0, 2.0, 1.0], reference)


def test_bad_values():
    with pytest.raises(ValueError, match="infinite"):
        rank_agreement([1.0, np.inf], [1, 2])
    with pytest.raises(ValueError, match=r"shape \(\)"):
        ranks_of(3.0)
    with pytest.raises(ValueError, match=r"shape \(2, 0\)"):
        ranks_of(np.zeros((2, 0)))
    with pytest.raises(ValueError, match="once for each ranking"):
        rank_agreement_report(np.eye(4), [1, 2, 3, 4])


def variance_by_hand(table):
    total = 0.0
    for i in range(len(table[0])):
        column = [row[i] for row in table]
        mean = sum(column) / len(column)
        total += sum((r - mean) ** 2 for r in column) / (len(column) - 1)
    return total / len(table[0])


def test_equal_folds_have_no_variance_and_three_against_two_reversed_folds_one_and_a_half():
    assert rank_variance([[1, 2, 3, 4]] * 5) == 0.0
    assert rank_variance([[1, 2, 3, 4]] * 3 + [[4, 3, 2, 1]] * 2) == pytest.approx(1.5)


def test_mean_over_all_pairs_and_triples_of_folds_is_the_chance_level():
    for folds in (2, 3):
        every = np.array(list(product(ORDERS[4], repeat=folds))) if folds == 2 else None
        if every is None:  # the first fold may stay: renaming the contrasts changes nothing
            every = np.array([[ORDERS[4][0], *pair] for pair in product(ORDERS[4], repeat=2)])
        found = rank_variance(every)
        np.testing.assert_allclose(found[::37], [variance_by_hand(t.tolist()) for t in every[::37]], atol=1e-12)
        assert found.mean() == pytest.approx(1.25)
    report = rank_variance_report([[1, 2, 3, 4], [2, 1, 3, 4]])
    assert report.chance == pytest.approx(1.25)
    assert float(report) == report.variance == pytest.approx(variance_by_hand([[1, 2, 3, 4], [2, 1, 3, 4]]))
    assert report.per_contrast.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert report.mean_ranks.tolist() == [1.5, 1.5, 3.0, 4.0]
    assert report.n_folds == 2


def test_largest_variance_of_five_folds_of_four_contrasts():
    largest = 0.0
    rows = ORDERS[4]
    rng = np.random.default_rng(0)
    drawn = rng.integers(24, size=(40000, 5))
    largest = float(rank_variance(rows[drawn]).max())
    assert 1.5 <= largest <= 1.55 + 1e-12  # 1.55 by enumeration of all sets


def test_chance_of_tied_ranks_equals_enumeration():
    folds = [[1, 2.5, 2.5, 4], [1, 2, 3, 4], [2, 2, 2, 4]]
    every = [
        variance_by_hand(rows)
        for rows in product(*[set(permutations(row)) for row in folds[:2]], set(permutations(folds[2])))
    ]
    assert rank_variance_report(folds).chance == pytest.approx(sum(every) / len(every))


def test_undefined_variance_is_nan_with_a_reason():
    table = np.array([[1, 2, 3, 4], [2.5, 2.5, 2.5, 2.5], [1, 2, 4, 3]])
    assert math.isnan(rank_variance(table))
    assert "fold 1 (from 0): all values are equal" in rank_variance_report(table).notes["variance"]
    table[2] = np.nan
    assert "2 of 3 folds" in rank_variance_report(table).notes["chance"]
    assert np.isnan(rank_variance(np.stack([table, np.array([[1, 2, 3, 4]] * 3)]))).tolist() == [True, False]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([[1, 2, 3, 4]], r"shape \(1, 4\); expected \(K, N\) with K >= 2"),
        ([1, 2, 3, 4], r"shape \(4,\)"),
        ([[1, 2, 3, 4], [0.3, 0.1, 0.2, 0.0]], r"a fold has the ranks \[0.3.*ranks_of"),
    ],
)
def test_bad_ranks(ranks, message):
    with pytest.raises(ValueError, match=message):
        rank_variance(ranks)


def test_variance_report_takes_one_table():
    with pytest.raises(ValueError, match="once for each table"):
        rank_variance_report(np.stack([ORDERS[4][:3]] * 2))
