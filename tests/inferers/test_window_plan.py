# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer

from monai_segshap.inferers import monai_window_plan

GEOMETRIES = [
    pytest.param((21, 13, 9), (8, 8, 8), 0.25, id="odd"),
    pytest.param((21, 13, 9), (8, 6, 4), 0.5, id="anisotropic"),
    pytest.param((20, 16, 8), (8, 8, 8), 0.625, id="dense"),
    pytest.param((5, 13, 3), (8, 8, 8), 0.5, id="padded"),
    pytest.param((5, 4, 3), (8, 8, 8), 0.5, id="one-window"),
    pytest.param((21, 13, 9), (8, -1, 4), (0.5, 0.25, 0.0), id="dynamic-roi"),
    pytest.param((100, 4, 4), (100, 4, 4), 0.9, id="whole-image"),
    pytest.param((130, 4, 4), (100, 4, 4), 0.9, id="truncated-interval"),
]


@pytest.mark.parametrize(("shape", "roi", "overlap"), GEOMETRIES)
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_windows_and_their_batches_are_those_of_the_library(library_windows, shape, roi, overlap, batch_size):
    inferer = {"roi_size": roi, "overlap": overlap, "sw_batch_size": batch_size}
    image = torch.rand(1, *shape)
    expected = library_windows(image, **inferer)
    plan = monai_window_plan(SlidingWindowInferer(**inferer), image)
    assert [tuple(s) for s in plan.starts.tolist()] == [w.start for w in expected]
    assert plan.batch_sizes.tolist() == [w.batch_size for w in expected]


def window_contents(image: torch.Tensor, **inferer: Any) -> list[bytes]:
    plan = monai_window_plan(SlidingWindowInferer(**inferer), image)
    padded = plan.pad(image, as_image=True)
    return [padded[(slice(None), *plan.window_slices(w))].contiguous().numpy().tobytes() for w in range(plan.n_windows)]


@pytest.mark.parametrize(("shape", "roi", "overlap"), GEOMETRIES)
def test_padded_windows_hold_what_the_library_sends(library_windows, shape, roi, overlap):
    inferer = {"roi_size": roi, "overlap": overlap, "cval": -2.5}
    image = torch.rand(2, *shape)
    assert window_contents(image, **inferer) == [w.content for w in library_windows(image, **inferer)]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_mode_is_that_of_the_library(library_windows, mode):
    inferer = {"roi_size": (8, 8, 8), "overlap": 0.5, "padding_mode": mode}
    image = torch.rand(2, 5, 13, 6)
    assert window_contents(image, **inferer) == [w.content for w in library_windows(image, **inferer)]


@pytest.mark.parametrize(("shape", "roi", "overlap"), GEOMETRIES)
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_weight_is_what_the_library_multiplies_with(shape, roi, overlap, mode):
    # a network that answers 1 in the first window and 0 elsewhere returns that window's share of the fused result
    inferer = SlidingWindowInferer(roi_size=roi, overlap=overlap, mode=mode)
    image = torch.ones(1, *shape)
    plan = monai_window_plan(inferer, image)
    number = iter(range(plan.n_windows))
    shares = inferer(image[None], lambda w: w.new_full(w[:, :1].shape, float(next(number) == 0)))[0, 0]
    count = torch.zeros(plan.padded_shape)
    first = torch.zeros(plan.padded_shape)
    for window in range(plan.n_windows):
        count[plan.window_slices(window)] += plan.weight
    first[plan.window_slices(0)] = plan.weight
    inside = tuple(slice(p, p + n) for p, n in zip(plan.low_padding, shape, strict=True))
    assert torch.equal(shares, (first / count)[inside])


@pytest.mark.parametrize(("shape", "roi", "overlap"), GEOMETRIES)
def test_touching_windows_are_those_that_share_a_voxel(shape, roi, overlap):
    plan = monai_window_plan(SlidingWindowInferer(roi_size=roi, overlap=overlap), torch.rand(1, *shape))
    rng = np.random.default_rng(3)
    for _ in range(5):
        corners = np.sort(np.stack([rng.integers(0, n, 2) for n in shape], axis=1), axis=0)
        box = tuple(map(tuple, corners.tolist()))
        mask = torch.zeros(1, *shape)
        mask[(0, *(slice(a, b + 1) for a, b in zip(*box, strict=True)))] = 1
        padded = plan.pad(mask, as_image=False)[0]
        expected = [w for w in range(plan.n_windows) if padded[plan.window_slices(w)].any()]
        assert plan.touching([box]).tolist() == expected


def test_windows_of_several_boxes_are_joined():
    plan = monai_window_plan(SlidingWindowInferer(roi_size=(8, 8, 8), overlap=0), torch.rand(1, 32, 8, 8))
    first, last = ((1, 1, 1), (2, 2, 2)), ((30, 1, 1), (31, 2, 2))
    assert plan.touching([last, first]).tolist() == [0, 3]


@pytest.mark.parametrize(("shape", "roi", "overlap"), GEOMETRIES)
def test_receptive_field_holds_every_voxel_that_matters_and_no_other(shape, roi, overlap):
    # each output voxel is the sum of its window, so it depends on every voxel there
    inferer = SlidingWindowInferer(roi_size=roi, overlap=overlap)
    box = (tuple(n // 4 for n in shape), tuple(n // 3 for n in shape))
    image = torch.rand(1, *shape, requires_grad=True)
    fused = inferer(image[None], lambda w: w.sum(dim=(2, 3, 4), keepdim=True) + torch.zeros_like(w))[0]
    fused[(slice(None), *(slice(a, b + 1) for a, b in zip(*box, strict=True)))].sum().backward()
    field = monai_window_plan(inferer, image.detach()).receptive_field([box])
    assert field.shape == shape
    assert np.array_equal(field, (image.grad[0] != 0).numpy())


def test_accumulator_has_the_dtype_of_the_image():
    plan = monai_window_plan(SlidingWindowInferer(roi_size=(4, 4, 4)), torch.rand(1, 6, 6, 6, dtype=torch.float64))
    assert plan.weight.dtype == torch.float64


def test_buffered_inferer_is_refused():
    inferer = SlidingWindowInferer(roi_size=(4, 4, 4), buffer_steps=2)
    with pytest.raises(ValueError, match="buffer_steps=2"):
        monai_window_plan(inferer, torch.rand(1, 6, 6, 6))


@pytest.mark.parametrize("shape", [(6, 6, 6), (1, 1, 6, 6, 6), (1, 6, 6)])
def test_image_without_exactly_one_channel_axis_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected channel-first \(C, H, W, D\)"):
        monai_window_plan(SlidingWindowInferer(roi_size=(4, 4, 4)), torch.rand(shape))


def test_inferer_that_sends_coordinates_is_refused():
    # the network would be called without them, and one that can do without would answer something else
    with pytest.raises(ValueError, match="with_coord"):
        monai_window_plan(SlidingWindowInferer(roi_size=(4, 4, 4), with_coord=True), torch.rand(1, 6, 6, 6))


@pytest.mark.parametrize("overlap", [1.0, -0.1, (0.5, 0.5, 1.5)], ids=str)
def test_overlap_that_the_library_refuses_is_refused(overlap):
    inferer, image = SlidingWindowInferer(roi_size=(4, 4, 4), overlap=overlap), torch.rand(1, 6, 6, 6)
    with pytest.raises(ValueError, match="overlap"):
        inferer(image[None], torch.nn.Identity())
    with pytest.raises(ValueError, match="overlap"):
        monai_window_plan(inferer, image)


@pytest.mark.parametrize("inferer", [SlidingWindowInferer((4, 4)), SliceInferer(roi_size=(4, 4))], ids=["2d", "slices"])
def test_two_dimensional_windows_are_refused(inferer):
    with pytest.raises(ValueError, match="expected three sizes for a 3D image"):
        monai_window_plan(inferer, torch.rand(1, 6, 6, 6))
