# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Least squares for Shapley values: the sum is a constraint, the size of a coalition a nuisance that is fitted along.

Size control. Let s(S) = g(|S|) be any game of the size alone. By symmetry each unit's share of it is
``(g(M) - g(0)) / M``, so a game and the same game minus s have the same Shapley values as soon as ``g(0) = g(M)``.
Networks answer to the size in a bent way; columns that follow the bend take its variance out of the values and put no
bias in, since the centered rows of each size have mean zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_segshap.shapley.design import decompose, join_columns

__all__ = ["N_SIZE_COLUMNS", "constrained_regression", "one_step", "size_columns"]

Floats = NDArray[np.float64]

#: Odd powers of the size that are fitted along, from the third on.
N_SIZE_COLUMNS = 3


def size_columns(sizes: NDArray[np.integer], n_units: int) -> Floats:
    """Columns that follow the size of the first member of each pair.

    With ``u = (2k - M) / M`` column j holds ``h(k) - h(M - k) = 2 (u^(2j+1) - u)``: odd, since a difference of
    complements has no even part, and zero for the full and the empty coalition.

    Args:
        sizes: int (n,), units k that the first member of each pair keeps, 0..M.
        n_units: M.

    Returns:
        float64 (n, s), s = 3, or ``(M - 1) // 2`` where the sizes 1..M-1 carry no more independent odd columns.
    """
    u = (2.0 * np.asarray(sizes, dtype=np.float64) - n_units) / n_units
    powers = 2 * np.arange(1, min(N_SIZE_COLUMNS, (n_units - 1) // 2) + 1) + 1
    return np.asarray(2.0 * (u[:, None] ** powers - u[:, None]))


def constrained_regression(
    regressors: Floats,
    target: Floats,
    total: Floats,
    weights: Floats,
    inclusion: Floats,
    size_columns: Floats | None = None,
) -> tuple[Floats, Floats, dict[str, Any]]:
    """Weighted least squares with the sum of the values fixed, by SVD; HC3 sandwich covariances.

    The values are ``total / M`` plus a part that sums to zero; the latter is fitted to what is left, with regressors
    projected on the sum-zero space. Size columns are fitted jointly and count in leverage (MacKinnon and White 1985,
    HC3) and degrees of freedom; those that the rows can not carry are left out. ``1 - inclusion`` is the
    finite-population factor: a plan that holds every coalition has no sampling error.

    Args:
        regressors: (n, M), see `CoalitionPlan.regressors`.
        target: (n, T).
        total: (T,), what the values sum to.
        weights: (n,).
        inclusion: (n,), probability with which each row entered the plan, 0 to 1.
        size_columns: (n, s), unpenalized columns without a value of their own; None: none.

    Returns:
        values (M, T), their covariances (T, M, M), and diagnostics: ``condition_number`` and ``rank`` of the
        regressors, ``size_columns`` that were fitted, ``residual_dof`` and ``warnings``.

    Raises:
        ValueError: if the rows do not determine the values.
    """
    n_rows, n_units = regressors.shape
    root = np.sqrt(weights)[:, None]
    rest = root * (target - regressors.sum(axis=1, keepdims=True) * (total / n_units))
    found = decompose(regressors, weights)
    if found.rank < n_units - 1:
        raise ValueError(
            f"the {n_rows} coalitions drawn determine only {found.rank} of {n_units - 1} free values: raise the budget."
        )
    columns = root * (np.empty((n_rows, 0)) if size_columns is None else size_columns)
    kept, new = join_columns(found, columns, inclusion)
    inverse = (found.right.T / found.singular) @ found.left.T
    # Frisch and Waugh: fit the columns to what the regressors leave, then the regressors to what the columns leave
    coefficients = np.linalg.lstsq(new.T @ columns[:, kept], new.T, rcond=None)[0]
    inverse -= (inverse @ columns[:, kept]) @ coefficients
    free = inverse @ rest
    free -= free.mean(axis=0)
    residual = rest - found.left @ (found.left.T @ rest) - new @ (new.T @ rest)
    leverage = found.leverage + (new**2).sum(axis=1)
    slack = np.where(inclusion < 1.0, 1.0 - leverage, 1.0)
    spread = (residual / slack[:, None]) ** 2 * (1.0 - inclusion)[:, None]
    covariances = np.stack([(inverse * spread[:, t]) @ inverse.T for t in range(spread.shape[1])])
    condition = float(found.singular[0] / found.singular[-1])
    diagnostics = {
        "condition_number": condition,
        "rank": found.rank,
        "size_columns": len(kept),
        "residual_dof": n_rows - (n_units - 1) - len(kept),
        "warnings": _fit_warnings(condition, n_rows, n_units, bool((inclusion >= 1.0).all())),
    }
    return free + total / n_units, covariances, diagnostics


def one_step(first_members: NDArray[np.bool_], differences: Floats, total: Floats) -> tuple[Floats, Floats]:
    """The unbiased one-step estimate from pairs of complements whose sizes are uniform on 1..M-1.

    In the normal equations of the constrained regression the matrix is known: under the Shapley kernel
    ``mu(S) = (M-1) / (C(M,k) k (M-k))`` it is ``(M-1)/M`` times the projection on the sum-zero space (Covert and Lee
    2021). So with x the 0/1 indicator of S, ``phi = total/M + M/(M-1) sum_S mu(S) (x - mean(x)) v(S)``. All subsets of
    size k together weigh ``(M-1) / (k(M-k))``; a draw of k from M-1 sizes adds a factor M-1, and the complement of S
    has the opposite row, hence the mean over pairs of

        ``M (M-1) / (2 k (M-k)) (x - mean(x)) (v(S) - v(S^c))``.

    It needs no rank and has no bias, but a larger variance than the regression: what it averages is not centered on a
    fit. Subtract a control game first (from differences and total) and add its values afterwards.

    Args:
        first_members: bool (n, M), the first member of each pair; none is full or empty.
        differences: float64 (n, T), score of each first member minus that of its complement.
        total: float64 (T,), score of the full minus that of the empty coalition.

    Returns:
        values (M, T) and standard errors (M, T) from the spread over pairs, as for independent pairs. Sizes that are
        spread evenly, as those of a plan are, make them slightly too large.

    Raises:
        ValueError: for fewer than two pairs, or a first member that keeps all units or none.
    """
    n_pairs, n_units = first_members.shape
    sizes = first_members.sum(axis=1)
    if n_pairs < 2:
        raise ValueError(f"got {n_pairs} pairs; standard errors need at least 2.")
    if not ((sizes > 0) & (sizes < n_units)).all():
        raise ValueError("a pair consists of the full and the empty coalition; it carries no information.")
    rows = first_members - (sizes / n_units)[:, None]
    scaled = rows * (n_units * (n_units - 1) / (2.0 * sizes * (n_units - sizes)))[:, None]
    mean = scaled.T @ differences / n_pairs
    squares = (scaled**2).T @ differences**2 / n_pairs
    errors = np.sqrt(np.maximum(squares - mean**2, 0.0) / (n_pairs - 1))
    return mean + total / n_units, errors


def _fit_warnings(condition: float, n_rows: int, n_units: int, complete: bool) -> list[str]:
    found: list[str] = []
    if complete:
        return found
    if condition > 30.0:
        found.append(f"the condition number of the regression is {condition:.0f} (above 30): raise the budget.")
    if n_rows < 2 * n_units:
        found.append(
            f"{n_rows} rows for {n_units} units is near the interpolation peak; values are trustworthy from about "
            f"{2 * n_units} rows on: raise the budget."
        )
    return found
