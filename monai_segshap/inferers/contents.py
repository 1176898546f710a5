# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What the network sees of a coalition in one window: voxels of the image, or of their replacement."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.inferers.images import PerturbedImages
from monai_segshap.inferers.jobs import channel_units
from monai_segshap.inferers.window_plan import WindowPlan

__all__ = ["WindowContents"]


class WindowContents:
    """Input windows of coalitions, on the device of the network.

    Args:
        plan: the windows.
        image: (C, H, W, D), network space.
        labels: int (H, W, D), units 1..M, 0 is never perturbed; or (C, H, W, D), units that own single channels.
        fill: (C, H, W, D), replacement of removed voxels.
        visible: bool (M,), the units that coalitions are made of; others stay as they are.
        device: where the windows are made.
        perturbed: makes whole images of coalitions; then ``fill`` and ``labels`` are not used.

    Attributes:
        image: (C, *padded shape), on the device.
    """

    def __init__(
        self,
        plan: WindowPlan,
        image: torch.Tensor,
        labels: torch.Tensor,
        fill: torch.Tensor,
        visible: NDArray[np.bool_],
        device: torch.device,
        perturbed: PerturbedImages | None = None,
    ) -> None:
        self.plan, self.perturbed, self.visible, self.device = plan, perturbed, visible, device
        self.image = plan.pad(image.as_subclass(torch.Tensor), as_image=True).to(device)
        self._fill = plan.pad(fill.as_subclass(torch.Tensor), as_image=False).to(device)
        numbers = np.concatenate([[0], np.cumsum(visible) * visible])
        owners = channel_units(labels)
        self._channels: list[int] | None = None
        self._labels: torch.Tensor | None = None
        if owners is None:
            shared = labels[None] if labels.ndim == 3 else labels  # (1 or C, H, W, D)
            own = torch.from_numpy(numbers)[shared.to(torch.int64)]
            self._labels = plan.pad(own, as_image=False).to(device)
        else:
            self._channels = [int(n) for n in numbers[owners]]
            if self._fill.shape != fill.shape:  # padding belongs to no unit, unless it mirrors the image
                ones = torch.ones((1, *plan.image_shape), dtype=torch.uint8)
                inside = plan.pad(ones, as_image=False).to(device) > 0
                self._fill = torch.where(inside, self._fill, self.image)

    @property
    def n_bytes(self) -> int:
        """Bytes of image, replacement and units on the device."""
        held = (self.image, self._fill, *([] if self._labels is None else [self._labels]))
        return sum(t.element_size() * t.numel() for t in held)

    def write(self, out: torch.Tensor, window: int, row: NDArray[np.bool_]) -> None:
        """Write the content of a window, (C, *roi), for a coalition of the visible units, bool (V,), True keeps."""
        part = self.plan.window_slices(window)
        place = (slice(None), *part)
        if self.perturbed is not None:
            kept = np.ones(len(self.visible), dtype=bool)
            kept[self.visible] = row
            out.copy_(self.plan.pad(self.perturbed(kept), as_image=True)[place])
        elif self._labels is not None:
            keep = torch.ones(len(row) + 1, dtype=torch.bool)
            keep[1:] = torch.from_numpy(np.ascontiguousarray(row))
            torch.where(keep.to(self.device)[self._labels[place]], self.image[place], self._fill[place], out=out)
        else:
            for channel, number in enumerate(self._channels or ()):
                source = self.image if number == 0 or row[number - 1] else self._fill
                out[channel].copy_(source[channel][part])
