# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Voxel attributions of all classes: KernelSHAP against enumeration by MONAI's inferer, gradients against the layer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from brute_force import shapley_over_all_orders
from execution_job import SHAPE, image_of, inferer_of, whole_volume

from monai_segshap.explainers import ATTRIBUTION_METHODS, Agg2ExpExplainer
from monai_segshap.geometry import current_grid
from monai_segshap.gradients import ClassOutputs, smooth_gradient
from monai_segshap.units import cube_partition


@pytest.fixture(scope="module")
def network(make_network):
    return make_network("conv")


@pytest.fixture(scope="module")
def case(network):
    return image_of(), whole_volume(network, image_of())


def class_output(network, image, labels, logits, target, row) -> float:
    """Sum of the target logit over P_0 with some units set to 0, by MONAI's inferer alone."""
    masked = image.clone()
    for unit, kept in enumerate(row):
        if not kept:
            masked[:, labels == unit] = 0.0
    with torch.no_grad():
        found = inferer_of(2)(masked[None], network)[0]
    return float(found[target].double()[logits.argmax(0) == target].sum())


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_semantic_units_have_the_shapley_values_of_the_class_output(network, case, aggregate):
    image, logits = case
    explain = Agg2ExpExplainer(
        network, inferer_of(2), "kernelshap_semantic", aggregate=aggregate, progress=False, options={"budget": 64}
    )
    found = explain(image, logits)
    labels = logits.argmax(0)
    present = torch.unique(labels).tolist()
    assert len(present) > 1
    for t, target in enumerate(found.classes):
        voxels = int((labels == target).sum())
        if voxels == 0:
            assert target in found.absent
            assert not found.maps[t].any()
            continue

        game = {}
        for kept in itertools.product([False, True], repeat=len(present)):
            row = np.zeros(len(logits), dtype=bool)
            row[present] = kept
            game[kept] = class_output(network, image, labels, logits, target, row) / divisor(aggregate, voxels)
        expected = shapley_over_all_orders(game, len(present))[:, 0]
        for unit, value in zip(present, expected, strict=True):
            np.testing.assert_allclose(found.maps[t, 0][labels == unit], value, rtol=1e-4, atol=1e-4)
    assert found.maps.shape == (len(logits), 1, *SHAPE)
    assert found.settings["n_units"] == len(present)
    assert found.n_forwards > 0


def divisor(aggregate: str, voxels: int) -> int:
    return voxels if aggregate == "mean" else 1


def test_cubes_add_up_to_the_class_output(network, case):
    image, logits = case
    options = {"cubes": 12, "budget": 80, "estimator": "kernelshap", "seed": 3}
    explain = Agg2ExpExplainer(
        network, inferer_of(2), "kernelshap_cubes", classes=(1,), progress=False, options=options
    )
    found = explain(image, logits)
    values = np.unique(found.maps[0].numpy())
    assert 1 < len(values) <= found.settings["n_units"]
    empty = class_output(network, torch.zeros_like(image), logits.argmax(0), logits, 1, [1] * len(logits))
    labels = torch.from_numpy(cube_numbers(found.settings["n_units"], image))
    total = sum(float(found.maps[0, 0][labels == n].double().mean()) for n in range(1, int(labels.max()) + 1))
    np.testing.assert_allclose(total, found.values[0] - empty, rtol=1e-4)


def cube_numbers(n_units: int, image) -> np.ndarray:
    grid = current_grid(image)
    partition = cube_partition(grid, (np.prod(grid.shape) * np.prod(grid.spacing_mm) / 12) ** (1 / 3))
    assert partition.n_units == n_units
    return partition.labels


def test_gradients_are_those_of_the_layer_below(network, case):
    image, logits = case
    explain = Agg2ExpExplainer(
        network, inferer_of(2), "smooth_gradient", progress=False, options={"n": 3, "sigma": 0.2, "seed": 5}
    )
    outputs = ClassOutputs(network, inferer_of(2), image, logits, progress=False)
    expected = smooth_gradient(outputs, image, n=3, sigma=0.2, seed=5)
    assert torch.equal(explain(image, logits).maps, expected.maps)
    assert torch.equal(explain(image, outputs=outputs).maps, expected.maps)


def test_what_can_not_be_asked_for(network, case):
    with pytest.raises(ValueError, match="unknown method 'lime'; expected one of vanilla_gradient, smooth_gradient"):
        Agg2ExpExplainer(network, inferer_of(2), "lime")
    with pytest.raises(ValueError, match="vanilla_gradient has no options n; it has none"):
        Agg2ExpExplainer(network, inferer_of(2), "vanilla_gradient", options={"n": 3})
    with pytest.raises(ValueError, match="explains a sum or a mean of logits; got aggregate='median'"):
        Agg2ExpExplainer(network, inferer_of(2), "kernelshap_cubes", aggregate="median")
    explain = Agg2ExpExplainer(network, inferer_of(2), "kernelshap_semantic", progress=False)
    outputs = explain.outputs(*case)
    with pytest.raises(ValueError, match="needs the logits of the whole volume"):
        explain(case[0], outputs=outputs)
    assert set(ATTRIBUTION_METHODS) == {
        "vanilla_gradient",
        "smooth_gradient",
        "integrated_gradients",
        "kernelshap_cubes",
        "kernelshap_semantic",
    }
