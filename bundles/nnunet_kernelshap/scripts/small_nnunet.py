# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Results folders of small nnU-Nets, trained in minutes: nnU-Net's preprocessing, network and file formats.

For demonstrations and tests. Grids follow nnU-Net: arrays, spacings and patches are (z, y, x) here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["SmallPlan", "TrainingCase", "managers", "preprocess", "train", "write_results_folder"]

#: Changes a training window (C, ...) and its labels (...) for augmentation.
Change = Callable[[torch.Tensor, torch.Tensor, np.random.Generator], tuple[torch.Tensor, torch.Tensor]]


class TrainingCase(NamedTuple):
    """Raw channels (C, z, y, x), labels int16 (z, y, x), properties with "spacing": as nnU-Net's readers give them."""

    channels: np.ndarray
    labels: np.ndarray
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class SmallPlan:
    """What differs from one small model to the next; axes of ``spacing`` (mm) and ``patch_size`` are the network's.

    Attributes:
        name: of the dataset.
        configuration: of nnU-Net, such as "3d_fullres".
        spacing: of the network's grid; two numbers for 2D.
        patch_size: voxels; two numbers for 2D.
        labels: as in dataset.json; its order is the order of the heads.
        regions_class_order: for labels that are regions.
        channels: names; "CT" gets nnU-Net's CT normalization, others z-scores.
        transpose_forward: order of axes of the network's grid.
        features: channels of each stage.
        strides: of each stage; None: 1, then 2 along every axis.
        kernels: of each stage; None: 3 along every axis.
        intensities: mean, std, percentile_00_5 and percentile_99_5 for normalization, HU.
        mirror_axes: axes along which inference may mirror; None: none.
        previous_stage: of a cascade.
        median_spacing: of the data, before the axes are transposed.
        median_shape: of the data.
        n_training: number of training cases, as dataset.json says it.
    """

    name: str
    configuration: str = "3d_fullres"
    spacing: tuple[float, ...] = (5.0, 1.5, 1.5)
    patch_size: tuple[int, ...] = (16, 64, 64)
    labels: Mapping[str, Any] = field(default_factory=lambda: {"background": 0, "foreground": 1})
    regions_class_order: tuple[int, ...] | None = None
    channels: tuple[str, ...] = ("CT",)
    transpose_forward: tuple[int, int, int] = (0, 1, 2)
    features: tuple[int, ...] = (8, 16, 32)
    strides: tuple[tuple[int, ...], ...] | None = None
    kernels: tuple[tuple[int, ...], ...] | None = None
    intensities: Mapping[str, float] = field(default_factory=dict)
    mirror_axes: tuple[int, ...] | None = (0, 1, 2)
    previous_stage: str | None = None
    median_spacing: tuple[float, float, float] = (5.0, 1.5, 1.5)
    median_shape: tuple[int, int, int] = (40, 128, 160)
    n_training: int = 2

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
        strides = self.strides or ((1,) * d, *((2,) * d for _ in range(n - 1)))
        kernels = self.kernels or ((3,) * d,) * n
        return {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": n,
                "features_per_stage": list(self.features),
                "conv_op": f"torch.nn.modules.conv.Conv{d}d",
                "kernel_sizes": [list(k) for k in kernels],
                "strides": [list(s) for s in strides],
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
        intensities = dict(self.intensities)
        return {
            "dataset_name": self.name,
            "plans_name": "nnUNetPlans",
            "original_median_spacing_after_transp": [self.median_spacing[i] for i in self.transpose_forward],
            "original_median_shape_after_transp": list(self.median_shape),
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
            "numTraining": self.n_training,
            "file_ending": ".nii.gz",
        }
        if self.regions_class_order is not None:
            found["regions_class_order"] = list(self.regions_class_order)
        return found


def managers(plan: SmallPlan) -> tuple[Any, Any, Any]:
    """nnU-Net's own PlansManager, ConfigurationManager and LabelManager."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(json.loads(json.dumps(plan.plans())))
    return plans, plans.get_configuration(plan.configuration), plans.get_label_manager(plan.dataset())


def preprocess(plan: SmallPlan, case: TrainingCase) -> tuple[torch.Tensor, torch.Tensor]:
    """Data (C, a, b, c) float32 and labels (a, b, c) uint8 on the network's grid, by nnU-Net's own preprocessor."""
    plans, config, _ = managers(plan)
    preprocessor = config.preprocessor_class(verbose=False)
    data, labels, _ = preprocessor.run_case_npy(
        case.channels, case.labels[None], dict(case.properties), plans, config, plan.dataset()
    )
    data = torch.as_tensor(np.asarray(data), dtype=torch.float32)
    return data, torch.as_tensor(np.asarray(labels[0])).clamp(min=0).to(torch.uint8)


def train(
    plan: SmallPlan,
    cases: Sequence[TrainingCase],
    steps: int,
    seed: int = 0,
    batch: int = 2,
    rate: float = 2e-2,
    change: Change | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> torch.nn.Module:
    """The network of nnU-Net's trainer after some Adam steps on random patches, in evaluation mode.

    Args:
        plan: the model.
        cases: raw cases; they are preprocessed by nnU-Net.
        steps: 0 leaves the seeded random weights.
        seed: of weights and patches.
        batch: patches a step.
        rate: highest learning rate of a one-cycle schedule.
        change: augmentation of a patch.
        progress: called after each step with its number and loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build_network(plan)
    if steps == 0:
        return network.eval()
    rng = np.random.default_rng(seed)
    prepared = [_with_places(*_padded(plan, *preprocess(plan, case))) for case in cases]
    _, _, labels = managers(plan)
    heads = labels.foreground_regions if labels.has_regions else labels.all_labels
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    for step in range(steps):
        pairs = []
        for _ in range(batch):
            data, truth, places = prepared[rng.integers(len(prepared))]
            window, target = _patch(data, truth, plan.patch_size, rng, places[rng.integers(len(places))])
            if change is not None:
                window, target = change(window, target, rng)
            pairs.append((window, torch.stack([torch.isin(target, torch.as_tensor(np.atleast_1d(h))) for h in heads])))
        windows, targets = (torch.stack(p) for p in zip(*pairs, strict=True))
        optimizer.zero_grad()
        loss = _loss(network(windows), targets.float(), labels.has_regions)
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, float(loss.detach()))
    return network.eval()


def write_results_folder(
    folder: Path,
    plan: SmallPlan,
    networks: Mapping[int | str, torch.nn.Module],
    leftovers: Mapping[str, Any] | None = None,
) -> Path:
    """Write plans.json, dataset.json and a checkpoint_final.pth for each fold; returns the folder.

    Args:
        folder: made if it does not exist.
        plan: the model.
        networks: of each fold.
        leftovers: further entries of the checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("plans.json", plan.plans()), ("dataset.json", plan.dataset())):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for fold, network in networks.items():
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        content = {
            **(leftovers or {}),
            "network_weights": dict(network.state_dict()),  # shared weights stay shared
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
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def _build_network(plan: SmallPlan) -> torch.nn.Module:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    plans, config, labels = managers(plan)
    n_inputs = determine_num_input_channels(plans, config, plan.dataset())
    return nnUNetTrainer.build_network_architecture(
        plans, config, n_inputs, labels.num_segmentation_heads, enable_deep_supervision=False
    )


def _padded(plan: SmallPlan, data: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Data and truth, with zeros up to the patch size."""
    short = [max(p - n, 0) for p, n in zip((1, *plan.patch_size)[-3:], data.shape[1:], strict=True)]
    pad = [v for s in reversed(short) for v in (s // 2, s - s // 2)]
    return torch.nn.functional.pad(data, pad), torch.nn.functional.pad(truth, pad)


def _with_places(data: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Data, truth, and the voxels of each label but the background."""
    return data, truth, [torch.nonzero(truth == k) for k in range(1, 1 + int(truth.max()))]


def _patch(
    data: torch.Tensor, truth: torch.Tensor, size: Sequence[int], rng: np.random.Generator, organ: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random patch, every other one around a voxel of ``organ``; for two sizes, a patch of one slice."""
    full = (1,) * (3 - len(size)) + tuple(size)
    center = organ[rng.integers(len(organ))].tolist() if len(organ) and rng.random() < 0.6 else None
    starts = []
    for axis, (n, p) in enumerate(zip(data.shape[1:], full, strict=True)):
        low = int(rng.integers(n - p + 1))
        starts.append(low if center is None else int(np.clip(center[axis] - p // 2 + rng.integers(-2, 3), 0, n - p)))
    box = tuple(slice(s, s + p) for s, p in zip(starts, full, strict=True))
    window, target = data[(slice(None), *box)], truth[box]
    return (window, target) if len(size) == 3 else (window[:, 0], target[0])


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
