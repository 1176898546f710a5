# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A transformer with shifted windows of its own; the oracle is MONAI's plain inferer over the masked image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SwinUNETR

from monai_segshap.inferers import CoalitionEvaluator, calibrate, monai_window_plan

BOX = ((14, 6, 6), (30, 20, 20))
ROI = (32, 32, 32)


def swin_unetr(norm: Any) -> SwinUNETR:
    torch.manual_seed(0)
    return SwinUNETR(1, 3, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), norm_name=norm).eval()


@pytest.fixture(scope="module")
def swin() -> SwinUNETR:
    """With group norm: a window of 32 voxels leaves a single one at the bottom, which instance norm refuses."""
    return swin_unetr(("group", {"num_groups": 2}))


def make_evaluator(case: Any, network: Any, box: Any = BOX, **inferer: Any) -> CoalitionEvaluator:
    plan = monai_window_plan(SlidingWindowInferer(**inferer), case.image)
    return CoalitionEvaluator(network, plan, case.image, case.labels, case.fill, [box])


def two_rows(n_units: int) -> np.ndarray:
    """All units, and every third one."""
    return np.array([[True] * n_units, [unit % 3 == 0 for unit in range(n_units)]])


@pytest.fixture
def assert_same_bits(plain_logits: Any, cut: Any) -> Any:
    def compare(evaluator: CoalitionEvaluator, case: Any, network: Any, box: Any = BOX, **inferer: Any) -> None:
        assert evaluator.visible.all()
        rows = two_rows(case.n_units)
        seen = 0
        for number, (logits,) in evaluator.run(evaluator.prepare(rows, 3)):
            expected = cut(plain_logits(case.masked(rows[number]), network, **inferer), box)
            assert torch.equal(logits, expected), number
            seen += 1
        assert seen == len(rows)

    return compare


@pytest.mark.parametrize(("overlap", "n_windows"), [(0.25, 2), (0.5, 3), (0.625, 3)])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_swin_unetr_is_bit_identical(swin, make_case, assert_same_bits, overlap, n_windows, mode, batch_size):
    case = make_case((56, 32, 32), 4)
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": overlap, "mode": mode}
    evaluator = make_evaluator(case, swin, **inferer)
    assert evaluator.plan.n_windows == len(evaluator.library_sizes) == n_windows
    assert_same_bits(evaluator, case, swin, **inferer)


@pytest.mark.parametrize("shape", [(24, 30, 32), (40, 20, 31)], ids=str)
@pytest.mark.parametrize(("mode", "batch_size"), [("constant", 1), ("gaussian", 2)])
def test_swin_unetr_is_bit_identical_for_small_images(swin, make_case, assert_same_bits, shape, mode, batch_size):
    case, box = make_case(shape, 3), ((9, 6, 6), (22, 19, 20))
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.25, "mode": mode}
    assert_same_bits(make_evaluator(case, swin, box, **inferer), case, swin, box, **inferer)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_swin_unetr_with_instance_norm_is_bit_identical(make_case, assert_same_bits, batch_size):
    network, case = swin_unetr("instance"), make_case((96, 32, 32), 4)
    inferer = {"roi_size": (64, 32, 32), "sw_batch_size": batch_size, "overlap": 0.5, "mode": "gaussian"}
    box = ((28, 6, 6), (50, 20, 20))
    assert_same_bits(make_evaluator(case, network, box, **inferer), case, network, box, **inferer)


@pytest.mark.parametrize("library", [1, 2])
def test_a_calibrated_swin_unetr_is_bit_identical(swin, make_case, assert_same_bits, library):
    case = make_case((56, 32, 32), 4)
    inferer = {"roi_size": ROI, "sw_batch_size": library, "overlap": 0.5, "mode": "gaussian"}
    evaluator = make_evaluator(case, swin, **inferer)
    found = calibrate(evaluator, evaluator.prepare(two_rows(4), 3), planned=10**6)
    assert found.same_bits
    assert found.batch_sizes.keys() == ({1} if library == 1 else {1, 2})
    evaluator.use_batch_sizes(found.batch_sizes)
    assert_same_bits(evaluator, case, swin, **inferer)


def test_swin_unetr_rounds_by_batch_size_and_the_calibration_sees_it(swin, make_case, plain_logits, cut):
    # with torch 2.13 on an x86 CPU a window alone differs from the same window in a batch of two
    case, inferer = make_case((56, 32, 32), 4), {"roi_size": ROI, "overlap": 0.25}
    window = case.image[None, :, :32]
    with torch.no_grad():
        alone, pair = swin(window)[0], swin(torch.cat([window, window]))
    differs = not torch.equal(alone, pair[0])
    evaluator = make_evaluator(case, swin, **inferer)
    plan = evaluator.prepare(two_rows(4), 3)
    auto, pairs = (calibrate(evaluator, plan, choice, planned=10**6) for choice in ("auto", 2))
    assert auto.same_bits
    assert auto.batch_sizes == {1: 1 if differs else 2}
    assert pairs.same_bits == (not differs) == (pairs.largest_difference == 0.0)
    evaluator.use_batch_sizes(pairs.batch_sizes)
    for number, (logits,) in evaluator.run(evaluator.prepare(two_rows(4), 3)):
        expected = cut(plain_logits(case.masked(two_rows(4)[number]), swin, **inferer), BOX)
        assert torch.equal(logits, expected) or differs
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
