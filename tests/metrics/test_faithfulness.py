# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from monai_segshap.metrics import faithfulness_correlation
from monai_segshap.metrics.faithfulness import voxel_maps

SHAPE = (4, 5, 3)
V = 60


class Recorder:
    """T outputs of images (N, C, H, W, D), by a function of one image; keeps the images and the sizes of its calls."""

    def __init__(self, function):
        self.function = function
        self.images, self.sizes = [], []

    def __call__(self, images):
        self.images += [image.numpy().copy() for image in images]
        self.sizes.append(len(images))
        return np.array([self.function(image.numpy().astype(np.float64)) for image in images])


def image_of(seed=0, channels=1, shape=SHAPE):
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.5, 2.0, size=(channels, *shape)).astype(np.float32))


def maps_of(n, seed=1, channels=None, shape=SHAPE):
    size = (n, *shape) if channels is None else (n, channels, *shape)
    return torch.from_numpy(np.random.default_rng(seed).normal(size=size).astype(np.float32))


def bent(image):
    """Two outputs that are not linear."""
    flat = image.ravel()
    return [float((flat**2).sum()), float(flat[:20].sum() * flat[30])]


def linear(weights):
    return lambda image: [float((np.asarray(w) * image).sum()) for w in weights]


def measure(output, image, maps, **options):
    return faithfulness_correlation(output, image, maps, **{"progress": False, **options})


# --- the definition ---


@pytest.mark.parametrize("fill", [0.0, -0.25])
def test_it_equals_the_definition_by_loops(fill):
    output, image, maps = Recorder(bent), image_of(), maps_of(2)
    found = measure(output, image, maps, n_subsets=30, subset_size=7, fill=fill, batch=4)
    assert len(output.images) == found.n_images == 31
    np.testing.assert_array_equal(output.images[0], image.numpy())
    for a in range(2):
        sums, drops = [], []
        for changed in output.images[1:]:
            subset = [v for v in np.ndindex(SHAPE) if changed[(0, *v)] != image[(0, *v)]]
            assert len(subset) == 7
            assert all(changed[(0, *v)] == np.float32(fill) for v in subset)
            sums.append(sum(float(maps[(a, *v)]) for v in subset))
            drops.append(bent(image.numpy().astype(np.float64))[a] - bent(changed.astype(np.float64))[a])
        np.testing.assert_allclose(found.sums[a], sums, atol=1e-12)
        np.testing.assert_allclose(found.drops[a], drops, atol=1e-12)
        oracle = stats.pearsonr(sums, drops)
        interval = oracle.confidence_interval(0.95)
        assert found.correlation[a] == pytest.approx(oracle.statistic, abs=1e-12)
        assert found.correlation[a] == pytest.approx(np.corrcoef(sums, drops)[0, 1], abs=1e-12)
        assert found.p_value[a] == pytest.approx(oracle.pvalue, rel=1e-9)
        assert (found.low[a], found.high[a]) == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert found.subset_size == 7
    assert found.notes == {}


def test_two_voxels_by_hand():
    # outputs: of (2, 5) 9, without the first 5, without the second 4; so the drops are 4 and 5
    image = torch.tensor([2.0, 5.0]).reshape(1, 2, 1, 1)
    table = {(2.0, 5.0): 9.0, (0.0, 5.0): 5.0, (2.0, 0.0): 4.0}
    maps = torch.tensor([[-1.0, 3.0], [3.0, -1.0]]).reshape(2, 2, 1, 1)
    found = measure(
        lambda images: np.array([[table[tuple(i.ravel().tolist())]] for i in images]),
        image,
        maps,
        of_output=[0, 0],
        subset_size=1,
        n_subsets=12,
    )
    first = found.sums[0] == -1.0
    assert 0 < first.sum() < 12
    assert set(zip(found.sums[0].tolist(), found.drops[0].tolist(), strict=True)) == {(-1.0, 4.0), (3.0, 5.0)}
    np.testing.assert_array_equal(found.outputs, [9.0, 9.0])
    np.testing.assert_allclose(found.correlation, [1.0, -1.0], atol=1e-12)


def test_attributions_of_a_linear_network_are_perfectly_faithful():
    weights = np.random.default_rng(3).normal(size=(2, 1, *SHAPE))
    image = image_of()
    contributions = torch.from_numpy(weights * (image.numpy() - 0.5))
    found = measure(Recorder(linear(weights)), image, contributions, fill=0.5)
    np.testing.assert_allclose(found.correlation, 1.0, atol=1e-6)
    assert (found.low > 0.999999).all()
    np.testing.assert_allclose(found.sums, found.drops, atol=1e-5)
    # the gradient alone is, where all voxels are as far from what replaces them
    ones = torch.full_like(image, 1.5)
    gradient = measure(Recorder(linear(weights)), ones, torch.from_numpy(weights), fill=0.5)
    np.testing.assert_allclose(gradient.correlation, 1.0, atol=1e-12)
    negative = measure(Recorder(linear(weights)), ones, torch.from_numpy(-weights), fill=0.5)
    np.testing.assert_allclose(negative.correlation, -1.0, atol=1e-12)
    assert (negative.p_value < 1e-12).all()


def test_of_a_linear_network_it_tends_to_the_correlation_over_voxels_and_intervals_cover_it():
    # sums over a simple random sample are related as the single voxels are
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(1, 1, *SHAPE))
    image = torch.ones(1, *SHAPE)
    wrong = torch.from_numpy(0.6 * weights[0] + rng.normal(size=(1, *SHAPE)))
    truth = np.corrcoef(weights.ravel(), wrong.numpy().ravel())[0, 1]

    def fast(images):
        return images.flatten(1).double().numpy() @ weights.reshape(V, 1)

    many = measure(fast, image, wrong, n_subsets=4000, batch=500, subset_size=15)
    assert many.correlation[0] == pytest.approx(truth, abs=0.03)
    for kind, expected in (("pearson", truth), ("spearman", None)):
        truth_of_kind = expected
        if truth_of_kind is None:
            truth_of_kind = measure(
                fast, image, wrong, n_subsets=4000, batch=500, subset_size=15, correlation=kind
            ).correlation[0]
        runs = [
            measure(fast, image, wrong, n_subsets=40, batch=41, subset_size=15, seed=s, correlation=kind)
            for s in range(1, 101)
        ]
        covered = np.mean([run.low[0] <= truth_of_kind <= run.high[0] for run in runs])
        assert 0.9 < covered < 0.99


def test_spearman_equals_scipy():
    output, maps = Recorder(bent), maps_of(2)
    found = measure(output, image_of(), maps, n_subsets=40, correlation="spearman")
    for a in range(2):
        oracle = stats.spearmanr(found.sums[a], found.drops[a])
        assert found.correlation[a] == pytest.approx(oracle.statistic, abs=1e-12)
        assert found.p_value[a] == pytest.approx(oracle.pvalue, rel=1e-9)
        half = 1.959963984540054 * math.sqrt((1 + found.correlation[a] ** 2 / 2) / 37)
        assert math.atanh(found.high[a]) - math.atanh(found.low[a]) == pytest.approx(2 * half)
    assert found.kind == "spearman"


# --- one pass for everything ---


def test_one_pass_serves_all_maps_and_batches_do_not_matter():
    image, maps = image_of(), maps_of(6)
    together = Recorder(bent)
    found = measure(together, image, maps, of_output=[0, 1, 0, 1, 1, 0], n_subsets=20, batch=6)
    assert sum(together.sizes) == 21
    assert together.sizes == [6, 6, 6, 3]
    for batch in (1, 21, 100):
        alone = Recorder(bent)
        one = measure(alone, image, maps[4:5], of_output=[1], n_subsets=20, batch=batch)
        assert max(alone.sizes) == min(batch, 21)
        np.testing.assert_array_equal(one.sums[0], found.sums[4])
        np.testing.assert_array_equal(one.drops[0], found.drops[4])
        assert one.correlation[0] == found.correlation[4]
    assert found.of_output.tolist() == [0, 1, 0, 1, 1, 0]


def test_more_subsets_go_on_with_the_same_and_another_seed_draws_others():
    output, image, maps = Recorder(bent), image_of(), maps_of(2)
    few, more = (measure(output, image, maps, n_subsets=n) for n in (10, 15))
    np.testing.assert_array_equal(more.sums[:, :10], few.sums)
    other = measure(output, image, maps, n_subsets=10, seed=1)
    assert (other.sums != few.sums).any(axis=0).all()
    assert len(set(few.sums[0].tolist())) == 10


def test_a_removed_voxel_loses_all_channels_and_its_attributions_are_added():
    output, image, maps = Recorder(bent), image_of(channels=2), maps_of(2, channels=2)
    found = measure(output, image, maps, n_subsets=12, subset_size=9, fill=torch.tensor([-1.0, 4.0]))
    for number, changed in enumerate(output.images[1:]):
        gone = changed[0] == -1.0
        assert gone.sum() == 9
        np.testing.assert_array_equal(changed[1] == 4.0, gone)
        np.testing.assert_array_equal(changed[:, ~gone], image.numpy()[:, ~gone])
        expected = [maps[a].numpy()[:, gone].sum(dtype=np.float64) for a in range(2)]
        np.testing.assert_allclose(found.sums[:, number], expected, atol=1e-6)
    added = measure(Recorder(bent), image, maps.sum(dim=1), n_subsets=12, subset_size=9, fill=torch.tensor([-1.0, 4.0]))
    np.testing.assert_array_equal(added.correlation, found.correlation)


def test_a_volume_can_replace_voxels_and_maps_can_be_an_array_or_have_a_home():
    image, other, maps = image_of(), image_of(7), maps_of(2)
    output = Recorder(bent)
    found = measure(output, image, maps.numpy(), n_subsets=8, fill=other)
    changed = output.images[1] != image.numpy()
    np.testing.assert_array_equal(output.images[1][changed], other.numpy()[changed])
    owner = SimpleNamespace(maps=maps[:, None])
    again = measure(Recorder(lambda i: torch.tensor(bent(i)).tolist()), image, owner, n_subsets=8, fill=other)
    np.testing.assert_array_equal(again.sums, found.sums)
    assert torch.equal(voxel_maps(owner, SHAPE), maps)


def test_default_subsets_are_those_of_the_paper_but_at_most_a_quarter():
    def first_voxels(images):
        return images.flatten(1)[:, :2].double().numpy() + np.arange(len(images))[:, None]

    small = measure(first_voxels, image_of(), maps_of(2), n_subsets=4)
    assert small.subset_size == V // 4
    shape = (59, 59, 58)
    large = measure(first_voxels, torch.zeros(1, *shape), torch.zeros(2, *shape), n_subsets=4, batch=2)
    assert large.subset_size == 224 * 224 < np.prod(shape) // 4


# --- undefined ---


def test_what_is_undefined_is_nan_with_a_reason():
    image, maps = image_of(), maps_of(7).clone()
    maps[1] = 0.25
    maps[2] = 0.0
    maps[3, 0, 0, 0] = np.nan

    def outputs(one):
        lost = (one == 0).ravel()[0]
        return [float((one**2).sum()), math.nan, 3.0, math.nan if lost else float(one.sum())]

    with np.errstate(all="raise"):
        found = measure(Recorder(outputs), image, maps, of_output=[0, 0, 0, 0, 1, 2, 3], n_subsets=40)
    assert np.isfinite(found.correlation).tolist() == [True] + [False] * 6
    assert np.isfinite(found.low).tolist() == np.isfinite(found.p_value).tolist() == [True] + [False] * 6
    assert "same sum of attributions, 3.75: the map is constant" in found.notes[1]
    assert "the map is constant" in found.notes[2]
    assert found.notes[3] == "NaN: the map holds values that are not finite"
    assert "output of the image itself is nan; its class is not predicted" in found.notes[4]
    assert "changes the output by the same 0 of 3" in found.notes[5]
    lost = int(np.isnan(found.drops[6]).sum())
    assert f"not finite for {lost} of 40 perturbed images" in found.notes[6]
    table = found.table()
    assert table["note"].tolist() == ["", *(found.notes[a] for a in range(1, 7))]
    assert found.table(list("abcdefg"))["map"].tolist() == list("abcdefg")
    np.testing.assert_array_equal(table["faithfulness"], found.correlation)


def test_a_change_of_the_size_of_rounding_is_none():
    rng = np.random.default_rng(0)

    def noisy(one):
        return [1e4 * (1 + 1e-8 * rng.random()), 1e4 + 1e-1 * float(one.sum())]

    found = measure(Recorder(noisy), image_of(), maps_of(2))
    assert list(found.notes) == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correlation": "kendall"}, "unknown correlation 'kendall'; expected one of pearson, spearman"),
        ({"subset_size": 60}, "subset_size is 60 of 60 voxels; expected 1 to 59"),
        ({"subset_size": 0}, "subset_size is 0"),
        ({"n_subsets": 3}, "n_subsets is 3.*at least 4"),
        ({"batch": 0}, "batch 0"),
        ({"seed": -1}, "seed -1"),
        ({"of_output": [0, 2]}, r"of_output is \[0, 2\]; expected 2 integers in 0..1"),
        ({"of_output": [0]}, "expected 2 integers"),
        ({"of_output": [-1, 0]}, "expected 2 integers"),
        ({"of_output": [0.5, 0]}, "expected 2 integers"),
        ({"fill": torch.zeros(3)}, r"fill has shape \(3,\)"),
        ({"fill": torch.zeros(1, 4, 5, 4)}, "fill has shape"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        measure(Recorder(bent), image_of(), maps_of(2), **options)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"got 3 maps and 2 outputs; name the output of each map.*of_output=\[0, 1, 0"):
        measure(Recorder(bent), image_of(), maps_of(3))
    with pytest.raises(ValueError, match=r"attributions have shape \(4, 5, 3\).*maps\[None\]"):
        measure(Recorder(bent), image_of(), maps_of(1)[0])
    with pytest.raises(ValueError, match=r"expected \(A, 4, 5, 3\)"):
        measure(Recorder(bent), image_of(), maps_of(2, shape=(4, 5, 4)))
    with pytest.raises(ValueError, match=r"the image has shape \(1, 1, 4, 5, 3\); expected \(C, H, W, D\)"):
        measure(Recorder(bent), image_of()[None], maps_of(2))
    with pytest.raises(ValueError, match=r"the output has shape \(8,\) for 8 images; expected \(8, T\)"):
        measure(lambda images: np.zeros(len(images)), image_of(), maps_of(2))
