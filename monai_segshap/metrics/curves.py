# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Perturbation curves: the score should fall fast when the units with the largest values go first, slowly otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.metrics.bounds import AopcBounds, check_bounds, find_bounds, keeping, mean_drop
from monai_segshap.metrics.memory import Known, ScoreMemory
from monai_segshap.shapley import Game
from monai_segshap.shapley.plan import draw_key

__all__ = ["PerturbationCurves", "RandomControl", "curve_coalitions", "perturbation_curves"]

Floats = NDArray[np.float64]
Order = NDArray[np.int64]

#: Differences below this share of the largest score are rounding of a network in single precision.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class RandomControl:
    """The same curves for n random orders, each walked in both directions.

    Attributes:
        orders: int64 (n, M), units in the order of removal. Order j depends on (seed, M, j) alone.
        curves: float64 (2n, M + 1), scores along each order, then along each reversed order.
        aopc: float64 (2n,), of each curve.
        abpc: float64 (n,), of each order against its reverse; 0 on average over all orders.
        naopc: float64 (2n,), by the bounds of the game; NaN where these are.
    """

    orders: Order
    curves: Floats
    aopc: Floats
    abpc: Floats
    naopc: Floats

    @property
    def mean_curve(self) -> Floats:
        """Float64 (M + 1,)."""
        return np.asarray(self.curves.mean(axis=0))

    @property
    def spread_curve(self) -> Floats:
        """Float64 (M + 1,), standard deviation over the 2n curves (ddof 1)."""
        return np.asarray(self.curves.std(axis=0, ddof=1))

    @property
    def abpc_spread(self) -> float:
        """Standard deviation of ABPC over the orders (ddof 1); NaN for one order."""
        return float(self.abpc.std(ddof=1)) if len(self.abpc) > 1 else math.nan


@dataclass(frozen=True)
class PerturbationCurves:
    """Curves of one score for one ranking of the units, and the areas over and between them.

    MoRF removes units by signed attribution, largest first; LeRF smallest first. k = 0 keeps all units, k = M none.

    Attributes:
        removed: int64 (M + 1,), units removed, 0..M.
        morf: float64 (M + 1,), scores; falls fast if the attributions are right.
        lerf: float64 (M + 1,).
        morf_order: int64 (M,), units in the order of removal.
        lerf_order: int64 (M,).
        morf_volume: float64 (M + 1,), share of the units' volume that is removed, 0..1; None without volumes.
        lerf_volume: float64 (M + 1,), or None.
        aopc: ``1/M sum over k = 1..M of (s(0) - s_MoRF(k))``, in units of the score (paper 000, Eq. 7). Samek et al.
            (2017) divide by M + 1.
        aopc_lerf: the same along LeRF; ``aopc - aopc_lerf = abpc``.
        abpc: ``1/M sum over k = 1..M of (s_LeRF(k) - s_MoRF(k))`` (Eq. 8); larger is better, 0 on average over all
            orders.
        aopc_endpoint_normalized: ``aopc / (s(0) - s(M))``, nAOPC of paper 000 (Eq. 9 without its epsilon). Not confined
            to [0, 1].
        abpc_endpoint_normalized: ``abpc / (s(0) - s(M))``, nABPC.
        naopc: ``(aopc - lower) / (upper - lower)`` with the bounds over all orders: NAOPC of Edin et al. (2024), there
            normalized comprehensiveness. 1: no order is better. In [0, 1] with exact bounds, never clipped.
        sufficiency: the same for ``aopc_lerf``; smaller is better.
        bounds: the bounds, and how they were found.
        random: the control, None if none was asked for.
        n_tied: units that share their attribution with another one; between them the unit number decides.
        n_evaluations: coalitions asked of the game, each once.
        n_reused: coalitions that were needed and known.
        n_calls: calls of the game.
        notes: by the name of a value, why it is NaN or what to mind.
    """

    removed: Order
    morf: Floats
    lerf: Floats
    morf_order: Order
    lerf_order: Order
    morf_volume: Floats | None
    lerf_volume: Floats | None
    aopc: float
    aopc_lerf: float
    abpc: float
    aopc_endpoint_normalized: float
    abpc_endpoint_normalized: float
    naopc: float
    sufficiency: float
    bounds: AopcBounds
    random: RandomControl | None
    n_tied: int
    n_evaluations: int
    n_reused: int
    n_calls: int
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def comprehensiveness(self) -> float:
        """Another name of ``naopc``, beside ``sufficiency``."""
        return self.naopc

    def table(self) -> pd.DataFrame:
        """One row a step k: removed units, their shares of number and volume, scores, and the control."""
        columns: dict[str, Any] = {"removed": self.removed, "removed_share": self.removed / self.removed[-1]}
        columns |= {"morf": self.morf, "lerf": self.lerf}
        if self.morf_volume is not None and self.lerf_volume is not None:
            columns |= {"morf_volume_share": self.morf_volume, "lerf_volume_share": self.lerf_volume}
        if self.random is not None:
            columns |= {"random_mean": self.random.mean_curve, "random_sd": self.random.spread_curve}
        return pd.DataFrame(columns)

    def summary(self) -> dict[str, Any]:
        """Plain numbers, for one row of a table of cases; NaN stays NaN, ``notes`` says why."""
        names = ("aopc", "abpc", "aopc_endpoint_normalized", "abpc_endpoint_normalized", "naopc", "sufficiency")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        found |= {"lower": self.bounds.lower, "upper": self.bounds.upper, "bounds": self.bounds.method}
        found |= {"beam_width": self.bounds.beam_width, "bound_evaluations": self.bounds.n_evaluations}
        if self.random is not None:
            found |= {"random_orders": len(self.random.orders), "random_abpc": float(self.random.abpc.mean())}
            found |= {"random_abpc_sd": self.random.abpc_spread, "random_aopc": float(self.random.aopc.mean())}
        found |= {"evaluations": self.n_evaluations, "reused": self.n_reused, "tied_units": self.n_tied}
        return {**found, "notes": dict(self.notes)}


def perturbation_curves(
    game: Game | None,
    attributions: NDArray[np.floating],
    *,
    volumes: NDArray[np.floating] | None = None,
    known: Known | None = None,
    bounds: str = "auto",
    budget: int = 2048,
    beam_width: int = 5,
    random_orders: int = 0,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> PerturbationCurves:
    """MoRF and LeRF curves of one score, and AOPC, ABPC, nAOPC, nABPC and NAOPC.

    Each distinct coalition is asked once: one call of the game for the curves and the control, one for exact bounds,
    one a step for a beam.

    Args:
        game: one score, bool (K, M), True keeps a unit -> float64 (K,) or (K, 1); None if ``known`` holds everything.
        attributions: (M,), signed. Equal ones go by unit number, the lower first, in MoRF and in LeRF; so attributions
            that are all equal have an ABPC of exactly 0.
        volumes: (M,), of the units, in any unit; None: no axis of volume.
        known: scores of this very game that need no evaluation, see `ScoreMemory`.
        bounds: of NAOPC, "exact", "beam", "none", or "auto": exact where at most ``budget`` coalitions are unknown
            after the curves, else a beam where ``budget`` allows it, else none, with a note.
        budget: coalitions that "auto" may evaluate for the bounds, beyond known ones.
        beam_width: see `beam_aopc_bounds`.
        random_orders: n orders for the control; each needs up to 2 (M - 1) coalitions.
        seed: of these orders, an integer >= 0.
        tolerance: share of the range of the two curves; with ``|s(0) - s(M)|`` not above it nAOPC and nABPC are NaN.

    Returns:
        the curves. nAOPC and nABPC are NaN where the ends of the curves are about equal; NAOPC and sufficiency where
        all orders have about the same area (Edin et al. set 0), or without bounds. ``notes`` says so.

    Raises:
        ValueError: for attributions that are not (M,) or not finite, volumes that do not fit, a game that returns
            several scores or no finite number, or a bad option.
    """
    values = _attributions(attributions)
    check_bounds(bounds, budget, beam_width, len(values))
    memory = ScoreMemory(game, len(values), known, n_scores=1)
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; expected 0 or more.")
    shares = _volume_shares(volumes, len(values))
    orders = removal_orders(values, random_orders, seed)
    scores = memory(np.concatenate([keeping(order) for order in orders]))[:, 0].reshape(len(orders), -1)
    found = find_bounds(memory, bounds, budget, beam_width)
    counts = {"n_evaluations": memory.n_evaluations, "n_reused": memory.n_reused, "n_calls": memory.n_calls}
    return _assemble(values, shares, orders, scores, found, tolerance, counts)


def curve_coalitions(attributions: NDArray[np.floating], random_orders: int = 0, seed: int = 0) -> NDArray[np.bool_]:
    """The distinct coalitions, bool (K, M), that `perturbation_curves` needs before the bounds.

    For planning: the union over several scores can be evaluated at once and given as ``known``.

    Raises:
        ValueError: as `perturbation_curves`.
    """
    orders = removal_orders(_attributions(attributions), random_orders, seed)
    rows = np.concatenate([keeping(order) for order in orders])
    return np.asarray(rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])])


def removal_orders(values: Floats, random_orders: int, seed: int) -> list[Order]:
    """MoRF, LeRF, then n random orders and their n reverses; each int64 (M,).

    The last word of the Philox counter is 2: no order is one that `plan_walks` draws, which attributions may rest on.

    Raises:
        ValueError: for a negative number of orders or seed.
    """
    if random_orders < 0 or seed < 0:
        raise ValueError(f"random_orders is {random_orders} and seed {seed}; expected integers >= 0.")
    m, drawn = len(values), []
    for number in range(random_orders):
        rng = np.random.Generator(np.random.Philox(key=draw_key(seed, m), counter=[0, 0, number, 2]))
        drawn.append(np.argsort(rng.random(m), kind="stable"))
    signed = [np.argsort(-values, kind="stable"), np.argsort(values, kind="stable")]
    return [*signed, *drawn, *[order[::-1] for order in drawn]]


def _assemble(
    values: Floats,
    shares: Floats | None,
    orders: list[Order],
    scores: Floats,
    bounds: AopcBounds,
    tolerance: float,
    counts: dict[str, int],
) -> PerturbationCurves:
    areas = np.array([mean_drop(curve) for curve in scores])
    normalized, notes = _normalized(areas, bounds, float(np.abs(scores).max()))
    ends, more = _endpoint_normalizer(scores[0], scores[1], tolerance)
    abpc = float((scores[1, 1:] - scores[0, 1:]).mean())
    return PerturbationCurves(
        removed=np.arange(len(values) + 1),
        morf=scores[0],
        lerf=scores[1],
        morf_order=orders[0],
        lerf_order=orders[1],
        morf_volume=None if shares is None else _running(shares[orders[0]]),
        lerf_volume=None if shares is None else _running(shares[orders[1]]),
        aopc=float(areas[0]),
        aopc_lerf=float(areas[1]),
        abpc=abpc,
        aopc_endpoint_normalized=float(areas[0]) / ends,
        abpc_endpoint_normalized=abpc / ends,
        naopc=float(normalized[0]),
        sufficiency=float(normalized[1]),
        bounds=bounds,
        random=_control(orders[2:], scores[2:], areas[2:], normalized[2:]) if len(orders) > 2 else None,
        n_tied=_tied(values),
        notes={**more, **notes},
        **counts,
    )


def _attributions(attributions: NDArray[np.floating]) -> Floats:
    values = np.asarray(attributions, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(
            f"attributions have shape {values.shape}; expected (M,), the values of one score: choose a column, "
            "values[:, t]."
        )
    if not len(values):
        raise ValueError("attributions are empty; there is nothing to remove without at least one unit.")
    if not np.isfinite(values).all():
        raise ValueError(
            f"attributions of the units {np.flatnonzero(~np.isfinite(values))[:10].tolist()} (numbered from 0) are not "
            "finite; expected finite numbers: leave these units out of partition and game, or give them 0 if they can "
            "not matter."
        )
    return values


def _volume_shares(volumes: NDArray[np.floating] | None, n_units: int) -> Floats | None:
    if volumes is None:
        return None
    found = np.asarray(volumes, dtype=np.float64)
    if found.shape != (n_units,):
        raise ValueError(f"volumes have shape {found.shape}; expected ({n_units},), one for each attribution.")
    if not (np.isfinite(found).all() and (found >= 0).all() and found.sum() > 0):
        raise ValueError(f"volumes are {found[:10].tolist()}...; expected finite numbers >= 0 with a sum above 0.")
    return np.asarray(found / found.sum())


def _running(shares: Floats) -> Floats:
    sums = np.concatenate([[0.0], np.cumsum(shares)])
    return np.asarray(sums / sums[-1])


def _endpoint_normalizer(morf: Floats, lerf: Floats, tolerance: float) -> tuple[float, dict[str, str]]:
    """``s(0) - s(M)``, NaN where it is about 0."""
    both = np.concatenate([morf, lerf])
    span, drop = float(np.ptp(both)), float(morf[0] - morf[-1])
    names = ("aopc_endpoint_normalized", "abpc_endpoint_normalized")
    if abs(drop) <= max(tolerance * span, _ROUNDING * float(np.abs(both).max())):
        why = (
            f"NaN: the score is {morf[0]:.4g} with all units and {morf[-1]:.4g} with none; a difference of {drop:.2g}, "
            f"where the curves span {span:.2g}, normalizes nothing"
        )
        return math.nan, dict.fromkeys(names, why)
    if drop < 0:
        why = f"the score rises by {-drop:.4g} when all units go: the sign is the opposite of that of the area"
        return drop, dict.fromkeys(names, why)
    return drop, {}


def _normalized(areas: Floats, bounds: AopcBounds, largest: float) -> tuple[Floats, dict[str, str]]:
    """NAOPC of each area; NaN without bounds, or if these leave no room."""
    width, names = bounds.upper - bounds.lower, ("naopc", "sufficiency")
    if bounds.method == "none":
        return np.full(len(areas), np.nan), dict.fromkeys(names, f"NaN: {bounds.reason}")
    if width <= _ROUNDING * largest:
        why = (
            f"NaN: every order has an AOPC of {bounds.upper:.4g} ({bounds.method} bounds), none is better than another"
        )
        return np.full(len(areas), np.nan), dict.fromkeys(names, why)
    found = (areas - bounds.lower) / width
    outside = [(n, v) for n, v in zip(names, found, strict=False) if not -_ROUNDING <= v <= 1 + _ROUNDING]
    why = f"outside 0..1: this order lies beyond the beam's bounds; raise beam_width (now {bounds.beam_width})"
    return found, {name: f"{value:.4g} is {why}" for name, value in outside}


def _control(orders: list[Order], curves: Floats, areas: Floats, normalized: Floats) -> RandomControl:
    n = len(orders) // 2
    return RandomControl(np.stack(orders[:n]), curves, areas, areas[:n] - areas[n:], normalized)


def _tied(values: Floats) -> int:
    counts = np.unique(values, return_counts=True)[1]
    return int(counts[counts > 1].sum())
