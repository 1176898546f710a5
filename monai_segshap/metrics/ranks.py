# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Does a network rank its contrasts as a reference does, and do the folds of a cross-validation agree on the ranks?

Rank 1 is the largest signed value; equal values share the mean of their ranks. Both scores stand beside their chance
level, because neither is 0 for rankings drawn by lot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = [
    "RankAgreement",
    "RankVariance",
    "rank_agreement",
    "rank_agreement_report",
    "rank_variance",
    "rank_variance_report",
    "ranks_of",
]

Floats = NDArray[np.float64]

#: Rankings of up to so many contrasts are enumerated (8! = 40320) for the p value; of more they are drawn.
_ENUMERATED = 8
_DRAWN = 20000
_CHUNK = 5040
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class RankAgreement:
    """One ranking against a reference.

    Attributes:
        agreement: ``1 - sum |R_i - K_i| / floor(N**2 / 2)``, in [0, 1]: 1 identical, 0 as far away as a ranking can be
            (a reversal is, but it is not the only one); NaN where undefined.
        chance: mean agreement over all orders of the same ranks; 0.375 for N = 4 without ties.
        p_value: share of these orders that agree at least as well; "exact" for N <= 8, else from 20000 drawn orders.
        p_method: "exact", "drawn", or "none" where undefined.
        spearman: rank correlation with the reference, in [-1, 1].
        kendall: tau-b, in [-1, 1].
        ranks: float64 (N,), 1 = largest value.
        reference_ranks: float64 (N,).
        notes: by the name of a value, why it is NaN or what to mind.
    """

    agreement: float
    chance: float
    p_value: float
    p_method: str
    spearman: float
    kendall: float
    ranks: Floats
    reference_ranks: Floats
    notes: dict[str, str] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.agreement


@dataclass(frozen=True)
class RankVariance:
    """How much the rank of each contrast moves over the folds. A measure of instability, no confidence statement.

    Attributes:
        variance: mean of ``per_contrast``, >= 0: 0 if all folds agree; NaN where undefined.
        chance: its expectation if each fold's ranks came in random order; ``(N**2 - 1) / 12`` without ties, which is
            1.25 for N = 4. Values above it are possible.
        per_contrast: float64 (N,), variance of each contrast's rank over the folds (ddof 1).
        mean_ranks: float64 (N,), mean over the folds.
        n_folds: K.
        notes: by the name of a value, why it is NaN or what to mind.
    """

    variance: float
    chance: float
    per_contrast: Floats
    mean_ranks: Floats
    n_folds: int
    notes: dict[str, str] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.variance


def ranks_of(values: ArrayLike) -> Floats:
    """Ranks of signed values along the last axis, 1 = largest, ties by their mean rank.

    Args:
        values: (N,) or (..., N), for example Shapley values of N contrasts.

    Returns:
        float64, the shape of ``values``. A row with a NaN has no ranks: all NaN.

    Raises:
        ValueError: without values, or for an infinite one.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim == 0 or table.shape[-1] == 0:
        raise ValueError(f"values have shape {table.shape}; expected (N,) or (..., N), one for each contrast.")
    if np.isinf(table).any():
        raise ValueError("a value is infinite; expected finite values, or NaN where a value is undefined.")
    found = stats.rankdata(-table, method="average", axis=-1)
    return np.where(np.isnan(table).any(axis=-1, keepdims=True), np.nan, found)


def rank_agreement(values: ArrayLike, reference_ranks: ArrayLike) -> float | Floats:
    """Agreement of the ranks of signed values with a reference, paper 003's score.

    ``1 - sum over i of |R_i - K_i| / floor(N**2 / 2)`` with R the ranks of the values. It is neither NDCG nor a rank
    correlation, and its mean over random rankings is not 0: 0.375 for N = 4. `rank_agreement_report` gives chance
    level, p value, Spearman and Kendall with it, and says why a score is NaN.

    Args:
        values: (N,) or (..., N), signed Shapley values; rank 1 = largest, ties by their mean rank.
        reference_ranks: (N,), or the shape of ``values``: ranks 1 (most important) to N, ties by their mean rank.

    Returns:
        float for (N,), else float64 (...), in [0, 1]. NaN where nothing is ranked: a NaN among the values, all values
        equal, or N = 1.

    Raises:
        ValueError: if the reference is no ranking of N contrasts, or a value is infinite.
    """
    ranks = ranks_of(values)
    reference = _reference(reference_ranks, ranks.shape)
    n = ranks.shape[-1]
    if n < 2:
        found = np.full(ranks.shape[:-1], np.nan)
    else:
        found = 1.0 - np.abs(ranks - reference).sum(axis=-1) / (n * n // 2)
        found = np.where(np.ptp(ranks, axis=-1) == 0, np.nan, found)
    return float(found) if ranks.ndim == 1 else np.asarray(found)


def rank_agreement_report(values: ArrayLike, reference_ranks: ArrayLike, seed: int = 0) -> RankAgreement:
    """`rank_agreement` of one ranking with its chance level, a p value, Spearman's rho and Kendall's tau-b.

    Args:
        values: (N,), signed.
        reference_ranks: (N,), see `rank_agreement`.
        seed: of the drawn orders for N > 8, an integer >= 0.

    Raises:
        ValueError: as `rank_agreement`, and for more than one ranking.
    """
    ranks = ranks_of(values)
    if ranks.ndim != 1:
        raise ValueError(f"values have shape {ranks.shape}; expected (N,): call this once for each ranking.")
    reference = _reference(reference_ranks, ranks.shape)
    agreement = float(rank_agreement(values, reference))
    if math.isnan(agreement):
        why = f"NaN: {_undefined(ranks)}"
        notes = dict.fromkeys(("agreement", "chance", "p_value", "spearman", "kendall"), why)
        return RankAgreement(math.nan, math.nan, math.nan, "none", math.nan, math.nan, ranks, reference, notes)
    notes = {}
    n, most = len(ranks), len(ranks) ** 2 // 2
    chance = 1.0 - float(np.abs(ranks[:, None] - reference).sum()) / n / most
    at_least = sum(
        int((1.0 - np.abs(orders - reference).sum(axis=1) / most >= agreement - _TOLERANCE).sum())
        for orders in _orders(ranks, seed)
    )
    exact = n <= _ENUMERATED
    p_value = at_least / math.factorial(n) if exact else (at_least + 1) / (_DRAWN + 1)
    spearman = kendall = math.nan
    if np.ptp(reference) > 0:
        spearman = float(stats.pearsonr(ranks, reference).statistic)
        kendall = float(stats.kendalltau(ranks, reference).statistic)
    else:
        notes |= dict.fromkeys(("spearman", "kendall"), "NaN: the reference ranks all contrasts alike")
    if np.unique(ranks).size < n:
        notes["ranks"] = "equal values share the mean of their ranks"
    method = "exact" if exact else "drawn"
    return RankAgreement(agreement, chance, p_value, method, spearman, kendall, ranks, reference, notes)


def rank_variance(ranks: ArrayLike) -> float | Floats:
    """Instability of a ranking over folds, paper 003's uncertainty.

    ``1/N sum over i of Var(R_i)`` with ``Var(R_i) = 1/(K-1) sum over folds k of (r_ik - mean r_i)**2``. Score a case
    that none of the K networks was trained on: on a training case the folds differ for another reason.

    Args:
        ranks: (K, N) or (..., K, N), ranks of N contrasts by K >= 2 folds, see `ranks_of`.

    Returns:
        float for (K, N), else float64 (...), >= 0. NaN where a fold has no ranks (NaN) or ranks all contrasts alike.

    Raises:
        ValueError: for fewer than two folds, or a row that is no ranking.
    """
    table = _fold_ranks(ranks)
    found = table.var(axis=-2, ddof=1).mean(axis=-1)
    found = np.where((np.ptp(table, axis=-1) == 0).any(axis=-1), np.nan, found)
    return float(found) if table.ndim == 2 else np.asarray(found)


def rank_variance_report(ranks: ArrayLike) -> RankVariance:
    """`rank_variance` of one table (K, N) with its chance level, and the variance and mean rank of each contrast.

    Raises:
        ValueError: as `rank_variance`, and for more than one table.
    """
    table = _fold_ranks(ranks)
    if table.ndim != 2:
        raise ValueError(f"ranks have shape {table.shape}; expected (K, N): call this once for each table.")
    n_folds, n = table.shape
    undefined = {k: _undefined(row) for k, row in enumerate(table) if np.isnan(row).any() or np.ptp(row) == 0}
    if undefined:
        fold, why = next(iter(undefined.items()))
        note = f"NaN: {len(undefined)} of {n_folds} folds have no ranking; fold {fold} (from 0): {why}"
        nothing = np.full(n, np.nan)
        notes = dict.fromkeys(("variance", "chance", "per_contrast", "mean_ranks"), note)
        return RankVariance(math.nan, math.nan, nothing, nothing, n_folds, notes)
    per_contrast = table.var(axis=0, ddof=1)
    chance = float(table.var(axis=1).mean())  # every fold has the same mean rank, so expectations add
    return RankVariance(float(per_contrast.mean()), chance, per_contrast, table.mean(axis=0), n_folds)


def _undefined(ranks: Floats) -> str:
    if np.isnan(ranks).any():
        return "a value is NaN, for example the Dice of a sub-region that neither truth nor prediction has"
    if len(ranks) < 2:
        return "one contrast has no order"
    return "all values are equal, for example all 0 because no coalition finds the sub-region"


def _orders(ranks: Floats, seed: int) -> Iterator[Floats]:
    """All orders (K, N) of the same ranks for N <= 8, else 20000 drawn ones; in chunks."""
    if len(ranks) <= _ENUMERATED:
        every = permutations(ranks.tolist())
        while chunk := list(islice(every, _CHUNK)):
            yield np.array(chunk)
        return
    rng = np.random.default_rng(seed)
    yield rng.permuted(np.tile(ranks, (_DRAWN, 1)), axis=1)


def _is_ranking(rows: Floats) -> NDArray[np.bool_]:
    """Bool (...): whether each row (..., N) holds ranks from 1, ties by their mean."""
    return np.asarray(np.isclose(stats.rankdata(rows, method="average", axis=-1), rows, atol=1e-6).all(axis=-1))


def _reference(reference_ranks: ArrayLike, shape: tuple[int, ...]) -> Floats:
    """Reference ranks, float64 (N,) or of this shape.

    Raises:
        ValueError: see `rank_agreement`.
    """
    reference = np.asarray(reference_ranks, dtype=np.float64)
    if reference.shape not in {shape[-1:], shape}:
        raise ValueError(
            f"reference_ranks have shape {reference.shape}, values {shape}; expected {shape[-1:]} or {shape}, one rank "
            "for each contrast in the same order."
        )
    if not np.isfinite(reference).all() or not _is_ranking(reference).all():
        raise ValueError(
            f"reference_ranks are {reference.reshape(-1, shape[-1])[:3].tolist()}; expected ranks from 1 (most "
            "important), ties by their mean rank as in [1, 2.5, 2.5, 4]. ranks_of(values) turns values into ranks."
        )
    return reference


def _fold_ranks(ranks: ArrayLike) -> Floats:
    """Ranks, float64 (..., K, N).

    Raises:
        ValueError: see `rank_variance`.
    """
    table = np.asarray(ranks, dtype=np.float64)
    if table.ndim < 2 or table.shape[-2] < 2 or table.shape[-1] < 1:
        raise ValueError(f"ranks have shape {table.shape}; expected (K, N) with K >= 2 folds, or (..., K, N).")
    rows = table.reshape(-1, table.shape[-1])
    defined = rows[~np.isnan(rows).any(axis=1)]
    wrong = defined[~_is_ranking(defined)] if len(defined) else defined
    if len(wrong):
        raise ValueError(
            f"a fold has the ranks {wrong[0].tolist()}; expected ranks from 1 (most important), ties by their mean "
            "rank as in [1, 2.5, 2.5, 4]. ranks_of(values) turns values into ranks."
        )
    return np.where(np.isnan(table).any(axis=-1, keepdims=True), np.nan, table)
