# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Independent ways to know Shapley values: orderings, Harsanyi dividends, and voxels with few units of their own."""

from __future__ import annotations

from itertools import permutations
from math import comb

import numpy as np

from monai_segshap.shapley import BlockTable, Locality, all_coalitions, exact_shapley


def errors_of(covariances: np.ndarray) -> np.ndarray:
    """Standard errors (M, T) from covariances (T, M, M)."""
    return np.sqrt(np.maximum(np.diagonal(covariances, axis1=1, axis2=2), 0.0)).T


def by_orderings(table: np.ndarray) -> np.ndarray:
    """Mean marginal contribution over all orderings; table (2**M,), bit mask index, unit 0 lowest."""
    n_units = len(table).bit_length() - 1
    total = np.zeros(n_units)
    count = 0
    for order in permutations(range(n_units)):
        mask = 0
        for unit in order:
            total[unit] += table[mask + 2**unit] - table[mask]
            mask += 2**unit
        count += 1
    return total / count


class DividendGame:
    """Sum of dividends of the groups that a coalition holds completely; a group shares its dividend equally."""

    def __init__(self, n_units: int, groups: list[tuple[int, ...]], dividends: np.ndarray, base: float = 0.0):
        self.n_units, self.groups, self.dividends, self.base = n_units, groups, np.asarray(dividends), base

    @classmethod
    def random(cls, n_units: int, orders: tuple[int, ...], per_order: int, seed: int) -> DividendGame:
        rng = np.random.default_rng(seed)
        groups = [
            tuple(sorted(rng.choice(n_units, size=order, replace=False).tolist()))
            for order in orders
            for _ in range(per_order)
        ]
        return cls(n_units, groups, rng.normal(size=len(groups)), base=float(rng.normal()))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        held = np.stack([rows[:, list(group)].all(axis=1) for group in self.groups], axis=1)
        return (self.base + held @ self.dividends)[:, None]

    @property
    def shapley(self) -> np.ndarray:
        values = np.zeros(self.n_units)
        for group, dividend in zip(self.groups, self.dividends, strict=True):
            for unit in group:
                values[unit] += dividend / len(group)
        return values


class QuotaGame:
    """Share of the quotas that the integer weights of a coalition reach: each unit can matter to each other one."""

    def __init__(self, weights: np.ndarray, quotas: np.ndarray):
        self.weights, self.quotas = np.asarray(weights, dtype=np.int64), np.asarray(quotas, dtype=np.int64)

    @classmethod
    def random(cls, n_units: int, seed: int, shares: tuple[float, ...]) -> QuotaGame:
        """Quotas are shares of the sum of the weights."""
        weights = np.random.default_rng(seed).integers(1, 10, n_units)
        return cls(weights, np.round(np.array(shares) * weights.sum()))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return ((rows @ self.weights)[:, None] >= self.quotas).mean(axis=1, keepdims=True)

    @property
    def shapley(self) -> np.ndarray:
        """By counting, for each unit, the coalitions of the others by size and weight (Mann and Shapley 1962)."""
        n_units, top = len(self.weights), int(self.weights.sum()) + 1
        orders = np.array([1.0 / (n_units * comb(n_units - 1, k)) for k in range(n_units)])
        values = np.zeros(n_units)
        for unit, own in enumerate(self.weights):
            count = np.zeros((n_units, top))
            count[0, 0] = 1.0
            for other in np.delete(self.weights, unit):
                count[1:, other:] += count[:-1, : top - other].copy()
            by_weight = orders @ count
            for quota in self.quotas:
                values[unit] += by_weight[max(quota - own, 0) : quota].sum() / len(self.quotas)
        return values


def relative_error(values: np.ndarray, exact: np.ndarray) -> float:
    """Length of the difference as a share of that of the exact values."""
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


class VoxelGame:
    """Voxels that each look at a few units of their own: on where a weighted sum of those kept is above a threshold.

    Scores are tp, fp, dice and soft dice with a signal of 1; units and voxels of `local` have positions in mm.
    """

    def __init__(self, n_units: int, own: np.ndarray, weights: np.ndarray, thresholds: np.ndarray) -> None:
        self.n_units, self.own, self.weights, self.thresholds = n_units, own, weights, thresholds
        self.reference = weights.sum(axis=1) > thresholds
        self.blocks = np.zeros(len(own), dtype=np.int64)
        self.locality = Locality()

    @classmethod
    def anywhere(cls, n_units: int, n_voxels: int, seed: int, n_own: int = 10) -> VoxelGame:
        """Each voxel looks at random units."""
        rng = np.random.default_rng(seed)
        own = np.stack([rng.choice(n_units, n_own, replace=False) for _ in range(n_voxels)])
        return cls(n_units, own, *_answers(rng, own.shape))

    @classmethod
    def local(cls, shape: tuple[int, int, int], n_voxels: int, seed: int, n_own: int = 10) -> VoxelGame:
        """Units on a lattice of 10 mm; the voxels lie in a cube of 16 mm around its middle and look at the nearest."""
        rng = np.random.default_rng(seed)
        units = 10.0 * np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
        units = units + rng.uniform(-1.0, 1.0, units.shape)
        voxels = units.mean(axis=0) + rng.uniform(-8.0, 8.0, (n_voxels, 3))
        apart = np.linalg.norm(units[:, None] - voxels, axis=2)
        game = cls(len(units), np.argsort(apart, axis=0)[:n_own].T, *_answers(rng, (n_voxels, n_own)))
        cells = np.floor((voxels - voxels.min(axis=0)) / 7.2).astype(int)
        game.blocks = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
        centers = [voxels[game.blocks == b].mean(axis=0) for b in range(game.blocks.max() + 1)]
        to_blocks = np.stack([np.linalg.norm(units - center, axis=1) for center in centers])
        game.locality = Locality(apart.min(axis=1), 10.0, to_blocks)
        return game

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Tp, fp, dice and soft dice (K, 4)."""
        return self.compose(self.table(rows).outputs.sum(axis=1))

    def table(self, rows: np.ndarray) -> BlockTable:
        """What the blocks contribute, as `monai_segshap.games.RegionGame` has it."""
        on = np.stack([rows[:, own] @ w > t for own, w, t in zip(self.own, self.weights, self.thresholds, strict=True)])
        hit, extra = on.T & self.reference, on.T & ~self.reference
        member = (self.blocks[:, None] == np.arange(self.blocks.max() + 1)).astype(float)
        counts = [hit @ member, extra @ member]
        share = [counts[0] / len(on), -counts[1] / len(on)]
        linear = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, np.nan, np.nan], [1, 1, 0, 0]])
        return BlockTable(np.stack(share + counts, axis=2), linear, self.compose)

    def compose(self, sums: np.ndarray) -> np.ndarray:
        tp, fp, hit, extra = sums.T
        hit, extra = np.maximum(hit, 0.0), np.maximum(extra, 0.0)
        return np.stack([tp, fp, 2 * hit / (hit + extra + self.reference.sum() + 1e-8), tp + fp], axis=1)

    @property
    def shapley(self) -> np.ndarray:
        """Exact tp, fp and soft dice (M, 3), by enumerating the units of each voxel."""
        on = all_coalitions(self.own.shape[1]) @ self.weights.T > self.thresholds
        each = exact_shapley(on.astype(float)).T / len(self.own)
        values = np.zeros((self.n_units, 2))
        for column, (voxels, sign) in enumerate([(self.reference, 1.0), (~self.reference, -1.0)]):
            np.add.at(values[:, column], self.own[voxels], sign * each[voxels])
        return np.column_stack([values, values.sum(axis=1)])


def _answers(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Weights, mostly positive, and thresholds within their reach."""
    weights = rng.normal(0.5, 0.7, shape)
    return weights, weights.sum(axis=1) * rng.uniform(0.2, 0.8, shape[0]) + 1e-9
