# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest

from monai_segshap.inferers import CoalitionEvaluator, monai_window_plan, plan_chunks, total_forwards
from monai_segshap.inferers.caching import CachingSlidingWindowInferer

BOX = ((9, 7, 2), (13, 11, 5))


@pytest.fixture
def evaluator(make_case, make_network):
    case = make_case((24, 20, 8), n_units=60)
    inferer = CachingSlidingWindowInferer((8, 8, 8), sw_batch_size=4, overlap=0.5)
    plan = monai_window_plan(inferer, case.image)
    return CoalitionEvaluator(make_network("conv"), plan, case.image, case.labels, case.fill, [BOX])


def rows(evaluator, n, seed=0):
    drawn = np.random.default_rng(seed).random((n, evaluator.n_units)) < 0.5
    drawn[0] = True
    return drawn


@pytest.mark.parametrize("n", [1, 2, 17, 100, 400])
def test_chunks_hold_every_row_once_in_order_and_start_with_the_full_coalition(n, evaluator):
    chunks = plan_chunks(evaluator, rows(evaluator, n), 3)
    assert np.array_equal(np.concatenate([part for part, _ in chunks]), np.arange(n))
    assert chunks[0][0].tolist() == [0]
    assert len({len(part) for part, _ in chunks[1:-1]}) <= 1


def test_chunks_cost_at_most_five_percent_more_than_one_sweep(evaluator):
    drawn = rows(evaluator, 500)
    chunks = plan_chunks(evaluator, drawn, 3)
    assert len(chunks) > 3
    whole = evaluator.prepare(drawn[1:], 3).jobs.n_forwards
    assert sum(plan.jobs.n_forwards for _, plan in chunks[1:]) <= 1.05 * whole


def test_coalitions_that_share_everything_stay_in_one_chunk(evaluator):
    same = np.repeat(rows(evaluator, 3)[1:], 300, axis=0)
    shuffled = np.concatenate([rows(evaluator, 1), np.random.default_rng(0).permutation(same)])
    assert len(plan_chunks(evaluator, shuffled, 3)) == 2


def test_total_counts_one_unperturbed_pass_for_the_published_cache(evaluator):
    drawn = rows(evaluator, 200)
    plans = [plan for _, plan in plan_chunks(evaluator, drawn, 3)]
    together, whole = total_forwards(plans), evaluator.prepare(drawn, 3).forwards
    assert (together.naive, together.published_cache) == (whole.naive, whole.published_cache)
    assert together.planned == sum(p.forwards.planned for p in plans)
