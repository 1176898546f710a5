# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Units that own single channels: the bits of MONAI's plain inferer, and windows shared where a channel is replaced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_segshap.inferers import CoalitionEvaluator, Incidence, compute_incidence, monai_window_plan, plan_jobs
from monai_segshap.shapley import all_coalitions

ROI = (8, 8, 8)
SHAPE = (19, 11, 9)
WHOLE = ((0, 0, 0), tuple(n - 1 for n in SHAPE))


def channel_labels(channels: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """One number for each channel."""
    return torch.tensor(channels).reshape(-1, 1, 1, 1).expand(len(channels), *shape)


def masked(case, labels: torch.Tensor, row: np.ndarray) -> torch.Tensor:
    """The image with removed units replaced, voxel by voxel."""
    found = case.image.clone()
    for unit, kept in enumerate(row, start=1):
        if not kept:
            found[labels == unit] = case.fill[labels == unit]
    return found


def background(image: torch.Tensor) -> torch.Tensor:
    """From voxel 11 on everything is background, 0, which fills the last windows; channel 0 ends at 4."""
    image[:, 11:] = 0.0
    image[0, 4:] = 0.0
    return image


def evaluator_of(case, labels, network, inferer, **options) -> CoalitionEvaluator:
    plan = monai_window_plan(SlidingWindowInferer(**inferer), case.image)
    return CoalitionEvaluator(network, plan, case.image, labels, case.fill, [WHOLE], **options)


@pytest.mark.parametrize("kind", ["unet", "segresnet"])
@pytest.mark.parametrize(("batch_size", "overlap"), [(1, 0.5), (3, 0.25)])
def test_logits_of_removed_channels_are_bit_identical(make_network, make_case, plain_logits, kind, batch_size, overlap):
    network, case = make_network(kind, in_channels=4), make_case(SHAPE, 2, channels=4, fill=0.0)
    background(case.image)
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": overlap, "mode": "gaussian"}
    labels = channel_labels((1, 2, 0, 1))
    evaluator = evaluator_of(case, labels, network, inferer)
    rows = all_coalitions(2)
    for number, (logits,) in evaluator.run(evaluator.prepare(rows, 3)):
        assert torch.equal(logits, plain_logits(masked(case, labels, rows[number]), network, **inferer))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_padding_and_labels_that_differ_by_channel_and_place_are_bit_identical(
    make_network, make_case, plain_logits, mode
):
    shape = (13, 7, 6)
    network, case = make_network("unet", in_channels=3), make_case(shape, 3, channels=3)
    labels = torch.stack([case.labels, torch.zeros_like(case.labels), (case.labels + 1) % 4])
    inferer = {"roi_size": ROI, "overlap": 0.5, "padding_mode": mode, "cval": 0.4 if mode == "constant" else 0.0}
    plan = monai_window_plan(SlidingWindowInferer(**inferer), case.image)
    evaluator = CoalitionEvaluator(network, plan, case.image, labels, case.fill, [((0, 0, 0), (12, 6, 5))])
    rows = all_coalitions(3)
    for number, (logits,) in evaluator.run(evaluator.prepare(rows, 3)):
        assert torch.equal(logits, plain_logits(masked(case, labels, rows[number]), network, **inferer))


def test_incidence_is_what_replacing_one_channel_changes(make_case, library_windows):
    case, labels = make_case(SHAPE, 2, channels=3, fill=0.0), channel_labels((1, 2, 3))
    background(case.image)
    inferer = {"roi_size": ROI, "overlap": 0.5}
    plan = monai_window_plan(SlidingWindowInferer(**inferer), case.image)
    active = plan.touching([WHOLE])
    found = compute_incidence(plan, active, labels, case.image, case.fill, 3)
    before = library_windows(case.image, **inferer)
    for unit in range(3):
        after = library_windows(masked(case, labels, np.arange(3) != unit), **inferer)
        changed = [a.content != b.content for a, b in zip(after, before, strict=True)]
        assert found.live[:, unit].tolist() == changed
    assert 0 < found.live[:, 0].sum() < found.live[:, 1].sum() < len(active)
    assert found.member.all()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_windows_of_background_are_shared(make_network, make_case, library_windows, counting, batch_size):
    network, case = counting(make_network("conv", in_channels=3)), make_case(SHAPE, 2, channels=3, fill=0.0)
    background(case.image)
    labels, rows = channel_labels((1, 2, 3)), all_coalitions(3)
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5}
    evaluator = evaluator_of(case, labels, network, inferer)
    plan = evaluator.prepare(rows, 3)
    list(evaluator.run(plan))
    empty = {w.start: w.content for w in library_windows(masked(case, labels, rows[0]), **inferer)}
    distinct, bare = set(), set()
    for row in rows:
        for window in library_windows(masked(case, labels, row), **inferer):
            if window.content == empty[window.start]:
                bare.add((window.batch_size, window.content))  # nothing but 0: one window runs for all
            else:
                distinct.add((window.start, window.content))
    assert len({content for _, content in bare}) == 1
    assert len(plan.jobs.windows) == len(distinct) + len(bare)
    assert network.n_windows == plan.forwards.planned == evaluator.n_forwards
    assert len(distinct) < 0.6 * plan.forwards.naive
    assert plan.forwards.naive == plan.forwards.published_cache == 8 * evaluator.plan.n_windows  # every window has all


@pytest.mark.parametrize("max_bytes", [1, 20_000, 50_000, 10**9])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_shared_windows_stay_within_the_memory_bound(make_network, make_case, plain_logits, max_bytes, batch_size):
    network, case = make_network("unet", in_channels=3), make_case(SHAPE, 2, channels=3, fill=0.0)
    background(case.image)
    labels, inferer = channel_labels((1, 2, 3)), {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5}
    evaluator = evaluator_of(case, labels, network, inferer, max_bytes=max_bytes)
    rows = np.roll(all_coalitions(3), 1, axis=0)
    plan = evaluator.prepare(rows, 3)
    entry = 3 * 8**3 * 4
    alone = plan_jobs(
        rows, evaluator.incidence, evaluator.run_sizes, np.full(evaluator.plan.n_windows, entry), max_bytes
    )
    assert plan.jobs.n_forwards < alone.n_forwards
    # fewer windows of one coalition leave room in a batch for those of the next
    assert plan.jobs.peak_bytes <= alone.peak_bytes + (batch_size - 1) * entry
    for number, (logits,) in evaluator.run(plan):
        assert torch.equal(logits, plain_logits(masked(case, labels, rows[number]), network, **inferer))
    assert evaluator.peak_held_bytes == plan.jobs.peak_bytes


@pytest.mark.parametrize(("max_bytes", "runs", "peak"), [(0, 6, 20), (10**9, 3, 30)])
def test_a_twin_is_used_only_while_it_is_held_anyway(max_bytes, runs, peak):
    live = np.ones((2, 1), dtype=bool)
    rows = np.array([[False], [True], [True], [False]])
    jobs = plan_jobs(
        rows, Incidence(np.arange(2), live, live), np.ones(2, int), np.array([10, 10]), max_bytes, np.array([0, 0])
    )
    # with no memory each coalition runs its own: one window, two, two, one
    assert jobs.n_forwards == runs
    assert jobs.peak_bytes == peak
    for row, used in zip(rows, jobs.uses, strict=True):
        assert np.array_equal(rows[jobs.rows[used]], np.repeat(row[None], 2, axis=0))
    assert (jobs.uses[:, 0] == jobs.uses[:, 1]).tolist() == [True, False, False, True]


def test_windows_that_differ_outside_every_unit_have_no_twin(make_network, make_case, plain_logits):
    # channel 1 is never removed, so that windows differ even where all units are
    network, case = make_network("unet", in_channels=2), make_case(SHAPE, 2, channels=2, fill=0.0)
    labels, inferer = channel_labels((1, 0)), {"roi_size": ROI, "overlap": 0.5}
    evaluator = evaluator_of(case, labels, network, inferer)
    plan = evaluator.prepare(all_coalitions(1), 3)
    assert plan.forwards.planned == plan.forwards.naive
    for number, (logits,) in evaluator.run(plan):
        expected = plain_logits(masked(case, labels, all_coalitions(1)[number]), network, **inferer)
        assert torch.equal(logits, expected)


def test_twins_keep_the_same_part_of_their_window(make_network, make_case, plain_logits):
    # windows of nothing but 0, cut at other places by the region: each runs for itself
    network, case = make_network("unet", in_channels=2), make_case(SHAPE, 2, channels=2, fill=0.0)
    labels, inferer = channel_labels((1, 1)), {"roi_size": ROI, "overlap": 0.5}
    plan = monai_window_plan(SlidingWindowInferer(**inferer), case.image)
    box = ((2, 1, 1), (16, 8, 7))
    evaluator = CoalitionEvaluator(network, plan, case.image, labels, case.fill, [box])
    prepared = evaluator.prepare(all_coalitions(1), 3)
    assert prepared.forwards.planned == prepared.forwards.naive - 4  # four of the sixteen places, one twin each
    for number, (logits,) in evaluator.run(prepared):
        whole = plain_logits(masked(case, labels, all_coalitions(1)[number]), network, **inferer)
        assert torch.equal(logits, whole[:, 2:17, 1:9, 1:8])


def test_one_label_volume_for_all_channels_is_the_same_as_a_copy_for_each(make_network, make_case):
    network, case = make_network("unet", in_channels=2), make_case(SHAPE, 5, channels=2)
    inferer = {"roi_size": ROI, "sw_batch_size": 2, "overlap": 0.5}
    one = evaluator_of(case, case.labels, network, inferer)
    each = evaluator_of(case, case.labels[None].expand(2, *SHAPE), network, inferer)
    rows = np.random.default_rng(0).random((6, 5)) < 0.5
    plans = [e.prepare(rows, 3) for e in (one, each)]
    assert plans[0].forwards == plans[1].forwards
    for (_, (a,)), (_, (b,)) in zip(one.run(plans[0]), each.run(plans[1]), strict=True):
        assert torch.equal(a, b)


def test_another_network_shares_windows_and_counts_alone(make_network, make_case, plain_logits):
    first, second = make_network("unet", in_channels=2), make_network("unet", in_channels=2, seed=1)
    case, labels = make_case(SHAPE, 2, channels=2), channel_labels((1, 2))
    inferer = {"roi_size": ROI, "overlap": 0.25}
    evaluator = evaluator_of(case, labels, first, inferer)
    other = evaluator.with_network(second)
    rows = all_coalitions(2)
    for network, own in ((first, evaluator), (second, other)):
        for number, (logits,) in own.run(own.prepare(rows, 3)):
            assert torch.equal(logits, plain_logits(masked(case, labels, rows[number]), network, **inferer))
    assert evaluator.n_forwards == other.n_forwards == evaluator.prepare(rows, 3).forwards.planned


@pytest.mark.parametrize("shape", [(2, *SHAPE), (1, *SHAPE), (*SHAPE, 3)], ids=str)
def test_labels_for_another_number_of_channels_are_refused(make_network, make_case, shape):
    case = make_case(SHAPE, 2, channels=3)
    with pytest.raises(ValueError, match="do not fit a plan"):
        evaluator_of(case, torch.ones(shape, dtype=torch.int64), make_network("conv", in_channels=3), {"roi_size": ROI})
