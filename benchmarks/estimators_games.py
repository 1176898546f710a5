# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Games with known Shapley values, for `estimators.py`: voxels that compare a weighted sum of units to a threshold.

Units lie on a cubic lattice of 40 mm. 24 blocks of 12 voxels lie around its middle. A voxel depends on 10 units (6 of
9): in a local game on those near its block, with weights that fall with distance, a fifth of them negative; in a
non-local game on any, with normal weights. It is predicted if the sum exceeds half of its positive weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from estimators_methods import Sample
from numpy.typing import NDArray

from monai_segshap.shapley import BlockTable, Locality, all_coalitions, exact_shapley, plan_coalitions

Floats = NDArray[np.float64]

SPACING_MM = 40.0
_BLOCKS, _VOXELS = 24, 12


@dataclass(frozen=True)
class ThresholdGame:
    """The score is the share of voxels predicted, or Dice with the prediction that keeps all units.

    Attributes:
        units: int (V, r), the units of each voxel.
        weights: (V, r).
        thresholds: (V,).
        n_units: M.
        block_distances_mm: (B, M), of a local game.
        ratio: the score is Dice.
    """

    units: NDArray[np.int64]
    weights: Floats
    thresholds: Floats
    n_units: int
    block_distances_mm: Floats | None
    ratio: bool = False

    def __call__(self, rows: NDArray[np.bool_]) -> Floats:
        """Score (K, 1) of coalitions (K, M)."""
        return self.compose(self.outputs(rows).sum(axis=1))

    def predicted(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Voxels (K, V) above their thresholds."""
        dense = np.zeros((self.n_units, len(self.units)))
        np.add.at(dense, (self.units.T, np.arange(len(self.units))), self.weights.T)
        return np.asarray(rows.astype(np.float64) @ dense > self.thresholds)

    def outputs(self, rows: NDArray[np.bool_]) -> Floats:
        """Voxels (K, B, 2) of each block that are predicted, inside and outside the prediction that keeps all units."""
        found, whole = self.predicted(rows), self.predicted(np.ones((1, self.n_units), dtype=bool))
        parts = np.stack([found & whole, found & ~whole], axis=-1)
        return np.asarray(parts.reshape(len(rows), _BLOCKS, -1, 2).sum(axis=2), dtype=np.float64)

    def compose(self, sums: Floats) -> Floats:
        """Scores (K, 1) from sums over blocks (K, 2)."""
        hit, extra = np.maximum(sums[:, [0]], 0.0), np.maximum(sums[:, [1]], 0.0)
        if not self.ratio:
            return np.asarray(sums.sum(axis=1, keepdims=True) / len(self.units))
        n_reference = int(self.predicted(np.ones((1, self.n_units), dtype=bool)).sum())
        return 2.0 * hit / (hit + extra + n_reference)

    @property
    def linear(self) -> Floats:
        """See `BlockTable`."""
        return np.full((1, 2), np.nan if self.ratio else 1.0 / len(self.units))

    @property
    def locality(self) -> Locality:
        """Distances, of a local game."""
        if self.block_distances_mm is None:
            return Locality(unit_size_mm=SPACING_MM)
        return Locality(self.block_distances_mm.min(axis=0), SPACING_MM, self.block_distances_mm)

    def sample(self, budget: int, seed: int) -> Sample:
        """The paired coalitions of a budget, evaluated; the empty and the full one come on top."""
        plan = plan_coalitions(self.n_units, budget, "gaussian_process", seed)
        outputs = self.outputs(plan.rows)
        blocks = None if self.block_distances_mm is None else BlockTable(outputs, self.linear, self.compose)
        return Sample(plan.rows, self.compose(outputs.sum(axis=1)), plan.weights, self.locality, blocks, plan.inclusion)


def make_game(n_units: int, local: bool, seed: int, ratio: bool = False) -> ThresholdGame:
    """A game drawn from a seed."""
    rng, reach = np.random.default_rng(seed), min(10, n_units * 2 // 3)
    side = int(np.ceil(n_units ** (1 / 3)))
    lattice = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    position = lattice[:n_units] * SPACING_MM
    units, weights, distances = [], [], []
    for _ in range(_BLOCKS):
        distance = np.linalg.norm(position - position.mean(axis=0) - rng.normal(size=3) * 30.0, axis=1)
        distances.append(distance)
        for _ in range(_VOXELS):
            if local:
                units.append(np.argsort(distance + rng.random(n_units) * 5.0)[:reach])
                sign = np.where(rng.random(reach) < 0.2, -1.0, 1.0)
                weights.append(rng.random(reach) * np.exp(-np.arange(reach) / 4.0) * sign)
            else:
                units.append(rng.choice(n_units, reach, replace=False))
                weights.append(rng.normal(0.3, 0.5, reach))
    weight = np.array(weights)
    thresholds = 0.5 * np.maximum(weight, 0.0).sum(axis=1)
    return ThresholdGame(np.array(units), weight, thresholds, n_units, np.array(distances) if local else None, ratio)


def known_values(game: ThresholdGame) -> Floats:
    """Shapley values (M, 1) of an additive game: those of each voxel, over all coalitions of its own units."""
    if game.ratio:
        raise ValueError("a ratio is no sum over voxels; use `long_walks`.")
    own = all_coalitions(game.units.shape[1]).astype(np.float64)
    # products of the same dense kind as in `predicted`; ties have probability zero
    above = own @ game.weights.T > game.thresholds
    values = exact_shapley(above.astype(np.float64))
    found = np.zeros(game.n_units)
    np.add.at(found, game.units.T, values / len(game.units))
    return found[:, None]


def long_walks(game: ThresholdGame, n_pairs: int, seed: int = 0) -> tuple[Floats, float]:
    """Values (M, 1) by antithetic walks, and their relative standard error."""
    rng, m = np.random.default_rng(seed), game.n_units
    total, squares = np.zeros(m), np.zeros(m)
    for _ in range(n_pairs):
        position = rng.permutation(m)
        kept = position[None, :] < np.arange(m + 1)[:, None]
        steps = np.diff(game(kept)[:, 0])[position]
        back = -np.diff(game(~kept)[:, 0])[position]
        both = (steps + back) / 2.0
        total, squares = total + both, squares + both**2
    mean = total / n_pairs
    variance = (squares / n_pairs - mean**2) / n_pairs
    return mean[:, None], float(np.sqrt(variance.sum() / (mean**2).sum()))
