# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Curves and convergence of explanations as MONAI metrics, in an evaluator and in its files."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, MetricsSaver, from_engine
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose

from monai_segshap.explainers import KernelSHAPExplainer
from monai_segshap.geometry import VoxelGrid
from monai_segshap.metrics import (
    CURVE_FIELDS,
    ConvergenceMetric,
    PerturbationCurveMetric,
    case_convergence,
    case_curves,
    convergence_report,
)
from monai_segshap.perturbation import ConstantBaseline
from monai_segshap.region import Region
from monai_segshap.shapley import plan_coalitions, solve
from monai_segshap.transforms import CubeUnitsd, KernelSHAPd, PerturbationCurvesd, SelectRegiond
from monai_segshap.units import cube_partition

SHAPE = (12, 10, 10)
INFERER = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
NEAR = {"mode": "box", "box_ijk": [[4, 4, 4], [7, 6, 6]]}
CORNER = {"mode": "box", "box_ijk": [[0, 0, 0], [3, 3, 3]]}


@pytest.fixture(scope="module")
def network(make_network):
    return make_network("conv")


def image_of(number):
    rng = np.random.default_rng(number)
    return MetaTensor(
        rng.normal(size=(1, *SHAPE)).astype(np.float32),
        affine=np.eye(4),
        meta={"filename_or_obj": f"case{number}.nii.gz", "original_affine": np.eye(4), "spatial_shape": SHAPE},
    )


@pytest.fixture(scope="module")
def explain(network):
    """``explain(method, boxes, scale_mm)``: explanations of case 0, and a function that makes the game of one."""

    made = {}

    def run(*args, **options):
        key = repr((args, options))
        if key not in made:
            made[key] = make(*args, **options)
        return made[key]

    def make(method="exact", boxes=(NEAR,), scale_mm=8.0, **options):
        image, grid = image_of(0), VoxelGrid(SHAPE, np.eye(4))
        explainer = KernelSHAPExplainer(
            network,
            SlidingWindowInferer(**INFERER),
            scores=("tp", "soft_dice"),
            baseline=ConstantBaseline(-0.3),
            **{"method": method, "progress": False, "tolerance": None, **options},
        )
        with torch.no_grad():
            logits = SlidingWindowInferer(**INFERER)(image[None].as_tensor(), network)[0]
        regions = []
        for spec in boxes:
            mask = np.zeros(SHAPE, dtype=bool)
            mask[tuple(slice(a, b + 1) for a, b in zip(*spec["box_ijk"], strict=True))] = True
            regions.append(Region(mask, "box", 1, 0))
        partition = cube_partition(grid, scale_mm)
        found = explainer(image, partition, regions, logits, case="case0")
        return found, lambda n: explainer.game(image, partition, regions[n], logits)

    return run


# --- curves ---


def test_a_row_for_each_explanation_holds_the_numbers_of_its_curves(explain):
    explanations, _ = explain(boxes=(NEAR, CORNER), scale_mm=6.0)
    curves = [case_curves(one) for one in explanations]
    metric = PerturbationCurveMetric("tp", CURVE_FIELDS)
    metric([curves, curves[:1]], [explanations, explanations[:1]])
    table = metric.table()
    assert table["case"].tolist() == ["case0 class 1"] * 3
    for number, one in enumerate([*curves, curves[0]]):
        for field in CURVE_FIELDS:
            np.testing.assert_array_equal(table.loc[number, f"tp_{field}"], float(getattr(one["tp"], field)))
    assert not np.array_equal(table.loc[0, "tp_abpc"], table.loc[1, "tp_abpc"])
    values = table["tp_abpc"].to_numpy()
    assert metric.aggregate()[metric.columns.index("tp_abpc")] == pytest.approx(np.nanmean(values))
    per_case = PerturbationCurveMetric("tp", ("abpc",), per="case")
    per_case([curves, [], curves[:1]], [explanations, [], explanations[:1]])
    expected = [np.nanmean(values[:2]), math.nan, values[0]]
    np.testing.assert_allclose(per_case.get_buffer()[:, 0], expected, rtol=1e-6)
    assert per_case.table()["notes"].tolist()[1] == "NaN: the case has no explanation"
    assert per_case.aggregate()[0] == pytest.approx(np.nanmean(expected))


def test_undefined_areas_are_nan_with_their_reason_and_do_not_enter_the_mean(explain):
    (one,), _ = explain()
    curves = case_curves(one)
    flat = replace(
        curves["tp"], naopc=math.nan, abpc=0.5, notes={"naopc": "NaN: no room", "aopc": "not a column of this metric"}
    )
    metric = PerturbationCurveMetric("tp", ("naopc", "abpc"), get_not_nans=True)
    metric([[curves], [{"tp": flat}], {"tp": flat}])
    mean, counts = metric.aggregate()
    assert counts.tolist() == [1, 3]
    assert mean.tolist() == pytest.approx([curves["tp"].naopc, (curves["tp"].abpc + 1.0) / 3])
    assert metric.table()["notes"].tolist()[1:] == ["naopc: NaN: no room"] * 2
    assert metric.table()["case"].tolist() == ["0", "1", "2"]


# --- convergence ---


@pytest.mark.parametrize("method", ["kernelshap", "ridge", "walks"])
def test_the_report_of_an_explanation_ends_at_its_own_values(explain, method):
    (one,), make_game = explain(method, scale_mm=4.0, budget=330)
    rng = np.random.default_rng(0)
    others = rng.random((40, int(one.visible.sum()))) < 0.5
    known = {row.tobytes() for row in one.evaluated.rows}
    others = np.array([row for row in others if row.tobytes() not in known])
    held_out = (others, make_game(0).of_visible(others))
    found = case_convergence(one, held_out=held_out)
    assert found.budgets[-1] == len(one.evaluated.rows) - 2
    np.testing.assert_allclose(found.values[-1], one.values[one.visible], atol=1e-9)
    residuals = held_out[1] - one.empty - others @ one.values[one.visible]
    np.testing.assert_allclose(found.held_out_mae[-1], np.abs(residuals).mean(axis=0), atol=1e-9)
    assert found.names == one.scores
    if method == "ridge":  # its prior knows where the units are
        flat = case_convergence(one, held_out=held_out, prior="flat")
        assert np.abs(flat.values[-1] - found.values[-1]).max() > 1e-6
        assert np.abs(case_convergence(one, method="kernelshap").values[-1] - found.values[-1]).max() > 1e-6


def test_an_exact_explanation_is_looked_at_as_sampled_pairs(explain):
    (one,), _ = explain()
    n_units = int(one.visible.sum())
    drawn = plan_coalitions(n_units, 2**n_units - 2, "kernelshap", one.seed)
    table = {row.tobytes(): s for row, s in zip(one.evaluated.rows, one.evaluated.scores, strict=True)}
    scores = np.array([table[row.tobytes()] for row in drawn.rows])
    expected = convergence_report(drawn, scores, budgets=[40, 80], names=one.scores)
    found = case_convergence(one, budgets=[40, 80])
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.held_out_mae, expected.held_out_mae)
    np.testing.assert_allclose(solve(drawn, scores).values, one.values[one.visible], atol=1e-9)


def test_convergence_metric_has_the_last_line_of_the_report(explain):
    (one,), _ = explain("kernelshap", scale_mm=4.0, budget=330)
    fields = ("stability", "held_out_mae", "held_out_r2", "condition_number", "budget", "recommended_budget")
    metric = ConvergenceMetric("soft_dice", fields, options={"tolerance": 0.9})
    metric([[one], one])
    report = case_convergence(one, tolerance=0.9)
    last = report.table().query("score == 'soft_dice'").iloc[-1]
    np.testing.assert_array_equal(metric.table().iloc[0, 1:6].astype(float), last[list(fields[:5])].astype(float))
    assert metric.table().loc[1, "soft_dice_recommended_budget"] == report.recommended[1]
    strict = ConvergenceMetric("soft_dice", ("recommended_budget", "budget"), options={"tolerance": 1e-9})
    strict([[one]])
    assert torch.isnan(strict.aggregate()[0])
    assert strict.aggregate()[1] == report.budgets[-1]


def test_an_explanation_without_a_report_gives_nan_with_the_reason(explain):
    (whole,), _ = explain("kernelshap", scale_mm=4.0, budget=330)
    wide, narrow = explain("kernelshap", boxes=(NEAR, CORNER), scale_mm=4.0, budget=160)[0]
    assert narrow.visible.sum() < wide.visible.sum()
    (few,), _ = explain("exact", scale_mm=12.0)
    assert 2 ** few.visible.sum() == len(few.evaluated.rows) <= 8
    metric = ConvergenceMetric("tp", get_not_nans=True)
    metric([[whole, narrow, few, replace(whole, evaluated=None)]])
    table = metric.table()
    assert table["tp_held_out_mae"].notna().tolist() == [True, False, False, False]
    notes = table["notes"].tolist()
    assert notes[0] == ""
    assert "no plan of method 'kernelshap'" in notes[1]
    assert "Explain this region alone" in notes[1]
    assert "too few" in notes[2]
    assert "no evaluated coalitions" in notes[3]
    mean, counts = metric.aggregate()
    assert counts.tolist() == [1] * len(metric.columns)
    assert mean.tolist() == pytest.approx(table.iloc[0, 1:6].tolist())


# --- in an evaluator ---


def run_evaluator_with(network, metrics, n_cases=3, regions=(NEAR,), batch_size=2, handlers=None):
    shap = KernelSHAPd(
        "image", network, SlidingWindowInferer(**INFERER), method="exact", progress=False, scores=("tp", "soft_dice")
    )
    post = Compose(
        [
            SelectRegiond("pred", 1, list(regions)),
            CubeUnitsd("image", scale_mm=8.0),
            shap,
            PerturbationCurvesd("explanations", shap),
        ]
    )
    first, *others = metrics.items()
    engine = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": image_of(n)} for n in range(n_cases)]), batch_size=batch_size),
        network=network,
        inferer=SlidingWindowInferer(**INFERER),
        postprocessing=post,
        key_val_metric=dict([first]),
        additional_metrics=dict(others),
        val_handlers=handlers,
        prepare_batch=lambda batch, *_, **__: (batch["image"], None),
    )
    engine.run()
    return engine


def lines_of(path):
    with path.open() as file:
        return list(csv.reader(file))


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # MONAI's mean over the columns of a row of NaN
def test_metrics_of_an_evaluator_and_the_files_of_metrics_saver(network, tmp_path):
    abpc = PerturbationCurveMetric("tp", ("abpc",))
    several = PerturbationCurveMetric("soft_dice", ("aopc", "abpc"), named=True)
    budget = ConvergenceMetric("tp", ("held_out_mae", "budget"))
    both = from_engine(["curves", "explanations"])
    saver = MetricsSaver(
        save_dir=str(tmp_path),
        metrics="*",
        metric_details="*",
        batch_transform=abpc.file_names,
        summary_ops=["mean", "notnans"],
    )
    engine = run_evaluator_with(
        network,
        {
            "abpc": IgniteMetricHandler(metric_fn=abpc, output_transform=both),
            "curves": IgniteMetricHandler(metric_fn=several, output_transform=both),
            "budget": IgniteMetricHandler(
                metric_fn=budget, output_transform=from_engine(["explanations", "explanations"])
            ),
        },
        regions=(NEAR, CORNER),
        handlers=[saver],
    )
    table, named = abpc.table(), several.table()
    assert table["case"].tolist() == [f"case{n} class 1" for n in (0, 0, 1, 1, 2, 2)]
    assert table["tp_abpc"].nunique() == 6
    assert engine.state.metrics["abpc"] == engine.state.best_metric == pytest.approx(table["tp_abpc"].mean())
    assert engine.state.metrics["soft_dice_aopc"] == pytest.approx(named["soft_dice_aopc"].mean())
    assert engine.state.metrics["budget"].tolist() == pytest.approx(budget.table().iloc[:, 1:3].mean().tolist())
    raw = lines_of(tmp_path / "abpc_raw.csv")
    assert raw[0] == ["filename", "class0", "mean"]
    assert [line[0] for line in raw[1:]] == table["case"].tolist()
    np.testing.assert_allclose([float(line[1]) for line in raw[1:]], table["tp_abpc"], rtol=1e-6)
    pair = lines_of(tmp_path / "curves_raw.csv")
    np.testing.assert_allclose([float(line[2]) for line in pair[1:]], named["soft_dice_abpc"], rtol=1e-6)
    undefined = [float(line[1]) for line in lines_of(tmp_path / "budget_raw.csv")[1:]]
    np.testing.assert_allclose(undefined, budget.table()["tp_held_out_mae"], rtol=1e-6)
    assert 0 < np.isnan(undefined).sum() < 6  # the corner sees too few units for a report
    summary = lines_of(tmp_path / "abpc_summary.csv")
    assert summary[0] == ["class", "mean", "notnans"]
    assert float(summary[1][2]) == 6.0
    written = dict(line.split(",", 1) for line in (tmp_path / "metrics.csv").read_text().splitlines())
    assert float(written["abpc"]) == pytest.approx(table["tp_abpc"].mean())
    assert float(written["soft_dice_abpc"]) == pytest.approx(named["soft_dice_abpc"].mean())


def test_a_second_epoch_starts_anew(network):
    metric = PerturbationCurveMetric("tp", ("abpc",), per="case")
    handler = IgniteMetricHandler(metric_fn=metric, output_transform=from_engine(["curves", "explanations"]))
    engine = run_evaluator_with(network, {"abpc": handler}, n_cases=2, batch_size=1)
    first = metric.table()
    engine.run()
    assert metric.table().equals(first)
    assert len(first) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PerturbationCurveMetric("tp", ("area",)),
            r"fields are \('area',\).*expected a list with some of aopc",
        ),
        (lambda: PerturbationCurveMetric("tp", "abpc"), "expected a list"),
        (lambda: PerturbationCurveMetric("tp", ["abpc"], per="voxel"), "one of explanation, case"),
        (lambda: ConvergenceMetric("tp", ("abpc",)), "some of stability"),
        (lambda: ConvergenceMetric("tp", prior="near"), "unknown prior 'near'; expected one of distance, flat"),
        (lambda: PerturbationCurveMetric("tp")([[{"fp": None}]]), "no curves of score 'tp'; there are those of fp"),
        (lambda: PerturbationCurveMetric("tp")([[{}]], [[]]), "1 curves and 0 explanations"),
    ],
)
def test_bad_options_and_calls(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unknown_score_or_prior_is_an_error_not_a_row(explain):
    (one,), _ = explain()
    with pytest.raises(ValueError, match="score 'fp' was not computed"):
        ConvergenceMetric("fp")([[one]])
    with pytest.raises(ValueError, match="unknown prior 'near'"):
        case_convergence(one, prior="near")
