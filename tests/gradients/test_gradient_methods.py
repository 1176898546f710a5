# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Vanilla gradient, SmoothGrad and integrated gradients against captum, closed forms and each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gradient_oracles import relative_difference
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet

from monai_segshap.gradients import (
    ClassOutputs,
    VoxelAttributions,
    gradient_noise,
    integrated_gradients,
    smooth_gradient,
    vanilla_gradient,
)
from monai_segshap.networks import load_weights
from monai_segshap.phantoms import torso_phantom

captum_attr = pytest.importorskip("captum.attr")
SHAPE = (10, 8, 6)
#: four windows of WINDOW
WIDE, WINDOW = (11, 10, 6), (8, 8, 6)


def of(network, image, roi=SHAPE, **options):
    """Class outputs; one window by default, so that captum sees the same function."""
    inferer = SlidingWindowInferer(roi, 2, 0.5, mode="gaussian")
    return ClassOutputs(network, inferer, image, progress=False, **options)


def forward_of(network, outputs, how):
    """What captum explains: images (N, C, H, W, D) to (N, T), with fixed masks."""

    def forward(images):
        logits = network(images)
        return torch.stack(
            [how(logits[:, c][:, mask], dim=1) for c, mask in zip(outputs.classes, outputs.masks, strict=True)], 1
        )

    return forward


@pytest.fixture
def single(make_network, noise_image):
    """Network, image with two channels, outputs, and captum's function."""
    network, image = make_network("unet", in_channels=2).double(), noise_image(SHAPE, 2).double()
    outputs = of(network, image)
    assert outputs.plan.n_windows == 1
    return network, image, outputs, forward_of(network, outputs, torch.sum)


def test_vanilla_gradient_is_captums_saliency(single):
    _, image, outputs, forward = single
    found = vanilla_gradient(outputs, image)
    saliency = captum_attr.Saliency(forward)
    for t in range(3):
        expected = saliency.attribute(image[None], target=t, abs=False)[0]
        assert relative_difference(found.of_class(t), expected) < 1e-12


@pytest.mark.parametrize("baseline", ["number", "tensor"])
@pytest.mark.parametrize("how", [torch.sum, torch.mean], ids=lambda f: f.__name__)
def test_integrated_gradients_are_captums(single, noise_image, baseline, how):
    network, image, _, _ = single
    outputs = of(network, image, aggregate=how.__name__)
    start = 0.3 if baseline == "number" else noise_image(SHAPE, 2, seed=5).double()
    found = integrated_gradients(outputs, image, start, steps=8)
    oracle = captum_attr.IntegratedGradients(forward_of(network, outputs, how))
    for t in range(3):
        given = start if baseline == "number" else start[None]
        expected, delta = oracle.attribute(
            image[None], given, target=t, n_steps=8, method="riemann_middle", return_convergence_delta=True
        )
        assert relative_difference(found.of_class(t), expected[0]) < 1e-12
        assert found.completeness_gap[t] == pytest.approx(abs(float(delta)), rel=1e-6)
    assert found.settings["baseline"] == (0.3 if baseline == "number" else "tensor")


def test_smooth_gradient_is_captums_noise_tunnel_with_the_same_noise(single, monkeypatch):
    _, image, outputs, forward = single
    n, sigma = 6, 0.2
    deviation = sigma * float(image.max() - image.min())
    found = smooth_gradient(outputs, image, n, sigma, seed=3)
    assert found.settings["noise_deviation"] == pytest.approx(deviation, rel=1e-12)
    noise = torch.stack([gradient_noise(image, 3, j) for j in range(n)])
    drawn = []

    def given_noise(mean, std):
        drawn.append((mean, tuple(std.shape), float(std.flatten()[0])))
        return deviation * noise

    monkeypatch.setattr(torch, "normal", given_noise)
    tunnel = captum_attr.NoiseTunnel(captum_attr.Saliency(forward))
    for t in range(3):
        expected = tunnel.attribute(
            image[None], nt_type="smoothgrad", nt_samples=n, stdevs=deviation, target=t, abs=False
        )[0]
        assert relative_difference(found.of_class(t), expected) < 1e-12
    assert drawn == [(0, (n, *image.shape), pytest.approx(deviation))] * 3


def test_noise_depends_on_seed_and_sample_alone(noise_image):
    image = torch.zeros(2, 30, 31, 32)
    first = gradient_noise(image, 0, 1)
    assert first.dtype == torch.float32
    assert torch.equal(first, gradient_noise(image + 1, 0, 1))
    assert gradient_noise(image.double(), 0, 1).dtype == torch.float64
    others = [gradient_noise(image, *key) for key in ((0, 0), (1, 0), (1, 1))]
    for other in others:
        assert abs(float((first * other).mean())) < 4 / np.sqrt(first.numel())
    assert float(first.mean()) == pytest.approx(0, abs=4 / np.sqrt(first.numel()))
    assert float(first.var()) == pytest.approx(1, abs=4 * np.sqrt(2 / first.numel()))


def test_smooth_gradient_is_the_signed_mean_over_windows_and_batches(make_network, noise_image):
    network, image = make_network("unet").double(), noise_image(WIDE).double()
    outputs = of(network, image, WINDOW)
    n, deviation = 4, 0.1 * float(image.max() - image.min())
    samples = [image + deviation * gradient_noise(image, 7, j) for j in range(n)]
    expected = torch.stack([outputs.gradients(sample) for sample in samples]).mean(dim=0)
    for batch in (1, 5):
        found = smooth_gradient(of(network, image, WINDOW, batch_size=batch), image, n, seed=7)
        assert relative_difference(found.maps, expected) < 1e-12
    assert relative_difference(expected, outputs.gradients(image)) > 0.1
    # more samples begin with the same ones
    more = smooth_gradient(outputs, image, n + 1, seed=7).maps * (n + 1) - expected * n
    last = outputs.gradients(image + deviation * gradient_noise(image, 7, n))
    assert relative_difference(more, last) < 1e-10
    assert relative_difference(smooth_gradient(outputs, image, 1, sigma=0).maps, outputs.gradients(image)) == 0


def test_integrated_gradients_of_a_quadratic_are_exact(noise_image):
    # z_0 = 3 x^2, z_1 = 1: midpoints integrate a line exactly, one step is enough
    class Square(torch.nn.Module):
        def forward(self, windows):
            return torch.cat([3 * windows**2, torch.ones_like(windows)], dim=1)

    image = noise_image(WIDE).double() + 1
    outputs = of(Square(), image, WINDOW)
    mask = outputs.masks[0][None]
    assert 0 < mask.sum() < mask.numel()
    for start in (0.0, -0.7):
        found = integrated_gradients(outputs, image, start, steps=1)
        torch.testing.assert_close(found.of_class(0), 3 * (image**2 - start**2) * mask)
        assert not found.of_class(1).any()
        assert found.completeness_gap == pytest.approx([0, 0], abs=1e-9)
        assert np.isnan(found.relative_gap[1])  # the output does not change


def train(network, image):
    """Classes by the mean of the neighborhood, learned in a moment."""
    mean = torch.nn.functional.avg_pool3d(image[None], 3, 1, 1)
    labels = (mean[:, 0] > -0.2).long() + (mean[:, 0] > 0.2).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(image[None]), labels)
        loss.backward()
        optimizer.step()
    assert (network(image[None]).argmax(dim=1) == labels).double().mean() > 0.8
    return network


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
def test_the_gap_falls_with_the_square_of_the_steps(smooth_network, noise_image, aggregate, trained):
    network, image = smooth_network().double(), 2 * noise_image(WIDE).double()
    network = train(network, image) if trained else network
    outputs = of(network, image, WINDOW, aggregate=aggregate)
    found = {n: integrated_gradients(outputs, image, 0.0, n) for n in (10, 20, 40)}
    change = outputs.values - outputs([0 * image])[0]
    assert (found[20].relative_gap < 0.01).all()
    for n, attributions in found.items():
        gap = abs(attributions.maps.sum(dim=(1, 2, 3, 4)).numpy() - change)
        assert attributions.completeness_gap == pytest.approx(gap, rel=1e-6)
        assert attributions.relative_gap == pytest.approx(gap / abs(change), rel=1e-6)
        assert attributions.settings["steps"] == n
    first, second = (found[n].completeness_gap / found[2 * n].completeness_gap for n in (10, 20))
    assert (first > 3.6).all()
    assert second == pytest.approx(4, rel=0.1)


def test_shorter_steps_near_the_baseline_integrate_the_same(smooth_network, noise_image):
    network, image = smooth_network().double(), noise_image(WIDE).double()
    outputs = of(network, image, WINDOW)
    exact = integrated_gradients(outputs, image, 0.0, 60).maps
    differences = [
        relative_difference(integrated_gradients(outputs, image, 0.0, n, exponent=4).maps, exact) for n in (10, 20)
    ]
    assert differences[1] < 1e-2
    assert differences[0] / differences[1] == pytest.approx(4, rel=0.2)
    by_hand = sum(4 * u**3 / 5 * outputs.gradients(u**4 * image) * image for u in (0.1, 0.3, 0.5, 0.7, 0.9))
    assert relative_difference(integrated_gradients(outputs, image, 0.0, 5, exponent=4).maps, by_hand) < 1e-12


def test_instance_norm_needs_shorter_steps_near_a_constant_baseline(noise_image):
    torch.manual_seed(0)
    network = (
        torch.nn.Sequential(
            torch.nn.Conv3d(1, 4, 3, padding=1, padding_mode="replicate"),
            torch.nn.InstanceNorm3d(4),
            torch.nn.Softplus(),
            torch.nn.Conv3d(4, 3, 1),
        )
        .double()
        .eval()
    )
    image = noise_image(WIDE).double()
    outputs = of(network, image, WINDOW)
    equal = integrated_gradients(outputs, image, 0.0, 20)
    shorter = integrated_gradients(outputs, image, 0.0, 20, exponent=4)
    assert (equal.relative_gap > 0.3).all()
    assert (shorter.relative_gap < 0.05).all()


def test_another_image_keeps_the_masks_and_reports_its_own_gap(smooth_network, noise_image):
    network, image = smooth_network().double(), noise_image(WIDE).double()
    outputs = of(network, image, WINDOW)
    other = image + 0.5 * noise_image(WIDE, seed=1).double()
    found = integrated_gradients(outputs, other, 0.0, 40)
    change = np.diff(outputs([0 * other, other]), axis=0)[0]
    assert found.maps.sum(dim=(1, 2, 3, 4)).numpy() == pytest.approx(change, rel=1e-3)
    assert (found.relative_gap < 1e-3).all()
    assert found.values.tolist() == outputs.values.tolist()  # of the unperturbed image


def test_the_result_says_how_it_was_made(smooth_network, noise_image):
    image = noise_image(WIDE)
    outputs = of(smooth_network(), image, WINDOW, classes=(2, 0), mask="recomputed", aggregate="mean")
    found = smooth_gradient(outputs, image, n=2, sigma=0.05, seed=9)
    assert isinstance(found, VoxelAttributions)
    assert (found.method, found.classes, found.absent) == ("smooth_gradient", (2, 0), ())
    assert (found.maps.shape, found.maps.dtype) == ((2, 1, *WIDE), torch.float32)
    assert found.seconds > 0
    assert (found.completeness_gap, found.relative_gap) == (None, None)
    expected = {"aggregate": "mean", "mask": "fixed", "n": 2, "sigma": 0.05, "seed": 9, "numerics": "exact"}
    assert expected.items() <= found.settings.items()
    assert torch.equal(found.of_class(0), found.maps[1])
    with pytest.raises(ValueError, match=r"no map of class 1; there are maps of \(2, 0\)"):
        found.of_class(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.method = "other"


def test_wrong_numbers_are_named(smooth_network, noise_image):
    image = noise_image(WIDE)
    outputs = of(smooth_network(), image, WINDOW)
    for run, message in (
        (lambda: smooth_gradient(outputs, image, n=0), "n is 0; expected a whole number, 1 or more"),
        (lambda: smooth_gradient(outputs, image, sigma=-0.1), "sigma is -0.1"),
        (lambda: smooth_gradient(outputs, image, sigma=float("nan")), "sigma is nan"),
        (lambda: integrated_gradients(outputs, image, steps=2.5), "steps is 2.5"),
        (lambda: integrated_gradients(outputs, image, exponent=0.5), "exponent is 0.5"),
        (lambda: integrated_gradients(outputs, image, torch.zeros(1, 2, 3)), "the baseline has shape"),
        (lambda: integrated_gradients(outputs, image, float("inf")), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            run()


def test_a_trained_network(request):
    """The torso network, whose instance norms do not see the scale of an image."""
    root = request.config.rootpath / "bundles" / "torso_kernelshap" / "models" / "model.pt"
    strides = ((2, 2, 1), (2, 2, 2), (2, 2, 2))
    network = load_weights(UNet(3, 1, 3, (16, 32, 64, 80), strides, num_res_units=1, norm="INSTANCE"), root)
    hu = torso_phantom(seed=1004).image[70:110, 50:82, 10:26]
    image = torch.from_numpy((np.clip(hu, -1024, 1024) / 2048 + 0.5).astype(np.float32))[None]
    inferer = SlidingWindowInferer((32, 32, 16), 4, 0.5, mode="gaussian")
    outputs = ClassOutputs(network, inferer, image, classes=(0,), progress=False)
    leaf = image.clone().requires_grad_()
    logits = inferer(leaf[None], network)[0]
    expected = torch.autograd.grad(logits[0][outputs.masks[0]].sum(), leaf)[0]
    assert relative_difference(outputs.gradients(image)[0], expected) < 2e-6
    equal, shorter = (integrated_gradients(outputs, image, 0.0, 8, e).relative_gap for e in (1, 4))
    assert shorter < 0.3 < equal
