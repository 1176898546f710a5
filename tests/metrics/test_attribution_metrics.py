# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Voxel metrics with real class outputs and gradients, alone and inside an evaluator."""

from __future__ import annotations

import csv
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, MetricsSaver, from_engine
from monai.inferers import SlidingWindowInferer

from monai_segshap.gradients import ClassOutputs, smooth_gradient, vanilla_gradient
from monai_segshap.metrics import (
    ComplexityMetric,
    FaithfulnessMetric,
    SensitivityMetric,
    attribution_sensitivity,
    effective_complexity,
    faithfulness_correlation,
    voxel_metrics,
)

SHAPE = (10, 8, 8)
INFERER = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
FEW = {"n_subsets": 8, "progress": False}


def image_of(number=0, channels=1):
    rng = np.random.default_rng(number)
    voxels = rng.normal(size=(channels, *SHAPE)).astype(np.float32)
    return MetaTensor(voxels, affine=np.eye(4), meta={"filename_or_obj": f"scans/case{number}.nii.gz"})


class Linear(torch.nn.Module):
    """Three classes, each logit a weighted sum of the two channels of its own voxel; class 2 is never predicted."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv3d(2, 3, 1)
        with torch.no_grad():
            weight = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.0, 0.0]])
            self.layer.weight.copy_(weight.reshape(3, 2, 1, 1, 1))
            self.layer.bias.copy_(torch.tensor([0.0, 0.0, -100.0]))

    def forward(self, x):
        return self.layer(x)


@pytest.fixture(scope="module")
def network(make_network):
    return make_network("conv")


@pytest.fixture(scope="module")
def inferer():
    return SlidingWindowInferer(**INFERER)


def outputs_of(network, inferer, image, **options):
    return ClassOutputs(network, inferer, image, progress=False, **{"classes": [0, 1, 2], **options})


# --- with real class outputs ---


def test_gradients_of_a_linear_network_are_perfectly_faithful_and_an_absent_class_has_nothing(inferer):
    network, image = Linear(), image_of(channels=2)
    outputs = outputs_of(network, inferer, image)
    assert outputs.absent == (2,)
    gradient = vanilla_gradient(outputs, image)
    contribution = gradient.maps * image.as_tensor()
    found = faithfulness_correlation(outputs, image, contribution, n_subsets=12, progress=False)
    np.testing.assert_allclose(found.correlation[:2], 1.0, atol=1e-6)
    np.testing.assert_allclose(found.sums[:2], found.drops[:2], rtol=1e-4, atol=1e-3)
    assert math.isnan(found.correlation[2])
    assert "its class is not predicted" in found.notes[2]
    assert attribution_sensitivity(partial(vanilla_gradient, outputs), image).values[:2].tolist() == [0.0, 0.0]


def test_drops_are_those_of_whole_volume_inference(network, inferer):
    """Eq. 8 by loops: MONAI's plain inferer, a voxel at a time, mask of the image or of each perturbed image."""
    image = image_of()
    kept = []

    def logits_of(x):
        with torch.no_grad():
            return inferer(x[None], network)[0]

    own = logits_of(image.as_tensor()).argmax(dim=0)
    for mask in ("fixed", "recomputed"):
        outputs = outputs_of(network, inferer, image, mask=mask)
        maps = vanilla_gradient(outputs, image).maps
        images = []

        def recorded(batch, outputs=outputs, images=images):
            images.extend(batch.clone())
            return outputs(batch)

        found = faithfulness_correlation(recorded, image, maps, n_subsets=6, fill=-0.5, progress=False)
        for t in range(3):
            sums, values = [], []
            for changed in images:
                z = logits_of(changed)
                chosen = own if mask == "fixed" else z.argmax(dim=0)
                values.append(sum(float(z[(t, *v)]) for v in zip(*torch.where(chosen == t), strict=True)))
                gone = torch.where((changed != image.as_tensor())[0])
                sums.append(sum(float(maps[(t, 0, *v)]) for v in zip(*gone, strict=True)))
            drops = [values[0] - value for value in values[1:]]
            np.testing.assert_allclose(found.drops[t], drops, atol=2e-3)
            np.testing.assert_allclose(found.sums[t], sums[1:], atol=1e-4)
            assert found.correlation[t] == pytest.approx(np.corrcoef(sums[1:], drops)[0, 1], abs=1e-3)
        kept.append(found.drops)
    assert np.abs(kept[0] - kept[1]).max() > 1.0


def test_the_table_of_real_methods(network, inferer):
    image = image_of()
    outputs = outputs_of(network, inferer, image)
    before = outputs.n_forwards
    methods = {
        "vanilla": partial(vanilla_gradient, outputs),
        "smooth": partial(smooth_gradient, outputs, n=2, sigma=0.3),
    }
    table = voxel_metrics(methods, outputs, image, faithfulness=FEW, sensitivity={"n": 1}, names=["a", "b", "c"])
    assert table["class"].tolist() == list("abc") * 2
    assert table.drop(columns=["sensitivity_se"]).notna().all(axis=None)
    assert (table["faithfulness"] >= -1).all()
    assert (table["faithfulness_low"] < table["faithfulness"]).all()
    # each method at the image and at a noisy one, and 9 images for the faithfulness of all
    windows = outputs.plan.n_windows
    assert outputs.n_forwards - before == windows * (2 * 1 + 2 * 2 + 9)


# --- MONAI metrics ---


def test_each_metric_has_the_numbers_of_its_function(network, inferer):
    images = [image_of(0), image_of(1)]
    outputs = [outputs_of(network, inferer, image, classes=[2, 0]) for image in images]
    maps = [smooth_gradient(one, image, n=2, seed=4) for one, image in zip(outputs, images, strict=True)]
    attribute = partial(smooth_gradient, n=2, seed=4)
    faithful = FaithfulnessMetric(network, inferer, [2, 0], ["lesion", "rest"], options={**FEW, "seed": 5})
    sensitive = SensitivityMetric(network, inferer, (2, 0), attribute, options={"n": 2, "sigma": 0.2})
    complexity = ComplexityMetric([2, 0], ["lesion", "rest"], eps=0.2)
    faithful(maps, images)
    sensitive([one.maps for one in maps], images)
    complexity(torch.stack([one.maps for one in maps]))
    assert faithful.columns == ("faithfulness_lesion", "faithfulness_rest")
    assert sensitive.columns == ("sensitivity_2", "sensitivity_0")
    assert faithful.table()["case"].tolist() == sensitive.table()["case"].tolist() == ["case0", "case1"]
    assert complexity.table()["case"].tolist() == ["0", "1"]
    for number, (one, image) in enumerate(zip(outputs, images, strict=True)):
        expected = faithfulness_correlation(one, image, maps[number], **FEW, seed=5)
        np.testing.assert_array_equal(faithful.table().iloc[number, 1:3].astype(float), expected.correlation)
        run = partial(attribute, one)
        known = attribution_sensitivity(run, image, n=2, sigma=0.2)
        np.testing.assert_allclose(sensitive.table().iloc[number, 1:3].astype(float), known.values, rtol=1e-6)
        np.testing.assert_array_equal(
            complexity.table().iloc[number, 1:3].astype(float), effective_complexity(maps[number], 0.2)
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_subsets_noise_and_numbers(make_network, inferer):
    tables = []
    for device in ("cpu", "cuda"):
        network, image = make_network("conv").to(device), image_of().to(device)
        outputs = outputs_of(network, inferer, image)
        run = partial(vanilla_gradient, outputs)
        table = voxel_metrics(run, outputs, image, faithfulness=FEW, sensitivity={"n": 2})
        tables.append(table.drop(columns=["method", "class", "seconds", "notes"]).to_numpy(float))
    np.testing.assert_allclose(*tables, atol=2e-2)


def test_recomputed_masks_follow_each_image(network, inferer):
    image = image_of()
    outputs = outputs_of(network, inferer, image, mask="recomputed")
    maps = vanilla_gradient(outputs, image)
    faithful = FaithfulnessMetric(network, inferer, [0, 1, 2], mask="recomputed", options=FEW)
    found = faithful([maps], [image])
    np.testing.assert_array_equal(found[0], faithfulness_correlation(outputs, image, maps, **FEW).correlation)
    recomputed, fixed = (
        SensitivityMetric(network, inferer, [0, 1, 2], mask=mask, options={"n": 2, "seed": 1})
        for mask in ("recomputed", "fixed")
    )

    def anew(noisy):
        return vanilla_gradient(outputs_of(network, inferer, noisy), noisy)

    expected = attribution_sensitivity(anew, image, n=2, seed=1).values
    np.testing.assert_allclose(recomputed([maps], [image])[0], expected, rtol=1e-6)
    assert (np.abs(fixed([maps], [image]).numpy()[0] - expected) > 1e-3).all()


def test_nan_of_an_absent_class_does_not_enter_the_mean(inferer):
    network, images = Linear(), [image_of(n, channels=2) for n in range(3)]
    maps = [vanilla_gradient(outputs_of(network, inferer, image), image) for image in images]
    metrics = (
        FaithfulnessMetric(network, inferer, [0, 1, 2], options=FEW, get_not_nans=True),
        SensitivityMetric(network, inferer, [0, 1, 2], options={"n": 1}, get_not_nans=True),
        ComplexityMetric([0, 1, 2], get_not_nans=True),
    )
    for metric in metrics:
        metric(maps, images)
        mean, counts = metric.aggregate()
        assert counts.tolist() == [3, 3, 0]
        assert torch.isnan(mean).tolist() == [False, False, True]
        assert all(metric.columns[2] in text for text in metric.table()["notes"])


def evaluator(network, inferer, metrics, handlers=None, decollate=True):
    def post(case):
        outputs = outputs_of(network, inferer, case["image"])
        return {**case, "maps": vanilla_gradient(outputs, case["image"]).maps}

    def post_of_batch(output):
        maps = [post({"image": image})["maps"] for image in output["image"]]
        return {**output, "maps": torch.stack(maps)}

    first, *others = metrics.items()
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": image_of(n)} for n in range(3)]), batch_size=2),
        network=network,
        inferer=inferer,
        postprocessing=post if decollate else post_of_batch,
        key_val_metric=dict([first]),
        additional_metrics=dict(others),
        val_handlers=handlers,
        decollate=decollate,
        prepare_batch=lambda batch, *_, **__: (batch["image"], None),
    )


@pytest.mark.parametrize("decollate", [True, False])
def test_in_an_evaluator_with_files(network, inferer, tmp_path, decollate):
    faithful = FaithfulnessMetric(network, inferer, [0, 1, 2], options=FEW, reduction="mean")
    complexity = ComplexityMetric([0, 1, 2], named=True)
    pick = from_engine(["maps", "image"])
    saver = MetricsSaver(
        str(tmp_path), "*", "*", batch_transform=faithful.file_names if decollate else from_engine(["image"])
    )
    if not decollate:
        saver.batch_transform = lambda batch: [{"filename_or_obj": p} for p in batch["image"].meta["filename_or_obj"]]
    engine = evaluator(
        network,
        inferer,
        {
            "faithfulness": IgniteMetricHandler(metric_fn=faithful, output_transform=pick),
            "complexity": IgniteMetricHandler(metric_fn=complexity, output_transform=pick),
        },
        [saver],
        decollate,
    )
    engine.run()
    numbers = faithful.table().iloc[:, 1:4].to_numpy(float)
    for n in range(3):
        outputs = outputs_of(network, inferer, image_of(n))
        maps = vanilla_gradient(outputs, image_of(n))
        expected = faithfulness_correlation(outputs, image_of(n), maps, **FEW).correlation
        np.testing.assert_allclose(numbers[n], expected, atol=1e-5)
    assert engine.state.best_metric == engine.state.metrics["faithfulness"] == pytest.approx(numbers.mean())
    assert engine.state.metrics["complexity_1"] == pytest.approx(complexity.table()["complexity_1"].mean())
    with (tmp_path / "faithfulness_raw.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["filename", "class0", "class1", "class2", "mean"]
    names = [f"case{n}" if decollate else f"scans/case{n}.nii.gz" for n in range(3)]
    assert [line[0] for line in lines[1:]] == names
    np.testing.assert_allclose([[float(v) for v in line[1:4]] for line in lines[1:]], numbers, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n, i: FaithfulnessMetric(n, i, [0], mask="free"), "unknown mask 'free'; expected one of fixed, recom"),
        (lambda n, i: SensitivityMetric(n, i, [0, 1], class_names=["a"]), "got 1 class_names for 2 classes"),
        (lambda n, i: ComplexityMetric([0, 1])([torch.ones(3, 2, 2, 2)]), r"3 maps of the classes \(0, 1\)"),
        (
            lambda n, i: ComplexityMetric([0, 1])([SimpleNamespace(maps=torch.ones(2, 2, 2, 2), classes=(1, 0))]),
            r"2 maps of the classes \(1, 0\); expected one for each of \(0, 1\)",
        ),
        (lambda n, i: FaithfulnessMetric(n, i, [0])([torch.ones(1, *SHAPE)]), "y is NoneType for a case; expected its"),
        (
            lambda n, i: SensitivityMetric(n, i, [0])([torch.ones(1, *SHAPE)], [torch.ones(SHAPE)]),
            r"y is \(10, 8, 8\) for a case",
        ),
    ],
)
def test_bad_options_and_calls(network, inferer, make, message):
    with pytest.raises(ValueError, match=message):
        make(network, inferer)
