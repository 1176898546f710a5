# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Bits and passes: what is claimed, chosen and counted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from batchwise import MANY, STEP, Batchwise, by_place, by_size
from monai.inferers import SlidingWindowInferer

from monai_segshap.inferers import (
    BATCH_CHOICES,
    Calibration,
    CoalitionEvaluator,
    calibrate,
    check_batch_size,
    monai_window_plan,
)

ROI = (8, 8, 8)

# --- bits ---


@pytest.mark.parametrize("library", [1, 2, 4])
def test_a_network_with_the_same_bits_everywhere_is_seen_as_such(calibrated, library):
    found, _ = calibrated(Batchwise(), library=library)
    assert found.same_bits
    assert found.largest_difference == 0.0
    assert found.batch_sizes == {library: max(library, 2)}
    assert found.verified == ((1, 2) if library == 1 else (library,))


@pytest.mark.parametrize("choice", ["auto", "library"])
@pytest.mark.parametrize("library", [2, 3, 4])
def test_bits_that_depend_on_the_place_are_found_and_measured(calibrated, library, choice):
    found, _ = calibrated(Batchwise(by_place), library=library, n_windows=2 * library, choice=choice)
    assert not found.same_bits
    assert found.largest_difference == (library - 1) * STEP
    assert found.verified == ()
    assert found.batch_sizes == {library: library}


@pytest.mark.parametrize("added", [by_place, by_size, lambda place, size: STEP * (place == size - 1 > 0)])
def test_auto_leaves_batches_of_one_where_batches_of_two_have_other_bits(calibrated, added):
    found, _ = calibrated(Batchwise(added))
    assert found.batch_sizes == {1: 1}
    assert found.same_bits
    assert found.verified == (1,)


@pytest.mark.parametrize(("library", "chosen"), [(1, 2), (1, 5), (2, 1), (4, 3), (2, 8)])
def test_a_batch_size_given_is_taken_and_its_difference_measured(calibrated, library, chosen):
    found, _ = calibrated(Batchwise(by_size), library=library, choice=chosen)
    assert found.batch_sizes == {library: chosen}
    assert not found.same_bits
    assert found.largest_difference == abs(chosen - library) * STEP
    assert found.verified == (library,)
    kept, _ = calibrated(Batchwise(), library=library, choice=chosen)
    assert kept.same_bits
    assert kept.verified == tuple(sorted({library, chosen}))


def test_the_librarys_own_number_needs_no_other_trial(calibrated):
    network = Batchwise(by_size)
    found, _ = calibrated(network, library=4, choice=4)
    assert found.same_bits
    assert [len(batch) for batch in network.batches] == [4, 4]


@pytest.mark.parametrize(
    ("added", "place"),
    [
        (lambda place, size: STEP * (place == 0 and size == 2), (1, "auto")),
        (lambda place, size: STEP * (place == 1 and size == 4), (2, 4)),
        (lambda place, size: STEP * (place == 3 and size == 4), (2, 4)),
        (lambda place, size: STEP * (place == 2 and size == 4), (4, "auto")),
    ],
    ids=["first-of-two", "second-of-four", "last-of-four", "third-of-four"],
)
def test_a_single_place_with_other_bits_is_found(calibrated, added, place):
    library, choice = place
    found, _ = calibrated(Batchwise(added), library=library, choice=choice)
    used = found.batch_sizes[library]
    assert not found.same_bits or not any(added(p, used) for p in range(used))


@pytest.mark.parametrize(
    ("added", "choice", "sizes", "same"),
    [
        (None, "auto", {4: 4, 1: 4}, True),
        (None, "library", {4: 4, 1: 1}, True),
        (None, 3, {4: 3, 1: 3}, True),
        (by_size, "auto", {4: 4, 1: 1}, True),
        (by_size, "library", {4: 4, 1: 1}, True),
        (by_size, 4, {4: 4, 1: 4}, False),
        (by_place, "auto", {4: 4, 1: 1}, False),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_a_ragged_library_batch_is_merged_only_where_bits_allow(calibrated, added, choice, sizes, same):
    network = Batchwise(added) if added else Batchwise()
    found, evaluator = calibrated(network, n_windows=9, library=4, choice=choice)
    assert sorted(evaluator.library_sizes) == [1] + [4] * 8
    assert found.batch_sizes == sizes
    assert found.same_bits == same
    evaluator.use_batch_sizes(found.batch_sizes)
    assert evaluator.run_sizes.tolist() == [sizes[int(size)] for size in evaluator.library_sizes]


def test_fastest_merges_ragged_batches_whatever_the_bits_and_does_not_claim_them(calibrated, clocked):
    network = clocked(Batchwise(by_size), lambda size: float(size))
    found, _ = calibrated(network, n_windows=9, library=4, choice="fastest")
    assert found.batch_sizes == {4: 4, 1: 4}
    assert not found.same_bits


def test_values_that_are_no_numbers_do_not_disturb(calibrated):
    always = Batchwise(lambda place, size: math.nan)
    assert calibrated(always, library=2)[0].same_bits
    infinite = Batchwise(lambda place, size: -math.inf)
    assert calibrated(infinite, library=2)[0].same_bits
    for odd in (math.nan, math.inf):
        sometimes = Batchwise(lambda place, size, odd=odd: odd if place else 0.0)
        found, _ = calibrated(sometimes, library=2)
        assert not found.same_bits
        assert found.largest_difference == torch.finfo(torch.float64).max
        json.dumps(found.to_dict(), allow_nan=False)


def test_an_output_that_does_not_fit_is_refused(calibrated):
    with pytest.raises(ValueError, match=r"returned \(1, 2, 8, 8, 8\)"):
        calibrated(lambda windows: torch.cat([windows, windows], dim=1))


@pytest.mark.parametrize("kind", ["unet", "wide_unet", "segresnet", "dynunet", "centered"])
@pytest.mark.parametrize("library", [1, 2, 4])
def test_where_bits_are_claimed_every_window_has_them(make_network, make_case, plain_logits, kind, library):
    def centered(windows: torch.Tensor) -> torch.Tensor:
        moved = windows - windows.mean(dim=(2, 3, 4), keepdim=True)
        return torch.cat([moved, -moved, moved**2], dim=1)

    network, case = centered if kind == "centered" else make_network(kind), make_case((21, 13, 9), 7)
    inferer = {"roi_size": ROI, "sw_batch_size": library, "overlap": 0.5, "mode": "gaussian"}
    plan = monai_window_plan(SlidingWindowInferer(**inferer), case.image)
    box = ((0, 0, 0), (20, 12, 8))
    rows = np.random.default_rng(0).random((6, 7)) < 0.6
    for choice in ("auto", "library", 2, 3):
        evaluator = CoalitionEvaluator(network, plan, case.image, case.labels, case.fill, [box])
        found = calibrate(evaluator, evaluator.prepare(rows, 3), choice, MANY)
        evaluator.use_batch_sizes(found.batch_sizes)
        assert found.same_bits or isinstance(choice, int)
        for number, (logits,) in evaluator.run(evaluator.prepare(rows, 3)):
            expected = plain_logits(case.masked(rows[number]), network, **inferer)
            assert not found.same_bits or torch.equal(logits, expected)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


# --- passes ---


@pytest.mark.parametrize("choice", ["auto", "library", "fastest", 1, 3, 4])
@pytest.mark.parametrize(("n_windows", "library"), [(8, 1), (8, 2), (9, 4), (3, 8)])
@pytest.mark.parametrize("planned", [0, 300, MANY])
def test_passes_are_the_windows_that_the_network_saw(calibrated, choice, n_windows, library, planned):
    network = Batchwise()
    found, evaluator = calibrated(network, n_windows, library, choice=choice, planned=planned)
    assert found.passes == network.n_windows == evaluator.n_forwards > 0


def test_passes_of_the_exact_network_count_too(calibrated):
    fast, exact = Batchwise(by_place), Batchwise()
    found, _ = calibrated(fast, library=4, exact=exact, choice="library")
    assert exact.n_windows == 4
    assert found.passes == fast.n_windows + exact.n_windows


@pytest.mark.parametrize(("choice", "self_test"), [("auto", 2 * 4 + 2 * 1), ("library", 10), ("fastest", 8)])
def test_a_short_run_has_the_self_test_of_each_library_batch_only(calibrated, choice, self_test):
    network = Batchwise()
    found, _ = calibrated(network, n_windows=9, library=4, choice=choice, planned=20)
    assert found.passes == network.n_windows == self_test


@pytest.mark.parametrize(("planned", "sizes"), [(119, {1: 1}), (120, {1: 2})])
def test_trials_need_no_more_than_a_twentieth_of_the_planned_passes(calibrated, planned, sizes):
    found, _ = calibrated(Batchwise(), planned=planned)
    assert found.batch_sizes == sizes
    assert found.passes == (2 if planned == 119 else 6) <= max(0.05 * planned, 2)


def test_windows_of_the_calibration_are_windows_of_the_run(calibrated):
    network = Batchwise()
    _, evaluator = calibrated(network, n_windows=9, library=4)
    sent = {window.numpy().tobytes() for batch in network.batches for window in batch}
    network.batches.clear()
    rows = np.random.default_rng(0).random((12, evaluator.n_units)) < 0.5
    list(evaluator.run(evaluator.prepare(rows, 3)))
    assert sent < {window.numpy().tobytes() for batch in network.batches for window in batch}


def test_few_windows_are_sent_again_to_fill_a_batch(calibrated):
    network = Batchwise()
    found, _ = calibrated(network, n_windows=1, n_rows=1, choice=4)
    assert found.batch_sizes == {1: 4}
    assert {len(batch) for batch in network.batches} == {1, 4}
    assert len({window.numpy().tobytes() for batch in network.batches for window in batch}) == 1


# --- the record ---


@pytest.mark.parametrize("choice", [*BATCH_CHOICES, 1, 7])
def test_known_choices_pass(choice):
    assert check_batch_size(choice) is None


@pytest.mark.parametrize("choice", [0, -1, True, False, 2.0, "big", "", "2", None])
def test_other_choices_are_refused_with_those_allowed(calibrated, choice):
    network = Batchwise()
    with pytest.raises(ValueError, match="expected a positive number, or one of auto, library, fastest"):
        check_batch_size(choice)
    with pytest.raises(ValueError, match="batch_size"):
        calibrated(network, choice=choice)
    assert network.n_windows == 0


@pytest.mark.parametrize("choice", ["auto", "library", 3])
def test_a_calibration_comes_back_from_json(calibrated, choice):
    found, _ = calibrated(Batchwise(by_size), n_windows=9, library=4, choice=choice)
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert isinstance(found.peak_bytes, (int, type(None)))
