# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A synthetic torso CT as one object: image, organ labels, targets, affine, and files."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from monai_segshap.phantoms.anatomy import enhancement, paint_organs, paint_vessels, paint_walls
from monai_segshap.phantoms.canvas import ORGAN_NAMES, ORGAN_NUMBERS, Canvas
from monai_segshap.phantoms.nodules import Mimic, Nodule, place_mimics, place_nodules
from monai_segshap.phantoms.volumes import write_names, write_volume

__all__ = ["CLASS_NAMES", "TorsoPhantom", "torso_phantom"]

CLASS_NAMES: tuple[str, ...] = ("background", "spleen", "lymph_node")
"""Names of the values of ``TorsoPhantom.targets``."""

_REFERENCE_MM = np.array([240.0, 192.0, 200.0])
_TEXTURE_HU = {"lung_right": 45, "lung_left": 45, "liver": 7, "spleen": 5, "stomach": 12, "kidney_right": 9}
_TEXTURE_HU |= {"kidney_left": 9, "pancreas": 16, "bowel": 16, "vertebrae": 55, "ribs": 60, "hip_bones": 60}
_TEXTURE_HU |= {"muscle": 9}


@dataclass(frozen=True)
class TorsoPhantom:
    """A synthetic CT case with its truth.

    Attributes:
        image: CT numbers, float32 (H, W, D), whole HU in [-1024, 3071].
        organs: organ labels, uint8 (H, W, D), numbers of ``ORGAN_NAMES``, 0 = none.
        targets: target labels, uint8 (H, W, D), indices of ``CLASS_NAMES``.
        affine: voxel to RAS mm, float64 (4, 4), exactly representable in float32 as NIfTI stores it.
        nodules: every nodule of class ``lymph_node``.
        mimics: structures that a network may take for a nodule.
    """

    image: np.ndarray
    organs: np.ndarray
    targets: np.ndarray
    affine: np.ndarray
    nodules: tuple[Nodule, ...]
    mimics: tuple[Mimic, ...]

    def write(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Write the case as files, each under a temporary name first and then renamed.

        Args:
            folder: directory to write to; made if it does not exist.

        Returns:
            Paths under the keys ``image`` (``ct.nii.gz``, int16), ``organs`` (``organs.nii.gz``, uint8), ``targets``
            (``targets.nii.gz``, uint8) and ``organ_names`` (``organ_names.json``, label number to name).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        volumes = {"image": ("ct.nii.gz", self.image.astype(np.int16))}
        volumes |= {"organs": ("organs.nii.gz", self.organs), "targets": ("targets.nii.gz", self.targets)}
        paths = {key: write_volume(folder / name, array, self.affine) for key, (name, array) in volumes.items()}
        paths["organ_names"] = write_names(folder / "organ_names.json", ORGAN_NAMES)
        return paths


def _check_arguments(
    seed: int, shape: Sequence[int], spacing_mm: Sequence[float], degrees: float, noise: float
) -> None:
    """Raise ``ValueError`` for the first argument of ``torso_phantom`` that is out of range."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {seed!r}. Pass for example seed=0.")
    whole = len(shape) == 3 and all(isinstance(n, numbers.Integral) for n in shape)
    if not whole or min(shape[:2]) < 32 or shape[2] < 8:
        raise ValueError(f"shape must be three whole numbers, at least (32, 32, 8), got {shape!r}. Enlarge the grid.")
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive lengths in mm, got {spacing_mm!r}. Try (1.5, 1.5, 5.0).")
    if not (math.isfinite(degrees) and abs(degrees) <= 30):
        raise ValueError(f"oblique_degrees must be within -30 to 30, got {degrees!r}. Use a smaller tilt.")
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise_hu must be a standard deviation >= 0 in HU, got {noise!r}. Use 0 for none.")


def _rotation(x_degrees: float, y_degrees: float, z_degrees: float) -> np.ndarray:
    """Rotation matrix (3, 3): about x first, then y, then z."""
    result = np.eye(3)
    for (a, b), degrees in zip(((1, 2), (2, 0), (0, 1)), (x_degrees, y_degrees, z_degrees), strict=True):
        turn, angle = np.eye(3), math.radians(degrees)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[b, a], turn[a, b] = math.sin(angle), -math.sin(angle)
        result = turn @ result
    return result


def _add_noise(canvas: Canvas, rng: np.random.Generator, noise_hu: float) -> np.ndarray:
    """Image (float32, whole HU) with the scanner's blur, organ texture and noise of a standard deviation in HU."""
    image = ndimage.gaussian_filter(canvas.image, (0.5, 0.5, 0.0))
    amplitude = np.zeros(256, np.float32)
    for number, name in ORGAN_NAMES.items():
        amplitude[number] = _TEXTURE_HU.get(name, 4)
    amplitude[0] = 6
    layers = []
    for sigma in ((2.2, 2.2, 0.8), (0.8, 0.8, 0.0)):
        field = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), sigma)
        layers.append(field / field.std())
    white = rng.standard_normal(image.shape, np.float32)
    image += np.where(image > -900, amplitude[canvas.organs], 0) * layers[0]
    image += np.float32(noise_hu) * (np.float32(0.8) * layers[1] + np.float32(0.6) * white)
    return np.clip(np.rint(image), -1024, 3071)


def torso_phantom(
    seed: int = 0,
    shape: Sequence[int] = (160, 128, 40),
    spacing_mm: Sequence[float] = (1.5, 1.5, 5.0),
    oblique_degrees: float = 0.0,
    noise_hu: float = 12.0,
) -> TorsoPhantom:
    """Make a synthetic CT of a torso; equal arguments give equal arrays.

    Args:
        seed: case number, >= 0; decides sizes, positions, tilt, contrast phase, nodules, look-alikes and noise.
        shape: grid size (H, W, D) in voxels, stored towards the patient's left, posterior and superior.
        spacing_mm: voxel size in mm along the three axes; the anatomy is stretched to the field of view.
        oblique_degrees: tilt of the grid about the patient's left-right axis (and a third of it about the long axis).
        noise_hu: standard deviation of the noise in HU.

    Returns:
        Image, organ labels, target labels, affine and the list of nodules and look-alikes.

    Raises:
        ValueError: if an argument is out of its range; the message says which and what to do.

    Example:
        >>> case = torso_phantom(seed=1, shape=(64, 64, 16))
        >>> case.image.shape, CLASS_NAMES[case.targets.max()]
        ((64, 64, 16), 'lymph_node')
    """
    _check_arguments(seed, shape, spacing_mm, oblique_degrees, noise_hu)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(int(seed)).spawn(4)]
    body, spacing = streams[0], np.asarray(spacing_mm, float)
    tilt = _rotation(*(body.normal(0, 2.5, 3)))
    centre = np.round(body.uniform((-20, -30, -400), (20, 10, -100)), 1)
    affine = np.eye(4)
    affine[:3, :3] = _rotation(oblique_degrees, 0, oblique_degrees / 3) @ np.diag((-1.0, -1.0, 1.0)) @ np.diag(spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    affine = affine.astype(np.float32).astype(np.float64)
    to_reference = np.eye(4)
    millimeters = np.asarray(shape) * spacing / _REFERENCE_MM
    to_reference[:3, :3] = tilt @ np.diag(1 / millimeters) @ affine[:3, :3]
    to_reference[:3, 3] = tilt @ ((affine[:3, 3] - centre) / millimeters)
    canvas = Canvas(to_reference, shape, millimeters)
    hu = enhancement(body)
    paint_organs(canvas, body, hu, paint_walls(canvas, body, hu))
    vessels = paint_vessels(canvas, body, hu)
    nodules = place_nodules(canvas, streams[1], hu, vessels)
    mimics = place_mimics(canvas, streams[2], hu, vessels)
    image = _add_noise(canvas, streams[3], float(noise_hu))
    targets = np.zeros(shape, np.uint8)
    for value, name in ((1, "spleen"), (2, "lymph_nodes")):
        targets[canvas.organs == ORGAN_NUMBERS[name]] = value
    return TorsoPhantom(image, canvas.organs, targets, affine, tuple(nodules), tuple(mimics))
