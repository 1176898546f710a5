# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Batches of windows of one or several images: forward for values, forward and backward for gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.gradients.checkpointing import checkpointed_blocks
from monai_segshap.gradients.layers import ClassLayers
from monai_segshap.inferers import WindowPlan
from monai_segshap.inferers.passes import NetworkPasses
from monai_segshap.networks import evaluation_mode, is_out_of_memory

__all__ = ["GradientTotal", "WindowJob", "WindowSweep"]


@dataclass(frozen=True)
class WindowJob:
    """One window of one image.

    Attributes:
        number: of the image.
        image: (C, *padded shape).
        window: number in the plan.
        layers: for gradients: places of the classes in this image.
        seen: for gradients: bool (T,), the classes that the window sees.
        weight: for gradients: factor of the image.
    """

    number: int
    image: torch.Tensor
    window: int
    layers: ClassLayers | None = None
    seen: NDArray[np.bool_] | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class GradientTotal:
    """Where gradients are added up.

    Attributes:
        volume: (T, C, *padded shape), changed in place.
        channels: (T,), output channel of each class.
        scales: (T,), factor of each class, applied after the backward pass so that half precision keeps its digits.
        count: sum of the fusion weights of all windows, padded shape.
    """

    volume: torch.Tensor
    channels: tuple[int, ...]
    scales: tuple[float, ...]
    count: torch.Tensor


class WindowSweep:
    """Sends windows through a network, and gradients back; counts both.

    Args:
        network: maps (B, C, *roi) to logits (B, folds * channels, *roi).
        plan: the windows.
        device: where the network runs.
        batch_size: windows of a batch; they may come from several images.
        checkpoint: see `monai_segshap.gradients.checkpointing.checkpointed_blocks`.

    Attributes:
        n_channels: channels of the prediction, to be set before the first batch.
        n_backwards: windows that gradients went back through, once for each class of their batch.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        plan: WindowPlan,
        device: torch.device,
        batch_size: int,
        checkpoint: bool = False,
    ) -> None:
        self.plan, self.device, self.batch_size = plan, device, batch_size
        self.network = network
        self.n_channels = 0
        self.n_backwards = self._n_differentiated = 0
        self._passes = NetworkPasses(network, device)
        self._checkpointed = network if checkpoint and isinstance(network, torch.nn.Module) else None
        self._weight = plan.weight.to(device)

    @property
    def n_forwards(self) -> int:
        """Windows that went through the network, with gradients or without."""
        return self._passes.n_windows + self._n_differentiated

    def logits(
        self, jobs: Iterable[WindowJob], advance: Callable[[int], None]
    ) -> Iterator[tuple[WindowJob, torch.Tensor]]:
        """Yield every window with its logits (folds * channels, *roi), without gradients."""
        for batch in self.batches(jobs):
            logits = self._passes(self._stack(batch))
            self._check(logits, len(batch))
            advance(len(batch))
            yield from zip(batch, logits, strict=True)

    def add_gradients(self, jobs: Iterable[WindowJob], total: GradientTotal, advance: Callable[[int], None]) -> None:
        """Add the gradient of the fused logits at the classes' places, class by class.

        Args:
            jobs: windows.
            total: takes ``scales[t] * d (sum over the places of t of z_t) / d image``, as far as it goes through these
                windows.
            advance: called with the number of windows after each batch.

        Raises:
            MemoryError: if a batch does not fit into memory.
            ValueError: for other logits than expected, or if no gradient reaches the image.
        """
        for batch in self.batches(jobs):
            try:
                self._differentiate(batch, total)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).split("\n")[0]
                raise MemoryError(
                    f"out of memory on {self.device} for the gradient of {len(batch)} windows of "
                    f"{self.plan.roi_size}: {failure} Use a smaller batch_size, checkpoint=True or numerics='bf16'."
                ) from None
            advance(len(batch))

    def batches(self, jobs: Iterable[WindowJob]) -> Iterator[list[WindowJob]]:
        """Cut a stream of windows into batches."""
        stream = iter(jobs)
        while batch := list(islice(stream, self.batch_size)):
            yield batch

    def _stack(self, batch: Sequence[WindowJob]) -> torch.Tensor:
        places = [(slice(None), *self.plan.window_slices(job.window)) for job in batch]
        return torch.stack([job.image[place] for job, place in zip(batch, places, strict=True)]).to(self.device)

    def _differentiate(self, batch: Sequence[WindowJob], total: GradientTotal) -> None:
        kept = checkpointed_blocks(self._checkpointed) if self._checkpointed is not None else nullcontext()
        with evaluation_mode(self.network), torch.enable_grad(), kept:
            windows = self._stack(batch).requires_grad_()
            logits = self.network(windows.clone())  # a copy: networks may change their input in place
            self._check(logits, len(batch))
            self._n_differentiated += len(batch)
            by_fold = logits.unflatten(1, (self.plan.folds, self.n_channels))
            numbers = np.flatnonzero(np.any([job.seen for job in batch if job.seen is not None], axis=0)).tolist()
            for number in numbers:
                seeds = torch.stack([self._seed(job, number, total.count) for job in batch]) / self.plan.folds
                found = None
                if logits.requires_grad:
                    outputs = by_fold[:, :, total.channels[number]]
                    seeds = seeds.to(outputs.dtype)[:, None].expand_as(outputs)
                    again = number != numbers[-1]
                    (found,) = torch.autograd.grad(outputs, windows, seeds, retain_graph=again, allow_unused=True)
                if found is None:
                    raise ValueError(
                        "no gradient reaches the image: the network cuts it off (torch.no_grad, detach, or NumPy "
                        "inside). Give the network itself, without such a wrapper."
                    )
                self.n_backwards += len(batch)
                for job, gradient in zip(batch, found, strict=True):
                    place = (number, slice(None), *self.plan.window_slices(job.window))
                    total.volume[place] += gradient.to(total.volume) * (job.weight * total.scales[number])

    def _seed(self, job: WindowJob, number: int, count: torch.Tensor) -> torch.Tensor:
        """What a logit of the window adds to the fused sum: g_w / G at the places of the class, 0 elsewhere."""
        if job.layers is None:
            raise ValueError("the window has no places of classes, which its gradient needs.")
        place = self.plan.window_slices(job.window)
        mine = job.layers.owner[job.layers.layer_of[number]][place] == number
        share = self._weight.to(count.dtype) / count[place].to(self.device)
        return torch.where(mine.to(self.device), share, 0)

    def _check(self, logits: Any, size: int) -> None:
        folds = self.plan.folds
        expected = (size, folds * self.n_channels, *self.plan.roi_size)
        came = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if came != expected:
            raise ValueError(
                f"the network returned {came} for a batch of windows; expected one tensor of shape {expected}: "
                f"full-resolution logits of the {self.n_channels} channels of the whole-volume prediction"
                + (f", for each of {folds} folds." if folds > 1 else ".")
            )
