# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Cases for tiny nnU-Net models: phantoms, and real ones with merged labels.

Arrays are (z, y, x) here, as nnU-Net reads them, and files hold them as NIfTI (x, y, z).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

__all__ = ["SPACING", "TinyCase", "convert_case", "make_phantom_case", "write_case"]

SPACING = (2.5, 1.5, 1.25)
_ORGAN_HU = (110.0, 190.0, 270.0)
_ORGAN_CENTERS = ((0.5, 0.4, 0.33), (0.5, 0.42, 0.7), (0.45, 0.68, 0.5))
_ORGAN_RADII = ((0.3, 0.2, 0.16), (0.24, 0.16, 0.11), (0.24, 0.11, 0.12))


@dataclass(frozen=True)
class TinyCase:
    """Files of one case: ``images`` one file a channel (``name_0000.nii.gz`` ...), ``labels`` the label map."""

    images: tuple[Path, ...]
    labels: Path

    @property
    def image_names(self) -> list[str]:
        """The images as nnU-Net wants them: a list of strings."""
        return [str(p) for p in self.images]


def _ellipsoid(shape: Sequence[int], center: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Boolean (z, y, x); center and radii in fractions of the shape."""
    axes = [(np.arange(n) + 0.5) / n for n in shape]
    grid = np.meshgrid(*axes, indexing="ij")
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, center, radii, strict=True)) <= 1.0


def _affine(spacing: Sequence[float], codes: str, origin: Sequence[float], tilt: float) -> np.ndarray:
    """Voxel index (x, y, z) to RAS mm; ``tilt`` degrees about the last axis of the world."""
    signs = [-1.0 if c in "LPI" else 1.0 for c in codes]
    found = np.eye(4)
    found[:3, :3] = np.diag(np.multiply(signs, list(spacing)[::-1]))
    a = np.deg2rad(tilt)
    turn = np.array([[np.cos(a), -np.sin(a), 0.0], [np.sin(a), np.cos(a), 0.0], [0.0, 0.0, 1.0]])
    found[:3, :3] = turn @ found[:3, :3]
    found[:3, 3] = origin
    return found


def write_case(
    folder: Path, name: str, channels: Sequence[np.ndarray], labels: np.ndarray, affine: np.ndarray
) -> TinyCase:
    """Write channels and labels, all (z, y, x), as NIfTI files with one affine for voxel indices (x, y, z)."""
    folder.mkdir(parents=True, exist_ok=True)

    def save(array: np.ndarray, path: Path) -> Path:
        image = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        nib.save(image, path)
        return path

    images = tuple(save(c, folder / f"{name}_{i:04d}.nii.gz") for i, c in enumerate(channels))
    return TinyCase(images, save(labels.astype(np.uint8), folder / f"{name}.nii.gz"))


def make_phantom_case(
    folder: Path,
    seed: int,
    *,
    name: str = "case",
    shape: Sequence[int] = (28, 48, 56),
    spacing: Sequence[float] = SPACING,
    codes: str = "LPS",
    origin: Sequence[float] = (71.5, 33.25, -120.0),
    tilt: float = 0.0,
    n_channels: int = 1,
    margin: Sequence[tuple[int, int]] = ((0, 0), (0, 0), (0, 0)),
) -> TinyCase:
    """Write a body with liver (1), spleen (2) and kidney (3) in HU; shape, spacing (mm) and margin are (z, y, x).

    Channel 0 is a CT (int16), channel 1 something like an MR (float32, positive). ``margin`` voxels at the low and
    high end of each axis hold exactly 0, which is what nnU-Net crops. ``codes`` are the axes of the file (x, y, z).
    """
    rng = np.random.default_rng(seed)
    ct = np.full(shape, -1000.0)
    mr = np.full(shape, 20.0)
    labels = np.zeros(shape, dtype=np.uint8)
    body = _ellipsoid(shape, (0.5, 0.5, 0.5), (2.0, 0.46, 0.46))
    ct[body], mr[body] = -90.0, 400.0
    muscle = _ellipsoid(shape, (0.5, 0.5, 0.5), (2.0, 0.4, 0.41))
    ct[muscle], mr[muscle] = 40.0, 150.0
    for k, (center, radii, hu) in enumerate(zip(_ORGAN_CENTERS, _ORGAN_RADII, _ORGAN_HU, strict=True), start=1):
        organ = _ellipsoid(shape, rng.normal(center, 0.015), rng.normal(radii, 0.008)) & muscle
        labels[organ], ct[organ], mr[organ] = k, hu, 600.0 - 110.0 * k
    ct += rng.normal(0.0, 12.0, shape)
    mr = mr * (1.0 + 0.2 * np.linspace(-1, 1, shape[2])) + np.abs(rng.normal(0.0, 15.0, shape)) + 1.0
    ct = np.where(np.round(ct) == 0, 1, np.round(ct))
    inside = np.zeros(shape, dtype=bool)
    inside[tuple(slice(a, n - b) for (a, b), n in zip(margin, shape, strict=True))] = True
    channels = [np.where(inside, ct, 0).astype(np.int16), np.where(inside, mr, 0).astype(np.float32)]
    labels[~inside] = 0
    return write_case(folder, name, channels[:n_channels], labels, _affine(spacing, codes, origin, tilt))


def convert_case(
    image: Path, labels: Path, folder: Path, groups: Mapping[str, Sequence[int]], name: str = "case"
) -> tuple[TinyCase, dict[str, int]]:
    """A CT and its label map as a case, labels merged: ``groups`` name -> label numbers. Returns new numbers too."""
    ct, segmentation = nib.load(image), nib.load(labels)
    if ct.shape != segmentation.shape or not np.allclose(ct.affine, segmentation.affine, atol=1e-3):
        raise ValueError(f"{Path(image).name} {ct.shape} and {Path(labels).name} {segmentation.shape} differ in grid.")
    values, truth = np.asarray(ct.dataobj), np.asarray(segmentation.dataobj)
    merged = np.zeros(truth.shape, dtype=np.uint8)
    for k, numbers in enumerate(groups.values(), start=1):
        merged[np.isin(truth, list(numbers))] = k
    numbers_of = {"background": 0, **{n: k for k, n in enumerate(groups, start=1)}}
    arrays = [values.astype(np.float32).transpose(2, 1, 0)], merged.transpose(2, 1, 0)
    return write_case(folder, name, *arrays, ct.affine), numbers_of
