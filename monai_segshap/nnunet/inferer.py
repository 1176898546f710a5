# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net's sliding window as a MONAI inferer that knows its windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from monai_segshap.inferers import WindowPlan, infer_volume
from monai_segshap.nnunet.requirements import require_nnunet

__all__ = ["ACCUMULATORS", "NNUNetInferer"]

#: "float32": windows are added up in single precision; "nnunet": in half precision, nnU-Net's own bits.
ACCUMULATORS = ("float32", "nnunet")


class NNUNetInferer(Inferer):
    """Whole-volume inference with the windows, weights and order of `nnUNetPredictor`.

    nnU-Net adds windows up in half precision, on the CPU, too. In the corners of the volume, where the weight of a
    window is the smallest number of that type, logits are rounded to whole numbers; elsewhere they are rounded in
    proportion to their size (by 0.02 to 0.09 for logits of up to 48), which flips near-ties. ``accumulate="nnunet"``
    gives nnU-Net's bits, ``accumulate="float32"`` scores without that noise.

    Args:
        patch_size: window, three sizes; (1, h, w) for a 2D network.
        step_size: of the windows, as a share of the patch, above 0, at most 1.
        accumulate: one of `ACCUMULATORS`.
        folds: networks in the output channels, see `FoldsNetwork`.

    Raises:
        ValueError: for other values.
    """

    def __init__(
        self, patch_size: Sequence[int], step_size: float = 0.5, accumulate: str = "float32", folds: int = 1
    ) -> None:
        super().__init__()
        if accumulate not in ACCUMULATORS:
            raise ValueError(f"unknown accumulate {accumulate!r}; expected one of {', '.join(ACCUMULATORS)}.")
        if not 0 < step_size <= 1:
            raise ValueError(f"the step size is {step_size}; expected a share of the patch above 0, at most 1.")
        if len(patch_size) != 3 or min(patch_size) < 1:
            raise ValueError(f"the patch size is {tuple(patch_size)}; expected three sizes, (1, h, w) for 2D networks.")
        self.patch_size = (int(patch_size[0]), int(patch_size[1]), int(patch_size[2]))
        self.step_size, self.accumulate, self.folds = float(step_size), accumulate, int(folds)

    @property
    def roi_size(self) -> tuple[int, int, int]:
        """The patch size, under MONAI's name."""
        return self.patch_size

    def window_plan(self, image: torch.Tensor) -> WindowPlan:
        """The windows for an image (C, a, b, c) on the network's grid.

        Raises:
            ValueError: for another number of axes.
            ImportError: without nnunetv2.
        """
        require_nnunet()
        from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

        if image.ndim != 4:
            raise ValueError(f"the image has shape {tuple(image.shape)}; expected channel-first (C, a, b, c).")
        patch = self.patch_size
        shape = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
        padded = (max(shape[0], patch[0]), max(shape[1], patch[1]), max(shape[2], patch[2]))
        low = ((padded[0] - shape[0]) // 2, (padded[1] - shape[1]) // 2, (padded[2] - shape[2]) // 2)
        # a 2D network sees every slice of the first axis, one by one
        moving = slice(1, None) if patch[0] == 1 else slice(None)
        steps = compute_steps_for_sliding_window(padded[moving], patch[moving], self.step_size)
        if patch[0] == 1:
            steps = [list(range(padded[0])), *steps]
        starts = np.array(list(product(*steps)), dtype=np.int64)
        dtype = torch.half if self.accumulate == "nnunet" else torch.float32
        weight = compute_gaussian(patch[moving], sigma_scale=1.0 / 8, value_scaling_factor=10, device=image.device)
        return WindowPlan(
            image_shape=shape,
            low_padding=low,
            padded_shape=padded,
            roi_size=patch,
            starts=starts,
            weight=weight.to(dtype, copy=True).reshape(patch),
            batch_sizes=np.ones(len(starts), dtype=np.int64),
            padding_mode="constant",
            padding_value=0.0,
            contiguous=True,
            folds=self.folds,
        )

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Fused logits (B, heads, a, b, c) of images (B, C, a, b, c), with the meta data of a `MetaTensor`.

        Raises:
            ValueError: if logits overflow half precision, or come out at another size.
        """

        def run(windows: torch.Tensor) -> torch.Tensor:
            logits = network(windows, *args, **kwargs)
            expected = (windows.shape[0], *windows.shape[2:])
            came = (logits.shape[0], *logits.shape[2:]) if isinstance(logits, torch.Tensor) else type(logits).__name__
            if came != expected or logits.shape[1] % self.folds:
                raise ValueError(
                    f"the network returned {came if isinstance(came, str) else tuple(logits.shape)} for windows "
                    f"{tuple(windows.shape)}; expected one tensor of full-resolution logits (deep supervision off), "
                    f"for {self.folds} fold(s)."
                )
            return logits

        found = torch.stack([infer_volume(run, self.window_plan(image), image) for image in inputs])
        if self.accumulate == "nnunet" and not bool(torch.isfinite(found).all()):
            raise ValueError(
                "logits are too large for nnU-Net's half precision, in which windows are added up (nnU-Net itself "
                "stops here). Use accumulate='float32'."
            )
        return MetaTensor(found).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else found
