# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from importance_rows import random_table
from scipy import stats

from monai_segshap.cohort import MEAN_ROW, adjust_p_values, group_differences, outlier_correlation, planted_auc


def cases(n):
    return pd.Index([f"case {k + 1}" for k in range(n)], name="case")


def test_corrections_by_hand():
    p = [0.01, 0.04, 0.03, 0.5]
    # Holm: 4 * 0.01, 3 * 0.03, max(0.09, 2 * 0.04), 0.5
    np.testing.assert_allclose(adjust_p_values(p, "holm"), [0.04, 0.09, 0.09, 0.5])
    # Benjamini-Hochberg, from the largest: 0.5, 0.04 * 4 / 3, min(0.0533, 0.03 * 4 / 2), 0.01 * 4
    np.testing.assert_allclose(adjust_p_values(p, "bh"), [0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert adjust_p_values([0.6, 0.9], "holm").tolist() == [1.0, 1.0]


def test_missing_tests_count_for_nothing():
    p = np.array([0.01, np.nan, 0.04, 0.03, np.nan, 0.5])
    for method in ("bh", "holm"):
        found = adjust_p_values(p, method)
        np.testing.assert_array_equal(found[np.isfinite(p)], adjust_p_values(p[np.isfinite(p)], method))
        assert np.isnan(found[[1, 4]]).all()
    assert np.isnan(adjust_p_values([np.nan], "bh")).all()
    assert adjust_p_values([], "holm").shape == (0,)


def test_holm_equals_the_definition_over_all_subsets():
    # closed testing with Bonferroni: the largest min(1, size * smallest p) over all sets that hold the test
    p = np.random.default_rng(2).uniform(0, 0.3, size=6)
    expected = np.zeros(6)
    for size in range(1, 7):
        for subset in itertools.combinations(range(6), size):
            value = min(1.0, size * min(p[list(subset)]))
            expected[list(subset)] = np.maximum(expected[list(subset)], value)
    np.testing.assert_allclose(adjust_p_values(p, "holm"), expected)


@pytest.mark.parametrize("bad", [[0.5, 1.5], [-0.1], [np.inf], [[0.1]]])
def test_values_that_are_no_p_are_refused(bad):
    with pytest.raises(ValueError, match="expected a list of numbers in"):
        adjust_p_values(bad, "bh")


def test_an_unknown_correction_is_refused():
    with pytest.raises(ValueError, match="expected 'bh'"):
        adjust_p_values([0.1], "bonferroni")


def test_correlation_with_dice_by_hand_and_by_scipy():
    generator = np.random.default_rng(0)
    scores = pd.DataFrame(generator.normal(size=(12, 3)), index=cases(12), columns=["a", "b", "c"])
    dice = pd.DataFrame(generator.uniform(size=(12, 3)), index=cases(12), columns=["b", "c", "a"])
    dice.loc["case 3", "b"] = np.nan
    dice["c"] = scores["c"].rank() / 20  # same order: rho 1
    found = outlier_correlation(scores, dice.iloc[::-1])
    assert found.index.tolist() == ["a", "b", "c", MEAN_ROW]
    assert found["n"].tolist() == [12, 11, 12, 11]
    assert found.loc["c", "rho"] == pytest.approx(1.0)
    for name in ("a", "b"):
        both = dice[name].notna()
        expected = stats.spearmanr(scores[name][both], dice[name][both])
        assert found.loc[name, "rho"] == pytest.approx(expected.statistic)
        assert found.loc[name, "p"] == pytest.approx(expected.pvalue)
    whole = dice.notna().all(axis=1)
    expected = stats.spearmanr(scores.mean(axis=1)[whole], dice.mean(axis=1)[whole])
    assert found.loc[MEAN_ROW, "rho"] == pytest.approx(expected.statistic)
    # three tests are corrected; the row of means is none of them
    np.testing.assert_allclose(found["p_bh"][:3], stats.false_discovery_control(found["p"][:3]))
    assert np.isnan(found.loc[MEAN_ROW, "p_holm"])


def test_correlations_that_can_not_be_are_nan_with_a_reason():
    scores = pd.DataFrame({"few": [1.0, 2, 3, np.nan, np.nan], "flat": [1.0] * 5, "good": [1.0, 2, 3, 4, 5]}, cases(5))
    dice = pd.DataFrame({"few": [1.0] * 5, "flat": [1.0, 2, 3, 4, 5], "good": [5.0, 4, 3, 2, 1]}, cases(5))
    found = outlier_correlation(scores, dice)
    assert found.loc["few", "note"] == "fewer than 4 cases with both"
    assert found.loc["flat", "note"] == "all scores or all Dice are equal"
    assert np.isnan(found.loc[["few", "flat"], "rho"]).all()
    assert found.loc["good", "rho"] == pytest.approx(-1)
    assert found.loc["good", "p_holm"] == found.loc["good", "p"]
    with pytest.raises(ValueError, match="share 0 classes"):
        outlier_correlation(scores, dice.add_suffix("_x"))


def test_two_groups_are_compared_by_mann_whitney():
    values = pd.DataFrame({"a": [1.0, 2, 3, 4, 5, 6, 7], "b": [1.0, 2, 1, 2, 1, 2, np.nan]}, index=cases(7))
    metadata = pd.DataFrame({"sex": ["F", "F", "F", "M", "M", "M", None]}, index=cases(7)).iloc[::-1]
    found = group_differences(values, metadata, "sex")
    assert found.loc["a", "test"] == "Mann-Whitney U"
    assert found.loc["a", "p"] == pytest.approx(0.1)  # all of F below all of M: 2 of the 20 orders
    assert found.loc["a", "effect"] == 0.0
    assert found.loc["a", "groups"] == "F (3); M (3)"
    assert found.loc["a", "medians"] == "F 2; M 5"
    expected = stats.mannwhitneyu([1, 2, 1], [2, 1, 2])
    assert found.loc["b", "p"] == pytest.approx(expected.pvalue)
    np.testing.assert_allclose(found["p_bh"], stats.false_discovery_control(found["p"]))


def test_several_groups_are_compared_by_kruskal_wallis():
    generator = np.random.default_rng(1)
    values = pd.DataFrame({"a": generator.normal(size=15)}, index=cases(15))
    metadata = pd.DataFrame({"site": list("xyzxyzxyzxyzxyw")}, index=cases(15))
    found = group_differences(values, metadata, "site").loc["a"]
    groups = [values["a"][(metadata["site"] == site).to_numpy()] for site in "xyz"]
    expected = stats.kruskal(*groups)
    assert found["test"] == "Kruskal-Wallis"
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["effect"] == pytest.approx(expected.statistic / 13)
    assert found["note"] == "left out, fewer than 3 values: w (1)"


def test_groups_of_a_table_are_compared_cell_by_cell_with_its_own_metadata():
    table = random_table(8, ("a", "b"), seed=1)
    table.metadata["scanner"] = ["old", "new"] * 4
    found = group_differences(table, None, "scanner")
    assert found.index[1] == "a_explanation_in_b_mass"
    expected = stats.mannwhitneyu(table.values[1::2, 0, 1], table.values[::2, 0, 1])  # new comes first
    assert found["p"].iloc[1] == pytest.approx(expected.pvalue)
    assert found["effect"].iloc[1] == pytest.approx(expected.statistic / 16)


def test_groups_that_can_not_be_compared_are_refused_or_noted():
    values = pd.DataFrame({"a": np.arange(20.0), "flat": 1.0}, index=cases(20))
    metadata = pd.DataFrame({"age": range(20), "sex": ["F"] * 19 + ["M"]}, index=cases(20))
    with pytest.raises(ValueError, match=r"age has 20 different values.*pandas\.qcut"):
        group_differences(values, metadata, "age")
    with pytest.raises(ValueError, match="no column 'site'"):
        group_differences(values, metadata, "site")
    assert np.isnan(group_differences(values, metadata, "sex")["p"]).all()
    halves = metadata.assign(half=["x", "y"] * 10)
    found = group_differences(values, halves, "half")
    assert found.loc["flat", "note"] == "all values are equal"
    assert found.loc["a", "p_holm"] == found.loc["a", "p"]


def test_auc_counts_pairs_with_low_scores_as_abnormal():
    scores = pd.DataFrame({"a": [-0.2, 0.0, 0.1, 0.1, 0.3], "b": [0.1, np.nan, 0.2, 0.3, 0.0]}, index=cases(5))
    flags = {"case 1": True, "case 2": False, "case 3": True, "case 4": False, "case 5": False}
    found = planted_auc(scores, flags)
    # of the six pairs of an abnormal and a normal case: -0.2 is below 0, 0.1, 0.3; 0.1 above 0, equal to 0.1, below 0.3
    assert found.loc["a", "auc"] == pytest.approx(4.5 / 6)
    assert found.loc["b"].tolist() == [2 / 4, 2, 2]
    assert found.index[-1] == MEAN_ROW
    np.testing.assert_array_equal(planted_auc(scores, list(flags.values())), found)
    with pytest.raises(ValueError, match=r"whether \['case 5'\] are abnormal"):
        planted_auc(scores, dict(list(flags.items())[:4]))
    with pytest.raises(ValueError, match="expected one for each"):
        planted_auc(scores, [True])


def test_auc_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(6)
    scores = pd.DataFrame({"a": generator.integers(0, 9, size=50) / 9}, index=cases(50))
    flags = generator.random(50) < 0.3
    assert planted_auc(scores, flags).loc["a", "auc"] == pytest.approx(metrics.roc_auc_score(flags, -scores["a"]))
    assert np.isnan(planted_auc(scores, np.zeros(50, dtype=bool)).loc["a", "auc"])
