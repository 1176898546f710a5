# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Exact Shapley values of contrasts by a direct loop: 16 passes of MONAI's plain inferer, then all 24 orders.

Nothing of the package but the phantom is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations, product
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet

CONTRASTS = ("t1n", "t1c", "t2w", "t2f")
REGIONS = ("NCR", "ED", "ET", "TC", "WT")
Masks = dict[str, np.ndarray]
Coalition = tuple[bool, ...]


def fold_network(path: Any) -> torch.nn.Module:
    """The bundle's network, written down again."""
    network = UNet(3, 4, 3, (16, 24, 32, 40), (2, 2, 2), num_res_units=0, norm="INSTANCE")
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def network_input(image: np.ndarray) -> torch.Tensor:
    """The bundle's preprocessing of a phantom's image (4, H, W, D), stored to left and posterior, by hand."""
    channels = []
    for contrast in image[:, ::-1, ::-1].astype(np.float64):
        brain = contrast != 0
        normalized = (contrast - contrast[brain].mean()) / contrast[brain].std()
        channels.append(np.where(brain, normalized, 0.0))
    return torch.from_numpy(np.stack(channels).astype(np.float32))


def truth_masks(targets: np.ndarray) -> Masks:
    """Bool masks on the grid of `network_input` from labels 1 NCR, 2 ED, 3 ET."""
    turned = targets[::-1, ::-1]
    return {
        "NCR": turned == 1,
        "ED": turned == 2,
        "ET": turned == 3,
        "TC": (turned == 1) | (turned == 3),
        "WT": turned > 0,
    }


def predicted_masks(logits: torch.Tensor) -> Masks:
    """Bool masks from logits (3, H, W, D) of tumor core, whole tumor and enhancing tumor, which may overlap."""
    core, whole, enhancing = (torch.sigmoid(logits) > 0.5).numpy()
    return {
        "NCR": core & ~enhancing,
        "ED": whole & ~core & ~enhancing,
        "ET": enhancing,
        "TC": core,
        "WT": whole,
    }


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """NaN if both are empty."""
    size = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / size if size else float("nan")


def coalition_dice(
    network: torch.nn.Module, image: np.ndarray, targets: np.ndarray, roi: Sequence[int] = (40, 40, 40)
) -> dict[Coalition, dict[str, float]]:
    """Dice against truth of each sub-region that the truth has, for each of the 16 sets of kept contrasts."""
    whole, truth = network_input(image), truth_masks(targets)
    inferer = SlidingWindowInferer(roi, sw_batch_size=4, overlap=0.5, mode="gaussian")
    found = {}
    for kept in product((False, True), repeat=len(whole)):
        masked = whole.clone()
        for channel, keep in enumerate(kept):
            if not keep:
                masked[channel] = 0.0
        with torch.no_grad():
            predicted = predicted_masks(inferer(masked[None], network)[0])
        found[kept] = {name: dice(predicted[name], truth[name]) for name in REGIONS if truth[name].any()}
    return found


def shapley_by_orders(value: Callable[[Coalition], float], n: int = 4) -> list[float]:
    """Mean marginal contribution of each player over all orders."""
    orders = list(permutations(range(n)))
    totals = [0.0] * n
    for order in orders:
        kept = [False] * n
        for player in order:
            before = value(tuple(kept))
            kept[player] = True
            totals[player] += value(tuple(kept)) - before
    return [total / len(orders) for total in totals]


def contrast_shapley(table: dict[Coalition, dict[str, float]]) -> dict[str, list[float]]:
    """Shapley values (4,) in the order of ``CONTRASTS`` for each sub-region of a `coalition_dice` table."""
    regions = next(iter(table.values()))
    return {name: shapley_by_orders(lambda kept, name=name: table[kept][name]) for name in regions}
