# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Values, masks, passes and errors of class outputs, against plain whole-volume inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer

from monai_segshap.gradients import ClassOutputs, PlannedPasses, integrated_gradients, smooth_gradient, vanilla_gradient

SHAPE = (15, 9, 8)
INFERER = {"roi_size": (8, 8, 6), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}
OF = {"sum": np.sum, "mean": np.mean, "median": lambda values: np.sort(values)[(len(values) - 1) // 2]}


@pytest.fixture
def make_outputs(make_network, noise_image):
    def build(network=None, image=None, logits=None, inferer=None, **options):
        network = network or make_network("unet")
        image = noise_image(SHAPE) if image is None else image
        inferer = inferer or SlidingWindowInferer(**INFERER)
        return ClassOutputs(network, inferer, image, logits, progress=False, **options)

    return build


class Corner(torch.nn.Module):
    """Class 1 where the image is above 2, class 2 nowhere, by a network that sees its neighbors."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = torch.nn.AvgPool3d(3, 1, 1)

    def forward(self, windows):
        return torch.cat(
            [2 - windows, windows - 2 + 0.1 * self.blur(windows).abs() - 0.1 * windows.abs(), -9 - windows], 1
        )


@pytest.fixture
def corner_image():
    image = 0.1 * torch.rand(1, 20, 9, 8, generator=torch.Generator().manual_seed(0))
    image[0, 1:4, 1:4, 1:4] += 4
    return image


@pytest.mark.parametrize("aggregate", OF)
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_values_are_those_of_the_fused_logits(make_outputs, make_network, noise_image, plain_logits, aggregate, blend):
    image, inferer = noise_image(SHAPE), {**INFERER, "mode": blend}
    outputs = make_outputs(aggregate=aggregate, inferer=SlidingWindowInferer(**inferer))
    assert outputs.values.dtype == np.float64
    images = [image, image + 0.5 * noise_image(SHAPE, seed=1), 0 * image]
    logits = [plain_logits(i, make_network("unet"), **inferer) for i in images]
    masks = [z.argmax(dim=0) for z in logits]
    expected = [[OF[aggregate](z[c][masks[0] == c].double().numpy()) for c in range(3)] for z in logits]
    assert outputs.values == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(outputs(torch.stack(images)), expected, rtol=2e-5, atol=2e-3)
    np.testing.assert_allclose(outputs(i for i in images), expected, rtol=2e-5, atol=2e-3)
    own = [
        [OF[aggregate](z[c][m == c].double().numpy()) for c in range(3)]
        for z, m in zip(logits, masks, strict=True)
        if (m == 0).any() and (m == 1).any() and (m == 2).any()
    ]
    assert len(own) >= 2
    assert abs(np.array(own[1]) - expected[1]).max() > 0.01
    found = outputs(images[: len(own)], mask="recomputed")
    np.testing.assert_allclose(found, own, rtol=2e-5, atol=2e-3)
    released = make_outputs(aggregate=aggregate, inferer=SlidingWindowInferer(**inferer), mask="recomputed")
    np.testing.assert_array_equal(released(images[: len(own)]), found)
    torch.testing.assert_close(released.gradients(images[1]), outputs.gradients(images[1]))  # of the fixed mask


def test_an_image_has_the_bits_of_the_library_in_its_batches(make_outputs, make_network, noise_image, plain_logits):
    image = noise_image(SHAPE)
    logits = plain_logits(image, make_network("wide_unet"), **INFERER)
    outputs = make_outputs(make_network("wide_unet"))
    expected = [float(logits[c][logits.argmax(dim=0) == c].double().sum()) for c in range(3)]
    assert outputs.values.tolist() == expected
    assert len(outputs._layers.windows) == outputs.plan.n_windows  # all windows, so the library's own batches
    assert outputs([image])[0].tolist() == expected
    assert outputs([image], mask="recomputed")[0].tolist() == expected


def test_windows_of_several_images_share_batches(make_outputs, make_network, noise_image, counting):
    image = noise_image(SHAPE)
    logits = make_outputs().masks.float()
    network = counting(make_network("unet"))
    outputs = make_outputs(network, image, logits, batch_size=5)
    assert (outputs.n_forwards, network.n_windows) == (0, 0)
    n = outputs.plan.n_windows
    assert n == 12
    found = outputs([image + s for s in range(4)])
    assert outputs.n_forwards == network.n_windows == 4 * n == outputs.planned_passes(values=4).forwards
    assert [len(batch) for batch in network.batches] == [5] * 9 + [3]
    assert len({window for batch in network.batches for window in batch}) == 4 * n
    alone = np.concatenate([outputs([image + s]) for s in range(4)])
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert outputs([]).shape == (0, 3)


def test_only_windows_that_see_a_class_run(make_outputs, corner_image, counted, library_windows):
    inferer = {**INFERER, "roi_size": (8, 8, 8)}
    network = counted(Corner())
    outputs = make_outputs(network, corner_image, inferer=SlidingWindowInferer(**inferer), classes=(2, 1))
    assert outputs.n_forwards == network.n_windows == outputs.plan.n_windows == 8
    assert outputs.absent == (2,)
    assert np.isnan(outputs.values[0])
    places = outputs.masks[1].nonzero()
    box = (tuple(places.amin(dim=0).tolist()), tuple(places.amax(dim=0).tolist()))
    touching = [w for w in library_windows(corner_image, **inferer) if w.touches(box, (20, 9, 8), (8, 8, 8))]
    assert 0 < len(touching) < 8
    network.n_windows = 0
    row = outputs([corner_image])
    assert network.n_windows == len(touching)
    assert np.isnan(row[0, 0])
    assert row[0, 1] == pytest.approx(outputs.values[1], rel=1e-6)
    gradients = outputs.gradients(corner_image)
    assert not gradients[0].any()
    assert gradients[1].any()
    assert network.n_windows == 2 * len(touching)
    assert outputs.n_backwards == len(touching)
    recomputed = outputs([corner_image, -corner_image], mask="recomputed")
    assert network.n_windows == 2 * len(touching) + 16
    assert np.isnan(recomputed[:, 0]).all()
    assert recomputed[1, 1] == 0.0  # the class is gone: a sum over no voxel


def test_a_class_that_disappears_has_no_mean(make_outputs, corner_image):
    for aggregate in ("mean", "median"):
        outputs = make_outputs(Corner(), corner_image, classes=(1,), aggregate=aggregate, mask="recomputed")
        assert np.isnan(outputs([-corner_image])).tolist() == [[True]]
        assert np.isfinite(outputs([-corner_image], mask="fixed")).all()


def test_without_any_class_nothing_runs(make_outputs, corner_image):
    outputs = make_outputs(Corner(), corner_image, classes=(2,))
    before = outputs.n_forwards
    assert np.isnan(outputs([corner_image, corner_image])).tolist() == [[True], [True]]
    found = integrated_gradients(outputs, corner_image)
    assert not found.maps.any()
    assert np.isnan(found.completeness_gap).all()
    assert np.isnan(found.relative_gap).all()
    assert found.absent == (2,)
    assert outputs.n_forwards == before
    assert outputs.planned_passes(gradients=20, values=1) == PlannedPasses(0, 0)
    empty = make_outputs(Corner(), corner_image, classes=())
    assert empty.gradients(corner_image).shape == (0, 1, 20, 9, 8)
    assert empty([corner_image]).shape == (1, 0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("classes", [None, (1,)])
def test_planned_passes_are_run(make_outputs, corner_image, batch, classes):
    outputs = make_outputs(Corner(), corner_image, classes=classes, batch_size=batch)
    other = corner_image + 0.01
    for run, gradients, values in (
        (lambda: vanilla_gradient(outputs, other), 1, 0),
        (lambda: smooth_gradient(outputs, corner_image, n=3), 3, 0),
        (lambda: integrated_gradients(outputs, corner_image, steps=4), 4, 1),
        (lambda: integrated_gradients(outputs, other, steps=4), 4, 2),
        (lambda: outputs([other] * 5), 0, 5),
    ):
        planned = outputs.planned_passes(gradients=gradients, values=values)
        before = outputs.n_forwards, outputs.n_backwards
        found = run()
        passes = outputs.n_forwards - before[0], outputs.n_backwards - before[1]
        assert planned == PlannedPasses(*passes)
        assert isinstance(found, np.ndarray) or (found.n_forwards, found.n_backwards) == passes
    if batch == 1:
        # one backward for each window and class in it, counted from the masks
        sees = sum(
            bool(outputs.plan.pad(mask[None].float(), as_image=False)[0][outputs.plan.window_slices(w)].any())
            for mask in outputs.masks
            for w in range(outputs.plan.n_windows)
        )
        assert outputs.planned_passes(gradients=1).backwards == sees


def test_windows_of_the_same_classes_share_batches(make_outputs, make_network, noise_image):
    image, logits = noise_image((32, 8, 8)), torch.zeros(3, 32, 8, 8)
    logits[1, :8], logits[2, 8:16], logits[1, 16:24], logits[2, 24:] = 1, 1, 1, 1
    outputs = make_outputs(image=image, logits=logits, inferer=SlidingWindowInferer(8, 2, 0.0), classes=(1, 2))
    assert outputs.planned_passes(gradients=1) == PlannedPasses(4, 4)  # in the plan's order it would be (4, 8)
    outputs.gradients(image)
    assert (outputs.n_forwards, outputs.n_backwards) == (4, 4)


def test_passes_of_a_median_stay_within_their_bound(make_outputs, noise_image):
    outputs = make_outputs(aggregate="median")
    image, n = outputs.image, outputs.plan.n_windows
    before = outputs.n_forwards
    found = vanilla_gradient(outputs, image)
    assert found.n_forwards == outputs.n_forwards - before <= n  # the voxels of the medians are known
    for method, gradients, values in ((smooth_gradient, 2, 0), (integrated_gradients, 2, 1)):
        found = method(outputs, image, **({"n": 2} if gradients and not values else {"steps": 2}))
        planned = outputs.planned_passes(gradients=gradients, values=values)
        assert not planned.exact
        assert (gradients + values) * n < found.n_forwards <= planned.forwards
        assert 0 < found.n_backwards <= planned.backwards


def test_tied_medians_go_to_the_first_voxel(make_outputs):
    network = torch.nn.Conv3d(1, 2, 1)
    network.weight.data, network.bias.data = torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1, 1), torch.tensor([0.0, -5.0])
    image = torch.ones(1, *SHAPE)
    image[0, :, :, 4:] = 2
    image[0, 0, 0, 0] = 3
    gradient = make_outputs(network, image, classes=(0,), aggregate="median").gradients(image)
    assert image.flatten().sort().values[(image.numel() - 1) // 2] == 2
    assert (gradient != 0).nonzero().tolist() == [[0, 0, 0, 0, 4]]
    assert gradient.sum() == pytest.approx(1)


def test_fast_modes_are_labelled_and_come_out_in_float32(make_outputs, noise_image):
    exact, fast = make_outputs(), make_outputs(numerics="bf16")
    found, expected = fast.gradients(fast.image), exact.gradients(exact.image)
    assert (found.dtype, fast.settings()["numerics"]) == (torch.float32, "fast: bf16 autocast")
    assert exact.settings()["numerics"] == "exact"
    difference = float((found - expected).norm() / expected.norm())
    assert 1e-4 < difference < 0.2
    sparing = make_outputs(numerics="fast", checkpoint=True)
    assert float((sparing.gradients(exact.image) - expected).norm() / expected.norm()) < 0.2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vanilla_gradient(exact, exact.image).settings["autocast"] == "torch.bfloat16"


def test_meta_tensors_are_taken(make_outputs, noise_image):
    image = MetaTensor(noise_image(SHAPE), affine=2 * torch.eye(4))
    outputs = make_outputs(image=image)
    assert type(outputs.gradients(image)) is torch.Tensor
    assert type(outputs.masks) is torch.Tensor
    assert outputs(image[None])[0] == pytest.approx(outputs.values, rel=1e-5)
    assert outputs.is_unperturbed(image)


def test_progress_counts_forwards(make_network, noise_image, capsys):
    image = noise_image(SHAPE)
    outputs = ClassOutputs(make_network("unet"), SlidingWindowInferer(**INFERER), image, progress=True)
    smooth_gradient(outputs, image, n=2)
    shown = capsys.readouterr().err
    assert "prediction: 100%" in shown
    assert "12/12" in shown
    assert "24/24" in shown


def test_wrong_input_is_named(make_outputs, make_network, noise_image):
    image = noise_image(SHAPE)
    logits = torch.rand(3, *SHAPE)
    for options, message in (
        ({"aggregate": "max"}, "unknown aggregate 'max'; expected one of sum, mean, median"),
        ({"mask": "own"}, "unknown mask 'own'; expected one of fixed, recomputed"),
        ({"heads": "tanh"}, "unknown heads"),
        ({"classes": (1, 1)}, r"classes are \(1, 1\); expected different ones of 0 to 2"),
        ({"classes": (3,)}, "expected different ones of 0 to 2"),
        ({"batch_size": 0}, "expected 1 or more windows"),
        ({"numerics": "quick"}, "numerics 'quick'"),
        ({"logits": logits[None]}, "the logits have shape"),
        ({"logits": logits[..., 1:]}, "the logits have shape"),
        ({"logits": logits[:1]}, "at least two classes"),
        ({"image": image[None]}, "expected floats"),
        ({"image": image.to(torch.int32)}, "expected floats"),
        ({"image": image / 0}, "not finite"),
        ({"network": make_network("unet").forward, "checkpoint": True}, "needs the blocks"),
        ({"checkpoint": True, "numerics": "compile"}, "needs the blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            make_outputs(**{"logits": logits, "image": image, **options})
    with pytest.raises(TypeError, match="expected MONAI's SlidingWindowInferer"):
        make_outputs(inferer=SimpleInferer())
    outputs = make_outputs()
    with pytest.raises(ValueError, match=r"give \(N, C, H, W, D\)"):
        outputs(image)
    with pytest.raises(ValueError, match="an image has shape"):
        outputs.gradients(image[:, 1:])
    with pytest.raises(ValueError, match="unknown mask"):
        outputs([image], mask="none")
    with pytest.raises(ValueError, match="one for each"):
        outputs.weighted_gradients([image], [0.5, 0.5])
    with pytest.raises(ValueError, match="one for each"):
        outputs.weighted_gradients([image, image], [1.0])


def test_networks_that_do_not_fit_are_named(make_outputs, make_network):
    unet = make_network("unet")
    with pytest.raises(ValueError, match="the network returned tuple"):
        make_outputs(lambda w: (unet(w),), logits=torch.rand(3, *SHAPE)).gradients(torch.zeros(1, *SHAPE))
    with pytest.raises(ValueError, match=r"the network returned \(3, 3, .* shape \(3, 4,"):
        make_outputs(unet, logits=torch.rand(4, *SHAPE))([torch.zeros(1, *SHAPE)])
    cut = torch.no_grad()(unet.__call__)
    with pytest.raises(ValueError, match="no gradient reaches the image"):
        make_outputs(cut).gradients(torch.zeros(1, *SHAPE))
    with pytest.raises(ValueError, match="no gradient reaches the image"):
        make_outputs(lambda w: unet(w.detach()), logits=torch.rand(3, *SHAPE)).gradients(torch.zeros(1, *SHAPE))
    outputs = make_outputs(lambda w: unet(w) / (w.amax() < 50))
    with pytest.raises(ValueError, match="logits that are not finite"):
        outputs([torch.full((1, *SHAPE), 99.0)])
    rooted = make_outputs(lambda w: unet(w) + w.abs().sqrt())
    with pytest.raises(ValueError, match="gradient is not finite"):
        rooted.gradients(torch.zeros(1, *SHAPE))
    with pytest.raises(ValueError, match="the inferer returned"):
        make_outputs(lambda w: unet(w)[..., ::2])
