# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Windows, fusion, mirroring and folds have nnU-Net's own bits, whole volumes and single regions alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from monai_segshap.inferers import CoalitionEvaluator
from monai_segshap.nnunet import FoldsNetwork, NNUNetInferer, load_nnunet
from monai_segshap.numerics import NumericMode

pytestmark = pytest.mark.xdist_group("test_inference")

#: (fixture of the results folder, shape of the image on the network's grid)
IMAGES = [
    ("tiny_3d", (28, 48, 56)),
    ("tiny_3d", (17, 33, 61)),
    ("tiny_3d", (9, 40, 20)),  # smaller than the patch (16, 32, 32) on two axes
    ("tiny_regions", (20, 32, 40)),
    ("tiny_2d", (5, 47, 50)),
    ("tiny_2d", (3, 20, 50)),
    ("tiny_two_channels", (18, 36, 40)),
]


def predictor_of(folder, mirror: bool, step_size: float = 0.5) -> nnUNetPredictor:
    """nnU-Net's own predictor, all folds."""
    found = nnUNetPredictor(
        tile_step_size=step_size,
        use_mirroring=mirror,
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        verbose=False,
        allow_tqdm=False,
    )
    found.initialize_from_trained_model_folder(str(folder), use_folds=None, checkpoint_name="checkpoint_final.pth")
    return found


def ours(folder, mirror: bool, accumulate: str = "nnunet", step_size: float = 0.5):
    """Network and inferer of this package."""
    model = load_nnunet(folder)
    axes = model.mirror_axes if mirror else ()
    network = FoldsNetwork(model.networks, axes, model.is_2d, full_precision=accumulate == "float32").eval()
    return network, NNUNetInferer(model.patch_size, step_size, accumulate, folds=len(model.networks))


def image_of(model_folder, shape, request) -> torch.Tensor:
    channels = 2 if "two_channels" in model_folder else 1
    return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("mirror", [False, True], ids=["plain", "mirrored"])
@pytest.mark.parametrize(("folder", "shape"), IMAGES, ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v)))
def test_whole_volumes_have_the_bits_of_the_predictor(folder, shape, mirror, request):
    image = image_of(folder, shape, request)
    path = request.getfixturevalue(folder)
    expected = predictor_of(path, mirror).predict_sliding_window_return_logits(image)
    network, inferer = ours(path, mirror)
    with torch.no_grad():
        found = inferer(image[None], network)
    assert found.dtype == torch.half
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("mirror", [False, True], ids=["plain", "mirrored"])
def test_two_folds_have_the_bits_of_the_predictor(tiny_3d_folds, mirror):
    image = torch.randn(1, 20, 40, 37, generator=torch.Generator().manual_seed(3))
    expected = predictor_of(tiny_3d_folds, mirror).predict_logits_from_preprocessed_data(image)
    network, inferer = ours(tiny_3d_folds, mirror)
    with torch.no_grad():
        found = inferer(image[None], network)[0]
    assert torch.equal(found, expected)
    assert network.runs_per_window == 2 * (8 if mirror else 1)


def test_other_step_sizes_have_the_bits_of_the_predictor(tiny_3d):
    image = torch.randn(1, 24, 40, 37, generator=torch.Generator().manual_seed(4))
    expected = predictor_of(tiny_3d, False, 0.7).predict_sliding_window_return_logits(image)
    network, inferer = ours(tiny_3d, False, step_size=0.7)
    with torch.no_grad():
        assert torch.equal(inferer(image[None], network)[0], expected)


@pytest.mark.parametrize("folder", ["tiny_3d", "tiny_2d", "tiny_3d_folds"])
def test_single_precision_is_the_weighted_mean_and_near_half_precision_away_from_the_border(folder, request):
    path = request.getfixturevalue(folder)
    image = torch.randn(1, 20, 40, 40, generator=torch.Generator().manual_seed(5))
    network, inferer = ours(path, False, "float32")
    plan = inferer.window_plan(image)
    total, count = 0.0, torch.zeros(plan.padded_shape, dtype=torch.float64)
    with torch.no_grad():
        found = inferer(image[None], network)[0]
        for number in range(plan.n_windows):
            part = plan.window_slices(number)
            whole = torch.zeros((found.shape[0] * plan.folds, *plan.padded_shape), dtype=torch.float64)
            whole[:, part[0], part[1], part[2]] = network(image[:, part[0], part[1], part[2]][None])[0].double()
            weight = torch.zeros(plan.padded_shape, dtype=torch.float64)
            weight[part] = plan.weight.double()
            total, count = total + whole * weight, count + weight
        expected = (total / count).reshape(plan.folds, found.shape[0], *plan.padded_shape).mean(dim=0)
        half = inferer_logits(path, image)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)
    inner = (slice(None), slice(4, -4), slice(8, -8), slice(8, -8))
    assert (found[inner] - half[inner].float()).abs().max() < 0.05 * found.abs().max()


def inferer_logits(path, image):
    """Half-precision logits."""
    network, inferer = ours(path, False)
    return inferer(image[None], network)[0]


@pytest.mark.parametrize("folder", ["tiny_3d", "tiny_2d", "tiny_3d_folds"])
@pytest.mark.parametrize("accumulate", ["nnunet", "float32"])
def test_masked_images_in_a_region_have_the_bits_of_the_predictor(folder, accumulate, request):
    path = request.getfixturevalue(folder)
    generator = torch.Generator().manual_seed(6)
    image = torch.randn(1, 20, 44, 40, generator=generator)
    labels = torch.zeros(20, 44, 40, dtype=torch.int64)
    labels[:9, :20], labels[9:, :20], labels[:, 20:33], labels[:, 33:] = 1, 2, 3, 4
    fill = torch.full_like(image, -1.7)
    box = ((1, 1, 1), (6, 10, 9))  # the windows of the last columns do not see it
    network, inferer = ours(path, True, accumulate)
    plan = inferer.window_plan(image)
    evaluator = CoalitionEvaluator(network, plan, image, labels, fill, [box])
    rows = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]], dtype=bool)
    rows = np.unique(rows[:, evaluator.visible], axis=0)
    n_heads = load_nnunet(path).n_heads
    prepared = evaluator.prepare(rows, n_heads)
    predictor = predictor_of(path, True)
    with torch.no_grad():
        for row, (found,) in evaluator.run(prepared):
            keep = torch.ones(5, dtype=torch.bool)
            keep[1:][torch.from_numpy(evaluator.visible)] = torch.from_numpy(rows[row])
            masked = torch.where(keep[labels], image, fill)
            if accumulate == "nnunet":
                expected = predictor.predict_logits_from_preprocessed_data(masked)
            else:
                expected = inferer(masked[None], network)[0]
            assert torch.equal(found, expected[:, 1:7, 1:11, 1:10])
    assert evaluator.n_forwards == prepared.forwards.planned < len(rows) * plan.n_windows


@pytest.mark.parametrize(("folder", "depth"), [("tiny_3d", 16), ("tiny_2d", 1)])
def test_numeric_modes_reach_the_networks(folder, depth, request):
    network = ours(request.getfixturevalue(folder), False, "float32")[0]
    window = torch.randn(2, 1, depth, 32, 32, generator=torch.Generator().manual_seed(7))
    before = [weight.stride() for weight in network.parameters()]
    with torch.no_grad():
        exact = network(window)
        modes = {m: NumericMode.parse(m).apply(network, torch.device("cpu"))(window) for m in ("bf16", "channels_last")}
    largest = float(exact.abs().max())
    assert 1e-3 * largest < float((modes["bf16"] - exact).abs().max()) < 0.1 * largest
    assert float((modes["channels_last"] - exact).abs().max()) < 1e-4 * largest
    assert [weight.stride() for weight in network.parameters()] == before


def test_logits_beyond_half_precision_are_refused_as_nnunet_refuses_them():
    inferer = NNUNetInferer((8, 8, 8), accumulate="nnunet")
    image = torch.full((1, 1, 8, 8, 8), 2e4)
    with pytest.raises(ValueError, match=r"too large for nnU-Net's half precision.*accumulate='float32'"):
        inferer(image, lambda x: x)
    assert torch.isfinite(NNUNetInferer((8, 8, 8))(image, lambda x: x)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": (8, 8)}, r"patch size is \(8, 8\); expected three sizes"),
        ({"patch_size": (8, 8, 8), "step_size": 0}, "step size is 0; expected a share"),
        ({"patch_size": (8, 8, 8), "accumulate": "half"}, "unknown accumulate 'half'; expected one of float32, nnunet"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NNUNetInferer(**arguments)


def test_networks_with_deep_supervision_or_another_resolution_are_refused():
    inferer, image = NNUNetInferer((8, 8, 8)), torch.zeros(1, 1, 8, 8, 8)
    with pytest.raises(ValueError, match=r"returned list for windows.*deep supervision off"):
        inferer(image, lambda x: [x, x])
    with pytest.raises(ValueError, match="full-resolution logits"):
        inferer(image, lambda x: x[..., ::2])
    with pytest.raises(ValueError, match="mirror axes are"):
        FoldsNetwork([torch.nn.Identity()], (2,), is_2d=True)
    with pytest.raises(ValueError, match="got no network"):
        FoldsNetwork([])
