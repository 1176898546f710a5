# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Organs of a case from one label map, or from a folder with a mask for each structure (TotalSegmentator)."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import DtypeLike, KeysCollection
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImage, MapTransform, Transform
from monai.utils import TransformBackends
from numpy.typing import NDArray

from monai_segshap.geometry import current_grid
from monai_segshap.running import file_stem

__all__ = ["ORGAN_NAMES_META", "LoadOrgans", "LoadOrgansd", "carried_organ_names"]

#: Key of the names in the meta of a label map: JSON text, because text survives MONAI's collating.
ORGAN_NAMES_META = "segshap_organ_names"


def carried_organ_names(organs: torch.Tensor) -> dict[int, str]:
    """Names that a label map carries since `LoadOrgans` read it from a folder; empty if it carries none."""
    text = organs.meta.get(ORGAN_NAMES_META) if isinstance(organs, MetaTensor) else None
    return {int(number): str(name) for number, name in json.loads(text).items()} if text else {}


class LoadOrgans(Transform):
    """Read the organs of a case: a label map file, or a folder with one mask file for each structure.

    A file is read as by MONAI's `LoadImage` and `EnsureChannelFirst`.

    In a folder, every image file is the mask of the structure it is named after ("spleen.nii.gz"); other files, files
    whose names start with a dot, and subfolders are passed over. A mask holds 0 and at most one other value.
    Structures are numbered from 1 in the order of the sorted file names, empty masks included, so that cases with the
    same files have the same numbers. Empty masks have no voxel in the label map; their names are carried with the
    others, and stand under ``skipped`` in the units made from it. Where masks overlap, the structure with fewer voxels
    in its mask gets the voxel (the first by name if both have as many), and a warning says how many voxels that were.
    One mask is held at a time.

    Args:
        dtype: of the label map, as in `LoadImage`; None: as the file has it, int16 for a folder.
        tolerance_mm: distance up to which voxels of two masks count as the same.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(self, dtype: DtypeLike = np.float32, tolerance_mm: float = 0.1) -> None:
        self.dtype, self.tolerance_mm = dtype, tolerance_mm

    def __call__(self, source: str | Path) -> MetaTensor:
        """Read a file or a folder.

        Args:
            source: path of either.

        Returns:
            (1, H, W, D) label map on the grid of the file or files (C channels for a file with several). From a folder,
            its meta is that of the first mask, with the folder as file name, and the names; see `carried_organ_names`.

        Raises:
            ValueError: if a file can not be read; for a folder without masks, two masks of one name, a mask with more
                than two values or channels, and masks on different grids.
        """
        path = Path(source).expanduser()
        if not path.is_dir():
            return _load(path, self.dtype, "the organ label map")
        files = _mask_files(path)
        names = [file_stem(file) for file in files]
        mask = _load_mask(files[0])
        grid, meta = current_grid(mask), dict(mask.meta)
        merged = _Merged(grid.shape, names)
        for number, file in enumerate(files, start=1):
            if number > 1:
                del mask  # before the next one is read
                mask = _load_mask(file)
            found = current_grid(mask)
            if not found.same_as(grid, self.tolerance_mm):
                raise ValueError(
                    f"{file.name} lies on another grid than {files[0].name} in {path}: {found.describe()}; expected "
                    f"{grid.describe()}. Masks of one folder must share a grid: resample this one, or take it out."
                )
            merged.add(_voxels(mask, file), number)
        del mask
        merged.warn(path)
        meta |= {"filename_or_obj": str(path), ORGAN_NAMES_META: json.dumps(dict(enumerate(names, start=1)))}
        return MetaTensor(torch.from_numpy(merged.finished(self.dtype)), meta=meta)


class LoadOrgansd(MapTransform):
    """Dictionary form of `LoadOrgans`: takes the place of `LoadImaged` and `EnsureChannelFirstd` for organs.

    Units made with ``names=None`` take the names of the files.

    Args:
        keys: paths of label map files or of folders of masks.
        dtype: see `LoadOrgans`.
        tolerance_mm: see `LoadOrgans`.
        allow_missing_keys: as in MONAI.
    """

    backend = LoadOrgans.backend

    def __init__(
        self,
        keys: KeysCollection,
        dtype: DtypeLike = np.float32,
        tolerance_mm: float = 0.1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadOrgans(dtype, tolerance_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path by the label map."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.load(d[key])
        return d


class _Merged:
    """Label map that takes one mask after the other; a voxel is negative once two masks claimed it."""

    def __init__(self, shape: tuple[int, int, int], names: Sequence[str]) -> None:
        self.names = names
        self.labels = np.zeros(shape, dtype=np.int16)
        self.sizes = np.zeros(len(names) + 1, dtype=np.int64)
        self.left = np.zeros(len(names) + 1, dtype=np.int64)
        self.pairs: Counter[tuple[int, int]] = Counter()

    def add(self, mask: NDArray[np.bool_], number: int) -> None:
        """Add the mask of a structure; the smaller of two structures gets a voxel that both claim."""
        self.sizes[number] = self.left[number] = np.count_nonzero(mask)
        held = np.abs(self.labels[mask])
        claimed = held > 0
        new = np.full(held.shape, number, dtype=self.labels.dtype)
        if claimed.any():
            rivals = held[claimed]
            wins = (self.sizes > self.sizes[number])[rivals]
            new[claimed] = -np.where(wins, number, rivals)
            self.left -= np.bincount(rivals[wins], minlength=len(self.left))
            self.left[number] -= np.count_nonzero(~wins)
            shared = np.bincount(rivals)
            self.pairs.update({(int(other), number): int(shared[other]) for other in np.flatnonzero(shared)})
        self.labels[mask] = new

    def warn(self, folder: Path) -> None:
        """Warn of overlapping voxels, and of structures that lost all of theirs."""
        if not self.pairs:
            return
        (pair, most), voxels = self.pairs.most_common(1)[0], int(np.count_nonzero(self.labels < 0))
        a, b = (self.names[number - 1] for number in pair)
        message = (
            f"{voxels} voxels lie in more than one mask of {folder}, the largest share between {a!r} and {b!r} "
            f"({most}). Each went to the structure with fewer voxels."
        )
        covered = [self.names[n - 1] for n in np.flatnonzero((self.sizes > 0) & (self.left == 0))]
        if covered:
            message += f" No voxel was left of {', '.join(map(repr, covered))}."
        warnings.warn(message, stacklevel=3)

    def finished(self, dtype: DtypeLike) -> NDArray[Any]:
        """The label map (1, H, W, D)."""
        np.abs(self.labels, out=self.labels)
        return self.labels[None].astype(self.labels.dtype if dtype is None else dtype, copy=False)


def _mask_files(folder: Path) -> list[Path]:
    """Image files of a folder, sorted by name."""
    entries = sorted(folder.iterdir(), key=lambda p: p.name)
    # a name that file_stem shortens ends like an image
    files = [p for p in entries if p.is_file() and not p.name.startswith(".") and file_stem(p) != p.name]
    if not files:
        held = ", ".join(p.name + ("/" if p.is_dir() else "") for p in entries[:5]) or "nothing"
        raise ValueError(
            f"the folder {folder} holds no mask (it holds {held}); expected one image file for each structure, such as "
            "spleen.nii.gz, directly in it, or a label map file instead of a folder."
        )
    twice = [name for name, count in Counter(map(file_stem, files)).items() if count > 1]
    if twice:
        raise ValueError(f"the folder {folder} holds several masks named {', '.join(twice)}; keep one of each.")
    if len(files) > np.iinfo(np.int16).max:
        raise ValueError(f"the folder {folder} holds {len(files)} masks; expected at most {np.iinfo(np.int16).max}.")
    return files


def _load(path: Path, dtype: DtypeLike, what: str) -> MetaTensor:
    try:
        return EnsureChannelFirst()(LoadImage(image_only=True, dtype=dtype)(path))
    except MemoryError:
        raise
    except Exception as error:
        # Readers raise errors of many kinds; alone, many of them do not name the file.
        message = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(
            f"cannot read {what} {path} ({type(error).__name__}: {message}). Expected an image file that MONAI reads, "
            "such as .nii.gz, or, for organs, a folder of masks."
        ) from None


def _load_mask(path: Path) -> MetaTensor:
    mask = _load(path, None, "the mask")
    if mask.ndim != 4 or mask.shape[0] != 1:
        shape = tuple(mask.shape)
        raise ValueError(f"{path} has shape {shape} (channels first); expected the mask (1, H, W, D) of one structure.")
    return mask


def _voxels(mask: torch.Tensor, file: Path) -> NDArray[np.bool_]:
    """Bool (H, W, D) of a mask (1, H, W, D) after the check of its values."""
    volume = mask.as_subclass(torch.Tensor).numpy()[0]
    inside: NDArray[np.bool_] = volume != 0
    values = volume[inside]
    if not np.isfinite(values).all():
        raise ValueError(f"{file} holds values that are not finite (NaN or infinite); expected a mask of 0 and 1.")
    if values.size and values.min() != values.max():
        found = np.unique(volume)
        shown = ", ".join(f"{v:g}" for v in found[:5]) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            f"{file} holds {len(found)} different values ({shown}); expected a mask of 0 and one other value. If it is "
            "a label map of many structures, give this file as organs instead of its folder."
        )
    return inside
