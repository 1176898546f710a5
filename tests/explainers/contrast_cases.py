# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A small volume of four contrasts, and values by a loop over MONAI's plain inferer and the definitions alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from brute_force import shapley_over_all_orders
from monai.inferers import SlidingWindowInferer

SHAPE = (19, 11, 9)
NAMES = ("t1c", "t1n", "t2w", "t2f")
INFERER = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}

Masks = Callable[[np.ndarray], list[np.ndarray]]


def make_image(seed: int = 0) -> torch.Tensor:
    """Four channels of noise on a background of 0, which fills whole windows."""
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, *SHAPE)).astype(np.float32))
    image[:, 11:] = 0.0
    return image


def make_label(seed: int = 1, values: Sequence[int] = (0, 1, 2, 3)) -> torch.Tensor:
    """A label map (1, H, W, D) of blocks of random values."""
    blocks = np.random.default_rng(seed).choice(values, size=(5, 4, 3))
    return torch.from_numpy(np.kron(blocks, np.ones((4, 3, 3), dtype=np.int64))[:19, :11, :9])[None]


def sigmoid_masks(logits: np.ndarray) -> list[np.ndarray]:
    """TC, WT, ET as three heads."""
    return [channel > 0 for channel in logits]


def all_logits(
    network: Any, image: torch.Tensor, replacement: torch.Tensor, groups: Sequence[Sequence[int]]
) -> dict[tuple[bool, ...], np.ndarray]:
    """Whole-volume logits of every coalition, one inference after the other."""
    found = {}
    for kept in itertools.product((False, True), repeat=len(groups)):
        changed = image.clone()
        for group, keep in zip(groups, kept, strict=True):
            for channel in group:
                if not keep:
                    changed[channel] = replacement[channel]
        with torch.no_grad():
            found[kept] = SlidingWindowInferer(**INFERER)(changed[None], network)[0].numpy()
    return found


def dice_truth(logits: dict[tuple[bool, ...], np.ndarray], masks: Masks, truth: Sequence[np.ndarray]) -> dict:
    """Dice of each sub-region against ground truth, by coalition."""
    return {
        kept: np.array([2.0 * (p & g).sum() / (p.sum() + g.sum()) for p, g in zip(masks(x), truth, strict=True)])
        for kept, x in logits.items()
    }


def by_bit_mask(table: dict[tuple[bool, ...], np.ndarray]) -> np.ndarray:
    """(2**N, S), row number = bit mask with the first contrast as the lowest bit."""
    found: list[Any] = [None] * len(table)
    for kept, row in table.items():
        found[sum(1 << n for n, keep in enumerate(kept) if keep)] = row
    return np.stack(found)


def shapley(table: dict[tuple[bool, ...], np.ndarray]) -> np.ndarray:
    """(N, S) over all orders."""
    return shapley_over_all_orders(table, len(next(iter(table))))
