# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The game of a case gives what the explanation was made of, for any coalition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from execution_job import SHAPE, explainer_of, image_of, inferer_of, whole_volume

from monai_segshap.geometry import VoxelGrid
from monai_segshap.metrics import perturbation_curves
from monai_segshap.region import Region
from monai_segshap.shapley import all_coalitions, exact_shapley
from monai_segshap.units import partition_from_labels

SCORES = ("tp", "fp", "dice", "soft_dice")


@pytest.fixture(scope="module")
def network(make_network):
    return make_network("conv")


@pytest.fixture(scope="module")
def case(network):
    """Five units, of which the last lies beyond the windows of the region, and a voxel of none."""
    labels = np.zeros(SHAPE, dtype=np.int64)
    labels[:, :7, :6], labels[:, 7:, :6], labels[:7, :, 6:10], labels[7:, :, 6:10], labels[:, :, 13] = 1, 2, 3, 4, 5
    partition = partition_from_labels(labels, VoxelGrid(SHAPE, np.eye(4)), "blocks")
    mask = np.zeros(SHAPE, dtype=bool)
    mask[6:9, 5:8, 1:5] = True
    return image_of(), partition, Region(mask, "box", 1, 0), whole_volume(network, image_of())


@pytest.fixture
def game(network, case):
    return explainer_of(network, scores=SCORES).game(*case)


def direct(network, case, row) -> np.ndarray:
    """Scores of one coalition by MONAI's inferer alone."""
    image, partition, region, full = case
    masked = image.clone()
    for unit, kept in enumerate(row, start=1):
        if not kept:
            masked[:, torch.from_numpy(partition.labels == unit)] = 0.0
    with torch.no_grad():
        logits = inferer_of(2)(masked[None], network)[0]
    z, r = logits[1].double().numpy(), region.mask
    p, p0 = logits.argmax(0).numpy() == 1, full.argmax(0).numpy() == 1
    tp, fp = z[r & p & p0].sum() / r.sum(), -z[r & p & ~p0].sum() / r.sum()
    return np.array([tp, fp, 2 * (r & p & p0).sum() / ((r & p).sum() + (r & p0).sum() + 1e-8), tp + fp])


def test_scores_of_any_coalition_equal_the_inferer(network, case, game):
    rows = all_coalitions(5)[[31, 0, 7, 22, 7, 15]]
    found = game(rows)
    np.testing.assert_allclose(found, [direct(network, case, row) for row in rows], atol=1e-6)
    assert np.array_equal(found[2], found[4])
    assert not game.visible[4]
    assert np.array_equal(found[0], found[5])  # they differ in the unit that is not seen
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_the_reference_is_that_of_all_units_whatever_is_asked_first(network, case, game):
    row = all_coalitions(5)[[6]]
    np.testing.assert_allclose(game(row)[0], direct(network, case, row[0]), atol=1e-6)
    before = game.n_forwards
    game(row)
    assert game.n_forwards > before
    assert game(np.zeros((0, 5), dtype=bool)).shape == (0, 4)


def test_its_shapley_values_are_the_explanation(network, case, game):
    (explanation,) = explainer_of(network, scores=SCORES, method="exact", budget=64)(*case[:2], [case[2]], case[3])
    np.testing.assert_allclose(explanation.values, exact_shapley(game(all_coalitions(5))), atol=1e-12)


def test_curves_of_an_explanation(network, case, game):
    (explanation,) = explainer_of(network, scores=SCORES, method="exact", budget=64)(*case[:2], [case[2]], case[3])
    values = explanation.values[:, 3]
    curves = perturbation_curves(game.score("soft_dice"), values)
    order = np.argsort(-values, kind="stable")
    expected = []
    for k in range(6):
        row = np.ones(5, dtype=bool)
        row[order[:k]] = False
        expected.append(direct(network, case, row)[3])
    np.testing.assert_allclose(curves.morf, expected, atol=1e-6)
    assert curves.bounds.method == "exact"
    assert 0.0 <= curves.sufficiency <= curves.naopc <= 1.0


def test_what_it_does_not_know_is_refused(game):
    with pytest.raises(ValueError, match=r"coalitions have shape \(2, 4\) and type bool; expected bool \(K, 5\)"):
        game(np.ones((2, 4), dtype=bool))
    with pytest.raises(ValueError, match="type int64; expected bool"):
        game(np.ones((2, 5), dtype=np.int64))
    with pytest.raises(ValueError, match="no score 'volume'; it has tp, fp, dice, soft_dice"):
        game.score("volume")
