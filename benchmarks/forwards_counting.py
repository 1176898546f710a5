# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Counting network passes without a network, for `forwards.py`: a body of organ labels, its windows, and their jobs.

Windows come from MONAI's grid, jobs and counts from the package's own planner, which runs exactly as many passes as it
plans.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray

from monai_segshap.inferers import (
    Incidence,
    JobPlan,
    WindowPlan,
    compute_incidence,
    count_forwards,
    crop_box,
    monai_window_plan,
    plan_jobs,
)
from monai_segshap.region import Box
from monai_segshap.shapley import all_coalitions, plan_coalitions
from monai_segshap.units import fcc_labels

SHAPE, SPACING = (237, 512, 512), (5.0, 1.17, 1.17)
WINDOWS = ((48, 192, 192), (64, 160, 160), (128, 128, 128))
OVERLAP = 0.5
GRIDS = ("crop, full", "crop, half", "deployed")
CELL_MM = 40.0
#: Kinds of units and how many coalitions are drawn for them, as in paper 000.
KINDS = {"organs, 9 groups": 1000, "organs": 1000, "FCC 40": 2000, "hybrid 40": 2000}
EXACT = "organs, 9 groups"

#: Name, group (the brain has none), solids; later ones overwrite earlier ones. Ellipsoid: center and radii in mm;
#: cylinder along the body: z range, center and radii.
#: Positions are (z from the thighs up, y to the back, x to the left) with y = x = 0 in the middle of the volume.
Solid = tuple[str, tuple[float, ...], tuple[float, ...]]
ORGANS: tuple[tuple[str, str, tuple[Solid, ...]], ...] = (
    ("pelvis", "bones", (("e", (270, 30, 85), (65, 55, 30)), ("e", (270, 30, -85), (65, 55, 30)))),
    ("femurs", "bones", (("c", (0, 240), (0, 95, 17, 17)), ("c", (0, 240), (0, -95, 17, 17)))),
    ("back muscles", "muscles", (("c", (260, 860), (80, 45, 27, 30)), ("c", (260, 860), (80, -45, 27, 30)))),
    ("ribs", "bones", tuple(("c", (z, z + 12), (0, 0, 106, 165)) for z in range(560, 860, 24))),
    ("left lung", "lungs", (("e", (715, 0, 85), (135, 85, 65)),)),
    ("right lung", "lungs", (("e", (715, 0, -85), (135, 85, 65)),)),
    ("heart", "heart and vessels", (("e", (665, -25, 20), (60, 50, 55)),)),
    ("small bowel", "bowel", (("e", (375, -30, 0), (85, 60, 90)),)),
    ("colon", "bowel", (("c", (290, 480), (-5, 118, 27, 27)), ("c", (290, 480), (-5, -118, 27, 27)))),
    ("liver", "liver", (("e", (555, -10, -70), (72, 82, 95)),)),
    ("stomach", "stomach and pancreas", (("e", (545, -35, 60), (60, 40, 42)),)),
    ("pancreas", "stomach and pancreas", (("e", (490, 0, 20), (18, 18, 70)),)),
    ("gallbladder", "liver", (("e", (500, -45, -60), (30, 17, 17)),)),
    ("spleen", "spleen", (("e", (560, 45, 112), (52, 34, 26)),)),
    ("left kidney", "kidneys and bladder", (("e", (470, 50, 75), (55, 28, 28)),)),
    ("right kidney", "kidneys and bladder", (("e", (465, 50, -80), (55, 28, 28)),)),
    ("bladder", "kidneys and bladder", (("e", (245, -35, 0), (38, 38, 42)),)),
    ("spine", "bones", (("c", (280, 1000), (70, 0, 22, 22)),)),
    ("aorta", "heart and vessels", (("c", (370, 780), (35, 14, 13, 13)),)),
    ("vena cava", "heart and vessels", (("c", (340, 640), (35, -20, 12, 12)),)),
    ("brain", "", (("e", (1075, 0, 0), (65, 80, 68)),)),
)
BODY: tuple[Solid, ...] = (
    ("c", (200, 900), (0, 0, 120, 190)),
    ("c", (0, 230), (0, 95, 88, 88)),
    ("c", (0, 230), (0, -95, 88, 88)),
    ("c", (880, 1000), (10, 0, 62, 62)),
    ("e", (1070, 0, 0), (110, 100, 85)),
)


@dataclass(frozen=True)
class Units:
    """All kinds of units from one volume of the finest pieces, organ x cell.

    Attributes:
        pieces: int32 (H, W, D), 0 outside the body.
        kinds: for each kind int64 (pieces + 1,), the unit of each piece, 0 for none.
    """

    pieces: NDArray[np.int32]
    kinds: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Counts:
    """Network passes for one region, window, grid and kind of units.

    Attributes:
        units: M in the receptive field.
        visible: units in windows that touch the region; all others are dummies.
        n_windows: windows that are evaluated without pruning: of the crop, or those that see the receptive field.
        touching: windows that touch the region.
        naive: passes without reuse.
        published: with the published cache.
        ours_same: ours, for the same coalitions.
        ours: ours, for our default plan of the visible units with the same budget (or all coalitions).
        evaluated: coalitions of that plan, the full and the empty one included.
        refused: the package refuses our default plan: too few coalitions for an estimate over so many units.
        published_refused: the published coalitions, too, determine no solution for M units.
        published_exact: with the published cache, for all coalitions of the M units; 0 where they are not enumerated.
    """

    units: int
    visible: int
    n_windows: int
    touching: int
    naive: int
    published: int
    ours_same: int
    ours: int
    evaluated: int
    refused: bool
    published_refused: bool
    published_exact: int = 0


def draw_body(shape: Sequence[int] = SHAPE, spacing: Sequence[float] = SPACING) -> tuple[NDArray[np.uint8], NDArray]:
    """Organ labels 1..21, in the order of ``ORGANS``, and the mask of the body."""
    organs, body = np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=bool)
    for number, (_, _, solids) in enumerate(ORGANS, start=1):
        for solid in solids:
            _paint(organs, solid, spacing, number)
    # the chest inside the ribs is no rib
    for solid in (("c", (540, 880), (0, 0, 96, 155)),):
        inner = np.zeros(shape, dtype=bool)
        _paint(inner, solid, spacing, True)
        organs[inner & (organs == [name for name, _, _ in ORGANS].index("ribs") + 1)] = 0
    for solid in BODY:
        _paint(body, solid, spacing, True)
    return organs, body | (organs > 0)


def _paint(volume: NDArray, solid: Solid, spacing: Sequence[float], value: int | bool) -> None:
    kind, where, size = solid
    z = np.arange(volume.shape[0]) * spacing[0]
    y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(volume.shape[1:], spacing[1:], strict=True))
    if kind == "e":
        along, center, radii = ((z - where[0]) / size[0]) ** 2, where[1:], size[1:]
    else:
        along, center, radii = np.where((z >= where[0]) & (z < where[1]), 0.0, 2.0), size[:2], size[2:]
    across = ((y[:, None] - center[0]) / radii[0]) ** 2 + ((x[None, :] - center[1]) / radii[1]) ** 2
    for i in np.flatnonzero(along <= 1):
        volume[i][across <= 1 - along[i]] = value


def make_units(
    organs: NDArray[np.uint8], body: NDArray[np.bool_], spacing: Sequence[float], cell_mm: float = CELL_MM
) -> Units:
    """Nine groups of organs, organs, FCC cells of the body, and organ x cell.

    One lattice for the whole volume; each receptive field gets its cut.
    """
    cells = fcc_labels(organs.shape, spacing, cell_mm)
    n_cells = int(cells.max())
    cells += organs.astype(np.int32) * (n_cells + 1)
    cells[~body] = 0
    present = np.bincount(cells.ravel()) > 0
    present[0] = False
    numbers = np.flatnonzero(present)
    table = (np.cumsum(present) * present).astype(np.int32)
    organ, cell = np.concatenate([[0], numbers // (n_cells + 1)]), np.concatenate([[0], numbers % (n_cells + 1)])
    groups = ["", *sorted({group for _, group, _ in ORGANS if group})]
    group_of = np.array([0] + [groups.index(group) for _, group, _ in ORGANS])
    every = np.arange(len(organ))
    kinds = {"organs, 9 groups": group_of[organ], "organs": organ, "FCC 40": cell, "hybrid 40": every * (organ > 0)}
    return Units(table[cells], {name: kind.astype(np.int64) for name, kind in kinds.items()})


def regions_of(organs: NDArray[np.uint8], spacing: Sequence[float]) -> dict[str, Box]:
    """Boxes of the explained regions, voxel indices, both corners inside."""
    names = [name for name, _, _ in ORGANS]
    middle = [0.0, (organs.shape[1] - 1) / 2, (organs.shape[2] - 1) / 2]

    def around(center: Sequence[float], size_mm: Sequence[float]) -> Box:
        voxel = [c / s + m for c, s, m in zip(center, spacing, middle, strict=True)]
        low = [round(v - d / 2 / s) for v, d, s in zip(voxel, size_mm, spacing, strict=True)]
        high = [a + max(round(d / s), 1) - 1 for a, d, s in zip(low, size_mm, spacing, strict=True)]
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def organ(name: str) -> Box:
        inside = organs == names.index(name) + 1
        ends = []
        for axis in range(3):
            found = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
            ends.append((int(found[0]), int(found[-1])))
        return (ends[0][0], ends[1][0], ends[2][0]), (ends[0][1], ends[1][1], ends[2][1])

    return {
        "lesion 20 mm (liver)": around((540, -5, -95), (20, 20, 20)),
        "lesion 40 mm (lung)": around((740, 5, 90), (40, 40, 40)),
        "spleen": organ("spleen"),
        "aorta, 60 mm": around((470, 35, 14), (60, 26, 26)),
        "liver": organ("liver"),
    }


def window_incidence(
    pieces: NDArray[np.int32], box: Box, roi: Sequence[int], grid: str, overlap: float = OVERLAP
) -> tuple[Incidence, int]:
    """Pieces in each window of a grid, and the number of windows of the grid.

    Units are cut to the region's receptive field, as `SelectRegiond` gives it. Every voxel of a unit counts as changed
    when the unit is removed. Windows of the deployed grid that can not see the field are left out.
    """
    inferer = SlidingWindowInferer(tuple(roi), sw_batch_size=1, overlap=overlap, mode="constant")
    if grid == "deployed":
        plan = _plan(inferer, pieces.shape)
        field = plan.receptive_field([box])
        labels = np.where(field, pieces, 0)
        ends = [np.flatnonzero(field.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
        corners = tuple(tuple(int(e[side]) for e in ends) for side in (0, 1))
        seeing = plan.touching([corners])
        plan = dataclasses.replace(plan, starts=plan.starts[seeing], batch_sizes=plan.batch_sizes[seeing])
    else:
        low, high = crop_box([box], roi, pieces.shape, grid.removeprefix("crop, "))
        labels = np.ascontiguousarray(pieces[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))])
        plan = _plan(inferer, labels.shape)
        box = tuple(tuple(int(b - a) for b, a in zip(corner, low, strict=True)) for corner in box)
    image, fill = (torch.full((1,), v).expand(1, *labels.shape) for v in (True, False))
    incidence = compute_incidence(plan, plan.touching([box]), torch.from_numpy(labels), image, fill, int(pieces.max()))
    return incidence, plan.n_windows


def _plan(inferer: SlidingWindowInferer, shape: Sequence[int]) -> WindowPlan:
    return monai_window_plan(inferer, torch.zeros(1).expand(1, *shape))


def units_in_windows(pieces: Incidence, unit_of: NDArray[np.int64]) -> Incidence:
    """From pieces to units; those without a voxel in any window are left out."""
    member, live = (np.zeros((len(m), int(unit_of.max()) + 1), dtype=bool) for m in (pieces.member, pieces.live))
    for whole, part in ((member, pieces.member), (live, pieces.live)):
        for window, inside in enumerate(part):
            whole[window, unit_of[1:][inside]] = True
    present = member.any(axis=0)
    present[0] = False
    return Incidence(pieces.active, live[:, present], member[:, present])


def count(
    incidence: Incidence, n_coalitions: int, whole_grid: bool = False, exact: bool = False, seed: int = 0
) -> Counts:
    """Count the passes for one game.

    Args:
        incidence: of all M units of the receptive field.
        n_coalitions: drawn coalitions; the full and the empty one come on top.
        whole_grid: see `count_forwards`.
        exact: ours evaluates all coalitions of the visible units; the published method still draws.
        seed: of the draws.
    """
    rows, published_refused = published_rows(incidence.live.shape[1], n_coalitions, seed)
    visible = incidence.visible
    seen = incidence.restricted_to(visible)
    same = _jobs(rows[:, visible], seen)
    counts = count_forwards(rows, incidence, same, whole_grid)
    refused, enumerated = False, 0
    if exact:
        own = all_coalitions(int(visible.sum()))
        enumerated = count_forwards(all_coalitions(len(visible)), incidence, same, whole_grid).published_cache
    else:
        own, refused = default_rows(int(visible.sum()), n_coalitions, seed)
    return Counts(
        units=len(visible),
        visible=int(visible.sum()),
        n_windows=counts.naive // len(rows),
        touching=len(incidence.active),
        naive=counts.naive,
        published=counts.published_cache,
        ours_same=same.n_forwards,
        ours=_jobs(own, seen).n_forwards,
        evaluated=len(own),
        refused=refused,
        published_refused=published_refused,
        published_exact=enumerated,
    )


def _jobs(rows: NDArray[np.bool_], incidence: Incidence) -> JobPlan:
    ones = np.ones(len(incidence.active), dtype=np.int64)
    return plan_jobs(rows, incidence, batch_sizes=ones, entry_bytes=ones, max_bytes=2**62)


def published_rows(n_units: int, n_coalitions: int, seed: int) -> tuple[NDArray[np.bool_], bool]:
    """Coalitions as published: full, empty, then kernel-law sizes with replacement; and whether the package refuses.

    It does where the regression over these coalitions has no solution. They are then drawn here by the same law.
    """
    try:
        return plan_coalitions(n_units, n_coalitions, "published", seed).rows, False
    except (ValueError, np.linalg.LinAlgError):
        sizes = np.arange(1, n_units)
        law = 1.0 / (sizes * (n_units - sizes))
        return _drawn(n_units, lambda rng: rng.choice(sizes, n_coalitions, p=law / law.sum()), seed), True


def default_rows(n_units: int, n_coalitions: int, seed: int) -> tuple[NDArray[np.bool_], bool]:
    """Our default plan, and whether the package refuses it; then pairs of uniform sizes are drawn here."""
    try:
        return plan_coalitions(n_units, n_coalitions, "auto", seed).rows, False
    except (ValueError, np.linalg.LinAlgError):
        half = _drawn(n_units, lambda rng: rng.integers(1, n_units, n_coalitions // 2), seed)[2:]
        pairs = np.stack([half, ~half], axis=1).reshape(-1, n_units)
        return np.concatenate([np.ones((1, n_units), bool), np.zeros((1, n_units), bool), pairs]), True


def _drawn(n_units: int, sizes: Callable[[np.random.Generator], NDArray[np.int64]], seed: int) -> NDArray[np.bool_]:
    rng = np.random.default_rng([seed, n_units])
    drawn = sizes(rng)
    rank = rng.random((len(drawn), n_units)).argsort(axis=1).argsort(axis=1)
    return np.concatenate([np.ones((1, n_units), bool), np.zeros((1, n_units), bool), rank < drawn[:, None]])


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    region: str
    roi: tuple[int, int, int]
    grid: str
    kind: str
    counts: Counts

    @property
    def ratio(self) -> float:
        """Published cache over ours, default plan."""
        return self.counts.published / self.counts.ours

    @property
    def ratio_same(self) -> float:
        """Published cache over ours, same coalitions."""
        return self.counts.published / self.counts.ours_same


def run(quick: bool) -> list[Row]:
    """Count everything, with a line of progress for each region, window and grid."""
    started = time.perf_counter()
    organs, body = draw_body()
    units, regions = make_units(organs, body, SPACING), regions_of(organs, SPACING)
    print(f"{len(ORGANS)} organs, {int(units.pieces.max())} pieces: {time.perf_counter() - started:.0f} s", flush=True)
    names = list(regions)[:3:2] if quick else list(regions)
    cases = [(name, roi, grid) for roi in (WINDOWS[:1] if quick else WINDOWS) for name in names for grid in GRIDS]
    rows = []
    for done, (name, roi, grid) in enumerate(cases, start=1):
        pieces, n_windows = window_incidence(units.pieces, regions[name], roi, grid)
        for kind, n in KINDS.items():
            incidence = units_in_windows(pieces, units.kinds[kind])
            found = count(incidence, max(n // 10, 100) if quick else n, grid != "deployed", kind == EXACT)
            rows.append(Row(name, roi, grid, kind, found))
        print(
            f"{done}/{len(cases)} {name}, {times(roi)}, {grid}: {n_windows} windows, published / ours "
            + ", ".join(f"{r.ratio:.1f}" for r in rows[-len(KINDS) :])
            + f" ({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
    return rows


def times(sizes: Sequence[float]) -> str:
    """Sizes for people."""
    return " x ".join(str(s) for s in sizes)
