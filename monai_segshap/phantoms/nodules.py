# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Nodules in the fat along the vessels, and structures that look like them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from monai_segshap.phantoms.anatomy import Vessels, paint_bowel
from monai_segshap.phantoms.canvas import Canvas, distance_mm, ellipsoid, tube

__all__ = ["Mimic", "Nodule", "place_mimics", "place_nodules"]


@dataclass(frozen=True)
class Nodule:
    """A lymph-node-like nodule: center voxel, mean radius in mm, and the vessel it lies beside."""

    centre_ijk: tuple[int, int, int]
    radius_mm: float
    vessel: str


@dataclass(frozen=True)
class Mimic:
    """A structure that looks like a nodule: center voxel and ``"bowel_loop"`` or ``"vessel_cross_section"``."""

    centre_ijk: tuple[int, int, int]
    kind: str


def _beside(vessel: tuple[np.ndarray, float], gap: float, rng: np.random.Generator) -> np.ndarray:
    """Random point (3,) at a gap in mm from the surface of a vessel, in the axial plane, below the liver hilum."""
    path, radius = vessel
    low, high = max(path[:, 2].min(), -88), min(path[:, 2].max(), 26)
    z, angle = rng.uniform(low, high), rng.uniform(0, 2 * math.pi)
    order = np.argsort(path[:, 2])
    x, y = (np.interp(z, path[order, 2], path[order, axis]) for axis in (0, 1))
    return np.array([x + (radius + gap) * math.cos(angle), y + (radius + gap) * math.sin(angle), z])


def place_nodules(canvas: Canvas, rng: np.random.Generator, hu: dict[str, float], vessels: Vessels) -> list[Nodule]:
    """Paint 3 to 7 nodules in the fat along the vessels; late trials take smaller ones and fat less pure."""
    wanted, names = int(rng.integers(3, 8)), list(vessels)
    nodules: list[Nodule] = []
    for trial in range(900):
        radius, name = rng.uniform(4.2, 10.5), names[int(rng.integers(len(names)))]
        radius *= 1.0 if trial < 300 else 0.75
        semi = np.maximum(radius * rng.uniform(0.85, 1.2, 3), 1.15 * canvas.voxel_mm)
        centre = _beside(vessels[name], float(semi[:2].mean()) + rng.uniform(0.5, 4.5), rng)
        shape = ellipsoid(centre, semi, rng.uniform(0, 180))
        density = hu["lymph_nodes"] + rng.normal(0, 5)
        if canvas.inside(centre) and canvas.free(shape) >= (0.93 if trial < 600 else 0.75):
            canvas.paint(shape, density, "lymph_nodes")
            size = float(np.prod(semi * canvas.millimeters) ** (1 / 3))
            nodules.append(Nodule(canvas.voxel(centre), round(size, 2), name))
        if len(nodules) == wanted:
            break
    return nodules


def place_mimics(canvas: Canvas, rng: np.random.Generator, hu: dict[str, float], vessels: Vessels) -> list[Mimic]:
    """Paint short vessel branches near the great vessels, the bowel, and isolated round bowel loops away from them."""
    mimics: list[Mimic] = []
    wanted, names = int(rng.integers(3, 6)), list(vessels)
    for _ in range(150):
        radius = max(rng.uniform(2.6, 4.6), float(canvas.voxel_mm[:2].max()))
        middle = _beside(vessels[names[int(rng.integers(len(names)))]], radius + rng.uniform(1, 9), rng)
        half = np.array([*rng.normal(0, 3, 2), 1.0]) * np.array([1, 1, rng.uniform(7, 26)])
        branch = tube(np.stack([middle - half, middle + half]), radius)
        if canvas.inside(middle) and canvas.free(branch) > 0.9:
            canvas.paint(branch, hu["vessel_branches"], "vessel_branches")
            mimics.append(Mimic(canvas.voxel(middle), "vessel_cross_section"))
        if len(mimics) == wanted:
            break
    paint_bowel(canvas, rng, vessels)
    wanted = len(mimics) + int(rng.integers(4, 8))
    for _ in range(400):
        centre = np.array([rng.uniform(-72, 72), rng.uniform(-30, 56), rng.uniform(-88, 20)])
        semi = np.maximum(rng.uniform(4.5, 10) * rng.uniform(0.85, 1.2, 3), 1.15 * canvas.voxel_mm)
        shape = ellipsoid(centre, semi, rng.uniform(0, 180))
        if min(distance_mm(centre, path) - radius for path, radius in vessels.values()) < 21 or not canvas.inside(
            centre
        ):
            continue
        if canvas.free(shape) > 0.9:
            canvas.paint(shape, hu["lymph_nodes"] + rng.normal(0, 5), "bowel")
            mimics.append(Mimic(canvas.voxel(centre), "bowel_loop"))
        if len(mimics) == wanted:
            break
    return mimics
