# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A synthetic abdomen with two kidneys of equal look whose class is decided by the liver's side alone."""

from __future__ import annotations

import numbers
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from monai_segshap.phantoms.canvas import ORGAN_NUMBERS, Canvas, Shape, cylinder, ellipsoid, half_space, tube
from monai_segshap.phantoms.volumes import write_names, write_volume

__all__ = ["TWINS_CLASS_NAMES", "TwinsPhantom", "twins_phantom"]

TWINS_CLASS_NAMES: tuple[str, ...] = (
    "background",
    "liver",
    "kidney_liver_side",
    "kidney_other_side",
    "spine",
    "aorta",
)
"""Names of the values of ``TwinsPhantom.labels``."""

_SHAPE = (64, 48, 24)
_SPACING_MM = 4.0
_FAT_HU = -105.0
_CYST = "gallbladder"  # any organ of the canvas that these cases do not have
_SIDES = {"right": 1, "left": -1}
_TEXTURE_HU = {"liver": 7.0, "kidney_right": 9.0, "kidney_left": 9.0, "vertebrae": 50.0, "muscle": 9.0, "bowel": 14.0}


@dataclass(frozen=True)
class TwinsPhantom:
    """A synthetic CT of an abdomen with its truth.

    Attributes:
        image: CT numbers, float32 (64, 48, 24), whole HU in [-1024, 3071], voxels of 4 mm.
        labels: uint8 (64, 48, 24), indices of ``TWINS_CLASS_NAMES``. The kidney on the liver's side of the midline is
            ``kidney_liver_side``, the other one ``kidney_other_side``.
        pathology: bool (64, 48, 24), the planted abnormality; False everywhere in a normal case.
        affine: voxel to RAS mm, float64 (4, 4), exactly representable in float32 as NIfTI stores it.
        liver_side: the patient's side the liver lies on, "right" or "left".
    """

    image: np.ndarray
    labels: np.ndarray
    pathology: np.ndarray
    affine: np.ndarray
    liver_side: str

    def write(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Write the case as files, each under a temporary name first and then renamed.

        Args:
            folder: directory to write to; made if it does not exist.

        Returns:
            Paths under the keys ``image`` (``ct.nii.gz``, int16), ``organs`` (``organs.nii.gz``, uint8, the labels),
            ``pathology`` (``pathology.nii.gz``, uint8, 1 inside) and ``organ_names`` (``organ_names.json``, label
            number to name, without the background).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        volumes = {"image": ("ct.nii.gz", self.image.astype(np.int16)), "organs": ("organs.nii.gz", self.labels)}
        volumes["pathology"] = ("pathology.nii.gz", self.pathology.astype(np.uint8))
        paths = {key: write_volume(folder / name, array, self.affine) for key, (name, array) in volumes.items()}
        names = dict(enumerate(TWINS_CLASS_NAMES[1:], start=1))
        paths["organ_names"] = write_names(folder / "organ_names.json", names)
        return paths


def twins_phantom(
    seed: int = 0, abnormal: bool = False, liver_side: str | None = None, noise_hu: float = 12.0
) -> TwinsPhantom:
    """Make an abdomen in which a kidney's class can be told only by its neighbor; equal arguments give equal arrays.

    All but the liver follows a distribution that is symmetric about the midline: both kidneys are drawn from one
    distribution, the aorta lies on a side of its own, and body, spine, muscles and bowel have no side. The liver's side
    is drawn last and on its own, and it keeps 8 mm from the kidneys. So image orientation, body outline, and a kidney's
    place, shape, density and texture hold no information about its class. Another ``liver_side`` at the same ``seed``
    leaves every voxel outside of both livers as it is, and swaps the labels of the kidneys.

    Args:
        seed: case number, >= 0; decides sizes, positions, contrast phase, texture and noise.
        abnormal: plant a calcified cyst, 36 to 46 mm across, between liver and kidney. All else stays as it is.
        liver_side: the patient's side, "right" or "left"; None: drawn from the seed.
        noise_hu: standard deviation of the noise in HU, >= 0.

    Returns:
        Image, labels, mask of the abnormality, affine and the liver's side.

    Raises:
        ValueError: if an argument is out of its range; the message says which and what to do.

    Example:
        >>> case = twins_phantom(seed=1)
        >>> case.image.shape, TWINS_CLASS_NAMES[case.labels.max()]
        ((64, 48, 24), 'aorta')
    """
    _check_arguments(seed, liver_side, noise_hu)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence([int(seed), 2]).spawn(5)]
    drawn = str(streams[0].choice(list(_SIDES)))
    side = drawn if liver_side is None else liver_side
    canvas, affine = _empty_canvas(streams[0])
    hu = _densities(streams[0])
    kidneys = {name: _draw_kidney(sign, rng) for (name, sign), rng in zip(_SIDES.items(), streams[1:3], strict=True)}
    cavity = _paint_wall(canvas, streams[0], hu)
    _paint_bowel(canvas, streams[0], cavity)
    _paint_liver(canvas, streams[3], hu["liver"], cavity, kidneys[side], _SIDES[side])
    if abnormal:
        _paint_cyst(canvas, np.random.default_rng([int(seed), 3]), cavity, kidneys[side], _SIDES[side])
    _paint_middle(canvas, streams[0], hu)
    for name, (kidney, sinus, _) in kidneys.items():
        canvas.paint(kidney, hu[f"kidney_{name}"], f"kidney_{name}")
        canvas.paint(sinus, -70, f"kidney_{name}")
    image = _add_noise(canvas, streams[4], float(noise_hu))
    other = "left" if side == "right" else "right"
    organs = ("liver", f"kidney_{side}", f"kidney_{other}", "vertebrae", "aorta")
    labels = np.zeros(_SHAPE, np.uint8)
    for value, organ in enumerate(organs, start=1):
        labels[canvas.organs == ORGAN_NUMBERS[organ]] = value
    return TwinsPhantom(image, labels, canvas.organs == ORGAN_NUMBERS[_CYST], affine, side)


def _check_arguments(seed: int, liver_side: str | None, noise_hu: float) -> None:
    """Raise ``ValueError`` for the first argument of ``twins_phantom`` that is out of range."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {seed!r}. Pass for example seed=0.")
    if liver_side is not None and liver_side not in _SIDES:
        raise ValueError(f"liver_side must be 'right', 'left' or None, got {liver_side!r}. None draws it.")
    if not (np.isfinite(noise_hu) and noise_hu >= 0):
        raise ValueError(f"noise_hu must be a standard deviation >= 0 in HU, got {noise_hu!r}. Use 0 for none.")


def _empty_canvas(rng: np.random.Generator) -> tuple[Canvas, np.ndarray]:
    """Canvas of air whose reference mm start somewhere near the grid's center, and its affine to RAS mm."""
    affine = np.diag((-_SPACING_MM, -_SPACING_MM, _SPACING_MM, 1.0))
    middle = (np.array(_SHAPE) - 1) / 2
    centre = np.round(rng.uniform((-20, -30, -300), (20, 10, -100)), 1)
    affine[:3, 3] = centre - affine[:3, :3] @ middle
    affine = affine.astype(np.float32).astype(np.float64)
    to_reference = affine.copy()
    to_reference[:3, 3] = -affine[:3, :3] @ middle - rng.normal(0, (3, 3, 0))
    return Canvas(to_reference, _SHAPE, np.ones(3)), affine


def _densities(rng: np.random.Generator) -> dict[str, float]:
    """CT numbers (HU) for a random contrast phase; both kidneys from one distribution."""
    e = float(rng.uniform(0.0, 1.0))
    hu = {"liver": 70 + 45 * e, "aorta": 150 + 90 * e, "vertebrae": 230.0, "muscle": 50 + 8 * e}
    hu |= {"kidney_right": 130 + 70 * e, "kidney_left": 130 + 70 * e}
    return {name: value + rng.normal(0, 4) for name, value in hu.items()}


def _draw_kidney(sign: int, rng: np.random.Generator) -> tuple[Shape, Shape, Shape]:
    """A kidney, the fat in its middle, and the kidney grown by 9 mm; sign 1 is the patient's right."""
    x, y, z = np.array((47.0, -30.0, 0.0)) + rng.normal(0, (2.5, 2.5, 6))
    semi = np.array((16.0, 18.0, 29.0)) * rng.normal(1, 0.05) * rng.normal(1, 0.04, 3)
    degrees, centre = sign * (30 + rng.normal(0, 6)), (sign * x, y, z)
    sinus = ellipsoid((sign * (x - 8), y + 4, z), (6, 5, 11))
    return ellipsoid(centre, semi, degrees), sinus, ellipsoid(centre, semi + 9, degrees)


def _paint_wall(canvas: Canvas, rng: np.random.Generator, hu: dict[str, float]) -> Shape:
    """Paint skin fat and muscle wall; return the inner cavity."""
    a, b, fat, wall = rng.normal(110, 3), rng.normal(80, 2), rng.uniform(6, 12), rng.uniform(8, 11)
    layers = [cylinder((0, 0), (a - depth, b - depth), 2.4) for depth in (0.0, fat, fat + wall)]
    canvas.paint(layers[0], _FAT_HU)
    canvas.paint(layers[1], hu["muscle"], "muscle")
    canvas.paint(layers[2], _FAT_HU)
    return layers[2]


def _paint_bowel(canvas: Canvas, rng: np.random.Generator, cavity: Shape) -> None:
    """Paint a handful of soft-tissue loops in the front of the cavity, on either side."""
    for _ in range(7):
        start = rng.uniform((-75, 0, -50), (75, 55, 50))
        points = np.cumsum([start, *(rng.normal(0, 1, (2, 3)) * 14)], axis=0)
        canvas.paint(tube(points, rng.uniform(7, 10)) & cavity, 35 + rng.normal(0, 6), "bowel")


def _paint_liver(
    canvas: Canvas, rng: np.random.Generator, hu: float, cavity: Shape, kidney: tuple[Shape, Shape, Shape], sign: int
) -> None:
    """Paint the liver in front of and beside a kidney, at least 8 mm from it."""
    x, y, z = np.array((57.0, 12.0, 4.0)) + rng.normal(0, (3, 3, 5))
    semi = np.array((39.0, 50.0, 50.0)) * rng.normal(1, 0.04) * rng.normal(1, 0.03, 3)
    canvas.paint((ellipsoid((sign * x, y, z), semi, sign * 12) & cavity) - kidney[2], hu, "liver")


def _paint_cyst(
    canvas: Canvas, rng: np.random.Generator, cavity: Shape, kidney: tuple[Shape, Shape, Shape], sign: int
) -> None:
    """Paint a cyst with a calcified rim between liver and kidney."""
    middle = (kidney[0].lower + kidney[0].upper) / 2
    centre = middle + np.array((sign * 6.0, 36.0, 0.0)) + rng.normal(0, (2, 2, 4))
    radius = float(rng.uniform(18, 23))
    shell = (ellipsoid(centre, (radius,) * 3) & cavity) - kidney[2]
    canvas.paint(shell, 650 + rng.normal(0, 30), _CYST)
    canvas.paint(shell & ellipsoid(centre, (radius - 7,) * 3), 15, _CYST)


def _paint_middle(canvas: Canvas, rng: np.random.Generator, hu: dict[str, float]) -> None:
    """Paint back muscles, spine with discs and canal, and the aorta on a side of its own."""
    disc, aside = rng.uniform(0, 30), float(rng.choice((-1, 1)))
    for sign in (-1, 1):
        canvas.paint(cylinder((22 * sign, -58), (17, 9)), hu["muscle"], "muscle")
        canvas.paint(cylinder((25 * sign, -36), (9, 10)), hu["muscle"], "muscle")
    bony = half_space(lambda x, y, z: np.abs((z + disc) % 30 - 15) - 12)
    canvas.paint(cylinder((0, -38), (17, 13)), 100, "vertebrae")
    canvas.paint(cylinder((0, -38), (17.5, 13.5)) & bony, hu["vertebrae"] + 150, "vertebrae")
    canvas.paint(cylinder((0, -38), (14, 10)) & bony, hu["vertebrae"], "vertebrae")
    canvas.paint(cylinder((0, -58), (11, 10)), hu["vertebrae"] + 90, "vertebrae")
    canvas.paint(cylinder((0, -56), (7, 6)), 35, "vertebrae")
    x = 7 * aside + rng.normal(0, 2)
    path = np.array([[x, -14.0, -80], [x + rng.normal(0, 2), -14, 80]])
    canvas.paint(tube(path, rng.uniform(9, 11)), hu["aorta"], "aorta")


def _add_noise(canvas: Canvas, rng: np.random.Generator, noise_hu: float) -> np.ndarray:
    """Image (float32, whole HU) with organ texture and noise of a standard deviation in HU."""
    fields = rng.standard_normal((2, *_SHAPE), np.float32)
    soft = ndimage.gaussian_filter(fields[0], 0.8)
    strength = np.zeros(max(ORGAN_NUMBERS.values()) + 1, np.float32)
    for organ, sd in _TEXTURE_HU.items():
        strength[ORGAN_NUMBERS[organ]] = sd
    image = canvas.image + strength[canvas.organs] * soft / soft.std() + np.float32(noise_hu) * fields[1]
    return np.clip(np.rint(image), -1024, 3071)
