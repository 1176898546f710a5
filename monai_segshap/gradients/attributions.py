# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What a gradient method returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["VoxelAttributions"]


@dataclass(frozen=True)
class VoxelAttributions:
    """Signed voxel maps of the class outputs of one image.

    Attributes:
        maps: float (T, C, H, W, D) on the image's device and grid. Gradients: logits for each unit of network input;
            integrated gradients: logits. Positive where more input raises the output (gradients), or where the input
            raised it above the baseline's (integrated gradients). 0 throughout for ``absent`` classes, which have no
            attribution: a share or correlation of such a map is undefined.
        classes: output channels, T of them.
        method: "vanilla_gradient", "smooth_gradient" or "integrated_gradients".
        values: float64 (T,), fhat_c of the unperturbed image; NaN for absent classes.
        absent: classes that the unperturbed image is not predicted as anywhere.
        seconds: wall time of all classes together.
        n_forwards: windows that went through the network for them, without those of the prediction.
        n_backwards: windows that gradients went back through, once for each class of their batch.
        completeness_gap: integrated gradients: float64 (T,), ``|sum of the map - (fhat(x) - fhat(x'))|`` in logits;
            NaN for absent classes; otherwise None.
        relative_gap: the same over ``|fhat(x) - fhat(x')|``; NaN where that is 0.
        settings: plain values: how it was computed.
    """

    maps: torch.Tensor
    classes: tuple[int, ...]
    method: str
    values: NDArray[np.float64]
    absent: tuple[int, ...]
    seconds: float
    n_forwards: int
    n_backwards: int
    completeness_gap: NDArray[np.float64] | None = None
    relative_gap: NDArray[np.float64] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def of_class(self, number: int) -> torch.Tensor:
        """The map (C, H, W, D) of one output channel.

        Raises:
            ValueError: for a class that was not asked for.
        """
        if number not in self.classes:
            raise ValueError(f"there is no map of class {number}; there are maps of {self.classes}.")
        return self.maps[self.classes.index(number)]
