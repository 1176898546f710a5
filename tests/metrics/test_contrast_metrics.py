# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Agreement and rank variance as MONAI metrics: by hand, in evaluators, and in two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from contrast_ranks_job import ORDERS, REGIONS, explanations_of
from contrast_rows import BY_HAND, NAMES, made_explanation
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, MetricsSaver, from_engine
from monai.inferers import SlidingWindowInferer
from processes import run_processes

from monai_segshap.explainers import contrast_values, tumor_sub_regions
from monai_segshap.handlers import ContrastTableHandler, ExplanationHandler, ExplanationMetricHandler
from monai_segshap.metrics import (
    RankAgreementMetric,
    RankVarianceMetric,
    ReferenceRanking,
    rank_agreement,
    rank_variance,
    ranks_of,
)
from monai_segshap.transforms import ContrastShapleyd
from monai_segshap.visualize import analyze_contrasts

JOB = Path(__file__).with_name("contrast_ranks_job.py")
IN_ORDER = ReferenceRanking({"ET": list(NAMES), "WT": list(NAMES[::-1])}, "for this test")
NAN = (math.nan,) * 4
SHAPE, INFERER = (12, 8, 8), {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.25}


def case_of(name, wt=(1.0, 2.0, 3.0, 4.0), reasons=None):
    """The folds of a case by hand, with the same values of WT in each."""
    return [
        made_explanation(case, fold, {"ET": values, "WT": wt}, reasons)
        for (case, fold), values in BY_HAND.items()
        if case == name
    ]


# --- by hand ---


def test_agreement_has_a_row_for_each_case_and_fold():
    metric = RankAgreementMetric(IN_ORDER, get_not_nans=True)
    batch = metric([case_of("p"), case_of("q", NAN, {"WT": "absent"})])
    np.testing.assert_array_equal(batch, [[1, 1], [0.75, 1], [0, math.nan], [0.75, math.nan]])
    table = metric.table()
    assert list(table) == ["case", "agreement_ET", "agreement_WT", "notes"]
    assert table["case"].tolist() == ["p fold 0", "p fold 1", "q fold 0", "q fold 1"]
    assert table["notes"].tolist() == ["", "", *["WT: NaN: absent"] * 2]
    mean, counts = metric.aggregate()
    assert (mean.tolist(), counts.tolist()) == ([0.625, 1.0], [4, 2])
    metric.reset()
    (alone,) = metric(made_explanation("p", None, {"ET": (0.0,) * 4, "WT": NAN}) for _ in range(1))
    assert torch.isnan(alone).all()
    assert metric.table()["case"].tolist() == ["p"]
    assert "ET: NaN: all values are equal" in metric.table()["notes"][0]
    assert "WT: NaN: a value is NaN" in metric.table()["notes"][0]


def test_rank_variance_has_a_row_for_each_case():
    metric = RankVarianceMetric(["ET", "WT"], named=True)
    metric([case_of("p"), case_of("q", NAN, {"WT": "absent"}), case_of("p")[:1], []])
    table = metric.table()
    np.testing.assert_array_equal(table["rank_variance_ET"], [0.25, 2.25, math.nan, math.nan])
    np.testing.assert_array_equal(table["rank_variance_WT"], [0, math.nan, math.nan, math.nan])
    assert table["case"].tolist() == ["p", "q", "p", "3"]
    assert table["notes"].tolist() == [
        "",
        "WT: NaN: absent",
        "NaN: 1 fold(s); a variance over folds needs two",
        "NaN: 0 fold(s); a variance over folds needs two",
    ]
    assert metric.aggregate() == {"rank_variance_ET": 1.25, "rank_variance_WT": 0.0}
    tied = RankVarianceMetric(["WT"])
    tied([case_of("p", (1.0,) * 4)])
    assert tied.table()["notes"][0].startswith("WT: NaN: 2 of 2 folds have no ranking")


def test_columns_are_chosen_and_a_reference_may_be_a_file(tmp_path):
    path = tmp_path / "reference.yaml"
    path.write_text("source: a test\nregions:\n  ET: [t1c, t1n, t2w, t2f]\n  ED: [t2f, t2w, t1c, t1n]\n")
    assert RankAgreementMetric(str(path)).columns == ("agreement_ET", "agreement_ED")
    metric = RankAgreementMetric(path, sub_regions=["ET"])
    metric([case_of("p")])
    assert metric.aggregate().tolist() == [0.875]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"does not rank TC; it ranks ET, WT"):
        RankAgreementMetric(IN_ORDER, sub_regions=["ET", "TC"])
    for wrong in ([], "ET"):
        with pytest.raises(ValueError, match="expected a list of one or more names"):
            RankVarianceMetric(wrong)
    with pytest.raises(ValueError, match=r"no values of score 'dice' for sub-region 'ET'"):
        RankAgreementMetric(IN_ORDER, score="dice")([case_of("p")])
    with pytest.raises(ValueError, match=r"no values of score 'dice_truth' for sub-region 'TC'"):
        RankVarianceMetric(["TC"])([case_of("p")])
    with pytest.raises(ValueError, match=r"the values are of t1c, t1n: not in the file \[\], without a value"):
        RankAgreementMetric(IN_ORDER, sub_regions=["ET"])(
            [[made_explanation("p", None, {"ET": (1.0, 2.0)}, names=NAMES[:2])]]
        )
    for wrong in (case_of("p") + case_of("q"), case_of("p") * 2):
        with pytest.raises(ValueError, match="expected one case, and each of its folds once"):
            RankVarianceMetric(["ET"])([wrong])


# --- in evaluators ---


@pytest.fixture(scope="module")
def networks(make_network):
    return [make_network("conv", in_channels=4, seed=seed) for seed in (0, 1)]


def raw_case(number):
    rng = np.random.default_rng(number)
    meta = {"filename_or_obj": f"case{number}.nii.gz"}
    image = MetaTensor(rng.normal(size=(4, *SHAPE)).astype(np.float32), affine=torch.eye(4), meta=meta)
    label = MetaTensor((rng.random((3, *SHAPE)) < 0.3).astype(np.float32), affine=torch.eye(4), meta=dict(meta))
    if number == 1:
        label[2] = 0
    return {"image": image, "label": label}


def contrasts_of(networks):
    inferer = SlidingWindowInferer(**INFERER)
    return ContrastShapleyd("image", networks, inferer, NAMES, tumor_sub_regions(), progress=False)


def evaluator(networks, **options):
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([raw_case(n) for n in range(2)]), batch_size=2),
        network=networks[0],
        inferer=SlidingWindowInferer(**INFERER),
        **options,
    )


@pytest.fixture(scope="module")
def alone(networks):
    """The explanations of each case, without an evaluator."""
    return [contrasts_of(networks)(raw_case(n))["contrast_explanations"] for n in range(2)]


def expected_rows(alone):
    agreement = [
        [rank_agreement(one.of("dice_truth", r), IN_ORDER.ranks(r, NAMES)) for r in ("ET", "WT")]
        for folds in alone
        for one in folds
    ]
    variance = [rank_variance(ranks_of(contrast_values(folds, "dice_truth", "WT"))) for folds in alone]
    return np.array(agreement), np.array(variance)


def test_both_ride_on_an_explanation_handler(networks, alone, tmp_path):
    engine = evaluator(networks)
    ExplanationHandler(contrasts_of(networks), key="contrast_explanations").attach(engine)
    agreement, variance = RankAgreementMetric(IN_ORDER, named=True), RankVarianceMetric(["WT"])
    ExplanationMetricHandler(agreement, "agreement", "contrast_explanations", output_dir=tmp_path).attach(engine)
    ExplanationMetricHandler(variance, "rank_variance", "contrast_explanations", output_dir=tmp_path).attach(engine)
    ContrastTableHandler(
        tmp_path / "report", analyze=lambda path, folder: analyze_contrasts(path, folder, IN_ORDER, n_resamples=20)
    ).attach(engine)
    MetricsSaver(str(tmp_path), metrics="*").attach(engine)
    for _ in range(2):  # each epoch starts anew
        engine.run()
    by_fold, by_case = expected_rows(alone)
    assert np.isnan(by_fold).any(axis=1).tolist() == [False, False, True, True]  # case 1 has no ET
    rows = pd.read_csv(tmp_path / "agreement.csv")
    assert rows["case"].tolist() == [f"case{n} fold {k}" for n in range(2) for k in range(2)]
    np.testing.assert_array_equal(rows[["agreement_ET", "agreement_WT"]], by_fold)
    report = pd.read_csv(tmp_path / "report" / "agreement.csv").set_index(["sub_region", "case", "fold"])["agreement"]
    np.testing.assert_allclose(report[["ET", "WT"]].to_numpy().reshape(2, 4).T, by_fold)
    assert (tmp_path / "report" / "contrasts.csv").exists()
    assert engine.state.metrics["agreement_ET"] == pytest.approx(np.nanmean(by_fold[:, 0]))
    assert engine.state.metrics["agreement_WT"] == pytest.approx(by_fold[:, 1].mean())
    np.testing.assert_allclose(pd.read_csv(tmp_path / "rank_variance.csv")["rank_variance_WT"], by_case)
    np.testing.assert_allclose(engine.state.metrics["rank_variance"], [by_case.mean()])
    assert "agreement_WT" in (tmp_path / "metrics.csv").read_text(encoding="utf-8")


def test_both_follow_a_transform_in_the_post_processing(networks, alone):
    both = from_engine(["contrast_explanations"] * 2)
    agreement, variance = RankAgreementMetric(IN_ORDER), RankVarianceMetric(["WT"])
    engine = evaluator(
        networks,
        postprocessing=contrasts_of(networks),
        key_val_metric={"rank_variance": IgniteMetricHandler(metric_fn=variance, output_transform=both)},
        additional_metrics={"agreement": IgniteMetricHandler(metric_fn=agreement, output_transform=both)},
    )
    engine.run()
    by_fold, by_case = expected_rows(alone)
    np.testing.assert_allclose(engine.state.metrics["agreement"], np.nanmean(by_fold, axis=0))
    assert engine.state.metrics["rank_variance"] == pytest.approx(by_case.mean())
    np.testing.assert_allclose(engine.state.metric_details["agreement"], by_fold)


# --- in two processes ---


@pytest.mark.xdist_group("ranks")
def test_two_processes_report_what_one_would(tmp_path):
    run_processes([JOB, tmp_path, JOB.parents[1], 3, 1])
    reference = ReferenceRanking(ORDERS, "for this test")
    cases = [explanations_of(n) for n in range(4)]
    by_fold = np.array(
        [
            [rank_agreement(one.of("dice_truth", r), reference.ranks(r, NAMES)) for r in REGIONS]
            for folds in cases
            for one in folds
        ]
    )
    by_case = np.array(
        [[rank_variance(ranks_of(contrast_values(folds, "dice_truth", r))) for r in REGIONS] for folds in cases]
    )
    assert np.isnan(by_case).tolist() == [[False, False], [True, False], [False, False], [False, False]]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8"))
        np.testing.assert_allclose(found["agreement"]["state"], np.nanmean(by_fold, axis=0))
        np.testing.assert_allclose(found["variance"]["state"], np.nanmean(by_case, axis=0))
        assert found["variance"]["cases"] == [f"case{n}" for n in range(4)]
        assert found["agreement"]["cases"] == [f"case{n} fold {k}" for n in range(4) for k in range(2)]
        assert found["variance"]["notes"] == ["", "ET: NaN: absent", "", ""]
    np.testing.assert_array_equal(pd.read_csv(tmp_path / "agreement.csv").iloc[:, 1:3], by_fold)
    np.testing.assert_array_equal(pd.read_csv(tmp_path / "variance.csv").iloc[:, 1:3], by_case)
