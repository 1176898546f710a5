# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Choices by time and by memory, and fast modes; only the network moves the clock."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchwise import STEP, Batchwise, by_size

from monai_segshap.inferers import passes as passes_module
from monai_segshap.numerics import NumericMode

pytestmark = pytest.mark.usefixtures("quick_collection")

# --- the clock ---


@pytest.mark.parametrize(
    ("cost", "chosen"),
    [
        (lambda size: 1.0, 8),
        (lambda size: float(size), 1),
        (lambda size: {1: 1.0, 2: 1.2, 4: 2.4}.get(size, 0.0), 2),
        (lambda size: {1: 1.0, 2: 1.92}.get(size, 0.0), 1),
        (lambda size: {1: 1.0, 2: 1.88, 4: 3.9}.get(size, 0.0), 2),
    ],
    ids=["constant", "linear", "two", "saves-4-percent", "saves-6-percent"],
)
def test_fastest_takes_the_size_with_the_least_time_for_a_window(calibrated, clocked, cost, chosen):
    found, _ = calibrated(clocked(Batchwise(by_size), cost), choice="fastest")
    assert found.batch_sizes == {1: chosen}
    assert found.seconds_per_window == pytest.approx(cost(chosen) / chosen)
    assert found.largest_difference == (chosen - 1) * STEP
    assert found.same_bits == (chosen == 1)


def test_fastest_too_keeps_to_its_share_of_the_passes(calibrated, clocked):
    # a candidate runs until windows with known logits have stood at every place: as many batches as it has places
    for allowed, chosen, passes in ((22, 4, 2 + 4 + 16), (21, 2, 2 + 4), (86, 8, 2 + 4 + 16 + 64)):
        network = clocked(Batchwise(), lambda size: 1.0)
        found, _ = calibrated(network, choice="fastest", planned=20 * allowed)
        assert found.batch_sizes == {1: chosen}
        assert found.passes == passes


def test_auto_on_the_cpu_does_not_look_at_the_clock(calibrated, monkeypatch):
    for added, sizes in ((None, {1: 2}), (by_size, {1: 1})):
        for seed in range(4):
            ticks = np.random.default_rng(seed).normal(size=1000).tolist()
            monkeypatch.setattr(passes_module, "time", SimpleNamespace(perf_counter=ticks.pop))
            found, _ = calibrated(Batchwise(added) if added else Batchwise())
            assert found.batch_sizes == sizes
            assert found.passes == 6


@pytest.mark.parametrize(
    "cost", [lambda size: 1.0, lambda size: float(size) ** 2], ids=["larger-saves", "larger-loses"]
)
@pytest.mark.parametrize("library", [1, 2, 4])
def test_auto_on_the_cpu_enlarges_batches_of_one_only(calibrated, clocked, library, cost):
    found, _ = calibrated(clocked(Batchwise(), cost), library=library)
    assert found.batch_sizes == {library: max(library, 2)}


@pytest.mark.parametrize(("cost", "hint"), [(lambda size: 1.0, True), (lambda size: 0.9 * size, False)])
def test_a_large_saving_that_would_change_bits_is_mentioned(calibrated, clocked, cost, hint):
    found, _ = calibrated(clocked(Batchwise(by_size), cost))
    assert found.batch_sizes == {1: 1}
    assert ("batches of 2 would save 50%" in found.note and "batch_size='fastest'" in found.note) == hint
    assert bool(found.note) == hint


# --- fast modes ---


def test_difference_of_a_fast_mode_is_the_true_largest_one(calibrated, make_network):
    exact = make_network("conv")
    fast = NumericMode.parse("bf16").apply(exact, torch.device("cpu"))
    seen: list[torch.Tensor] = []
    fast.register_forward_hook(lambda module, inputs, logits: seen.append(inputs[0].clone()))
    found, _ = calibrated(fast, n_windows=4, library=4, n_rows=1, exact=exact, choice="library")
    contents = {window.numpy().tobytes(): window for batch in seen for window in batch}
    assert len(contents) == 4
    batch = torch.stack(list(contents.values()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = exact(batch).float()
    with torch.no_grad():
        largest = float((rounded - exact(batch)).abs().max())
    assert found.largest_difference == pytest.approx(largest, rel=1e-3)
    assert largest > 1e-4
    assert not found.same_bits


def test_a_fast_mode_that_equals_the_exact_one_still_claims_no_bits(calibrated):
    found, _ = calibrated(Batchwise(), library=2, exact=Batchwise())
    assert found.largest_difference == 0.0
    assert not found.same_bits


def test_fastest_in_a_fast_mode_takes_the_fastest_size(calibrated, clocked):
    fast = clocked(Batchwise(by_size), lambda size: 1.0)
    found, _ = calibrated(fast, exact=Batchwise(), choice="fastest")
    assert found.batch_sizes == {1: 8}
    assert found.largest_difference == 8 * STEP


@pytest.mark.parametrize("cost", [lambda size: 1.0, lambda size: float(size) ** 2], ids=["saves", "loses"])
def test_auto_in_a_fast_mode_on_the_cpu_does_not_look_at_the_clock(calibrated, clocked, cost):
    found, _ = calibrated(clocked(Batchwise(by_size), cost), exact=Batchwise())
    assert found.batch_sizes == {1: 2}
    assert found.largest_difference == 2 * STEP


# --- memory ---


def test_a_candidate_that_does_not_fit_ends_the_search(calibrated, clocked, limited):
    network = limited(Batchwise(), 2)
    found, evaluator = calibrated(clocked(network, lambda size: 1.0), choice="fastest")
    assert network.failed == [4]
    assert found.batch_sizes == {1: 2}
    assert found.same_bits
    assert evaluator.passes.lowered_to is None
    assert found.passes == network.n_windows


@pytest.mark.parametrize("choice", ["auto", "library", "fastest"])
def test_a_library_batch_that_does_not_fit_runs_in_parts_and_claims_no_bits(calibrated, limited, choice):
    network = limited(Batchwise(), 2)
    found, evaluator = calibrated(network, library=4, choice=choice)
    assert found.batch_sizes == {4: 4}
    assert not found.same_bits
    assert evaluator.passes.lowered_to == 2
    assert found.passes == network.n_windows


def test_a_batch_size_given_that_does_not_fit_runs_in_parts(calibrated, limited):
    network = limited(Batchwise(), 3)
    found, evaluator = calibrated(network, library=2, choice=6)
    assert found.batch_sizes == {2: 6}
    assert not found.same_bits
    assert (evaluator.passes.lowered_to, network.failed) == (3, [6])


def test_a_window_that_does_not_fit_at_all_is_an_error(calibrated, limited):
    with pytest.raises(MemoryError, match="for 1 windows"):
        calibrated(limited(Batchwise(), 0), library=4)


@pytest.mark.parametrize("library", [2, 4])
def test_a_verified_size_has_the_bits_of_every_library_batch(calibrated, library):
    # the ragged batch of one has its own bits; in batches of one the other windows have not theirs
    found, _ = calibrated(Batchwise(by_size), n_windows=2 * library + 1, library=library)
    assert found.same_bits
    assert found.batch_sizes == {library: library, 1: 1}
    assert 1 not in found.verified
