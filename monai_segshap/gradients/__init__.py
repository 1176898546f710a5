# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Voxel attributions: exact gradients of aggregated class outputs through the sliding window (paper 001)."""

from __future__ import annotations

from monai_segshap.gradients.attributions import VoxelAttributions
from monai_segshap.gradients.fusion import AGGREGATES
from monai_segshap.gradients.methods import gradient_noise, integrated_gradients, smooth_gradient, vanilla_gradient
from monai_segshap.gradients.outputs import MASKS, ClassOutputs, PlannedPasses

__all__ = [
    "AGGREGATES",
    "MASKS",
    "ClassOutputs",
    "PlannedPasses",
    "VoxelAttributions",
    "gradient_noise",
    "integrated_gradients",
    "smooth_gradient",
    "vanilla_gradient",
]
