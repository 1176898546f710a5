# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Antithetic walks: units are added one at a time in a random order, then removed in the same order.

A walk needs no model of the game and no regression: each step is a marginal contribution (Castro, Gomez and Tejada
2009), and the states of the second half are the complements of those of the first, so that what is even in the
coalition cancels (Mitchell et al. 2022, antithetic permutations). Consecutive rows differ by one unit, hence only the
windows that hold that unit need a network pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_segshap.shapley.plan import CoalitionPlan, draw_key

__all__ = ["plan_walks", "solve_walks", "walk_order"]

Floats = NDArray[np.float64]


def walk_order(n_units: int, seed: int, pair: int) -> NDArray[np.int64]:
    """Order of the units in one pair of walks, int64 (M,): a function of (seed, M, pair) alone.

    The last word of the Philox counter is 1; draws of pairs and of published coalitions have 0 there.
    """
    rng = np.random.Generator(np.random.Philox(key=draw_key(seed, n_units), counter=[0, 0, pair, 1]))
    return np.argsort(rng.random(n_units), kind="stable").astype(np.int64)


def plan_walks(n_units: int, budget: int, seed: int = 0) -> CoalitionPlan:
    """Pairs of walks for M units.

    Args:
        n_units: number of units M >= 2.
        budget: coalitions that may be evaluated; the empty and the full one come on top. A pair of walks needs
            ``2 (M - 1)``.
        seed: integer >= 0. Pair j depends on (seed, M, j) alone: a larger budget extends a smaller one.

    Returns:
        a plan of method "walks" with one weight for each pair of walks. Row 0 keeps all units, row 1 none. Then for
        each pair, with its order ``p_1 .. p_M``, M-1 rows that keep ``p_1 .. p_i``, i = 1..M-1, and M-1 rows that keep
        ``p_{i+1} .. p_M``, i = 1..M-1: the reverse order, walked downwards from nearly full. States may repeat between
        walks.

    Raises:
        ValueError: for one unit, or a budget below two pairs of walks (standard errors need two).
    """
    if n_units == 1:
        raise ValueError("one unit needs no sampling: use method 'exact' (2 coalitions).")
    each = 2 * (n_units - 1)
    n_pairs = budget // each
    if n_pairs < 2:
        raise ValueError(
            f"a budget of {budget} gives {n_pairs} pairs of walks through {n_units} units; standard errors need 2. "
            f"Raise the budget to {2 * each} or more, use larger units, or choose method 'kernelshap'."
        )
    rows = np.empty((2 + n_pairs * each, n_units), dtype=bool)
    rows[0], rows[1] = True, False
    steps = np.arange(1, n_units)[:, None]
    for pair in range(n_pairs):
        position = np.argsort(walk_order(n_units, seed, pair))
        start = 2 + pair * each
        rows[start : start + n_units - 1] = position < steps
        rows[start + n_units - 1 : start + each] = position >= steps
    reason = "asked for by name: antithetic walks, no model of the game"
    return CoalitionPlan(rows, "walks", seed, np.ones(n_pairs), np.zeros(n_pairs), reason)


def solve_walks(plan: CoalitionPlan, scores: Floats) -> tuple[Floats, Floats, dict[str, Any]]:
    """Mean marginal contributions over pairs of walks.

    Works for the plan of `plan_walks` and for its restriction to some units (`restrict_plan`), whose states repeat.

    Args:
        plan: of method "walks".
        scores: float64 (K, T), one row for each row of the plan.

    Returns:
        values (M, T), whose sum is the score of the full minus that of the empty coalition up to rounding; their
        covariances (T, M, M) from the spread over pairs of walks, which are independent; and diagnostics.

    Raises:
        ValueError: for a plan of another method, scores of another shape, or fewer than two pairs of walks.
    """
    n_pairs = len(plan.weights)
    if plan.method != "walks":
        raise ValueError(f"the plan has method {plan.method!r}; expected 'walks'.")
    if scores.ndim != 2 or len(scores) != plan.n_evaluations:
        raise ValueError(f"scores have shape {scores.shape}; expected ({plan.n_evaluations}, T), a row a coalition.")
    if n_pairs < 2:
        raise ValueError(f"the plan holds {n_pairs} pairs of walks; standard errors need at least 2.")
    n_steps, n_units, n_scores = (plan.n_evaluations - 2) // (2 * n_pairs), plan.n_units, scores.shape[1]
    total = scores[plan.full_row] - scores[plan.empty_row]
    halves = scores[2:].reshape(n_pairs, 2, n_steps, n_scores)
    # score of a state minus that of its complement, from the empty coalition to the full one
    rising = np.empty((n_pairs, n_steps + 2, n_scores))
    rising[:, 0], rising[:, -1] = -total, total
    rising[:, 1:-1] = halves[:, 0] - halves[:, 1]
    steps = np.diff(rising, axis=1) / 2.0
    kept = plan.rows[2:].reshape(n_pairs, 2, n_steps, n_units)[:, 0]
    entered = n_steps - kept.sum(axis=1)
    contributions = np.take_along_axis(steps, entered[:, :, None], axis=1)
    values = contributions.mean(axis=0)
    centered = contributions - values
    covariances = np.stack([centered[:, :, t].T @ centered[:, :, t] for t in range(n_scores)])
    covariances /= n_pairs * (n_pairs - 1)
    found: list[str] = []
    if n_pairs < 10:
        found.append(f"standard errors rest on {n_pairs} pairs of walks and are rough themselves: raise the budget.")
    return values, covariances, {"walk_pairs": n_pairs, "residual_dof": n_pairs - 1, "warnings": found}
