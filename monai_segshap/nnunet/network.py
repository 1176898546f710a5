# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The networks of an nnU-Net as one module: folds, mirroring, slices of 2D networks, half precision on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import combinations

import torch

__all__ = ["FoldsNetwork"]


class FoldsNetwork(torch.nn.Module):
    """Logits of one or several folds for a window, as `nnUNetPredictor` computes them.

    The folds' logits stand one after the other in the channels, because nnU-Net averages them after the windows have
    been added up. On CUDA the networks run under float16 autocast, as nnU-Net runs them; their weights are left alone.

    Args:
        networks: one for each fold.
        mirror_axes: axes (0, 1, 2 of the window; 0 and 1 for 2D networks) over whose mirror images the logits are
            averaged; empty: no mirroring, one run of a network for a window and fold instead of 2**axes.
        is_2d: the networks take (B, C, h, w); windows are (B, C, 1, h, w).
        full_precision: give float32 logits on CUDA, too, for windows that are added up in float32.
    """

    def __init__(
        self,
        networks: Sequence[torch.nn.Module],
        mirror_axes: Sequence[int] = (),
        is_2d: bool = False,
        full_precision: bool = True,
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("got no network; expected one for each fold.")
        n_axes = 2 if is_2d else 3
        if any(not 0 <= axis < n_axes for axis in mirror_axes) or len(set(mirror_axes)) != len(mirror_axes):
            raise ValueError(f"mirror axes are {tuple(mirror_axes)}; expected different ones of 0 to {n_axes - 1}.")
        self.networks = torch.nn.ModuleList(networks)
        self.is_2d, self.full_precision = is_2d, full_precision
        self.mirror_axes = tuple(mirror_axes)
        axes = [axis + 2 for axis in mirror_axes]
        self._flips = [c for n in range(1, len(axes) + 1) for c in combinations(axes, n)]

    @property
    def runs_per_window(self) -> int:
        """Times that a network runs for one window: folds times mirror images."""
        return len(self.networks) * (1 + len(self._flips))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits (B, folds * heads, ...) of windows (B, C, ...)."""
        x = windows.squeeze(2) if self.is_2d else windows
        # as nnU-Net; an autocast that stands already (a numeric mode) is left alone, on the CPU, too
        half = x.device.type == "cuda" and not torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda") if half else nullcontext():
            logits = torch.cat([self._mirrored(network, x) for network in self.networks], dim=1)
        if self.full_precision:
            logits = logits.float()
        return logits.unsqueeze(2) if self.is_2d else logits

    def _mirrored(self, network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = network(x)
        if not self._flips:
            return total
        total = total.clone()
        for axes in self._flips:
            total += torch.flip(network(torch.flip(x, axes)), axes)
        total /= len(self._flips) + 1
        return total

    def extra_repr(self) -> str:
        """What changes the logits beside the networks."""
        return f"mirror_axes={self.mirror_axes}, is_2d={self.is_2d}, full_precision={self.full_precision}"
