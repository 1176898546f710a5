# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from monai_segshap.metrics import (
    attribution_sensitivity,
    effective_complexity,
    faithfulness_correlation,
    voxel_metrics,
)

SHAPE = (6, 5, 4)


def image_of(seed=0, shape=SHAPE, channels=1):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1.0, 3.0, size=(channels, *shape)).astype(np.float32))


class Attribute:
    """Maps of two classes: x and its square; remembers its images."""

    def __init__(self):
        self.images = []

    def __call__(self, image):
        self.images.append(image.clone())
        return torch.stack([image, image**2])


# --- sensitivity ---


def test_sensitivity_by_its_definition():
    attribute, image = Attribute(), image_of()
    found = attribution_sensitivity(attribute, image, n=4, sigma=0.05)
    x = image.double().numpy()
    assert len(attribute.images) == found.n_attributions == 5
    np.testing.assert_array_equal(attribute.images[0], image)
    for j, noisy in enumerate(attribute.images[1:]):
        y = noisy.double().numpy()
        for t, function in enumerate((lambda v: v, np.square)):
            change = math.sqrt(((function(x) - function(y)) ** 2).sum())
            assert found.samples[t, j] == pytest.approx(change / math.sqrt((function(x) ** 2).sum()), rel=1e-5)
    np.testing.assert_allclose(found.values, found.samples.mean(axis=1))
    np.testing.assert_allclose(found.standard_errors, found.samples.std(axis=1, ddof=1) / 2.0)
    assert found.spread == pytest.approx(0.05 * (x.max() - x.min()))
    assert found.notes == {}


def test_by_hand():
    # |(3, 4)| = 5; the second image differs by (0, 2), the third by (3, 0)
    answers = iter([[3.0, 4.0], [3.0, 6.0], [0.0, 4.0]])
    found = attribution_sensitivity(
        lambda _: torch.tensor([next(answers)]), torch.tensor([[[[0.0, 1.0]]]]), n=2, noise="uniform"
    )
    np.testing.assert_allclose(found.samples, [[0.4, 0.6]])
    assert found.values[0] == pytest.approx(0.5)
    assert found.standard_errors[0] == pytest.approx(0.1)


def test_noise_is_what_it_is_called():
    image = image_of(shape=(30, 30, 30))
    width = float(image.max() - image.min())
    for noise, relative in (("gaussian", True), ("uniform", True), ("gaussian", False), ("uniform", False)):
        attribute = Attribute()
        found = attribution_sensitivity(attribute, image, n=2, sigma=0.1, noise=noise, relative=relative)
        spread = 0.1 * (width if relative else 1.0)
        assert found.spread == pytest.approx(spread)
        first, second = ((noisy - image).double().numpy() for noisy in attribute.images[1:])
        if noise == "gaussian":
            assert first.std() == pytest.approx(spread, rel=0.02)
            assert np.abs(first).max() > 3 * spread
        else:
            assert first.std() == pytest.approx(spread / math.sqrt(3), rel=0.02)
            assert np.abs(first).max() <= spread * 1.00001
        assert abs(first.mean()) < 0.03 * spread
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.03


def test_draws_depend_on_seed_and_number_alone():
    image = image_of()
    few, more, other = (attribution_sensitivity(Attribute(), image, n=n, seed=s) for n, s in ((2, 0), (5, 0), (2, 1)))
    np.testing.assert_array_equal(more.samples[:, :2], few.samples)
    assert (other.samples != few.samples).all()


def test_a_known_attribution_is_not_made_again():
    attribute, image = Attribute(), image_of()
    whole = attribution_sensitivity(Attribute(), image)
    known = attribution_sensitivity(attribute, image, reference=SimpleNamespace(maps=Attribute()(image)))
    assert len(attribute.images) == known.n_attributions == 3
    np.testing.assert_array_equal(known.samples, whole.samples)
    assert math.isnan(attribution_sensitivity(attribute, image, n=1).standard_errors[0])


def test_normalized_maps_are_those_of_the_released_evaluation():
    image, attribute = image_of(), Attribute()
    found = attribution_sensitivity(attribute, image, normalize=True)
    scaled = [a / a.abs().max() for a in attribute.images]
    expected = [float((scaled[0] - s).norm() / scaled[0].norm()) for s in scaled[1:]]
    np.testing.assert_allclose(found.samples[0], expected, rtol=1e-5)
    # a map that only changes its scale
    grown = attribution_sensitivity(lambda x: torch.ones(1, 3) * float(x.sum()), image, normalize=True)
    np.testing.assert_allclose(grown.values, 0.0, atol=1e-7)


def test_undefined_sensitivity_is_nan_with_a_reason():
    image, count = image_of(), iter(range(9))

    def attribute(x):
        late = next(count) == 2
        return torch.stack([x, 0 * x, x + np.nan, x * (np.nan if late else 1.0)])

    found = attribution_sensitivity(attribute, image, n=3)
    assert np.isfinite(found.values).tolist() == [True, False, False, False]
    assert "0 everywhere" in found.notes[1]
    assert "not finite; its class" in found.notes[2]
    assert "the maps of 1 of 3 noisy images are not finite" in found.notes[3]
    still = attribution_sensitivity(lambda x: torch.ones(2, 5), image)
    assert still.values.tolist() == still.standard_errors.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "salt"}, "unknown noise 'salt'; expected one of gaussian, uniform"),
        ({"n": 0}, "n is 0"),
        ({"sigma": 0.0}, "sigma 0.0"),
        ({"sigma": math.nan}, "sigma nan"),
        ({"seed": -1}, "seed -1"),
        ({"reference": torch.ones(3, *SHAPE)}, "expected the same classes for both"),
        ({"reference": torch.tensor(1.0)}, r"expected \(T, ...\)"),
    ],
)
def test_bad_options_of_the_sensitivity(options, message):
    with pytest.raises(ValueError, match=message):
        attribution_sensitivity(Attribute(), image_of(), **options)


def test_a_constant_image_has_no_range():
    flat = torch.ones(1, *SHAPE)
    with pytest.raises(ValueError, match=r"range of the image is 0.0.*relative=False"):
        attribution_sensitivity(Attribute(), flat)
    assert attribution_sensitivity(Attribute(), flat, relative=False).values[0] > 0


# --- complexity ---


def test_complexity_by_hand():
    maps = torch.zeros(5, 1, 2, 5)
    maps[0].view(-1)[:4] = torch.tensor([-10.0, 1.0, 1.0001, -5.0])  # 1.0 is not above a tenth of 10
    maps[1] = 2.0
    maps[3, 0, 0, 0], maps[4, 0, 0, 0] = np.nan, np.inf
    found = effective_complexity(maps)
    np.testing.assert_array_equal(found, [0.3, 1.0, np.nan, np.nan, np.nan])
    assert effective_complexity(maps[:1], eps=0.0)[0] == 0.4
    assert effective_complexity(maps[:1], eps=0.6)[0] == 0.1
    assert effective_complexity(1000 * maps[:1])[0] == 0.3
    assert effective_complexity(SimpleNamespace(maps=maps.numpy()))[0] == 0.3


def test_channels_of_a_voxel_are_added_up():
    maps = torch.zeros(1, 2, 1, 1, 4)
    maps[0, 0], maps[0, 1] = torch.tensor([[[4.0, 1.0, 0.2, 0.0]]]), torch.tensor([[[4.0, -1.0, 0.8, 0.0]]])
    assert effective_complexity(maps)[0] == 0.5


@pytest.mark.parametrize("eps", [-0.1, 1.0])
def test_bad_options_of_the_complexity(eps):
    with pytest.raises(ValueError, match="eps is"):
        effective_complexity(torch.ones(1, 2, 2, 2), eps)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (2, 2, 2), (1, 1, 1, 2, 2, 2), (0, 2, 2, 2)])
def test_bad_shapes_of_the_complexity(shape):
    with pytest.raises(ValueError, match="attributions have shape"):
        effective_complexity(torch.ones(shape))


# --- all of them ---


class Outputs:
    """Sums of x and of its square; counts the images."""

    classes = (1, 4)

    def __init__(self):
        self.n_images = 0

    def __call__(self, images):
        self.n_images += len(images)
        flat = images.double().flatten(1)
        return torch.stack([flat.sum(dim=1), (flat**2).sum(dim=1)], dim=1).numpy()


def test_the_table_of_methods_equals_each_function_and_shares_the_subsets():
    image, output = image_of(), Outputs()
    plain, rough = Attribute(), Attribute()
    methods = {"plain": plain, "rough": lambda x: SimpleNamespace(maps=rough(x).sign())}
    options = {"n_subsets": 12, "seed": 3, "progress": False}
    table = voxel_metrics(methods, output, image, faithfulness=options, sensitivity={"n": 2, "sigma": 0.2}, eps=0.3)
    assert output.n_images == 13
    assert len(plain.images) == len(rough.images) == 3
    assert " ".join(table) == (
        "method class faithfulness faithfulness_low faithfulness_high sensitivity sensitivity_se complexity seconds "
        "notes"
    )
    assert table["method"].tolist() == ["plain", "plain", "rough", "rough"]
    assert table["class"].tolist() == ["1", "4", "1", "4"]
    for method, run in (("plain", Attribute()), ("rough", lambda x: Attribute()(x).sign())):
        part = table[table["method"] == method]
        alone = faithfulness_correlation(Outputs(), image, run(image), **options)
        np.testing.assert_array_equal(part["faithfulness"], alone.correlation)
        np.testing.assert_array_equal(part["faithfulness_low"], alone.low)
        np.testing.assert_array_equal(part["faithfulness_high"], alone.high)
        sensitivity = attribution_sensitivity(run, image, n=2, sigma=0.2)
        np.testing.assert_array_equal(part["sensitivity"], sensitivity.values)
        np.testing.assert_array_equal(part["sensitivity_se"], sensitivity.standard_errors)
        np.testing.assert_array_equal(part["complexity"], effective_complexity(run(image), 0.3))
        assert (part["seconds"] > 0).all()
        assert part["seconds"].nunique() == 1
    # the output loses the square of what is removed; the sign of the square is the same everywhere
    assert table.loc[1, "faithfulness"] > 0.999999
    assert math.isnan(table.loc[3, "faithfulness"])
    assert "map is constant" in table.loc[3, "notes"]
    assert table["notes"].tolist()[:3] == [""] * 3


def test_some_measures_and_names_and_reasons():
    image, output = image_of(), Outputs()
    table = voxel_metrics(lambda x: 0 * Attribute()(x), output, image, names=["a", "b"], measure=("complexity",))
    assert output.n_images == 0
    assert " ".join(table) == "method class complexity seconds notes"
    assert table["method"].tolist() == ["attributions"] * 2
    assert table["class"].tolist() == ["a", "b"]
    assert table["complexity"].isna().all()
    assert table["notes"].tolist() == ["complexity NaN: the map is 0, or not finite"] * 2
    both = voxel_metrics(
        {"zero": lambda x: 0 * Attribute()(x), "map": Attribute()},
        lambda images: Outputs()(images),
        image,
        measure=("faithfulness", "sensitivity"),
        faithfulness={"progress": False},
    )
    assert both["class"].tolist() == ["0", "1"] * 2
    assert both["notes"].str.contains("sensitivity NaN").tolist() == [True, True, False, False]
    assert both["notes"].str.contains("faithfulness NaN").tolist() == [True, True, False, False]
    assert isinstance(both, pd.DataFrame)


def test_bad_arguments_of_the_table():
    image = image_of()
    with pytest.raises(ValueError, match="unknown measures speed; expected some of faithfulness, sensitivity, compl"):
        voxel_metrics(Attribute(), Outputs(), image, measure=("speed",))
    with pytest.raises(ValueError, match="no attribution method"):
        voxel_metrics({}, Outputs(), image)
    with pytest.raises(ValueError, match=r"2 maps \(attributions\), and there are 3 classes"):
        voxel_metrics(Attribute(), Outputs(), image, names=list("abc"))
    with pytest.raises(ValueError, match=r"2 maps \(a\), 1 maps \(b\)"):
        voxel_metrics({"a": Attribute(), "b": lambda x: x[None]}, Outputs(), image)
