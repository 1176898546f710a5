# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A second opinion from the same coalitions: cross-fitted, unbiased, with errors that assume no model of the game."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from monai_segshap.shapley.regression import one_step

__all__ = ["AUDIT_LIMIT", "LEAST_PAIRS", "Control", "audit_statistic", "corrected_estimate"]

Floats = NDArray[np.float64]

#: Row numbers to fit on -> Shapley values (M, T) of the fitted game, and its scores (K, T) for all rows.
Control = Callable[[NDArray[np.int64]], tuple[Floats, Floats]]

#: Mean square of the differences in units of their errors, above which answer and second opinion disagree.
AUDIT_LIMIT = 1.3
#: Fewer pairs make no second opinion.
LEAST_PAIRS = 16
_FOLDS = 4


def corrected_estimate(rows: NDArray[np.bool_], scores: Floats, control: Control) -> tuple[Floats, Floats]:
    """Values of a game fitted on three quarters of the pairs, plus the one-step estimate of what it misses on the rest.

    The one-step estimate has no bias whatever the fitted game is, and the pairs that it uses played no part in the fit.

    Args:
        rows: bool (2 + 2n, M): all units kept, none, then n pairs of complements with uniform sizes.
        scores: float64 (2 + 2n, T).
        control: fits a game.

    Returns:
        values (M, T) and standard errors (M, T), the mean over four folds.
    """
    n_pairs = (len(rows) - 2) // 2
    total = scores[0] - scores[1]
    fold = np.arange(n_pairs) % _FOLDS
    values, variances = np.zeros((rows.shape[1], scores.shape[1])), np.zeros((rows.shape[1], scores.shape[1]))
    for number in range(_FOLDS):
        held_out = np.flatnonzero(fold == number)
        used = np.flatnonzero(fold != number)
        kept = np.concatenate([[0, 1], np.sort(np.concatenate([2 + 2 * used, 3 + 2 * used]))])
        fitted, predicted = control(kept)
        rest = scores - predicted
        differences = rest[2 + 2 * held_out] - rest[3 + 2 * held_out]
        missed, errors = one_step(rows[2 + 2 * held_out], differences, total - (predicted[0] - predicted[1]))
        values += (fitted + missed) / _FOLDS
        variances += errors**2 / _FOLDS**2
    return values, np.sqrt(variances)


def audit_statistic(values: Floats, corrected: Floats, errors: Floats) -> Floats:
    """Mean over units of ``((value - corrected) / error)^2``, (T,); near or below 1 if they agree, 0 without errors."""
    scaled = np.divide(values - corrected, errors, out=np.zeros_like(values), where=errors > 0)
    return np.asarray((scaled**2).mean(axis=0))
