# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The counting benchmark against direct loops over windows and coalitions, on small volumes."""

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest

from monai_segshap.shapley import all_coalitions, plan_coalitions

ROI = (16, 12, 12)
SHAPE = (60, 44, 40)
BOX = ((27, 20, 17), (30, 23, 21))


@pytest.fixture(scope="module")
def forwards(load_benchmark):
    """What counts, for the report of `forwards.py`."""
    return load_benchmark("forwards", "counting").counting


@pytest.fixture(scope="module")
def units(forwards):
    """A body of two organs in soft tissue in air; FCC cells of 8 mm."""
    organs, body = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=bool)
    body[2:-2, 4:-4, 4:-4] = True
    organs[8:50, 10:22, 8:30] = 5
    organs[20:58, 24:36, 12:34] = 10
    return forwards.make_units(organs, body, (1.0, 1.0, 1.0), cell_mm=8.0)


def _starts(size: int, roi: int) -> list[int]:
    return sorted({min(i * (roi // 2), size - roi) for i in range(math.ceil((size - roi) / (roi // 2)) + 1)})


def _touches(start, box) -> bool:
    return all(s <= b and s + r > a for s, r, a, b in zip(start, ROI, *box, strict=True))


def _seen(labels, start) -> frozenset[int]:
    part = labels[tuple(slice(s, s + r) for s, r in zip(start, ROI, strict=True))]
    return frozenset(np.unique(part[part > 0]).tolist())


def _windows(labels, grid: str):
    """Units seen by all windows of the grid, and by those that touch the region, by direct construction."""
    box = BOX
    if grid != "deployed":
        reach = [r // (2 if grid == "crop, half" else 1) for r in ROI]
        low = [max(a - d, 0) for a, d in zip(BOX[0], reach, strict=True)]
        high = [min(b + d, n - 1) for b, d, n in zip(BOX[1], reach, SHAPE, strict=True)]
        labels = labels[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
        box = tuple(tuple(c - a for c, a in zip(corner, low, strict=True)) for corner in BOX)
    starts = list(itertools.product(*(_starts(n, r) for n, r in zip(labels.shape, ROI, strict=True))))
    touching = [s for s in starts if _touches(s, box)]
    if grid == "deployed":
        field = np.zeros(labels.shape, dtype=bool)
        for s in touching:
            field[tuple(slice(a, a + r) for a, r in zip(s, ROI, strict=True))] = True
        labels = np.where(field, labels, 0)
        starts = [s for s in starts if _touches(s, box) or _seen(labels, s)]
    return [_seen(labels, s) for s in starts], [_seen(labels, s) for s in touching]


def _distinct(rows, names, touching) -> int:
    """Distinct (window, units kept in it) pairs."""
    jobs = set()
    for row in rows:
        kept = {name for name, keep in zip(names, row, strict=True) if keep}
        jobs |= {(window, frozenset(inside & kept)) for window, inside in enumerate(touching)}
    return len(jobs)


def _loses(names, row, inside) -> bool:
    """Whether a coalition removes a voxel of the window."""
    return any(name in inside for name, keep in zip(names, row, strict=True) if not keep)


@pytest.mark.parametrize("grid", ["crop, full", "crop, half", "deployed"])
@pytest.mark.parametrize("kind", ["organs", "FCC 40", "hybrid 40"])
def test_counts_equal_direct_loops(forwards, units, grid, kind):
    n = 300
    pieces, _ = forwards.window_incidence(units.pieces, BOX, ROI, grid)
    found = forwards.count(
        forwards.units_in_windows(pieces, units.kinds[kind]), n, grid != "deployed", kind == "organs"
    )

    every, touching = _windows(units.kinds[kind][units.pieces], grid)
    names, visible = (sorted(frozenset().union(*seen)) for seen in (every, touching))
    assert (found.units, found.visible) == (len(names), len(visible))
    assert (found.n_windows, found.touching) == (len(every), len(touching))
    rows, refused = forwards.published_rows(len(names), n, 0)
    assert (found.published_refused, refused) == (False, False)
    changed = sum(1 for row in rows for inside in every if _loses(names, row, inside))
    if kind == "organs":
        exact = sum(1 for row in all_coalitions(len(names)) for inside in every if _loses(names, row, inside))
        assert found.published_exact == exact + len(every)
    assert found.naive == len(every) * len(rows)
    assert found.published == changed + len(every)
    assert found.ours_same == _distinct(rows, names, touching)
    own = all_coalitions(len(visible)) if kind == "organs" else forwards.default_rows(len(visible), n, 0)[0]
    assert found.ours == _distinct(own, visible, touching)
    assert found.evaluated == len(own)


def test_full_window_crop_saves_most_and_half_window_crop_next_to_nothing(forwards, units):
    counts = {}
    for grid in ("crop, full", "crop, half"):
        pieces, _ = forwards.window_incidence(units.pieces, BOX, ROI, grid)
        counts[grid] = forwards.count(forwards.units_in_windows(pieces, units.kinds["FCC 40"]), 300, whole_grid=True)
    full, half = counts["crop, full"], counts["crop, half"]
    assert full.ours_same <= full.published / 3
    assert full.ours <= full.published / 3
    assert half.touching == half.n_windows
    assert half.published / 1.5 <= half.ours_same <= half.published


def test_the_body_has_every_organ_nine_groups_and_its_regions(forwards):
    shape, spacing = (118, 128, 128), (10.0, 4.68, 4.68)
    organs, body = forwards.draw_body(shape, spacing)
    assert np.unique(organs).tolist() == list(range(22))
    assert body[organs > 0].all()
    assert not body.all()
    units = forwards.make_units(organs, body, spacing)
    assert units.kinds["organs, 9 groups"].max() == 9
    np.testing.assert_array_equal(units.kinds["organs"][units.pieces], organs)
    np.testing.assert_array_equal(units.kinds["FCC 40"][units.pieces] > 0, body)
    np.testing.assert_array_equal(units.kinds["hybrid 40"][units.pieces] > 0, organs > 0)
    names = [name for name, _, _ in forwards.ORGANS]
    for region, box in forwards.regions_of(organs, spacing).items():
        inside = organs[tuple(slice(a, b + 1) for a, b in zip(*box, strict=True))]
        organ = {"lesion 20 mm (liver)": "liver", "lesion 40 mm (lung)": "left lung", "aorta, 60 mm": "aorta"}
        assert (inside == names.index(organ.get(region, region)) + 1).any()


def test_refused_plans_are_drawn_by_the_same_law_and_marked(forwards):
    rows, refused = forwards.default_rows(60, 30, 0)
    assert refused
    assert rows.shape == (32, 60)
    np.testing.assert_array_equal(rows[2::2], ~rows[3::2])
    rows, refused = forwards.default_rows(60, 100, 0)
    assert not refused
    np.testing.assert_array_equal(rows, plan_coalitions(60, 100, "auto", 0).rows)
    rows, refused = forwards.published_rows(60, 50, 0)
    assert refused
    assert rows.shape == (52, 60)
    assert rows[0].all()
    assert not rows[1].any()


def test_the_report_has_a_line_for_each_count(forwards, units):
    report = importlib.import_module("forwards")
    rows = []
    for grid, kind in itertools.product(("crop, full", "deployed"), ("FCC 40", "hybrid 40")):
        pieces, _ = forwards.window_incidence(units.pieces, BOX, ROI, grid)
        found = forwards.count(forwards.units_in_windows(pieces, units.kinds[kind]), 300, grid != "deployed")
        rows.append(forwards.Row("spleen", ROI, grid, kind, found))
    lines = report.report(rows, True, 1.0).splitlines()
    table = [line for line in lines if line.startswith("| spleen | 16 x 12 x 12 |")]
    assert len(table) == len(rows)
    assert all(line.endswith(f"| {row.ratio:.2f} |") for line, row in zip(table, rows, strict=True))
    assert any(line.startswith("| spleen at most 1/4 | 16 x 12 x 12 |") for line in lines)
