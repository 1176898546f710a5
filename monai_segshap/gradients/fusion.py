# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Fused logits of one image, only as much of them as the class outputs need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.gradients.layers import ClassLayers
from monai_segshap.gradients.sweep import WindowJob, WindowSweep
from monai_segshap.heads import OutputHeads
from monai_segshap.inferers import WindowPlan
from monai_segshap.inferers.evaluation import mean_of_folds

__all__ = [
    "AGGREGATES",
    "WindowFusion",
    "aggregate_logits",
    "class_masks",
    "fused_images",
    "fusion_count",
    "median_voxel",
]

#: How the logits of a class become one number (paper 001, Eq. 2).
AGGREGATES = ("sum", "mean", "median")


class WindowFusion:
    """Adds windows up as the library does: in its order, with its weights, in its precision.

    Args:
        plan: the windows.
        weight: their fusion weight, where the network runs.
        count: sum of the weights of all windows, padded shape, where windows are added up.
        channels: (T,), output channel of each class.
        layers: at every voxel only the logit of the class that owns it is kept; None: all logits are.
    """

    def __init__(
        self,
        plan: WindowPlan,
        weight: torch.Tensor,
        count: torch.Tensor,
        channels: Sequence[int],
        layers: ClassLayers | None,
    ) -> None:
        self._plan, self._weight, self._count, self._layers = plan, weight, count, layers
        self._channels = torch.tensor(list(channels) or [0], dtype=torch.int64, device=count.device)
        self._total: torch.Tensor | None = None

    def add(self, window: int, logits: torch.Tensor) -> None:
        """Add one window, (folds * channels, *roi)."""
        place = (slice(None), *self._plan.window_slices(window))
        if self._layers is None:
            part = logits.clone()
        else:
            owner = self._layers.owner[place].to(torch.int64).clamp(min=0)
            chosen = self._channels[owner].to(logits.device)
            by_fold = logits.unflatten(0, (self._plan.folds, -1))
            part = by_fold.gather(1, chosen[None].expand(len(by_fold), *chosen.shape)).flatten(0, 1)
        part *= self._weight
        if self._total is None:
            shape = (len(part), *self._plan.padded_shape)
            self._total = torch.zeros(shape, dtype=self._count.dtype, device=self._count.device)
        self._total[place] += part.to(self._total.device)

    def fused(self) -> torch.Tensor:
        """Logits on the image's own grid: (layers, H, W, D), or (channels, H, W, D) without layers."""
        if self._total is None:
            raise ValueError("no window was added.")
        self._total /= self._count
        plan = self._plan
        h, w, d = (slice(p, p + n) for p, n in zip(plan.low_padding, plan.image_shape, strict=True))
        return mean_of_folds(self._total[:, h, w, d], plan.folds)


def fused_images(
    sweep: WindowSweep,
    images: Iterable[torch.Tensor],
    windows: NDArray[np.int64],
    channels: Sequence[int],
    layers: ClassLayers | None,
    count: torch.Tensor,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, torch.Tensor | None]]:
    """Run images; batches may hold windows of several.

    Args:
        sweep: runs the windows.
        images: (C, *padded shape), made one after the other.
        windows: those that run, ascending.
        channels: see `WindowFusion`.
        layers: see `WindowFusion`.
        count: see `WindowFusion`.
        advance: called with the number of windows after each batch.

    Yields:
        number and fused logits of every image, in order, as soon as its last window is there; None without windows.
    """
    if len(windows) == 0:
        yield from ((number, None) for number, _ in enumerate(images))
        return
    weight = sweep.plan.weight.to(sweep.device)
    fusions: dict[int, WindowFusion] = {}

    def jobs() -> Iterator[WindowJob]:
        for number, image in enumerate(images):
            fusions[number] = WindowFusion(sweep.plan, weight, count, channels, layers)
            for window in windows:
                yield WindowJob(number, image, int(window))

    for job, logits in sweep.logits(jobs(), advance):
        fusions[job.number].add(job.window, logits)
        if job.window == windows[-1]:
            yield job.number, fusions.pop(job.number).fused()


def fusion_count(plan: WindowPlan, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Sum of the fusion weights of all windows, padded shape, added up in the plan's order."""
    count = torch.zeros(plan.padded_shape, dtype=dtype, device=device)
    weight = plan.weight.to(device=device, dtype=dtype)
    for window in range(plan.n_windows):
        count[plan.window_slices(window)] += weight
    return count


def class_masks(heads: OutputHeads, logits: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """Where each class is predicted (paper 001, Eq. 1): logits (channels, ...) to bool (T, ...)."""
    if not classes:
        return torch.zeros((0, *logits.shape[1:]), dtype=torch.bool, device=logits.device)
    if heads.kind == "softmax":
        label = heads.label_map(logits)
        return torch.stack([label == c for c in classes])
    return torch.stack([heads.predicted(logits, c) for c in classes])


def aggregate_logits(logits: torch.Tensor, how: str) -> float:
    """One number of the logits of a class (paper 001, Eq. 2), computed in float64.

    Args:
        logits: (n,), at the voxels of the mask.
        how: one of `AGGREGATES`; the median of an even number is the lower one of the middle.

    Returns:
        the number; of no voxel: a sum of 0, and no (NaN) mean or median.

    Raises:
        ValueError: for logits that are not finite.
    """
    total = logits.sum(dtype=torch.float64)
    if not bool(torch.isfinite(total)):
        raise ValueError(
            "the network returns logits that are not finite (NaN or infinite) for this image; it breaks down for such "
            "an input. Try a milder perturbation or baseline, or numerics='exact'."
        )
    if how == "sum":
        return float(total)
    if logits.numel() == 0:
        return float("nan")
    return float(total / logits.numel() if how == "mean" else logits.median())


def median_voxel(logits: torch.Tensor, mask: torch.Tensor) -> tuple[int, int, int] | None:
    """The voxel (i, j, k) of a mask that holds the median logit, the first in C order of equals; None: no voxel."""
    inside = logits[mask]
    if inside.numel() == 0:
        return None
    first = (mask & (logits == inside.median())).flatten().to(torch.uint8).argmax()  # the first of equals
    i, j, k = np.unravel_index(int(first), tuple(mask.shape))
    return int(i), int(j), int(k)
