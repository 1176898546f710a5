# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Tiny nnU-Net results folders of real shape, trained for a moment by the recipe of the bundle's demonstration model.

Grids follow nnU-Net: arrays, spacings and patches are (z, y, x) here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from tiny_nnunet_cases import SPACING, TinyCase, convert_case, make_phantom_case, write_case

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundles" / "nnunet_kernelshap" / "scripts"))

import small_nnunet
from small_nnunet import SmallPlan, TrainingCase, managers, train

__all__ = [
    "ABDOMEN",
    "ORGANS",
    "REGIONS",
    "TinyCase",
    "TinyPlan",
    "convert_case",
    "dice_of",
    "make_phantom_case",
    "train_on_case",
    "write_case",
    "write_results_folder",
]

ORGANS: dict[str, Any] = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3}
ABDOMEN = {"mean": 40.0, "std": 180.0, "percentile_00_5": -1004.0, "percentile_99_5": 320.0}


@dataclass(frozen=True)
class TinyPlan(SmallPlan):
    """A plan for `make_phantom_case`; axes of ``spacing`` (mm) and ``patch_size`` are the network's."""

    spacing: tuple[float, ...] = SPACING
    patch_size: tuple[int, ...] = (16, 32, 32)
    labels: Mapping[str, Any] = field(default_factory=lambda: dict(ORGANS))
    intensities: Mapping[str, float] = field(default_factory=lambda: dict(ABDOMEN))
    median_spacing: tuple[float, float, float] = SPACING
    median_shape: tuple[int, int, int] = (28, 48, 56)


def _read(plan: TinyPlan, case: TinyCase) -> TrainingCase:
    """The files of a case, by nnU-Net's own reader."""
    reader = managers(plan)[0].image_reader_writer_class()
    channels, properties = reader.read_images(case.image_names)
    return TrainingCase(channels, np.asarray(reader.read_seg(str(case.labels))[0]).astype(np.int16)[0], properties)


def _leftovers(network: torch.nn.Module) -> dict[str, Any]:
    """What else nnU-Net's trainer saves: numpy scalars keep plain ``weights_only`` loading from reading it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    return {
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.5), np.float64(0.75)],
            "ema_fg_dice": [np.float64(0.5), np.float64(0.525)],
            "dice_per_class_or_region": [[np.float64(0.5)] * 3, [np.float64(0.75)] * 3],
            "train_losses": [np.float32(0.25), np.float32(0.125)],
            "val_losses": [np.float32(0.5), np.float32(0.25)],
            "lrs": [0.01, 0.005],
            "epoch_start_timestamps": [1.0, 2.0],
            "epoch_end_timestamps": [2.0, 3.0],
        },
        "_best_ema": np.float64(0.525),
        "current_epoch": 2,
    }


def write_results_folder(
    root: Path,
    plan: TinyPlan,
    cases: Sequence[TinyCase] = (),
    *,
    folds: Sequence[int | str] = (0,),
    steps: int = 0,
    seed: int = 0,
    rate: float = 2e-2,
) -> Path:
    """Write ``root/NAME/nnUNetTrainer__nnUNetPlans__CONFIGURATION`` with one network a fold; returns that folder."""
    read = [_read(plan, case) for case in cases]
    networks = {fold: train(plan, read, steps, seed + i, rate=rate) for i, fold in enumerate(folds)}
    leftovers = _leftovers(networks[folds[0]])
    return small_nnunet.write_results_folder(root / plan.name / plan.folder_name, plan, networks, leftovers)


def train_on_case(
    image: Path,
    labels: Path,
    folder: Path,
    steps: int = 500,
    *,
    groups: Mapping[str, Sequence[int]],
    patch_size: Sequence[int] = (16, 48, 48),
    features: Sequence[int] = (6, 12, 16, 24),
    seed: int = 0,
    configure: Callable[[TinyPlan], TinyPlan] = lambda plan: plan,
) -> tuple[Path, TinyCase]:
    """Train a small 3d_fullres model on one CT, 0.05 to 0.1 s a step; returns the results folder and the case.

    Args:
        image: CT file. ``labels`` is its label map on the same grid.
        labels: label map file.
        folder: where the case and the results folder are written.
        steps: Adam steps of two random patches.
        groups: class name to the numbers of the label map that make it.
        patch_size: (z, y, x) voxels, multiples of 2 ** (number of stages - 1).
        features: channels of each stage.
        seed: of weights and patches.
        configure: last change of the plan.
    """
    case, numbers = convert_case(image, labels, folder / "case", groups)
    file = nib.load(case.images[0])
    values, truth = np.asarray(file.dataobj), np.asarray(nib.load(case.labels).dataobj)
    inside = values[truth > 0]
    measured = {
        "mean": float(inside.mean()),
        "std": float(inside.std()),
        "percentile_00_5": float(np.percentile(inside, 0.5)),
        "percentile_99_5": float(np.percentile(inside, 99.5)),
    }
    spacing = tuple(float(s) for s in file.header.get_zooms()[:3][::-1])
    plan = configure(
        TinyPlan(
            "Dataset909_OneCase",
            spacing=spacing,
            patch_size=tuple(patch_size),
            labels=numbers,
            features=tuple(features),
            intensities=measured,
        )
    )
    return write_results_folder(folder, plan, [case], steps=steps, seed=seed), case


def dice_of(prediction: np.ndarray, truth: np.ndarray, n_classes: int) -> list[float]:
    """Dice of the classes 1 .. n_classes."""
    found = []
    for k in range(1, n_classes + 1):
        a, b = prediction == k, truth == k
        found.append(float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1)))
    return found
