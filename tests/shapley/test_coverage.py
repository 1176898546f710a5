# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""95 % intervals of every default hold the known values as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from shapley_oracles import DividendGame, VoxelGame

from monai_segshap.shapley import BlockTable, plan_coalitions, solve

N_SEEDS = 30
#: The coverage asked for, and the standard error of a share of 98 % among 900 values.
LOW, HIGH, COUNTING = 0.92, 0.98, 0.005


def coverage(make, budget: int, method: str, with_blocks: bool = False) -> float:
    """Share of units whose value lies within 1.96 standard errors, over seeds; a fresh game and plan for each."""
    inside = []
    for seed in range(N_SEEDS):
        game = make(seed)
        plan = plan_coalitions(game.n_units, budget, "auto", seed)
        assert plan.method == method
        if isinstance(game, DividendGame):
            found, exact = solve(plan, game(plan.rows)), game.shapley[:, None]
        else:
            outputs = game.table(plan.rows).outputs
            blocks = BlockTable(outputs[:, :, [0]] + outputs[:, :, [1]], np.ones((1, 1)), lambda sums: sums)
            scores = outputs[:, :, :2].sum(axis=(1, 2))[:, None]
            found = solve(plan, scores, game.locality, blocks if with_blocks else None)
            exact = game.shapley[:, [2]]
        inside.append(np.abs(found.values - exact) <= 1.96 * found.standard_errors)
    return float(np.mean(inside))


@pytest.mark.parametrize(
    ("make", "budget", "method"),
    [
        (lambda seed: VoxelGame.anywhere(16, 60, seed), 512, "kernelshap"),
        (lambda seed: VoxelGame.local((4, 2, 2), 60, seed), 512, "kernelshap"),
        (lambda seed: DividendGame.random(16, (1, 2, 3, 5), 12, seed), 512, "kernelshap"),
        (lambda seed: VoxelGame.anywhere(32, 60, seed), 512, "gaussian_process"),
        (lambda seed: VoxelGame.local((4, 3, 3), 60, seed), 512, "gaussian_process"),
        (lambda seed: VoxelGame.anywhere(24, 60, seed), 200, "gaussian_process"),
        (lambda seed: VoxelGame.local((4, 3, 2), 60, seed), 200, "gaussian_process"),
        (lambda seed: DividendGame.random(30, (1, 2, 3, 5), 20, seed), 512, "gaussian_process"),
    ],
    ids=["few", "few-local", "few-dividends", "anywhere", "local", "anywhere-200", "local-200", "dividends"],
)
def test_intervals_of_the_defaults_cover(make, budget, method):
    assert LOW - COUNTING <= coverage(make, budget, method) <= HIGH + COUNTING


@pytest.mark.slow
def test_intervals_of_values_by_blocks_cover():
    found = coverage(lambda seed: VoxelGame.local((4, 3, 3), 60, seed), 512, "gaussian_process", with_blocks=True)
    assert LOW - COUNTING <= found <= HIGH + COUNTING


@pytest.mark.parametrize(
    "make",
    [lambda seed: VoxelGame.anywhere(32, 60, seed), lambda seed: VoxelGame.local((4, 3, 3), 60, seed)],
    ids=["anywhere", "local"],
)
def test_intervals_of_the_ridge_cover(make):
    inside = []
    for seed in range(N_SEEDS):
        game, plan = make(seed), plan_coalitions(make(seed).n_units, 512, "ridge", seed)
        found = solve(plan, game(plan.rows)[:, [3]], game.locality)
        inside.append(np.abs(found.values - game.shapley[:, [2]]) <= 1.96 * found.standard_errors)
    assert LOW - COUNTING <= np.mean(inside) <= HIGH + COUNTING
