# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Does agreement with a reference, or rank variance, go with Dice? Tables for a cohort of contrast values."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.metrics.association import compare_groups, correlation_with_interval

__all__ = ["POOLED", "contrast_associations"]

Floats = NDArray[np.float64]

#: In the column of sub-regions: all of them together.
POOLED = "pooled"
_LEVEL = 0.95


def contrast_associations(
    agreement: pd.DataFrame | None,
    stability: pd.DataFrame | None,
    *,
    high: float = 0.6,
    low: float | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Means of agreement and rank variance beside chance, and whether they go with Dice.

    For each sub-region, and pooled over those of the table. Agreement is compared by case and fold, rank variance by
    case with the mean Dice over its folds. The bootstrap interval draws whole cases; Fisher's interval and both p
    values take all pairs as independent, which is too optimistic where a case gives several.

    Args:
        agreement: of `contrast_agreement`, or None.
        stability: of `contrast_stability`, or None.
        high: pairs with Dice above this are the high group.
        low: pairs with Dice below this are the low group; None: all others.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        columns measure ("agreement", "rank_variance"), sub_region (or "pooled"); n_values, mean, mean_low, mean_high
        (95 %, bootstrap over cases), chance (mean of the rows'); n (pairs with Dice), n_cases, r (Pearson), fisher_low,
        fisher_high, bootstrap_low, bootstrap_high (95 %), p_value; then for high against low Dice: n_high, n_low,
        n_between, median_high, median_low, u_statistic, p_rank_test (Mann-Whitney, two-sided), effect (0 to 1, 0.5: no
        difference), and notes.

    Raises:
        ValueError: as `compare_groups` and `correlation_with_interval`.
    """
    rows = []
    for measure, frame, dice in (("agreement", agreement, "dice"), ("rank_variance", stability, "mean_dice")):
        if frame is None:
            continue
        regions = list(dict.fromkeys(frame["sub_region"]))
        for region in [*regions, *([POOLED] if len(regions) > 1 else [])]:
            part = frame if region == POOLED else frame[frame["sub_region"] == region]
            pairs = part[measure].to_numpy(np.float64), part[dice].to_numpy(np.float64), list(part["case"])
            found: dict[str, Any] = _mean(pairs[0], pairs[2], n_resamples, seed)
            found["chance"] = float(part["chance"].mean())
            found |= _association(*pairs, high, low, n_resamples, seed)
            rows.append({"measure": measure, "sub_region": region, **found})
    return pd.DataFrame(rows)


def _association(
    values: Floats, dice: Floats, cases: Sequence[Hashable], high: float, low: float | None, n_resamples: int, seed: int
) -> dict[str, Any]:
    line = correlation_with_interval(values, dice, confidence=_LEVEL, groups=cases, n_bootstrap=n_resamples, seed=seed)
    groups = compare_groups(values, dice, high=high, low=low)
    compared = ("n_high", "n_low", "n_between", "median_high", "median_low", "u_statistic")
    notes = [f"{', '.join(k for k, v in line.notes.items() if v == why)}: {why}" for why in _said(line.notes, "fisher")]
    notes += [f"rank test: {why}" for why in _said(groups.notes)]
    if line.n_groups < line.n:
        notes.append("fisher, p_value, p_rank_test: take the pairs of a case as independent, which is too optimistic")
    return {
        "n": line.n,
        "n_cases": line.n_groups,
        "r": line.r,
        **dict(zip(("fisher_low", "fisher_high"), line.fisher, strict=True)),
        **dict(zip(("bootstrap_low", "bootstrap_high"), line.bootstrap, strict=True)),
        "p_value": line.p_value,
        **{name: getattr(groups, name) for name in compared},
        "p_rank_test": groups.p_value,
        "effect": groups.effect,
        "notes": "; ".join(notes),
    }


def _said(notes: dict[str, str], grouped: str = "") -> list[str]:
    """Different notes in order, but for the one on the pairs of a group."""
    return [why for why in dict.fromkeys(notes.values()) if not (grouped and why.startswith("takes the pairs"))]


def _mean(values: Floats, cases: Sequence[Hashable], n_resamples: int, seed: int) -> dict[str, float]:
    """Mean of what is not NaN, with an interval over resampled cases."""
    known = np.isfinite(values)
    _, owner = np.unique([str(case) for case, k in zip(cases, known, strict=True) if k], return_inverse=True)
    found = {"n_values": int(known.sum()), "mean": math.nan, "mean_low": math.nan, "mean_high": math.nan}
    if not found["n_values"]:
        return found
    sums, sizes = np.bincount(owner, values[known]), np.bincount(owner)
    found["mean"] = float(sums.sum() / sizes.sum())
    if len(sums) > 1 and n_resamples:
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=n_resamples)
        drawn = (counts @ sums) / (counts @ sizes)
        found["mean_low"], found["mean_high"] = map(float, np.quantile(drawn, [0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2]))
    return found
