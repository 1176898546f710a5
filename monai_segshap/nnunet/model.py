# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Trained nnU-Net v2 models: networks of all folds with plans and labels, read from the results folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from monai_segshap.heads import OutputHeads
from monai_segshap.nnunet.building import build_network, check_classes, find_trainer, fit_weights
from monai_segshap.nnunet.folders import (
    ModelFolder,
    find_model_folder,
    read_checkpoint,
    read_json_object,
    wanted_folds,
)
from monai_segshap.nnunet.inferer import NNUNetInferer
from monai_segshap.nnunet.network import FoldsNetwork
from monai_segshap.nnunet.requirements import require_nnunet

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

__all__ = ["NNUNetModel", "load_nnunet"]


@dataclass(frozen=True, eq=False)
class NNUNetModel:
    """A trained nnU-Net: what inference needs from its results folder.

    Attributes:
        folder: the folder with plans.json, dataset.json and the folds.
        configuration: name of the configuration, such as "3d_fullres", "3d_lowres" or "2d".
        folds: names of the folds, such as "0" or "all".
        plans: nnU-Net's plans.
        config: nnU-Net's configuration from the plans.
        dataset: content of dataset.json.
        labels: nnU-Net's label manager.
        networks: one for each fold, in evaluation mode, without deep supervision, on the CPU, without gradients. They
            take (B, n_channels, *patch_size) float32 and give (B, n_heads, *patch_size) logits; networks of a 2D
            configuration take and give (B, ., h, w).
        mirror_axes: spatial axes of the network's input along which nnU-Net may mirror at inference; () for none.
    """

    folder: Path
    configuration: str
    folds: tuple[str, ...]
    plans: PlansManager
    config: ConfigurationManager
    dataset: dict[str, Any]
    labels: LabelManager
    networks: tuple[torch.nn.Module, ...]
    mirror_axes: tuple[int, ...]

    @property
    def heads(self) -> OutputHeads:
        """How logits become labels: argmax, or regions by threshold, painted in the order of dataset.json."""
        return OutputHeads("sigmoid", self.regions_class_order) if self.has_regions else OutputHeads()

    def network(self, mirror: bool = False, accumulate: str = "float32") -> FoldsNetwork:
        """All folds as one network for windows, on the CPU.

        Args:
            mirror: average over the mirror images that the checkpoint allows, as nnUNetv2_predict does by default;
                up to 8 times the runs of the network.
            accumulate: as for the inferer.

        Raises:
            ValueError: if mirroring is asked for and the checkpoint allows none.
        """
        if mirror and not self.mirror_axes:
            raise ValueError("the checkpoint allows no mirroring (it was trained without); use mirror=False.")
        axes = self.mirror_axes if mirror else ()
        return FoldsNetwork(self.networks, axes, self.is_2d, full_precision=accumulate == "float32").eval()

    def inferer(self, step_size: float = 0.5, accumulate: str = "float32") -> NNUNetInferer:
        """nnU-Net's sliding window for `network`, see `NNUNetInferer`."""
        return NNUNetInferer(self.patch_size, step_size, accumulate, folds=len(self.networks))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the input channels, in order."""
        return _channel_names(self.dataset)

    @property
    def n_channels(self) -> int:
        """Number of input channels."""
        return len(self.channel_names)

    @property
    def n_heads(self) -> int:
        """Number of the network's outputs: labels with background, or regions."""
        return int(self.labels.num_segmentation_heads)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each head: the labels in the order of their numbers, background first, or the regions.

        The ignore label has no head, and among regions the background has none.
        """
        return _class_names(self.labels)

    @property
    def has_regions(self) -> bool:
        """Whether the heads are overlapping regions with a sigmoid each, and not exclusive classes with a softmax."""
        return bool(self.labels.has_regions)

    @property
    def regions_class_order(self) -> tuple[int, ...] | None:
        """Label that each region's head writes into the segmentation, later over earlier ones; None: no regions."""
        return tuple(int(n) for n in self.labels.regions_class_order) if self.has_regions else None

    @property
    def is_2d(self) -> bool:
        """Whether the network sees slices along the first axis of the network grid."""
        return len(self.config.patch_size) == 2

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """Window size, voxels of the network grid; (1, h, w) for a 2D configuration."""
        sizes = [int(n) for n in self.config.patch_size]
        a, b, c = [1, *sizes] if self.is_2d else sizes
        return a, b, c


def load_nnunet(
    folder: str | Path,
    folds: int | str | Sequence[int | str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    trust: bool = False,
) -> NNUNetModel:
    """Load a trained nnU-Net v2 model as its own predictor does, with nnunetv2's trainer class building the network.

    A model folder is more than data: its checkpoints may be pickles that run code, and its plans name the classes of
    which the network is made. Therefore, unless ``trust`` is set, checkpoints are read with ``weights_only=True``, the
    network must be a class of dynamic_network_architectures or nnunetv2, and its building blocks must be classes of
    these or of torch.nn. (nnU-Net itself checks neither.) The trainer class is searched where nnU-Net searches it, in
    nnunetv2 and in the folders of the environment variable nnUNet_extTrainer; it is the installed code that runs.

    Args:
        folder: results folder ``.../nnUNetTrainer__nnUNetPlans__3d_fullres``, the dataset's folder if it holds only
            one of these, or a MONAI bundle as `monai.apps.nnunet.convert_nnunet_to_monai_bundle` writes it.
        folds: a number, "all", or a list of them; None: every numbered fold with that checkpoint, and "all" if there
            is none, in ascending order.
        checkpoint: file in each fold. In a MONAI bundle checkpoint_final.pth stands for model.pt and
            checkpoint_best.pth for best_model.pt.
        trust: read pickles completely and let the plans name any class. Only for models whose origin you trust.

    Returns:
        the model; the global random state is left as it was.

    Raises:
        FileNotFoundError: for a missing folder, plans.json, dataset.json, fold or checkpoint.
        ImportError: if nnunetv2 is missing or of a version that is not supported, or if the trainer cannot be imported.
        NotADirectoryError: if the folder is a file.
        TypeError: for a fold that is neither a whole number nor a string.
        ValueError: for a folder that holds several models, nnU-Net v1 or otherwise foreign plans, a cascade, an unknown
            trainer, what needs ``trust=True``, and weights that do not fit the network.
    """
    require_nnunet()
    place = find_model_folder(folder)
    names = wanted_folds(place, folds, checkpoint)
    plans = _read_plans(place.path / "plans.json")
    dataset = read_json_object(place.path / "dataset.json")
    labels = _label_manager(plans, dataset, place.path)
    read = [_read_fold(place, name, checkpoint, trust) for name in names]
    origin = _common_origin([o for o, _ in read], names, place.path)
    config = _configuration(plans, origin.configuration, place.path)
    if not trust:
        check_classes(config, place.path / "plans.json")
    axes = _mirror_axes(origin.mirror_axes, len(config.patch_size), place.path)
    trainer = find_trainer(origin.trainer)
    sizes = len(_channel_names(dataset)), int(labels.num_segmentation_heads)
    networks = tuple(
        fit_weights(build_network(trainer, plans, config, *sizes), weights, place.weights(name, checkpoint))
        for name, (_, weights) in zip(names, read, strict=True)
    )
    return NNUNetModel(place.path, origin.configuration, names, plans, config, dataset, labels, networks, axes)


@dataclass(frozen=True)
class _Origin:
    """What a checkpoint says about itself."""

    trainer: str
    configuration: str
    mirror_axes: Sequence[int] | None


def _channel_names(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    names = dataset["modality"] if "modality" in dataset else dataset["channel_names"]
    if isinstance(names, Mapping):
        keys = sorted(names, key=int) if all(str(k).isdecimal() for k in names) else list(names)
        return tuple(str(names[k]) for k in keys)
    return tuple(str(n) for n in names)


def _class_names(labels: LabelManager) -> tuple[str, ...]:
    entries = {name: _numbers(value) for name, value in labels.label_dict.items() if name != "ignore"}
    if labels.has_regions:
        return tuple(name for name, numbers in entries.items() if set(numbers) != {0})
    return tuple(" / ".join(name for name, numbers in entries.items() if n in numbers) for n in labels.all_labels)


def _numbers(label: Any) -> list[int]:
    return [int(n) for n in label] if isinstance(label, (list, tuple)) else [int(label)]


def _read_plans(path: Path) -> PlansManager:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = read_json_object(path)
    needed = ("configurations", "transpose_forward", "image_reader_writer")
    missing = [key for key in needed if key not in plans]
    if missing or not isinstance(plans["configurations"], dict):
        v1 = " They look like those of nnU-Net v1, which cannot be loaded." if "plans_per_stage" in plans else ""
        raise ValueError(
            f"the plans {str(path)!r} have no {', '.join(missing) or 'dictionary of configurations'}; expected plans "
            f"as nnU-Net v2 writes them.{v1} Copy the nnUNetPlans.json of this training there."
        )
    return PlansManager(plans)


def _label_manager(plans: PlansManager, dataset: dict[str, Any], folder: Path) -> LabelManager:
    missing = [key for key in ("labels",) if key not in dataset]
    missing += [] if "channel_names" in dataset or "modality" in dataset else ["channel_names"]
    if missing:
        raise ValueError(
            f"dataset.json of {str(folder)!r} has no {' and no '.join(missing)}; expected nnU-Net v2's format. Copy "
            "the dataset.json of this training there."
        )
    try:
        return plans.get_label_manager(dataset)
    except (AssertionError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"nnU-Net does not accept the labels {dataset['labels']!r} of dataset.json in {str(folder)!r}: {error} "
            "Expected names with numbers from 0 (background), or regions with 'regions_class_order'."
        ) from error


def _read_fold(place: ModelFolder, fold: str, checkpoint: str, trust: bool) -> tuple[_Origin, Mapping[str, Any]]:
    path = place.weights(fold, checkpoint)
    content = read_checkpoint(path, trust)
    weights = content.get("network_weights")
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"the checkpoint {str(path)!r} has no 'network_weights' (its keys: {_keys(content)}); expected one that "
            "nnU-Net v2's trainer saved. Choose another with checkpoint=."
        )
    header = content if place.header is None else read_checkpoint(place.header, trust)
    arguments = header.get("init_args")
    configuration = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    if not isinstance(header.get("trainer_name"), str) or not isinstance(configuration, str):
        raise ValueError(
            f"the checkpoint {str(place.header or path)!r} does not say which trainer and configuration it is of (its "
            f"keys: {_keys(header)}); expected 'trainer_name' and 'init_args' with a 'configuration', as nnU-Net v2's "
            "trainer saves them. Give the checkpoint as the trainer saved it."
        )
    return _Origin(header["trainer_name"], configuration, header.get("inference_allowed_mirroring_axes")), weights


def _common_origin(origins: Sequence[_Origin], names: Sequence[str], folder: Path) -> _Origin:
    """That of the first fold, whose mirroring nnU-Net uses for all."""
    first = origins[0]
    for name, other in zip(names, origins, strict=True):
        if (other.trainer, other.configuration) != (first.trainer, first.configuration):
            raise ValueError(
                f"the folds of {str(folder)!r} do not belong together: fold {names[0]} is of {first.trainer} and "
                f"{first.configuration}, fold {name} of {other.trainer} and {other.configuration}. Choose with folds=."
            )
    return first


def _keys(content: Mapping[str, Any]) -> str:
    return ", ".join(sorted(str(k) for k in content)) or "none"


def _configuration(plans: PlansManager, name: str, folder: Path) -> ConfigurationManager:
    try:
        config = plans.get_configuration(name)
        dimensions = len(config.patch_size)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"the checkpoints of {str(folder)!r} are of the configuration {name!r}, which nnU-Net cannot make from "
            f"plans.json ({type(error).__name__}: {error}). Configurations there: "
            f"{', '.join(plans.available_configurations) or 'none'}. Copy the plans of this training there."
        ) from error
    if config.previous_stage_name is not None:
        raise ValueError(
            f"{str(folder)!r} is the second stage of a cascade: {name!r} also takes the segmentation of "
            f"{config.previous_stage_name!r} as input, which is not supported. Use the model of "
            f"{config.previous_stage_name!r} or a '3d_fullres' one."
        )
    if dimensions not in (2, 3):
        raise ValueError(f"configuration {name!r} of {str(folder)!r} has {dimensions} axes; expected 2 or 3.")
    return config


def _mirror_axes(axes: Any, dimensions: int, folder: Path) -> tuple[int, ...]:
    found = tuple(int(a) for a in axes) if axes is not None else ()
    if any(not 0 <= a < dimensions for a in found):
        raise ValueError(
            f"the checkpoint of {str(folder)!r} allows mirroring along the axes {found}; the network has {dimensions} "
            f"spatial axes, 0 to {dimensions - 1}."
        )
    return found
