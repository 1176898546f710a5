# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Independent ways to know Shapley values: orderings, and Harsanyi dividends."""

from __future__ import annotations

from itertools import permutations

import numpy as np


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
