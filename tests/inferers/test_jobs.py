# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_segshap.inferers import Incidence, compute_incidence, count_forwards, monai_window_plan, plan_jobs

PLENTY = 10**12
BOX = ((2, 1, 1), (9, 6, 5))


def random_incidence(seed: int, n_windows: int = 9, n_active: int = 5, n_units: int = 6) -> Incidence:
    """Each unit is in about a third of the windows, and changes a voxel of most of those."""
    rng = np.random.default_rng(seed)
    member = rng.random((n_windows, n_units)) < 0.35
    active = np.sort(rng.choice(n_windows, n_active, replace=False))
    return Incidence(active, member[active] & (rng.random((n_active, n_units)) < 0.8), member)


def random_rows(seed: int, n_rows: int = 40, n_units: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).random((n_rows, n_units)) < 0.5


def contents(rows: np.ndarray, incidence: Incidence) -> set[tuple[int, tuple[int, ...]]]:
    """Every (window, kept live units) that occurs."""
    return {(a, tuple(np.flatnonzero(row & incidence.live[a]))) for row in rows for a in range(len(incidence.active))}


def fewest_passes(requests: list[int], capacity: int) -> int:
    """Fewest misses of any cache policy that keeps at most ``capacity`` entries between requests."""

    @cache
    def cost(position: int, kept: frozenset[int]) -> int:
        if position == len(requests):
            return 0
        miss = requests[position] not in kept
        now = kept | {requests[position]}
        options = [now] if len(now) <= capacity else [now - {out} for out in now]
        return miss + min(cost(position + 1, option) for option in options)

    return cost(0, frozenset())


@pytest.mark.parametrize("seed", range(4))
def test_jobs_are_the_distinct_contents(seed):
    incidence, rows = random_incidence(seed), random_rows(seed)
    jobs = plan_jobs(rows, incidence, np.full(5, 4), np.full(5, 10), PLENTY)
    found = {
        (int(w), tuple(np.flatnonzero(rows[r] & incidence.live[w])))
        for w, r in zip(jobs.windows, jobs.rows, strict=True)
    }
    assert found == contents(rows, incidence)
    assert len(jobs.windows) == len(found)
    assert jobs.repeated == 0


@pytest.mark.parametrize("max_bytes", [0, 37, PLENTY])
def test_every_coalition_uses_jobs_with_its_own_content(max_bytes):
    incidence, rows = random_incidence(1), random_rows(1)
    jobs = plan_jobs(rows, incidence, np.full(5, 4), np.array([10, 7, 3, 12, 5]), max_bytes)
    for k, row in enumerate(rows):
        for a in range(5):
            job = jobs.uses[k, a]
            assert jobs.windows[job] == a
            assert np.array_equal(rows[jobs.rows[job]] & incidence.live[a], row & incidence.live[a])
            assert jobs.rows[job] <= k <= jobs.last_use[job]


def test_repeated_coalitions_cost_nothing():
    incidence, rows = random_incidence(2), random_rows(2)
    once = plan_jobs(rows, incidence, np.full(5, 1), np.full(5, 10), PLENTY)
    thrice = plan_jobs(np.concatenate([rows, rows, rows[::-1]]), incidence, np.full(5, 1), np.full(5, 10), PLENTY)
    assert thrice.n_forwards == once.n_forwards


def test_a_window_without_live_units_runs_once():
    incidence = Incidence(np.array([3]), np.zeros((1, 6), bool), np.zeros((5, 6), bool))
    assert plan_jobs(random_rows(0), incidence, np.array([1]), np.array([10]), PLENTY).n_forwards == 1


def test_without_memory_every_window_of_every_coalition_runs():
    incidence, rows = random_incidence(3), random_rows(3)
    jobs = plan_jobs(rows, incidence, np.full(5, 1), np.full(5, 10), 0)
    assert jobs.n_forwards == len(rows) * 5
    assert jobs.repeated == len(rows) * 5 - len(contents(rows, incidence))
    assert jobs.peak_bytes == 5 * 10


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_eviction_is_optimal_for_one_window(seed, capacity):
    rows = random_rows(seed, n_rows=14, n_units=3)
    incidence = Incidence(np.array([0]), np.ones((1, 3), bool), np.ones((1, 3), bool))
    jobs = plan_jobs(rows, incidence, np.array([1]), np.array([10]), 10 * capacity)
    assert jobs.n_forwards == fewest_passes((rows @ [1, 2, 4]).tolist(), capacity)


@pytest.mark.parametrize("max_bytes", [0, 15, 40, 100, 200])
def test_peak_is_what_a_coalition_needs_plus_the_bound_at_most(max_bytes):
    incidence, rows, sizes = random_incidence(4), random_rows(4), np.array([10, 7, 3, 12, 5])
    jobs = plan_jobs(rows, incidence, np.full(5, 1), sizes, max_bytes)  # batches of one run no later row early
    assert jobs.peak_bytes <= sizes.sum() + max_bytes
    held = [sizes[jobs.windows[(jobs.rows <= k) & (jobs.last_use >= k)]].sum() for k in range(len(rows))]
    assert max(held) <= jobs.peak_bytes


def test_peak_without_bound_is_what_later_coalitions_need():
    incidence, rows, sizes = random_incidence(5), random_rows(5), np.array([10, 7, 3, 12, 5])
    jobs = plan_jobs(rows, incidence, np.full(5, 1), sizes, PLENTY)
    needed = []
    for k in range(len(rows)):
        before, after = contents(rows[: k + 1], incidence), contents(rows[k:], incidence)
        needed.append(sum(sizes[a] for a, _ in before & after))
    assert jobs.peak_bytes == max(needed)


def test_more_memory_never_costs_more_passes():
    incidence, rows = random_incidence(6), random_rows(6)
    passes = [plan_jobs(rows, incidence, np.full(5, 1), np.full(5, 10), b).n_forwards for b in range(0, 1000, 50)]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > passes[-1] == len(contents(rows, incidence))


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [4, 4, 4, 4, 4], [7, 7, 7, 7, 7], [4, 4, 4, 4, 1], [3, 3, 3, 2, 2]])
@pytest.mark.parametrize("max_bytes", [0, PLENTY])
def test_each_job_runs_in_one_batch_of_the_size_of_its_window(sizes, max_bytes):
    incidence, rows = random_incidence(7), random_rows(7)
    jobs = plan_jobs(rows, incidence, np.array(sizes), np.full(5, 10), max_bytes)
    assert sorted(job for batch in jobs.batches for job in batch) == list(range(len(jobs.windows)))
    for batch, size in zip(jobs.batches, jobs.batch_sizes, strict=True):
        assert 1 <= len(batch) <= size
        assert {sizes[jobs.windows[job]] for job in batch} == {size}
    assert jobs.n_forwards == sum(jobs.batch_sizes)


def test_no_job_waits_long_for_company():
    # one job for batches of eight, then nothing but jobs for batches of one
    live = np.array([[True] + [False] * 7, [False] + [True] * 7])
    rows = np.array([[True, *(mask >> unit & 1 for unit in range(7))] for mask in range(128)], dtype=bool)
    jobs = plan_jobs(rows, Incidence(np.array([0, 1]), live, live), np.array([8, 1]), np.array([1, 1]), PLENTY)
    position = [jobs.windows[batch[0]] for batch in jobs.batches].index(0)
    assert jobs.batch_sizes[position] == 8
    assert max(jobs.rows[batch[0]] for batch in jobs.batches[: position + 1]) <= 4 * 8


def direct_counts(rows: np.ndarray, member: np.ndarray, active: np.ndarray) -> tuple[int, int]:
    """Naive and published counts, window by window and coalition by coalition."""
    naive = published = 0
    for window, units in enumerate(member):
        if not units.any() and window not in active:
            continue
        published += 1  # the unperturbed pass
        for row in rows:
            naive += 1
            published += any(units[i] and not row[i] for i in range(len(row)))
    return naive, published


@pytest.mark.parametrize("seed", range(4))
def test_naive_and_published_counts_follow_their_definitions(seed):
    incidence, rows = random_incidence(seed, n_windows=15), random_rows(seed)
    jobs = plan_jobs(rows, incidence, np.full(5, 4), np.full(5, 10), PLENTY)
    counts = count_forwards(rows, incidence, jobs)
    assert (counts.naive, counts.published_cache) == direct_counts(rows, incidence.member, incidence.active)
    assert counts.planned == jobs.n_forwards


def test_active_windows_without_units_count_as_naive_passes():
    incidence = Incidence(np.array([1]), np.zeros((1, 2), bool), np.zeros((3, 2), bool))
    rows = random_rows(0, n_rows=10, n_units=2)
    counts = count_forwards(rows, incidence, plan_jobs(rows, incidence, np.array([1]), np.array([1]), PLENTY))
    assert (counts.naive, counts.published_cache, counts.planned) == (10, 1, 1)


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.625])
@pytest.mark.parametrize("shape", [(21, 13, 9), (11, 7, 6)])
def test_incidence_is_what_masking_one_unit_changes(make_case, library_windows, shape, overlap):
    case = make_case(shape, 6, channels=2)
    case.image[0][case.labels == 2] = case.fill[0][case.labels == 2]  # half of unit 2 is already removed
    case.image[:, case.labels == 3] = case.fill[:, case.labels == 3]  # unit 3 wholly
    inferer = {"roi_size": (8, 8, 8), "overlap": overlap}
    plan = monai_window_plan(SlidingWindowInferer(**inferer), case.image)
    active = plan.touching([BOX])
    incidence = compute_incidence(plan, active, case.labels, case.image, case.fill, case.n_units)
    before = library_windows(case.image, **inferer)
    inked = torch.full_like(case.image, 1e6)
    for unit in range(case.n_units):
        coalition = np.arange(case.n_units) != unit
        after = library_windows(case.masked(coalition), **inferer)
        changed = np.array([b.content != a.content for b, a in zip(before, after, strict=True)])
        assert np.array_equal(incidence.live[:, unit], changed[active])
        present = library_windows(torch.where(case.labels == unit + 1, inked, case.image), **inferer)
        assert np.array_equal(
            incidence.member[:, unit], [b.content != p.content for b, p in zip(before, present, strict=True)]
        )
    assert not incidence.visible[2]


def test_restricted_incidence_keeps_the_columns_of_its_units():
    incidence = random_incidence(8)
    units = np.array([True, False, True, True, False, False])
    part = incidence.restricted_to(units)
    assert np.array_equal(part.live, incidence.live[:, units])
    assert np.array_equal(part.member, incidence.member[:, units])
    assert np.array_equal(part.active, incidence.active)
