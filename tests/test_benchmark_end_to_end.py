# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The end-to-end benchmark: its methods agree, and their passes are those that a recount of the windows finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from monai_segshap.shapley import all_coalitions

ROI = (8, 8, 8)


@pytest.fixture(scope="module")
def bench(load_benchmark):
    """The benchmark's modules, and its script."""
    return load_benchmark("end_to_end", "methods", "cases", "measuring", "report")


@pytest.fixture
def tiny(bench, make_case):
    """A case of random cells, five units; the full coalition, the empty one, then some of the others."""

    def build(shape=(20, 16, 12), batch=1, n_rows=12, low=(6, 5, 2), high=(9, 8, 4)):
        made = make_case(shape, 5)
        mask = np.zeros(shape, dtype=bool)
        mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
        others = all_coalitions(5)[1:-1]
        chosen = others[np.random.default_rng(0).permutation(len(others))[: n_rows - 2]]
        rows = np.concatenate([np.ones((1, 5), dtype=bool), np.zeros((1, 5), dtype=bool), chosen])
        windows = {"roi_size": ROI, "sw_batch_size": batch, "overlap": 0.5, "mode": "gaussian"}
        return bench.methods.Case("tiny", made.image.numpy(), made.labels.numpy(), -0.5, (mask,), 1, 3, rows, windows)

    return build


def _run(bench, name, network, case, **asked):
    """What a method found, and the windows that went through the network for it."""
    timed = bench.methods.TimedNetwork(network)
    found = bench.methods.METHODS[name](timed, bench.methods.with_predictions(network, case), **asked)
    return found, timed.passes


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
    case, network = tiny(shape), make_network("unet")
    (plain, passes), (published, few), (ours, fewest) = (
        _run(bench, name, network, case) for name in ("plain", "published", "ours")
    )
    assert plain.scores.shape == (12, 1, 4)
    assert (plain.scores[:, 0, [0, 2, 3]].std(axis=0) > 0).all(), "the case must be able to tell methods apart"
    np.testing.assert_array_equal(published.scores, plain.scores)
    np.testing.assert_array_equal(ours.scores, plain.scores)
    assert ours.facts.prediction_difference == 0.0

    contents = list(_contents(case, library_windows))
    n_windows = len(contents[0][0])
    masked = sum(any(np.frombuffer(w.content, np.float32)) for _, removed in contents for w in removed)
    sweep = bench.methods.make_sweep(network, case)
    distinct = sum(
        len({(w.start, w.content) for r in rows for w in contents[r][0] if w.touches(case.boxes[0], shape, ROI)})
        for rows, _ in sweep.chunks
    )
    assert passes == n_windows * len(case.rows)
    assert few == n_windows + masked
    assert fewest == distinct + ours.facts.calibration.passes
    assert distinct < n_windows + masked < passes
    assert sweep.planned.planned == distinct


def test_full_batches_keep_the_scores_equal(bench, tiny, make_network):
    case, network = tiny(batch=3), make_network("wide_unet")
    plain, published, ours = (_run(bench, n, network, case)[0].scores for n in ("plain", "published", "ours"))
    np.testing.assert_array_equal(ours, plain)
    np.testing.assert_array_equal(published, plain)


def test_captum_runs_every_window_for_its_own_coalitions(bench, tiny, make_network):
    pytest.importorskip("captum")
    pytest.importorskip("sklearn")
    case, network = tiny(), make_network("unet")
    (plain, passes), (captum, own) = (_run(bench, name, network, case) for name in ("plain", "captum"))
    assert own == passes
    np.testing.assert_array_equal(captum.scores[:2], plain.scores[:2])


def test_three_overlapping_regions_share_their_passes(bench, tiny, make_network):
    case, network = tiny(), make_network("unet")
    three = replace(case, regions=tuple(bench.cases.three_regions(case.regions[0], margin=1)))
    assert all((mask & case.regions[0]).any() and mask.any() for mask in three.regions)
    plain, ours = (_run(bench, name, network, three)[0].scores for name in ("plain", "ours"))
    alone = _run(bench, "ours", network, bench.cases.first_region(three))[0].scores
    np.testing.assert_array_equal(ours, plain)
    np.testing.assert_array_equal(ours[:, :1], alone)
    assert ours.shape == (12, 3, 4)
    shared, one = (
        bench.methods.make_sweep(network, c).planned.planned for c in (three, bench.cases.first_region(three))
    )
    assert shared < 1.6 * one


def test_the_fast_mode_is_another_model_and_its_copies_are_counted(bench, tiny, make_network):
    case, network = tiny(), make_network("unet")
    exact, _ = _run(bench, "ours", network, case)
    fast, passes = _run(bench, "fast", network, case)
    planned = bench.methods.make_sweep(network, case).planned.planned
    assert passes == planned + fast.facts.calibration.passes
    assert not fast.facts.calibration.same_bits
    assert fast.facts.prediction_difference > 0
    assert 0 < np.abs(fast.scores - exact.scores).max() < 0.1


def test_a_bound_for_held_logits_costs_passes_and_no_bit(bench, tiny, make_network):
    case, network = tiny(n_rows=24), make_network("unet")
    free, fewest = _run(bench, "ours", network, case, max_bytes=2**62)
    tight, passes = _run(bench, "ours", network, case, max_bytes=0)
    np.testing.assert_array_equal(tight.scores, free.scores)
    assert passes > fewest
    assert tight.facts.planned_peak_bytes < free.facts.planned_peak_bytes
    for found in (free, tight):
        assert 0 < found.facts.held_bytes <= found.facts.planned_peak_bytes


@pytest.fixture
def reported(bench, monkeypatch, make_network):
    """The reports of a tiny network, measured in this process."""
    monkeypatch.setattr(bench.measuring, "bundle_parts", lambda *_: {"network": make_network("unet")})
    monkeypatch.setattr(bench.report, "in_fresh_process", bench.measuring.measure)
    return bench.report


def _cells(text):
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]


def test_exact_methods_and_the_fast_mode_have_separate_tables(reported, tiny):
    pytest.importorskip("captum")
    pytest.importorskip("sklearn")
    case = tiny()
    found = reported.compare(case, "cpu")
    _, *rows = _cells(reported.report_setting(case, found))
    assert [row[0][:3] for row in rows] == ["(a)", "(b)", "(c)", "(d)"]
    assert [row[7] for row in rows if row[0][:3] != "(c)"] == ["0.0e+00"] * 3
    assert rows[3][3] == f"{found['ours'].passes} ({found['ours'].calibration_passes})"
    fast = reported.report_fast([(case, found)])
    assert "not the deployed network's numbers" in fast
    assert float(_cells(fast)[1][6]) > 0


def test_batches_of_one_are_compared_with_the_library_s(reported, tiny):
    text = reported.report_batches_of_one(tiny(batch=3), "cpu", 12)
    assert "differ by at most 0.0e+00 from (a)" in text
    _, *rows = _cells(text)
    assert rows[0][:2] == ["library", "1"]
    for choice, *_, same_bits, logit, score in rows:
        assert choice == "fastest" or (same_bits, logit, score) == ("yes", "0.0e+00", "0.0e+00")


def test_memory_is_reported_against_its_plan(reported, tiny):
    text = reported.report_memory(tiny(), "cpu", 24)
    assert "at most the one planned: **yes**" in text
    assert "same in all rows: **yes**" in text
    _, *rows = _cells(text)
    passes = [int(row[2]) for row in rows]
    assert [row[0] for row in rows] == ["none", "1/4", "1/20"]
    assert passes[0] < passes[2]


def test_a_section_is_appended(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.script, "sections", lambda device, *_: iter([f"## On {device}\n"]))
    out = tmp_path / "found.md"
    bench.script.main(["--out", str(out)])
    first = out.read_text(encoding="utf-8")
    bench.script.main(["--out", str(out), "--device", "cuda", "--append"])
    assert first.startswith("# End to end")
    assert out.read_text(encoding="utf-8") == first + "\n## On cuda\n"


def test_time_and_memory_are_measured(bench, make_network):
    network = bench.methods.TimedNetwork(make_network("conv"), seconds_per_window=0.01)
    network(torch.zeros(2, 1, *ROI))
    assert network.passes == 2
    assert network.seconds >= 0.02
    before = bench.measuring.reset_peak("cpu")
    if np.isnan(before):
        pytest.skip("this system has no /proc/self/status")
    kept = np.ones(64 * 2**20, dtype=np.uint8)
    assert bench.measuring.peak_mib("cpu") - before > 50
    assert kept.nbytes == 64 * 2**20


def test_three_overlapping_regions_of_the_demo_case_cost_less_than_1_6_times_one(bench):
    organs, cells = bench.cases.demo_cases("cpu", 4)[3:]
    # 27 windows touch the three regions, 18 the one. Organs pass 1.6 at about 256 coalitions; the report says so.
    for case, counts in ((organs, (16, 64)), (cells, (16, 64, 256))):
        assert len(case.regions) == 3
        for coalitions in counts:
            one, three = bench.measuring.region_passes(case, coalitions)
            assert one < three < 1.6 * one
