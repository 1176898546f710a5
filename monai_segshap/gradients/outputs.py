# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Aggregated class outputs of a segmentation (paper 001, Eq. 1 and 2): values and exact gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from monai_segshap.gradients.fusion import (
    AGGREGATES,
    aggregate_logits,
    class_masks,
    fused_images,
    fusion_count,
    median_voxel,
)
from monai_segshap.gradients.layers import ClassLayers
from monai_segshap.gradients.sweep import GradientTotal, WindowJob, WindowSweep
from monai_segshap.heads import OutputHeads
from monai_segshap.inferers import WindowPlan, window_plan_of
from monai_segshap.networks import evaluation_mode
from monai_segshap.numerics import NumericMode, autocast_state

__all__ = ["MASKS", "ClassOutputs", "PlannedPasses"]

#: Whose prediction says where the logits of a perturbed image are added up: the unperturbed image's, or its own.
MASKS = ("fixed", "recomputed")


@dataclass(frozen=True)
class PlannedPasses:
    """Windows that will go through the network.

    Attributes:
        forwards: with gradients or without.
        backwards: windows that gradients go back through, once for each class of their batch.
        exact: whether these are the numbers, or bounds that no run exceeds (gradients of a median, whose voxel is not
            known before).
    """

    forwards: int
    backwards: int
    exact: bool = True


class ClassOutputs:
    """One number for each class of a segmentation, as a function of the image.

    With the fused logits z of the sliding window and the mask M_c where the unperturbed image x is predicted as class
    c, the number is ``fhat_c(x') = sum (or mean, or median) of z_c(x') over M_c`` (paper 001, Eq. 1 and 2), in logit
    units.

    Values are fused as the library fuses them (its order, weights and precision); they equal those of its own
    inference up to the rounding of the network in other batches. Gradients are those of
    ``z = sum_w g_w z_w / sum_w g_w`` with ``g_w`` the fusion weights, computed in the precision of the image
    (float32 or float64), also where values are added up in half precision (nnU-Net). Both need the memory of one batch
    of windows, plus a few volumes: gradients T times that of the image. Give some ``classes`` at a time, with
    ``logits``, to bound that.

    Args:
        network: maps (B, C, *roi) to logits (B, channels, *roi), before softmax or sigmoid.
        inferer: the deployed one, see `monai_segshap.inferers.window_plan_of`.
        image: (C, H, W, D), float, finite, in network space: the unperturbed image.
        logits: (channels, H, W, D), its fused logits by this inferer; None: it runs.
        classes: some output channels; None: all of them, the background included.
        aggregate: "sum", "mean" or "median".
        mask: what calls use: "fixed": M_c of the unperturbed image, the function that is explained; "recomputed": that
            of each image's own prediction, as released code for paper 001 evaluates perturbed images. Gradients always
            use the fixed one.
        heads: "softmax" or "sigmoid", see `monai_segshap.heads.OutputHeads`.
        device: where the network runs; default the image's.
        batch_size: windows in a batch; default the inferer's.
        numerics: see `monai_segshap.numerics.NumericMode`. Other modes than "exact" are another model in the last
            digits; results come out in the precision of the image all the same.
        checkpoint: in gradients, keep the inputs of the network's blocks only, and compute the blocks once more for
            each class: less memory, more time. Needs a module; of one that is a single block nothing is saved.
        progress: show bars of forwards done and planned.

    Attributes:
        image: the unperturbed image.
        plan: the windows.
        classes: output channels, T of them.
        masks: bool (T, H, W, D), M_c.
        values: float64 (T,), fhat_c of the unperturbed image; NaN for an absent class.
        absent: classes that are predicted nowhere. Their values are NaN in every call, and their gradients 0.
        aggregate, mask, heads, device, batch_size: as given.

    Raises:
        ValueError: for other values or shapes, or a network that returns anything but logits.
        TypeError: for an inferer without windows.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        inferer: Any,
        image: torch.Tensor,
        logits: torch.Tensor | None = None,
        *,
        classes: Sequence[int] | None = None,
        aggregate: str = "sum",
        mask: str = "fixed",
        heads: str | OutputHeads = "softmax",
        device: torch.device | str | None = None,
        batch_size: int | None = None,
        numerics: str | NumericMode = "exact",
        checkpoint: bool = False,
        progress: bool = True,
    ) -> None:
        _check_choice("aggregate", aggregate, AGGREGATES)
        _check_choice("mask", mask, MASKS)
        _check_image(image)
        self.image = image.detach().as_subclass(torch.Tensor)
        self.plan: WindowPlan = window_plan_of(inferer, self.image)
        self.aggregate, self.mask, self.heads = aggregate, mask, OutputHeads.parse(heads)
        self.device = torch.device(device) if device is not None else image.device
        self.batch_size = int(batch_size) if batch_size is not None else int(self.plan.batch_sizes.max())
        if self.batch_size < 1:
            raise ValueError(f"batch_size {batch_size}; expected 1 or more windows.")
        self.numerics, self.checkpoint, self.progress = NumericMode.parse(numerics), bool(checkpoint), progress
        if checkpoint and (self.numerics.compiled or not isinstance(network, torch.nn.Module)):
            raise ValueError(
                "checkpoint=True needs the blocks of a torch.nn.Module that is not compiled; got "
                f"a {type(network).__name__} and numerics {self.numerics.describe()!r}. Leave one of them out."
            )
        network = self.numerics.apply(network, self.device)
        self._sweep = WindowSweep(network, self.plan, self.device, self.batch_size, self.checkpoint)
        self._predicted = 0
        fused = self._predict(inferer) if logits is None else logits.detach().as_subclass(torch.Tensor)
        self._read(fused, classes)

    @property
    def n_forwards(self) -> int:
        """Windows that went through the network so far, with gradients or without; those of the prediction, too."""
        return self._predicted + self._sweep.n_forwards

    @property
    def n_backwards(self) -> int:
        """Windows that gradients went back through so far, once for each class of their batch."""
        return self._sweep.n_backwards

    def __call__(
        self, images: torch.Tensor | Iterable[torch.Tensor], *, mask: str | None = None
    ) -> NDArray[np.float64]:
        """Values of images; windows of several images share batches.

        Args:
            images: (N, C, H, W, D), or any number of (C, H, W, D), of the shape of the unperturbed image.
            mask: instead of that of the constructor.

        Returns:
            float64 (N, T), NaN in the columns of ``absent`` classes. With a recomputed mask a class that an image is
            not predicted as anywhere has a sum of 0, and no (NaN) mean or median.

        Raises:
            ValueError: for other shapes, or logits that are not finite.
        """
        chosen = mask or self.mask
        _check_choice("mask", chosen, MASKS)
        layers = self._layers if chosen == "fixed" else None
        windows = self._layers.windows if layers is not None else np.arange(self.plan.n_windows)
        count = len(images) * len(windows) if isinstance(images, (torch.Tensor, Sequence)) else None
        padded = (self._padded(image) for image in self._checked(images))
        rows = []
        with _bar(count, self.progress, "class outputs") as advance:
            for _, fused in fused_images(self._sweep, padded, windows, self.classes, layers, self._count, advance):
                rows.append(self._values(fused, layers))
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.classes))

    def gradients(self, image: torch.Tensor) -> torch.Tensor:
        """Exact gradients of all classes at an image.

        Args:
            image: (C, H, W, D).

        Returns:
            (T, C, H, W, D) on the image's device, float64 for a float64 image and float32 otherwise: logits for each
            unit of network input; 0 for ``absent`` classes. The gradient of a median is that of the logit of one
            voxel, among equals the first one in C order.

        Raises:
            ValueError: for another shape, gradients that are not finite, or a network that cuts them off.
            MemoryError: if a batch of windows does not fit into memory.
        """
        return self.weighted_gradients([image], [1.0])

    @torch.inference_mode(False)
    def weighted_gradients(self, images: Iterable[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        """Weighted sum of the gradients at several images; as `gradients`, in the memory of one.

        Args:
            images: (C, H, W, D) each, made one after the other.
            weights: one for each.

        Raises:
            ValueError: also for another number of images.
        """
        dtype = torch.float64 if self.image.dtype == torch.float64 else torch.float32
        where = self._count.device
        shape = (len(self.classes), self.image.shape[0], *self.plan.padded_shape)
        volumes = torch.zeros(shape, dtype=dtype, device=where)
        counts = [max(int(voxels), 1) if self.aggregate == "mean" else 1 for voxels in self._mask_voxels]
        total = GradientTotal(volumes, self.classes, tuple(1 / c for c in counts), self._gradient_count)
        planned = self.planned_passes(gradients=len(weights))
        with _bar(planned.forwards, self.progress, "gradients") as advance:
            self._sweep.add_gradients(self._gradient_jobs(images, weights, advance), total, advance)
        if not all(bool(torch.isfinite(volume).all()) for volume in volumes):
            raise ValueError(
                "the gradient is not finite (NaN or infinite) for this image. Try numerics='exact', and look for "
                "operations of the network that have no derivative there."
            )
        return self._on_image_grid(volumes).to(self.image.device)

    def planned_passes(self, gradients: int = 0, values: int = 0) -> PlannedPasses:
        """Passes for gradients and values of so many images, before any of them runs.

        Args:
            gradients: images of one call of `weighted_gradients`.
            values: images of calls, in all.
        """
        active = len(self._layers.windows)
        each = active if self.mask == "fixed" else self.plan.n_windows
        rows = np.tile(self._layers.incidence[self._layers.grouped], (gradients, 1))
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        if self.aggregate == "median":
            most = min(active, len(self.classes) * _cover(self.plan))
            bound = gradients * (active + most)
            return PlannedPasses(bound + values * each, gradients * most * len(self.classes), exact=gradients == 0)
        backwards = sum(len(batch) * int(batch.any(axis=0).sum()) for batch in batches)
        return PlannedPasses(len(rows) + values * each, backwards)

    def is_unperturbed(self, image: torch.Tensor) -> bool:
        """Whether an image is the unperturbed one, voxel by voxel."""
        return image.shape == self.image.shape and bool(torch.equal(torch.as_tensor(image).to(self.image), self.image))

    def settings(self) -> dict[str, Any]:
        """Plain values for JSON: what decides the results beside network, image and windows."""
        return {
            "aggregate": self.aggregate,
            "mask": self.mask,
            "heads": self.heads.describe(),
            "numerics": self.numerics.describe(),
            "autocast": autocast_state(self.device),
            "batch_size": self.batch_size,
            "checkpoint": self.checkpoint,
        }

    def _predict(self, inferer: Any) -> torch.Tensor:
        """Fused logits of the unperturbed image by the inferer itself, all bits as deployed."""
        with _bar(self.plan.n_windows, self.progress, "prediction") as advance, evaluation_mode(self._sweep.network):

            def counted(windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
                found = self._sweep.network(windows, *args, **kwargs)
                self._predicted += len(windows)
                advance(len(windows))
                return found

            found = inferer(self.image[None].to(self.device), counted)
        if not isinstance(found, torch.Tensor) or tuple(found.shape[2:]) != self.plan.image_shape:
            came = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(
                f"the inferer returned {came}; expected one tensor of logits (1, channels, *{self.plan.image_shape})."
            )
        return found[0].as_subclass(torch.Tensor)

    def _read(self, logits: torch.Tensor, classes: Sequence[int] | None) -> None:
        """Masks, their layers, and values, from the fused logits of the unperturbed image."""
        if logits.ndim != 4 or tuple(logits.shape[1:]) != self.plan.image_shape:
            raise ValueError(
                f"the logits have shape {tuple(logits.shape)}; expected (channels, *{self.plan.image_shape}), fused, of"
                " the whole image."
            )
        n_channels = self._sweep.n_channels = len(logits)
        self.heads.check(n_channels, "the prediction")
        self.classes = tuple(range(n_channels)) if classes is None else tuple(int(c) for c in classes)
        if len(set(self.classes)) != len(self.classes) or not all(0 <= c < n_channels for c in self.classes):
            raise ValueError(f"classes are {self.classes}; expected different ones of 0 to {n_channels - 1}.")
        where = self.plan.stitch_device or self.device
        weight_dtype = self.plan.weight.dtype
        self._count = fusion_count(self.plan, weight_dtype, where)
        precise = torch.promote_types(weight_dtype, torch.float32)
        self._gradient_count = self._count if precise == weight_dtype else fusion_count(self.plan, precise, where)
        masks = class_masks(self.heads, logits, self.classes)
        self._mask_voxels = [int(m.sum()) for m in masks]
        self.absent = tuple(c for c, n in zip(self.classes, self._mask_voxels, strict=True) if n == 0)
        self._layers = ClassLayers.of([m if m.any() else None for m in masks], self.plan, where)
        inside = [(logits[c], m) for c, m in zip(self.classes, masks, strict=True)]
        values = [aggregate_logits(z[m], self.aggregate) if m.any() else np.nan for z, m in inside]
        self.values: NDArray[np.float64] = np.array(values, dtype=np.float64)
        self._median_voxels = [median_voxel(z, m) if self.aggregate == "median" else None for z, m in inside]
        self.masks = masks.to(self.image.device)

    def _checked(self, images: torch.Tensor | Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for image in images:
            if image.shape != self.image.shape:
                raise ValueError(
                    f"an image has shape {tuple(image.shape)}; expected that of the unperturbed one, "
                    f"{tuple(self.image.shape)}: give (N, C, H, W, D), or several of (C, H, W, D)."
                )
            yield image

    def _padded(self, image: torch.Tensor) -> torch.Tensor:
        return self.plan.pad(image.detach().as_subclass(torch.Tensor).to(self.image), as_image=True)

    def _values(self, fused: torch.Tensor | None, layers: ClassLayers | None) -> list[float]:
        """One row of values, from the fused logits of one image; None: no class is predicted anywhere."""
        row = []
        own = class_masks(self.heads, fused, self.classes) if fused is not None and layers is None else None
        for t, c in enumerate(self.classes):
            if fused is None or c in self.absent:
                row.append(float("nan"))
                continue
            mask = own[t] if own is not None else self.masks[t].to(fused.device)
            level = c if layers is None else layers.layer_of[t]
            row.append(aggregate_logits(fused[level][mask], self.aggregate))
        return row

    def _gradient_jobs(
        self, images: Iterable[torch.Tensor], weights: Sequence[float], advance: Callable[[int], None]
    ) -> Iterator[WindowJob]:
        count = 0
        for number, image in enumerate(self._checked(images)):
            count += 1
            if count > len(weights):
                break
            padded = self._padded(image)
            layers = self._layers if self.aggregate != "median" else self._median_layers(image, padded, advance)
            for place in layers.grouped:
                window, seen = int(layers.windows[place]), layers.incidence[place]
                yield WindowJob(number, padded, window, layers, seen, float(weights[number]))
        if count != len(weights):
            raise ValueError(f"there are {len(weights)} weights, and another number of images; expected one for each.")

    def _median_layers(self, image: torch.Tensor, padded: torch.Tensor, advance: Callable[[int], None]) -> ClassLayers:
        """The voxels that hold the medians of an image; another image than the unperturbed one runs for them."""
        voxels = self._median_voxels
        if not self.is_unperturbed(image):
            for _, fused in fused_images(
                self._sweep, [padded], self._layers.windows, self.classes, self._layers, self._count, advance
            ):
                if fused is not None:
                    levels, masks = self._layers.layer_of, self.masks.to(fused.device)
                    voxels = [median_voxel(fused[level], m) for level, m in zip(levels, masks, strict=True)]
        return ClassLayers.of(voxels, self.plan, self._count.device)

    def _on_image_grid(self, volumes: torch.Tensor) -> torch.Tensor:
        """Gradients with respect to the image, from those with respect to the padded one."""
        if self.plan.padded_shape == self.plan.image_shape:
            return volumes
        with torch.enable_grad():
            image = torch.zeros((volumes.shape[1], *self.plan.image_shape), dtype=volumes.dtype, device=volumes.device)
            padded = self.plan.pad(image.requires_grad_(), as_image=True)
            pulled = [torch.autograd.grad(padded, image, volume, retain_graph=True)[0] for volume in volumes]
        return torch.stack(pulled) if pulled else volumes.new_zeros((0, *image.shape))


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; expected one of {', '.join(choices)}.")


def _check_image(image: torch.Tensor) -> None:
    if image.ndim != 4 or not image.is_floating_point():
        raise ValueError(
            f"the image has shape {tuple(image.shape)} and type {image.dtype}; expected floats (C, H, W, D) in network "
            "space, without a batch axis."
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError("the image holds values that are not finite (NaN or infinite).")


def _cover(plan: WindowPlan) -> int:
    """Most windows that can see one voxel."""
    most = 1
    for axis, size in enumerate(plan.roi_size):
        starts = np.unique(plan.starts[:, axis])
        most *= max(int(((starts <= s) & (starts + size > s)).sum()) for s in starts)
    return most


@contextmanager
def _bar(total: int | None, visible: bool, what: str) -> Iterator[Callable[[int], None]]:
    """A bar of forwards; where the total was a bound it ends at what was needed."""
    with tqdm(total=total, disable=not visible, unit="pass", desc=what, smoothing=0.05) as bar:
        yield bar.update
        if not bar.disable and bar.total != bar.n:
            bar.total = bar.n
            bar.refresh()
