# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Which coalitions to evaluate: plans that are fixed before the first network pass."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from monai_segshap.shapley.design import require_determined
from monai_segshap.shapley.exact import MAX_EXACT_UNITS, all_coalitions
from monai_segshap.shapley.plan import CoalitionPlan, draw_key
from monai_segshap.shapley.walks import plan_walks

__all__ = [
    "METHODS",
    "CoalitionPlan",
    "default_budget",
    "least_rows",
    "plan_coalitions",
    "plan_prefix",
    "restrict_plan",
    "stop_rows",
]

#: Estimators that can be asked for by name.
METHODS = ("auto", "exact", "kernelshap", "gaussian_process", "ridge", "walks", "published")
#: Up to this many units a regression that assumes nothing is at least as good as one that does.
MAX_REGRESSION_UNITS = 20
#: Beyond these the process costs more than seconds.
MAX_PROCESS_ROWS = 4002
MAX_PROCESS_UNITS = 500

_BLOCK = 4096
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def default_budget(n_units: int) -> int:
    """Coalitions to evaluate when the user names no number.

    1024 up to 10 units (all of them), then eight for each unit and at least 512: paired regression is then beyond
    its interpolation peak at two evaluations a unit.
    """
    return 1024 if n_units <= 10 else max(512, 8 * n_units)


def plan_coalitions(n_units: int, budget: int, method: str = "auto", seed: int = 0) -> CoalitionPlan:
    """Choose the coalitions for M units.

    Args:
        n_units: number of units M >= 1.
        budget: coalitions that may be evaluated; the empty and the full one come on top.
        method: "exact" (every coalition); distinct pairs of complements of uniform sizes for "kernelshap" (regression
            without a prior), "gaussian_process" (see `process_estimate`) or "ridge" (see `ridge_values`); "walks"
            (antithetic orderings of the units, see `plan_walks`); "published" (sizes by the Shapley kernel, with
            replacement, unpaired); or "auto": exact where ``2**M <= budget + 2``, kernelshap up to 20 units, the
            process up to 500 units and 4,000 coalitions, ridge beyond.
        seed: integer >= 0. Pair j, and walk pair j, depend on (seed, M, j) alone: a larger budget extends a smaller
            one, and estimators that use pairs share them.

    Returns:
        the plan.

    Raises:
        ValueError: for an unknown method, no units, or a budget too small for the method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}.")
    if n_units < 1:
        raise ValueError(f"got {n_units} units; there is nothing to explain without at least one.")
    if budget < 0:
        raise ValueError(f"budget is {budget}; expected a number of coalitions.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected an integer >= 0.")
    enumerable = n_units <= MAX_EXACT_UNITS and 2**n_units <= budget + 2
    if method == "exact" or (method == "auto" and enumerable):
        return _exact_plan(n_units, budget, seed, enumerable)
    if method == "published":
        return _published_plan(n_units, budget, seed)
    if method == "walks":
        return plan_walks(n_units, budget, seed)
    if method == "auto":
        method, why = _paired_method(n_units, budget)
    else:
        why = "asked for by name"
    return _paired_plan(n_units, budget, method, seed, why)


def stop_rows(plan: CoalitionPlan) -> list[int]:
    """Numbers of rows after which it is worth looking at the values: 2M coalitions, then ever 1.4 times as many.

    The same for all estimators that use pairs. Empty for plans whose beginning is no plan of the same kind (``exact``,
    ``published``).
    """
    if not (plan.is_paired or plan.method == "walks"):
        return []
    found, coalitions = [], float(max(2 * plan.n_units, 64, 10 * plan.step))
    while (rows := 2 + plan.step * int(coalitions // plan.step)) < plan.n_evaluations:
        found.append(rows)
        coalitions *= math.sqrt(2.0)
    return found


def least_rows(plan: CoalitionPlan) -> int:
    """Rows from which the values of a plan's beginning can be trusted: 4M coalitions without a prior, else 2M."""
    return 2 + (4 if plan.method == "kernelshap" else 2) * plan.n_units


def plan_prefix(plan: CoalitionPlan, budget: int) -> CoalitionPlan:
    """The plan that a smaller budget would have had; its coalitions are the first of the plan's.

    Args:
        plan: as it was drawn.
        budget: coalitions beside the full and the empty one.

    Raises:
        ValueError: for a plan that was restricted to some units or put in another order, and a budget too small.
    """
    if plan.method == "published":  # independent draws: any number of them is a sample
        return replace(
            plan, rows=plan.rows[: 2 + budget], weights=plan.weights[:budget], inclusion=plan.inclusion[:budget]
        )
    found = plan_coalitions(plan.n_units, budget, plan.method, plan.seed)
    if not np.array_equal(found.rows, plan.rows[: found.n_evaluations]):
        raise ValueError(
            f"the coalitions are not those that plan_coalitions({plan.n_units}, budget, {plan.method!r}, {plan.seed}) "
            "draws; expected a plan as it was drawn, not restricted to some units or put in another order."
        )
    return found


def restrict_plan(plan: CoalitionPlan, units: NDArray[np.bool_]) -> tuple[CoalitionPlan, NDArray[np.int64]]:
    """The plan as a game of fewer units sees it, all others being dummies of that game.

    Complements stay complements and each pair keeps its weight, so that one sweep serves several regions with different
    visible units. Walks keep all their rows: where an unseen unit is added the state repeats, and its step is zero.

    Args:
        plan: coalitions of M units.
        units: bool (M,), the units that can matter; at least one.

    Returns:
        the plan for these units, and int64 row numbers of ``plan`` that its rows came from.

    Raises:
        ValueError: for no units, or if too few coalitions are left for a regression.
    """
    m = int(units.sum())
    if units.shape != (plan.n_units,) or m == 0:
        raise ValueError(
            f"units have shape {units.shape} with {m} chosen; expected ({plan.n_units},) and at least one."
        )
    if m == plan.n_units:
        return plan, np.arange(plan.n_evaluations)
    if m == 1:
        kept = np.array([plan.empty_row, plan.full_row])
        return CoalitionPlan(all_coalitions(1), "exact", plan.seed, reason="one unit"), kept
    if plan.method == "exact":
        # every coalition of the chosen units, the others kept; ascending bit masks stay ascending
        kept = np.flatnonzero(plan.rows[:, ~units].all(axis=1))
        return CoalitionPlan(
            np.ascontiguousarray(plan.rows[kept][:, units]), "exact", plan.seed, reason=plan.reason
        ), kept
    if plan.method == "walks":
        rows = np.ascontiguousarray(plan.rows[:, units])
        return CoalitionPlan(rows, "walks", plan.seed, plan.weights, plan.inclusion, plan.reason), np.arange(len(rows))
    size = plan.rows[2:, units].sum(axis=1)
    kept = np.concatenate([[0, 1], 2 + np.flatnonzero((size > 0) & (size < m))])
    rows = np.ascontiguousarray(plan.rows[kept][:, units])
    source = (kept[2::2] - 2) // 2 if plan.is_paired else kept[2:] - 2
    weights, inclusion = plan.weights[source], plan.inclusion[source]
    restricted = CoalitionPlan(rows, plan.method, plan.seed, weights / weights.mean(), inclusion, plan.reason)
    return _determined(restricted, plan.n_evaluations - 2), kept


def _determined(plan: CoalitionPlan, budget: int) -> CoalitionPlan:
    if plan.method in ("gaussian_process", "ridge"):
        return plan  # their prior determines what the coalitions do not
    require_determined(plan.regressors, plan.weights, plan.inclusion, budget)
    return plan


def _exact_plan(n_units: int, budget: int, seed: int, enumerable: bool) -> CoalitionPlan:
    if not enumerable:
        raise ValueError(
            f"method 'exact' needs 2**{n_units} = {2**n_units} coalitions; the budget is {budget}. "
            f"Raise the budget, use larger units, or choose method 'kernelshap'."
        )
    reason = f"all 2**{n_units} = {2**n_units} coalitions fit the budget of {budget}"
    return CoalitionPlan(all_coalitions(n_units), "exact", seed, reason=reason)


def _paired_method(n_units: int, budget: int) -> tuple[str, str]:
    """The estimator for pairs, and why."""
    if n_units <= MAX_REGRESSION_UNITS:
        return "kernelshap", f"up to {MAX_REGRESSION_UNITS} units regression on pairs of complements needs no prior"
    if n_units <= MAX_PROCESS_UNITS and budget + 2 <= MAX_PROCESS_ROWS:
        return "gaussian_process", f"above {MAX_REGRESSION_UNITS} units the process over coalitions has the least error"
    return "ridge", (
        f"{n_units} units and {budget} coalitions are more than the process can afford ({MAX_PROCESS_UNITS} and "
        f"{MAX_PROCESS_ROWS - 2})"
    )


def _paired_plan(n_units: int, budget: int, method: str, seed: int, why: str) -> CoalitionPlan:
    all_pairs = 2 ** (n_units - 1) - 1
    least = min(math.ceil(1.25 * n_units) if method == "kernelshap" else max(16, n_units // 4), all_pairs)
    n_pairs = min(budget // 2, all_pairs)
    if n_units == 1:
        raise ValueError("one unit needs no sampling: use method 'exact' (2 coalitions).")
    if n_pairs < least:
        raise ValueError(
            f"a budget of {budget} gives {n_pairs} pairs of coalitions for {n_units} units; method {method!r} needs "
            f"at least {least}. Raise the budget to {2 * least} or more ({max(8 * n_units, 2 * least)} is a good "
            "start), or use larger units."
        )
    pairs = _distinct_pairs(n_units, n_pairs, seed)
    rows = np.empty((2 + 2 * n_pairs, n_units), dtype=bool)
    rows[0], rows[1] = True, False
    rows[2::2], rows[3::2] = pairs, ~pairs
    weights, inclusion = _pair_weights(pairs.sum(axis=1), n_units)
    reason = f"the 2**{n_units} coalitions exceed the budget of {budget}, so pairs of complements are drawn; {why}"
    return _determined(CoalitionPlan(rows, method, seed, weights / weights.mean(), inclusion, reason), budget)


def _published_plan(n_units: int, budget: int, seed: int) -> CoalitionPlan:
    if n_units == 1:
        raise ValueError("one unit needs no sampling: use method 'exact' (2 coalitions).")
    if budget < n_units:
        raise ValueError(
            f"a budget of {budget} is below the number of units, {n_units}: the regression has no solution."
        )
    rng = np.random.Generator(np.random.Philox(key=draw_key(seed, n_units)))
    sizes = np.arange(1, n_units)
    law = 1.0 / (sizes * (n_units - sizes))
    drawn = rng.choice(sizes, size=budget, p=law / law.sum())
    rank = rng.random((budget, n_units)).argsort(axis=1).argsort(axis=1)
    rows = np.concatenate([np.ones((1, n_units), bool), np.zeros((1, n_units), bool), rank < drawn[:, None]])
    reason = "asked for by name: kernel-law sizes, with replacement, unpaired"
    return _determined(CoalitionPlan(rows, "published", seed, np.ones(budget), np.zeros(budget), reason), budget)


def _candidates(n_units: int, seed: int, block: int) -> NDArray[np.bool_]:
    """Candidate pairs number ``block * 4096`` onwards, shape (4096, M): a function of (seed, M, block) alone.

    Sizes follow a golden-ratio sequence over 1..M-1, so that every prefix spreads evenly over the sizes.
    """
    rng = np.random.Generator(np.random.Philox(key=draw_key(seed, n_units), counter=[0, 0, block, 0]))
    offset = draw_key(seed, n_units)[0] / 2.0**64
    number = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
    size = 1 + np.floor(((offset + number * _GOLDEN) % 1.0) * (n_units - 1)).astype(np.int64)
    rank = rng.random((_BLOCK, n_units)).argsort(axis=1).argsort(axis=1)
    return rank < size[:, None]


def _distinct_pairs(n_units: int, n_pairs: int, seed: int) -> NDArray[np.bool_]:
    """The first ``n_pairs`` distinct pairs, one member each, shape (n_pairs, M)."""
    seen: set[bytes] = set()
    found: list[NDArray[np.bool_]] = []
    block = 0
    while True:
        candidates = _candidates(n_units, seed, block)
        # the member of a pair that keeps unit 0 stands for both
        keys = np.packbits(candidates ^ ~candidates[:, :1], axis=1)
        for position in range(_BLOCK):
            key = keys[position].tobytes()
            if key in seen:
                continue
            seen.add(key)
            found.append(candidates[position])
            if len(found) == n_pairs:
                return np.array(found)
        block += 1


def _pair_weights(size: NDArray[np.integer], n_units: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Regression weights and inclusion probabilities of pairs, from the size of one member each.

    The inclusion of a pair is the share of all pairs of its size (that of the smaller member) which the plan holds:
    given the counts, these are a simple random sample without replacement. The weight is the Shapley kernel
    ``(M-1) / (C(M,k) k (M-k))`` (Lundberg and Lee 2017, Theorem 2) over the inclusion, in which the binomial cancels:
    near ``1/(k(M-k))`` while duplicates are rare, and the kernel itself, hence the exact values, once every pair is
    there.
    """
    smaller = np.minimum(size, n_units - size)
    counts = np.bincount(smaller, minlength=n_units // 2 + 1)
    halves = np.where(2 * np.arange(len(counts)) == n_units, 2, 1)
    held = (halves * counts)[smaller]
    share = [int(h) / math.comb(n_units, k) for k, h in enumerate(halves * counts)]
    return (n_units - 1) / (size * (n_units - size) * held), np.array(share)[smaller]
