# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Window plans: the windows of the deployed sliding-window inference, with everything that decides their bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple
from numpy.typing import NDArray

from monai_segshap.region import Box

__all__ = ["DILATIONS", "GRIDS", "PlansWindows", "WindowPlan", "crop_box", "monai_window_plan", "window_plan_of"]

#: Window grids: that of the deployed whole-volume inference, or a fresh one on the cropped receptive field (paper 000).
GRIDS = ("deployed", "crop")
#: How far the crop reaches beyond the regions' box: half a window ("patch radius") or a whole one.
DILATIONS = ("half", "full")


@dataclass(frozen=True)
class WindowPlan:
    """Sliding windows over one image, in the order in which the library adds them up.

    Attributes:
        image_shape: (H, W, D) of the image.
        low_padding: voxels added before each axis where the window is larger than the image.
        padded_shape: shape after padding.
        roi_size: window size.
        starts: int64 (W, 3), first voxel of each window, in the padded image.
        weight: fusion weight of a window, shape ``roi_size``; windows are added up in its dtype.
        batch_sizes: int64 (W,), size of the network batch in which the library runs each window. Convolution kernels
            may round differently for another batch size, so a window is always run in batches of its own size.
        padding_mode: mode for `torch.nn.functional.pad`.
        padding_value: value for constant padding.
        stitch_device: device on which windows are added up; None: the image's.
        contiguous: whether the library sends copies of windows to the network. Otherwise a batch of one is a view of
            the padded image, by whose strides reductions round.
        folds: networks whose fused logits are averaged; the network's channels are those of the first fold, then those
            of the second, and so on.
    """

    image_shape: tuple[int, int, int]
    low_padding: tuple[int, int, int]
    padded_shape: tuple[int, int, int]
    roi_size: tuple[int, int, int]
    starts: NDArray[np.int64]
    weight: torch.Tensor
    batch_sizes: NDArray[np.int64]
    padding_mode: str
    padding_value: float
    stitch_device: torch.device | None = None
    contiguous: bool = False
    folds: int = 1

    @property
    def n_windows(self) -> int:
        """Number of windows W of the whole image."""
        return len(self.starts)

    def touching(self, boxes: Sequence[Box]) -> NDArray[np.int64]:
        """Indices, ascending, of the windows that share a voxel with at least one box (image indices, inclusive)."""
        hit = np.zeros(self.n_windows, dtype=bool)
        for low, high in boxes:
            first = np.asarray(low) + self.low_padding
            last = np.asarray(high) + self.low_padding
            hit |= ((self.starts <= last) & (self.starts + self.roi_size > first)).all(axis=1)
        return np.flatnonzero(hit)

    def receptive_field(self, boxes: Sequence[Box]) -> NDArray[np.bool_]:
        """Bool (H, W, D): voxels seen by at least one window that touches a box. No other voxel can matter there."""
        seen = np.zeros(self.padded_shape, dtype=bool)
        for window in self.touching(boxes):
            seen[self.window_slices(int(window))] = True
        return seen[tuple(slice(p, p + n) for p, n in zip(self.low_padding, self.image_shape, strict=True))]

    def window_slices(self, window: int) -> tuple[slice, slice, slice]:
        """Slices of a window in the padded image."""
        i, j, k = (slice(int(s), int(s) + r) for s, r in zip(self.starts[window], self.roi_size, strict=True))
        return i, j, k

    def pad(self, volume: torch.Tensor, *, as_image: bool) -> torch.Tensor:
        """Pad a (C, H, W, D) tensor as the library pads.

        With constant padding the image gets the plan's value and anything else 0: such voxels belong to no unit. With
        reflected, replicated or circular padding everything follows the image, so that padding voxels belong to
        the unit that they mirror.
        """
        amounts: list[int] = []
        for axis in (2, 1, 0):
            extra = self.padded_shape[axis] - self.image_shape[axis]
            amounts += [self.low_padding[axis], extra - self.low_padding[axis]]
        if not any(amounts):
            return volume
        if self.padding_mode != "constant":
            source = volume if volume.is_floating_point() else volume.to(torch.float64)
            return torch.nn.functional.pad(source[None], amounts, mode=self.padding_mode)[0].to(volume.dtype)
        value = self.padding_value if as_image else 0
        return torch.nn.functional.pad(volume, amounts, mode="constant", value=value)


@runtime_checkable
class PlansWindows(Protocol):
    """An inferer that knows its own windows, unlike MONAI's."""

    def window_plan(self, image: torch.Tensor) -> WindowPlan:
        """The windows that it runs for an image (C, H, W, D) of batch size 1."""


def window_plan_of(inferer: Any, image: torch.Tensor) -> WindowPlan:
    """The windows of a deployed inferer: its own plan where it has one, else that of a MONAI `SlidingWindowInferer`.

    Args:
        inferer: with a method ``window_plan``, or MONAI's.
        image: (C, H, W, D); shape, dtype and device matter, not the values.

    Raises:
        TypeError: for any other inferer: without windows there is nothing to share.
        ValueError: see `monai_window_plan`.
    """
    if isinstance(inferer, PlansWindows):
        return inferer.window_plan(image)
    if not isinstance(inferer, SlidingWindowInferer):
        raise TypeError(
            f"the inferer is a {type(inferer).__name__}; expected MONAI's SlidingWindowInferer, or an inferer with a "
            "method window_plan. For a network that takes the whole image at once use a SlidingWindowInferer whose "
            "roi_size is the image's."
        )
    return monai_window_plan(inferer, image)


def monai_window_plan(inferer: SlidingWindowInferer, image: torch.Tensor) -> WindowPlan:
    """The windows that MONAI's `SlidingWindowInferer` runs for an image of batch size 1.

    Args:
        inferer: the deployed inferer.
        image: (C, H, W, D); shape, dtype and device matter, not the values.

    Returns:
        the plan; fusing its windows in order reproduces the inferer bit for bit.

    Raises:
        ValueError: for a wrong number of axes, or an inferer with buffered stitching (its order of additions
            differs), with coordinates, or with an overlap outside [0, 1).
    """
    if image.ndim != 4:
        raise ValueError(f"the image has shape {tuple(image.shape)}; expected channel-first (C, H, W, D).")
    if inferer.buffer_steps:
        raise ValueError(
            f"the inferer buffers its windows (buffer_steps={inferer.buffer_steps}), which adds them up in another "
            "order. Use buffer_steps=None for explanations."
        )
    if inferer.with_coord:
        raise ValueError(
            "the inferer sends window coordinates to the network (with_coord=True); shared windows have none. Use a "
            "network that does not need them, and with_coord=False."
        )
    if isinstance(inferer.roi_size, Sequence) and len(inferer.roi_size) != 3:
        raise ValueError(f"the inferer's roi_size is {tuple(inferer.roi_size)}; expected three sizes for a 3D image.")
    shape = tuple(int(n) for n in image.shape[1:])
    roi = tuple(int(n) for n in fall_back_tuple(inferer.roi_size, shape))
    overlap = ensure_tuple_rep(inferer.overlap, 3)
    if not all(0 <= o < 1 for o in overlap):
        raise ValueError(f"the inferer's overlap is {overlap}; expected 0 or more and below 1 for each axis.")
    padded = tuple(max(n, r) for n, r in zip(shape, roi, strict=True))
    interval = [r if r == n else max(int(r * (1 - o)), 1) for n, r, o in zip(padded, roi, overlap, strict=True)]
    slices = dense_patch_slices(padded, roi, interval)
    starts = np.array([[s.start for s in window] for window in slices], dtype=np.int64)
    return WindowPlan(
        image_shape=(shape[0], shape[1], shape[2]),
        low_padding=_triple([(p - n) // 2 for p, n in zip(padded, shape, strict=True)]),
        padded_shape=_triple(padded),
        roi_size=_triple(roi),
        starts=starts,
        weight=_fusion_weight(inferer, roi, image),
        batch_sizes=_library_batches(len(starts), int(inferer.sw_batch_size)),
        padding_mode=str(getattr(inferer.padding_mode, "value", inferer.padding_mode)),
        padding_value=float(inferer.cval),
        stitch_device=torch.device(inferer.device) if inferer.device is not None else None,
    )


def crop_box(boxes: Sequence[Box], roi_size: Sequence[int], shape: Sequence[int], dilation: str = "half") -> Box:
    """Receptive field of paper 000, section III-A: the regions' box, dilated and cut at the image's border.

    Args:
        boxes: of the regions, image indices, both corners inside.
        roi_size: window size.
        shape: of the image.
        dilation: "half" a window (the paper's patch radius) or a "full" one on each side.

    Returns:
        the crop, both corners inside. Windows that see the region reach up to a whole window beyond it, so that with
        "half" units further out are cut off, and the prediction on the crop differs from the deployed one.

    Raises:
        ValueError: for an unknown dilation.
    """
    if dilation not in DILATIONS:
        raise ValueError(f"unknown crop dilation {dilation!r}; expected one of {', '.join(DILATIONS)}.")
    low, high = (np.array([b[end] for b in boxes]) for end in (0, 1))
    reach = np.asarray(roi_size) // (2 if dilation == "half" else 1)
    first = np.maximum(low.min(axis=0) - reach, 0)
    last = np.minimum(high.max(axis=0) + reach, np.asarray(shape) - 1)
    return _triple(first), _triple(last)


def _fusion_weight(inferer: SlidingWindowInferer, roi: tuple[int, ...], image: torch.Tensor) -> torch.Tensor:
    device = inferer.sw_device or image.device
    weight = inferer.roi_weight_map
    if weight is None:
        weight = compute_importance_map(
            roi, mode=inferer.mode, sigma_scale=inferer.sigma_scale, device=device, dtype=image.dtype
        )
    return torch.as_tensor(weight).to(dtype=image.dtype, device=device).reshape(roi)


def _library_batches(n_windows: int, batch_size: int) -> NDArray[np.int64]:
    """Batch size of each window: the inferer's, and for the last, ragged batch what is left."""
    sizes = np.full(n_windows, batch_size, dtype=np.int64)
    left = n_windows % batch_size
    if left:
        sizes[-left:] = left
    return sizes


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    return int(values[0]), int(values[1]), int(values[2])
