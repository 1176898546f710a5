# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The game of a case gives what the explanation was made of, for any coalition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from execution_job import SHAPE, explainer_of, image_of, inferer_of, whole_volume

from monai_segshap.geometry import VoxelGrid
from monai_segshap.metrics import case_curves, perturbation_curves
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


class TestCaseCurves:
    """All scores from one evaluation; coalitions that the explanation has are not evaluated again."""

    def test_equal_the_curves_of_each_score_alone(self, network, case, game):
        options = dict(method="kernelshap", budget=12, seed=3)
        explainer = explainer_of(network, scores=SCORES, **options)
        (explanation,) = explainer(*case[:2], [case[2]], case[3])
        found = case_curves(explanation, explainer.game(*case), random_orders=2)
        for t, name in enumerate(SCORES):
            alone = perturbation_curves(
                lambda rows, t=t: game.of_visible(rows)[:, t],
                explanation.values[explanation.visible, t],
                volumes=explanation.partition.volumes_ml[explanation.visible],
                random_orders=2,
            )
            assert np.array_equal(found[name].morf, alone.morf)
            assert np.array_equal(found[name].random.curves, alone.random.curves)
            assert np.array_equal(found[name].morf_volume, alone.morf_volume)
            assert found[name].naopc == alone.naopc or np.isnan(alone.naopc)
        assert len(found["tp"].morf) == 5  # four of the five units are visible
        distinct = 2**4 - len(np.unique(explanation.evaluated.rows, axis=0))
        assert sum(curves.n_evaluations for curves in found.values()) == distinct > 0

    def test_what_was_enumerated_needs_no_game(self, network, case):
        explainer = explainer_of(network, scores=SCORES, method="exact", budget=64)
        (explanation,) = explainer(*case[:2], [case[2]], case[3])
        found = case_curves(explanation, scores=("soft_dice",))
        assert list(found) == ["soft_dice"]
        assert found["soft_dice"].n_evaluations == 0
        assert found["soft_dice"].bounds.method == "exact"
        expected = exact_shapley(explanation.evaluated.scores)
        np.testing.assert_allclose(explanation.values[explanation.visible], expected, atol=1e-12)

    def test_the_table_of_one_region_of_several_is_its_own(self, network, case, game):
        image, partition, region, logits = case
        other = np.zeros(SHAPE, dtype=bool)
        other[2:4, 2:5, 8:14] = True
        explainer = explainer_of(network, scores=SCORES, method="kernelshap", budget=14)
        explanations = explainer(image, partition, [region, Region(other, "box", 1, 0)], logits)
        first = explanations[0]
        assert first.evaluated.rows.shape[1] == first.visible.sum() == 4
        assert explanations[1].evaluated.rows.shape[1] == explanations[1].visible.sum()
        np.testing.assert_allclose(first.evaluated.scores, game.of_visible(first.evaluated.rows), atol=1e-12)

    def test_a_game_of_something_else_is_refused(self, network, case):
        explainer = explainer_of(network, scores=SCORES, method="kernelshap", budget=12)
        (explanation,) = explainer(*case[:2], [case[2]], case[3])
        with pytest.raises(ValueError, match="the game has the scores tp and 4 visible units of 5; expected tp, fp"):
            case_curves(explanation, explainer_of(network, scores=("tp",)).game(*case))
        with pytest.raises(ValueError, match="has no evaluated coalitions, and game is None"):
            case_curves(replace(explanation, evaluated=None))
        with pytest.raises(ValueError, match="coalitions are not among the"):
            case_curves(explanation)
        with pytest.raises(ValueError, match="score 'volume' was not computed"):
            case_curves(explanation, scores=("volume",))
