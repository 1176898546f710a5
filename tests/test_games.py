# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_segshap.games import SCORES, RegionGame, score_warnings
from monai_segshap.heads import SIGNALS

BOX = (4, 5, 3)
TARGET = 2


def case(seed: int, n_classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random logits with all units kept and under a coalition, region mask, and P_0."""
    rng = np.random.default_rng(seed)
    full = torch.as_tensor(rng.normal(size=(n_classes, *BOX)), dtype=torch.float32)
    full[TARGET] += 0.8
    perturbed = full + torch.as_tensor(rng.normal(size=full.shape), dtype=torch.float32)
    mask = torch.as_tensor(rng.random(BOX) < 0.7)
    return full, perturbed, mask, full.argmax(dim=0) == TARGET


def voxel_signal(z: list[float], signal: str) -> float:
    if signal == "logit":
        return z[TARGET]
    if signal == "probability":
        return math.exp(z[TARGET]) / sum(math.exp(x) for x in z)
    return z[TARGET] - max(x for c, x in enumerate(z) if c != TARGET)


def by_loop(full, perturbed, mask, signal: str = "logit", eps: float = 1e-8) -> dict[str, float]:
    """Equations 3 to 6 of paper 000, voxel by voxel."""
    size = tp = fp = soft = output = 0.0
    overlap = n_perturbed = n_full = 0
    for x in np.ndindex(BOX):
        r = float(mask[x])
        z_full, z = full[(slice(None), *x)].tolist(), perturbed[(slice(None), *x)].tolist()
        p_full = int(max(range(len(z)), key=z_full.__getitem__) == TARGET)
        p = int(max(range(len(z)), key=z.__getitem__) == TARGET)
        value = voxel_signal(z, signal)
        size += r
        tp += r * (p == 1 and p_full == 1) * value
        fp -= r * (p == 1 and p_full == 0) * value
        soft += r * p * (2 * p_full - 1) * value
        output += r * p_full * value
        overlap += int(r) * p * p_full
        n_perturbed += int(r) * p
        n_full += int(r) * p_full
    return {
        "tp": tp / size,
        "fp": fp / size,
        "dice": 2 * overlap / (n_perturbed + n_full + eps),
        "soft_dice": soft / size,
        "class_output": output / size,
    }


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_equations_voxel_by_voxel(signal, seed):
    full, perturbed, mask, reference = case(seed)
    expected = by_loop(full, perturbed, mask, signal)
    found = RegionGame(mask, reference, TARGET, tuple(SCORES), signal=signal)(perturbed)
    assert found.dtype == np.float64
    assert found == pytest.approx([expected[name] for name in SCORES], abs=1e-6)
    assert 0 < expected["dice"] < 1
    assert expected["fp"] != 0


@pytest.mark.parametrize("order", [("fp",), ("dice", "tp"), ("soft_dice", "fp", "tp", "dice")])
def test_scores_come_in_the_order_asked_for(order):
    full, perturbed, mask, reference = case(7)
    expected = by_loop(full, perturbed, mask)
    found = RegionGame(mask, reference, TARGET, scores=order)(perturbed)
    assert found == pytest.approx([expected[name] for name in order], abs=1e-6)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("seed", range(5))
def test_soft_dice_is_tp_plus_fp_exactly(signal, seed):
    _, perturbed, mask, reference = case(seed)
    tp, fp, _, soft = RegionGame(mask, reference, TARGET, signal=signal)(perturbed)
    assert soft == tp + fp


@pytest.mark.parametrize("signal", SIGNALS)
def test_all_units_kept_has_no_false_positive_and_full_dice(signal):
    full, _, mask, reference = case(1)
    tp, fp, dice, soft = RegionGame(mask, reference, TARGET, signal=signal)(full)
    assert fp == 0.0
    assert math.copysign(1.0, fp) == 1.0
    assert soft == tp
    assert dice == pytest.approx(1.0, abs=1e-8)


def test_a_prediction_that_vanishes_scores_zero():
    full, _, mask, reference = case(2)
    gone = full.clone()
    gone[TARGET] = -50.0
    assert RegionGame(mask, reference, TARGET)(gone).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_dice_of_two_empty_predictions_is_zero():
    logits = torch.zeros(3, *BOX)
    logits[0] = 1.0
    mask = torch.ones(BOX, dtype=torch.bool)
    assert RegionGame(mask, torch.zeros(BOX, dtype=torch.bool), TARGET, scores=("dice",))(logits).tolist() == [0.0]


def test_voxels_outside_the_region_do_not_count():
    _, perturbed, mask, reference = case(3)
    game = RegionGame(mask, reference, TARGET)
    changed = torch.where(mask, perturbed, torch.randn(perturbed.shape, generator=torch.Generator().manual_seed(0)) * 9)
    np.testing.assert_array_equal(game(perturbed), game(changed))
    np.testing.assert_array_equal(game(perturbed), RegionGame(mask, reference & mask, TARGET)(perturbed))


def test_negative_winning_logits_enter_with_their_sign():
    _, perturbed, mask, reference = case(4)
    low = perturbed - 30.0
    tp, fp, dice, _ = RegionGame(mask, reference, TARGET)(low)
    expected = by_loop(low, low, mask)
    assert tp < 0 < fp
    assert dice == RegionGame(mask, reference, TARGET)(perturbed)[2]
    assert expected["tp"] + 0.0 == pytest.approx(tp - fp, rel=1e-5)


@pytest.mark.parametrize("signal", ["probability", "margin"])
def test_probability_and_margin_do_not_depend_on_a_common_offset(signal):
    _, perturbed, mask, reference = case(5)
    game = RegionGame(mask, reference, TARGET, signal=signal)
    np.testing.assert_allclose(game(perturbed), game(perturbed - 30.0), atol=1e-5)
    tp, fp, _, _ = game(perturbed - 30.0)
    assert tp > 0 > fp


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_double(dtype):
    logits = torch.zeros(2, 40, 40, 40, dtype=dtype)
    logits[1] = 12.0
    mask = torch.ones(40, 40, 40, dtype=torch.bool)
    assert RegionGame(mask, mask, 1, scores=("tp",))(logits).tolist() == [12.0]


def test_logits_are_left_alone():
    _, perturbed, mask, reference = case(6)
    before = perturbed.clone()
    RegionGame(mask, reference, TARGET, signal="margin")(perturbed)
    assert torch.equal(perturbed, before)


MASK = torch.ones(BOX, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": ("tp", "iou")}, r"unknown scores \['iou'\]; expected some of tp, fp, dice, soft_dice"),
        ({"scores": ()}, "expected some of tp, fp"),
        ({"scores": ("tp", "tp")}, r"scores \['tp', 'tp'\] repeat"),
        ({"signal": "energy"}, "unknown signal 'energy'; expected one of logit, probability, margin"),
        ({"reference": MASK[1:]}, r"mask \(4, 5, 3\) and reference \(3, 5, 3\) differ"),
        ({"mask": ~MASK}, "the region holds no voxel"),
    ],
)
def test_refuses_games_without_meaning(arguments, message):
    with pytest.raises(ValueError, match=message):
        RegionGame(**{"mask": MASK, "reference": MASK, "target": 1, **arguments})


def test_warns_when_fp_can_not_vary():
    mask = np.zeros(BOX, bool)
    mask[1:3] = True
    found = score_warnings(mask, mask, list(SCORES), "spleen")
    assert len(found) == 1
    assert "score 'fp' is 0 for every coalition: the whole region is predicted as spleen" in found[0]


def test_warns_when_tp_and_dice_can_not_vary():
    mask = np.zeros(BOX, bool)
    mask[1:3] = True
    found = score_warnings(mask, ~mask, list(SCORES), "spleen")
    assert len(found) == 1
    assert "scores 'tp', 'dice', 'class_output' are 0 for every coalition" in found[0]


def test_warns_only_of_scores_that_are_asked_for():
    mask = np.ones(BOX, bool)
    assert score_warnings(mask, mask, ["tp", "dice"], "spleen") == []
    assert score_warnings(mask, ~mask, ["fp", "soft_dice"], "spleen") == []


def test_no_warning_where_every_score_can_vary():
    reference = np.zeros(BOX, bool)
    reference[0] = True
    assert score_warnings(np.ones(BOX, bool), reference, list(SCORES), "spleen") == []
