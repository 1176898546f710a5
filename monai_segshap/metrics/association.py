# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Does agreement or rank variance go with Dice? Correlation with intervals, and high- against low-Dice cases."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["GroupComparison", "RankedCorrelation", "compare_groups", "correlation_with_interval"]

Floats = NDArray[np.float64]
Interval = tuple[float, float]

_ALTERNATIVES = ("two-sided", "greater", "less")
_METHODS = ("pearson", "spearman")
_NOWHERE: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class RankedCorrelation:
    """Correlation of two measurements of the same cases.

    Attributes:
        r: in [-1, 1]; NaN where undefined.
        method: "pearson" or "spearman".
        n: pairs that were used.
        n_groups: independent groups among them; n if no groups were given.
        n_dropped: pairs left out because one of the two was NaN.
        p_value: two-sided, of no correlation, as if the pairs were independent.
        confidence: level of both intervals.
        fisher: (low, high) by Fisher's z, as if the pairs were independent; NaN for fewer than 4 pairs.
        bootstrap: (low, high), percentiles over resampled groups.
        notes: by the name of a value, why it is NaN or what to mind.
    """

    r: float
    method: str
    n: int
    n_groups: int
    n_dropped: int
    p_value: float
    confidence: float
    fisher: Interval
    bootstrap: Interval
    notes: dict[str, str] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.r


@dataclass(frozen=True)
class GroupComparison:
    """Values of high-Dice cases against those of low-Dice cases.

    Attributes:
        n_high: cases with Dice above the upper bound.
        n_low: cases with Dice below the lower bound, or not above the upper one if they are the same.
        n_between: cases in neither group.
        n_dropped: cases left out because value or Dice is NaN.
        median_high: median value of the group.
        median_low: the same.
        mean_high: mean value of the group.
        mean_low: the same.
        u_statistic: Mann-Whitney's U of the high group.
        p_value: of the rank test.
        effect: probability that a case of the high group has the larger value, ties half; U / (n_high n_low), 0..1,
            0.5 means no difference.
        rank_biserial: ``2 effect - 1``, -1..1.
        alternative: of the test.
        notes: by the name of a value, why it is NaN or what to mind.
    """

    n_high: int
    n_low: int
    n_between: int
    n_dropped: int
    median_high: float
    median_low: float
    mean_high: float
    mean_low: float
    u_statistic: float
    p_value: float
    effect: float
    rank_biserial: float
    alternative: str
    notes: dict[str, str] = field(default_factory=dict)


def correlation_with_interval(
    values: ArrayLike,
    dice: ArrayLike,
    *,
    method: str = "pearson",
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> RankedCorrelation:
    """Correlation of agreement or rank variance with Dice, with two confidence intervals.

    Paper 003 correlates over cases or case and sub-region pairs. Sub-regions of one case are not independent: name the
    case of each pair in ``groups``, so that the bootstrap draws whole cases.

    Args:
        values: (n,), NaN where undefined; these pairs are left out and counted.
        dice: (n,), Dice or any other measurement.
        method: "pearson", or "spearman" (the standard error of its z is ``sqrt((1 + r**2 / 2) / (n - 3))``, Bonett and
            Wright 2000, instead of Fisher's ``1 / sqrt(n - 3)``).
        confidence: level, between 0 and 1.
        groups: (n,), for example case names; None: every pair by itself.
        n_bootstrap: resamples, 0 for no bootstrap interval.
        seed: of the resamples, an integer >= 0.

    Raises:
        ValueError: for lengths that differ, or an option out of range.
    """
    x, y, kept = _pairs(values, dice)
    if method not in _METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(_METHODS)}.")
    if not 0 < confidence < 1 or n_bootstrap < 0 or seed < 0:
        raise ValueError(
            f"confidence is {confidence}, n_bootstrap {n_bootstrap}, seed {seed}; expected a level between 0 and 1 and "
            "integers >= 0."
        )
    members = _members(groups, kept)
    r, n, notes = _correlation(x, y, method), len(x), dict[str, str]()
    p_value, fisher, bootstrap = math.nan, _NOWHERE, _NOWHERE
    if math.isnan(r):
        why = "NaN: fewer than two pairs" if n < 2 else "NaN: one of the two measurements is constant"
        notes = dict.fromkeys(("r", "p_value", "fisher", "bootstrap"), why)
    else:
        test = stats.pearsonr if method == "pearson" else stats.spearmanr
        p_value = float(test(x, y).pvalue) if n > 2 else math.nan
        fisher = _fisher(r, n, method, confidence)
        bootstrap, n_bad = _bootstrap(x, y, members, method, confidence, n_bootstrap, seed)
        if n < 4:
            notes["fisher"] = "NaN: Fisher's interval needs 4 pairs"
        if n_bad:
            notes["bootstrap"] = f"{n_bad} of {n_bootstrap} resamples were constant and have no correlation"
        elif n_bootstrap == 0:
            notes["bootstrap"] = "NaN: no resamples were asked for"
        if len(members) < n:
            notes["fisher"] = notes.get("fisher", "takes the pairs of a group as independent, which is too narrow")
    n_dropped = int((~kept).sum())
    return RankedCorrelation(r, method, n, len(members), n_dropped, p_value, confidence, fisher, bootstrap, notes)


def compare_groups(
    values: ArrayLike,
    dice: ArrayLike,
    *,
    high: float = 0.6,
    low: float | None = None,
    alternative: str = "two-sided",
) -> GroupComparison:
    """Values of high-Dice against low-Dice cases by Mann-Whitney's rank test, with an effect size.

    Args:
        values: (n,), agreement or rank variance, NaN where undefined; these cases are left out and counted.
        dice: (n,), Dice.
        high: cases with Dice above this are the high group.
        low: cases with Dice below this are the low group (paper 003 leaves a gap: 0.6 and 0.5); None: all that are not
            in the high group.
        alternative: "two-sided", "greater" (high-Dice cases have larger values) or "less".

    Returns:
        sizes, medians, U, p value and effect; the test is exact for small groups without ties, else by the normal
        approximation with tie correction. With an empty group everything is NaN, ``notes`` says so.

    Raises:
        ValueError: for lengths that differ, ``low > high``, or an unknown alternative.
    """
    x, y, kept = _pairs(values, dice)
    if alternative not in _ALTERNATIVES:
        raise ValueError(f"alternative is {alternative!r}; expected one of {', '.join(_ALTERNATIVES)}.")
    if low is not None and low > high:
        raise ValueError(f"low is {low} and high {high}; expected low <= high.")
    above, below = x[y > high], x[(y <= high) if low is None else (y < low)]
    described: dict[str, Any] = {
        "n_high": len(above),
        "n_low": len(below),
        "n_between": len(x) - len(above) - len(below),
        "n_dropped": int((~kept).sum()),
        "median_high": float(np.median(above)) if len(above) else math.nan,
        "median_low": float(np.median(below)) if len(below) else math.nan,
        "mean_high": float(above.mean()) if len(above) else math.nan,
        "mean_low": float(below.mean()) if len(below) else math.nan,
        "alternative": alternative,
    }
    tested, notes = ("u_statistic", "p_value", "effect", "rank_biserial"), {}
    if not len(above) or not len(below):
        why = f"NaN: {len(above)} cases with high and {len(below)} with low Dice; both groups need one"
        described |= {**dict.fromkeys(tested, math.nan), "notes": dict.fromkeys(tested, why)}
        return GroupComparison(**described)
    test = stats.mannwhitneyu(above, below, alternative=alternative)
    effect, p_value = float(test.statistic) / (len(above) * len(below)), float(test.pvalue)
    if np.ptp(np.concatenate([above, below])) == 0:
        p_value, notes = 1.0, {"p_value": "all values are equal"}
    found = (float(test.statistic), p_value, effect, 2 * effect - 1)
    described |= {**dict(zip(tested, found, strict=True)), "notes": notes}
    return GroupComparison(**described)


def _pairs(values: ArrayLike, dice: ArrayLike) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Pairs without NaN, and which these are, bool (n,).

    Raises:
        ValueError: for shapes that differ, or an infinite number.
    """
    x, y = np.asarray(values, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"values have shape {x.shape}, dice {y.shape}; expected (n,) twice, one pair for each case.")
    if np.isinf(x).any() or np.isinf(y).any():
        raise ValueError("a value or Dice is infinite; expected finite numbers, or NaN where undefined.")
    kept = ~(np.isnan(x) | np.isnan(y))
    return x[kept], y[kept], kept


def _members(groups: Sequence[Hashable] | None, kept: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Indices of the kept pairs of each group, in order of first appearance.

    Raises:
        ValueError: if there is not one group for each pair.
    """
    if groups is None:
        return [np.array([i]) for i in range(int(kept.sum()))]
    if len(groups) != len(kept):
        raise ValueError(f"got {len(groups)} groups for {len(kept)} pairs; expected one for each pair.")
    found: dict[Hashable, list[int]] = {}
    for index, pair in enumerate(np.flatnonzero(kept)):
        found.setdefault(groups[int(pair)], []).append(index)
    return [np.array(indices) for indices in found.values()]


def _correlation(x: Floats, y: Floats, method: str) -> float:
    if method == "spearman" and len(x):
        x, y = stats.rankdata(x), stats.rankdata(y)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    a, b = x - x.mean(), y - y.mean()
    return float(np.clip((a @ b) / math.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def _fisher(r: float, n: int, method: str, confidence: float) -> Interval:
    if n < 4:
        return _NOWHERE
    if abs(r) == 1:
        return r, r
    error = math.sqrt((1 + r * r / 2 if method == "spearman" else 1) / (n - 3))
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def _bootstrap(
    x: Floats, y: Floats, members: list[NDArray[np.int64]], method: str, confidence: float, n: int, seed: int
) -> tuple[Interval, int]:
    """Percentile interval over resampled groups, and the number of resamples without a correlation."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        drawn = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        found.append(_correlation(x[drawn], y[drawn], method))
    defined = np.array(found)[~np.isnan(found)] if n else np.zeros(0)
    if not len(defined):
        return _NOWHERE, n
    low, high = np.quantile(defined, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return (float(low), float(high)), n - len(defined)
