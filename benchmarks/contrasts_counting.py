# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Network passes of 16 coalitions: naive, ours, and a recount of distinct windows that uses MONAI's inferer alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from contrasts_cases import CONTRASTS, Volume, coalition, inferer
from end_to_end_methods import TimedNetwork

from monai_segshap.explainers import ContrastShapleyExplainer, SubRegion

WINDOWS = (40, 64, 96, 128)
OVERLAPS = (0.5, 0.25)


@dataclass(frozen=True)
class Counts:
    """Passes of one volume and one window.

    Attributes:
        windows: of the grid.
        background: of these without any contrast.
        naive: every window for each of the 16 coalitions.
        distinct: different inputs among these.
        planned: what the explainer announced.
        run: what went through the network, counted there, without the calibration.
        calibration: what went through it before.
    """

    volume: str
    shape: tuple[int, ...]
    roi: int
    overlap: float
    windows: int
    background: int
    naive: int
    distinct: int
    planned: int
    run: int
    calibration: int


class ChannelDigests(torch.nn.Module):
    """Notes a digest of each channel of each window; "" where it is 0. Returns its first channel."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[tuple[str, ...]] = []

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        for window in windows:
            self.windows.append(tuple(_digest(channel) for channel in window))
        return windows[:, :1]


def recount(image: torch.Tensor, roi: int, overlap: float) -> tuple[int, int, int]:
    """Windows, windows of background, and distinct inputs of all coalitions, from one pass of MONAI's own inferer.

    An input is the tuple of its four channels, "" for one that is removed.
    """
    network = ChannelDigests()
    inferer(roi, overlap)(image[None], network)
    inputs = {
        tuple(digest if keep else "" for digest, keep in zip(window, coalition(mask), strict=True))
        for mask in range(2 ** len(CONTRASTS))
        for window in network.windows
    }
    return len(network.windows), sum(not any(window) for window in network.windows), len(inputs)


def count(volume: Volume, roi: int, overlap: float, batch: int = 4, batch_size: str | int = "auto") -> Counts:
    """Explain a volume with a network of almost no cost, and count what it is asked for.

    Raises:
        RuntimeError: if other passes ran than were planned.
    """
    windows, background, distinct = recount(volume.image, roi, overlap)
    torch.manual_seed(0)
    network = TimedNetwork(torch.nn.Conv3d(len(CONTRASTS), 1, 1)).eval()
    explainer = ContrastShapleyExplainer(
        network,
        inferer(roi, overlap, batch),
        CONTRASTS,
        [SubRegion("WT", (0,), labels=(1, 2, 3))],
        progress=False,
        batch_size=batch_size,
    )
    (found,) = explainer(volume.image, volume.label)
    run = network.passes - found.forwards.calibration
    if not run == found.forwards.planned == found.forwards.run:
        raise RuntimeError(f"{found.forwards} was said, but {run} windows went through the network.")
    return Counts(
        volume.name,
        volume.shape,
        roi,
        overlap,
        windows,
        background,
        windows * 2 ** len(CONTRASTS),
        distinct,
        found.forwards.planned,
        run,
        found.forwards.calibration,
    )


def count_all(
    volume: Volume, sizes: Sequence[int] = WINDOWS, overlaps: Sequence[float] = OVERLAPS
) -> Iterator[dict[str, Any]]:
    """A row for each window size and overlap, as plain values."""
    for overlap in overlaps:
        for roi in sizes:
            row = asdict(count(volume, roi, overlap))
            print(row, flush=True)
            yield row


def _digest(channel: torch.Tensor) -> str:
    if not bool(channel.any()):
        return ""
    return hashlib.blake2b(channel.contiguous().numpy().tobytes(), digest_size=16).hexdigest()
