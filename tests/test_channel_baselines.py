# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Replacement of whole channels by their mean or by noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_segshap.perturbation import ChannelMeanBaseline, ChannelNoiseBaseline

SPACING = (1.0, 1.0, 1.0)


@pytest.fixture
def image() -> torch.Tensor:
    """Two channels of 600 voxels: half of the first is 0; the second is 0 wholly."""
    found = torch.zeros(2, 10, 10, 6)
    found[0, :5] = torch.as_tensor(np.random.default_rng(0).normal(3.0, 2.0, (5, 10, 6)), dtype=torch.float32)
    return found


def test_the_mean_of_nonzero_voxels_leaves_the_background(image):
    fill = ChannelMeanBaseline().fill(image, SPACING)
    mean = float(np.mean(image[0, :5].numpy().astype(np.float64)))
    np.testing.assert_allclose(fill[0, :5].numpy(), mean, rtol=1e-6)
    assert not fill[0, 5:].any()
    assert not fill[1].any()
    assert fill.dtype == image.dtype


def test_the_mean_of_all_voxels_is_everywhere(image):
    fill = ChannelMeanBaseline("all").fill(image, SPACING)
    np.testing.assert_allclose(fill[0].numpy(), float(image[0].double().mean()), rtol=1e-6)
    assert not fill[1].any()


def test_noise_has_the_moments_of_its_channel_and_repeats_by_seed(image):
    fill = ChannelNoiseBaseline().fill(image, SPACING)
    assert not fill[0, 5:].any()
    assert float(fill[0, :5].mean()) == pytest.approx(float(image[0, :5].mean()), abs=0.35)  # 3 sigma of 300 voxels
    assert float(fill[0, :5].std()) == pytest.approx(float(image[0, :5].std()), rel=0.15)
    assert torch.equal(fill, ChannelNoiseBaseline().fill(image, SPACING))
    assert not torch.equal(fill, ChannelNoiseBaseline(seed=1).fill(image, SPACING))
    both = torch.stack([image[0], image[0]])
    first, second = ChannelNoiseBaseline("all").fill(both, SPACING)
    assert (first != 0).all()
    assert not torch.equal(first, second)  # channels have noise of their own


@pytest.mark.parametrize("kind", [ChannelMeanBaseline, ChannelNoiseBaseline])
def test_the_image_stays_as_it_is_and_the_output_says_what_was_done(image, kind):
    before, volume = image.clone(), MetaTensor(image, affine=torch.eye(4))
    kind().fill(volume, SPACING)
    assert torch.equal(image, before)
    described = kind("all").describe()
    assert (described["voxels"], described["local"]) == ("all", True)
    assert described["kind"] == kind.kind
    with pytest.raises(ValueError, match="voxels is 'brain'; expected one of nonzero, all"):
        kind("brain")
