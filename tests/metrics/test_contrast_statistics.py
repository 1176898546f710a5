# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Tables of contrast values: what is read, what is refused, and statistics against numbers by hand and by pandas."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from contrast_rows import BY_HAND, NAMES, contrast_rows, made_explanation, random_rows
from scipy import stats

from monai_segshap.explainers import contrast_table
from monai_segshap.metrics import (
    ReferenceRanking,
    contrast_agreement,
    contrast_associations,
    contrast_fold_ranks,
    contrast_stability,
    contrast_value_summary,
    fold_rank_variance,
    rank_variance,
    read_contrast_table,
)

IN_ORDER = ReferenceRanking({"ET": list(NAMES), "WT": ["t2f", ["t2w", "t1n"], "t1c"]}, "for this test")
NAN = (math.nan,) * 4


# --- reading ---


def test_a_table_of_explanations_becomes_an_array_over_cases_folds_sub_regions_and_contrasts(tmp_path):
    found = [
        made_explanation(case, fold, {"ET": values, "WT": NAN}, {"WT": "nothing to find"})
        for (case, fold), values in BY_HAND.items()
    ]
    table = contrast_table(found)
    table.to_csv(tmp_path / "contrasts.csv", index=False)
    for source in (table, tmp_path / "contrasts.csv", [table[table.case == "p"], table[table.case == "q"]]):
        cohort = read_contrast_table(source)
        assert (cohort.cases, cohort.folds, cohort.sub_regions) == (("p", "q"), ("0", "1"), ("ET", "WT"))
        assert (cohort.contrasts, cohort.score, cohort.scores) == (NAMES, "dice_truth", ("dice_truth",))
        np.testing.assert_array_equal(cohort.values[:, :, 0].reshape(4, 4), list(BY_HAND.values()))
        assert np.isnan(cohort.values[:, :, 1]).all()
        assert cohort.present.all()
        assert (cohort.dice == 0.5).all()
        assert cohort.reason(1, 1, 1) == "nothing to find"
        assert cohort.reason(1, 1, 0) == ""
        assert cohort.missing_pairs() == []
        assert cohort.removals == {"constant 0.0": 2}


def test_rows_may_come_in_any_order_with_any_spelling_and_without_some_folds():
    table = pd.concat([contrast_rows(BY_HAND), contrast_rows({("r", "10"): (1.0, 2.0, 3.0, 5.0)})])
    table["contrast"] = table["contrast"].where(table["case"] != "q", table["contrast"].replace("t1c", "T1CE"))
    cohort = read_contrast_table(table.sort_values(["contrast", "case"], ascending=False))
    assert cohort.folds == ("0", "1", "10")
    assert sorted(cohort.contrasts) == sorted(NAMES)
    at = [cohort.contrasts.index(name) for name in NAMES]
    case = {name: n for n, name in enumerate(cohort.cases)}
    np.testing.assert_array_equal(cohort.values[case["q"], 0, 0][at], BY_HAND["q", "0"])
    np.testing.assert_array_equal(cohort.values[case["r"], 2, 0][at], [1, 2, 3, 5])
    assert cohort.removals == {}
    assert set(cohort.missing_pairs()) == {("p", "10"), ("q", "10"), ("r", "0"), ("r", "1")}
    assert "no row of this case" in cohort.reason(case["r"], 0, 0)


def test_folds_are_names_numbers_or_nothing():
    table = contrast_rows({("p", None): BY_HAND["p", "0"]})
    assert read_contrast_table(table).folds == ("",)
    assert read_contrast_table(table.assign(fold=[math.nan] * 4)).folds == ("",)
    assert read_contrast_table(table.assign(fold=[2.0] * 4)).folds == ("2",)
    numbered = {("p", "10"): BY_HAND["p", "0"], ("p", "9"): BY_HAND["p", "1"]}
    assert read_contrast_table(contrast_rows(numbered)).folds == ("9", "10")
    named = {("p", "late"): BY_HAND["p", "0"], ("p", "early"): BY_HAND["p", "1"]}
    assert read_contrast_table(contrast_rows(named)).folds == ("late", "early")
    with pytest.raises(ValueError, match=r"4 of 8 rows have no fold and the others have one; name the fold in all"):
        read_contrast_table(pd.concat([table, contrast_rows({("q", "0"): BY_HAND["q", "0"]})]))


def test_the_score_is_chosen_or_asked_for_and_dice_stands_beside_every_score():
    both = pd.concat([contrast_rows(BY_HAND, score="tp", dice=7.0), contrast_rows(BY_HAND, dice=0.25)])
    assert read_contrast_table(both).score == "dice_truth"
    other = read_contrast_table(both, "tp")
    assert (other.score, other.scores) == ("tp", ("tp", "dice_truth"))
    assert (other.dice == 0.25).all()
    alone = read_contrast_table(contrast_rows(BY_HAND, score="tp", dice=7.0))
    assert alone.score == "tp"
    assert np.isnan(alone.dice).all()
    with pytest.raises(ValueError, match=r"no score 'fp'; it has tp, dice_truth"):
        read_contrast_table(both, "fp")
    with pytest.raises(ValueError, match=r"has the scores tp, fp; say which one to analyze: score=..."):
        read_contrast_table(pd.concat([contrast_rows(BY_HAND, score=s) for s in ("tp", "fp")]))


def test_faulty_tables_are_refused_with_what_came_and_what_was_expected(tmp_path):
    table = contrast_rows(BY_HAND)
    cases = [
        (table.drop(columns=["fold", "full"]), r"no column fold, full; its columns are case, score, .*ContrastTableH"),
        (table.iloc[:0], "has no row"),
        (table.iloc[:-1], r"case q, fold 1, score dice_truth, sub-region ET has no row of t2f; expected one for each"),
        (pd.concat([table, table.iloc[5:6]]), r"case p, fold 1, .*, contrast t1n stands 2 times; expected once"),
        (table.assign(value=["x", *table["value"][1:]]), r"row 1 has value 'x'; expected a finite number"),
        (table.assign(value=[math.inf, *table["value"][1:]]), r"row 1 has value 'inf'"),
        (table.assign(case=[None, *table["case"][1:]]), "row 1 has no case"),
        (table.assign(full=50.0), r"full = 50 to 50; expected one Dice from 0 to 1"),
        (table.assign(full=np.linspace(0.1, 0.2, 16)), "the same in the rows of all contrasts"),
    ]
    for wrong, words in cases:
        with pytest.raises(ValueError, match=words):
            read_contrast_table(wrong)
    with pytest.raises(ValueError, match="got no table"):
        read_contrast_table([])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty.csv is empty; expected the columns case, fold"):
        read_contrast_table(tmp_path / "empty.csv")
    with pytest.raises(FileNotFoundError):
        read_contrast_table(tmp_path / "none.csv")


# --- values ---


def test_means_spreads_ranks_and_shares_are_those_computed_by_hand():
    found = contrast_value_summary(read_contrast_table(contrast_rows(BY_HAND)), n_resamples=2000).set_index("contrast")
    np.testing.assert_allclose(found["mean"], [3.25, 2.5, 2.25, 2.0])
    np.testing.assert_allclose(found["mean_rank"], [(1 + 1 + 4 + 1) / 4, 2.5, (3 + 4 + 2 + 2) / 4, (4 + 3 + 1 + 4) / 4])
    np.testing.assert_allclose(found["first_share"], [0.75, 0, 0, 0.25])
    np.testing.assert_allclose(found["std"], [1.5 / 2**0.5, 1 / 2**0.5, 1.5 / 2**0.5, 1 / 2**0.5])
    assert (found["n"] == 4).all()
    assert (found["n_cases"] == 2).all()
    # with two cases a resample is p twice (1/4), both (1/2) or q twice (1/4): the ends are the two cases
    np.testing.assert_allclose(found["low"], [2.5, 2.0, 1.5, 1.5])
    np.testing.assert_allclose(found["high"], [4.0, 3.0, 3.0, 2.5])


def test_folds_count_alike_where_cases_are_missing():
    some = {pair: values for pair, values in BY_HAND.items() if pair != ("q", "1")}
    found = contrast_value_summary(read_contrast_table(contrast_rows(some)), n_resamples=50)
    np.testing.assert_allclose(found["mean"], [(2.5 + 4) / 2, (2.5 + 3) / 2, (2.5 + 1) / 2, (2.5 + 2) / 2])
    np.testing.assert_allclose(found["first_share"], [(0.5 + 1) / 2, 0, 0, (0.5 + 0) / 2])
    assert found["n"].tolist() == [3] * 4


def test_ties_share_and_a_sub_region_without_values_has_none():
    table = pd.concat(
        [
            contrast_rows({("p", "0"): (0.0,) * 4, ("q", "0"): (2.0, 2.0, 1.0, 0.0)}),
            contrast_rows({("p", "0"): NAN, ("q", "0"): NAN}, "WT", reason="absent", dice=math.nan),
        ]
    )
    cohort = read_contrast_table(table)
    found = contrast_value_summary(cohort, n_resamples=10).set_index(["sub_region", "contrast"])
    np.testing.assert_allclose(found.loc["ET", "mean_rank"], [2.0, 2.0, 2.75, 3.25])
    np.testing.assert_allclose(found.loc["ET", "first_share"], [0.375, 0.375, 0.125, 0.125])
    absent = found.loc["WT"]
    assert absent[["mean", "std", "low", "high", "mean_rank", "first_share"]].isna().all(axis=None)
    assert (absent["n"] == 0).all()
    assert cohort.tied.tolist() == [[[True, False]], [[False, False]]]
    agreement = contrast_agreement(cohort, IN_ORDER).set_index(["case", "sub_region"])
    assert math.isnan(agreement.loc[("p", "ET"), "agreement"])
    assert agreement.loc[("p", "ET"), "reason"].startswith("all values are equal")
    assert agreement.loc[("q", "ET"), "agreement"] == pytest.approx(1 - 1 / 8)
    assert agreement.loc[("q", "ET"), "reference_first"] == 0.5
    assert agreement.loc[("q", "WT"), "reason"] == "absent"


def test_one_case_has_no_interval_and_options_are_checked():
    cohort = read_contrast_table(contrast_rows({("p", "0"): BY_HAND["p", "0"]}))
    found = contrast_value_summary(cohort)
    assert found[["std", "low", "high"]].isna().all(axis=None)
    assert found["mean"].tolist() == [4, 3, 2, 1]
    with pytest.raises(ValueError, match="expected integers >= 0"):
        contrast_value_summary(cohort, n_resamples=-1)


def test_a_random_cohort_agrees_with_pandas_and_scipy():
    table = random_rows(12, 3, seed=4)
    table = table[~((table.case == "c3") & (table.fold == "1"))].reset_index(drop=True)
    cohort = read_contrast_table(table)
    found = contrast_value_summary(cohort, n_resamples=4000).set_index(["sub_region", "contrast"])
    keys = ["sub_region", "contrast"]
    table["rank"] = table.groupby(["case", "fold", "sub_region"])["value"].rank(ascending=False)
    for column, name in (("value", "mean"), ("rank", "mean_rank")):
        expected = table.groupby([*keys, "fold"])[column].mean().groupby(keys).mean()
        np.testing.assert_allclose(found[name], expected.loc[found.index])
    spread = table.groupby([*keys, "case"])["value"].mean().groupby(keys).std()
    np.testing.assert_allclose(found["std"], spread.loc[found.index])
    per_case = table[(table.sub_region == "ET") & (table.contrast == "t1c")].pivot(
        index="case", columns="fold", values="value"
    )
    by_loop, rng = [], np.random.default_rng(99)
    for _ in range(4000):
        drawn = per_case.iloc[rng.integers(12, size=12)]
        by_loop.append(drawn.mean().mean())
    row = found.loc[("ET", "t1c")]
    np.testing.assert_allclose([row["low"], row["high"]], np.quantile(by_loop, [0.025, 0.975]), atol=0.004)


# --- ranks, agreement, stability ---


def test_fold_ranks_and_their_variance_by_hand():
    table = contrast_rows({**BY_HAND, ("q", "0"): (3.0, 2.5, 2.0, 1.0)})
    cohort = read_contrast_table(table)
    found = contrast_fold_ranks(cohort, IN_ORDER)
    assert found["rank"].tolist() == [1, 2, 3, 4, 1, 2, 3, 4]  # means of fold 1: 4, 2.5, 2, 1.5
    assert found["mean_value"].tolist()[4:] == [4, 2.5, 2, 1.5]
    assert found["mean_rank"].tolist()[4:] == [1, 2.5, 3, 3.5]
    assert found["reference_rank"].tolist() == [1, 2, 3, 4] * 2
    assert found["n_cases"].tolist() == [2] * 8
    assert fold_rank_variance(cohort)["ET"].variance == 0
    tied = fold_rank_variance(read_contrast_table(contrast_rows(BY_HAND)))["ET"]  # fold 0: every mean is 2.5
    assert math.isnan(tied.variance)
    moved = {("p", "0"): (4.0, 3.0, 2.0, 1.0), ("p", "1"): (3.0, 4.0, 1.0, 2.0)}
    assert fold_rank_variance(read_contrast_table(contrast_rows(moved)))["ET"].variance == 0.5
    assert fold_rank_variance(read_contrast_table(contrast_rows({("p", None): BY_HAND["p", "0"]}))) == {}


def test_agreement_of_each_case_and_fold_by_hand():
    dice = {("p", "0"): 0.9, ("p", "1"): 0.8, ("q", "0"): 0.1, ("q", "1"): 0.7}
    found = contrast_agreement(read_contrast_table(contrast_rows(BY_HAND, dice=dice)), IN_ORDER)
    assert list(zip(found["case"], found["fold"], strict=True)) == list(BY_HAND)
    assert found["agreement"].tolist() == [1, 0.75, 0, 0.75]
    assert found["dice"].tolist() == [0.9, 0.8, 0.1, 0.7]
    assert found["chance"].tolist() == [0.375] * 4
    np.testing.assert_allclose(found["spearman"], [1, 0.8, -1, 0.8])
    np.testing.assert_allclose(found["kendall"], [1, 2 / 3, -1, 2 / 3])
    assert found["reference_first"].tolist() == [1, 1, 0, 1]
    assert (found["reason"] == "").all()


def test_three_contrasts_a_tied_reference_and_what_it_does_not_rank():
    names = ("t1c", "t1n", "t2w")
    cohort = read_contrast_table(contrast_rows({("p", "0"): (3.0, 1.0, 2.0)}, names=names))
    found = contrast_agreement(cohort, ReferenceRanking({"ET": list(names)}, "x"))
    assert found["agreement"].tolist() == [1 - 2 / 4]
    assert found["chance"].iloc[0] == pytest.approx(1 / 3)  # of 0, 2, 2, 4, 4, 4 in 4: mean 2/3
    with pytest.raises(ValueError, match=r"without a value \['t2f'\]"):
        contrast_agreement(cohort, IN_ORDER)
    tied = contrast_agreement(cohort, ReferenceRanking({"ET": [["t1c", "t1n"], "t2w"]}, "x"))
    assert tied["reference_first"].tolist() == [1.0]
    assert tied["agreement"].tolist() == [1 - (0.5 + 1.5 + 1) / 4]
    nothing = contrast_agreement(cohort, ReferenceRanking({"WT": list(names)}, "x"))
    assert nothing.empty
    assert "agreement" in nothing
    assert contrast_fold_ranks(cohort, ReferenceRanking({"WT": list(names)}, "x"))["reference_rank"].isna().all()


def test_rank_variance_of_each_case_by_hand_and_folds_that_are_missing():
    dice = {("p", "0"): 0.9, ("p", "1"): 0.8, ("q", "0"): 0.1, ("q", "1"): 0.7}
    found = contrast_stability(read_contrast_table(contrast_rows(BY_HAND, dice=dice))).set_index("case")
    assert found["rank_variance"].tolist() == [0.25, 2.25]
    assert found["chance"].tolist() == [1.25, 1.25]
    np.testing.assert_allclose(found["mean_dice"], [0.85, 0.4])
    more = {**BY_HAND, ("p", "2"): (4.0, 3.0, 2.0, 1.0), ("r", "2"): (4.0, 3.0, 2.0, 1.0), ("q", "2"): (0.0,) * 4}
    table = pd.concat([contrast_rows(more), contrast_rows({("s", "0"): NAN, ("s", "1"): NAN}, reason="absent")])
    found = contrast_stability(read_contrast_table(table)).set_index("case")
    ranks = [[1, 2, 3, 4], [1, 2, 4, 3], [1, 2, 3, 4]]
    assert found.loc["p", "rank_variance"] == pytest.approx(rank_variance(ranks)) == pytest.approx(1 / 6)
    assert found["n_folds"].to_dict() == {"p": 3, "q": 3, "r": 1, "s": 2}
    assert found.loc["q", "reason"].startswith("1 of 3 folds have no ranking; fold 2: all values are equal")
    assert found.loc["r", "reason"] == "the table has 1 of 3 folds; a variance needs two"
    assert found.loc["s", "reason"] == "2 of 2 folds have no ranking; fold 0: absent"
    assert found["rank_variance"].isna().tolist() == [False, True, True, True]


# --- associations ---


def test_associations_agree_with_scipy_and_draw_whole_cases():
    cohort = read_contrast_table(random_rows(15, 3, seed=2))
    agreement, stability = contrast_agreement(cohort, IN_ORDER), contrast_stability(cohort)
    found = contrast_associations(agreement, stability, high=0.65, low=0.6, n_resamples=500).set_index(
        ["measure", "sub_region"]
    )
    assert [region for _, region in found.index] == ["ET", "WT", "pooled"] * 2
    for (measure, region), row in found.iterrows():
        frame, dice = (agreement, "dice") if measure == "agreement" else (stability, "mean_dice")
        part = frame if region == "pooled" else frame[frame["sub_region"] == region]
        x, y = part[measure].to_numpy(), part[dice].to_numpy()
        assert row["r"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert row["p_value"] == pytest.approx(stats.pearsonr(x, y).pvalue)
        interval = stats.pearsonr(x, y).confidence_interval(0.95)
        np.testing.assert_allclose(row[["fisher_low", "fisher_high"]].astype(float), interval)
        test = stats.mannwhitneyu(x[y > 0.65], x[y < 0.6])
        assert row["u_statistic"] == test.statistic
        assert row["p_rank_test"] == pytest.approx(test.pvalue)
        assert (row["n_high"], row["n_low"]) == ((y > 0.65).sum(), (y < 0.6).sum())
        assert row["median_high"] == np.median(x[y > 0.65])
        assert (row["n"], row["n_cases"], row["n_values"]) == (len(x), 15, len(x))
        assert row["mean"] == pytest.approx(x.mean())
        cases = part["case"].to_numpy()
        rng, means = np.random.default_rng(5), []
        for _ in range(2000):
            means.append(np.concatenate([x[cases == f"c{n}"] for n in rng.integers(15, size=15)]).mean())
        width = np.quantile(means, 0.975) - np.quantile(means, 0.025)
        assert row["mean_high"] - row["mean_low"] == pytest.approx(width, rel=0.15)
        optimistic = "take the pairs of a case as independent" in row["notes"]
        assert optimistic == (measure == "agreement" or region == "pooled")


def test_associations_without_dice_or_with_one_group_say_so():
    cohort = read_contrast_table(contrast_rows(BY_HAND, score="tp", dice=7.0))
    (row,) = contrast_associations(contrast_agreement(cohort, IN_ORDER), None).to_dict("records")
    assert (row["n"], row["n_values"], row["mean"]) == (0, 4, 0.625)
    assert math.isnan(row["r"])
    assert "fewer than two pairs" in row["notes"]
    high = read_contrast_table(contrast_rows(BY_HAND, dice={pair: 0.9 - 0.01 * n for n, pair in enumerate(BY_HAND)}))
    (row,) = contrast_associations(None, contrast_stability(high)).to_dict("records")
    assert (row["n_high"], row["n_low"]) == (2, 0)
    assert "both groups need one" in row["notes"]
    assert contrast_associations(None, None).empty
