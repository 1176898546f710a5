# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Tiny nnU-Net results folders of real shape, trained for a moment through nnU-Net's own preprocessing and network.

Grids follow nnU-Net: arrays, spacings and patches are (z, y, x) here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from tiny_nnunet_cases import SPACING, TinyCase, convert_case, make_phantom_case, write_case

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
class TinyPlan:
    """What differs from one tiny model to the next; axes of ``spacing`` (mm) and ``patch_size`` are the network's."""

    name: str
    configuration: str = "3d_fullres"
    spacing: tuple[float, ...] = SPACING
    patch_size: tuple[int, ...] = (16, 32, 32)
    labels: Mapping[str, Any] = field(default_factory=lambda: dict(ORGANS))
    regions_class_order: tuple[int, ...] | None = None
    channels: tuple[str, ...] = ("CT",)
    transpose_forward: tuple[int, int, int] = (0, 1, 2)
    features: tuple[int, ...] = (8, 16, 32)
    intensities: Mapping[str, float] = field(default_factory=lambda: dict(ABDOMEN))
    mirror_axes: tuple[int, ...] | None = (0, 1, 2)
    previous_stage: str | None = None

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @property
    def folder_name(self) -> str:
        """Name of the results folder, as nnU-Net's training makes it."""
        return f"nnUNetTrainer__nnUNetPlans__{self.configuration}"

    def architecture(self) -> dict[str, Any]:
        """A plain U-Net with one convolution a stage; one stage for each entry of ``features``."""
        d, n = self.dims, len(self.features)
        return {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": n,
                "features_per_stage": list(self.features),
                "conv_op": f"torch.nn.modules.conv.Conv{d}d",
                "kernel_sizes": [[3] * d] * n,
                "strides": [[1] * d] + [[2] * d] * (n - 1),
                "n_conv_per_stage": [1] * n,
                "n_conv_per_stage_decoder": [1] * (n - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{d}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }

    def configuration_plan(self) -> dict[str, Any]:
        """The entry of ``plans["configurations"]``."""
        resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
        found: dict[str, Any] = {
            "data_identifier": f"nnUNetPlans_{self.configuration}",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": list(self.patch_size),
            "median_image_size_in_voxels": [float(2 * p) for p in self.patch_size],
            "spacing": list(self.spacing),
            "normalization_schemes": ["CTNormalization" if c == "CT" else "ZScoreNormalization" for c in self.channels],
            "use_mask_for_norm": [False] * len(self.channels),
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": resampling,
            "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
            "architecture": self.architecture(),
            "batch_dice": False,
        }
        return found if self.previous_stage is None else {**found, "previous_stage": self.previous_stage}

    def plans(self) -> dict[str, Any]:
        """Content of plans.json."""
        spacing = [SPACING[i] for i in self.transpose_forward]
        intensities = dict(self.intensities)
        return {
            "dataset_name": self.name,
            "plans_name": "nnUNetPlans",
            "original_median_spacing_after_transp": spacing,
            "original_median_shape_after_transp": [28, 48, 56],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": list(self.transpose_forward),
            "transpose_backward": [int(i) for i in np.argsort(self.transpose_forward)],
            "configurations": {self.configuration: self.configuration_plan()},
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                str(i): {**intensities, "median": intensities["mean"], "min": -1024.0, "max": 1500.0}
                for i in range(len(self.channels))
            },
        }

    def dataset(self) -> dict[str, Any]:
        """Content of dataset.json; the order of its labels is the order of the heads."""
        found: dict[str, Any] = {
            "channel_names": {str(i): c for i, c in enumerate(self.channels)},
            "labels": dict(self.labels),
            "numTraining": 2,
            "file_ending": ".nii.gz",
        }
        if self.regions_class_order is not None:
            found["regions_class_order"] = list(self.regions_class_order)
        return found


def _managers(plan: TinyPlan) -> tuple[Any, Any, Any]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(json.loads(json.dumps(plan.plans())))
    return plans, plans.get_configuration(plan.configuration), plans.get_label_manager(plan.dataset())


def _preprocess(plan: TinyPlan, case: TinyCase) -> tuple[torch.Tensor, torch.Tensor]:
    """Data (C, a, b, c) float32 and labels (a, b, c) int64 on the network grid, by nnU-Net's own preprocessor."""
    plans, config, _ = _managers(plan)
    reader = plans.image_reader_writer_class()
    data, properties = reader.read_images(case.image_names)
    labels = np.asarray(reader.read_seg(str(case.labels))[0]).astype(np.int16)
    preprocessor = config.preprocessor_class(verbose=False)
    data, labels, _ = preprocessor.run_case_npy(data, labels, properties, plans, config, plan.dataset())
    return torch.as_tensor(np.asarray(data), dtype=torch.float32), torch.as_tensor(np.asarray(labels[0])).long().clamp(
        min=0
    )


def _build_network(plan: TinyPlan) -> torch.nn.Module:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    plans, config, labels = _managers(plan)
    n_inputs = determine_num_input_channels(plans, config, plan.dataset())
    return nnUNetTrainer.build_network_architecture(
        plans, config, n_inputs, labels.num_segmentation_heads, enable_deep_supervision=False
    )


def _patch(
    data: torch.Tensor, target: torch.Tensor, size: Sequence[int], rng: np.random.Generator, organ: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random patch, every other one around a voxel of ``organ``; for two sizes, a patch of one slice."""
    full = (1,) * (3 - len(size)) + tuple(size)
    center = organ[rng.integers(len(organ))].tolist() if len(organ) and rng.random() < 0.6 else None
    starts = []
    for axis, (n, p) in enumerate(zip(data.shape[1:], full, strict=True)):
        low = int(rng.integers(n - p + 1))
        starts.append(low if center is None else int(np.clip(center[axis] - p // 2 + rng.integers(-2, 3), 0, n - p)))
    box = (slice(None), *(slice(s, s + p) for s, p in zip(starts, full, strict=True)))
    cut = data[box], target[box]
    return cut if len(size) == 3 else (cut[0][:, 0], cut[1][:, 0])


def _loss(logits: torch.Tensor, target: torch.Tensor, regions: bool) -> torch.Tensor:
    """Cross entropy plus soft Dice; ``target`` is one-hot, or one mask a region."""
    axes = (0, *range(2, logits.ndim))
    if regions:
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        found = torch.sigmoid(logits)
    else:
        entropy = torch.nn.functional.cross_entropy(logits, target)
        found, target = torch.softmax(logits, 1)[:, 1:], target[:, 1:]
    dice = (2 * (found * target).sum(axes) + 1e-3) / (found.sum(axes) + target.sum(axes) + 1e-3)
    return entropy + 1.0 - dice.mean()


def _train(
    plan: TinyPlan, cases: Sequence[TinyCase], steps: int, seed: int, batch: int = 2, rate: float = 2e-2
) -> torch.nn.Module:
    """The network after ``steps`` Adam steps; 0 steps leave the seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build_network(plan)
    if steps == 0:
        return network.eval()
    rng = np.random.default_rng(seed)
    _, _, labels = _managers(plan)
    heads = labels.foreground_regions if labels.has_regions else labels.all_labels
    prepared = []
    for case in cases:
        data, truth = _preprocess(plan, case)
        short = [max(p - n, 0) for p, n in zip((1, *plan.patch_size)[-3:], data.shape[1:], strict=True)]
        pad = [v for s in reversed(short) for v in (s // 2, s - s // 2)]
        data, truth = torch.nn.functional.pad(data, pad), torch.nn.functional.pad(truth, pad)
        masks = [torch.isin(truth, torch.as_tensor(np.atleast_1d(h))) for h in heads]
        prepared.append(
            (data, torch.stack(masks).float(), [torch.nonzero(truth == k) for k in range(1, 1 + int(truth.max()))])
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    for _ in range(steps):
        pairs = []
        for _ in range(batch):
            data, target, organs = prepared[rng.integers(len(prepared))]
            pairs.append(_patch(data, target, plan.patch_size, rng, organs[rng.integers(len(organs))]))
        windows, targets = (torch.stack(p) for p in zip(*pairs, strict=True))
        optimizer.zero_grad()
        _loss(network(windows), targets, labels.has_regions).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _checkpoint(plan: TinyPlan, network: torch.nn.Module, fold: int | str) -> dict[str, Any]:
    """What nnU-Net's trainer saves, with the numpy scalars that keep plain ``weights_only`` loading from reading it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    return {
        "network_weights": {k: v.detach().clone() for k, v in network.state_dict().items()},
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
        "init_args": {
            "plans": plan.plans(),
            "configuration": plan.configuration,
            "fold": fold,
            "dataset_json": plan.dataset(),
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": plan.mirror_axes,
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
    folder = root / plan.name / plan.folder_name
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plan.plans(), indent=1))
    (folder / "dataset.json").write_text(json.dumps(plan.dataset(), indent=1))
    for i, fold in enumerate(folds):
        network = _train(plan, cases, steps, seed + i, rate=rate)
        (folder / f"fold_{fold}").mkdir()
        torch.save(_checkpoint(plan, network, fold), folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


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
