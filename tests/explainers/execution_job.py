# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A case of noise with 27 cubes as units and 27 windows, of which a library batch of two leaves one over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer

from monai_segshap.explainers import Explanation, KernelSHAPExplainer
from monai_segshap.geometry import VoxelGrid
from monai_segshap.region import Region
from monai_segshap.units import cube_partition

SHAPE = (14, 14, 14)
INSIDE = (slice(6, 9), slice(5, 8), slice(4, 8))


def image_of(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32))


def whole_volume(network: Any, image: torch.Tensor, library: int = 2) -> torch.Tensor:
    with torch.no_grad():
        return inferer_of(library)(image[None], network)[0]


def inferer_of(library: int) -> SlidingWindowInferer:
    return SlidingWindowInferer((8, 8, 8), library, overlap=0.5, mode="gaussian")


def explainer_of(network: Any, library: int = 2, **options: Any) -> KernelSHAPExplainer:
    options = {"budget": 70, "method": "kernelshap", "progress": False, **options}
    return KernelSHAPExplainer(network, inferer_of(library), **options)


def ask(explainer: KernelSHAPExplainer, logits: torch.Tensor, seed: int = 0) -> Explanation:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[INSIDE] = True
    partition = cube_partition(VoxelGrid(SHAPE, np.eye(4)), 5.0)
    (found,) = explainer(image_of(seed), partition, [Region(mask, "box", 1, 0)], logits)
    return found


def stored(folder: Path, name: str = "chunk_*.npz") -> list[Path]:
    return sorted(folder.glob(f"*/{name}"))


def record(explanation: Explanation) -> dict[str, Any]:
    """What does not depend on the time."""
    found = explanation.to_dict()
    found.pop("seconds")
    return found
