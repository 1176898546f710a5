# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Overlapping regions (sigmoid heads) from the network to the files, against MONAI's plain inferer."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_segshap import writers
from monai_segshap.explainers import Explanation, KernelSHAPExplainer
from monai_segshap.geometry import VoxelGrid
from monai_segshap.heads import OutputHeads
from monai_segshap.perturbation import ConstantBaseline
from monai_segshap.region import Region
from monai_segshap.transforms import (
    KernelSHAPd,
    PredictLogitsd,
    SaveExplanationd,
    SelectRegiond,
    UnitsOfKindd,
)
from monai_segshap.units import Partition, partition_from_labels

SHAPE = (20, 9, 10)
INFERER = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
SCORES = ("tp", "fp", "dice", "soft_dice")
FILL = -0.3
N_UNITS = 5
GRID = VoxelGrid(SHAPE, np.eye(4))


@dataclass(frozen=True)
class Setting:
    network: torch.nn.Module
    image: torch.Tensor
    labels: np.ndarray

    def whole_volume(self, image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return SlidingWindowInferer(**INFERER)(image[None], self.network)[0]

    @property
    def partition(self) -> Partition:
        return partition_from_labels(self.labels, GRID, "blocks")

    def explain(self, target: int = 1, heads: Any = "sigmoid", **options: Any) -> Explanation:
        explainer = KernelSHAPExplainer(
            self.network,
            SlidingWindowInferer(**INFERER),
            baseline=ConstantBaseline(FILL),
            progress=False,
            heads=heads,
            **options,
        )
        logits = self.whole_volume(self.image)
        names = ["whole", "core", "inner"]
        return explainer(self.image, self.partition, [region(target)], logits, names)[0]


def region(target: int) -> Region:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:8, 1:7, 2:8] = True
    mask &= np.random.default_rng(2).random(SHAPE) < 0.7
    return Region(mask, "box", target, 0)


def setting_of(network: torch.nn.Module) -> Setting:
    i, j, _ = np.indices(SHAPE)
    labels = np.minimum(1 + 2 * (i // 5) + (j >= 5), N_UNITS)
    labels[np.random.default_rng(1).random(SHAPE) < 0.1] = 0
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32))
    return Setting(network, image, labels)


@pytest.fixture(scope="module")
def setting(make_network: Callable[..., torch.nn.Module]) -> Setting:
    network = make_network("conv", classes=3)
    with torch.no_grad():
        network[-1].bias += 0.1  # so that several heads claim a voxel
    return setting_of(network)


# --- the oracle ---


def scores_of(logits: np.ndarray, full: np.ndarray, mask: np.ndarray, target: int, signal: str) -> list[float]:
    """Equations 3 to 6 of paper 000, voxel by voxel; a voxel is predicted if the sigmoid is above one half."""
    tp = fp = soft = 0.0
    both = predicted = reference = 0
    for voxel in zip(*np.nonzero(mask), strict=True):
        z, z_full = float(logits[(target, *voxel)]), float(full[(target, *voxel)])
        probability = 1 / (1 + math.exp(-z))
        now, before = probability > 0.5, 1 / (1 + math.exp(-z_full)) > 0.5
        worth = probability if signal == "probability" else z
        tp += worth * (now and before)
        fp -= worth * (now and not before)
        soft += worth * now * (1 if before else -1)
        both, predicted, reference = both + (now and before), predicted + now, reference + before
    size = np.count_nonzero(mask)
    return [tp / size, fp / size, 2 * both / (predicted + reference + 1e-8), soft / size]


def brute_force(setting: Setting, target: int, signal: str) -> tuple[np.ndarray, dict[tuple[bool, ...], np.ndarray]]:
    """Shapley values over all orders in which units join."""
    full, game = setting.whole_volume(setting.image).numpy(), {}
    for kept in itertools.product([False, True], repeat=N_UNITS):
        removed = [unit for unit in range(1, N_UNITS + 1) if not kept[unit - 1]]
        masked = setting.image.clone()
        masked[0][torch.from_numpy(np.isin(setting.labels, removed))] = FILL
        logits = setting.whole_volume(masked).numpy()
        game[kept] = np.array(scores_of(logits, full, region(target).mask, target, signal))
    values = np.zeros((N_UNITS, len(SCORES)))
    for order in itertools.permutations(range(N_UNITS)):
        kept = [False] * N_UNITS
        for unit in order:
            before = game[tuple(kept)]
            kept[unit] = True
            values[unit] += (game[tuple(kept)] - before) / math.factorial(N_UNITS)
    return values, game


@pytest.mark.parametrize("signal", ["logit", "probability", "margin"])
@pytest.mark.parametrize("target", [0, 1])
def test_values_equal_brute_force_over_all_coalitions(setting, target, signal):
    found = setting.explain(target, signal=signal)
    values, game = brute_force(setting, target, signal)
    assert found.method == "exact"
    assert (np.ptp(values, axis=0) > 1e-4).all()
    np.testing.assert_allclose(found.values, values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.full, game[(True,) * N_UNITS], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.empty, game[(False,) * N_UNITS], rtol=0, atol=1e-6)


def test_heads_overlap_here_and_softmax_would_answer_another_question(setting):
    positive = setting.whole_volume(setting.image)[:, torch.from_numpy(region(1).mask)] > 0
    assert (positive.sum(dim=0) > 1).sum() > 10
    assert (positive.sum(dim=0) == 0).sum() > 10
    sigmoid, softmax = setting.explain(), setting.explain(heads="softmax")
    assert np.abs(sigmoid.values - softmax.values).max() > 1e-3


def test_other_heads_do_not_matter_for_a_head(setting):
    class Others(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = setting.network(x)
            return torch.cat([7 - logits[:, 2:], logits[:, 1:2], logits[:, :1] * 3], dim=1)

    other = setting_of(Others()).explain()
    np.testing.assert_array_equal(other.values, setting.explain().values)


def test_the_record_says_heads_and_what_is_predicted_without_units(setting):
    found = setting.explain(heads=OutputHeads("sigmoid", paint=(4, 2, 9)))
    record = json.loads(json.dumps(found.to_dict()))
    assert record["heads"] == {"kind": "sigmoid", "paint": [4, 2, 9]}
    assert record["target_class"] == {"index": 1, "name": "core"}
    masked = torch.where(torch.from_numpy(setting.labels > 0), FILL, setting.image)
    positive = setting.whole_volume(masked)[:, torch.from_numpy(region(1).mask)] > 0
    names = zip(["whole", "core", "inner"], positive.sum(dim=1).tolist(), strict=True)
    assert record["background"]["empty_classes"] == {name: count for name, count in names if count}
    assert setting.explain(heads="softmax").to_dict()["heads"] == {"kind": "softmax", "paint": None}


def test_stores_of_both_kinds_are_not_mistaken_for_each_other(setting, tmp_path):
    for number, heads in enumerate(["sigmoid", "softmax", "sigmoid"]):
        found = setting.explain(heads=heads, store_dir=tmp_path)
        assert len(list(tmp_path.iterdir())) == min(number + 1, 2)
        np.testing.assert_array_equal(found.values, setting.explain(heads=heads).values)


def test_a_prediction_that_fits_gives_no_warning(setting):
    found = setting.explain()
    assert not any("differs from the network's own" in sentence for sentence in found.warnings)


# --- pictures and files ---


def test_pictures_outline_the_targets_own_voxels_and_the_label_map_shows_the_other(setting, tmp_path, monkeypatch):
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(writers, "save_overview", lambda path, **kwargs: drawn.append(kwargs["prediction"]))
    found = setting.explain(0, scores=("tp",))
    logits = setting.whole_volume(setting.image).numpy()
    own, other = logits[0] > 0, (logits[1] > 0) | (logits[2] > 0)
    assert (own & other).any()
    np.testing.assert_array_equal(found.target_mask, own)
    painted = np.select([logits[2] > 0, logits[1] > 0, logits[0] > 0], [3, 2, 1])
    np.testing.assert_array_equal(found.prediction, painted)
    assert not np.array_equal(found.target_mask, found.prediction == 0)
    files = writers.write_explanation(found, tmp_path / "out")
    (outline,) = drawn
    np.testing.assert_array_equal(outline, own)
    np.testing.assert_array_equal(np.asarray(nib.load(files["prediction.nii.gz"]).dataobj), painted)


# --- regions and units ---


def overlapping() -> torch.Tensor:
    """Logits of two heads. Head 0: a bar that hangs together only inside head 1, and a lone blob; head 1: one blob."""
    logits = torch.full((2, *SHAPE), -2.0)
    logits[0, 2:9, 2:5, 2:5] = 1.0
    logits[0, 14:18, 2:6, 2:6] = 1.0
    logits[1, 4:7, 1:8, 1:8] = 5.0
    return logits


def test_a_region_is_a_component_of_the_head_under_overlap_too():
    logits = overlapping()
    data = {"image": torch.zeros(1, *SHAPE), "pred": logits}
    spec = {"mode": "largest", "extent": "component"}
    found = SelectRegiond("pred", "whole", spec, ["whole", "core"], heads="sigmoid")(dict(data))["region"]
    # 63 voxels in one piece; without the overlap there would be pieces of 18 voxels, and the lone blob of 64 is larger
    expected = (logits[0] > 0).numpy() & (np.indices(SHAPE)[0] > 10)
    np.testing.assert_array_equal(found[0].numpy() > 0, expected)
    second = SelectRegiond("pred", 0, {**spec, "mode": "component", "rank": 2}, heads="sigmoid")(dict(data))["region"]
    np.testing.assert_array_equal(second[0].numpy() > 0, (logits[0] > 0).numpy() & ~expected)
    with pytest.raises(
        ValueError, match=r"asked for component 3 of whole, which has 2 component\(s\) of 64, 63 voxels"
    ):
        SelectRegiond("pred", "whole", {**spec, "mode": "component", "rank": 3}, ["whole", "core"], heads="sigmoid")(
            data
        )
    core = SelectRegiond("pred", "core", spec, ["whole", "core"], heads="sigmoid")(dict(data))["region"]
    np.testing.assert_array_equal(core[0].numpy() > 0, (logits[1] > 0).numpy())


def test_predicted_units_of_sigmoid_heads_are_named_after_the_heads_and_have_no_background():
    logits = overlapping()
    data = {"image": torch.zeros(1, *SHAPE), "pred": logits}
    made = UnitsOfKindd("image", "predicted", class_names=["whole", "core"], within_key=None, heads="sigmoid")(data)
    partition = Partition.from_metatensor(made["units"])
    assert list(partition.names) == ["whole", "core"]
    np.testing.assert_array_equal(partition.labels, np.select([logits[1] > 0, logits[0] > 0], [2, 1]))
    # with an order of painting the units are the same: numbers of a label map are no names of heads
    painted = UnitsOfKindd(
        "image", "predicted", class_names=["whole", "core"], within_key=None, heads=OutputHeads("sigmoid", (7, 3))
    )(data)
    np.testing.assert_array_equal(painted["units"], made["units"])


def test_from_logits_to_files_with_transforms(setting, tmp_path):
    inferer = SlidingWindowInferer(**INFERER)
    image = MetaTensor(setting.image, affine=torch.eye(4, dtype=torch.float64))
    names = ["whole", "core", "inner"]
    data: dict[Any, Any] = {"image": image, "case": "blob"}
    for step in (
        PredictLogitsd("image", setting.network, inferer),
        SelectRegiond("pred", "core", {"margin_mm": 1}, names, inferer, heads="sigmoid"),
        UnitsOfKindd("image", "predicted", class_names=names, heads="sigmoid"),
        KernelSHAPd("image", setting.network, inferer, class_names=names, heads="sigmoid", progress=False),
        SaveExplanationd("explanations", tmp_path, overview=False, print_table=False),
    ):
        data = step(data)
    record = json.loads((tmp_path / "blob" / "explanation.json").read_text())
    assert record["heads"]["kind"] == "sigmoid"
    assert record["target_class"]["name"] == "core"
    assert {row["name"] for row in record["attributions"]} <= set(names)
    assert record["region"]["target_voxels"] == int(
        ((data["pred"][1] > 0).as_subclass(torch.Tensor) & (data["region"][0] > 0).as_subclass(torch.Tensor)).sum()
    )
    assert not any("differs from the network's own" in sentence for sentence in record["warnings"])


# --- one channel, and messages ---


def test_networks_with_one_channel_are_explained_with_sigmoid_heads(make_network):
    single = setting_of(make_network("conv", classes=1, seed=3))
    found = single.explain(0)
    values, _ = brute_force(single, 0, "logit")
    np.testing.assert_allclose(found.values, values, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.prediction, (single.whole_volume(single.image)[0] > 0).int())


def test_networks_with_one_channel_are_refused_with_softmax_heads(make_network):
    single = setting_of(make_network("conv", classes=1, seed=3))
    with pytest.raises(ValueError, match=r"one output channel has no argmax: use heads='sigmoid'"):
        single.explain(0, heads="softmax")
    data = {"image": single.image, "pred": single.whole_volume(single.image)}
    with pytest.raises(ValueError, match=r"'pred' has 1 channel\(s\).*use heads='sigmoid'"):
        SelectRegiond("pred", 0)(data)
    assert SelectRegiond("pred", 0, heads="sigmoid")(data)["region"].shape == (1, *SHAPE)


def test_orders_of_painting_that_do_not_fit_and_unknown_heads_are_refused(setting):
    with pytest.raises(ValueError, match=r"has 3 channel\(s\); expected 2, one for each head"):
        setting.explain(heads=OutputHeads("sigmoid", paint=(1, 2)))
    for make in (
        lambda: setting.explain(heads="argmax"),
        lambda: SelectRegiond("pred", 0, heads="argmax"),
        lambda: UnitsOfKindd("image", "predicted", heads="argmax"),
    ):
        with pytest.raises(ValueError, match="unknown heads 'argmax'; expected one of softmax, sigmoid"):
            make()


def test_an_absent_head_is_named():
    data = {"image": torch.zeros(1, *SHAPE), "pred": torch.full((2, *SHAPE), -1.0)}
    with pytest.raises(ValueError, match="the prediction holds no voxel of core"):
        SelectRegiond("pred", "core", class_names=["whole", "core"], heads="sigmoid")(data)


def test_the_message_about_an_absent_head_lists_no_class_that_does_not_exist():
    data = {"image": torch.zeros(1, *SHAPE), "pred": overlapping()}
    data["pred"][0] = -1.0
    with pytest.raises(ValueError, match="holds no voxel of whole") as caught:
        SelectRegiond("pred", "whole", class_names=["whole", "core"], heads="sigmoid")(data)
    assert "-1" not in str(caught.value)


def test_unnamed_heads_have_one_name():
    data = {"image": torch.zeros(1, *SHAPE), "pred": overlapping()}
    made = UnitsOfKindd("image", "predicted", within_key=None, heads="sigmoid")(data)
    assert list(Partition.from_metatensor(made["units"]).names) == ["class 0", "class 1"]
