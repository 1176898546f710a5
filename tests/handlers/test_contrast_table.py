# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Contrast values of a whole evaluation, collected by handlers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose
from processes import run_processes

from monai_segshap.explainers import contrast_values, tumor_sub_regions
from monai_segshap.handlers import ContrastTableHandler, ExplanationHandler
from monai_segshap.transforms import ContrastShapleyd

NAMES = ("t1c", "t1n", "t2w", "t2f")
SHAPE = (12, 8, 8)
INFERER = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.25}


@pytest.fixture(scope="module")
def networks(make_network):
    return [make_network("conv", in_channels=4, seed=seed) for seed in (0, 1)]


JOB = Path(__file__).with_name("ranks_contrast_job.py")


def raw_case(number: int) -> dict:
    rng = np.random.default_rng(number)
    meta = {"filename_or_obj": f"case{number}.nii.gz"}
    image = MetaTensor(rng.normal(size=(4, *SHAPE)).astype(np.float32), affine=torch.eye(4), meta=meta)
    label = MetaTensor((rng.random((3, *SHAPE)) < 0.3).astype(np.float32), affine=torch.eye(4), meta=dict(meta))
    if number == 1:
        label[2] = 0
    return {"image": image, "label": label}


def contrasts_of(networks) -> ContrastShapleyd:
    return ContrastShapleyd(
        "image", networks, SlidingWindowInferer(**INFERER), NAMES, tumor_sub_regions(), progress=False
    )


def evaluator(networks, cases=(0, 1, 2), **options) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([raw_case(n) for n in cases]), batch_size=2),
        network=networks[0],
        inferer=SlidingWindowInferer(**INFERER),
        postprocessing=Compose([Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)]),
        **options,
    )


def test_values_of_all_cases_and_folds_stand_in_one_table(networks, tmp_path):
    metric = {"dice": MeanDice(output_transform=from_engine(["pred", "label"]))}
    engine = evaluator(networks, key_val_metric=metric)
    ExplanationHandler(contrasts_of(networks), key="contrast_explanations").attach(engine)
    ContrastTableHandler(tmp_path / "out").attach(engine)
    engine.run()
    explanations = engine.state.explanations
    assert [(one.case, one.fold) for one in explanations] == [(f"case{n}", f) for n in range(3) for f in "01"]
    for number in range(3):
        alone = contrasts_of(networks)(raw_case(number))["contrast_explanations"]
        for one, other in zip(explanations[2 * number : 2 * number + 2], alone, strict=True):
            np.testing.assert_allclose(one.values, other.values, atol=1e-5)
    table = engine.state.contrast_table
    assert len(table) == 3 * 2 * 3 * 4
    rows = table[(table.sub_region == "WT") & (table.contrast == "t2w") & (table.fold == "1")]
    expected = contrast_values(explanations[1::2], "dice_truth", "WT")[:, 2]
    assert np.array_equal(rows["value"], expected)
    absent = table[(table.case == "case1") & (table.sub_region == "ET")]
    assert absent["value"].isna().all()
    assert len(absent) == 8
    assert engine.state.metrics["dice"] > 0
    written = pd.read_csv(tmp_path / "out" / "contrasts.csv")
    np.testing.assert_array_equal(written["value"], table["value"])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["contrasts.csv"]
    full = explanations[0].full[0].mean()  # what was explained is the Dice that MONAI reports
    first = evaluator(networks, (0,), key_val_metric=dict(metric))
    first.run()
    assert first.state.metrics["dice"] == pytest.approx(full, abs=1e-5)


def test_an_epoch_without_cases_has_an_empty_table(networks):
    engine = evaluator(networks, (0,))
    ExplanationHandler(contrasts_of(networks), key="contrast_explanations", select=lambda case: False).attach(engine)
    ContrastTableHandler().attach(engine)
    engine.run()
    assert engine.state.contrast_table.empty
    assert "value" in engine.state.contrast_table


def test_an_engine_that_explains_nothing_is_refused():
    engine = Engine(lambda engine, batch: None)
    ContrastTableHandler().attach(engine)
    with pytest.raises(ValueError, match="attach an ExplanationHandler with ContrastShapleyd"):
        engine.run([0])


def test_the_table_is_analyzed_and_holds_what_was_finished_before_an_error(networks, tmp_path):
    def make(case):
        if case["image"].meta["filename_or_obj"] == "case2.nii.gz":
            raise RuntimeError("no more")
        return contrasts_of(networks)(case)

    calls = []
    for explain in (make, contrasts_of(networks)):
        engine = evaluator(networks)
        ContrastTableHandler(tmp_path, analyze=lambda path, folder: calls.append((path, folder))).attach(engine)
        ExplanationHandler(explain, key="contrast_explanations", keep=False).attach(engine)
        if explain is make:
            with pytest.raises(RuntimeError, match="no more"):
                engine.run()
            assert calls == []
            assert set(pd.read_csv(tmp_path / "contrasts.csv")["case"]) == {"case0", "case1"}
        else:
            engine.run()
    assert calls == [(tmp_path / "contrasts.csv", tmp_path)]
    assert set(pd.read_csv(tmp_path / "contrasts.csv")["case"]) == {"case0", "case1", "case2"}
    with pytest.raises(ValueError, match="analyze needs an output_dir"):
        ContrastTableHandler(analyze=print)


def test_cases_that_can_not_be_explained_are_listed_and_none_at_all_is_an_error(networks, tmp_path, capsys):
    def make(case):
        if case["image"].meta["filename_or_obj"] in refused:
            raise ValueError("no ground truth")
        return contrasts_of(networks)(case)

    refused = {"case1.nii.gz"}
    engine = evaluator(networks)
    ExplanationHandler(make, key="contrast_explanations", on_error="warn").attach(engine)
    ContrastTableHandler(tmp_path, analyze=lambda path, folder: None).attach(engine)
    engine.run()
    assert pd.read_csv(tmp_path / "unexplained.csv").values.tolist() == [["case1", "no ground truth"]]
    assert set(pd.read_csv(tmp_path / "contrasts.csv")["case"]) == {"case0", "case2"}
    said = capsys.readouterr().out
    assert "2 cases in" in said
    assert "1 were not explained" in said
    refused.clear()
    engine.run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contrasts.csv"]
    refused |= {f"case{n}.nii.gz" for n in range(3)}
    with pytest.raises(ValueError, match=r"no case was explained\. The first reason, of case0: no ground truth"):
        engine.run()


@pytest.mark.xdist_group("ranks")
def test_two_processes_make_one_table_also_if_one_has_no_case(networks, tmp_path):
    torch.save(networks, tmp_path / "networks.pt")
    run_processes([JOB, tmp_path])
    engine = evaluator(networks)
    ExplanationHandler(contrasts_of(networks), key="contrast_explanations").attach(engine)
    ContrastTableHandler().attach(engine)
    engine.run()
    for name, cases in (("three", ["case0", "case1", "case2"]), ("one", ["case0"])):
        table = pd.read_csv(tmp_path / name / "contrasts.csv", dtype={"fold": str})
        expected = engine.state.contrast_table
        expected = expected[expected["case"].isin(cases)].reset_index(drop=True)
        assert table[["case", "fold", "sub_region", "contrast"]].equals(
            expected[["case", "fold", "sub_region", "contrast"]]
        )
        np.testing.assert_allclose(table["value"], expected["value"], atol=1e-5)
        assert [p.name for p in (tmp_path / name).iterdir()] == ["contrasts.csv"]
        assert (tmp_path / f"{name}.txt").read_text() == "1"
