# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The least and the largest area over a perturbation curve that any order of removal attains (Edin et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from monai_segshap.metrics.memory import ScoreMemory
from monai_segshap.shapley import MAX_EXACT_UNITS, all_coalitions

__all__ = [
    "BOUNDS",
    "AopcBounds",
    "beam_aopc_bounds",
    "check_bounds",
    "exact_aopc_bounds",
    "find_bounds",
    "keeping",
    "mean_drop",
]

Floats = NDArray[np.float64]
Order = NDArray[np.int64]

#: How the bounds of NAOPC can be found.
BOUNDS = ("auto", "exact", "beam", "none")


@dataclass(frozen=True)
class AopcBounds:
    """The range of AOPC over all orders in which units can be removed: a property of the game, not of attributions.

    Attributes:
        lower: least AOPC, in units of the score; NaN for "none".
        upper: largest AOPC.
        method: "exact" (no order lies outside); "beam" (orders that lie outside may exist, the range is at most as wide
            as the true one); "none".
        reason: why this method, for people.
        lower_order: int64 (M,), an order of removal that attains ``lower``; empty for "none".
        upper_order: int64 (M,), one that attains ``upper``.
        beam_width: subsets kept at each step; None if there was no beam.
        n_evaluations: coalitions that the bounds asked of the game beyond those known before.
    """

    lower: float
    upper: float
    method: str
    reason: str
    lower_order: Order = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    upper_order: Order = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    beam_width: int | None = None
    n_evaluations: int = 0


def keeping(order: Order) -> NDArray[np.bool_]:
    """Coalitions (M + 1, M) along an order of removal: row k keeps all but the first k units of the order."""
    return np.asarray(np.argsort(order) >= np.arange(len(order) + 1)[:, None])


def mean_drop(curve: Floats) -> float:
    """``1/M sum over k = 1..M of (s(0) - s(k))`` of a curve (M + 1,): AOPC, paper 000, Eq. 7."""
    return float((curve[0] - curve[1:]).mean())


def exact_aopc_bounds(values: NDArray[np.floating]) -> AopcBounds:
    """Bounds over all M! orders by dynamic programming over the 2**M coalitions.

    The best way to a coalition ends with the best way to one of those with a unit more, so an optimal order is a
    longest path from the full to the empty coalition: ``M 2**M`` steps.

    Args:
        values: (2**M,), one score of all coalitions; row index = bit mask with unit 0 as the lowest bit, M = 1..20.

    Raises:
        ValueError: for another shape, or a value that is not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    n_units = len(table).bit_length() - 1 if table.ndim == 1 else 0
    if table.ndim != 1 or not 1 <= n_units <= MAX_EXACT_UNITS or len(table) != 2**n_units:
        raise ValueError(
            f"values have shape {table.shape}; expected (2**M,), one score of all coalitions of M = 1 to "
            f"{MAX_EXACT_UNITS} units."
        )
    if not np.isfinite(table).all():
        raise ValueError(f"{int((~np.isfinite(table)).sum())} of {len(table)} values are not finite; expected none.")
    first, last = (_best_order(sign * (table[-1] - table), n_units) for sign in (-1.0, 1.0))
    lower, upper = (mean_drop(table[keeping(order) @ (1 << np.arange(n_units))]) for order in (first, last))
    return AopcBounds(lower, upper, "exact", f"all 2**{n_units} coalitions are known", first, last)


def beam_aopc_bounds(memory: ScoreMemory, width: int) -> AopcBounds:
    """Bounds by two beams, one for the most and one for the least drop.

    Each beam keeps the ``width`` best sets of removed units of each size; of the ways to a set only the best one stays.
    One call of the game a step. With ``width`` at least C(M, M/2) the bounds are exact.

    Args:
        memory: of one score.
        width: 1 or more; Edin et al. use 5 and 50.

    Raises:
        ValueError: for a width below 1.
    """
    if width < 1:
        raise ValueError(f"beam_width is {width}; expected 1 or more.")
    before, m = memory.n_evaluations, memory.n_units
    full = float(memory(np.ones((1, m), dtype=bool))[0, 0])
    beams = [_Beam.start(m), _Beam.start(m)]
    for _ in range(m):
        children = [beam.children() for beam in beams]
        scores = memory(np.concatenate([~beam.removed for beam in children]))[:, 0]
        parts = np.split(full - scores, [len(children[0].removed)])
        beams = [b.best(sign * drop, width) for b, sign, drop in zip(children, (-1.0, 1.0), parts, strict=True)]
    first, last = (beam.orders[0] for beam in beams)
    lower, upper = (mean_drop(memory(keeping(order))[:, 0]) for order in (first, last))
    complete = width >= math.comb(m, m // 2)
    reason = f"a beam of width {width}" + (", wide enough to hold every coalition" if complete else "")
    return AopcBounds(lower, upper, "beam", reason, first, last, width, memory.n_evaluations - before)


def check_bounds(kind: str, budget: int, width: int, n_units: int) -> None:
    """Refuse, before anything is evaluated, what `find_bounds` could not do.

    Raises:
        ValueError: for an unknown method, a bad number, or "exact" with more than ``MAX_EXACT_UNITS`` units.
    """
    if kind not in BOUNDS:
        raise ValueError(f"bounds is {kind!r}; expected one of {', '.join(BOUNDS)}.")
    if budget < 0 or width < 1:
        raise ValueError(f"budget is {budget} and beam_width {width}; expected 0 or more, and 1 or more.")
    if kind == "exact" and n_units > MAX_EXACT_UNITS:
        raise ValueError(
            f"exact bounds of {n_units} units need all 2**{n_units} coalitions; expected at most {MAX_EXACT_UNITS} "
            "units. Use bounds='beam', or fewer and larger units."
        )


def find_bounds(memory: ScoreMemory, kind: str, budget: int, width: int) -> AopcBounds:
    """Bounds by the method asked for; "auto" takes the first of exact, beam and none that the budget allows."""
    m, missing, most = memory.n_units, memory.n_missing, _most_beam_evaluations(memory.n_units, width)
    enumerable = m <= MAX_EXACT_UNITS
    if kind == "exact" or (kind == "auto" and enumerable and missing <= budget):
        before = memory.n_evaluations
        found = exact_aopc_bounds(memory.table()[:, 0])
        return replace(found, n_evaluations=memory.n_evaluations - before)
    if kind == "beam" or (kind == "auto" and most <= budget):
        return beam_aopc_bounds(memory, width)
    reason = "bounds='none'"
    if kind == "auto":
        exact = f"the {missing} of all 2**{m} that are not known" if enumerable else f"all 2**{m}"
        reason = (
            f"the budget of {budget} coalitions is below {exact}, and below the {most} that a beam of width {width} "
            "can need: raise the budget, lower beam_width, or use larger units"
        )
    return AopcBounds(math.nan, math.nan, "none", reason)


def _best_order(gains: Floats, n_units: int) -> Order:
    """The order of removal with the largest sum of gains over the coalitions on its way; the lowest unit of equals."""
    size = all_coalitions(n_units).sum(axis=1)
    best = np.full(len(gains), -np.inf)
    best[-1] = 0.0
    last = np.zeros(len(gains), dtype=np.int64)
    for level in range(n_units - 1, -1, -1):
        masks = np.flatnonzero(size == level)
        for unit in range(n_units):
            without = masks[(masks >> unit) & 1 == 0]
            via = best[without | (1 << unit)]
            better = without[via > best[without]]
            best[better], last[better] = best[better | (1 << unit)], unit
        best[masks] += gains[masks]
    order, mask = np.empty(n_units, dtype=np.int64), 0
    for place in range(n_units - 1, -1, -1):
        order[place] = last[mask]
        mask |= 1 << int(last[mask])
    return order


@dataclass(frozen=True)
class _Beam:
    """Sets of removed units (B, M), the best way to each (B, k), and the sum of its gains (B,)."""

    removed: NDArray[np.bool_]
    orders: Order
    sums: Floats

    @classmethod
    def start(cls, n_units: int) -> _Beam:
        return cls(np.zeros((1, n_units), dtype=bool), np.empty((1, 0), dtype=np.int64), np.zeros(1))

    def children(self) -> _Beam:
        """Every set with one unit more; the sums are still those of the parents."""
        parent, unit = np.nonzero(~self.removed)
        removed = self.removed[parent]
        removed[np.arange(len(unit)), unit] = True
        return _Beam(removed, np.column_stack([self.orders[parent], unit]), self.sums[parent])

    def best(self, gains: Floats, width: int) -> _Beam:
        """The sets with the largest sums, each once."""
        sums = self.sums + gains
        seen: set[bytes] = set()
        chosen: list[int] = []
        packed = np.packbits(self.removed, axis=1)
        for number in np.argsort(-sums, kind="stable"):
            key = packed[number].tobytes()
            if key not in seen:
                seen.add(key)
                chosen.append(int(number))
                if len(chosen) == width:
                    break
        return _Beam(self.removed[chosen], self.orders[chosen], sums[chosen])


def _most_beam_evaluations(n_units: int, width: int) -> int:
    """Coalitions that two beams can ask for at most, the full and the empty one not counted."""
    found = 0
    for removed in range(1, n_units):
        parents = min(width, math.comb(n_units, removed - 1))
        found += min(2 * parents * (n_units - removed + 1), math.comb(n_units, removed))
    return found
