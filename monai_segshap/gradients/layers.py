# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Which class owns a voxel, in as few volumes as overlaps allow, and which windows see which classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.inferers import WindowPlan

__all__ = ["ClassLayers"]

#: A bool volume (H, W, D), or one voxel of it.
_Place = torch.Tensor | tuple[int, int, int]


@dataclass(frozen=True)
class ClassLayers:
    """Places of T classes in the padded image.

    Classes that exclude each other, as those of softmax heads, share one layer; each that overlaps gets the first
    layer where it fits.

    Attributes:
        owner: int16 (L, *padded shape), number 0..T-1 of the class that owns a voxel; -1: none does.
        layer_of: (T,), the layer of each class.
        windows: int64 (A,), ascending, the windows that see a voxel of any class; no other one matters.
        incidence: bool (A, T), which of these sees which class.
    """

    owner: torch.Tensor
    layer_of: tuple[int, ...]
    windows: NDArray[np.int64]
    incidence: NDArray[np.bool_]

    @classmethod
    def of(cls, places: Sequence[_Place | None], plan: WindowPlan, device: torch.device) -> ClassLayers:
        """Layers of some places.

        Args:
            places: for each class a bool volume or a voxel, image indices; None: the class is absent.
            plan: the windows.
            device: where the layers shall lie.
        """

        def empty() -> torch.Tensor:
            return torch.full(plan.padded_shape, -1, dtype=torch.int16, device=device)

        layers, layer_of = [empty()], []
        inside = tuple(slice(p, p + n) for p, n in zip(plan.low_padding, plan.image_shape, strict=True))
        for number, place in enumerate(places):
            if place is None:
                layer_of.append(0)
                continue
            where = place.to(device) if isinstance(place, torch.Tensor) else place
            free = (n for n, layer in enumerate(layers) if not bool((layer[inside][where] >= 0).any()))
            level = next(free, len(layers))
            if level == len(layers):
                layers.append(empty())
            layers[level][inside][where] = number
            layer_of.append(level)
        owner = torch.stack(layers) if len(layers) > 1 else layers[0][None]
        every = range(plan.n_windows) if any(isinstance(p, torch.Tensor) for p in places) else _near(places, plan)
        found = {window: _seen(owner, plan, window, len(places)) for window in every}
        windows = [window for window in every if found[window].any()]
        incidence = np.array([found[window] for window in windows], dtype=bool).reshape(len(windows), len(places))
        return cls(owner, tuple(layer_of), np.array(windows, dtype=np.int64), incidence)

    @property
    def grouped(self) -> NDArray[np.int64]:
        """Places in ``windows``, those that see the same classes side by side: then few batches see many classes."""
        return np.lexsort((self.windows, *self.incidence.T[::-1]))


def _near(places: Sequence[_Place | None], plan: WindowPlan) -> list[int]:
    boxes = [(place, place) for place in places if isinstance(place, tuple)]
    return [int(window) for window in plan.touching(boxes)]


def _seen(owner: torch.Tensor, plan: WindowPlan, window: int, n_classes: int) -> NDArray[np.bool_]:
    place = (slice(None), *plan.window_slices(window))
    numbers = owner[place].reshape(-1).to(torch.int64) + 1
    counts = torch.bincount(numbers, minlength=n_classes + 1)
    return np.asarray((counts[1:] > 0).cpu().numpy(), dtype=bool)
