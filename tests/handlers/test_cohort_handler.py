# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A cohort is explained while it is evaluated: rows as the parts give them, resumed without a second explanation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose
from processes import run_processes

from monai_segshap.cohort import RegionMasks, local_importance, read_importances
from monai_segshap.gradients import ClassOutputs, vanilla_gradient
from monai_segshap.handlers import CohortHandler
from monai_segshap.transforms import LocalImportanced, VoxelAttributionsd

JOB = Path(__file__).with_name("ranks_cohort_job.py")
SHAPE = (10, 9, 8)
NAMES = ("background", "liver", "spleen")


def inferer() -> SlidingWindowInferer:
    return SlidingWindowInferer((8, 8, 8), 2, overlap=0.5, mode="gaussian")


@pytest.fixture(scope="module")
def network(make_network):
    return make_network("conv")


def raw_case(number: int) -> dict:
    rng = np.random.default_rng(number)
    meta = {"filename_or_obj": f"case{number}.nii.gz"}
    image = MetaTensor(rng.normal(size=(1, *SHAPE)).astype(np.float32), affine=np.eye(4), meta=meta)
    label = MetaTensor(rng.integers(0, 3, (1, *SHAPE)).astype(np.float32), affine=np.eye(4), meta=meta)
    lesion = torch.zeros((1, *SHAPE))
    lesion[0, 2:4, 3:6, 1:5] = 2
    return {"image": image, "label": label, "lesion": lesion, "group": "abnormal" if number == 2 else "normal"}


class Counted:
    """A transform that counts its calls, and stops at one of them."""

    def __init__(self, transform, stop_at: int | None = None) -> None:
        self.transform, self.calls, self.stop_at = transform, 0, stop_at

    def __call__(self, case):
        if self.calls == self.stop_at:
            raise RuntimeError("killed")
        self.calls += 1
        return self.transform(case)


def explain(network, stop_at=None, **options) -> Counted:
    chain = Compose(
        [
            VoxelAttributionsd("image", network, inferer(), "vanilla_gradient", progress=False),
            LocalImportanced(
                "voxel_attributions",
                NAMES,
                extra_regions={"lesion": "effusion"},
                parts=("absolute", "positive"),
                **options,
            ),
        ]
    )
    return Counted(chain, stop_at)


def evaluator_of(network, handler, cases=(0, 1, 2)) -> SupervisedEvaluator:
    post = Compose([Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([raw_case(n) for n in cases]), batch_size=1),
        network=network,
        inferer=inferer(),
        postprocessing=post,
    )
    handler.attach(evaluator)
    return evaluator


def evaluate(network, handler, cases=(0, 1, 2)) -> SupervisedEvaluator:
    evaluator = evaluator_of(network, handler, cases)
    evaluator.run()
    return evaluator


def expected(network, number: int) -> tuple[np.ndarray, list[float]]:
    """Mass of each class in the predicted classes and the lesion, and Dice, from the layers below and NumPy."""
    case = raw_case(number)
    image = case["image"].as_subclass(torch.Tensor)
    with torch.no_grad():
        logits = inferer()(image[None], network)[0]
    outputs = ClassOutputs(network, inferer(), image, logits, progress=False)
    maps = vanilla_gradient(outputs, image).maps.numpy()
    predicted, label = logits.argmax(0).numpy(), case["label"][0].numpy()
    dice = []
    rows = np.full((3, 4), np.nan)
    for c in range(3):
        mask, truth = predicted == c, label == c
        dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        if mask.any():
            weight = np.abs(maps[c, 0].astype(np.float64))
            columns = [weight[predicted == r].sum() for r in range(3)] + [weight[case["lesion"][0].numpy() > 0].sum()]
            rows[c] = np.array(columns) / weight.sum()
    return rows, dice


def test_rows_equal_the_parts(network, tmp_path):
    seen = []
    handler = CohortHandler(
        explain(network),
        tmp_path / "out",
        lambda files, folder: seen.append((files, folder)),
        {"method": "vg"},
        ["group"],
    )
    evaluator = evaluate(network, handler)
    table = handler.table()
    assert table.cases == ("case0", "case1", "case2")
    assert table.regions == (*NAMES, "effusion")
    for number in range(3):
        rows, dice = expected(network, number)
        np.testing.assert_allclose(table.values[number], rows, rtol=1e-5)
        np.testing.assert_allclose(table.dice.iloc[number][list(NAMES)].to_numpy(float), dice, rtol=1e-6)
    assert list(table.metadata["group"]) == ["normal", "normal", "abnormal"]
    assert seen == [([tmp_path / "out" / "importances.csv"], tmp_path / "out")]
    assert evaluator.state.output[0]["pred"].shape[0] == 1  # post-processing did its work
    assert handler.table(variant="enrichment", part="positive").values.shape == (3, 3, 4)


def test_a_stopped_cohort_continues(network, tmp_path):
    stopped = explain(network, stop_at=2)
    with pytest.raises(RuntimeError, match="killed"):
        evaluate(network, CohortHandler(stopped, tmp_path, settings={"method": "vg"}))
    assert len(pd.read_csv(tmp_path / "importances.csv")) == stopped.calls == 2
    again = explain(network)
    handler = CohortHandler(again, tmp_path, settings={"method": "vg"})
    evaluate(network, handler)
    assert again.calls == 1
    assert handler.explained == ["case2"]
    assert handler.table().cases == ("case0", "case1", "case2")
    with pytest.raises(ValueError, match="belongs to another run"):
        evaluate(network, CohortHandler(explain(network), tmp_path, settings={"method": "sg"}))


def test_joined_classes_are_explained_together(network):
    case = {key: value for key, value in raw_case(1).items()}
    with torch.no_grad():
        case["pred"] = inferer()(case["image"].as_subclass(torch.Tensor)[None], network)[0]
    chain = explain(network, joined={"organs": ["liver", "spleen"]}, variants=("mass",))
    found = chain(case)
    matrix = found["importances"][0]
    assert matrix.explained == ("background", "organs")
    assert matrix.regions == ("background", "organs", "effusion")
    maps = found["voxel_attributions"].maps
    together = torch.stack([maps[0], maps[1] + maps[2]])
    labels = (case["pred"].argmax(0) > 0).long().numpy()
    np.testing.assert_allclose(
        matrix.values[:, :2], local_importance(together, RegionMasks.from_labels(labels, ["b", "o"])), rtol=1e-6
    )


def test_a_label_of_another_shape_is_refused(network):
    case = raw_case(0)
    case["pred"] = torch.zeros((3, *SHAPE))
    case["label"] = case["label"][:, :4]
    with pytest.raises(ValueError, match=r"the label has shape \(1, 4, 9, 8\); expected channels first"):
        LocalImportanced("voxel_attributions", NAMES)._dice(case["pred"], case)


def test_a_cohort_of_which_nothing_is_explained_is_an_error(network, tmp_path, caplog):
    def fail(case):
        raise ValueError("the class is absent")

    handler = CohortHandler(fail, tmp_path, on_error="warn")
    with pytest.raises(ValueError, match=r"no case of the cohort was explained.*The first reason: the class is absent"):
        evaluate(network, handler, cases=(0,))
    assert "case 0 (case0) was not explained: the class is absent" in caplog.text
    assert not list(tmp_path.glob("*.csv"))


def test_the_last_line_says_where_and_how_many(network, tmp_path, capsys):
    evaluate(network, CohortHandler(explain(network), tmp_path), cases=(0, 1))
    assert f"2 cases in {tmp_path}, 2 of them explained now" in capsys.readouterr().out


@pytest.mark.xdist_group("ranks")
def test_two_processes_write_a_file_each_and_the_first_analyzes_both(network, tmp_path):
    torch.save(network, tmp_path / "network.pt")
    run_processes([JOB, tmp_path])
    evaluate(network, CohortHandler(explain(network), tmp_path / "alone", metadata_keys=["group"]))
    alone = read_importances(tmp_path / "alone" / "importances.csv")
    files = ["importances.rank0.csv", "importances.rank1.csv"]
    said = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    assert said == {
        "three_0": f"{[files]} ['case0', 'case2']",
        "three_1": "[] ['case1']",
        "one_0": f"{[files[:1]]} ['case0']",  # the other process has no case, and nobody waits for it
        "one_1": "[] []",
    }
    both = read_importances([tmp_path / "three" / name for name in files])
    assert sorted(both.cases) == sorted(alone.cases) == ["case0", "case1", "case2"]
    for case in alone.cases:
        found, expected_row = (t.values[t.cases.index(case)] for t in (both, alone))
        np.testing.assert_allclose(found, expected_row, rtol=1e-6)
