# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Copies of a tiny results folder that a loader should refuse, and rearrangements that it should read."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_nnunet import TinyPlan, write_results_folder

__all__ = [
    "BREAKS",
    "Unlisted",
    "break_folder",
    "copy_folder",
    "edit_checkpoint",
    "edit_json",
    "gather_folders",
    "make_cascade",
    "rename_fold",
]


class Unlisted:
    """An object that only full unpickling restores."""


def copy_folder(folder: Path, root: Path) -> Path:
    """Copy ``DATASET/RESULTS`` to ``root/DATASET/RESULTS``; returns the new results folder."""
    return Path(shutil.copytree(folder, root / folder.parent.name / folder.name))


def gather_folders(root: Path, *folders: Path, dataset: str = "Dataset910_Several") -> Path:
    """Copy several results folders, of different configurations, into one dataset folder; returns the latter."""
    for folder in folders:
        shutil.copytree(folder, root / dataset / folder.name)
    return root / dataset


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Read a JSON file, let ``change`` alter the dictionary, write it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_checkpoint(folder: Path, change: Callable[[dict[str, Any]], Any], fold: int | str = 0) -> None:
    """The same for ``checkpoint_final.pth`` of a fold."""
    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    content = torch.load(path, map_location="cpu", weights_only=False)
    change(content)
    torch.save(content, path)


def rename_fold(folder: Path, new: int | str, old: int | str = 0) -> None:
    """Give a fold another name, such as ``all``."""
    (folder / f"fold_{old}").rename(folder / f"fold_{new}")


def make_cascade(root: Path, features: tuple[int, ...] = (4, 8)) -> Path:
    """A results folder of 3d_cascade_fullres with random weights: its network takes the masks of 3d_lowres as well.

    As in nnU-Net's plans it inherits from 3d_fullres and names its previous stage.
    """
    plan = TinyPlan("Dataset908_TinyCascade", features=features, previous_stage="3d_lowres")
    folder = write_results_folder(root, replace(plan, configuration="3d_cascade_fullres"))

    def inherit(plans: dict[str, Any]) -> None:
        full = plans["configurations"].pop("3d_cascade_fullres")
        del full["previous_stage"]
        low = {"inherits_from": "3d_fullres", "spacing": [5.0, 3.0, 2.5], "next_stage": "3d_cascade_fullres"}
        cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        plans["configurations"] = {"3d_fullres": full, "3d_lowres": low, "3d_cascade_fullres": cascade}

    edit_json(folder / "plans.json", inherit)
    return folder


def _first_version_plans(plans: dict[str, Any]) -> None:
    """Nothing but what the plans of nnU-Net's first version hold."""
    name = plans["dataset_name"]
    plans.clear()
    plans.update(num_stages=1, num_modalities=1, modalities={"0": "CT"}, num_classes=3, transpose_forward=[0, 1, 2])
    plans.update(
        plans_per_stage={"0": {"patch_size": [16, 32, 32]}}, preprocessor_name="GenericPreprocessor", task=name
    )


def _smaller_network(checkpoint: dict[str, Any]) -> None:
    weights = checkpoint["network_weights"]
    checkpoint["network_weights"] = OrderedDict((k, v[: max(len(v) // 2, 1)].clone()) for k, v in weights.items())


def _cut_file(folder: Path) -> None:
    path = folder / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:1000])


def _checkpoint_with(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: edit_checkpoint(folder, lambda c: c.update(entries))


def _plans_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "plans.json", change)


BREAKS: dict[str, Callable[[Path], Any]] = {
    "no_plans": lambda f: (f / "plans.json").unlink(),
    "no_dataset": lambda f: (f / "dataset.json").unlink(),
    "no_folds": lambda f: [shutil.rmtree(p) for p in f.glob("fold_*")],
    "only_best": lambda f: (f / "fold_0" / "checkpoint_final.pth").rename(f / "fold_0" / "checkpoint_best.pth"),
    "empty_fold": lambda f: (f / "fold_0" / "checkpoint_final.pth").unlink(),
    "plans_not_json": lambda f: (f / "plans.json").write_text("{ this is no JSON"),
    "first_version": _plans_with(_first_version_plans),
    "foreign_plans": lambda f: (f / "plans.json").write_text('{"patch_size": [16, 32, 32]}'),
    "no_architecture": _plans_with(lambda p: [c.pop("architecture") for c in p["configurations"].values()]),
    "configuration_not_in_plans": _plans_with(lambda p: p.update(configurations={})),
    "unknown_trainer": _checkpoint_with(trainer_name="nnUNetTrainerOfNobody"),
    "variant_trainer": _checkpoint_with(trainer_name="nnUNetTrainer_5epochs"),
    "unlisted_object": _checkpoint_with(logging=Unlisted()),
    "no_weights": lambda f: edit_checkpoint(f, lambda c: c.pop("network_weights")),
    "no_trainer_name": lambda f: edit_checkpoint(f, lambda c: c.pop("trainer_name")),
    "no_configuration": _checkpoint_with(init_args={}),
    "other_weights": lambda f: edit_checkpoint(f, _smaller_network),
    "cut_file": _cut_file,
    "no_mirroring_entry": lambda f: edit_checkpoint(f, lambda c: c.pop("inference_allowed_mirroring_axes")),
}
"""Name of a defect -> what it does to a results folder with fold 0. ``variant_trainer`` is a class that exists but
whose search imports torchvision; ``no_mirroring_entry`` is valid for nnU-Net (no mirroring)."""


def break_folder(folder: Path, root: Path, defect: str) -> Path:
    """Copy a results folder and put one defect of :data:`BREAKS` into it."""
    found = copy_folder(folder, root)
    BREAKS[defect](found)
    return found
