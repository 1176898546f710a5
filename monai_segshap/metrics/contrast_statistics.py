# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What the contrast values of a cohort say: means, ranks over folds, agreement, rank variance.

Each function gives a table with one row for each thing it is about, and a reason where a number is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.metrics.contrast_cohort import ContrastCohort
from monai_segshap.metrics.ranks import (
    RankAgreement,
    RankVariance,
    rank_agreement_report,
    rank_variance_report,
    ranks_of,
)
from monai_segshap.metrics.reference_ranking import ReferenceRanking

__all__ = [
    "contrast_agreement",
    "contrast_fold_ranks",
    "contrast_stability",
    "contrast_value_summary",
    "fold_rank_variance",
]

Floats = NDArray[np.float64]

_LEVEL = 0.95


def contrast_value_summary(cohort: ContrastCohort, *, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Mean value, interval, mean rank and share of first ranks of each contrast, for each sub-region.

    The mean is over folds of the mean over cases, so that folds count alike where cases are missing; mean rank and
    share likewise. The interval is the 2.5th to 97.5th percentile of that mean over resamples of whole cases with all
    their folds, of those that have a value of the sub-region.

    Args:
        cohort: the values.
        n_resamples: of the bootstrap; 0: no interval.
        seed: of the bootstrap, an integer >= 0.

    Returns:
        columns sub_region, contrast, n (cases x folds with a value), n_cases, mean, std (over the cases' means over
        folds, ddof 1), low, high, mean_rank (1 = largest value; where all values are equal they share the middle
        rank), first_share (0 to 1; how often the contrast ranks first, ties share). NaN where there is no value;
        std, low and high also for a single case.

    Raises:
        ValueError: for negative ``n_resamples`` or ``seed``.
    """
    if n_resamples < 0 or seed < 0:
        raise ValueError(f"n_resamples is {n_resamples} and seed {seed}; expected integers >= 0.")
    rows = []
    for s, region in enumerate(cohort.sub_regions):
        values, ranks = cohort.values[:, :, s], cohort.ranks[:, :, s]
        known = np.isfinite(values)
        has = known.any(axis=(1, 2))
        everyone = np.ones((1, len(cohort.cases)))
        mean, mean_rank, first = (_two_means(x, everyone)[0] for x in (values, ranks, _first_shares(ranks)))
        low, high = _interval(values[has], n_resamples, np.random.default_rng([seed, s]))
        spread = _spread(values[has])
        for n, contrast in enumerate(cohort.contrasts):
            count = {"n": int(known[:, :, n].sum()), "n_cases": int(known[:, :, n].any(axis=1).sum())}
            numbers = {"mean": mean[n], "std": spread[n], "low": low[n], "high": high[n]}
            order = {"mean_rank": mean_rank[n], "first_share": first[n]}
            rows.append({"sub_region": region, "contrast": contrast, **count, **numbers, **order})
    return pd.DataFrame(rows)


def contrast_fold_ranks(cohort: ContrastCohort, reference: ReferenceRanking | None = None) -> pd.DataFrame:
    """How each fold ranks the contrasts by their mean values over cases.

    Args:
        cohort: the values.
        reference: for a column with its ranks.

    Returns:
        columns sub_region, fold, contrast, n_cases, mean_value, rank (of the mean value in the fold, 1 = largest),
        mean_rank (over the fold's cases), reference_rank (NaN where the reference does not rank the sub-region).

    Raises:
        ValueError: if the reference ranks other contrasts.
    """
    rows = []
    for s, region in enumerate(cohort.sub_regions):
        expected = _reference_ranks(reference, region, cohort.contrasts)
        means, counts = _over_cases(cohort.values[:, :, s])
        ranks, mean_ranks = ranks_of(means), _over_cases(cohort.ranks[:, :, s])[0]
        for k, fold in enumerate(cohort.folds):
            for n, contrast in enumerate(cohort.contrasts):
                head = {"sub_region": region, "fold": fold, "contrast": contrast, "n_cases": int(counts[k, n])}
                found = {"mean_value": means[k, n], "rank": ranks[k, n], "mean_rank": mean_ranks[k, n]}
                rows.append({**head, **found, "reference_rank": expected[n]})
    return pd.DataFrame(rows)


def fold_rank_variance(cohort: ContrastCohort) -> dict[str, RankVariance]:
    """Rank variance of the folds' mean values over cases, by sub-region; nothing with fewer than two folds."""
    if len(cohort.folds) < 2:
        return {}
    means = {region: _over_cases(cohort.values[:, :, s])[0] for s, region in enumerate(cohort.sub_regions)}
    return {region: rank_variance_report(ranks_of(found)) for region, found in means.items()}


def contrast_agreement(cohort: ContrastCohort, reference: ReferenceRanking) -> pd.DataFrame:
    """Agreement of every case, fold and sub-region with the reference, beside its Dice.

    Args:
        cohort: the values.
        reference: sub-regions that it does not rank are left out.

    Returns:
        columns case, fold, sub_region, dice (NaN where the table does not hold it), agreement (0 to 1, see
        `rank_agreement`), chance, spearman, kendall, reference_first (whether the reference's first contrast ranks
        first, 0 to 1: ties share), reason (why agreement is NaN).

    Raises:
        ValueError: if the reference ranks other contrasts.
    """
    rows, ranks, known = [], cohort.ranks, dict[bytes, RankAgreement]()
    for s, region in enumerate(cohort.sub_regions):
        if region not in reference.orders:
            continue
        expected = reference.ranks(region, cohort.contrasts)
        first = expected == expected.min()
        shares = (_first_shares(ranks[:, :, s]) * first).sum(axis=-1)
        for c, k in np.ndindex(*cohort.dice.shape[:2]):
            own = ranks[c, k, s]
            key = own.tobytes() + expected.tobytes()
            if key not in known:
                known[key] = rank_agreement_report(-own, expected)
            found, reason = known[key], cohort.reason(c, k, s)
            if math.isnan(found.agreement) and not reason:
                reason = found.notes["agreement"].removeprefix("NaN: ")
            head = {"case": cohort.cases[c], "fold": cohort.folds[k], "sub_region": region}
            numbers = {name: getattr(found, name) for name in ("agreement", "chance", "spearman", "kendall")}
            tail = {"reference_first": float(shares[c, k]), "reason": reason}
            rows.append({**head, "dice": float(cohort.dice[c, k, s]), **numbers, **tail})
    columns = ["case", "fold", "sub_region", "dice", "agreement", "chance", "spearman", "kendall"]
    return pd.DataFrame(rows, columns=[*columns, "reference_first", "reason"])


def contrast_stability(cohort: ContrastCohort) -> pd.DataFrame:
    """Rank variance of every case and sub-region over the folds, beside its mean Dice over the same folds.

    Folds that the table does not have for a case are left out and not counted; a fold without values, or with equal
    ones, makes the rank variance NaN.

    Returns:
        columns case, sub_region, rank_variance (>= 0, a measure of instability), chance, mean_dice, n_folds (that the
        table has), reason (why rank_variance is NaN).
    """
    rows, ranks = [], cohort.ranks
    for c, s in np.ndindex(len(cohort.cases), len(cohort.sub_regions)):
        there = np.flatnonzero(cohort.present[c, :, s])
        variance = chance = math.nan
        if len(there) < 2:
            reason = f"the table has {len(there)} of {len(cohort.folds)} folds; a variance needs two"
        else:
            found = rank_variance_report(ranks[c, there, s])
            variance, chance = found.variance, found.chance
            reason = _unranked(cohort, c, s, there)
        dice = cohort.dice[c, there, s]
        rows.append(
            {
                "case": cohort.cases[c],
                "sub_region": cohort.sub_regions[s],
                "rank_variance": variance,
                "chance": chance,
                "mean_dice": float(dice.mean()) if len(dice) else math.nan,
                "n_folds": len(there),
                "reason": reason,
            }
        )
    return pd.DataFrame(rows)


def _two_means(x: Floats, counts: Floats) -> Floats:
    """Mean over folds of the mean over cases: x (C, K, N), how often each case counts (B, C) -> (B, N)."""
    known = np.isfinite(x)
    n_cases, flat = len(x), (len(counts), *x.shape[1:])
    total = (counts @ np.where(known, x, 0.0).reshape(n_cases, -1)).reshape(flat)
    weight = (counts @ known.reshape(n_cases, -1).astype(np.float64)).reshape(flat)
    n_folds = (weight > 0).sum(axis=1)
    means = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return np.divide(means.sum(axis=1), n_folds, out=np.full(n_folds.shape, np.nan), where=n_folds > 0)


def _interval(x: Floats, n_resamples: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Percentile interval of `_two_means` over resampled cases, (N,) twice."""
    if len(x) < 2 or n_resamples == 0:
        return np.full(x.shape[-1], np.nan), np.full(x.shape[-1], np.nan)
    counts = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=n_resamples)
    found = _two_means(x, counts.astype(np.float64))
    low, high = np.full(x.shape[-1], np.nan), np.full(x.shape[-1], np.nan)
    for n, column in enumerate(found.T):
        if len(drawn := column[~np.isnan(column)]):
            low[n], high[n] = np.quantile(drawn, [0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2])
    return low, high


def _spread(x: Floats) -> Floats:
    """Standard deviation (ddof 1) over cases of their means over folds, (N,); x has no case without a value."""
    means = _over_cases(x.transpose(1, 0, 2))[0]
    known = [column[~np.isnan(column)] for column in means.T]
    return np.array([float(column.std(ddof=1)) if len(column) > 1 else math.nan for column in known])


def _over_cases(x: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Mean over the first axis without NaN (NaN for nothing), and how many it is of: (C, K, N) -> (K, N) twice."""
    counts = np.isfinite(x).sum(axis=0)
    total = np.where(np.isfinite(x), x, 0.0).sum(axis=0)
    return np.divide(total, counts, out=np.full(counts.shape, np.nan), where=counts > 0), counts


def _first_shares(ranks: Floats) -> Floats:
    """Share of the first rank, the shape of ``ranks``: 1 for the first contrast, equal parts for tied ones."""
    first = ranks == ranks.min(axis=-1, keepdims=True)
    shares = first / np.maximum(first.sum(axis=-1, keepdims=True), 1)
    return np.where(np.isnan(ranks), np.nan, shares)


def _reference_ranks(reference: ReferenceRanking | None, region: str, contrasts: Sequence[str]) -> Floats:
    if reference is None or region not in reference.orders:
        return np.full(len(contrasts), np.nan)
    return reference.ranks(region, contrasts)


def _unranked(cohort: ContrastCohort, case: int, region: int, folds: NDArray[np.int64]) -> str:
    """Which of the folds have no ranking, and why the first has none; "" if all have one."""
    tied = "all values are equal, so that no contrast comes before another"
    whys = {}
    for k in folds:
        whys[cohort.folds[k]] = cohort.reason(case, k, region) or (tied if cohort.tied[case, k, region] else "")
    bad = {fold: why for fold, why in whys.items() if why}
    if not bad:
        return ""
    fold, why = next(iter(bad.items()))
    return f"{len(bad)} of {len(folds)} folds have no ranking; fold {fold}: {why}"
