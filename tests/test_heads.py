# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Output heads: classes that exclude each other, and regions that overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_segshap.games import RegionGame
from monai_segshap.heads import SIGNALS, OutputHeads

SIGMOID = OutputHeads("sigmoid")
#: three heads, four voxels; voxel 0 in none, 1 in the first, 2 in the first two, 3 in all
LOGITS = torch.tensor([[-1.0, 2.0, 1.0, 3.0], [-2.0, -0.5, 0.5, 1.0], [-3.0, -1.0, 0.0, 4.0]]).reshape(3, 4, 1, 1)


def flat(t: torch.Tensor) -> list:
    return t.reshape(-1).tolist()


def test_sigmoid_heads_decide_each_for_itself_and_exactly_half_is_out():
    assert flat(SIGMOID.predicted(LOGITS, 0)) == [False, True, True, True]
    assert flat(SIGMOID.predicted(LOGITS, 1)) == [False, False, True, True]
    assert flat(SIGMOID.predicted(LOGITS, 2)) == [False, False, False, True]
    assert SIGMOID.counts(LOGITS.reshape(3, -1)).tolist() == [3, 2, 1]


def test_label_maps_are_painted_in_the_order_of_the_heads():
    assert flat(SIGMOID.label_map(LOGITS)) == [0, 1, 2, 3]
    assert flat(OutputHeads("sigmoid", paint=(2, 1, 4)).label_map(LOGITS)) == [0, 2, 1, 4]
    assert flat(OutputHeads().label_map(LOGITS)) == [0, 0, 0, 2]


def test_seen_from_a_head_its_voxels_are_its_own_even_where_others_overlap():
    for target in range(3):
        seen = SIGMOID.seen_from(LOGITS, target)
        assert torch.equal(seen == target, SIGMOID.predicted(LOGITS, target))
    assert flat(SIGMOID.seen_from(LOGITS, 0)) == [-1, 0, 0, 0]
    assert flat(SIGMOID.seen_from(LOGITS, 2)) == [-1, 0, 1, 2]


def test_signals_of_a_sigmoid_head_do_not_depend_on_the_others():
    changed = LOGITS.clone()
    changed[[0, 2]] += 5.0
    for kind in SIGNALS:
        assert torch.equal(SIGMOID.signal(changed, 1, kind), SIGMOID.signal(LOGITS, 1, kind))
    assert flat(SIGMOID.signal(LOGITS, 1, "margin")) == flat(LOGITS[1])
    np.testing.assert_allclose(flat(SIGMOID.signal(LOGITS, 1, "probability")), 1 / (1 + np.exp([2.0, 0.5, -0.5, -1.0])))


def test_scores_of_overlapping_heads_by_hand():
    # P_0 of head 0 are voxels 0, 1, 2; under the coalition voxel 1, 2, 3 are positive, whatever other heads say
    reference = torch.tensor([True, True, True, False]).reshape(4, 1, 1)
    game = RegionGame(torch.ones(4, 1, 1, dtype=torch.bool), reference, 0, heads=SIGMOID)
    tp, fp, dice, soft = game(LOGITS)
    assert (tp, fp, soft) == (0.75, -0.75, 0.0)
    np.testing.assert_allclose(dice, 2 * 2 / (3 + 3), rtol=1e-8)
    assert game.class_counts(LOGITS).tolist() == [3, 2, 1]
    # softmax heads see voxel 3 only as class 2's
    assert RegionGame(game.mask, reference, 0)(LOGITS)[1] == 0.0


@pytest.mark.parametrize(
    ("heads", "channels", "message"),
    [
        (OutputHeads(), 1, "use heads='sigmoid'"),
        (SIGMOID, 0, "expected 1"),
        (OutputHeads("sigmoid", paint=(1, 2)), 3, "has 3 channel.*expected 2"),
    ],
)
def test_heads_that_do_not_fit_are_refused(heads, channels, message):
    with pytest.raises(ValueError, match=message):
        heads.check(channels, "the prediction")


def test_unknown_heads_and_painted_classes_are_refused():
    with pytest.raises(ValueError, match="unknown heads 'tanh'; expected one of softmax, sigmoid"):
        OutputHeads.parse("tanh")
    with pytest.raises(ValueError, match="for kind 'sigmoid' only"):
        OutputHeads("softmax", paint=(1, 2))
