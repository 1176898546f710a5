# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""From evaluated coalitions to Shapley values with standard errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_segshap.shapley.audit import AUDIT_LIMIT, LEAST_PAIRS, audit_statistic, corrected_estimate
from monai_segshap.shapley.coalitions import CoalitionPlan, plan_coalitions
from monai_segshap.shapley.exact import exact_shapley
from monai_segshap.shapley.locality import BlockTable, Locality
from monai_segshap.shapley.process import fit_surrogate
from monai_segshap.shapley.process_estimate import ProcessEstimate, process_estimate
from monai_segshap.shapley.regression import constrained_regression, size_columns
from monai_segshap.shapley.ridge import ridge_values
from monai_segshap.shapley.walks import solve_walks

__all__ = ["Game", "ShapleyEstimate", "estimate_shapley", "solve"]

Floats = NDArray[np.float64]

#: A game: bool (K, M), True keeps a unit -> float64 (K, T).
Game = Callable[[NDArray[np.bool_]], NDArray[np.float64]]

#: Half-width of a 95 % interval in standard errors.
_NORMAL = 1.96


@dataclass(frozen=True)
class ShapleyEstimate:
    """Shapley values and how well they are known.

    Attributes:
        values: float64 (M, T).
        standard_errors: float64 (M, T); 0 where the values are exact.
        n_evaluations: coalitions evaluated, the full and the empty one included.
        method: the estimator, one of `monai_segshap.shapley.METHODS` but "auto".
        full: float64 (T,), score with every unit kept.
        empty: float64 (T,), score with every unit removed.
        covariances: float64 (T, M, M), of the errors of the values; None: they are exact.
        diagnostics: of the estimator, and ``warnings``, a list of sentences.
    """

    values: Floats
    standard_errors: Floats
    n_evaluations: int
    method: str
    full: Floats
    empty: Floats
    covariances: Floats | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @property
    def efficiency_gap(self) -> Floats:
        """float64 (T,): ``sum of values - (full - empty)``; rounding error only, for every method offered."""
        return self.values.sum(axis=0) - (self.full - self.empty)

    def group_errors(self, groups: NDArray[np.generic]) -> Floats:
        """Standard errors (G, T) of sums of values.

        Args:
            groups: (G, M), weight of each unit in each group; 1 and 0 for the cells of an organ, say.
        """
        if self.covariances is None:
            return np.zeros((len(groups), self.values.shape[1]))
        weights = np.asarray(groups, dtype=np.float64)
        variances = np.einsum("gi,tij,gj->gt", weights, self.covariances, weights, optimize=True)
        return np.asarray(np.sqrt(np.maximum(variances, 0.0)))

    def converged(self, tolerance: float) -> NDArray[np.bool_]:
        """Bool (T,): the largest half-width of a 95 % interval is at most this share of the largest value.

        Args:
            tolerance: above 0.
        """
        widest = _NORMAL * self.standard_errors.max(axis=0)
        return np.asarray(widest <= tolerance * np.abs(self.values).max(axis=0))


def estimate_shapley(
    game: Game, n_units: int, budget: int, method: str = "auto", seed: int = 0, locality: Locality | None = None
) -> ShapleyEstimate:
    """Shapley values of a game from at most ``budget`` coalitions (plus the empty and the full one).

    Args:
        game: bool (K, M), True keeps a unit -> (K, T) scores.
        n_units: number of units M.
        budget: coalitions that may be evaluated.
        method: see `plan_coalitions`.
        seed: integer >= 0.
        locality: where the units lie, for "gaussian_process" and "ridge"; None: all units alike.

    Returns:
        values, standard errors and diagnostics.

    Raises:
        ValueError: for a budget too small for the method, or a game that returns the wrong shape or no finite number.
    """
    plan = plan_coalitions(n_units, budget, method, seed)
    return solve(plan, game(plan.rows), locality)


def solve(
    plan: CoalitionPlan,
    scores: NDArray[np.floating],
    locality: Locality | None = None,
    blocks: BlockTable | None = None,
    quick: bool = False,
    names: Sequence[str] | None = None,
) -> ShapleyEstimate:
    """Shapley values from the scores of a plan's coalitions, in float64.

    Args:
        plan: the coalitions, and the estimator.
        scores: shape (K, T), one row for each row of the plan, finite.
        locality: where the units lie, for "gaussian_process" and "ridge".
        blocks: what the blocks of the region contribute, for "gaussian_process".
        quick: for a look on the way: no blocks, no audit.
        names: of the scores, for warnings.

    Returns:
        values, standard errors and diagnostics. Values add up to full minus empty, whatever the method.

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
    where = locality or Locality()
    audited = not quick and len(table) >= 2 + 2 * LEAST_PAIRS
    if plan.method == "exact":
        values = exact_shapley(table)
        diagnostics: dict[str, Any] = {"condition_number": 1.0, "rank": plan.n_units, "residual_dof": 0, "warnings": []}
        return _estimate(plan, table, values, None, diagnostics)
    if plan.method == "walks":
        return _estimate(plan, table, *solve_walks(plan, table))
    if plan.method == "gaussian_process" and not plan.is_complete:
        return _with_warnings(_by_process(plan, table, where, None if quick else blocks, audited), names)
    if plan.method == "ridge" and not plan.is_complete:
        return _with_warnings(_by_ridge(plan, table, where, audited), names)
    # of a pair only the difference counts: what its members share is the even part, which no Shapley value contains
    target = table[2::2] - table[3::2] if plan.is_paired else table[2:] - table[1]
    columns = size_columns(plan.rows[2::2].sum(axis=1), plan.n_units) if plan.is_paired else None
    found = constrained_regression(plan.regressors, target, table[0] - table[1], plan.weights, plan.inclusion, columns)
    return _estimate(plan, table, *found)


def _estimate(
    plan: CoalitionPlan, table: Floats, values: Floats, covariances: Floats | None, diagnostics: dict[str, Any]
) -> ShapleyEstimate:
    if covariances is None:
        errors = np.zeros_like(values)
    else:
        errors = np.sqrt(np.maximum(np.diagonal(covariances, axis1=1, axis2=2), 0.0)).T
    full, empty = table[plan.full_row], table[plan.empty_row]
    return ShapleyEstimate(values, errors, plan.n_evaluations, plan.method, full, empty, covariances, diagnostics)


def _by_process(
    plan: CoalitionPlan, table: Floats, locality: Locality, blocks: BlockTable | None, audited: bool
) -> ShapleyEstimate:
    fitted = process_estimate(plan.rows, table, locality, blocks)
    diagnostics: dict[str, Any] = {**fitted.diagnostics, "warnings": []}
    if audited:
        values, errors = corrected_estimate(plan.rows, table, lambda kept: _process_control(plan, table, fitted, kept))
        _add_audit(diagnostics, fitted.values, values, errors)
    return _estimate(plan, table, fitted.values, fitted.covariances, diagnostics)


def _process_control(
    plan: CoalitionPlan, table: Floats, fitted: ProcessEstimate, kept: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """The scalar processes on some rows, with the hyperparameters of all."""
    values, predicted = np.zeros((plan.n_units, table.shape[1])), np.tile(table[1], (len(table), 1))
    for t, surrogate in enumerate(fitted.surrogates):
        if surrogate is not None:
            part = fit_surrogate(plan.rows[kept], table[kept][:, [t]], surrogate.prior, surrogate.chosen)
            values[:, t], predicted[:, t] = part.values()[:, 0], part.predict(plan.rows)[:, 0]
    return values, predicted


def _by_ridge(plan: CoalitionPlan, table: Floats, locality: Locality, audited: bool) -> ShapleyEstimate:
    def control(kept: NDArray[np.int64]) -> tuple[Floats, Floats]:
        weights = plan.weights[(kept[2::2] - 2) // 2]
        values = ridge_values(plan.rows[kept], table[kept], locality.distances_mm, locality.unit_size_mm, weights)[0]
        return values, table[1] + plan.rows @ values

    values, covariances, diagnostics = ridge_values(
        plan.rows, table, locality.distances_mm, locality.unit_size_mm, plan.weights
    )
    if audited:
        corrected, errors = corrected_estimate(plan.rows, table, control)
        _add_audit(diagnostics, values, corrected, errors)
    return _estimate(plan, table, values, covariances, diagnostics)


def _add_audit(diagnostics: dict[str, Any], values: Floats, corrected: Floats, errors: Floats) -> None:
    diagnostics["audit"] = [round(float(x), 3) for x in audit_statistic(values, corrected, errors)]


def _with_warnings(estimate: ShapleyEstimate, names: Sequence[str] | None) -> ShapleyEstimate:
    """Add a sentence for each score whose audit failed."""
    for t, statistic in enumerate(estimate.diagnostics.get("audit", [])):
        if statistic > AUDIT_LIMIT:
            name = names[t] if names is not None else f"number {t + 1}"
            estimate.diagnostics["warnings"].append(
                f"audit: the values of score {name} disagree with the unbiased cross-fitted estimate from the same "
                f"coalitions (mean squared difference {statistic:.2f} of its variance, limit {AUDIT_LIMIT}): raise the "
                "budget, or choose method 'kernelshap' or 'walks'."
            )
    return estimate
