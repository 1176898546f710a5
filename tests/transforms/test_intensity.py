# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""From HU to network space, read out of a preprocessing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    ConcatItemsd,
    CopyItemsd,
    CropForegroundd,
    EnsureTyped,
    GaussianSmoothd,
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    RandGaussianNoised,
    RandLambdad,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    ShiftIntensityd,
    Spacingd,
    ThresholdIntensityd,
)

from monai_segshap.perturbation import ConstantBaseline
from monai_segshap.transforms import PointwiseIntensity, intensity_of

CLIP = ScaleIntensityRanged(["image"], -57, 164, 0, 1, clip=True)
#: HU to the number that each chain gives, by hand.
CHAINS = {
    "clipped": ([CLIP], ["ScaleIntensityRanged"], {-1024: 0.0, -57: 0.0, 0: 57 / 221, 164: 1.0, 3000: 1.0}),
    "given z-score": (
        [NormalizeIntensityd("image", subtrahend=100.0, divisor=50.0)],
        ["NormalizeIntensityd"],
        {-1024: -22.48, 100: 0.0, 150: 1.0},
    ),
    "threshold, shift, nested": (
        [
            Compose([ThresholdIntensityd("image", -100, above=True, cval=-100), ShiftIntensityd("image", 100)]),
            ScaleIntensityRanged("image", 0, 200, -1, 1),
        ],
        ["ThresholdIntensityd", "ShiftIntensityd", "ScaleIntensityRanged"],
        {-1024: -1.0, 0: 0.0, 100: 1.0, 200: 2.0},
    ),
    "own function": ([Lambdad("image", lambda x: x / 1000)], ["Lambdad"], {-1024: -1.024, 500: 0.5}),
    "other library": ([lambda d: {**d, "image": d["image"] * 2}], ["function"], {-1024: -2048.0}),
    "nothing": ([], [], {-1024: -1024.0}),
    "label alone": ([ScaleIntensityd("label"), CopyItemsd("image", names="ct")], [], {-1024: -1024.0}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_values_are_those_of_the_transforms_in_order(name):
    chain, names, expected = CHAINS[name]
    before = [
        LoadImaged(["image", "label"]),
        Orientationd("image", "RAS", labels=None),
        Spacingd("image", (1.0, 1.0, 1.0)),
    ]
    after = [CropForegroundd("image", source_key="image"), RandFlipd("image"), EnsureTyped("image")]
    found = intensity_of(Compose([*before, *chain, *after]))
    assert list(found.names) == names
    hu = torch.tensor([float(v) for v in expected]).reshape(1, -1, 1, 1)
    np.testing.assert_allclose(found(hu).ravel(), list(expected.values()), rtol=1e-6, atol=1e-6)
    assert type(found(hu)) is torch.Tensor
    assert ConstantBaseline.from_hu(-1024, found).value == pytest.approx(expected[-1024], rel=1e-6)


def test_a_single_transform_is_enough_and_the_key_can_be_another():
    scale = ScaleIntensityRanged(["ct", "pet"], 0, 100, 0, 1)
    found = intensity_of(scale, "ct")
    assert found == PointwiseIntensity((scale,), "ct")
    assert float(found(torch.full((1, 1, 1, 1), 25.0))) == 0.25
    assert intensity_of(scale, "image").transforms == ()


BAD = {
    "z-score": (NormalizeIntensityd("image"), "NormalizeIntensityd .* does not map a voxel by its value alone"),
    "to [0, 1]": (ScaleIntensityd("image"), "ScaleIntensityd .* does not map a voxel by its value alone"),
    "percentiles": (ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1), "ScaleIntensityRangePercentilesd"),
    "smoothing": (GaussianSmoothd("image", 1.0), "GaussianSmoothd .* does not map a voxel by its value alone"),
    "mean": (Lambdad("image", lambda x: x - x.mean()), "Lambdad .* does not map a voxel by its value alone"),
    "random": (RandGaussianNoised("image"), "RandGaussianNoised in the preprocessing is random"),
    "random function": (RandLambdad("image", lambda x: x), "RandLambdad in the preprocessing is random"),
    "crop": (Lambdad("image", lambda x: x[:, 2:]), r"Lambdad .* changes the shape .*to \(1, 6, 8, 8\)"),
    "needs more": (lambda d: {"image": d["other"]}, "function .* can not be tried .*KeyError: 'other'"),
    "windows": (ConcatItemsd(["soft", "lung"], "image"), r"ConcatItemsd .* makes 'image' from \('soft', 'lung'\)"),
    "copy": (CopyItemsd("ct", names="image"), "CopyItemsd .* makes 'image' from"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_transform_without_a_fixed_value_is_named_with_the_way_out(name):
    transform, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        intensity_of(Compose([LoadImaged("image"), CLIP, transform]))
    assert "explain#baseline_value" in str(caught.value)


def test_a_preprocessing_that_is_none_is_refused():
    with pytest.raises(ValueError, match="the preprocessing is None; expected a Compose"):
        intensity_of(None)


@pytest.mark.parametrize("window", [(-57, 164), (-1000, -500), (300, 700), (-1024, 3000)])
def test_a_window_before_it_does_not_hide_that_a_transform_looks_at_the_whole_image(window):
    """Clipped, two images have the same extremes unless one of them lies inside the window."""
    clip = ScaleIntensityRanged("image", *window, 0, 1, clip=True)
    assert intensity_of(Compose([clip])).transforms == (clip,)
    with pytest.raises(ValueError, match="ScaleIntensityd"):
        intensity_of(Compose([clip, ScaleIntensityd("image")]))


def test_the_random_state_of_the_program_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    draws = np.random.random(), float(torch.rand(()))  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    intensity_of(Compose([CLIP, Lambdad("image", lambda x: x * 2)]))
    assert (np.random.random(), float(torch.rand(()))) == draws  # noqa: NPY002
