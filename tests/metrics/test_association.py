# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Correlation with intervals and the comparison of groups, against scipy and brute force."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from monai_segshap.metrics import compare_groups, correlation_with_interval


def pairs(n=60, seed=0, slope=-0.8):
    rng = np.random.default_rng(seed)
    dice = rng.uniform(0.2, 1, n)
    return slope * dice + rng.normal(0, 0.3, n), dice


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_pearson_equals_scipy(confidence):
    x, y = pairs()
    found, oracle = correlation_with_interval(x, y, confidence=confidence, n_bootstrap=0), stats.pearsonr(x, y)
    assert float(found) == found.r == pytest.approx(oracle.statistic)
    assert found.p_value == pytest.approx(oracle.pvalue)
    assert found.fisher == pytest.approx(tuple(oracle.confidence_interval(confidence)))
    assert (found.n, found.n_groups, found.n_dropped) == (60, 60, 0)


def test_width_of_the_interval_is_that_of_the_paper():
    """Paper 003: r = -0.581 with interval -0.607 .. -0.553 implies about 2318 samples."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=2318)
    rest = rng.normal(size=2318)
    y, rest = (y - y.mean()) / y.std(), rest - rest.mean()
    rest -= y * (rest @ y) / (y @ y)
    x = -0.581 * y + math.sqrt(1 - 0.581**2) * rest / rest.std()
    found = correlation_with_interval(x, y, n_bootstrap=0)
    assert found.r == pytest.approx(-0.581)
    assert found.fisher == pytest.approx((-0.607, -0.553), abs=0.001)
    assert np.isnan(found.bootstrap).all()
    assert "no resamples" in found.notes["bootstrap"]


def test_spearman_equals_scipy_and_its_wider_error():
    x, y = pairs(30, 1)
    found, oracle = correlation_with_interval(x, y, method="spearman", n_bootstrap=0), stats.spearmanr(x, y)
    assert found.r == pytest.approx(oracle.statistic)
    assert found.p_value == pytest.approx(oracle.pvalue)
    half = 1.959964 * math.sqrt((1 + found.r**2 / 2) / 27)
    assert np.arctanh(found.fisher) == pytest.approx([math.atanh(found.r) - half, math.atanh(found.r) + half])


def test_bootstrap_is_near_scipys_and_repeats():
    x, y = pairs(80, 2)
    found = correlation_with_interval(x, y, seed=3)
    oracle = stats.bootstrap(
        (x, y),
        lambda a, b: stats.pearsonr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert found.bootstrap == pytest.approx(tuple(oracle), abs=0.02)
    assert found == correlation_with_interval(x, y, seed=3)
    assert found.bootstrap != correlation_with_interval(x, y, seed=4).bootstrap


def test_sub_regions_of_a_case_are_drawn_together():
    x, y = pairs(20, 4)
    groups = [f"case_{i}" for i in range(20)]
    once = correlation_with_interval(x, y, groups=groups)
    thrice = correlation_with_interval(np.repeat(x, 3), np.repeat(y, 3), groups=np.repeat(groups, 3).tolist())
    alone = correlation_with_interval(np.repeat(x, 3), np.repeat(y, 3))
    assert thrice.bootstrap == pytest.approx(once.bootstrap)  # copies add nothing
    assert np.diff(alone.bootstrap) < 0.75 * np.diff(once.bootstrap)
    assert (thrice.n, thrice.n_groups) == (60, 20)
    assert "independent" in thrice.notes["fisher"]


def test_undefined_pairs_are_dropped_and_counted():
    x, y = pairs()
    more_x, more_y = np.append(x, [np.nan, 0.5, np.nan]), np.append(y, [0.5, np.nan, np.nan])
    found = correlation_with_interval(more_x, more_y, groups=range(63))
    assert found.n_dropped == 3
    assert found.r == correlation_with_interval(x, y).r
    assert found.bootstrap == correlation_with_interval(x, y).bootstrap


def test_what_has_no_correlation_is_nan_with_a_reason():
    constant = correlation_with_interval([1.0, 1.0, 1.0], [0.1, 0.2, 0.3])
    assert math.isnan(constant.r)
    assert "constant" in constant.notes["r"]
    assert "fewer than two" in correlation_with_interval([1.0, np.nan], [0.1, 0.2]).notes["bootstrap"]
    three = correlation_with_interval([1.0, 2.0, 2.5], [0.1, 0.2, 0.4])
    assert np.isnan(three.fisher).all()
    assert "4 pairs" in three.notes["fisher"]
    assert "resamples were constant" in three.notes["bootstrap"]
    assert correlation_with_interval([1.0, 2, 3, 4], [2.0, 4, 6, 8]).fisher == (1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "kendall"}, "method is 'kendall'; expected one of pearson, spearman"),
        ({"confidence": 95}, "confidence is 95"),
        ({"n_bootstrap": -1}, "n_bootstrap -1"),
        ({"groups": ["a"]}, "1 groups for 60 pairs"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        correlation_with_interval(*pairs(), **options)


def test_bad_pairs():
    with pytest.raises(ValueError, match=r"shape \(2,\), dice \(3,\)"):
        correlation_with_interval([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="infinite"):
        compare_groups([1.0, np.inf], [0.5, 0.7])


def test_groups_equal_counting_and_all_splits():
    values, dice = [0.75, 0.5, 0.9, 0.2, 0.3, 0.1, 0.6], [0.9, 0.8, 0.7, 0.6, 0.4, 0.2, 0.3]
    found = compare_groups(values, dice)
    assert (found.n_high, found.n_low, found.n_between) == (3, 4, 0)
    wins = sum(h > low for h in values[:3] for low in values[3:])
    assert found.u_statistic == wins
    assert found.effect == pytest.approx(wins / 12)
    assert found.rank_biserial == pytest.approx(2 * wins / 12 - 1)
    splits = []
    for high in combinations(range(7), 3):
        splits.append(sum(values[i] > values[j] for i in high for j in range(7) if j not in high))
    assert compare_groups(values, dice, alternative="greater").p_value == pytest.approx(
        np.mean(np.array(splits) >= wins)
    )
    assert (found.median_high, found.median_low) == (0.75, 0.25)
    assert (found.mean_high, found.mean_low) == (pytest.approx(2.15 / 3), pytest.approx(0.3))


def test_gap_between_the_groups_and_dropped_cases():
    values, dice = [1.0, 0.5, np.nan, 0.75, 0.25, 0.5], [0.9, 0.55, 0.9, 0.7, 0.3, np.nan]
    found = compare_groups(values, dice, high=0.6, low=0.5)
    assert (found.n_high, found.n_low, found.n_between, found.n_dropped) == (2, 1, 1, 2)
    oracle = stats.mannwhitneyu([1.0, 0.75], [0.25])
    assert (found.u_statistic, found.p_value) == (oracle.statistic, oracle.pvalue)
    assert found.effect == 1.0


def test_large_groups_with_ties_equal_scipy():
    rng = np.random.default_rng(0)
    values, dice = rng.choice([0, 0.25, 0.5, 0.75, 1], 200), rng.uniform(0, 1, 200)
    found = compare_groups(values, dice, alternative="less")
    oracle = stats.mannwhitneyu(values[dice > 0.6], values[dice <= 0.6], alternative="less")
    assert found.p_value == pytest.approx(oracle.pvalue)
    greater = sum((h > v) + 0.5 * (h == v) for h in values[dice > 0.6] for v in values[dice <= 0.6])
    assert found.effect == pytest.approx(greater / (found.n_high * found.n_low))


def test_groups_without_a_difference_or_without_cases():
    same = compare_groups([0.5, 0.5, 0.5], [0.9, 0.8, 0.2])
    assert (same.p_value, same.effect) == (1.0, 0.5)
    assert "equal" in same.notes["p_value"]
    empty = compare_groups([0.5, 0.6], [0.9, 0.8])
    assert math.isnan(empty.p_value)
    assert "2 cases with high and 0 with low" in empty.notes["effect"]
    assert empty.mean_high == pytest.approx(0.55)
    assert math.isnan(empty.median_low)


@pytest.mark.parametrize(
    ("options", "message"), [({"low": 0.7}, "low <= high"), ({"alternative": "bigger"}, "'bigger'")]
)
def test_bad_group_options(options, message):
    with pytest.raises(ValueError, match=message):
        compare_groups([0.5, 0.6], [0.9, 0.8], **options)
