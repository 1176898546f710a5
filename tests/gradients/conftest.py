# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Networks and images for voxel gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch


class Counted(torch.nn.Module):
    """Counts windows, in passes with gradients, too."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.n_windows = 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.n_windows += len(windows)
        return self.network(windows)


@pytest.fixture(scope="session")
def counted() -> type[Counted]:
    return Counted


@pytest.fixture(scope="session")
def smooth_network() -> Callable[..., torch.nn.Module]:
    """Convolutions with a smooth activation between them."""

    def build(in_channels: int = 1, classes: int = 3, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Conv3d(in_channels, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv3d(4, classes, 3, padding=1)
        ).eval()

    return build


@pytest.fixture(scope="session")
def noise_image() -> Callable[..., torch.Tensor]:
    """Normal noise (C, H, W, D)."""

    def build(shape: Sequence[int], channels: int = 1, seed: int = 0) -> torch.Tensor:
        return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(seed))

    return build
