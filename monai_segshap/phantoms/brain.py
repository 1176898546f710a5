# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A synthetic brain with a tumor in four MRI contrasts, of which is known what is where and which contrast shows it."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from monai_segshap.phantoms.brain_anatomy import (
    SUB_REGIONS,
    TISSUES,
    BrainCanvas,
    BrainMimic,
    BrainTumor,
    paint_brain,
    paint_mimics,
    paint_tumor,
)
from monai_segshap.phantoms.volumes import write_volume

__all__ = ["BRATS_SCHEMES", "BrainPhantom", "brain_phantom"]

_REFERENCE_MM = np.array([128.0, 160.0, 128.0])
_BASE_SIGNAL = 14.0
_TEXTURE_MM = 2.6
_TISSUE_LABELS = {"necrosis": 1, "edema": 2, "enhancing_tumor": 3}

BRATS_SCHEMES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "2023": ("BraTS-GLI-{:05d}-000-", ("t1n", "t1c", "t2w", "t2f", "seg"), 3),
    "2021": ("BraTS2021_{:05d}_", ("t1", "t1ce", "t2", "flair", "seg"), 4),
}
"""Year to the beginning of its file names, their endings (contrasts in the order of ``CONTRASTS``), and ET's label."""


@dataclass(frozen=True)
class BrainPhantom:
    """A synthetic multi-contrast MRI case with its truth.

    Attributes:
        image: signals in arbitrary units, float32 (4, H, W, D), whole numbers, channels in the order of ``CONTRASTS``;
            0 outside the brain and at least 1 inside. Each contrast has its own scale.
        targets: sub-region labels, uint8 (H, W, D), keys of ``SUB_REGIONS``, 0 = no tumor.
        tissues: tissue numbers, uint8 (H, W, D), keys of ``TISSUES``, 0 = outside the brain.
        affine: voxel to RAS mm, float64 (4, 4), exactly representable in float32 as NIfTI stores it.
        tumor: where it is, and how strongly each contrast shows it in this case.
        mimics: structures that look like a part of the tumor in some contrasts.
        seed: the case number.
    """

    image: np.ndarray
    targets: np.ndarray
    tissues: np.ndarray
    affine: np.ndarray
    tumor: BrainTumor
    mimics: tuple[BrainMimic, ...]
    seed: int

    def write(self, folder: str | os.PathLike[str], scheme: str = "2023") -> dict[str, Path]:
        """Write five NIfTI files with names as in BraTS, each under a temporary name first and then renamed.

        Args:
            folder: directory to write to; made if it does not exist.
            scheme: year of the naming, a key of ``BRATS_SCHEMES``: "2023" ("-t1n", "-t1c", "-t2w", "-t2f", "-seg",
                labels 1, 2, 3) or "2021" ("_t1", "_t1ce", "_t2", "_flair", "_seg", labels 1, 2, 4).

        Returns:
            Paths under the names of ``CONTRASTS`` (int16) and ``label`` (uint8).

        Raises:
            ValueError: for an unknown scheme.
        """
        if scheme not in BRATS_SCHEMES:
            raise ValueError(f"scheme is {scheme!r}; expected one of {', '.join(BRATS_SCHEMES)}.")
        beginning, endings, enhancing = BRATS_SCHEMES[scheme]
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        labels = np.where(self.targets == 3, enhancing, self.targets).astype(np.uint8)
        paths = {}
        keys = (*BRATS_SCHEMES["2023"][1][:4], "label")
        for key, ending, array in zip(keys, endings, (*self.image.astype(np.int16), labels), strict=True):
            paths[key] = write_volume(folder / f"{beginning.format(self.seed)}{ending}.nii.gz", array, self.affine)
        return paths


def brain_phantom(
    seed: int = 0,
    shape: Sequence[int] = (64, 80, 64),
    spacing_mm: Sequence[float] = (2.0, 2.0, 2.0),
    sub_regions: Sequence[str] | None = None,
    noise: float = 1.0,
) -> BrainPhantom:
    """Make a synthetic brain with one tumor in four MRI contrasts; equal arguments give equal arrays.

    Args:
        seed: case number, >= 0; decides sizes, tumor, look-alikes, scales, bias fields and noise.
        shape: grid size (H, W, D) in voxels, stored towards the patient's left, posterior and superior.
        spacing_mm: voxel size in mm along the three axes; the anatomy is stretched to the field of view.
        sub_regions: those that the tumor has, of "NCR", "ED", "ET"; none for a brain without tumor. None: drawn by the
            seed; about half of the cases have all three, the others two or ED alone.
        noise: factor of texture and noise; 1 gives the texture the standard deviation that ``VISIBILITY`` counts in.

    Returns:
        Four contrasts, labels, tissues, affine, the tumor and the list of look-alikes.

    Raises:
        ValueError: if an argument is out of its range; the message says which and what to do.

    Example:
        >>> case = brain_phantom(seed=1, shape=(32, 40, 32), spacing_mm=(4, 4, 4))
        >>> case.image.shape, case.tumor.sub_regions
        ((4, 32, 40, 32), ('NCR', 'ED', 'ET'))
    """
    _check_arguments(seed, shape, spacing_mm, sub_regions, noise)
    body, growth, others, scanner = (np.random.default_rng(s) for s in np.random.SeedSequence([int(seed), 1]).spawn(4))
    spacing = np.asarray(spacing_mm, float)
    centre = np.round(body.uniform((-10, -30, -20), (10, 10, 40)), 1)
    affine = np.eye(4)
    affine[:3, :3] = np.diag((-1.0, -1.0, 1.0)) @ np.diag(spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    affine = affine.astype(np.float32).astype(np.float64)
    millimeters = np.asarray(shape) * spacing / _REFERENCE_MM
    to_reference = np.eye(4)
    to_reference[:3, :3] = np.diag(1 / millimeters) @ affine[:3, :3]
    to_reference[:3, 3] = (affine[:3, 3] - centre) / millimeters
    canvas = BrainCanvas(to_reference, shape, millimeters)
    brain = paint_brain(canvas, body)
    tumor = paint_tumor(canvas, growth, brain, sub_regions)
    mimics = paint_mimics(canvas, others)
    targets = np.zeros(shape, np.uint8)
    for number, name in TISSUES.items():
        targets[canvas.tissues == number] = _TISSUE_LABELS.get(name, 0)
    image = _scanned(canvas, scanner, float(noise))
    return BrainPhantom(image, targets, canvas.tissues, affine, tumor, tuple(mimics), int(seed))


def _check_arguments(
    seed: int, shape: Sequence[int], spacing_mm: Sequence[float], sub_regions: Sequence[str] | None, noise: float
) -> None:
    """Raise ``ValueError`` for the first argument of ``brain_phantom`` that is out of range."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {seed!r}. Pass for example seed=0.")
    if len(shape) != 3 or not all(isinstance(n, numbers.Integral) for n in shape) or min(shape) < 24:
        raise ValueError(f"shape must be three whole numbers, at least (24, 24, 24), got {shape!r}. Enlarge the grid.")
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive lengths in mm, got {spacing_mm!r}. Try (2.0, 2.0, 2.0).")
    known = tuple(SUB_REGIONS.values())
    if sub_regions is not None and (isinstance(sub_regions, str) or not set(sub_regions) <= set(known)):
        raise ValueError(f"sub_regions must be a list with some of {', '.join(known)}, got {sub_regions!r}.")
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a factor >= 0, got {noise!r}. Use 0 for none.")


def _scanned(canvas: BrainCanvas, rng: np.random.Generator, noise: float) -> np.ndarray:
    """Image float32 (4, H, W, D), whole numbers: texture, white noise, a bias field and a scale for each contrast."""
    inside = canvas.tissues > 0
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in inside.shape], indexing="ij", sparse=True)
    found = np.zeros_like(canvas.contrasts)
    for channel, signal in enumerate(canvas.contrasts):
        texture = ndimage.gaussian_filter(rng.standard_normal(signal.shape, np.float32), _TEXTURE_MM / canvas.voxel_mm)
        white = rng.standard_normal(signal.shape, np.float32)
        measured = _BASE_SIGNAL + signal + np.float32(noise) * (texture / texture.std() + np.float32(0.35) * white)
        a = rng.normal(0, 0.025, 6).astype(np.float32)
        bias = np.exp(a[0] * x + a[1] * y + a[2] * z + a[3] * x * y + a[4] * y * y + a[5] * z * z)
        scaled = np.float32(rng.uniform(20, 45)) * measured * bias
        found[channel] = np.where(inside, np.clip(np.rint(scaled), 1, 32767), 0)
    return found
