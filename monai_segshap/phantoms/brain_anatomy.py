# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A random brain with a tumor, painted in four MRI contrasts at once, and how strongly each contrast shows what.

Reference space is 128 x 160 x 128 mm with its origin in the middle: x to the patient's right, y anterior, z superior.
Signals are in units of the texture's standard deviation, with white and gray matter around 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monai_segshap.phantoms.canvas import Canvas, Shape, ellipsoid, half_space, tube

__all__ = [
    "CONTRASTS",
    "SUB_REGIONS",
    "TISSUES",
    "VISIBILITY",
    "BrainCanvas",
    "BrainMimic",
    "BrainTumor",
    "paint_brain",
    "paint_mimics",
    "paint_tumor",
    "planted_order",
]

CONTRASTS: tuple[str, ...] = ("t1n", "t1c", "t2w", "t2f")
"""Order of the channels: T1, T1 with contrast agent, T2, T2-FLAIR, as BraTS names them since 2023."""

SUB_REGIONS: dict[int, str] = {1: "NCR", 2: "ED", 3: "ET"}
"""Label number to sub-region, as BraTS since 2023: necrotic core, edema, enhancing tumor."""

TISSUES: dict[int, str] = {
    1: "csf",
    2: "gray_matter",
    3: "white_matter",
    4: "enhancing_vessel",
    5: "cyst",
    6: "gliosis",
    7: "necrosis",
    8: "edema",
    9: "enhancing_tumor",
}
"""Value of ``BrainPhantom.tissues`` to name; 0 is outside the skull-stripped brain."""

VISIBILITY: dict[str, dict[str, float]] = {
    "ED": {"t1n": -0.6, "t1c": -1.2, "t2w": 2.6, "t2f": 3.6},
    "ET": {"t1n": -0.2, "t1c": 6.0, "t2w": -0.5, "t2f": 0.9},
    "NCR": {"t1n": -0.4, "t1c": -7.0, "t2w": 3.5, "t2f": -0.9},
}
"""Signal step at the outer border of each sub-region, inside minus outside, in standard deviations of the texture.

Outside is brain for ED, edema for ET, and enhancing tumor for NCR: each sub-region lies within the one before. Means
over cases: a case multiplies all steps of a contrast by a factor of its own, ``BrainTumor.factors``.
"""

_OUTER_BORDER = {"NCR": "NCR", "ED": "ED", "ET": "ET", "TC": "ET", "WT": "ED"}

_NORMAL: dict[str, tuple[float, float, float, float]] = {
    "csf": (-4.0, -4.0, 5.0, -4.0),
    "gray_matter": (-1.2, -1.0, 0.8, 0.6),
    "white_matter": (1.2, 1.0, -0.8, -0.6),
}
_MIMICS = {"enhancing_vessel": (3, 5), "cyst": (1, 3), "gliosis": (1, 2)}
_TUMORS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("NCR", "ED", "ET"), 0.56),
    (("NCR", "ED"), 0.12),
    (("ED", "ET"), 0.12),
    (("NCR", "ET"), 0.12),
    (("ED",), 0.08),
)
_NUMBER = {name: number for number, name in TISSUES.items()}


def planted_order(region: str) -> tuple[str, ...]:
    """Contrasts by the size of their step in ``VISIBILITY``, largest first.

    Args:
        region: "NCR", "ED" or "ET"; or "TC" and "WT", whose outer borders are those of ET and ED.

    Raises:
        ValueError: for another name.
    """
    if region not in _OUTER_BORDER:
        raise ValueError(f"sub-region is {region!r}; expected one of {', '.join(_OUTER_BORDER)}.")
    steps = VISIBILITY[_OUTER_BORDER[region]]
    return tuple(sorted(steps, key=lambda name: -abs(steps[name])))


def signals(factors: np.ndarray | float = 1.0) -> dict[str, np.ndarray]:
    """Mean signal (4,) of every tissue, in the order of ``CONTRASTS``; the steps of a tumor times factors (4,)."""
    found = {name: np.array(value) for name, value in _NORMAL.items()}
    step = {region: factors * np.array([VISIBILITY[region][c] for c in CONTRASTS]) for region in VISIBILITY}
    found["edema"] = step["ED"]
    found["enhancing_tumor"] = found["edema"] + step["ET"]
    found["necrosis"] = found["enhancing_tumor"] + step["NCR"]
    t1c, t2w, t2f = (np.array([c == name for c in CONTRASTS]) for name in ("t1c", "t2w", "t2f"))
    found["enhancing_vessel"] = np.where(t1c, 0.7 * found["enhancing_tumor"], 0.0)
    found["cyst"] = np.where(t2f, 0.0, 0.7 * found["edema"])
    found["gliosis"] = np.where(t2w, 0.0, 0.7 * found["edema"])
    return found


class BrainCanvas(Canvas):
    """Signals in every contrast and tissue numbers, on which shapes are painted, the last one on top.

    Attributes:
        contrasts: signals, float32 (4, H, W, D); 0 at first.
        tissues: numbers of ``TISSUES``, uint8 (H, W, D); 0 at first.
    """

    def __init__(self, to_reference: np.ndarray, shape: Sequence[int], millimeters: np.ndarray) -> None:
        super().__init__(to_reference, shape, millimeters)
        self.contrasts = np.zeros((len(CONTRASTS), *shape), np.float32)
        self.tissues = np.zeros(shape, np.uint8)

    def mix(self, shape: Shape, signal: np.ndarray, tissue: str) -> None:
        """Mix signals (4,) into every voxel by the share that the shape fills; voxels at least half full are it."""
        box, field = self._evaluate(shape)
        if not field.size:
            return
        change = sum(np.abs(np.gradient(field, axis=axis)) for axis in range(3))
        share = np.clip(0.5 - field / np.maximum(change, 1e-6), 0.0, 1.0)
        channels = (slice(None), *box)
        part = self.contrasts[channels]
        part += share * (signal.astype(np.float32)[:, None, None, None] - part)
        self.tissues[box][share >= 0.5] = _NUMBER[tissue]

    def holds(self, shape: Shape, tissues: Sequence[str]) -> float:
        """Share (0 to 1) of a shape that lies in these tissues."""
        box, field = self._evaluate(shape)
        inside = field < 0
        if not inside.any():
            return 0.0
        return float(np.isin(self.tissues[box][inside], [_NUMBER[name] for name in tissues]).mean())


@dataclass(frozen=True)
class BrainTumor:
    """A tumor as it was painted; mean radii and centers are those before it is cut at the border of the brain.

    Attributes:
        centre_ijk: center voxel of the core.
        core_mm: mean radius of the core in mm.
        whole_mm: mean radius of the edema around it in mm.
        sub_regions: those that it has, of "NCR", "ED", "ET".
        factors: how strongly each contrast shows it, in the order of ``CONTRASTS``: the steps of ``VISIBILITY`` times
            these; drawn from 0.4 to 1.6.
    """

    centre_ijk: tuple[int, int, int]
    core_mm: float
    whole_mm: float
    sub_regions: tuple[str, ...]
    factors: tuple[float, float, float, float]


@dataclass(frozen=True)
class BrainMimic:
    """A structure that looks like a part of the tumor in some contrasts: its center voxel and its tissue's name."""

    centre_ijk: tuple[int, int, int]
    kind: str


def grown(shape: Shape, by_mm: float) -> Shape:
    """A shape with its border moved outward by a length in mm; inward if negative."""
    return Shape(lambda x, y, z: shape.field(x, y, z) - by_mm, shape.lower - by_mm, shape.upper + by_mm)


def wavy(shape: Shape, rng: np.random.Generator, depth_mm: float, length_mm: float) -> Shape:
    """A shape whose border is moved in and out by smooth waves of a depth and a length in mm."""
    directions = rng.normal(size=(4, 3))
    directions *= 2 * math.pi / length_mm / np.linalg.norm(directions, axis=1, keepdims=True)
    phases = rng.uniform(0, 2 * math.pi, 4)

    def field(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        waves = sum(np.sin(a * x + b * y + c * z + p) for (a, b, c), p in zip(directions, phases, strict=True))
        return shape.field(x, y, z) + np.float32(depth_mm / 2) * waves

    return Shape(field, shape.lower - 2 * depth_mm, shape.upper + 2 * depth_mm)


def paint_brain(canvas: BrainCanvas, rng: np.random.Generator) -> Shape:
    """Paint cerebrum, cerebellum, brain stem and ventricles; return the white matter of the cerebrum."""
    signal = signals()
    size = rng.normal(1, 0.03, 3)
    cerebrum = ellipsoid((0, 2, 8), np.array([56.0, 72.0, 48.0]) * size)
    cerebellum = ellipsoid((0, -40, -38), np.array([38.0, 24.0, 17.0]) * size)
    stem = tube(np.array([[0.0, -12, -22], [0.0, -20, -60]]), rng.uniform(9, 11))
    canvas.mix(cerebrum | cerebellum | stem, signal["csf"], "csf")
    folds = wavy(cerebrum, rng, 3.0, 17.0)
    fissure = half_space(lambda x, y, z: np.maximum(np.abs(x) - 1.3, 16 - z + 0 * y))
    canvas.mix(grown(folds, -3.5) - fissure, signal["gray_matter"], "gray_matter")
    white = grown(wavy(cerebrum, rng, 4.0, 20.0), -11) - half_space(lambda x, y, z: np.maximum(np.abs(x) - 5, 16 - z))
    canvas.mix(white, signal["white_matter"], "white_matter")
    canvas.mix(grown(cerebellum, -1.5), signal["gray_matter"], "gray_matter")
    canvas.mix(grown(cerebellum, -8), signal["white_matter"], "white_matter")
    canvas.mix(grown(stem, -1), signal["white_matter"], "white_matter")
    wide = rng.uniform(3.5, 6.5)
    for side in (-1, 1):
        canvas.mix(ellipsoid((13 * side, -4, 2), (8, 13, 8)), signal["gray_matter"], "gray_matter")
        canvas.mix(ellipsoid((25 * side, 6, 2), (6, 15, 9), -12 * side), signal["gray_matter"], "gray_matter")
        path = [[9, 34, 12], [8, 10, 20], [12, -18, 18], [22, -34, 8], [24, -26, -6]]
        horn = np.array(path, float) * (side, 1, 1) + rng.normal(0, 1, (5, 3))
        canvas.mix(tube(horn, wide), signal["csf"], "csf")
    canvas.mix(ellipsoid((0, -2, 0), (2.2, 12, 9)), signal["csf"], "csf")
    return white


def paint_tumor(
    canvas: BrainCanvas, rng: np.random.Generator, white: Shape, sub_regions: Sequence[str] | None
) -> BrainTumor:
    """Paint edema around an eccentric core: a ring of enhancing tumor around necrosis, or some of these alone."""
    drawn = rng.choice(len(_TUMORS), p=[share for _, share in _TUMORS])
    present = _TUMORS[drawn][0] if sub_regions is None else tuple(r for r in ("NCR", "ED", "ET") if r in sub_regions)
    factors = np.round(rng.uniform(0.4, 1.6, len(CONTRASTS)), 3)
    signal = signals(factors)
    core_mm = rng.uniform(13, 18)
    whole_mm = core_mm + rng.uniform(6, 11)
    for _ in range(200):
        direction = rng.normal(size=3)
        centre = np.array([0, 2, 12]) + direction / np.linalg.norm(direction) * rng.uniform(12, 36) * (1.0, 1.3, 0.8)
        ball = ellipsoid(centre, (core_mm,) * 3)
        if canvas.inside(centre, 6) and canvas.holds(ball, ("white_matter", "gray_matter")) > 0.85:
            break
    away = rng.normal(size=3)
    middle = centre + away / np.linalg.norm(away) * (whole_mm - core_mm) * rng.uniform(0.5, 1.1)
    core = wavy(ellipsoid(centre, core_mm * rng.uniform(0.85, 1.15, 3), rng.uniform(0, 180)), rng, 2.0, 22.0)
    whole = wavy(ellipsoid(middle, whole_mm * rng.uniform(0.85, 1.15, 3), rng.uniform(0, 180)), rng, 4.0, 30.0)
    ring = rng.uniform(4.0, 5.5) if "ET" in present else 0.0
    brain = grown(white, 7)
    if "ED" in present:
        around = whole | grown(core, 2) if len(present) > 1 else whole
        canvas.mix(around & brain, signal["edema"], "edema")
    if "ET" in present:
        canvas.mix(core & brain, signal["enhancing_tumor"], "enhancing_tumor")
    if "NCR" in present:
        canvas.mix(grown(core, -ring) & brain, signal["necrosis"], "necrosis")
    a, b, c, d = (float(factor) for factor in factors)
    return BrainTumor(canvas.voxel(centre), round(core_mm, 2), round(whole_mm, 2), present, (a, b, c, d))


def paint_mimics(canvas: BrainCanvas, rng: np.random.Generator) -> list[BrainMimic]:
    """Paint structures in healthy tissue that look like a part of the tumor in some contrasts."""
    signal, found = signals(), []
    for kind, (low, high) in _MIMICS.items():
        wanted = int(rng.integers(low, high + 1))
        for _ in range(60):
            if wanted == 0:
                break
            centre = np.array([0, 0, 6]) + rng.uniform(-1, 1, 3) * (46, 60, 38)
            if kind == "enhancing_vessel":
                half = rng.normal(size=3)
                half *= rng.uniform(3, 12) / np.linalg.norm(half)
                shape = tube(np.stack([centre - half, centre + half]), rng.uniform(2.5, 5.0))
            else:
                shape = wavy(ellipsoid(centre, rng.uniform(6, 12) * rng.uniform(0.8, 1.2, 3)), rng, 2.0, 18.0)
            if canvas.inside(centre) and canvas.holds(grown(shape, 3), ("white_matter", "gray_matter")) > 0.9:
                canvas.mix(shape, signal[kind], kind)
                found.append(BrainMimic(canvas.voxel(centre), kind))
                wanted -= 1
    return found
