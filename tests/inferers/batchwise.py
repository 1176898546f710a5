# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Networks whose bits depend on their batch in a known way."""

from __future__ import annotations

from collections.abc import Callable

import torch

STEP = 2.0**-10
MANY = 10**6


class Batchwise(torch.nn.Module):
    """Multiples of 1/8 for three classes, plus what is added for the place in the batch and its size: exact sums."""

    def __init__(self, added: Callable[[int, int], float] = lambda place, size: 0.0) -> None:
        super().__init__()
        self.added = added
        self.batches: list[torch.Tensor] = []

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.batches.append(windows.clone())
        logits = torch.cat([windows, 1 - windows, windows * 2], dim=1).mul(8).round().div(8)
        added = [self.added(place, len(windows)) for place in range(len(windows))]
        return logits + torch.tensor(added).reshape(-1, 1, 1, 1, 1)

    @property
    def n_windows(self) -> int:
        return sum(len(batch) for batch in self.batches)


def by_place(place: int, size: int) -> float:
    return STEP * place


def by_size(place: int, size: int) -> float:
    return STEP * size
