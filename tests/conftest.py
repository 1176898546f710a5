# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What several tests share: tiny networks, cases with units, and oracles made of MONAI's plain inferer alone."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import DynUNet, SegResNet, UNet

torch.set_num_threads(1)

sys.path.insert(0, str(Path(__file__).parent / "nnunet"))
pytest_plugins = ("tiny_nnunet_fixtures",)  # used in several folders, made once

Box = tuple[tuple[int, int, int], tuple[int, int, int]]


class CountingNetwork(torch.nn.Module):
    """Passes windows on, and notes the content of every window of every batch."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.batches: list[list[bytes]] = []

    def forward(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.batches.append([window.numpy().tobytes() for window in windows.contiguous()])
        return self.network(windows, *args, **kwargs)

    @property
    def n_windows(self) -> int:
        """Windows seen so far."""
        return sum(len(batch) for batch in self.batches)


class LimitedNetwork(torch.nn.Module):
    """Has no memory for more than ``limit`` windows at once, from some call on; notes the sizes of its batches."""

    def __init__(
        self, network: torch.nn.Module, limit: int, after: int = 0, error: type[Exception] = torch.OutOfMemoryError
    ) -> None:
        super().__init__()
        self.network = network
        self.limit, self.after, self.error = limit, after, error
        self.sizes: list[int] = []
        self.failed: list[int] = []

    def forward(self, windows: torch.Tensor) -> Any:
        if len(self.sizes) + len(self.failed) >= self.after and len(windows) > self.limit:
            self.failed.append(len(windows))
            raise self.error(
                "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to "
                "allocate 137438953472 bytes. Error code 12 (Cannot allocate memory)"
                if self.error is RuntimeError
                else "out of memory, says the fake\nand more"
            )
        self.sizes.append(len(windows))
        return self.network(windows)

    @property
    def n_windows(self) -> int:
        """Windows that it ran so far."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Case:
    """An image with units: image and fill (C, H, W, D), labels (H, W, D)."""

    image: torch.Tensor
    labels: torch.Tensor
    fill: torch.Tensor

    @property
    def n_units(self) -> int:
        return int(self.labels.max())

    def masked(self, coalition: Sequence[bool]) -> torch.Tensor:
        """The image with removed units replaced, one unit at a time."""
        found = self.image.clone()
        for unit, kept in enumerate(coalition, start=1):
            if not kept:
                for channel in range(found.shape[0]):
                    found[channel][self.labels == unit] = self.fill[channel][self.labels == unit]
        return found


@dataclass(frozen=True)
class LibraryWindow:
    """One window as MONAI ran it: first voxel in the padded image, content, size of its batch."""

    start: tuple[int, int, int]
    content: bytes
    batch_size: int

    def touches(self, box: Box, shape: Sequence[int], roi: Sequence[int]) -> bool:
        """Whether it shares a voxel with a box of the unpadded image."""
        low = [max(r - n, 0) // 2 for r, n in zip(roi, shape, strict=True)]
        first = [s - p for s, p in zip(self.start, low, strict=True)]
        return all(f <= b and f + r > a for f, r, a, b in zip(first, roi, *box, strict=True))


@pytest.fixture(scope="session")
def load_benchmark() -> Iterator[Callable[..., SimpleNamespace]]:
    """``load_benchmark(name, *parts)``: the modules NAME_PART of benchmarks/ by their part, and NAME as ``script``."""
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks")

    def load(name: str, *parts: str) -> SimpleNamespace:
        modules = {part: importlib.import_module(f"{name}_{part}") for part in parts}
        return SimpleNamespace(**modules, script=importlib.import_module(name))

    sys.path.insert(0, folder)
    yield load
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def counting() -> type[CountingNetwork]:
    return CountingNetwork


@pytest.fixture(scope="session")
def limited() -> type[LimitedNetwork]:
    return LimitedNetwork


@pytest.fixture(scope="session")
def make_network() -> Callable[..., torch.nn.Module]:
    """Tiny networks with instance norm and fixed random weights, in eval mode."""

    def build(kind: str, in_channels: int = 1, classes: int = 3, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        found: torch.nn.Module
        if kind == "unet":
            found = UNet(3, in_channels, classes, (4, 8), (2,), num_res_units=1, norm="instance")
        elif kind == "wide_unet":  # 32 channels: CPU kernels round differently for batch size 1
            found = UNet(3, in_channels, classes, (32, 32), (2,), num_res_units=0, norm="instance")
        elif kind == "segresnet":
            found = SegResNet(
                3, 4, in_channels, classes, blocks_down=(1, 1), blocks_up=(1,), norm=("INSTANCE", {"affine": True})
            )
        elif kind == "dynunet":
            found = DynUNet(
                3, in_channels, classes, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 8), norm_name="instance"
            )
        elif kind == "conv":
            found = torch.nn.Sequential(
                torch.nn.Conv3d(in_channels, 4, 3, padding=1),
                torch.nn.InstanceNorm3d(4),
                torch.nn.ReLU(),
                torch.nn.Conv3d(4, classes, 1),
            )
        else:
            raise ValueError(kind)
        return found.eval()

    return build


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """An image of noise with as many random cells as asked for; a fifth of the voxels belongs to no unit."""

    def build(shape: Sequence[int], n_units: int, channels: int = 1, seed: int = 0, fill: float = -0.5) -> Case:
        rng = np.random.default_rng(seed)
        centers = rng.uniform(0, shape, size=(n_units, 3))
        voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).reshape(-1, 1, 3)
        labels = np.linalg.norm(voxels - centers, axis=2).argmin(axis=1).reshape(shape) + 1
        labels[rng.random(shape) < 0.2] = 0
        for unit, center in enumerate(centers, start=1):
            labels[tuple(int(c) for c in center)] = unit
        image = torch.from_numpy(rng.normal(size=(channels, *shape)).astype(np.float32))
        return Case(image, torch.from_numpy(labels), torch.full_like(image, fill))

    return build


@pytest.fixture(scope="session")
def plain_logits() -> Callable[..., torch.Tensor]:
    """Whole-volume inference by MONAI's plain inferer: (C, H, W, D) -> (classes, H, W, D)."""

    def infer(image: torch.Tensor, network: Any, **inferer: Any) -> torch.Tensor:
        with torch.no_grad():
            return SlidingWindowInferer(**inferer)(image[None], network)[0]

    return infer


@pytest.fixture(scope="session")
def library_windows() -> Callable[..., list[LibraryWindow]]:
    """The windows that MONAI's plain inferer really runs for an image, in order."""

    def record(image: torch.Tensor, **inferer: Any) -> list[LibraryWindow]:
        found: list[LibraryWindow] = []

        def recorder(windows: torch.Tensor, coordinates: Any) -> torch.Tensor:
            for window, slices in zip(windows.contiguous(), coordinates, strict=True):
                start = tuple(int(s.start) for s in slices[2:])
                found.append(LibraryWindow(start, window.numpy().tobytes(), len(windows)))
            return windows

        SlidingWindowInferer(**inferer, with_coord=True)(image[None], recorder)
        return found

    return record


@pytest.fixture(scope="session")
def cut() -> Callable[[torch.Tensor, Box], torch.Tensor]:
    """The part of a (C, H, W, D) tensor inside a box, both corners inside."""

    def inside(volume: torch.Tensor, box: Box) -> torch.Tensor:
        return volume[(slice(None), *(slice(a, b + 1) for a, b in zip(*box, strict=True)))]

    return inside
