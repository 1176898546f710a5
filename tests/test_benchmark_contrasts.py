# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The benchmark of contrasts: passes that can be counted by hand, and the committed tables against direct loops."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_segshap.phantoms import brain_phantom

TABLES = Path(__file__).resolve().parents[1] / "benchmarks" / "contrasts.md"


@pytest.fixture(scope="module")
def bench(load_benchmark):
    """The benchmark's modules, and its script."""
    return load_benchmark("contrasts", "cases", "counting", "timing", "report")


@pytest.fixture(scope="module")
def slabs(bench):
    """Three slabs of four windows of 8^3: t1n and t1c (in one window t2w, too), t1c and t2f, and nothing."""
    image = torch.zeros(4, 24, 16, 16)
    image[0, :8] = image[1, :16] = image[2, :8, :8, 8:] = image[3, 8:16] = 1.0
    image *= torch.from_numpy(np.random.default_rng(0).normal(size=image.shape).astype(np.float32))
    label = torch.zeros(1, 24, 16, 16)
    label[:, 6:12, 6:12, 6:12] = 1
    return bench.cases.Volume("slabs", image, label)


#: Windows of the first slab: 3 (2^2 - 1) and 2^3 - 1; of the second: 4 (2^2 - 1); and nothing at all, which all share.
BY_HAND = 3 * 3 + 7 + 4 * 3 + 1


@pytest.mark.parametrize(("batch", "passes"), [(1, BY_HAND), (4, 4 * math.ceil(BY_HAND / 4))])
def test_shared_windows_counted_by_hand(bench, slabs, batch, passes):
    found = bench.counting.count(slabs, 8, 0.0, batch, "library")
    assert (found.windows, found.background, found.naive) == (12, 4, 192)
    assert found.distinct == BY_HAND == 29
    assert found.planned == found.run == passes


def test_a_plan_that_does_not_hold_is_an_error(bench, slabs, monkeypatch):
    monkeypatch.setattr(bench.counting.TimedNetwork, "passes", property(lambda network: 1))
    with pytest.raises(RuntimeError, match="was said, but"):
        bench.counting.count(slabs, 8, 0.0)


def test_the_same_brain_with_less_and_more_background(bench):
    volume = bench.cases.brain((32, 40, 32))
    box, same, padded = bench.cases.backgrounds(volume, (48, 50, 36))
    assert (same.shape, padded.shape) == ((32, 40, 32), (48, 50, 36))
    assert all(a < b for a, b in zip(box.shape, same.shape, strict=True))
    for other in (box, padded):
        np.testing.assert_array_equal(other.image[other.image != 0], volume.image[volume.image != 0])
        np.testing.assert_array_equal(other.label[other.label > 0], volume.label[volume.label > 0])
    np.testing.assert_allclose([float(c[c != 0].std(correction=0)) for c in volume.image], 1.0, atol=1e-4)
    with pytest.raises(ValueError, match="does not fit into"):
        bench.cases.backgrounds(volume, (16, 50, 36))


def test_explainer_and_loop_agree_and_their_passes_are_counted(bench, tmp_path):
    shape, roi, n_windows = (32, 40, 32), 24, 2 * 3 * 2
    alike = bench.timing.agreement(shape, roi)
    assert (alike.coalitions, alike.same_logits, alike.same_scores) == (16, 16, 16)
    assert alike.n_looped == 16 * n_windows
    ours = bench.timing.explain(shape, 1, bench.cases.SEEDS[:1], roi)
    looped = bench.timing.loop(shape, roi)
    assert (ours["windows"], looped["passes"]) == (n_windows, 16 * n_windows)
    assert ours["passes"] == ours["planned"] == alike.n_passes < alike.n_looped
    np.testing.assert_array_equal(ours["scores"], looped["scores"])

    calls = []
    results = {
        "counts": [],
        "agreement": vars(alike),
        "explainer_1": ours,
        "loop_1": looped,
        "explainer_cpu_1": ours,
        "loop_cpu_1": looped,
        "demo_1": ours,
        "demo_loop_1": looped,
        "bundle_large_1": {"seconds": 3.25, "load": [1.0, 2.0]},
        "bundle_phantoms_1": {"seconds": 2.0, "load": [1.0, 2.0]},
    }
    wanted = {name: (lambda name=name: calls.append(name) or results[name]) for name in results}
    assert set(wanted) == set(bench.script.parts(True))
    first = bench.script.run(tmp_path, wanted)
    assert bench.script.run(tmp_path, wanted) == first
    assert calls == list(results)
    text = bench.report.report(first, True)
    assert f"| {16 * n_windows:,} (0) | " in text.split("## Seconds")[1]
    assert "same numbers for 16 of 16 coalitions" in text
    assert "| one large case, one fold | 3.2 | 1.0, 2.0 |" in text
    assert "logits of 16 of 16 coalitions" in text


def _rows(heading: str, table: int = 0) -> list[dict[str, str]]:
    """Rows of one of the tables of a section of the committed report."""
    section = TABLES.read_text(encoding="utf-8").split(f"\n## {heading}")[1].split("\n## ")[0]
    tables = [block for block in section.split("\n\n") if block.startswith("|")]
    lines = [line.strip("| ").split(" | ") for line in tables[table].splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def _number(text: str) -> float:
    return float(text.split(" (")[0].rstrip("%").replace(",", ""))


def _starts(size: int, roi: int, overlap: float) -> list[int]:
    """First voxels of windows along an axis, the last one moved back to the border."""
    step = int(roi * (1 - overlap))
    return [min(i * step, size - roi) for i in range(math.ceil((size - roi) / step) + 1)]


def test_committed_passes_are_those_of_a_loop_over_windows(bench):
    rows = _rows("Passes")
    assert len(rows) == 3 * len(bench.counting.WINDOWS) * len(bench.counting.OVERLAPS)
    brain = brain_phantom(bench.cases.SEEDS[0], bench.cases.SHAPE, (1.0, 1.0, 1.0)).tissues[::-1, ::-1] > 0
    for row in rows:
        roi, overlap = int(row["window"]), float(row["overlap"])
        shape = [int(n) for n in row["voxels"].split(" x ")]
        corners = list(itertools.product(*(_starts(n, roi, overlap) for n in shape)))
        windows, background, naive, distinct, planned, run = (
            _number(row[name]) for name in ("windows", "of background", "naive", "distinct", "planned", "run")
        )
        assert (windows, naive) == (len(corners), 16 * len(corners))
        if row["volume"] == "little background":
            empty = sum(not brain[tuple(slice(c, c + roi) for c in corner)].any() for corner in corners)
            assert (tuple(shape), background) == (brain.shape, empty)
        assert distinct == 15 * (windows - background) + 1
        assert distinct <= planned == run < distinct + 8  # two batches that are not full, at most
        assert row["run / naive"] == f"{run / naive:.3f}"


@pytest.mark.parametrize(("heading", "table"), [("Seconds of", 0), ("Seconds of", 1), ("The bundle's folds", 0)])
def test_committed_ratios_follow_from_the_seconds(heading, table):
    ours, loop = _rows(heading, table)
    assert _number(loop["seconds / loop"]) == 1.0
    assert _number(ours["seconds / loop"]) == pytest.approx(
        _number(ours["seconds"]) / _number(loop["seconds"]), abs=0.01
    )
    for row in (ours, loop):
        passes = row["passes (calibration, on top)"]
        calibration = float(passes.split("(")[1].rstrip(")")) if "(" in passes else 0
        assert _number(row["seconds a pass"]) == pytest.approx(
            _number(row["seconds"]) / (_number(passes) + calibration), abs=1e-4
        )
    assert _number(ours["coalitions"]) == _number(loop["coalitions"])
    assert _number(ours["passes (calibration, on top)"]) < _number(loop["passes (calibration, on top)"])
