# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Exact Shapley values from the scores of all coalitions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_EXACT_UNITS", "all_coalitions", "exact_shapley"]

#: More units than this cannot be enumerated in memory (2**20 rows).
MAX_EXACT_UNITS = 20


def all_coalitions(n_units: int) -> NDArray[np.bool_]:
    """All ``2**M`` coalitions, row index = bit mask with unit 0 as the lowest bit.

    Args:
        n_units: number of units M, between 1 and ``MAX_EXACT_UNITS``.

    Returns:
        bool array of shape (2**M, M); True keeps a unit. Row 0 removes all, the last row keeps all.

    Raises:
        ValueError: if M is out of range.
    """
    if not 1 <= n_units <= MAX_EXACT_UNITS:
        raise ValueError(
            f"cannot enumerate the coalitions of {n_units} units; expected 1 to {MAX_EXACT_UNITS}. "
            "Use estimate_shapley with a budget, or fewer and larger units."
        )
    return (np.arange(2**n_units, dtype=np.int64)[:, None] >> np.arange(n_units)) & 1 == 1


def exact_shapley(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Shapley values of a game of which every coalition is known.

    ``phi_i = sum over S without i of |S|! (M-|S|-1)! / M! * (v(S with i) - v(S))`` (Shapley 1953).

    Args:
        values: shape (2**M, T), scores of all coalitions; the row index is a bit mask with unit 0 as the lowest
            bit, so that row 0 is the empty coalition. Shape (2**M,) is read as one score.

    Returns:
        float64 array of shape (M, T). Each column sums to ``values[-1] - values[0]``. For input of shape (2**M,)
        the result has shape (M,).

    Raises:
        ValueError: if the number of rows is no power of two of at least 2, or a value is not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    flat = table.ndim == 1
    if flat:
        table = table[:, None]
    if table.ndim != 2:
        raise ValueError(f"values have shape {np.shape(values)}; expected (2**M, T) or (2**M,).")
    n_rows = table.shape[0]
    n_units = n_rows.bit_length() - 1
    if n_rows < 2 or n_rows != 2**n_units:
        raise ValueError(f"got {n_rows} rows; expected 2**M of them, one for each coalition of M >= 1 units.")
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise ValueError(f"the score of coalition {row:0{n_units}b} (unit 0 rightmost) is not finite.")
    index = np.arange(n_rows)
    size = ((index[:, None] >> np.arange(n_units)) & 1).sum(axis=1)
    weight = np.array([1.0 / (n_units * math.comb(n_units - 1, k)) for k in range(n_units)])
    shapley = np.empty((n_units, table.shape[1]))
    for unit in range(n_units):
        without = index[(index >> unit) & 1 == 0]
        shapley[unit] = weight[size[without]] @ (table[without | (1 << unit)] - table[without])
    return shapley[:, 0] if flat else shapley
