# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The oracle of removal in raw intensities: nnU-Net's own preprocessing and steps, and Shapley values over subsets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from monai.data import MetaTensor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from tiny_nnunet import TinyCase

from monai_segshap.explainers import Explanation, KernelSHAPExplainer
from monai_segshap.geometry import current_grid
from monai_segshap.inferers import PerturbedImages
from monai_segshap.nnunet import (
    NNUNetModel,
    baseline_of,
    load_nnunet,
    nnunet_properties,
    preprocess_files,
    raw_case_from_files,
    raw_perturbation,
)
from monai_segshap.region import Region, bounding_box
from monai_segshap.units import Partition, partition_from_labels

__all__ = ["HU", "N_UNITS", "Setting", "by_nnunet", "file_units", "setting_of"]

SCORES = ("tp", "fp", "dice", "soft_dice")
HU = -1024.0
N_UNITS = 4


@contextmanager
def frozen_crop(box: list[list[int]]) -> Iterator[None]:
    """`run_case_npy` crops to this box instead of to what is not zero."""
    inside = tuple(slice(low, high) for low, high in box)

    def crop(data: np.ndarray, seg: Any = None) -> Any:
        assert seg is None
        part = data[(slice(None), *inside)]
        return part, np.zeros((1, *part.shape[1:]), dtype=np.int8), box

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default_preprocessor, "crop_to_nonzero", crop)
        yield


def by_nnunet(model: NNUNetModel, files: list[str], removed: np.ndarray, hu: float) -> torch.Tensor:
    """The network's input, removed voxels (z, y, x) replaced in the file's intensities, crop box of the whole image."""
    preprocessor = model.config.preprocessor_class(verbose=False)
    arguments = (model.plans, model.config, model.dataset)
    voxels, properties = model.plans.image_reader_writer_class().read_images(files)
    box = preprocessor.run_case_npy(voxels, None, dict(properties), *arguments)[2]["bbox_used_for_cropping"]
    voxels = np.array(voxels, dtype=np.float32)
    voxels[:, removed] = hu
    with frozen_crop([list(ends) for ends in box]):
        data = preprocessor.run_case_npy(voxels, None, dict(properties), *arguments)[0]
    return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))


def logits_around(model: NNUNetModel, image: torch.Tensor, region: Region) -> np.ndarray:
    """Logits with nnU-Net's padding, windows and weights, added up in single precision; right inside the region only.

    One fold; windows that share no voxel with the region's box are left out.
    """
    low, high = np.argwhere(region.mask).min(axis=0), np.argwhere(region.mask).max(axis=0)
    patch = list(model.config.patch_size)
    padded, inner = pad_nd_image(image, patch, "constant", {"value": 0}, True, None)
    steps = compute_steps_for_sliding_window(padded.shape[1:], patch, 0.5)
    weight = compute_gaussian(tuple(patch), sigma_scale=1.0 / 8, value_scaling_factor=10, device=torch.device("cpu"))
    total = torch.zeros((model.n_heads, *padded.shape[1:]))
    count = torch.zeros(padded.shape[1:])
    (network,) = model.networks
    with torch.no_grad():
        for start in itertools.product(*steps):
            first = np.array(start) - [s.start for s in inner[1:]]
            if (first > high).any() or (first + patch <= low).any():
                continue
            part = (slice(None), *(slice(s, s + p) for s, p in zip(start, patch, strict=True)))
            total[part] += network(padded[part][None])[0] * weight.float()
            count[part[1:]] += weight.float()
    return (total / count.clamp(min=1e-9))[(slice(None), *inner[1:])].double().numpy()


def paper_scores(logits: np.ndarray, full: np.ndarray, region: Region) -> np.ndarray:
    """Equations 3 to 6 of paper 000."""
    z = logits[region.target][region.mask]
    now = logits.argmax(axis=0)[region.mask] == region.target
    before = full.argmax(axis=0)[region.mask] == region.target
    tp, fp = (z * (now & before)).mean(), -(z * (now & ~before)).mean()
    dice = 2 * (now & before).sum() / (now.sum() + before.sum() + 1e-8)
    return np.array([tp, fp, dice, (z * now * np.where(before, 1, -1)).mean()])


def shapley(game: dict[tuple[bool, ...], np.ndarray], n_units: int) -> np.ndarray:
    """The formula over subsets."""
    values = np.zeros((n_units, len(SCORES)))
    for kept, worth in game.items():
        size = sum(kept)
        for unit in range(n_units):
            if not kept[unit]:
                weight = math.factorial(size) * math.factorial(n_units - size - 1) / math.factorial(n_units)
                joined = (*kept[:unit], True, *kept[unit + 1 :])
                values[unit] += weight * (game[joined] - worth)
    return values


def file_units(labels: np.ndarray, model: NNUNetModel, properties: dict[str, Any]) -> np.ndarray:
    """Unit of each voxel of the reader's array (z, y, x): that of the nearest network voxel, axis by axis."""
    order, box = model.plans.transpose_forward, properties["bbox_used_for_cropping"]
    found = np.zeros(properties["shape_before_cropping"], dtype=int)
    nearest = []
    for axis, (low, high) in enumerate(box):
        n, m = high - low, labels.shape[axis]
        nearest.append(np.floor((np.arange(n) + 0.5) * m / n).astype(int).clip(0, m - 1))
    found[tuple(slice(low, high) for low, high in box)] = labels[np.ix_(*nearest)]
    return found.transpose(np.argsort(order))


@dataclass(frozen=True)
class Setting:
    model: NNUNetModel
    case: TinyCase
    image: MetaTensor
    logits: torch.Tensor
    partition: Partition
    region: Region
    hu: float = HU

    @property
    def perturbed(self) -> PerturbedImages | None:
        raw = raw_case_from_files(self.model, list(self.case.images))
        field = self.model.inferer().window_plan(self.image).receptive_field([self.region.box])
        return raw_perturbation(self.model, raw, self.image, self.partition, bounding_box(field), self.hu)

    def explain(self, perturbed: PerturbedImages | None, network: Any = None, **options: Any) -> Explanation:
        options = {"baseline": baseline_of(self.model, self.hu), "progress": False, "scores": SCORES, **options}
        explainer = KernelSHAPExplainer(network or self.model.network(), self.model.inferer(), **options)
        return explainer(self.image, self.partition, [self.region], self.logits, perturbed=perturbed)[0]

    def oracle(self) -> tuple[np.ndarray, dict[tuple[bool, ...], np.ndarray]]:
        units = file_units(self.partition.labels, self.model, nnunet_properties(self.image))
        n, files, game = self.partition.n_units, self.case.image_names, {}
        full = logits_around(
            self.model, by_nnunet(self.model, files, np.zeros(units.shape, bool), self.hu), self.region
        )
        for kept in itertools.product([True, False], repeat=n):
            removed = np.isin(units, [u for u in range(1, n + 1) if not kept[u - 1]])
            logits = logits_around(self.model, by_nnunet(self.model, files, removed, self.hu), self.region)
            game[kept] = paper_scores(logits, full, self.region)
        return shapley(game, n), game


def setting_of(folder: Path, case: TinyCase, target: int = 2, hu: float = HU) -> Setting:
    """Units: liver, spleen, kidney, and a slab of everything else that reaches the border of the image."""
    model = load_nnunet(folder)
    image = preprocess_files(model, case.images)
    with torch.no_grad():
        logits = model.inferer()(image.as_subclass(torch.Tensor)[None], model.network())[0]
    a, b, c = image.shape[1:]
    predicted = logits.argmax(dim=0).numpy()
    z = list(model.plans.transpose_forward).index(0)
    labels = predicted.astype(int)
    labels[(labels == 0) & (np.indices((a, b, c))[z] < 7)] = 4
    partition = partition_from_labels(labels, current_grid(image), "parts")
    low, high = bounding_box(predicted == target)
    mask = np.zeros((a, b, c), dtype=bool)
    mask[tuple(slice(max(x - 1, 0), y + 2) for x, y in zip(low, high, strict=True))] = True
    return Setting(model, case, image, logits, partition, Region(mask, "box", target, 0), hu)
