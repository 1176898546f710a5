# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The search of hyperparameters against the likelihood by definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from shapley_oracles import VoxelGame

from monai_segshap.shapley import plan_coalitions
from monai_segshap.shapley.process import Hyperparameters, distance_prior, kernel, similarity, size_kernel
from monai_segshap.shapley.tuning import _NOISES, _Search, choose_hyperparameters


def minus_twice_log_likelihood(masks, output, distances, chosen: Hyperparameters) -> float:
    """Of one output under its own best scale."""
    prior = distance_prior(distances, masks.shape[1], chosen.length_mm)
    k = kernel(similarity(masks, masks, prior), size_kernel(masks, masks), chosen)
    pinned = masks.all(axis=1) | ~masks.any(axis=1)
    covariance = k + np.diag(chosen.noise * np.diag(k).mean() * np.where(pinned, 1e-4, 1.0))
    target = output - output[~masks.any(axis=1)][0]
    scale = target @ np.linalg.solve(covariance, target) / len(target)
    return -2.0 * multivariate_normal.logpdf(target, np.zeros(len(target)), scale * covariance)


@pytest.mark.parametrize(
    "chosen",
    [Hyperparameters(8.0, 2.0, 1.0, 0.3, 0.0), Hyperparameters(np.inf, 0.5, 0.0, 3.0, 0.0)],
    ids=["local", "flat"],
)
def test_the_likelihood_searched_is_that_of_a_normal_law_with_its_best_scale(chosen):
    game = VoxelGame.local((3, 2, 2), 30, seed=0)
    rows = plan_coalitions(12, 40, "gaussian_process").rows
    outputs = game(rows)[:, [0, 3]] * [1.0, 50.0]
    distances = [game.locality.distances_mm, game.locality.block_distances_mm[0]]
    score, best = _Search(rows, outputs, distances)._at_best_noise(chosen)
    direct = {
        noise: sum(
            minus_twice_log_likelihood(rows, outputs[:, o], distances[o], replace(chosen, noise=noise))
            for o in range(2)
        )
        for noise in _NOISES
    }
    assert best.noise == min(direct, key=direct.get)
    assert replace(best, noise=0.0) == chosen
    n = len(rows)
    constant = n * (np.log(2 * np.pi) + 1.0) + 2 * np.log(1e-4)  # the two pinned rows are scaled
    assert score == pytest.approx(direct[best.noise] - 2 * constant, abs=1e-6)


def choose(game: VoxelGame, distances, budget: int = 200) -> Hyperparameters:
    rows = plan_coalitions(game.n_units, budget, "gaussian_process").rows
    return choose_hyperparameters(rows, game(rows)[:, [3]], [distances], 10.0)


def test_a_local_game_has_a_finite_length_and_the_choice_repeats():
    game = VoxelGame.local((4, 4, 3), 60, seed=1)
    found = choose(game, game.locality.distances_mm)
    assert np.isfinite(found.length_mm)
    assert found == choose(game, game.locality.distances_mm)


def test_units_without_a_place_have_an_infinite_length():
    assert choose(VoxelGame.anywhere(30, 40, seed=1), None).length_mm == np.inf


def test_distances_that_say_nothing_are_not_believed():
    game = VoxelGame.anywhere(30, 60, seed=2)
    misleading = np.random.default_rng(0).permutation(np.linspace(0, 60, 30))
    assert choose(game, misleading).length_mm == np.inf or choose(game, misleading).length_mm >= 8.0


def test_only_the_first_rows_and_the_liveliest_outputs_count():
    game = VoxelGame.local((4, 3, 3), 40, seed=3)
    rows = plan_coalitions(36, 400, "gaussian_process").rows
    outputs = np.column_stack([game(rows)[:, [0, 3]], np.zeros((len(rows), 13))])
    distances = [game.locality.distances_mm] * 15
    found = choose_hyperparameters(rows, outputs, distances, 10.0)
    assert found == choose_hyperparameters(rows[:200], outputs[:200], distances, 10.0)
