# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The grid of paper 000: fresh windows on the cropped receptive field."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from brute_force import shapley_over_all_orders
from monai.inferers import SlidingWindowInferer

from monai_segshap.explainers import KernelSHAPExplainer
from monai_segshap.geometry import VoxelGrid
from monai_segshap.inferers import CachingSlidingWindowInferer, crop_box
from monai_segshap.region import select_region
from monai_segshap.units import partition_from_labels

SHAPE, ROI, BOX = (30, 22, 10), (8, 8, 8), [[10, 8, 3], [13, 11, 6]]
WINDOW = {"roi_size": ROI, "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}


@pytest.mark.parametrize(
    ("dilation", "expected"),
    [("half", ((6, 4, 0), (17, 15, 9))), ("full", ((2, 0, 0), (21, 19, 9)))],
)
def test_crop_reaches_half_or_a_whole_window_and_stops_at_the_border(dilation, expected):
    low, high = (tuple(c) for c in BOX)
    assert crop_box([(low, high)], ROI, SHAPE, dilation) == expected


def test_crop_holds_several_regions():
    boxes = [((10, 8, 3), (11, 9, 4)), ((20, 2, 1), (22, 3, 2))]
    assert crop_box(boxes, (4, 4, 4), SHAPE, "half") == ((8, 0, 0), (24, 11, 6))


def test_unknown_dilations_and_grids_are_refused():
    with pytest.raises(ValueError, match="unknown crop dilation 'quarter'; expected one of half, full"):
        crop_box([((0, 0, 0), (1, 1, 1))], ROI, SHAPE, "quarter")
    with pytest.raises(ValueError, match="grid 'cut'"):
        KernelSHAPExplainer(torch.nn.Identity(), SlidingWindowInferer(ROI), grid="cut")


@pytest.fixture
def case(make_network):
    network = make_network("unet")
    rng = np.random.default_rng(3)
    image = torch.from_numpy(rng.normal(size=(1, *SHAPE)).astype(np.float32))
    labels = np.zeros(SHAPE, np.int32)
    for unit, (i, j) in enumerate([(7, 5), (12, 9), (15, 13), (11, 4), (28, 20)], start=1):
        labels[i : i + 2, j : j + 2, 2:8] = unit
    grid = VoxelGrid(SHAPE, np.eye(4))
    with torch.no_grad():
        logits = SlidingWindowInferer(**WINDOW)(image[None], network)[0]
    region = select_region(logits.argmax(0).numpy(), 1, {"mode": "box", "box_ijk": BOX}, grid)
    return network, image, partition_from_labels(labels, grid, "labels"), region, logits


def explain(case, **options):
    network, image, partition, region, logits = case
    explainer = KernelSHAPExplainer(network, CachingSlidingWindowInferer(**WINDOW), progress=False, **options)
    return explainer(image, partition, [region], logits)[0]


def brute_force(case, dilation):
    """Values of the four units in the crop: every coalition through the plain inferer on the cropped image."""
    network, image, partition, region, _ = case
    low, high = crop_box([region.box], ROI, SHAPE, dilation)
    part = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    mask, labels = region.mask[part], partition.labels[part]
    outputs = {}
    for kept in itertools.product((False, True), repeat=4):
        masked = image[(slice(None), *part)].clone()
        for unit, keep in enumerate(kept, start=1):
            if not keep:
                masked[0][torch.from_numpy(labels == unit)] = 0.0
        with torch.no_grad():
            outputs[kept] = SlidingWindowInferer(**WINDOW)(masked[None], network)[0]
    reference = outputs[(True,) * 4].argmax(0).numpy() == 1
    game = {}
    for kept, logits in outputs.items():
        hit = (logits.argmax(0).numpy() == 1) & reference & mask
        game[kept] = logits[1].double().numpy()[hit].sum() / mask.sum()
    return shapley_over_all_orders(game, 4)[:, 0]


@pytest.mark.parametrize("dilation", ["half", "full"])
def test_values_on_the_crop_equal_brute_force_on_the_cropped_image(dilation, case):
    found = explain(case, grid="crop", crop_dilation=dilation, scores=("tp",), method="exact")
    np.testing.assert_allclose(found.values[:4, 0], brute_force(case, dilation), atol=1e-6)
    assert np.abs(found.values[:4]).max() > 1e-3


def test_units_outside_the_crop_are_dummies(case):
    found = explain(case, grid="crop", method="exact")
    assert found.visible.tolist() == [True, True, True, True, False]
    assert (found.values[4] == 0).all()


@pytest.mark.parametrize("dilation", ["half", "full"])
def test_naive_passes_are_all_windows_of_the_crop(dilation, case):
    found = explain(case, grid="crop", crop_dilation=dilation, method="exact")
    low, high = crop_box([case[3].box], ROI, SHAPE, dilation)
    windows = math.prod(max(math.ceil((b - a + 1 - 8) / 4), 0) + 1 for a, b in zip(low, high, strict=True))
    assert found.forwards.naive == windows * found.evaluations
    assert found.forwards.run == found.forwards.planned < found.forwards.naive
    assert found.to_dict()["grid"] == f"crop, {dilation} window"


def test_the_crop_and_the_deployed_grid_are_different_games(case):
    deployed, crop = explain(case, method="exact"), explain(case, grid="crop", method="exact")
    assert deployed.to_dict()["grid"] == "deployed"
    assert not np.allclose(deployed.values[:4], crop.values[:4], atol=1e-6)
    assert not any("prediction given differs" in w for w in crop.warnings)
