# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Inferers that bring their own windows, several folds in the channels, and images that are perturbed as a whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import Inferer, SaliencyInferer, SimpleInferer, SlidingWindowInferer

from monai_segshap.explainers import KernelSHAPExplainer
from monai_segshap.geometry import VoxelGrid
from monai_segshap.inferers import (
    CoalitionEvaluator,
    PerturbedImages,
    PlansWindows,
    WindowPlan,
    infer_volume,
    monai_window_plan,
    window_plan_of,
)
from monai_segshap.inferers.evaluation import mean_of_folds
from monai_segshap.perturbation import ConstantBaseline
from monai_segshap.region import Region
from monai_segshap.units import partition_from_labels

ROI = (8, 8, 8)
BOX = ((2, 1, 1), (9, 6, 5))
SHAPES = [(21, 13, 9), (8, 8, 8), (5, 13, 6), (5, 4, 3)]


class Folds(torch.nn.Module):
    """Logits of several networks, one after the other in the channels."""

    def __init__(self, networks: list[torch.nn.Module]) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([network(x) for network in self.networks], dim=1)


class Planned(Inferer):
    """An inferer that knows its windows: MONAI's, for several folds."""

    def __init__(self, folds: int, **options: Any) -> None:
        super().__init__()
        self.folds, self.options = folds, options

    def window_plan(self, image: torch.Tensor) -> WindowPlan:
        return replace(monai_window_plan(SlidingWindowInferer(**self.options), image), folds=self.folds)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        fused = SlidingWindowInferer(**self.options)(inputs, network)
        return torch.stack(fused.chunk(self.folds, dim=1)).mean(dim=0)


class Bare:
    """Not even an `Inferer`."""

    def window_plan(self, image: torch.Tensor) -> WindowPlan:
        return monai_window_plan(SlidingWindowInferer(ROI), image)


@pytest.fixture(scope="module")
def two_networks(make_network: Callable[..., torch.nn.Module]) -> list[torch.nn.Module]:
    return [make_network("conv", seed=seed) for seed in (0, 1)]


# --- whole volumes ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("padding", ["constant", "circular", "replicate"])
def test_whole_volumes_are_those_of_the_library(make_network, plain_logits, shape, mode, padding):
    network = make_network("conv", in_channels=2)
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32))
    inferer = {"roi_size": ROI, "overlap": 0.5, "mode": mode, "padding_mode": padding}
    inferer["cval"] = -0.7 if padding == "constant" else 0.0
    plan = monai_window_plan(SlidingWindowInferer(**inferer), image)
    with torch.no_grad():
        found = infer_volume(network, plan, image)
    expected = plain_logits(image, network, **inferer)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    # the library sends views, infer_volume copies: reductions may round by their strides
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_reductions_whole_volumes_have_the_bits_of_the_library(plain_logits, shape):
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.tanh(x), x * x.abs()], dim=1)

    inferer = {"roi_size": ROI, "overlap": 0.5, "mode": "gaussian"}
    plan = monai_window_plan(SlidingWindowInferer(**inferer), image)
    assert torch.equal(infer_volume(network, plan, image), plain_logits(image, network, **inferer))


def test_weights_that_are_not_symmetric_lie_as_in_the_library():
    image, weight = torch.rand(1, 13, 11, 9), torch.rand(ROI) + 0.1
    inferer = SlidingWindowInferer(ROI, overlap=0.5)
    inferer.roi_weight_map = weight

    def network(x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(8.0) + x[..., :1, :1, :1]

    found = infer_volume(network, monai_window_plan(inferer, image), image)
    assert torch.equal(found, inferer(image[None], network)[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_volumes_have_the_bits_of_the_evaluator_in_any_region(make_network, make_case, shape):
    network, case = make_network("unet"), make_case(shape, 4)
    plan = replace(
        monai_window_plan(SlidingWindowInferer(ROI, overlap=0.5, mode="gaussian"), case.image), contiguous=True
    )
    with torch.no_grad():
        whole = infer_volume(network, plan, case.image)
    corner = tuple(n // 2 for n in shape)
    for box in (((0, 0, 0), tuple(n - 1 for n in shape)), (corner, corner)):
        evaluator = CoalitionEvaluator(network, plan, case.image, case.labels, case.fill, [box])
        rows = np.ones((1, evaluator.n_units), dtype=bool)
        ((_, (found,)),) = evaluator.run(evaluator.prepare(rows, 3))
        part = (slice(None), *(slice(a, b + 1) for a, b in zip(*box, strict=True)))
        assert torch.equal(found, whole[part])


def test_progress_is_told_of_every_window_and_the_image_is_left_alone(make_network):
    image = torch.rand(1, 21, 13, 9)
    before, told = image.clone(), []
    plan = monai_window_plan(SlidingWindowInferer(ROI, overlap=0.5), image)
    infer_volume(make_network("conv"), plan, image, told.append)
    assert told == [1] * plan.n_windows
    assert torch.equal(image, before)


def test_networks_that_return_their_input_do_not_corrupt_it():
    image = torch.rand(1, 13, 9, 8)
    plan = monai_window_plan(SlidingWindowInferer(ROI, overlap=0.5, mode="gaussian"), image)
    before = image.clone()
    found = infer_volume(lambda x: x, plan, image)
    assert torch.equal(image, before)
    np.testing.assert_allclose(found, image, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_windows_are_added_up_in_the_dtype_of_the_weight(make_network, dtype):
    image = torch.rand(1, 21, 9, 8)
    plan = monai_window_plan(SlidingWindowInferer(ROI, overlap=0.5, mode="gaussian"), image)
    with torch.no_grad():
        found = infer_volume(make_network("conv"), replace(plan, weight=plan.weight.to(dtype)), image)
        single = infer_volume(make_network("conv"), plan, image)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.float(), single, atol=2e-2 if dtype == torch.float16 else 1e-6)


def test_a_plan_without_windows_is_refused():
    image = torch.rand(1, 8, 8, 8)
    plan = replace(Bare().window_plan(image), starts=np.empty((0, 3), dtype=np.int64))
    with pytest.raises(ValueError, match="the plan holds no window"):
        infer_volume(lambda x: x, plan, image)


# --- folds ---


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_the_mean_of_folds_is_that_of_their_blocks_of_channels(folds):
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(folds * 4, 3, 5, 2)).astype(np.float32))
    before = logits.clone()
    expected = np.zeros((4, 3, 5, 2))
    for fold, channel in itertools.product(range(folds), range(4)):
        expected[channel] += logits[fold * 4 + channel].double().numpy() / folds
    np.testing.assert_allclose(mean_of_folds(logits, folds), expected, rtol=0, atol=1e-6)
    assert torch.equal(logits, before)


def test_folds_are_added_in_order_in_their_own_precision():
    logits = torch.tensor([2048.0, 1.0, 1.0, 1.0], dtype=torch.half).reshape(4, 1, 1, 1)
    found = mean_of_folds(logits, 4)
    assert found.dtype == torch.half
    assert found.item() == 2048 / 4  # 2048 + 1 is 2048 in half precision
    assert mean_of_folds(logits, 1) is logits


@pytest.mark.parametrize("batch_size", [1, 3])
def test_folds_in_regions_are_the_mean_of_whole_volume_inferences(two_networks, make_case, plain_logits, batch_size):
    case = make_case((21, 13, 9), 5)
    options = {"roi_size": ROI, "overlap": 0.5, "mode": "gaussian", "sw_batch_size": batch_size}
    plan = Planned(2, **options).window_plan(case.image)
    evaluator = CoalitionEvaluator(Folds(two_networks), plan, case.image, case.labels, case.fill, [BOX])
    rows = np.random.default_rng(0).random((6, evaluator.n_units)) < 0.5
    rows[0] = True
    for number, (found,) in evaluator.run(evaluator.prepare(rows, 3)):
        kept = np.ones(case.n_units, dtype=bool)
        kept[evaluator.visible] = rows[number]
        first, second = (plain_logits(case.masked(kept), network, **options) for network in two_networks)
        expected = (first + second) / 2
        part = (slice(None), *(slice(a, b + 1) for a, b in zip(*BOX, strict=True)))
        assert torch.equal(found, expected[part])


@pytest.mark.parametrize(
    ("folds", "n_classes", "came"), [(2, 3, 3), (2, 2, 3), (3, 3, 6), (2, 6, 6)], ids=lambda v: str(v)
)
def test_other_numbers_of_channels_than_folds_times_classes_are_refused(
    two_networks, make_case, folds, n_classes, came
):
    case = make_case((13, 9, 9), 3)
    network = Folds(two_networks) if came == 6 else two_networks[0]
    plan = Planned(folds, roi_size=ROI).window_plan(case.image)
    evaluator = CoalitionEvaluator(network, plan, case.image, case.labels, case.fill, [BOX])
    prepared = evaluator.prepare(np.ones((1, evaluator.n_units), dtype=bool), n_classes)
    expected = rf"returned \(1, {came}, 8, 8, 8\).*expected one tensor of shape \(1, {folds * n_classes}, 8, 8, 8\)"
    with pytest.raises(ValueError, match=rf"{expected}.*{n_classes} classes.*for each of {folds} folds"):
        list(evaluator.run(prepared))


def test_whole_volumes_of_folds_are_the_mean(two_networks, plain_logits):
    image = torch.rand(1, 21, 13, 9)
    options = {"roi_size": ROI, "overlap": 0.5}
    with torch.no_grad():
        found = infer_volume(Folds(two_networks), Planned(2, **options).window_plan(image), image)
    first, second = (plain_logits(image, network, **options) for network in two_networks)
    np.testing.assert_allclose(found, (first + second) / 2, rtol=0, atol=1e-5)


def test_held_logits_of_all_folds_count_as_memory(two_networks, make_case):
    case = make_case((21, 13, 9), 5)
    peaks = []
    for folds in (1, 2):
        network = Folds(two_networks[:folds])
        plan = Planned(folds, roi_size=ROI, overlap=0.5).window_plan(case.image)
        evaluator = CoalitionEvaluator(network, plan, case.image, case.labels, case.fill, [BOX])
        prepared = evaluator.prepare(np.random.default_rng(0).random((6, evaluator.n_units)) < 0.5, 3)
        list(evaluator.run(prepared))
        assert evaluator.peak_held_bytes == prepared.jobs.peak_bytes
        peaks.append(evaluator.peak_held_bytes)
    assert peaks[1] == 2 * peaks[0]


def test_values_with_an_inferer_of_ones_own_equal_brute_force(two_networks):
    """Two folds, three units, Shapley values over all orders, Dice and the mean logit."""
    shape = (16, 9, 8)
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))
    labels = 1 + np.indices(shape)[0] // 6
    mask = np.zeros(shape, dtype=bool)
    mask[5:11, 2:7, 2:7] = True
    inferer, network = Planned(2, roi_size=ROI, overlap=0.5, mode="gaussian"), Folds(two_networks)

    def logits_of(kept: Any) -> np.ndarray:
        removed = np.isin(labels, [unit for unit in (1, 2, 3) if not kept[unit - 1]])
        with torch.no_grad():
            return inferer(torch.where(torch.from_numpy(removed), -0.4, image)[None], network)[0].double().numpy()

    full = logits_of((1, 1, 1))
    game = {}
    for kept in itertools.product([0, 1], repeat=3):
        z = logits_of(kept)
        now, before = (x.argmax(axis=0)[mask] == 1 for x in (z, full))
        tp = (z[1][mask] * (now & before)).mean()
        game[kept] = np.array([tp, 2 * (now & before).sum() / (now.sum() + before.sum() + 1e-8)])
    values = np.zeros((3, 2))
    for order in itertools.permutations(range(3)):
        kept = [0, 0, 0]
        for unit in order:
            before = game[tuple(kept)]
            kept[unit] = 1
            values[unit] += (game[tuple(kept)] - before) / math.factorial(3)
    explainer = KernelSHAPExplainer(network, inferer, ("tp", "dice"), baseline=ConstantBaseline(-0.4), progress=False)
    partition = partition_from_labels(labels, VoxelGrid(shape, np.eye(4)), "slabs")
    region, logits = Region(mask, "box", 1, 0), torch.from_numpy(full).float()
    (found,) = explainer(image, partition, [region], logits)
    np.testing.assert_allclose(found.values, values, rtol=0, atol=1e-6)
    assert np.abs(values).max() > 1e-2
    assert not any("differs from the network's own" in sentence for sentence in found.warnings)
    with pytest.raises(ValueError, match="for each of 2 folds"):
        explainer(image, partition, [region], torch.cat([logits, logits[:1]]))


# --- whose windows ---


@pytest.mark.parametrize(
    "inferer", [SimpleInferer(), lambda x, network: network(x), None], ids=["simple", "function", "none"]
)
def test_inferers_without_windows_are_refused_with_a_way_out(inferer):
    with pytest.raises(
        TypeError, match=r"expected MONAI's SlidingWindowInferer, or an inferer with a method window_plan"
    ):
        window_plan_of(inferer, torch.rand(1, 8, 8, 8))
    with pytest.raises(TypeError, match=r"use a SlidingWindowInferer whose roi_size is the image's"):
        window_plan_of(inferer, torch.rand(1, 8, 8, 8))


def test_the_class_of_a_refused_inferer_is_named():
    with pytest.raises(TypeError, match="the inferer is a SimpleInferer"):
        window_plan_of(SimpleInferer(), torch.rand(1, 8, 8, 8))
    with pytest.raises(TypeError, match="the inferer is a SaliencyInferer"):
        window_plan_of(SaliencyInferer("GradCAM", "layer"), torch.rand(1, 8, 8, 8))


def test_the_way_out_works(make_network):
    """A sliding window of the image's size is the network on the whole image."""
    image = torch.rand(1, 12, 9, 7)
    plan = window_plan_of(SlidingWindowInferer((12, 9, 7)), image)
    assert plan.n_windows == 1
    network = make_network("conv")
    with torch.no_grad():
        assert torch.equal(infer_volume(network, plan, image), SimpleInferer()(image[None], network)[0])


def test_any_object_with_a_plan_is_taken_and_monais_inferer_by_its_windows():
    image = torch.rand(1, 13, 9, 8)
    assert isinstance(Bare(), PlansWindows)
    assert not isinstance(SlidingWindowInferer(ROI), PlansWindows)
    mine, monais = window_plan_of(Bare(), image), window_plan_of(SlidingWindowInferer(ROI), image)
    assert mine.starts.tolist() == monais.starts.tolist()
    assert window_plan_of(Planned(4, roi_size=ROI), image).folds == 4


def test_a_subclass_of_monais_inferer_with_a_plan_is_asked_for_it():
    class Own(SlidingWindowInferer):
        def window_plan(self, image: torch.Tensor) -> WindowPlan:
            return monai_window_plan(SlidingWindowInferer((4, 4, 4)), image)

    assert window_plan_of(Own((8, 8, 8)), torch.rand(1, 8, 8, 8)).roi_size == (4, 4, 4)


# --- images perturbed as a whole ---


def test_images_perturbed_as_a_whole_give_the_bits_of_perturbed_windows(make_network, make_case):
    network, case = make_network("unet"), make_case((21, 7, 9), 6)  # padded along the second axis
    inferer = SlidingWindowInferer(ROI, sw_batch_size=2, overlap=0.5, mode="gaussian", cval=0.6)
    plan = monai_window_plan(inferer, case.image)
    arguments = (network, plan, case.image, case.labels, case.fill, [BOX])
    plain = CoalitionEvaluator(*arguments)
    whole = CoalitionEvaluator(*arguments, perturbed=PerturbedImages(case.masked, plain.visible, "masked"))
    assert whole.visible.tolist() == plain.visible.tolist()
    rows = np.random.default_rng(0).random((7, plain.n_units)) < 0.5
    rows[2] = rows[3]
    prepared = whole.prepare(rows, 3)
    for (_, (found,)), (_, (expected,)) in zip(whole.run(prepared), plain.run(plain.prepare(rows, 3)), strict=True):
        assert torch.equal(found, expected)
    # six different coalitions, each with all of its windows; the last batch may be filled up
    windows = len(plan.touching([BOX]))
    assert 6 * windows <= whole.n_forwards == prepared.forwards.planned <= 6 * windows + 1
    assert not np.array_equal(rows[0], rows[1])


def test_a_few_images_are_kept(make_case):
    case, made = make_case((9, 8, 8), 6), []

    def make(kept: np.ndarray) -> torch.Tensor:
        made.append(kept.tolist())
        return case.masked(kept)

    images = PerturbedImages(make, np.ones(6, dtype=bool), "masked")
    rows = [np.array(row, dtype=bool) for row in itertools.product([0, 1], repeat=6)][:6]
    for row in (*rows[:4], *rows[:4], rows[0]):
        assert torch.equal(images(row), case.masked(row))
    assert len(made) == 4
    images(rows[4])  # takes the place of the one that was used longest ago, the second
    images(rows[0])
    assert len(made) == 5
    images(rows[1])
    assert len(made) == 6


def test_perturbations_of_another_number_of_units_are_refused(make_network, make_case):
    case = make_case((9, 8, 8), 6)
    plan = monai_window_plan(SlidingWindowInferer(ROI), case.image)
    wrong = PerturbedImages(case.masked, np.ones(5, dtype=bool), "masked")
    with pytest.raises(ValueError, match="the perturbation knows 5 units; expected 6"):
        CoalitionEvaluator(
            make_network("conv"), plan, case.image, case.labels, case.fill, [(BOX[0], (8, 6, 5))], perturbed=wrong
        )
