# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Gradients through the sliding window equal those of a whole volume that is fused in differentiable operations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradient_oracles import class_gradients, fuse, relative_difference
from monai.inferers import SlidingWindowInferer

from monai_segshap.gradients import ClassOutputs
from monai_segshap.inferers import infer_volume, monai_window_plan
from monai_segshap.inferers.evaluation import mean_of_folds
from monai_segshap.nnunet import FoldsNetwork, NNUNetInferer

ROI = (8, 8, 6)


def both(network, image, overlap=0.5, mode="gaussian", roi=ROI, padding=("constant", 0.0), batch=3, **options):
    """Gradients of the package and of the oracle, and the outputs."""
    inferer = SlidingWindowInferer(roi, batch, overlap, mode=mode, padding_mode=padding[0], cval=padding[1])
    outputs = ClassOutputs(network, inferer, image, progress=False, **options)
    leaf = image.clone().requires_grad_()
    fused = fuse(network, leaf, roi, overlap, mode, *padding)
    library = inferer(image[None], network)[0]
    torch.testing.assert_close(fused, library, rtol=1e-4, atol=1e-5)
    masks = outputs.masks
    assert torch.equal(masks, torch.stack([library.argmax(dim=0) == c for c in outputs.classes]))
    expected = class_gradients(fused, leaf, masks, outputs.classes, outputs.aggregate)
    return outputs.gradients(image), expected, outputs


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.625])
def test_gradient_is_that_of_the_whole_volume(make_network, noise_image, overlap, mode):
    found, expected, outputs = both(make_network("unet"), noise_image((15, 8, 11)), overlap, mode)
    assert found.dtype == torch.float32
    assert outputs.absent == ()
    assert relative_difference(found, expected) < 1e-6
    precise, expected, _ = both(make_network("unet").double(), noise_image((15, 8, 11)).double(), overlap, mode)
    assert precise.dtype == torch.float64
    assert relative_difference(precise, expected) < 1e-12


@pytest.mark.parametrize("aggregate", ["sum", "mean", "median"])
def test_aggregations_and_channels(make_network, noise_image, aggregate):
    network, image = make_network("unet", in_channels=2).double(), noise_image((13, 9, 8), 2).double()
    found, expected, outputs = both(network, image, aggregate=aggregate)
    assert found.shape == (3, 2, 13, 9, 8)
    assert relative_difference(found, expected) < 1e-12
    for c in range(3):
        assert relative_difference(found[c], expected[c]) < 1e-12
    # another image keeps the masks of the unperturbed one
    other = image + 0.3 * noise_image((13, 9, 8), 2, seed=1).double()
    leaf = other.clone().requires_grad_()
    expected = class_gradients(fuse(network, leaf, ROI, 0.5, "gaussian"), leaf, outputs.masks, (0, 1, 2), aggregate)
    assert relative_difference(outputs.gradients(other), expected) < 1e-12


@pytest.mark.parametrize("padding", [("constant", -1.5), ("reflect", 0.0), ("replicate", 0.0), ("circular", 0.0)])
def test_gradient_goes_back_through_the_padding(make_network, noise_image, padding):
    network, image = make_network("unet").double(), noise_image((5, 9, 4)).double()
    found, expected, outputs = both(network, image, padding=padding, aggregate="mean")
    assert outputs.plan.padded_shape == (8, 9, 6)
    assert found.shape == (3, 1, 5, 9, 4)
    assert relative_difference(found, expected) < 1e-12


def test_batches_and_chunks_of_classes_change_nothing(make_network, noise_image):
    network, image = make_network("unet"), noise_image((15, 8, 11))
    inferer = SlidingWindowInferer(ROI, 3, 0.5, mode="gaussian")
    logits = inferer(image[None], network)[0].detach()
    whole = ClassOutputs(network, inferer, image, logits, progress=False).gradients(image)
    for batch in (1, 2, 5, 100):
        found = ClassOutputs(network, inferer, image, logits, batch_size=batch, progress=False).gradients(image)
        assert relative_difference(found, whole) < 1e-6
    for classes in ((0,), (2, 1)):
        chunk = ClassOutputs(network, inferer, image, logits, classes=classes, progress=False)
        assert chunk.n_forwards == 0
        assert chunk.masks.shape == (len(classes), 15, 8, 11)
        assert relative_difference(chunk.gradients(image), whole[list(classes)]) < 1e-6


def test_windows_count_once_however_many_see_a_voxel(noise_image):
    # logits are the image itself: the gradient of a masked sum is the mask, in every overlap
    network = torch.nn.Conv3d(1, 2, 1, bias=False)
    network.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1, 1)
    image = noise_image((15, 8, 11)).double()
    for overlap in (0.0, 0.25, 0.7):
        outputs = ClassOutputs(
            network.double(), SlidingWindowInferer(ROI, 2, overlap, mode="gaussian"), image, progress=False
        )
        sign = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        assert outputs.values == pytest.approx([float(image[image >= 0].sum()), -float(image[image < 0].sum())])
        torch.testing.assert_close(outputs.gradients(image)[:, 0], outputs.masks * sign.double())


def test_overlapping_sigmoid_heads(make_network, noise_image):
    network, image = make_network("unet").double(), noise_image((13, 9, 8)).double()
    inferer = SlidingWindowInferer(ROI, 3, 0.5, mode="gaussian")
    outputs = ClassOutputs(network, inferer, image, heads="sigmoid", progress=False)
    leaf = image.clone().requires_grad_()
    fused = fuse(network, leaf, ROI, 0.5, "gaussian")
    masks = fused.detach() > 0
    assert bool((masks.sum(dim=0) > 1).any())
    assert torch.equal(outputs.masks, masks)
    expected = class_gradients(fused, leaf, masks, (0, 1, 2), "sum")
    assert relative_difference(outputs.gradients(image), expected) < 1e-12
    assert outputs(image[None])[0] == pytest.approx(
        [float(fused[c][masks[c]].detach().sum()) for c in range(3)], rel=1e-12
    )


class FoldsInferer:
    """Windows of MONAI, one at a time, for a network with the channels of two folds; any accumulator."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def window_plan(self, image):
        plan = monai_window_plan(SlidingWindowInferer(ROI, 1, 0.5, mode="gaussian"), image)
        return replace(plan, folds=2, contiguous=True, weight=plan.weight.to(self.dtype))

    def __call__(self, inputs, network):
        return infer_volume(network, self.window_plan(inputs[0]), inputs[0])[None]


def test_folds_are_averaged(make_network, noise_image):
    first, second = (make_network("unet", seed=s) for s in (0, 1))
    folds = FoldsNetwork([first, second], mirror_axes=(1,)).eval()
    folds.full_precision = False  # keep float64
    image = noise_image((13, 9, 8)).double()
    outputs = ClassOutputs(folds.double(), FoldsInferer(torch.float64), image, progress=False)
    leaf = image.clone().requires_grad_()
    fused = mean_of_folds(fuse(folds, leaf, ROI, 0.5, "gaussian"), 2)
    expected = class_gradients(fused, leaf, outputs.masks, (0, 1, 2), "sum")
    assert relative_difference(outputs.gradients(image), expected) < 1e-12


def test_half_precision_is_for_values_alone(make_network, noise_image):
    folds = FoldsNetwork([make_network("unet", seed=s) for s in (0, 1)]).eval()
    image = noise_image((13, 9, 8))
    inferer = FoldsInferer(torch.half)
    fused = infer_volume(folds, inferer.window_plan(image), image).detach()
    assert fused.dtype == torch.half
    outputs = ClassOutputs(folds, inferer, image, progress=False)
    expected = [float(fused[c][outputs.masks[c]].double().sum()) for c in range(3)]
    assert outputs.values.tolist() == expected
    assert outputs([image])[0].tolist() == expected  # the same batches: the same bits
    leaf = image.clone().requires_grad_()
    whole = mean_of_folds(fuse(folds, leaf, ROI, 0.5, "gaussian"), 2)
    found = outputs.gradients(image)
    assert found.dtype == torch.float32
    # the weights themselves are rounded to half precision
    assert relative_difference(found, class_gradients(whole, leaf, outputs.masks, (0, 1, 2), "sum")) < 1e-3


def test_nnunet_windows_and_two_dimensional_networks(noise_image):
    pytest.importorskip("nnunetv2")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 3, 1))
    folds = FoldsNetwork([network], mirror_axes=(0,), is_2d=True).eval()
    image = noise_image((3, 11, 9))
    inferer = NNUNetInferer((1, 8, 8), 0.5, folds=1)
    outputs = ClassOutputs(folds, inferer, image, progress=False)
    plan, leaf = inferer.window_plan(image), image.clone().requires_grad_()
    total, count = torch.zeros(3, 3, 11, 9), torch.zeros(3, 11, 9)
    for start in plan.starts.tolist():
        place = tuple(slice(s, s + r) for s, r in zip(start, (1, 8, 8), strict=True))
        total[(slice(None), *place)] = total[(slice(None), *place)] + folds(leaf[(None, ..., *place)])[0] * plan.weight
        count[place] += plan.weight
    expected = class_gradients(total / count, leaf, outputs.masks, (0, 1, 2), "sum")
    assert relative_difference(outputs.gradients(image), expected) < 1e-6


def test_gradients_under_callers_without_gradients(make_network, noise_image):
    network, image = make_network("unet"), noise_image((13, 9, 8))
    network.train()
    outputs = ClassOutputs(network, SlidingWindowInferer(ROI, 3), image, progress=False)
    expected = outputs.gradients(image)
    with torch.no_grad():
        assert torch.equal(outputs.gradients(image), expected)
    with torch.inference_mode():
        assert torch.equal(outputs.gradients(image.clone()), expected)
        inside = ClassOutputs(network, SlidingWindowInferer(ROI, 3), image.clone(), progress=False)
    assert torch.equal(inside.gradients(image), expected)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_frozen_networks_and_networks_that_change_their_input(make_network, noise_image):
    network, image = make_network("unet").requires_grad_(False), noise_image((13, 9, 8))
    inferer = SlidingWindowInferer(ROI, 3, 0.5)
    expected = ClassOutputs(network, inferer, image, progress=False).gradients(image)
    outputs = ClassOutputs(lambda windows: network(windows.mul_(1.0)), inferer, image, progress=False)
    assert torch.equal(outputs.gradients(image), expected)
