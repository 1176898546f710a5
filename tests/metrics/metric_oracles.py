# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Perturbation curves by their definition: sets, loops, and all M! orders."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np


class CountingGame:
    """One score from a table (2**M,), row index = bit mask; remembers every coalition that it was asked for."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = np.asarray(table, dtype=np.float64)
        self.n_units = len(self.table).bit_length() - 1
        self.calls: list[list[int]] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        assert rows.dtype == bool
        masks = [sum(2**unit for unit in range(self.n_units) if row[unit]) for row in rows]
        self.calls.append(masks)
        return self.table[masks]

    @property
    def asked(self) -> list[int]:
        return [mask for call in self.calls for mask in call]


def random_table(n_units: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=2**n_units)


def additive_table(values: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Table of ``empty + sum of the values of the kept units``."""
    masks = range(2 ** len(values))
    return np.array([empty + sum(v for unit, v in enumerate(values) if mask >> unit & 1) for mask in masks])


def curve_along(table: np.ndarray, order: tuple[int, ...]) -> list[float]:
    """Scores while the units of an order are removed one after the other."""
    mask = len(table) - 1
    found = [float(table[mask])]
    for unit in order:
        mask -= 2**unit
        found.append(float(table[mask]))
    return found


def aopc_along(table: np.ndarray, order: tuple[int, ...]) -> float:
    curve = curve_along(table, order)
    return sum(curve[0] - s for s in curve[1:]) / len(order)


def abpc_along(table: np.ndarray, order: tuple[int, ...]) -> float:
    """Of an order as MoRF and its reverse as LeRF."""
    morf, lerf = curve_along(table, order), curve_along(table, order[::-1])
    return sum(b - a for a, b in zip(morf[1:], lerf[1:], strict=True)) / len(order)


def over_all_orders(measure: Callable[[np.ndarray, tuple[int, ...]], float], table: np.ndarray) -> np.ndarray:
    n_units = len(table).bit_length() - 1
    return np.array([measure(table, order) for order in permutations(range(n_units))])


def ranks_as_attributions(order: tuple[int, ...]) -> np.ndarray:
    """Attributions (M,) whose MoRF order is the given one."""
    found = np.empty(len(order))
    found[list(order)] = np.arange(len(order), 0, -1)
    return found
