# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What a plan of coalitions holds, and the key of its random draws."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["PAIRED_METHODS", "CoalitionPlan", "draw_key"]

#: Estimators that use one and the same pairs of complements.
PAIRED_METHODS = ("kernelshap", "gaussian_process", "ridge")


@dataclass(frozen=True)
class CoalitionPlan:
    """The coalitions of one explanation, and how they were drawn.

    Attributes:
        rows: bool array of shape (K, M), True keeps a unit. For ``exact`` the row index is the bit mask; otherwise
            row 0 keeps all units, row 1 removes all, and the others come in pairs of complements (see ``is_paired``)
            or (``walks``) in walks, see `plan_walks`.
        method: the estimator, one of `METHODS` but "auto".
        seed: seed of the draw.
        weights: float64 array of shape (number of pairs,) or (K - 2,), regression weights; empty for ``exact``, one
            for each pair of walks.
        inclusion: float64 array like ``weights``, the probability with which a pair enters the plan.
        reason: why this method was taken, for people.
    """

    rows: NDArray[np.bool_]
    method: str
    seed: int
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    inclusion: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    reason: str = ""

    @property
    def n_units(self) -> int:
        """Number of units M."""
        return int(self.rows.shape[1])

    @property
    def n_evaluations(self) -> int:
        """Number of coalitions K, the full and the empty one included."""
        return int(self.rows.shape[0])

    @property
    def full_row(self) -> int:
        """Row that keeps every unit."""
        return self.n_evaluations - 1 if self.method == "exact" else 0

    @property
    def empty_row(self) -> int:
        """Row that removes every unit."""
        return 0 if self.method == "exact" else 1

    @property
    def is_paired(self) -> bool:
        """Whether the rows after the first two are pairs of complements."""
        return self.method in PAIRED_METHODS

    @property
    def step(self) -> int:
        """Coalitions by which a plan of this kind grows: a pair, two antithetic walks, or one."""
        return 2 if self.is_paired else 2 * (self.n_units - 1) if self.method == "walks" else 1

    @property
    def is_complete(self) -> bool:
        """Whether the pairs are all pairs there are: then every estimator gives the exact values."""
        return self.is_paired and bool((self.inclusion >= 1.0).all())

    @property
    def regressors(self) -> NDArray[np.float64]:
        """Float64 (n, M), one row for each weight; empty for ``exact`` and ``walks``.

        A pair of complements is one row, +1 for the units that its first member keeps and -1 for the others; an
        unpaired coalition is its indicator.
        """
        if self.is_paired:
            return np.where(self.rows[2::2], 1.0, -1.0)
        return self.rows[2:].astype(np.float64) if self.method == "published" else np.empty((0, self.n_units))


def draw_key(seed: int, n_units: int) -> NDArray[np.uint64]:
    """Philox key of the draws of (seed, M); the counter tells the kinds of draws apart."""
    return np.asarray(np.random.SeedSequence([seed, n_units]).generate_state(2, np.uint64), dtype=np.uint64)
