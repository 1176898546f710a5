# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What the output channels of a network mean: classes that exclude each other, or regions that may overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["HEAD_KINDS", "SIGNALS", "OutputHeads"]

#: "softmax": the largest logit decides; "sigmoid": each channel decides for itself.
HEAD_KINDS = ("softmax", "sigmoid")

#: What scores sum over: the target logit (paper 000), its probability, or its lead over what would outvote it.
SIGNALS = ("logit", "probability", "margin")


@dataclass(frozen=True)
class OutputHeads:
    """How logits become a prediction.

    Attributes:
        kind: "softmax": channels are classes, the first one the background, and the largest logit decides; "sigmoid":
            channels are regions that may overlap (BraTS' whole tumor and tumor core, nnU-Net's region-based training),
            and a voxel belongs to one if its probability is above 0.5.
        paint: for "sigmoid": the number that each channel's voxels get in a label map, in the order of the channels,
            later ones over earlier ones (nnU-Net's ``regions_class_order``); None: 1, 2, 3, ...
    """

    kind: str = "softmax"
    paint: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in HEAD_KINDS:
            raise ValueError(f"unknown heads {self.kind!r}; expected one of {', '.join(HEAD_KINDS)}.")
        if self.paint is not None and self.kind != "sigmoid":
            raise ValueError("the heads have an order of painting, which is for kind 'sigmoid' only.")

    @classmethod
    def parse(cls, heads: str | OutputHeads) -> OutputHeads:
        """Read a kind by name."""
        return heads if isinstance(heads, OutputHeads) else cls(str(heads))

    def check(self, n_channels: int, what: str) -> None:
        """Raise unless logits of so many channels decide anything.

        Raises:
            ValueError: for softmax over fewer than two channels, no channel, or an order of painting that does not fit.
        """
        if self.kind == "softmax" and n_channels < 2:
            raise ValueError(
                f"{what} has {n_channels} channel(s); expected logits of at least two classes, before argmax. A "
                "network with one output channel has no argmax: use heads='sigmoid', or give it a background channel."
            )
        if n_channels < 1 or (self.paint is not None and len(self.paint) != n_channels):
            raise ValueError(
                f"{what} has {n_channels} channel(s); expected {len(self.paint or (1,))}, one for each head."
            )

    def predicted(self, logits: torch.Tensor, target: int) -> torch.Tensor:
        """Bool (...), voxels predicted as the target, from logits (channels, ...)."""
        if self.kind == "softmax":
            return logits.argmax(dim=0) == target
        return _above_half(logits[target])

    def truth(
        self, label: torch.Tensor, target: int, shape: Sequence[int], label_value: int | None = None
    ) -> torch.Tensor:
        """Bool (H, W, D), voxels that a label says are the target.

        Args:
            label: (1, H, W, D), numbers; or (channels, H, W, D), a mask for each class or region.
            target: output channel.
            shape: (H, W, D) of the prediction.
            label_value: its number in a label map, or its channel in a label of several channels; None: the target for
                classes, the target plus 1 in the label map of sigmoid heads.

        Raises:
            ValueError: for a label of another shape, or without the channel.
        """
        plain = label.detach().as_subclass(torch.Tensor)
        if plain.ndim != 4 or tuple(plain.shape[1:]) != tuple(shape):
            raise ValueError(
                f"the label has shape {tuple(label.shape)}; expected channels first on the grid of the prediction, "
                f"{tuple(shape)}."
            )
        own_map = target + (self.kind == "sigmoid") if len(plain) == 1 else target
        value = own_map if label_value is None else label_value
        if len(plain) > 1 and not 0 <= value < len(plain):
            raise ValueError(f"the label has {len(plain)} channels; expected one for the class, number {value}.")
        return plain[0].round() == value if len(plain) == 1 else plain[value] > 0.5

    def seen_from(self, logits: torch.Tensor, target: int) -> torch.Tensor:
        """Int32 (...), the channel that each voxel is predicted as, and the target wherever it is predicted.

        Where several other sigmoid heads claim a voxel the last one stands; -1: none does.
        """
        if self.kind == "softmax":
            return logits.argmax(dim=0).to(torch.int32)
        order = [*(c for c in range(logits.shape[0]) if c != target), target]
        return _painted(logits, dict(zip(order, order, strict=True)), nowhere=-1)

    def label_map(self, logits: torch.Tensor) -> torch.Tensor:
        """Int32 (...), one number for each voxel, from logits (channels, ...): the class, or what `paint` says."""
        if self.kind == "softmax":
            return logits.argmax(dim=0).to(torch.int32)
        return _painted(logits, dict(enumerate(self.paint or range(1, logits.shape[0] + 1))), nowhere=0)

    def counts(self, logits: torch.Tensor) -> torch.Tensor:
        """Int64 (channels,), voxels predicted as each channel, from logits (channels, voxels)."""
        if self.kind == "softmax":
            return torch.bincount(logits.argmax(dim=0), minlength=logits.shape[0])
        return _above_half(logits).sum(dim=1)

    def signal(self, logits: torch.Tensor, target: int, kind: str) -> torch.Tensor:
        """What scores sum over, (...) from logits (channels, ...), see `SIGNALS`.

        The margin of a sigmoid head is its logit: nothing but its own threshold can outvote it.
        """
        if kind == "probability":
            whole = logits.float()
            return torch.sigmoid(whole[target]) if self.kind == "sigmoid" else torch.softmax(whole, dim=0)[target]
        if kind == "margin" and self.kind == "softmax":
            others = torch.cat([logits[:target], logits[target + 1 :]]).amax(dim=0)
            return logits[target] - others
        return logits[target]

    def describe(self) -> dict[str, Any]:
        """Entries for ``explanation.json``."""
        return {"kind": self.kind, "paint": None if self.paint is None else list(self.paint)}


def _above_half(logits: torch.Tensor) -> torch.Tensor:
    """Bool, where the probability of a sigmoid head is above 0.5; by the probability, as nnU-Net exports it."""
    return torch.sigmoid(logits.float()) > 0.5


def _painted(logits: torch.Tensor, numbers: Mapping[int, int], nowhere: int) -> torch.Tensor:
    """Int32 (...), the number of the last of these sigmoid heads that claims a voxel."""
    found = torch.full(logits.shape[1:], nowhere, dtype=torch.int32, device=logits.device)
    for channel, number in numbers.items():
        found[_above_half(logits[channel])] = number
    return found
