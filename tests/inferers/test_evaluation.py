# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The oracle is MONAI's plain inferer over the whole masked image, one coalition after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_segshap.inferers import CoalitionEvaluator, monai_window_plan
from monai_segshap.shapley import all_coalitions

BOX = ((2, 1, 1), (9, 6, 5))
ROI = (8, 8, 8)


def make_evaluator(
    case: Any, network: Any, boxes: Any = (BOX,), max_bytes: int = 2**30, **inferer: Any
) -> CoalitionEvaluator:
    plan = monai_window_plan(SlidingWindowInferer(**inferer), case.image)
    return CoalitionEvaluator(network, plan, case.image, case.labels, case.fill, boxes, max_bytes=max_bytes)


def random_rows(n_units: int, n_rows: int = 9, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).random((n_rows, n_units)) < 0.6
    rows[0], rows[1] = True, False
    return rows


def of_all_units(row: np.ndarray, visible: np.ndarray, rest: bool = True) -> np.ndarray:
    """A coalition of all units; what is not visible may be kept or removed, it must not matter."""
    found = np.full(len(visible), rest)
    found[visible] = row
    return found


def assert_same_bits(
    evaluator: CoalitionEvaluator, case: Any, boxes: Any, reference: Any, rows: np.ndarray | None = None
) -> None:
    """Every coalition's logits equal the reference inference of the masked image, in every box."""
    rows = random_rows(evaluator.n_units) if rows is None else rows
    seen = []
    for number, logits in evaluator.run(evaluator.prepare(rows, n_classes=3)):
        seen.append(number)
        expected = reference(case.masked(of_all_units(rows[number], evaluator.visible, bool(number % 2))))
        for found, (low, high) in zip(logits, boxes, strict=True):
            part = expected[(slice(None), *(slice(a, b + 1) for a, b in zip(low, high, strict=True)))]
            assert torch.equal(found, part)
    assert seen == list(range(len(rows)))


@pytest.mark.parametrize("kind", ["unet", "wide_unet", "segresnet", "dynunet"])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_logits_are_bit_identical_for_every_network_and_batch_size(
    make_network, make_case, plain_logits, kind, batch_size
):
    network, case = make_network(kind), make_case((21, 13, 9), 7)
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5, "mode": "gaussian"}
    evaluator = make_evaluator(case, network, **inferer)
    assert_same_bits(
        evaluator, case, [BOX], lambda image: plain_logits(image, network, **inferer), random_rows(evaluator.n_units, 6)
    )


@pytest.mark.parametrize("shape", [(21, 13, 9), (17, 8, 11), (11, 7, 6), (10, 8, 8)], ids=str)
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.625])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("kind", ["unet", "segresnet", "dynunet"])
def test_logits_are_bit_identical_for_every_geometry(make_network, make_case, plain_logits, shape, overlap, mode, kind):
    network, case = make_network(kind), make_case(shape, 6, seed=1)
    inferer = {"roi_size": ROI, "sw_batch_size": 3, "overlap": overlap, "mode": mode}
    assert_same_bits(
        make_evaluator(case, network, **inferer), case, [BOX], lambda image: plain_logits(image, network, **inferer)
    )


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_padding_of_a_small_image_is_bit_identical(make_network, make_case, plain_logits, mode):
    network, case = make_network("unet"), make_case((11, 7, 6), 5, seed=2)
    inferer = {"roi_size": ROI, "overlap": 0.5, "padding_mode": mode, "cval": -0.7 if mode == "constant" else 0.0}
    assert_same_bits(
        make_evaluator(case, network, **inferer), case, [BOX], lambda image: plain_logits(image, network, **inferer)
    )


@pytest.mark.parametrize("max_bytes", [1, 20_000, 2**30])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_memory_bound_changes_no_bit(make_network, make_case, plain_logits, max_bytes, batch_size):
    network, case = make_network("unet"), make_case((21, 13, 9), 6, seed=3)
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5, "mode": "gaussian"}
    evaluator = make_evaluator(case, network, max_bytes=max_bytes, **inferer)
    rows = random_rows(evaluator.n_units, 20)
    assert_same_bits(evaluator, case, [BOX], lambda image: plain_logits(image, network, **inferer), rows)


def test_several_regions_at_once_are_bit_identical(make_network, make_case, plain_logits):
    network, case = make_network("unet"), make_case((24, 13, 9), 8, seed=4)
    boxes = [BOX, ((20, 8, 0), (23, 12, 8)), ((5, 5, 5), (5, 5, 5)), ((0, 0, 0), (23, 12, 8))]
    inferer = {"roi_size": ROI, "sw_batch_size": 4, "overlap": 0.25, "mode": "gaussian"}
    evaluator = make_evaluator(case, network, boxes, **inferer)
    assert_same_bits(evaluator, case, boxes, lambda image: plain_logits(image, network, **inferer))


def test_several_channels_and_a_fill_that_varies_are_bit_identical(make_network, make_case, plain_logits):
    network, case = make_network("unet", in_channels=3), make_case((13, 9, 11), 6, channels=3, seed=5)
    case.fill.copy_(torch.roll(case.image, 1, dims=2))
    inferer = {"roi_size": ROI, "sw_batch_size": 2, "overlap": 0.5}
    assert_same_bits(
        make_evaluator(case, network, **inferer), case, [BOX], lambda image: plain_logits(image, network, **inferer)
    )


def test_double_precision_is_bit_identical(make_network, make_case, plain_logits):
    network, case = make_network("unet").double(), make_case((13, 9, 11), 5, seed=6)
    case = type(case)(case.image.double(), case.labels, case.fill.double())
    inferer = {"roi_size": ROI, "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
    assert_same_bits(
        make_evaluator(case, network, **inferer), case, [BOX], lambda image: plain_logits(image, network, **inferer)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cached_weight_map_of_the_inferer_is_used(make_network, make_case, plain_logits, dtype):
    network, case = make_network("conv").to(dtype), make_case((13, 9, 11), 5, seed=6)
    case = type(case)(case.image.to(dtype), case.labels, case.fill.to(dtype))
    inferer = {"roi_size": ROI, "overlap": 0.5, "mode": "gaussian", "cache_roi_weight_map": True}
    evaluator = make_evaluator(case, network, **inferer)
    assert_same_bits(evaluator, case, [BOX], lambda image: plain_logits(image, network, **inferer))


@pytest.mark.parametrize("sent", [torch.float32, torch.float16])
@pytest.mark.parametrize("returned", [torch.float32, torch.float16])
def test_half_precision_is_bit_identical(make_case, plain_logits, sent, returned):
    case = make_case((13, 9, 11), 5, seed=6)
    case = type(case)(case.image.to(sent), case.labels, case.fill.to(sent))
    inferer = {"roi_size": ROI, "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}

    def network(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([windows, 1 - windows, windows**2], dim=1).to(returned) / 3

    evaluator = make_evaluator(case, network, **inferer)
    assert_same_bits(evaluator, case, [BOX], lambda image: plain_logits(image, network, **inferer))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_windows_run_in_batches_of_the_library_size(make_network, make_case, library_windows, counting, batch_size):
    network, case = counting(make_network("conv")), make_case((21, 13, 9), 6)
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5}
    evaluator = make_evaluator(case, network, [((0, 0, 0), (20, 12, 8))], **inferer)
    rows = random_rows(evaluator.n_units)
    list(evaluator.run(evaluator.prepare(rows, 3)))
    allowed: dict[bytes, set[int]] = {}
    for row in rows:
        for window in library_windows(case.masked(of_all_units(row, evaluator.visible)), **inferer):
            allowed.setdefault(window.content, set()).add(window.batch_size)
    assert all(len(batch) in allowed[content] for batch in network.batches for content in batch)


@pytest.mark.parametrize("shape", [(21, 13, 9), (11, 7, 6)], ids=str)
@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_passes_are_those_planned_and_those_counted_by_brute_force(
    make_network, make_case, library_windows, counting, shape, batch_size
):
    network, case = counting(make_network("conv")), make_case(shape, 7, seed=7)
    case.image[:, case.labels == 3] = case.fill[:, case.labels == 3]
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5}
    evaluator = make_evaluator(case, network, **inferer)
    rows = random_rows(evaluator.n_units, 40)
    plan = evaluator.prepare(rows, 3)
    assert network.n_windows == 0
    reported: list[int] = []
    list(evaluator.run(plan, reported.append))
    distinct = {
        (window.start, window.content)
        for row in rows
        for window in library_windows(case.masked(of_all_units(row, evaluator.visible)), **inferer)
        if window.touches(BOX, shape, ROI)
    }
    assert len(plan.jobs.windows) == len(distinct)
    assert {content for _, content in distinct} == {content for batch in network.batches for content in batch}
    fillers = sum(len(batch) - len(jobs) for batch, jobs in zip(network.batches, plan.jobs.batches, strict=True))
    assert fillers < len(network.batches) * batch_size / 2 if batch_size > 1 else fillers == 0
    assert len(distinct) + fillers == network.n_windows
    assert network.n_windows == plan.forwards.planned == plan.jobs.n_forwards == evaluator.n_forwards == sum(reported)
    assert evaluator.n_forwards == network.n_windows
    assert plan.forwards.run == 0


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_naive_and_published_counts_are_those_of_direct_loops(make_network, make_case, library_windows, overlap):
    case = make_case((29, 13, 9), 9, seed=8)
    inferer = {"roi_size": ROI, "overlap": overlap}
    evaluator = make_evaluator(case, make_network("conv"), **inferer)
    rows = random_rows(evaluator.n_units, 12)
    # paint removed voxels with a value that occurs nowhere else: a window sees a removal if it holds that value
    ink = type(case)(case.image, case.labels, torch.full_like(case.image, 1e6))
    before = library_windows(case.image, **inferer)

    def touched(row: np.ndarray) -> np.ndarray:
        after = library_windows(ink.masked(of_all_units(row, evaluator.visible)), **inferer)
        return np.array([a.content != b.content for a, b in zip(after, before, strict=True)])

    active = np.array([window.touches(BOX, (29, 13, 9), ROI) for window in before])
    field = touched(np.zeros(evaluator.n_units, bool)) | active
    counts = evaluator.prepare(rows, 3).forwards
    assert counts.naive == len(rows) * field.sum()
    assert counts.published_cache == field.sum() + sum(touched(row).sum() for row in rows)
    assert counts.planned < counts.published_cache < counts.naive


def test_running_twice_counts_twice(make_network, make_case):
    case = make_case((13, 9, 9), 4)
    evaluator = make_evaluator(case, make_network("conv"), roi_size=ROI)
    plan = evaluator.prepare(random_rows(evaluator.n_units), 3)
    first = [logits[0].clone() for _, logits in evaluator.run(plan)]
    second = [logits[0].clone() for _, logits in evaluator.run(plan)]
    assert evaluator.n_forwards == 2 * plan.forwards.planned
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_yielded_logits_do_not_share_memory(make_network, make_case):
    case = make_case((13, 9, 9), 4)
    evaluator = make_evaluator(case, make_network("conv"), roi_size=ROI, overlap=0.5)
    rows = np.repeat(random_rows(evaluator.n_units, 4), 3, axis=0)
    plan = evaluator.prepare(rows, 3)
    expected = [logits[0].clone() for _, logits in evaluator.run(plan)]
    for (number, logits), wanted in zip(evaluator.run(plan), expected, strict=True):
        assert torch.equal(logits[0], wanted), number
        logits[0].fill_(torch.nan)


@pytest.mark.parametrize("max_bytes", [1, 20_000])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_logits_held_during_the_run_stay_below_the_planned_peak(make_network, make_case, max_bytes, batch_size):
    case = make_case((21, 13, 9), 6, seed=3)
    evaluator = make_evaluator(
        case, make_network("conv"), max_bytes=max_bytes, roi_size=ROI, sw_batch_size=batch_size, overlap=0.5
    )
    plan = evaluator.prepare(random_rows(evaluator.n_units, 60), 3)
    held: list[int] = []
    store: Any = evaluator._run_batch

    def spy(evaluation: Any, batch: Any, size: Any, entries: dict[int, list[torch.Tensor]]) -> None:
        store(evaluation, batch, size, entries)
        held.append(sum(t.numel() * t.element_size() for entry in entries.values() for t in entry))

    evaluator._run_batch = spy
    list(evaluator.run(plan))
    assert max(held) <= plan.jobs.peak_bytes


def test_visible_units_are_those_that_change_the_logits_of_the_region(make_network, make_case, plain_logits, cut):
    case = make_case((29, 13, 9), 12, seed=9)
    case.image[:, case.labels == 4] = case.fill[:, case.labels == 4]
    network, inferer = make_network("conv"), {"roi_size": ROI, "overlap": 0.5}
    evaluator = make_evaluator(case, network, **inferer)
    full = cut(plain_logits(case.image, network, **inferer), BOX)
    changes = [
        not torch.equal(full, cut(plain_logits(case.masked(np.arange(12) != unit), network, **inferer), BOX))
        for unit in range(12)
    ]
    assert evaluator.visible.tolist() == changes
    assert evaluator.n_units == sum(changes) < 12
    assert not evaluator.visible[3]


def test_a_unit_outside_every_active_window_is_invisible(make_network, make_case):
    case = make_case((32, 8, 8), 2)
    case.labels.fill_(0)
    case.labels[:8], case.labels[24:] = 1, 2
    evaluator = make_evaluator(case, make_network("conv"), [((0, 0, 0), (7, 7, 7))], roi_size=ROI, overlap=0)
    assert evaluator.visible.tolist() == [True, False]


def test_a_unit_that_equals_its_replacement_is_invisible(make_network, make_case):
    case = make_case((8, 8, 8), 2)
    case.labels.fill_(1)
    case.labels[4:] = 2
    case.image[:, 4:] = case.fill[:, 4:]
    evaluator = make_evaluator(case, make_network("conv"), [((0, 0, 0), (7, 7, 7))], roi_size=ROI)
    assert evaluator.visible.tolist() == [True, False]


def test_network_is_opened_in_eval_mode_and_put_back(make_network, make_case, plain_logits):
    network, case = torch.nn.Sequential(torch.nn.Dropout(0.5), make_network("conv")), make_case((13, 9, 9), 4)
    network.eval()
    reference = [plain_logits(case.masked(row), network, roi_size=ROI) for row in all_coalitions(4)]
    network.train()
    evaluator = make_evaluator(case, network, roi_size=ROI)
    for number, logits in evaluator.run(evaluator.prepare(all_coalitions(4), 3)):
        assert torch.equal(logits[0], reference[number][:, 2:10, 1:7, 1:6])
        assert network.training
        assert not logits[0].requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_a_submodule_in_another_mode_keeps_it(make_network, make_case, training):
    network, case = torch.nn.Sequential(torch.nn.Dropout(0.5), make_network("conv")), make_case((13, 9, 9), 4)
    network.train(training)
    network[0].train(not training)  # a frozen layer of a network in training, or dropout kept on for sampling
    evaluator = make_evaluator(case, network, roi_size=ROI)
    list(evaluator.run(evaluator.prepare(random_rows(4), 3)))
    assert (network.training, network[0].training) == (training, not training)


def test_any_callable_is_a_network(make_case, plain_logits):
    case = make_case((13, 9, 9), 4)

    def network(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([windows, 1 - windows, windows**2], dim=1)

    evaluator = make_evaluator(case, network, roi_size=ROI)
    assert_same_bits(evaluator, case, [BOX], lambda image: plain_logits(image, network, roi_size=ROI))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_network_that_normalizes_its_own_input_is_bit_identical(make_case, plain_logits, batch_size):
    # a sum rounds differently for a strided view, which is what the library sends for batch size 1
    case, inferer = make_case((13, 9, 9), 4), {"roi_size": ROI, "sw_batch_size": batch_size}

    def network(windows: torch.Tensor) -> torch.Tensor:
        centered = windows - windows.mean(dim=(2, 3, 4), keepdim=True)
        return torch.cat([centered, -centered, centered**2], dim=1)

    evaluator = make_evaluator(case, network, **inferer)
    assert_same_bits(evaluator, case, [BOX], lambda image: plain_logits(image, network, **inferer))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda w: (w, w), "returned tuple"),
        (lambda w: w[..., ::2, ::2, ::2], r"returned \(1, 1, 4, 4, 4\).*full-resolution"),
        (lambda w: w[0], r"returned \(1, 8, 8, 8\)"),
    ],
    ids=["tuple", "half-resolution", "no-batch"],
)
def test_network_output_that_is_no_logits_is_refused(make_case, answer, message):
    evaluator = make_evaluator(make_case((13, 9, 9), 4), answer, roi_size=ROI)
    with pytest.raises(ValueError, match=message):
        list(evaluator.run(evaluator.prepare(random_rows(4), 3)))


@pytest.mark.parametrize("box", [((0, 0, 0), (13, 8, 8)), ((-1, 0, 0), (3, 3, 3)), ((5, 5, 5), (4, 6, 6))], ids=str)
def test_a_box_outside_the_image_is_refused(make_network, make_case, box):
    with pytest.raises(ValueError, match="does not lie inside the image"):
        make_evaluator(make_case((13, 9, 9), 4), make_network("conv"), [box], roi_size=ROI)


@pytest.mark.parametrize("shape", [(13, 9, 8), (9, 13, 9)])
def test_labels_of_another_shape_are_refused(make_network, make_case, shape):
    case = make_case((13, 9, 9), 4)
    case = type(case)(case.image, torch.ones(shape, dtype=torch.int64), case.fill)
    with pytest.raises(ValueError, match="do not fit a plan"):
        make_evaluator(case, make_network("conv"), roi_size=ROI)


def test_a_fill_of_another_shape_is_refused(make_network, make_case):
    case = make_case((13, 9, 9), 4)
    with pytest.raises(ValueError, match="the fill has shape"):
        make_evaluator(type(case)(case.image, case.labels, case.fill[:, :3]), make_network("conv"), roi_size=ROI)


@pytest.mark.parametrize("rows", [np.ones((3, 5), bool), np.ones(4, bool)], ids=["five-units", "one-axis"])
def test_coalitions_of_another_length_are_refused(make_network, make_case, rows):
    evaluator = make_evaluator(make_case((13, 9, 9), 4), make_network("conv"), roi_size=ROI)
    with pytest.raises(ValueError, match=r"expected \(K, 4\)"):
        evaluator.prepare(rows, 3)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["wide_unet", "segresnet"])
@pytest.mark.parametrize(
    "order", [(3, 0, 1, 2), (0, 3, 2, 1), (2, 3, 1, 0)], ids=["channels-last", "reversed", "mixed"]
)
def test_memory_layout_of_the_image_changes_no_bit(make_network, make_case, plain_logits, order, kind, batch_size):
    # an image read from a (H, W, D, C) file and moved to channel-first is a view with channels last in memory
    network, case = make_network(kind, in_channels=2), make_case((13, 9, 11), 5, channels=2)
    stored = case.image.permute(*np.argsort(order).tolist()).contiguous().permute(*order)
    assert torch.equal(stored, case.image)
    assert not stored.is_contiguous()
    case = type(case)(stored, case.labels, case.fill)
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5}
    evaluator = make_evaluator(case, network, **inferer)
    assert_same_bits(evaluator, case, [BOX], lambda image: plain_logits(image, network, **inferer))
