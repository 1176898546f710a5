# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Shapes as implicit functions, and a canvas that paints them on a voxel grid with partial volume.

A shape's function is negative inside and roughly in mm. The share of a voxel that the shape fills is taken from the
function's value over its change across that voxel, so edges are as soft as the voxels are large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "ORGAN_NAMES",
    "ORGAN_NUMBERS",
    "Canvas",
    "Shape",
    "cylinder",
    "distance_mm",
    "ellipsoid",
    "half_space",
    "tube",
]

ORGAN_NAMES: dict[int, str] = {
    1: "lung_right",
    2: "lung_left",
    3: "heart",
    4: "liver",
    5: "spleen",
    6: "stomach",
    7: "kidney_right",
    8: "kidney_left",
    9: "pancreas",
    10: "gallbladder",
    11: "esophagus",
    12: "aorta",
    13: "inferior_vena_cava",
    14: "iliac_vessels",
    15: "vessel_branches",
    16: "bowel",
    17: "vertebrae",
    18: "spinal_canal",
    19: "ribs",
    20: "hip_bones",
    21: "muscle",
    22: "lymph_nodes",
}
"""Label number to name; 0 is fat, air and everything else without a name."""

ORGAN_NUMBERS = {name: number for number, name in ORGAN_NAMES.items()}
AIR_HU = -1000.0
Vector = Sequence[float] | np.ndarray
Field = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Shape:
    """A region {field < 0} of reference space (mm) inside a bounding box; ``&``, ``|`` and ``-`` are set operations."""

    field: Field
    lower: np.ndarray
    upper: np.ndarray

    def __and__(self, other: Shape) -> Shape:
        a, b = self.field, other.field
        lower, upper = np.maximum(self.lower, other.lower), np.minimum(self.upper, other.upper)
        return Shape(lambda x, y, z: np.maximum(a(x, y, z), b(x, y, z)), lower, upper)

    def __or__(self, other: Shape) -> Shape:
        a, b = self.field, other.field
        lower, upper = np.minimum(self.lower, other.lower), np.maximum(self.upper, other.upper)
        return Shape(lambda x, y, z: np.minimum(a(x, y, z), b(x, y, z)), lower, upper)

    def __sub__(self, other: Shape) -> Shape:
        a, b = self.field, other.field
        return Shape(lambda x, y, z: np.maximum(a(x, y, z), -b(x, y, z)), self.lower, self.upper)


def half_space(field: Field) -> Shape:
    """Unbounded region where a function of x, y and z (reference mm) is negative."""
    return Shape(field, np.full(3, -400.0), np.full(3, 400.0))


def ellipsoid(centre: Vector, semi: Vector, degrees: float = 0.0) -> Shape:
    """Ellipsoid with semi-axes in mm, turned about z by ``degrees``."""
    (cx, cy, cz), (a, b, c) = centre, semi
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    reach = np.array([math.hypot(a * cos, b * sin), math.hypot(a * sin, b * cos), c])

    def field(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        u, v = ((x - cx) * cos + (y - cy) * sin) / a, ((y - cy) * cos - (x - cx) * sin) / b
        return (np.sqrt(u * u + v * v + ((z - cz) / c) ** 2) - 1.0) * min(a, b, c)

    return Shape(field, np.array(centre) - reach, np.array(centre) + reach)


def cylinder(centre: Vector, semi: Vector, power: float = 2.0) -> Shape:
    """Superelliptic cylinder along z: center (x, y) and semi-axes in mm."""
    (cx, cy), (a, b) = centre, semi

    def field(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        total = (np.abs(x - cx) / a) ** power + (np.abs(y - cy) / b) ** power
        return (total ** (1.0 / power) - 1.0) * min(a, b)

    return Shape(field, np.array([cx - a, cy - b, -400.0]), np.array([cx + a, cy + b, 400.0]))


def tube(points: np.ndarray, radius: float) -> Shape:
    """Round tube of a radius in mm along a polyline of points (N, 3), with hemispherical ends."""

    def field(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        best = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), np.inf, np.float32)
        for start, step in zip(points[:-1], np.diff(points, axis=0), strict=True):
            dx, dy, dz = x - start[0], y - start[1], z - start[2]
            along = np.clip((dx * step[0] + dy * step[1] + dz * step[2]) / float(step @ step), 0.0, 1.0)
            square = (dx - along * step[0]) ** 2 + (dy - along * step[1]) ** 2 + (dz - along * step[2]) ** 2
            np.minimum(best, square, out=best)
        return np.sqrt(best) - radius

    return Shape(field, points.min(0) - radius, points.max(0) + radius)


def distance_mm(point: np.ndarray, polyline: np.ndarray) -> float:
    """Distance in reference mm from a point (3,) to a polyline (N, 3)."""
    steps = np.diff(polyline, axis=0)
    along = np.clip(((point - polyline[:-1]) * steps).sum(1) / (steps * steps).sum(1), 0.0, 1.0)
    return float(np.linalg.norm(point - polyline[:-1] - along[:, None] * steps, axis=1).min())


class Canvas:
    """An image (HU) and its organ labels on which shapes of reference space are painted, the last one on top.

    Args:
        to_reference: voxel indices to reference mm, (4, 4).
        shape: grid size (H, W, D) in voxels.
        millimeters: length in mm of one reference mm along each axis, (3,).

    Attributes:
        image: CT numbers in HU, float32 (H, W, D); air at first.
        organs: numbers of ``ORGAN_NAMES``, uint8 (H, W, D); 0 at first.
        voxel_mm: size of a voxel along the reference axes, (3,), in reference mm.
    """

    def __init__(self, to_reference: np.ndarray, shape: Sequence[int], millimeters: np.ndarray) -> None:
        self.shape = np.array(shape)
        self._matrix, self._offset = to_reference[:3, :3].astype(np.float32), to_reference[:3, 3].astype(np.float32)
        self._inverse = np.linalg.inv(to_reference)
        self.millimeters = millimeters
        self.voxel_mm = np.abs(to_reference[:3, :3]).sum(1)
        self.image = np.full(shape, AIR_HU, np.float32)
        self.organs = np.zeros(shape, np.uint8)

    def voxel(self, point: np.ndarray) -> tuple[int, int, int]:
        """Nearest voxel index of a point (3,) in reference mm."""
        i, j, k = (int(v) for v in np.rint(self._inverse[:3, :3] @ point + self._inverse[:3, 3]))
        return i, j, k

    def inside(self, point: np.ndarray, margin: int = 2) -> bool:
        """Whether a point (3,) in reference mm is at least ``margin`` voxels from the border of the grid."""
        index = np.array(self.voxel(point))
        return bool(np.all(index >= margin) and np.all(index < self.shape - margin))

    def _evaluate(self, shape: Shape) -> tuple[tuple[slice, ...], np.ndarray]:
        """Slices of the voxels around a shape, and its field (mm) there; the slices are empty outside the grid."""
        corners = np.stack(np.meshgrid(*zip(shape.lower, shape.upper, strict=True), indexing="ij"), -1).reshape(-1, 3)
        index = corners @ self._inverse[:3, :3].T + self._inverse[:3, 3]
        low = np.clip(np.floor(index.min(0)).astype(int) - 2, 0, self.shape)
        high = np.clip(np.ceil(index.max(0)).astype(int) + 3, 0, self.shape)
        if np.any(high - low < 2) or np.any(shape.lower >= shape.upper):
            return (slice(0, 0),) * 3, np.zeros((0, 0, 0), np.float32)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        i, j, k = np.ogrid[box]
        rows = zip(self._matrix, self._offset, strict=True)
        x, y, z = ((row[0] * i + row[1] * j + row[2] * k + offset).astype(np.float32) for row, offset in rows)
        return box, shape.field(x, y, z)

    def paint(self, shape: Shape, hu: float, organ: str | None = None) -> None:
        """Mix ``hu`` into every voxel by the share that the shape fills; voxels at least half full get its label."""
        box, field = self._evaluate(shape)
        if not field.size:
            return
        change = np.zeros_like(field)
        for axis in range(3):
            change += np.abs(np.gradient(field, axis=axis))
        share = np.clip(0.5 - field / np.maximum(change, 1e-6), 0.0, 1.0)
        self.image[box] += share * (np.float32(hu) - self.image[box])
        self.organs[box][share >= 0.5] = ORGAN_NUMBERS[organ] if organ else 0

    def free(self, shape: Shape, margin_mm: float = 1.0, allowed: Iterable[str] = ()) -> float:
        """Share (0 to 1) of a shape, grown by a margin in mm, in fat or allowed organs; 0 if it meets a nodule."""
        box, field = self._evaluate(shape)
        mask = field < margin_mm
        if not mask.any():
            return 0.0
        organs, image = self.organs[box][mask], self.image[box][mask]
        if (organs == ORGAN_NUMBERS["lymph_nodes"]).any():
            return 0.0
        fat = (organs == 0) & (image < -50) & (image > -160)
        return float((fat | np.isin(organs, [ORGAN_NUMBERS[name] for name in allowed])).mean())
