# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What an explanation says beside its values: convergence, sums over organs, and the game with few units or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from monai_segshap.explainers.explanation import Explanation, UnitGroups
from monai_segshap.explainers.preparation import PreparedCase
from monai_segshap.explainers.sweep import SweepResult
from monai_segshap.inferers import ForwardCounts
from monai_segshap.perturbation import Baseline
from monai_segshap.shapley import ShapleyEstimate
from monai_segshap.units import Partition

__all__ = ["background", "convergence_warnings", "on_all_units", "organ_groups", "with_sensitivity"]

#: Kept shares at which the mean score is reported, and how far from them a coalition may be.
_SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
_REACH = 0.025


def convergence_warnings(estimate: ShapleyEstimate, scores: Sequence[str], tolerance: float | None) -> list[str]:
    """A sentence on the scores whose intervals are wider than asked for."""
    if tolerance is None:
        return []
    late = [score for score, good in zip(scores, estimate.converged(tolerance), strict=True) if not good]
    if not late:
        return []
    return [
        f"not converged: the widest 95 % interval of {', '.join(late)} is wider than +-{tolerance:.0%} of the largest "
        f"value after {estimate.n_evaluations} coalitions. Raise the budget, use fewer units, or read only what stands "
        "clear of its interval."
    ]


def organ_groups(
    partition: Partition, visible: NDArray[np.bool_], values: NDArray[np.float64], estimate: ShapleyEstimate
) -> UnitGroups | None:
    """Sums over the units of each organ, if an organ has several.

    Args:
        partition: the M units.
        visible: bool (M,).
        values: (M, T).
        estimate: of the visible units.
    """
    names = tuple(dict.fromkeys(partition.organs))
    if len(names) == partition.n_units:
        return None
    number = {name: g for g, name in enumerate(names)}
    member = np.zeros((len(names), partition.n_units))
    member[[number[organ] for organ in partition.organs], np.arange(partition.n_units)] = 1.0
    return UnitGroups(names, member @ values, estimate.group_errors(member[:, visible]))


def background(
    prepared: PreparedCase, result: SweepResult, number: int, class_names: Sequence[str] | None
) -> dict[str, Any]:
    """What the network does in a region with no unit or few.

    Args:
        prepared: the case.
        result: of its sweep.
        number: of the region.
        class_names: names of the classes.

    Returns:
        see `Explanation.background`. Mean scores are over the coalitions of the region's own units.
    """
    names = list(class_names or [])
    counts = result.empty_classes[number]
    classes = {names[c] if c < len(names) else f"class {c}": int(counts[c]) for c in np.flatnonzero(counts)}
    view = prepared.views[number]
    share = prepared.coalitions.rows[prepared.order[: result.n_rows]][:, view.seen].mean(axis=1)
    table = result.scores(number)
    by_share = []
    for level in _SHARES:
        near = np.abs(share - level) <= _REACH
        if near.any():
            means = dict(zip(prepared.settings.scores, table[near].mean(axis=0).tolist(), strict=True))
            by_share.append({"kept": level, "coalitions": int(near.sum()), **means})
    return {"empty_classes": classes, "by_kept_share": by_share}


def on_all_units(visible: NDArray[np.bool_], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values (m, T) of the visible units as values (M, T) of all, 0 for the others."""
    found = np.zeros((len(visible), values.shape[1]))
    found[visible] = values
    return found


def with_sensitivity(
    explanation: Explanation, baseline: Baseline, values: NDArray[np.float64], forwards: ForwardCounts
) -> Explanation:
    """An explanation that says how its values change under another baseline.

    Args:
        explanation: with the first baseline.
        baseline: the second one.
        values: float64 (M, T), with the second one.
        forwards: network passes that they took.

    Returns:
        the explanation, its ``sensitivity`` filled: ``baseline``, ``forwards``, and for each score
        ``rank_correlation`` (Spearman, over units that are visible with either), ``largest_change`` as a share of the
        largest value, ``changed_sign`` (names among the ten largest) and ``values`` of all units. A score whose values
        do not vary has no correlation. Changes are compared with the intervals by the reader: both sides are sampled.
    """
    found: dict[str, Any] = {"baseline": baseline.describe(), "forwards": forwards.run}
    compared = explanation.visible | (values != 0).any(axis=1)
    late = []
    for t, score in enumerate(explanation.scores):
        first, second = explanation.values[:, t], values[:, t]
        varies = np.ptp(first[compared]) > 0 and np.ptp(second[compared]) > 0
        correlation = float(spearmanr(first[compared], second[compared]).statistic) if varies else None
        largest = float(np.abs(first).max())
        top = np.argsort(-np.abs(first), kind="stable")[:10]
        flipped = [explanation.partition.names[u] for u in top if first[u] * second[u] < 0]
        change = float(np.abs(second - first).max()) / largest if largest > 0 else None
        found[score] = {
            "rank_correlation": correlation,
            "largest_change": change,
            "changed_sign": flipped,
            "values": second.tolist(),
        }
        if correlation is not None and correlation < 0.8:
            late.append(f"{score} ({correlation:.2f})")
    warnings = explanation.warnings
    if late:
        warnings += (
            f"the values depend on what removed units become: rank correlation with the second baseline below 0.8 for "
            f"{', '.join(late)}.",
        )
    return replace(explanation, sensitivity=found, warnings=warnings)
