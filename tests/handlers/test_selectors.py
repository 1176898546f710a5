# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Selection of cases, on masks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_segshap.handlers import DiceBelow, HasFalsePositive
from monai_segshap.heads import OutputHeads

SHAPE = (6, 6, 6)


def case(predicted: list[tuple[int, int, int]], true: list[tuple[int, int, int]], one_hot=False, classes=3) -> dict:
    """Logits that predict class 1 in some voxels, and a label that has it in others."""
    logits = torch.zeros(classes, *SHAPE)
    logits[0] = 0.5
    label = torch.zeros(1, *SHAPE)
    for voxel in predicted:
        logits[(1, *voxel)] = 2.0
    for voxel in true:
        label[(0, *voxel)] = 1.0
    if one_hot:
        label = torch.cat([1 - label, label, torch.zeros_like(label)])
    return {"pred": logits, "label": label}


A, B, C, FAR = (1, 1, 1), (1, 1, 2), (2, 2, 3), (5, 5, 5)


@pytest.mark.parametrize("one_hot", [False, True])
def test_dice_against_the_threshold(one_hot):
    half = case([A, B], [A, C], one_hot)  # Dice 2 * 1 / 4
    assert DiceBelow(target=1, threshold=0.51)(half)
    assert not DiceBelow(target=1, threshold=0.5)(half)
    assert DiceBelow(target=1)(case([], [A], one_hot))  # missed: Dice 0
    assert not DiceBelow(target=1)(case([], [], one_hot))  # in neither: no Dice
    assert not DiceBelow(target=1)(case([A], [A], one_hot))


@pytest.mark.parametrize("one_hot", [False, True])
def test_false_positive_components(one_hot):
    found = HasFalsePositive(target=1)
    assert not found(case([A, B, C], [A], one_hot))  # diagonal neighbors are one component, which touches the label
    assert found(case([A, B, FAR], [A], one_hot))
    assert found(case([FAR], [], one_hot))
    assert not found(case([], [A], one_hot))
    assert not HasFalsePositive(target=1, min_voxels=2)(case([A, FAR], [A], one_hot))
    assert HasFalsePositive(target=1, min_voxels=2)(case([A, B, FAR], [FAR], one_hot))


def test_sigmoid_heads_and_other_label_numbers():
    sample = case([A], [A])
    sample["pred"] = sample["pred"][1:2] - 1.0  # one head, positive in A alone
    for heads in ("sigmoid", OutputHeads("sigmoid")):
        assert not DiceBelow(target=0, heads=heads, threshold=1.0)(sample)
    sample["label"] = sample["label"] * 7
    assert DiceBelow(target=0, heads="sigmoid", threshold=0.1)(sample)
    assert not DiceBelow(target=0, label_value=7, heads="sigmoid", threshold=1.0)(sample)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "has no label under 'label'; selection by DiceBelow needs one"),
        (torch.zeros(1, 6, 6, 5), r"label has shape \(1, 6, 6, 5\); expected channels first on the grid"),
        (torch.zeros(2, *SHAPE), "label has 2 channels; expected one for the class, number 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(label, message):
    sample = case([A], [A]) | {"label": label}
    with pytest.raises(ValueError, match=message):
        DiceBelow(target=2)(sample)


def test_random_masks_against_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        predicted = [tuple(v) for v in rng.integers(0, 6, (12, 3))]
        true = [tuple(v) for v in rng.integers(0, 6, (4, 3))]
        left, found = set(map(tuple, predicted)), False
        while left:
            group, front = set(), {left.pop()}
            while front:
                group |= front
                front = {v for v in left if any(max(abs(a - b) for a, b in zip(v, w, strict=True)) <= 1 for w in front)}
                left -= front
            found |= not group & set(true)
        assert HasFalsePositive(target=1)(case(predicted, true)) == found
