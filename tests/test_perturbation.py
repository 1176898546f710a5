# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import GaussianSmooth, NormalizeIntensity, ScaleIntensity, ScaleIntensityRange
from scipy import ndimage

from monai_segshap.perturbation import (
    Baseline,
    BlurredBaseline,
    ConstantBaseline,
    LocalMeanBaseline,
    effective_hu,
    network_value,
)

FULL_RANGE = ScaleIntensityRange(-1024, 1024, 0.0, 1.0, clip=True)
SOFT_TISSUE = ScaleIntensityRange(-175, 250, -1.0, 1.0, clip=True)


def nnunet_like(image):
    return (torch.clip(image, -958.0, 290.0) - 48.5) / 135.25


@pytest.fixture
def image() -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(0).normal(size=(2, 12, 14, 9)), dtype=torch.float32)


@pytest.mark.parametrize(
    ("transform", "hu", "value", "effective"),
    [
        (FULL_RANGE, -1024, 0.0, -1024),
        (FULL_RANGE, 0, 0.5, 0),
        (FULL_RANGE, -3000, 0.0, -1024),
        (FULL_RANGE, 2500, 1.0, 1024),
        (SOFT_TISSUE, -1024, -1.0, -175),
        (SOFT_TISSUE, 37.5, 0.0, 37.5),
        (SOFT_TISSUE, 3000, 1.0, 250),
        (ScaleIntensityRange(-1024, 1024, 0.0, 1.0, clip=False), -1536, -0.25, -1536),
        (nnunet_like, -1024, (-958.0 - 48.5) / 135.25, -958),
        (nnunet_like, 50, (50 - 48.5) / 135.25, 50),
    ],
)
def test_hounsfield_units_go_through_the_models_transform(transform, hu, value, effective):
    assert network_value(hu, transform) == pytest.approx(value, abs=1e-6)
    assert effective_hu(hu, transform) == effective
    baseline = ConstantBaseline.from_hu(hu, transform)
    assert baseline.value == pytest.approx(value, abs=1e-6)
    assert (baseline.hu, baseline.requested_hu) == (effective, hu)


def test_network_value_is_what_the_transform_writes_into_an_image():
    ct = torch.linspace(-1024, 1500, 60).reshape(1, 3, 4, 5)
    ct[0, 1, 2, 3] = -1024.0
    for transform in (FULL_RANGE, SOFT_TISSUE, nnunet_like):
        assert float(transform(ct)[0, 1, 2, 3]) == np.float32(network_value(-1024, transform))


def test_without_a_transform_the_network_sees_hounsfield_units():
    baseline = ConstantBaseline.from_hu(-1024, None)
    assert (baseline.value, baseline.hu, baseline.requested_hu) == (-1024.0, -1024.0, -1024.0)


@pytest.mark.parametrize("transform", [NormalizeIntensity(), ScaleIntensity(), GaussianSmooth(sigma=2.0)])
def test_transforms_that_depend_on_the_image_are_refused_with_the_way_out(transform):
    with pytest.raises(ValueError, match=r"no fixed value in network space.*ConstantBaseline\(value\)"):
        network_value(-1024, transform)
    with pytest.raises(ValueError, match="no fixed value"):
        ConstantBaseline.from_hu(-1024, transform)


def test_a_refusal_names_the_value_that_was_asked_for():
    with pytest.raises(ValueError, match="maps 40 HU to"):
        network_value(40, NormalizeIntensity())


def test_constant_fill_has_shape_type_and_value(image):
    filled = ConstantBaseline(-0.25).fill(image.double(), (1.0, 1.0, 1.0))
    assert filled.dtype == torch.float64
    assert filled.shape == image.shape
    assert (filled == -0.25).all()


def test_constant_fill_by_channel(image):
    filled = ConstantBaseline((1.5, -2.0)).fill(image, (1.0, 1.0, 1.0))
    assert (filled[0] == 1.5).all()
    assert (filled[1] == -2.0).all()


def test_constant_fill_can_be_written_to_without_harm(image):
    filled = ConstantBaseline(1.0).fill(image, (1.0, 1.0, 1.0))
    filled[0, 0, 0, 0] = 5.0
    assert (filled == 5.0).sum() == 1


def test_constants_and_channels_must_match(image):
    with pytest.raises(ValueError, match="got 3 baseline values for an image of 2 channels"):
        ConstantBaseline((0.0, 1.0, 2.0)).fill(image, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 2.0, 5.0)])
def test_blur_is_a_gaussian_of_that_many_millimeters(image, spacing):
    filled = BlurredBaseline(sigma_mm=4.0).fill(image, spacing)
    for channel in range(2):
        expected = image[channel].numpy().astype(np.float64)
        for axis, step in enumerate(spacing):
            expected = ndimage.gaussian_filter1d(expected, 4.0 / step, axis=axis, mode="nearest")
        np.testing.assert_allclose(filled[channel], expected, atol=1e-5)


def test_blur_spreads_equally_in_millimeters():
    image = torch.zeros(1, 81, 41, 21)
    image[0, 40, 20, 10] = 1.0
    spacing = np.array([1.0, 2.0, 4.0])
    filled = BlurredBaseline(sigma_mm=6.0).fill(image, tuple(spacing))[0].numpy().astype(np.float64)
    for axis in range(3):
        profile = filled.sum(axis=tuple({0, 1, 2} - {axis}))
        position = (np.arange(len(profile)) - len(profile) // 2) * spacing[axis]
        assert np.sqrt((profile * position**2).sum() / profile.sum()) == pytest.approx(6.0, rel=0.02)


@pytest.mark.parametrize(
    ("size_mm", "spacing", "voxels"),
    [
        (15.0, (3.0, 3.0, 3.0), (5, 5, 5)),
        (15.0, (5.0, 15.0, 3.0), (3, 1, 5)),
        (21.0, (3.0, 7.0, 3.0), (7, 3, 7)),
        (2.0, (5.0, 5.0, 5.0), (1, 1, 1)),
    ],
)
def test_local_mean_is_over_a_box_of_that_many_millimeters(image, size_mm, spacing, voxels):
    filled = LocalMeanBaseline(size_mm=size_mm).fill(image, spacing)[1].numpy()
    reach = [n // 2 for n in voxels]
    padded = np.pad(image[1].numpy().astype(np.float64), [(r, r) for r in reach], mode="edge")
    expected = np.lib.stride_tricks.sliding_window_view(padded, voxels).mean(axis=(3, 4, 5))
    np.testing.assert_allclose(filled, expected, atol=1e-5)


@pytest.mark.parametrize("size_mm", [4.0, 10.0, 17.0, 40.0, 45.0])
@pytest.mark.parametrize("step", [0.7, 1.5, 3.0, 5.0])
def test_local_mean_box_is_within_a_voxel_of_its_size(size_mm, step):
    image = torch.zeros(1, 201, 3, 3)
    image[0, 100] = 1.0
    support = (LocalMeanBaseline(size_mm).fill(image, (step, 1e3, 1e3))[0, :, 1, 1] > 1e-9).sum()
    assert abs(int(support) * step - size_mm) <= step * (1 + 1e-9)


@pytest.mark.parametrize("baseline", [ConstantBaseline(0.5), BlurredBaseline(5.0), LocalMeanBaseline(9.0)])
@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_fill_leaves_the_image_alone_and_keeps_shape_and_type(image, baseline, kind):
    given = MetaTensor(image.clone()) if kind is MetaTensor else image.clone()
    filled = baseline.fill(given, (2.0, 2.0, 3.0))
    assert filled.shape == image.shape
    assert filled.dtype == image.dtype
    assert torch.equal(torch.as_tensor(given), image)
    assert not torch.equal(torch.as_tensor(filled), image)


@pytest.mark.parametrize("baseline", [BlurredBaseline(5.0), LocalMeanBaseline(9.0)])
def test_a_constant_image_is_its_own_blur(baseline):
    image = torch.full((1, 9, 9, 9), 0.3)
    np.testing.assert_allclose(baseline.fill(image, (1.0, 2.0, 3.0)), image, atol=1e-6)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (BlurredBaseline(0.0), "sigma_mm is 0.0; expected a positive length in mm"),
        (BlurredBaseline(float("nan")), "sigma_mm is nan"),
        (LocalMeanBaseline(-3.0), "size_mm is -3.0; expected a positive length in mm"),
    ],
)
def test_lengths_must_be_positive(image, baseline, message):
    with pytest.raises(ValueError, match=message):
        baseline.fill(image, (1.0, 1.0, 1.0))


def test_descriptions_say_what_was_done():
    constant = ConstantBaseline.from_hu(-1024, SOFT_TISSUE).describe()
    assert constant == {"kind": "constant", "local": True, "hu": -175.0, "requested_hu": -1024.0, "network_value": -1.0}
    assert ConstantBaseline((0.0, 1.0)).describe()["network_value"] == [0.0, 1.0]
    unit_free = {"local": True, "hu": None, "network_value": None}
    assert BlurredBaseline(7.5).describe() == {"kind": "blur", "sigma_mm": 7.5, **unit_free}
    assert LocalMeanBaseline(20.0).describe() == {"kind": "local_mean", "size_mm": 20.0, **unit_free}


def test_every_baseline_here_is_local():
    assert all(b.is_local for b in (ConstantBaseline, BlurredBaseline, LocalMeanBaseline))


def test_a_baseline_must_define_its_fill(image):
    class Unfinished(Baseline):
        kind = "unfinished"

    with pytest.raises(TypeError, match=r"Unfinished does not define fill\(\)"):
        Unfinished().fill(image, (1.0, 1.0, 1.0))
