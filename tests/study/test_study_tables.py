# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Tables, intervals and the summary, from results whose numbers can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap
from study_records import curves_of, failed, made

from monai_segshap.study import (
    all_curves,
    comparisons,
    costs,
    mean_interval,
    means,
    paired_differences,
    read_record,
    results,
    write_study,
)

# Two units worth (3, 1): MoRF 4, 1, 0; LeRF 4, 3, 0. AOPC = (3 + 4) / 2 = 3.5; ABPC = (2 + 0) / 2 = 1; D = 4.
# (1, 1): all orders alike, AOPC = 1.5, ABPC = 0, D = 2. (2, -2): MoRF 0, -2, 0; LeRF 0, 2, 0: AOPC 1, ABPC 2, D = 0.
RECORDS = [
    made("a", "organs", {"tp": [3.0, 1.0], "fp": [2.0, -2.0]}),
    made("a", "fcc", {"tp": [1.0, 1.0], "fp": [3.0, 1.0]}, run=75),
    made("b", "organs", {"tp": [1.0, 1.0], "fp": [2.0, -2.0]}),
    made("b", "fcc", {"tp": [3.0, 1.0], "fp": [1.0, 1.0]}, run=25),
    made("c", "organs", {"tp": [1.0, 1.0], "fp": [3.0, 1.0]}),
    failed("c", "fcc"),
]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return results(RECORDS)


def cell(table, measure, score, **where):
    chosen = table[(table["measure"] == measure) & (table["score"] == score)]
    for name, value in where.items():
        chosen = chosen[chosen[name] == value]
    (row,) = chosen.to_dict("records")
    return row


def test_every_case_kind_and_score_has_a_row(frame):
    assert len(frame) == 12
    assert frame.groupby("kind", sort=False).size().to_dict() == {"organs": 6, "fcc": 6}
    first = frame.iloc[0]
    assert (first["aopc"], first["abpc"]) == (3.5, 1.0)
    assert (first["aopc_endpoint_normalized"], first["abpc_endpoint_normalized"]) == (3.5 / 4, 0.25)
    assert (first["full"], first["empty"], first["visible_units"], first["units"]) == (4.0, 0.0, 2, 9)
    assert first["notes"] == ""
    fp = frame.iloc[1]
    assert (fp["aopc"], fp["abpc"]) == (1.0, 2.0)
    assert math.isnan(fp["aopc_endpoint_normalized"])
    assert "normalizes nothing" in fp["notes"]


def test_failures_are_rows_with_a_reason(frame):
    lost = frame[frame["status"] == "failed"]
    assert lost[["case", "kind", "score"]].to_numpy().tolist() == [["c", "fcc", "tp"], ["c", "fcc", "fp"]]
    assert lost["aopc"].isna().all()
    assert lost["reason"].str.startswith("ValueError").all()
    only = results([failed("x", "organs")], scores=["tp"])
    assert only["status"].tolist() == ["failed"]


def test_means_and_undefined_cases_by_hand(frame):
    table = means(frame, resamples=200)
    assert list(dict.fromkeys(table["measure"])) == ["ABPC", "nABPC", "AOPC", "nAOPC"]  # no bounds: no NAOPC
    row = cell(table, "AOPC", "tp")
    assert row["organs"] == pytest.approx((3.5 + 1.5 + 1.5) / 3)
    assert row["organs_median"] == 1.5
    assert row["fcc"] == pytest.approx(2.5)
    assert (row["organs_n"], row["organs_nan"], row["fcc_n"], row["fcc_nan"]) == (3, 0, 2, 1)
    row = cell(table, "nABPC", "fp")  # of organs only c is defined
    assert row["organs"] == pytest.approx(0.25)
    assert (row["organs_n"], row["organs_nan"]) == (1, 2)
    assert math.isnan(row["organs_low"])
    assert row["fcc"] == pytest.approx((0.25 + 0.0) / 2)
    # two cases: the resampled means are one of the values or their middle, so the interval is their range
    assert (row["fcc_low"], row["fcc_high"]) == pytest.approx((0.0, 0.25))


def test_pairs_are_of_the_same_case(frame):
    table = comparisons(frame, resamples=200)
    row = cell(table, "AOPC", "tp", first="organs", second="fcc")
    assert row["differences"] == [-2.0, 2.0]  # c failed
    assert (row["mean"], row["n"], row["larger"]) == (0.0, 2, 1)
    row = cell(table, "nAOPC", "fp", first="organs", second="fcc")
    assert (row["n"], row["differences"]) == (0, [])
    assert math.isnan(row["mean"])


def test_rounding_makes_no_case_larger():
    records = [made("a", "organs", {"tp": [3.0, 1.0]}), made("a", "fcc", {"tp": [3.0 + 1e-8, 1.0]})]
    row = cell(comparisons(results(records), resamples=10), "AOPC", "tp")
    assert 0 < row["mean"] < 1e-7
    assert (row["n"], row["larger"]) == (1, 0)


def test_costs_and_hit_rates():
    table = costs(RECORDS).set_index(["case", "kind"])
    assert len(table) == 5
    assert table.loc[("a", "fcc"), "hit_rate"] == pytest.approx(0.25)
    assert table.loc[("a", "fcc"), "published_hit_rate"] == pytest.approx(0.1)
    assert table.loc[("b", "fcc"), "hit_rate"] == pytest.approx(0.75)
    assert table.loc[("a", "organs"), "seconds_per_coalition"] == pytest.approx(0.5)
    assert table.loc[("a", "organs"), "curve_forwards"] == 7


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(5).gamma(2.0, size=25)
    ours = mean_interval(np.append(values, np.nan), resamples=40_000)
    theirs = bootstrap((values,), np.mean, n_resamples=40_000, method="percentile").confidence_interval
    assert (ours.mean, ours.n, ours.n_nan) == (pytest.approx(values.mean()), 25, 1)
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)
    assert ours.low < values.mean() < ours.high


def test_intervals_hold_the_mean_about_as_often_as_said():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        found = mean_interval(rng.normal(size=8), resamples=400)
        held += found.low <= 0.0 <= found.high
    assert 0.85 <= held / 400 <= 0.95  # too narrow with eight cases, as its documentation says


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval(np.zeros((2, 2))), "expected \\(N,\\)"),
        (lambda: mean_interval(np.zeros(3), level=1.0), "a level of 1.0"),
        (lambda: mean_interval(np.zeros(3), resamples=0), "0 resamples"),
        (lambda: paired_differences(np.zeros(3), np.zeros(2)), "same cases"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_number_gives_no_mean():
    found = mean_interval(np.array([np.nan, np.nan]))
    assert (found.n, found.n_nan) == (0, 2)
    assert math.isnan(found.mean)


def test_curves_have_every_step():
    table = all_curves(RECORDS)
    assert len(table) == 5 * 2 * 3
    one = table[(table["case"] == "a") & (table["kind"] == "organs") & (table["score"] == "tp")]
    assert one["morf"].tolist() == [4.0, 1.0, 0.0]
    assert one["lerf"].tolist() == [4.0, 3.0, 0.0]
    assert one["morf_volume_share"].tolist() == pytest.approx([0, 1 / 3, 1])
    assert one["lerf_volume_share"].tolist() == pytest.approx([0, 2 / 3, 1])


def test_a_record_survives_its_file(tmp_path):
    record = RECORDS[0]
    path = record.write(tmp_path / "a" / "organs.json")
    back = read_record(path)
    assert back is not None
    pd.testing.assert_frame_equal(results([back]), results([record]))
    assert [p.name for p in path.parent.iterdir()] == ["organs.json"]
    path.write_text("{half")
    assert read_record(path) is None
    assert read_record(tmp_path / "nowhere.json") is None


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_study(RECORDS, tmp_path_factory.mktemp("outputs") / "study", resamples=200)


def test_everything_is_written_and_nothing_else(written):
    names = {"results.csv", "table_1.csv", "paired.csv", "costs.csv", "curves.csv", "study.md", "paired.png"}
    assert set(written) == names | {"curves_tp.png", "curves_fp.png"}
    assert {p.name for p in written["study.md"].parent.iterdir()} == set(written)
    back = pd.read_csv(written["results.csv"])
    np.testing.assert_allclose(back["aopc"], results(RECORDS)["aopc"])
    assert "differences" not in pd.read_csv(written["paired.csv"])


def test_the_summary_has_the_numbers(written):
    text = written["study.md"].read_text()
    assert "5 of 6 pairs of case and kind have results" in text
    assert "| AOPC | True Positive | 2.17 [1.5, 3.5] | **2.5** [1.5, 3.5] (1 undefined) |" in text
    assert "| nABPC | False Positive | 0.25 [none, none] (2 undefined) | **0.125** [0, 0.25] (1 undefined) |" in text
    assert "| AOPC | True Positive | 0 [-2, 2], 1 of 2 |" in text
    assert "| fcc | 100 ± 0 | 90 ± 0 | 50 ± 35 | 50.0% ± 35.4% | 10.0% ± 0.0% |" in text
    assert "| c | fcc | ValueError: the prediction holds no voxel / of nodule |" in text
    # organs, tp: values 1 of 4, 1 of 2, 1 of 2 -> median 50 %; fp: a and b have no difference, c has 1 of 4
    assert "| organs | 50% | 1 | 25.00% | 50% | 25% |" in text


def test_one_kind_alone_is_compared_with_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_segshap.study.summary.save_curves", lambda _, path, **__: path)
    written = write_study(RECORDS[::2][:2], tmp_path, resamples=50)
    assert "paired.csv" not in written
    assert "compared" not in written["study.md"].read_text()


def test_a_study_without_results_says_why(tmp_path):
    written = write_study([failed("x", "organs")], tmp_path)
    assert set(written) == {"results.csv", "study.md"}
    assert "0 of 1 pairs" in written["study.md"].read_text()


def test_hand_made_curves_are_right():
    found = curves_of([3.0, 1.0])
    assert (found.aopc, found.abpc) == (3.5, 1.0)
