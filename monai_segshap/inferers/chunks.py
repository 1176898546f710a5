# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Chunks of coalitions: what is finished, resumed and shared out as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from monai_segshap.inferers.evaluation import CoalitionEvaluator, EvaluationPlan
from monai_segshap.inferers.jobs import ForwardCounts

__all__ = ["plan_chunks", "total_forwards"]

#: Chunk sizes that are tried, smallest first.
_SIZES = (16, 32, 64, 128, 256, 512, 1024)
#: Passes that chunks may cost more than one sweep, as a share of the sweep.
_TOLERANCE = 0.05


def plan_chunks(
    evaluator: CoalitionEvaluator, rows: NDArray[np.bool_], n_classes: int, stops: Sequence[int] = ()
) -> list[tuple[NDArray[np.int64], EvaluationPlan]]:
    """Split coalitions into chunks that are planned one by one, so that finished ones never have to run again.

    The first chunk is the first row alone: the full coalition, which every other chunk needs for its scores. The others
    have one size, the smallest for which all chunks together need at most 5 % more passes than a single sweep. It
    depends on the coalitions and windows only, not on how many processes share the work.

    Args:
        evaluator: of the case.
        rows: bool (K, M), the full coalition first.
        n_classes: channels of the network's output.
        stops: numbers of coalitions after which a chunk should end; dropped if they made the passes too many.

    Returns:
        for each chunk its row numbers and its plan.
    """
    first, rest = np.array([0]), np.arange(1, len(rows))
    head = [(first, evaluator.prepare(rows[:1], n_classes))]
    if len(rest) == 0:
        return head
    sweep = evaluator.prepare(rows[1:], n_classes)
    inner = [stop for stop in stops if 1 < stop < len(rows)]
    for borders in (inner, []) if inner else ([],):
        stages = np.split(rest, np.searchsorted(rest, borders))
        for size in (*(s for s in _SIZES if s < len(rest)), len(rest)):
            parts = [stage[start : start + size] for stage in stages for start in range(0, len(stage), size)]
            plans = [evaluator.prepare(rows[part], n_classes) for part in parts]
            if sum(p.jobs.n_forwards for p in plans) <= (1.0 + _TOLERANCE) * sweep.jobs.n_forwards:
                return head + list(zip(parts, plans, strict=True))
    return [*head, (rest, sweep)]


def total_forwards(plans: list[EvaluationPlan]) -> ForwardCounts:
    """Sum of the passes of several plans; the published cache needs its one unperturbed pass only once."""
    naive = sum(p.forwards.naive for p in plans)
    n_windows = plans[0].forwards.naive // max(len(plans[0].rows), 1)
    published = sum(p.forwards.published_cache for p in plans) - n_windows * (len(plans) - 1)
    return ForwardCounts(naive, published, sum(p.forwards.planned for p in plans))
