# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Was the budget large enough? The four diagnostics of paper 000, section IV-B, from coalitions already evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.shapley import CoalitionPlan, Locality, least_rows, plan_coalitions, plan_prefix, solve
from monai_segshap.shapley.design import decompose
from monai_segshap.shapley.plan import PAIRED_METHODS

__all__ = ["ConvergenceReport", "convergence_report"]

Floats = NDArray[np.float64]
Rows = NDArray[np.bool_]

#: Pairs are drawn anew from a table of all coalitions, up to this many coalitions.
_MOST_FROM_EXACT = 4096
#: Differences below this share of the largest score are rounding of a network in single precision.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ConvergenceReport:
    """How Shapley values and their additive surrogate ``v(empty) + sum of m_j phi_j`` change over B growing budgets.

    Attributes:
        method: the estimator.
        names: of the T scores.
        budgets: int64 (B,), coalitions beside the full and the empty one; prefixes of one sequence.
        values: float64 (B, M, T), Shapley values.
        stability: float64 (B, T), coefficient stability: ``sum |phi_b - phi_(b-1)| / sum |phi_b|``, 0 is best; NaN for
            the first budget and for a score with no value but 0. It depends on the step between budgets.
        residuals: float64 (B, H, T), ``v(m) - v(empty) - sum of m_j phi_j`` of every held-out coalition m.
        local_accuracy: float64 (B, T), mean of ``|residuals|`` as a share of ``|v(full) - v(empty)|``, 0 is best; NaN
            where that is about 0.
        in_sample_mae: float64 (B, T), the mean absolute residual on the coalitions that the values rest on.
        held_out_mae: float64 (B, T), mean of ``|residuals|``, in units of the score.
        held_out_r2: float64 (B, T), ``1 - sum of residuals^2 / sum of (v - mean v)^2`` over held-out coalitions, at
            most 1; NaN where v does not vary. Far below 1 with stable values the game is not additive: no budget mends
            that.
        condition_number: float64 (B,), of the root-weighted regressors on the space of values that sum to zero;
            infinite where they leave a value open (a prior then decides); NaN for walks, which solve no regression.
        held_out: bool (H, M), the held-out coalitions; no budget contains one.
        tolerance: of the stability.
        recommended: for each score the first budget from which on the stability stays at or below the tolerance, or
            None.
        recommended_budget: the largest of these over the scores that have values, or None.
        reason: why, for people.
        notes: what is NaN, and why.
    """

    method: str
    names: tuple[str, ...]
    budgets: NDArray[np.int64]
    values: Floats
    stability: Floats
    residuals: Floats
    local_accuracy: Floats
    in_sample_mae: Floats
    held_out_mae: Floats
    held_out_r2: Floats
    condition_number: Floats
    held_out: Rows
    tolerance: float
    recommended: tuple[int | None, ...]
    recommended_budget: int | None
    reason: str
    notes: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """One row for each score and budget; ``evaluations`` counts the full and the empty coalition, too."""
        rows = []
        for t, name in enumerate(self.names):
            for b, budget in enumerate(self.budgets.tolist()):
                measured = {key: float(getattr(self, key)[b, t]) for key in _MEASURES}
                condition = float(self.condition_number[b])
                rows.append(
                    {"score": name, "budget": budget, "evaluations": budget + 2, **measured} | {_CONDITION: condition}
                )
        return pd.DataFrame(rows)


_MEASURES = ("stability", "local_accuracy", "in_sample_mae", "held_out_mae", "held_out_r2")
_CONDITION = "condition_number"


def convergence_report(
    plan: CoalitionPlan,
    scores: NDArray[np.floating],
    *,
    method: str | None = None,
    budgets: Sequence[int] | None = None,
    held_out: float | tuple[NDArray[np.bool_], NDArray[np.floating]] = 0.2,
    tolerance: float = 0.05,
    locality: Locality | None = None,
    names: Sequence[str] | None = None,
) -> ConvergenceReport:
    """Solve prefixes of an evaluated plan and measure stability, local accuracy, condition and generalization.

    Nothing is evaluated. Budgets are prefixes of one sequence of pairs (or walks, or published draws), and by default
    its last fifth is held out: of pairs, coalitions whose sizes are spread evenly over 1..M-1.

    Args:
        plan: of `plan_coalitions`, not restricted to some units. Of an "exact" plan the pairs that its seed would draw
            are looked up, up to 4,096 coalitions.
        scores: (K, T) or (K,), a row for each row of the plan.
        method: the estimator. None: the plan's own, "kernelshap" for an "exact" one. Plans of pairs serve every
            estimator of pairs.
        budgets: growing numbers of coalitions beside the full and the empty one, at least two; rounded down to whole
            pairs or walks. None: from the least number that can be trusted, each 1.4 times the one before, to all.
        held_out: share of the sequence, above 0 and below 1; or other coalitions (H, M) and their scores (H, T), of
            which those that the plan holds are left out.
        tolerance: largest relative change at which values count as stable, above 0.
        locality: for "gaussian_process" and "ridge", see `solve`. The process is solved without blocks.
        names: of the T scores.

    Raises:
        ValueError: for scores of another shape or that are not finite, a plan whose beginning is no plan, too few
            coalitions, or a bad option.
    """
    table = _scores(scores, plan.n_evaluations)
    labels = tuple(names) if names is not None else tuple(f"score {t + 1}" for t in range(table.shape[1]))
    if len(labels) != table.shape[1] or not tolerance > 0:
        raise ValueError(
            f"got {len(labels)} names for {table.shape[1]} scores and a tolerance of {tolerance}; expected a name for "
            "each score and a tolerance above 0."
        )
    plan, table = _as_sequence(plan, table, method)
    n_used, outside, truth = _hold_out(plan, table, held_out)
    prefixes = [plan_prefix(plan, budget) for budget in _budgets(plan, budgets, n_used)]
    counts = np.array([p.n_evaluations - 2 for p in prefixes], dtype=np.int64)
    if len(np.unique(counts)) < len(counts):
        raise ValueError(
            f"budgets {budgets} are {counts.tolist()} in whole steps of the plan; expected different ones."
        )
    return _measure(plan, table, prefixes, (outside, truth), locality, tolerance, labels)


def _measure(
    plan: CoalitionPlan,
    table: Floats,
    prefixes: list[CoalitionPlan],
    held_out: tuple[Rows, Floats],
    locality: Locality | None,
    tolerance: float,
    labels: tuple[str, ...],
) -> ConvergenceReport:
    outside, truth = held_out
    counts = np.array([p.n_evaluations - 2 for p in prefixes], dtype=np.int64)
    values = np.stack([solve(p, table[: p.n_evaluations], locality, quick=True).values for p in prefixes])
    full, empty, rounding = table[plan.full_row], table[plan.empty_row], _ROUNDING * np.abs(table).max(axis=0)
    residuals = truth - empty - np.einsum("hm,bmt->bht", outside.astype(np.float64), values)
    own = [table[: p.n_evaluations] - empty - p.rows @ v for p, v in zip(prefixes, values, strict=True)]
    mae = np.abs(residuals).mean(axis=1)
    # where nothing varies, a ratio would be one of rounding errors
    dead = (np.ptp(table, axis=0) <= rounding) | (np.abs(values[-1]).sum(axis=0) <= rounding)
    flat, constant = np.abs(full - empty) <= rounding, np.ptp(truth, axis=0) <= rounding
    stability = _stability(values, dead)
    recommended, overall, reason = _recommend(counts, stability, dead, tolerance, labels)
    return ConvergenceReport(
        method=plan.method,
        names=labels,
        budgets=counts,
        values=values,
        stability=stability,
        residuals=residuals,
        local_accuracy=mae / np.where(flat, np.nan, np.abs(full - empty)),
        in_sample_mae=np.stack([np.abs(rest[2:]).mean(axis=0) for rest in own]),
        held_out_mae=mae,
        held_out_r2=1.0 - (residuals**2).sum(axis=1) / np.where(constant, np.nan, len(truth) * truth.var(axis=0)),
        condition_number=np.array([_condition(p) for p in prefixes]),
        held_out=outside,
        tolerance=tolerance,
        recommended=recommended,
        recommended_budget=overall,
        reason=reason,
        notes=_notes(plan, labels, dead, flat, constant),
    )


def _scores(scores: NDArray[np.floating], n_rows: int) -> Floats:
    found = np.asarray(scores, dtype=np.float64)
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or len(found) != n_rows or not found.shape[1]:
        raise ValueError(
            f"scores have shape {np.shape(scores)}; expected ({n_rows}, T) or ({n_rows},), a row a coalition."
        )
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise ValueError(f"coalition {row} has a score that is not finite: {found[row].tolist()}; evaluate it again.")
    return found


def _as_sequence(plan: CoalitionPlan, table: Floats, method: str | None) -> tuple[CoalitionPlan, Floats]:
    """The plan as a sequence for the estimator, and its scores in that order."""
    wanted = method or ("kernelshap" if plan.method == "exact" else plan.method)
    if plan.method == "exact" and wanted in PAIRED_METHODS:
        if plan.n_units < 4:
            raise ValueError(
                f"{plan.n_units} units have {2**plan.n_units} coalitions, too few to grow a budget; expected 4 units "
                "or more. All are known: the values are exact."
            )
        drawn = plan_coalitions(plan.n_units, min(2**plan.n_units - 2, _MOST_FROM_EXACT), wanted, plan.seed)
        return drawn, table[drawn.rows @ (1 << np.arange(plan.n_units))]
    if wanted == plan.method != "exact":
        return plan, table
    if not (plan.is_paired and wanted in PAIRED_METHODS):
        raise ValueError(
            f"a plan of method {plan.method!r} does not serve {wanted!r}; expected its own method, or for pairs and "
            f"exact plans one of {', '.join(PAIRED_METHODS)}."
        )
    return replace(plan, method=wanted), table


def _hold_out(
    plan: CoalitionPlan, table: Floats, held_out: float | tuple[NDArray[np.bool_], NDArray[np.floating]]
) -> tuple[int, Rows, Floats]:
    """Coalitions left for the budgets, the held-out ones (H, M) that are not among them, and their scores (H, T)."""
    n_all = plan.n_evaluations - 2
    if isinstance(held_out, tuple):
        rows, scores = np.asarray(held_out[0]), _scores(held_out[1], len(held_out[0]))
        if rows.dtype != bool or rows.shape != (len(scores), plan.n_units) or scores.shape[1] != table.shape[1]:
            raise ValueError(
                f"held_out has coalitions {rows.shape} of {rows.dtype} and scores {scores.shape}; expected bool (H, "
                f"{plan.n_units}) and (H, {table.shape[1]})."
            )
        used = n_all
    else:
        if not 0.0 < held_out < 1.0:
            raise ValueError(f"held_out is {held_out}; expected a share above 0 and below 1, or coalitions and scores.")
        step = plan.step
        used = n_all - step * max(1, round(held_out * (n_all // step)))
        rows, scores = plan.rows[2 + used :], table[2 + used :]
    seen = {row.tobytes() for row in np.packbits(plan.rows[: 2 + used], axis=1)}
    fresh = [row.tobytes() not in seen for row in np.packbits(rows, axis=1)]
    if not any(fresh):
        raise ValueError(
            f"all {len(rows)} held-out coalitions are among the {used + 2} that the values rest on; expected others: "
            "hold out more, evaluate more, or give coalitions of your own."
        )
    return used, rows[fresh], scores[fresh]


def _budgets(plan: CoalitionPlan, budgets: Sequence[int] | None, n_used: int) -> list[int]:
    step = plan.step
    # below 16 pairs there is no plan for an estimator with a prior, below two walks none at all
    least = max(least_rows(plan) - 2, 2 * step, 32 if plan.method in ("gaussian_process", "ridge") else 0)
    if budgets is None:
        found, size = [n_used], n_used / math.sqrt(2.0)
        while step * int(size // step) >= least:
            found.append(step * int(size // step))
            size /= math.sqrt(2.0)
        found = sorted(set(found))
    else:
        found = [int(budget) for budget in budgets]
    if len(found) < 2 or found[0] < 1 or found[-1] > n_used or any(a >= b for a, b in pairwise(found)):
        raise ValueError(
            f"budgets are {found}; expected two or more growing numbers up to {n_used}, the coalitions that are not "
            f"held out (values can be trusted from about {least} on). Evaluate more coalitions, hold out fewer, or "
            "name smaller budgets."
        )
    return found


def _stability(values: Floats, dead: NDArray[np.bool_]) -> Floats:
    found = np.full((len(values), values.shape[2]), np.nan)
    change, size = np.abs(np.diff(values, axis=0)).sum(axis=1), np.abs(values[1:]).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found[1:] = np.where(dead, np.nan, change / size)
    return found


def _condition(plan: CoalitionPlan) -> float:
    if plan.method == "walks":
        return math.nan
    found = decompose(plan.regressors, plan.weights)
    return float(found.singular[0] / found.singular[-1]) if found.rank >= plan.n_units - 1 else math.inf


def _recommend(
    budgets: NDArray[np.int64], stability: Floats, dead: NDArray[np.bool_], tolerance: float, names: tuple[str, ...]
) -> tuple[tuple[int | None, ...], int | None, str]:
    """For each score the first budget from which on it is stable, the largest of them, and a sentence."""
    good = stability <= tolerance
    first: list[int | None] = []
    for t in range(len(names)):
        late = np.flatnonzero(~good[:, t])  # the first budget has no stability and is always among these
        first.append(None if late[-1] == len(budgets) - 1 else int(budgets[late[-1] + 1]))
    if dead.all():
        return tuple(first), None, "no unit has a value in any score: there is nothing to converge"
    open_ones = [t for t in np.flatnonzero(~dead) if first[t] is None]
    if open_ones:
        changes = ", ".join(f"{names[t]} {stability[-1, t]:.2g}" for t in open_ones)
        return (
            tuple(first),
            None,
            (
                f"from {budgets[-2]} to {budgets[-1]} coalitions the values still change by more than {tolerance:g} of "
                f"their absolute sum ({changes}): evaluate more"
            ),
        )
    overall = max(budget for budget in first if budget is not None)
    steps = int((budgets >= overall).sum())
    text = f"from {overall} coalitions on no step changes the values by more than {tolerance:g} of their absolute sum"
    return tuple(first), overall, f"{text} ({steps} of {len(budgets) - 1} steps)"


def _notes(
    plan: CoalitionPlan,
    names: tuple[str, ...],
    dead: NDArray[np.bool_],
    flat: NDArray[np.bool_],
    constant: NDArray[np.bool_],
) -> tuple[str, ...]:
    found = ["condition_number is NaN: walks solve no regression"] if plan.method == "walks" else []
    for t, name in enumerate(names):
        if dead[t]:
            found.append(f"{name}: no unit has a value; stability is NaN")
        if constant[t]:
            found.append(f"{name}: the held-out coalitions have the same score; R2 is NaN")
        if flat[t]:
            found.append(f"{name}: the full and the empty coalition have about the same score; local accuracy is NaN")
    return tuple(found)
