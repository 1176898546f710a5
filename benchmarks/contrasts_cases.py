# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The volumes, the network and the question of `contrasts.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.transforms import NormalizeIntensity
from numpy.typing import NDArray

from monai_segshap.explainers import SubRegion, tumor_sub_regions
from monai_segshap.networks import load_weights
from monai_segshap.phantoms import brain_phantom
from monai_segshap.region import bounding_box, box_slices

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "contrast_shapley"
CONTRASTS = ("t1n", "t1c", "t2w", "t2f")
OUTPUTS = ("TC", "WT", "ET")
SUB_REGIONS = ("NCR", "ED", "ET", "TC", "WT")
#: A case with all three parts of a tumor, and more that the networks have not seen.
SEEDS = (5002, 5003, 5004)
SHAPE = (160, 192, 160)
#: As BraTS' files come.
FILE_SHAPE = (240, 240, 155)
DEMO_SHAPE = (64, 80, 64)


@dataclass(frozen=True)
class Volume:
    """A case in network space: image float32 (4, H, W, D), 0 outside the brain, and labels uint8 (1, H, W, D)."""

    name: str
    image: torch.Tensor
    label: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.image.shape[1:])


def brain(shape: Sequence[int], seed: int = SEEDS[0], name: str = "") -> Volume:
    """A phantom in RAS, normalized as in the bundle: mean 0 and standard deviation 1 over nonzero voxels."""
    case = brain_phantom(seed, tuple(shape), voxel_mm(shape))
    image = torch.from_numpy(np.ascontiguousarray(case.image[:, ::-1, ::-1]))
    label = torch.from_numpy(np.ascontiguousarray(case.targets[None, ::-1, ::-1]))
    normalized = NormalizeIntensity(nonzero=True, channel_wise=True)(image)
    return Volume(name, torch.as_tensor(normalized).as_subclass(torch.Tensor), label)


def voxel_mm(shape: Sequence[int]) -> tuple[float, float, float]:
    """2 mm in the bundle's grid, 1 mm in one of at least twice its voxels along an axis, more in a small one."""
    size = 1.0 if shape[0] >= 2 * DEMO_SHAPE[0] else 2.0 * max(1.0, DEMO_SHAPE[0] / shape[0])
    return (size, size, size)


def backgrounds(volume: Volume, file_shape: Sequence[int] = FILE_SHAPE) -> list[Volume]:
    """The same brain with less and with more air around it: its bounding box, the volume itself, a whole file."""
    box = box_slices(bounding_box((volume.image != 0).any(dim=0).numpy()))
    image, label = volume.image[(slice(None), *box)], volume.label[(slice(None), *box)]
    pad: list[int] = []
    for wanted, size in zip(reversed(file_shape), reversed(image.shape[1:]), strict=True):
        if size > wanted:
            raise ValueError(f"the brain {tuple(image.shape[1:])} does not fit into {tuple(file_shape)}.")
        pad += [(wanted - size) // 2, wanted - size - (wanted - size) // 2]
    return [
        Volume("brain's box", image.clone(), label.clone()),
        Volume("little background", volume.image, volume.label),
        Volume("as files come", torch.nn.functional.pad(image, pad), torch.nn.functional.pad(label, pad)),
    ]


def inferer(roi: int | Sequence[int] = 40, overlap: float = 0.5, batch: int = 4) -> SlidingWindowInferer:
    """The bundle's, with other windows."""
    size = (roi,) * 3 if isinstance(roi, int) else tuple(roi)
    return SlidingWindowInferer(size, sw_batch_size=batch, overlap=overlap, mode="gaussian")


def sub_regions() -> tuple[SubRegion, ...]:
    return tuple(tumor_sub_regions(SUB_REGIONS, OUTPUTS, "2023"))


def fold_networks(n_folds: int = 1) -> dict[str, torch.nn.Module]:
    """The bundle's first networks by their names."""
    config = ConfigParser.load_config_file(str(BUNDLE / "configs" / "train.yaml"))
    parser = ConfigParser({"network_def": config["network_def"]})
    return {
        f"fold_{fold}": load_weights(
            parser.get_parsed_content("network_def", instantiate=True), BUNDLE / "models" / f"fold_{fold}.pt"
        )
        for fold in range(n_folds)
    }


def coalition(mask: int) -> tuple[bool, ...]:
    """Which contrasts a coalition keeps; contrast 0 is the lowest bit."""
    return tuple(bool(mask >> c & 1) for c in range(len(CONTRASTS)))


def without(image: torch.Tensor, kept: Sequence[bool]) -> torch.Tensor:
    """The image (4, H, W, D) with the other contrasts 0."""
    found = image.clone()
    for channel, keep in enumerate(kept):
        if not keep:
            found[channel] = 0.0
    return found


def plain_dice(logits: torch.Tensor, label: torch.Tensor) -> list[float]:
    """Dice of the five sub-regions against labels, written down without the package; NaN where the label has none.

    Args:
        logits: (3, H, W, D) of tumor core, whole tumor, enhancing tumor.
        label: (1, H, W, D), 1 NCR, 2 ED, 3 ET.
    """
    core, whole, enhancing = torch.sigmoid(logits) > 0.5
    predicted = (core & ~enhancing, whole & ~core & ~enhancing, enhancing, core, whole)
    truth = (label[0] == 1, label[0] == 2, label[0] == 3, (label[0] == 1) | (label[0] == 3), label[0] > 0)
    found = []
    for mask, other in zip(predicted, truth, strict=True):
        size = int(mask.sum()) + int(other.sum())
        found.append(2 * int((mask & other).sum()) / size if bool(other.any()) else float("nan"))
    return found


def same(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """The same numbers, NaN in the same places."""
    return a.shape == b.shape and bool(((a == b) | (np.isnan(a) & np.isnan(b))).all())
