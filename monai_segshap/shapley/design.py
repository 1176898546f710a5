# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The weighted design of a sampled plan: does it determine every value, and how firmly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Decomposition", "decompose", "join_columns", "require_determined"]

#: At a leverage above this a row's value rests on that row alone.
ALONE = 1.0 - 1e-9


@dataclass(frozen=True)
class Decomposition:
    """Singular value decomposition of the root-weighted regressors, projected on the sum-zero space.

    Attributes:
        left: float64 (n, M-1).
        singular: float64 (M-1,), descending.
        right: float64 (M-1, M).
        rank: number of singular values above rounding; M-1 if every value is determined.
        leverage: float64 (n,), diagonal of the hat matrix, 0 to 1. At 1 a value rests on that row alone.
    """

    left: NDArray[np.float64]
    singular: NDArray[np.float64]
    right: NDArray[np.float64]
    rank: int
    leverage: NDArray[np.float64]


def decompose(regressors: NDArray[np.float64], weights: NDArray[np.float64]) -> Decomposition:
    """Decompose regressors (n, M) under weights (n,)."""
    free = regressors.shape[1] - 1
    projected = np.sqrt(weights)[:, None] * (regressors - regressors.mean(axis=1, keepdims=True))
    left, singular, right = np.linalg.svd(projected, full_matrices=False)
    rank = int((singular > singular[0] * max(projected.shape) * np.finfo(np.float64).eps).sum())
    left = left[:, :free]
    return Decomposition(left, singular[:free], right[:free], rank, (left**2).sum(axis=1))


def join_columns(
    found: Decomposition, columns: NDArray[np.float64], inclusion: NDArray[np.float64]
) -> tuple[list[int], NDArray[np.float64]]:
    """The columns that can be fitted beside the regressors, tried in order.

    A column is left out if the regressors and the columns before it already span it, or if with it a row would
    determine itself. Both depend on the coalitions alone, not on their scores.

    Args:
        found: the regressors.
        columns: (n, s), root-weighted like the regressors.
        inclusion: (n,), 1 for a row that is in every plan, which may determine itself.

    Returns:
        numbers of the columns let in, and an orthonormal basis (n, s') of what they add to the regressors.
    """
    kept: list[int] = []
    basis = np.empty((len(columns), 0))
    leverage = found.leverage
    for number, column in enumerate(columns.T):
        rest = column
        for _ in range(2):  # twice, for orthogonality to rounding
            rest = rest - found.left @ (found.left.T @ rest)
            rest = rest - basis @ (basis.T @ rest)
        length = float(np.linalg.norm(rest))
        if length <= 1e-7 * float(np.linalg.norm(column)):
            continue
        direction = rest / length
        if ((leverage + direction**2 > ALONE) & (inclusion < 1.0)).any():
            continue
        kept.append(number)
        basis = np.column_stack([basis, direction])
        leverage = leverage + direction**2
    return kept, basis


def require_determined(
    regressors: NDArray[np.float64], weights: NDArray[np.float64], inclusion: NDArray[np.float64], budget: int
) -> None:
    """Raise, before anything is evaluated, if the coalitions drawn can not give values with honest errors.

    Columns of the size need no check of their own: `join_columns` lets in only those that leave a determined design
    determined.

    Raises:
        ValueError: if a value is not determined, or rests on a single row so that its error can not be estimated.
    """
    n_units = regressors.shape[1]
    found = decompose(regressors, weights)
    more = f"Raise the budget (now {budget}) to {max(8 * n_units, budget + n_units)}, or use larger units."
    if found.rank < n_units - 1:
        raise ValueError(
            f"the {len(regressors)} coalitions drawn determine only {found.rank} of {n_units - 1} free values. {more}"
        )
    if ((found.leverage > ALONE) & (inclusion < 1.0)).any():
        raise ValueError(
            f"with {len(regressors)} coalitions for {n_units} units a value rests on one of them alone. {more}"
        )
