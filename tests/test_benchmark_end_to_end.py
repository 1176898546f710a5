# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The end-to-end benchmark: its methods agree, and their passes are those that a recount of the windows finds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_segshap.shapley import all_coalitions

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "end_to_end.py"
ROI = (8, 8, 8)


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("end_to_end_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def tiny(bench, make_case):
    """A case of random cells, five units; the full coalition first, then some of the others."""

    def build(shape=(20, 16, 12), batch=1, n_rows=12, low=(6, 5, 2), high=(9, 8, 4)):
        made = make_case(shape, 5)
        mask = np.zeros(shape, dtype=bool)
        mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
        others = all_coalitions(5)[:-1]
        chosen = others[np.random.default_rng(0).permutation(len(others))[: n_rows - 1]]
        rows = np.concatenate([np.ones((1, 5), dtype=bool), chosen])
        windows = {"roi_size": ROI, "sw_batch_size": batch, "overlap": 0.5, "mode": "gaussian"}
        return bench.Case("tiny", made.image.numpy(), made.labels.numpy(), -0.5, (mask,), 1, 3, rows, windows)

    return build


def _all(bench, network, case, names=("plain", "published", "ours")):
    found = {}
    for name in names:
        timed = bench.TimedNetwork(network)
        found[name] = (bench.METHODS[name](timed, case), timed.passes)
    return found


def _contents(case, library_windows):
    """For each coalition the library's windows of the masked image, and of the mask of removed voxels."""
    image = torch.from_numpy(case.image)
    settings = {k: v for k, v in case.windows.items() if k != "sw_batch_size"} | {"sw_batch_size": 1}
    for row in case.rows:
        removed = torch.from_numpy(np.isin(case.labels, np.flatnonzero(~row) + 1))
        masked = torch.where(removed, torch.full_like(image, case.fill), image)
        yield library_windows(masked, **settings), library_windows(removed[None].float(), **settings)


@pytest.mark.parametrize("shape", [(20, 16, 12), (20, 12, 6)], ids=["plain", "padded"])
def test_the_same_scores_and_the_passes_of_a_recount(bench, tiny, make_network, library_windows, shape):
    case = tiny(shape)
    found = _all(bench, make_network("unet"), case)
    plain, passes = found["plain"]
    assert plain.shape == (12, 1, 4)
    assert (plain[:, 0, [0, 2, 3]].std(axis=0) > 0).all(), "the case must be able to tell methods apart"
    np.testing.assert_array_equal(found["published"][0], plain)
    np.testing.assert_array_equal(found["ours"][0], plain)

    contents = list(_contents(case, library_windows))
    n_windows = len(contents[0][0])
    masked = sum(any(np.frombuffer(w.content, np.float32)) for _, removed in contents for w in removed)
    sweep = bench.make_sweep(make_network("unet"), case)
    distinct = sum(
        len({(w.start, w.content) for r in rows for w in contents[r][0] if w.touches(case.boxes[0], shape, ROI)})
        for rows, _ in sweep.chunks
    )
    assert passes == n_windows * len(case.rows)
    assert found["published"][1] == n_windows + masked
    assert found["ours"][1] == distinct
    assert distinct < n_windows + masked < passes
    assert sweep.planned.planned == distinct


def test_full_batches_keep_the_scores_equal(bench, tiny, make_network):
    found = _all(bench, make_network("wide_unet"), tiny(batch=3))
    np.testing.assert_array_equal(found["ours"][0], found["plain"][0])
    np.testing.assert_array_equal(found["published"][0], found["plain"][0])


def test_captum_runs_every_window_for_its_own_coalitions(bench, tiny, make_network):
    pytest.importorskip("captum")
    pytest.importorskip("sklearn")
    case = tiny()
    case.rows[1] = False
    found = _all(bench, make_network("unet"), case, ("plain", "captum"))
    assert found["captum"][1] == found["plain"][1]
    np.testing.assert_array_equal(found["captum"][0][:2], found["plain"][0][:2])


def test_three_overlapping_regions_share_their_passes(bench, tiny, make_network):
    case = tiny()
    three = bench.replace(case, regions=tuple(bench.three_regions(case.regions[0], margin=1)))
    assert all((mask & case.regions[0]).any() and mask.any() for mask in three.regions)
    shared = _all(bench, make_network("unet"), three, ("plain", "ours"))
    alone = _all(bench, make_network("unet"), bench.first_region(three), ("ours",))["ours"]
    np.testing.assert_array_equal(shared["ours"][0], shared["plain"][0])
    np.testing.assert_array_equal(shared["ours"][0][:, :1], alone[0])
    assert shared["ours"][0].shape == (12, 3, 4)
    assert shared["ours"][1] < 1.6 * alone[1]


def test_time_and_memory_are_measured(bench, tiny, make_network):
    network = bench.TimedNetwork(make_network("conv"), seconds_per_window=0.01)
    network(torch.zeros(2, 1, *ROI))
    assert network.passes == 2
    assert network.seconds >= 0.02
    before = bench._reset_peak("cpu")
    if np.isnan(before):
        pytest.skip("this system has no /proc/self/status")
    kept = np.ones(64 * 2**20, dtype=np.uint8)
    assert bench._peak_mib("cpu") - before > 50
    assert kept.nbytes == 64 * 2**20


def test_three_overlapping_regions_of_the_demo_case_cost_less_than_1_6_times_one(bench):
    organs, cells = bench.demo_cases("cpu", 4)[3:]
    # 27 windows touch the three regions, 18 the one. Organs pass 1.6 at about 256 coalitions; the report says so.
    for case, counts in ((organs, (16, 64)), (cells, (16, 64, 256))):
        assert len(case.regions) == 3
        for coalitions in counts:
            one, three = bench.region_passes(case, coalitions)
            assert one < three < 1.6 * one
