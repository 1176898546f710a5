# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What lies in a trained nnU-Net model's folder: plans, dataset description, folds and checkpoints."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["ModelFolder", "find_model_folder", "read_checkpoint", "read_json_object", "wanted_folds"]

#: Names of the weights in a MONAI bundle, for the names that nnU-Net gives them.
_BUNDLE_NAMES = {"checkpoint_final.pth": "model.pt", "checkpoint_best.pth": "best_model.pt"}
_BUNDLE_HEADER = "nnunet_checkpoint.pth"
#: Number types of which nnU-Net's trainer leaves scalars in its checkpoints (best score, log).
_SCALARS = (np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
_FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class ModelFolder:
    """A folder with plans.json, dataset.json and fold_* folders.

    Attributes:
        path: the folder.
        header: checkpoint without weights that a MONAI bundle keeps beside its folds; None for nnU-Net's own layout.
    """

    path: Path
    header: Path | None = None

    def folds(self) -> list[str]:
        """Names of the folds that have a folder: numbers in ascending order, then "all"."""
        found = [p.name.removeprefix("fold_") for p in self.path.glob("fold_*") if p.is_dir()]
        return sorted((f for f in found if f.isdecimal()), key=int) + [f for f in found if f == "all"]

    def weights(self, fold: str, checkpoint: str) -> Path:
        """Path of a fold's checkpoint; the file need not exist."""
        name = checkpoint if self.header is None else _BUNDLE_NAMES.get(checkpoint, checkpoint)
        return self.path / f"fold_{fold}" / name

    def checkpoints(self, fold: str) -> list[str]:
        """Names of the checkpoints that a fold holds."""
        return sorted(p.name for p in (self.path / f"fold_{fold}").glob("*") if p.suffix in (".pth", ".pt"))


def find_model_folder(folder: str | Path) -> ModelFolder:
    """The trained model's folder that a path means.

    Args:
        folder: nnU-Net's results folder (``.../nnUNetTrainer__nnUNetPlans__3d_fullres``), a dataset's folder that holds
            one of these, or the root or models folder of a MONAI bundle that `monai.apps.nnunet` made.

    Returns:
        the folder; plans.json and dataset.json exist.

    Raises:
        FileNotFoundError: for a folder or one of the two files that does not exist.
        NotADirectoryError: for a file.
        ValueError: for a folder that holds several models, and for a model of nnU-Net v1.
    """
    path = Path(folder)
    if not path.exists():
        raise FileNotFoundError(f"the nnU-Net model folder {str(path)!r} does not exist.")
    if not path.is_dir():
        unpack = " Unpack it with nnUNetv2_install_pretrained_model_from_zip." if path.suffix == ".zip" else ""
        raise NotADirectoryError(
            f"{str(path)!r} is a file; expected the results folder of a trained nnU-Net, with plans.json and "
            f"fold_0.{unpack}"
        )
    if (path / "models" / _BUNDLE_HEADER).is_file():
        path = path / "models"
    if not (path / "plans.json").is_file():
        path = _only_model_inside(path)
    for name in ("plans.json", "dataset.json"):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"the model folder {str(path)!r} has no {name}. Copy the one that belongs to this training from "
                "nnUNet_preprocessed or from the place of training."
            )
    header = path / _BUNDLE_HEADER
    return ModelFolder(path, header if header.is_file() else None)


def wanted_folds(model: ModelFolder, folds: int | str | Sequence[int | str] | None, checkpoint: str) -> tuple[str, ...]:
    """Names of the folds to load, checked: each has the checkpoint.

    Args:
        model: the folder.
        folds: a number, "all", a list of them, or None for every numbered fold with the checkpoint, and "all" if there
            is no such fold.
        checkpoint: name of the file in each fold.

    Raises:
        FileNotFoundError: for a missing fold or checkpoint; names those that exist.
        TypeError: for a fold that is neither a whole number nor a string.
        ValueError: for no fold, a fold twice, or one that is neither a number nor "all".
    """
    there = model.folds()
    if not there:
        raise FileNotFoundError(f"the model folder {str(model.path)!r} has no fold_0, fold_1, ... or fold_all.")
    if folds is None:
        ready = [f for f in there if model.weights(f, checkpoint).is_file()]
        names = [f for f in ready if f != "all"] or ready or there[:1]
    else:
        several = list(folds) if isinstance(folds, Iterable) and not isinstance(folds, str) else [folds]
        names = [_fold_name(f) for f in several]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"got folds {folds!r}; expected one or more, each once. There are {_listed(there)}.")
    for name in names:
        if name not in there:
            raise FileNotFoundError(
                f"fold {name} is not in {str(model.path)!r}; there are {_listed(there)}. Choose with folds=."
            )
        file = model.weights(name, checkpoint)
        if not file.is_file():
            raise FileNotFoundError(
                f"fold {name} of {str(model.path)!r} has no {file.name!r}; it holds "
                f"{_listed(model.checkpoints(name))}. Choose with checkpoint=, or finish the training."
            )
    return tuple(names)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: for anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}). Is the copy of the model complete?") from error
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} holds a {type(found).__name__}; expected a JSON object as nnU-Net writes it.")
    return found


def read_checkpoint(path: Path, trust: bool) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: of the file.
        trust: unpickle it completely, which runs whatever code the file names. Otherwise only tensors, plain Python
            values, and the numpy scalars that nnU-Net's trainer writes are read.

    Raises:
        ValueError: for a file that is damaged, that needs ``trust=True``, or that holds no dictionary.
    """
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            found = torch.load(path, map_location="cpu", weights_only=not trust)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # unpickling fails with anything
        raise ValueError(_unreadable(path, trust, error)) from error
    if not isinstance(found, dict):
        raise ValueError(f"the checkpoint {str(path)!r} holds a {type(found).__name__}; expected nnU-Net's dictionary.")
    return found


def _only_model_inside(path: Path) -> Path:
    if (path / "plans.pkl").is_file() or any(path.glob("*/plans.pkl")):
        raise ValueError(
            f"{str(path)!r} holds a plans.pkl: a model of nnU-Net v1. Only nnU-Net v2 models can be loaded; train "
            "again with nnunetv2."
        )
    if re.fullmatch(r"fold_(\d+|all)", path.name) and (path.parent / "plans.json").is_file():
        raise ValueError(
            f"{str(path)!r} is one fold of a model. Give its parent, {str(path.parent)!r}, with "
            f"folds={path.name.removeprefix('fold_')!r}."
        )
    inside = sorted(p.parent for p in path.glob("*/plans.json") if any(p.parent.glob("fold_*")))
    if len(inside) > 1:
        raise ValueError(
            f"{str(path)!r} holds {len(inside)} trained models: {_listed([p.name for p in inside])}. Give the folder "
            "of one of them."
        )
    return inside[0] if inside else path


def _fold_name(fold: Any) -> str:
    if isinstance(fold, bool) or not isinstance(fold, (int, np.integer, str)):
        raise TypeError(f"got the fold {fold!r}; expected a whole number or 'all'.")
    name = str(fold).removeprefix("fold_")
    if name != "all" and not name.isdecimal():
        raise ValueError(f"got the fold {fold!r}; expected 0, 1, 2, ... or 'all'.")
    return name if name == "all" else str(int(name))


def _numpy_scalars() -> list[Any]:
    make = np.float64(0).__reduce__()[0]  # its module is called otherwise in numpy 1 and 2; checkpoints name either
    kinds = [type(np.dtype(kind)) for kind in (*_SCALARS, *_FLOATS)]
    return [(make, "numpy.core.multiarray.scalar"), (make, "numpy._core.multiarray.scalar"), np.dtype, *kinds]


def _unreadable(path: Path, trust: bool, error: Exception) -> str:
    said = str(error).strip().splitlines()
    start = f"the checkpoint {str(path)!r} could not be read ({type(error).__name__}: {said[0] if said else ''})"
    if not zipfile.is_zipfile(path):
        return f"{start}: it is not a file as torch.save writes it. Is the download complete, and no Git LFS pointer?"
    if trust:
        return f"{start}. Is everything installed that it needs?"
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        names = []
    if not names:
        return f"{start}. Is the file complete?"
    return (
        f"the checkpoint {str(path)!r} holds more than weights and plain values: {_listed(names)}. Reading that runs "
        "code. If you trust its origin pass trust=True."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
