# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The anatomy of a random torso, painted on a canvas.

Reference space is 240 x 192 x 200 mm with its origin in the middle: x to the patient's right, y anterior, z superior.
"""

from __future__ import annotations

import numpy as np

from monai_segshap.phantoms.canvas import Canvas, Shape, Vector, cylinder, distance_mm, ellipsoid, half_space, tube

__all__ = ["Vessels", "enhancement", "paint_bowel", "paint_organs", "paint_vessels", "paint_walls"]

FAT_HU = -105.0
Vessels = dict[str, tuple[np.ndarray, float]]
"""Vessel name to its polyline (N, 3) and its radius, in reference mm."""


def enhancement(rng: np.random.Generator) -> dict[str, float]:
    """CT numbers (HU) of the organs for a random contrast phase, from none to portal venous."""
    e = float(rng.uniform(0.0, 1.0))
    hu = {"lung_right": -850, "lung_left": -850, "heart": 42 + 85 * e, "liver": 56 + 48 * e, "spleen": 48 + 66 * e}
    hu |= {"stomach": 22, "kidney_right": 34 + 125 * e, "kidney_left": 34 + 125 * e, "pancreas": 38 + 45 * e}
    hu |= {"gallbladder": 10, "esophagus": 38, "aorta": 42 + 120 * e, "inferior_vena_cava": 40 + 95 * e}
    hu |= {"iliac_vessels": 42 + 108 * e, "vessel_branches": 42 + 100 * e, "vertebrae": 190, "spinal_canal": 32}
    hu |= {"ribs": 330, "hip_bones": 330, "muscle": 52 + 10 * e, "lymph_nodes": 34 + 14 * e}
    return {name: value + rng.normal(0, 4) for name, value in hu.items()}


def paint_walls(canvas: Canvas, rng: np.random.Generator, hu: dict[str, float]) -> Shape:
    """Paint skin fat, muscle wall, ribs and sternum; return the inner cavity."""
    a, b, fat, wall = rng.normal(106, 3), rng.normal(80, 2), rng.uniform(6, 14), rng.uniform(8, 11)
    layers = [cylinder((0, 0), (a - depth, b - depth), 2.4) for depth in (0.0, fat, fat + wall)]
    canvas.paint(layers[0], FAT_HU)
    canvas.paint(layers[1], hu["muscle"], "muscle")
    canvas.paint(layers[2], FAT_HU)
    phase, pitch = rng.uniform(0, 22), rng.normal(0.42, 0.04)
    bands = half_space(lambda x, y, z: np.abs((z + pitch * (y + b) + phase) % 23 - 11.5) - 4.2)
    low = half_space(lambda x, y, z: 12 + 0.45 * np.abs(y + 20) - z)
    rim = cylinder((0, 0), (a - fat - 2, b - fat - 2), 2.4) - cylinder((0, 0), (a - fat - 8, b - fat - 8), 2.4)
    canvas.paint(rim & bands & low & half_space(lambda x, y, z: 24 - np.abs(x)), hu["ribs"], "ribs")
    canvas.paint(ellipsoid((0, b - fat - 5, 90), (15, 4.5, 42)), hu["ribs"] - 120, "ribs")
    return layers[2]


def paint_skeleton(canvas: Canvas, rng: np.random.Generator, hu: dict[str, float]) -> None:
    """Paint hip bones, psoas and back muscles, vertebrae with discs, and the spinal canal."""
    for side in (-1, 1):
        wing = ellipsoid((70 * side, -14, -100), (9, 44, 36), 20 * side)
        canvas.paint(wing, hu["hip_bones"], "hip_bones")
        canvas.paint(wing & ellipsoid((70 * side, -14, -100), (5, 39, 32), 20 * side), 120, "hip_bones")
        canvas.paint(cylinder((21 * side, -61), (17, 9.5)), hu["muscle"], "muscle")
        psoas = tube(np.array([[20.0 * side, -34, 22], [28.0 * side, -36, -40], [44.0 * side, -22, -130]]), 11)
        canvas.paint(psoas, hu["muscle"], "muscle")
    disc = rng.uniform(0, 26)
    canvas.paint(cylinder((0, -37), (17, 12.5)), 95, "vertebrae")
    bony = half_space(lambda x, y, z: np.abs((z + disc) % 26 - 13) - 10.2)
    canvas.paint(cylinder((0, -37), (17.5, 13)) & bony, hu["vertebrae"] + 150, "vertebrae")
    canvas.paint(cylinder((0, -37), (15, 10.7)) & bony, hu["vertebrae"], "vertebrae")
    canvas.paint(cylinder((0, -57), (13, 10)), hu["vertebrae"] + 90, "vertebrae")
    canvas.paint(cylinder((0, -67), (3, 10)) & bony, hu["vertebrae"] + 110, "vertebrae")
    canvas.paint(cylinder((0, -56), (7, 6)), hu["spinal_canal"], "spinal_canal")


def paint_organs(canvas: Canvas, rng: np.random.Generator, hu: dict[str, float], cavity: Shape) -> None:
    """Paint the organs of chest and upper abdomen inside the cavity."""

    def place(centre: Vector, semi: Vector, degrees: float = 0.0) -> Shape:
        size = np.array(semi) * rng.normal(1, 0.05) * rng.normal(1, 0.04, 3)
        return ellipsoid(np.array(centre) + rng.normal(0, 2.5, 3), size, degrees + rng.normal(0, 5))

    heart = place((-14, 18, 84), (38, 31, 29), 25)
    tops = 72 + rng.normal(0, 4), 63 + rng.normal(0, 4)

    def diaphragm(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        drop = [top - 0.0085 * ((x - centre) ** 2 + (y - 5) ** 2) for top, centre in zip(tops, (50, -50), strict=True)]
        return np.maximum(*drop) - z

    above = half_space(diaphragm)
    mediastinum = heart | cylinder((0, -10), (19, 40))
    right, left = half_space(lambda x, y, z: -x), half_space(lambda x, y, z: x)
    canvas.paint((cavity & above & right) - mediastinum, hu["lung_right"], "lung_right")
    canvas.paint((cavity & above & left) - mediastinum, hu["lung_left"], "lung_left")
    canvas.paint(heart, hu["heart"], "heart")
    paint_skeleton(canvas, rng, hu)
    kidneys = {"kidney_right": place((49, -32, -6), (16, 17, 31), 30)}
    kidneys["kidney_left"] = place((-48, -33, 6), (16, 17, 31), -30)
    stomach = (place((-38, 26, 32), (27, 25, 28), 20) | place((-8, 36, 12), (24, 14, 13))) & cavity
    canvas.paint(stomach - above, hu["stomach"] + 18, "stomach")
    canvas.paint((place((-38, 26, 32), (21, 19, 22)) & stomach) - above, hu["stomach"], "stomach")
    level = float(rng.uniform(32, 42))
    gas = place((-38, 27, 32), (20, 19, 21)) & stomach & half_space(lambda x, y, z: level - y)
    canvas.paint(gas - above, -920, "stomach")
    canvas.paint(place((2, 12, 10), (38, 8.5, 9), -12), hu["pancreas"], "pancreas")
    liver = place((54, 6, 34), (48, 56, 48), 15) | place((6, 38, 44), (44, 24, 24), -15)
    liver = (liver & cavity) - above - ellipsoid((48, -34, -6), (21, 21, 36)) - ellipsoid((0, -30, 30), (27, 26, 90))
    canvas.paint(liver, hu["liver"], "liver")
    canvas.paint(place((42, 34, 0), (9, 13, 13)), hu["gallbladder"], "gallbladder")
    spleen = (place((-72, -20, 40), (19, 30, 31), -18) & cavity) - above - ellipsoid((-46, -34, 8), (19, 20, 36))
    canvas.paint(spleen - ellipsoid((-44, 8, 36), (24, 22, 28)), hu["spleen"], "spleen")
    for name, kidney in kidneys.items():
        canvas.paint(kidney, hu[name], name)
        sign = 1 if name == "kidney_right" else -1
        canvas.paint(ellipsoid((41 * sign, -28, 0), (6, 5, 11)), -70, name)


def paint_vessels(canvas: Canvas, rng: np.random.Generator, hu: dict[str, float]) -> Vessels:
    """Paint the great vessels; return those that may have nodules."""
    fork, wander = rng.normal(-46, 5), rng.normal(0, 1.5, (2, 6))
    heights = np.linspace(130, fork, 6)
    aorta = np.stack([-10 + wander[0], np.full(6, -14.0), heights], 1)
    cava = np.stack([13 + wander[1], np.full(6, -13.0), heights - 6], 1)
    vessels = {"aorta": (aorta, rng.uniform(7.5, 9.5)), "inferior_vena_cava": (cava[2:], rng.uniform(8, 10))}
    for name, trunk, side in (("right", cava, 1), ("left", aorta, -1)):
        path = trunk[-1] + np.array([[0, 0, 0], [14 * side, -2, -26], [32 * side, 4, -80.0]])
        vessels[f"iliac_{name}"] = (path, rng.uniform(5.5, 7))
    canvas.paint(tube(np.array([[-3.0, -4, 40], [-3, -2, 130]]), 6), hu["esophagus"], "esophagus")
    for name, (path, radius) in vessels.items():
        organ = "iliac_vessels" if name.startswith("iliac") else name
        canvas.paint(tube(path, radius), hu[organ], organ)
    for x in (-4.0, 8.0):
        path = np.array([[x, 4, 8], [x + rng.normal(0, 2), 14, -10], [x + rng.normal(2, 4), 19, -58]])
        canvas.paint(tube(path, rng.uniform(3, 4.5)), hu["vessel_branches"], "vessel_branches")
    return vessels


def paint_bowel(canvas: Canvas, rng: np.random.Generator, vessels: Vessels) -> None:
    """Paint the colon along its frame and small-bowel tubes in the free fat away from the great vessels."""
    for _ in range(40):
        start = np.array([rng.uniform(-55, 55), rng.uniform(20, 52), rng.uniform(-88, -15)])
        points = np.cumsum([start, *(rng.normal(0, 1, (2, 3)) * (12, 9, 8))], axis=0)
        radius = rng.uniform(6, 8.5)
        loop = tube(points, radius)
        distance = min(distance_mm(p, path) - r for p in points for path, r in vessels.values())
        if distance > 20 and canvas.free(loop, 0.0, ["bowel"]) > 0.9:
            canvas.paint(loop, 40 + rng.normal(0, 6), "bowel")
            canvas.paint(tube(points, radius * 0.6), float(rng.choice([12.0, 25.0, 35.0, 180.0])), "bowel")
    colon = [[[72, 2, -90], [74, 0, -40], [70, 14, -24]], [[-72, -4, -90], [-75, -6, -40], [-70, 6, -6]]]
    colon.append([[62, 46, -14], [10, 58, -22], [-58, 48, -6]])
    for path in colon:
        points = np.array(path, float) + rng.normal(0, 2.5, (3, 3))
        canvas.paint(tube(points, 11), 42, "bowel")
        canvas.paint(tube(points, 8.5), float(rng.choice([15.0, 40.0, -350.0])), "bowel")
