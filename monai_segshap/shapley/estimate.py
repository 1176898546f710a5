# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""From evaluated coalitions to Shapley values with standard errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_segshap.shapley.coalitions import CoalitionPlan, plan_coalitions
from monai_segshap.shapley.design import decompose
from monai_segshap.shapley.exact import exact_shapley

__all__ = ["Game", "ShapleyEstimate", "estimate_shapley", "solve"]

#: A game: bool (K, M), True keeps a unit -> float64 (K, T).
Game = Callable[[NDArray[np.bool_]], NDArray[np.float64]]


@dataclass(frozen=True)
class ShapleyEstimate:
    """Shapley values and how well they are known.

    Attributes:
        values: float64 (M, T).
        standard_errors: float64 (M, T); 0 where the values are exact.
        n_evaluations: coalitions evaluated, the full and the empty one included.
        method: "exact", "kernelshap" or "published".
        full: float64 (T,), score with every unit kept.
        empty: float64 (T,), score with every unit removed.
        diagnostics: ``condition_number`` of the weighted design (1 for exact), ``rank``, ``residual_dof`` and
            ``warnings``, a list of sentences.
    """

    values: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    n_evaluations: int
    method: str
    full: NDArray[np.float64]
    empty: NDArray[np.float64]
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @property
    def efficiency_gap(self) -> NDArray[np.float64]:
        """float64 (T,): ``sum of values - (full - empty)``; rounding error only, for every method offered."""
        return self.values.sum(axis=0) - (self.full - self.empty)


def estimate_shapley(game: Game, n_units: int, budget: int, method: str = "auto", seed: int = 0) -> ShapleyEstimate:
    """Shapley values of a game from at most ``budget`` coalitions (plus the empty and the full one).

    Args:
        game: bool (K, M), True keeps a unit -> (K, T) scores.
        n_units: number of units M.
        budget: coalitions that may be evaluated.
        method: see `plan_coalitions`.
        seed: integer >= 0.

    Returns:
        values, standard errors and diagnostics.

    Raises:
        ValueError: for a budget too small for the method, or a game that returns the wrong shape or no finite number.
    """
    plan = plan_coalitions(n_units, budget, method, seed)
    return solve(plan, game(plan.rows))


def solve(plan: CoalitionPlan, scores: NDArray[np.floating]) -> ShapleyEstimate:
    """Shapley values from the scores of a plan's coalitions, in float64.

    Args:
        plan: the coalitions.
        scores: shape (K, T), one row for each row of the plan, finite.

    Returns:
        values, standard errors and diagnostics. Sampled values come from a least-squares fit in which efficiency
        (values sum to full minus empty) is a constraint, not a heavy weight.

    Raises:
        ValueError: for a wrong shape or a number that is not finite.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != plan.n_evaluations:
        raise ValueError(
            f"scores have shape {np.shape(scores)}; expected ({plan.n_evaluations}, T), a row a coalition."
        )
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise ValueError(f"coalition {row} of the plan has a score that is not finite: {table[row].tolist()}.")
    full, empty = table[plan.full_row], table[plan.empty_row]
    if plan.method == "exact":
        values = exact_shapley(table)
        diagnostics: dict[str, Any] = {"condition_number": 1.0, "rank": plan.n_units, "residual_dof": 0, "warnings": []}
        return ShapleyEstimate(values, np.zeros_like(values), plan.n_evaluations, "exact", full, empty, diagnostics)
    # of a pair only the difference counts: what its members share is the even part, which no Shapley value contains
    target = table[2::2] - table[3::2] if plan.method == "kernelshap" else table[2:] - empty
    values, errors, diagnostics = _constrained_fit(plan.regressors, target, full - empty, plan.weights, plan.inclusion)
    return ShapleyEstimate(values, errors, plan.n_evaluations, plan.method, full, empty, diagnostics)


def _constrained_fit(
    regressors: NDArray[np.float64],
    target: NDArray[np.float64],
    total: NDArray[np.float64],
    weights: NDArray[np.float64],
    inclusion: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """Weighted least squares with the sum of the values fixed, by SVD; HC3 sandwich standard errors.

    The values are ``total / M`` plus a part that sums to zero; the latter is fitted to what is left, with regressors
    projected on the sum-zero space. ``1 - inclusion`` is the finite-population factor: a plan that holds every
    coalition has no sampling error.
    """
    n_rows, n_units = regressors.shape
    root = np.sqrt(weights)[:, None]
    rest = root * (target - regressors.sum(axis=1, keepdims=True) * (total / n_units))
    found = decompose(regressors, weights)
    if found.rank < n_units - 1:
        raise ValueError(
            f"the {n_rows} coalitions drawn determine only {found.rank} of {n_units - 1} free values: raise the budget."
        )
    inverse = (found.right.T / found.singular) @ found.left.T
    free = inverse @ rest
    free -= free.mean(axis=0)
    residual = rest - root * (regressors - regressors.mean(axis=1, keepdims=True)) @ free
    slack = np.where(inclusion < 1.0, 1.0 - found.leverage, 1.0)
    spread = (residual / slack[:, None]) ** 2 * (1.0 - inclusion)[:, None]
    errors = np.sqrt((inverse**2) @ spread)
    condition = float(found.singular[0] / found.singular[-1])
    diagnostics = {
        "condition_number": condition,
        "rank": found.rank,
        "residual_dof": n_rows - (n_units - 1),
        "warnings": _fit_warnings(condition, n_rows, n_units, bool((inclusion >= 1.0).all())),
    }
    return free + total / n_units, errors, diagnostics


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
