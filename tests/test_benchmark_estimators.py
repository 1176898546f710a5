# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The benchmark of the estimators: its games' known values, its measure of errors, its tables and its report."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_segshap.geometry import VoxelGrid
from monai_segshap.region import select_region
from monai_segshap.shapley import all_coalitions, exact_shapley
from monai_segshap.units import cube_partition


@pytest.fixture(scope="module")
def bench(load_benchmark):
    """The benchmark's modules, and its script."""
    return load_benchmark("estimators", "methods", "games", "ct", "runs", "report")


@pytest.mark.parametrize("local", [True, False])
def test_known_values_equal_all_coalitions(bench, local):
    game = bench.games.make_game(9, local, seed=3)
    np.testing.assert_allclose(bench.games.known_values(game), exact_shapley(game(all_coalitions(9))), atol=1e-12)


def test_long_walks_come_near_the_values_of_a_ratio(bench):
    game = bench.games.make_game(9, True, seed=3, ratio=True)
    truth = exact_shapley(game(all_coalitions(9)))
    values, stated = bench.games.long_walks(game, 400)
    assert 0.005 < stated < 0.05
    assert bench.methods.relative_error(values, truth)[0] < 3 * stated
    with pytest.raises(ValueError, match="no sum over voxels"):
        bench.games.known_values(game)


def test_blocks_compose_to_the_score(bench):
    for ratio in (True, False):
        game = bench.games.make_game(16, True, seed=1, ratio=ratio)
        sample = game.sample(60, seed=0)
        np.testing.assert_allclose(game.compose(sample.blocks.outputs.sum(axis=1)), sample.scores)
        assert sample.scores[0] == pytest.approx(game(np.ones((1, 16), dtype=bool))[0])
        assert np.isnan(game.linear).all() == ratio


def test_every_estimator_is_exact_where_every_pair_is_there(bench):
    game = bench.games.make_game(9, True, seed=2)
    truth = bench.games.known_values(game)
    found = bench.methods.paired_estimates(game.sample(512, seed=0))
    assert set(found) == set(bench.methods.PAIRED)
    for made in found.values():
        np.testing.assert_allclose(made.values, truth, atol=1e-10)


def test_every_estimator_comes_near_with_many_coalitions(bench):
    game = bench.games.make_game(10, True, seed=2)
    truth, budget = bench.games.known_values(game), 240
    found = bench.methods.paired_estimates(game.sample(budget, seed=0))
    found |= bench.methods.own_estimates(game, 10, budget, seed=0)
    assert {"leverage", "gaussian process, blocks", "walks", "published"} <= set(found)
    for name, made in found.items():
        assert bench.methods.relative_error(made.values, truth)[0] < 0.2, name


def test_too_few_coalitions_leave_an_estimator_out(bench):
    game = bench.games.make_game(40, True, seed=2)
    found = bench.methods.paired_estimates(game.sample(40, seed=0))
    assert set(found) == {"ridge", "gaussian process", "gaussian process, blocks"}
    assert "walks" not in bench.methods.own_estimates(game, 40, 40, seed=0)


def test_the_measure_finds_known_errors(bench):
    game = bench.games.make_game(12, True, seed=5)
    truth, sample = bench.games.known_values(game), game.sample(1600, seed=1)
    shuffled = np.random.default_rng(0).permutation(sample.n_pairs)
    reference = bench.methods.make_reference(sample.pairs(shuffled[100:]), sample.pairs(shuffled[:100]), splits=8)
    assert reference.error[0] < 0.05
    assert reference.squared_norm[0] == pytest.approx((truth**2).sum(), rel=0.05)
    assert abs(reference.squared_error(truth)[0]) < 0.005
    assert reference.squared_error(np.zeros_like(truth))[0] == pytest.approx(1.0, abs=1e-12)
    off = truth + 0.3 * np.linalg.norm(truth) * np.eye(12)[:, [0]]
    assert reference.squared_error(off)[0] == pytest.approx(0.09, abs=0.03)


def test_overlap_counts_units(bench):
    one = np.array([[5.0, 1.0], [4.0, 2.0], [0.0, 3.0]])
    assert bench.methods.overlap(one, -one, 2) == [2, 2]
    assert bench.methods.overlap(one, one[::-1], 2) == [1, 1]


@pytest.fixture
def subject(bench, make_network):
    """A tiny network and image, two regions."""
    shape = (20, 16, 12)
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))
    grid = VoxelGrid(shape, np.diag([1.0, 1.0, 1.0, 1.0]))
    network, inferer = make_network("unet"), SlidingWindowInferer((8, 8, 8), 1, 0.5, mode="gaussian")
    with torch.no_grad():
        prediction = inferer(image[None], network)[0].argmax(dim=0).numpy()
    target = int(np.bincount(prediction.ravel()).argmax())
    spec = {"mode": "box", "box_ijk": [[6, 5, 2], [10, 9, 6]]}
    region = select_region(prediction, target, spec, grid)
    units = cube_partition(grid, 7.0)
    return bench.ct.Subject(network, image, inferer, 3, grid, (region, region), units)


def test_a_table_goes_on_where_it_stopped(bench, subject, tmp_path, capsys):
    whole = bench.ct.coalition_table(tmp_path / "whole.npz", 60, lambda: subject)
    path = tmp_path / "parts.npz"
    bench.ct.coalition_table(path, 48, lambda: subject)
    parts = bench.ct.coalition_table(path, 60, lambda: subject)
    assert set(parts) == set(whole)
    assert len(parts["rows"]) == 62
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name])
    bench.ct.coalition_table(path, 60, lambda: pytest.fail("nothing is missing"))
    with pytest.raises(ValueError, match="other units"):
        bench.ct.coalition_table(path, 80, lambda: replace(subject, units=cube_partition(subject.grid, 6.0)))

    sample = bench.ct.region_sample(whole, 0)
    assert sample.n_units == whole["seen0"].sum()
    assert sample.scores.shape[1] == len(bench.ct.SCORES)
    assert sample.scores[0, 2:4] == pytest.approx([1.0, 1.0])
    np.testing.assert_allclose(sample.scores[:, 4], sample.scores[:, 0] - sample.scores[:, 1])


def test_the_report_renders(bench, tmp_path, monkeypatch):
    out = tmp_path / "found.md"
    tiny = (bench.runs.Setting(9, True, False, (512,)), bench.runs.Setting(9, False, False, (100,)))
    monkeypatch.setattr(bench.script, "TINY", tiny)
    bench.script.main(["--quick", "--tables", str(tmp_path), "--ct", str(tmp_path), "--out", str(out)])
    text = out.read_text(encoding="utf-8")
    assert "| local, M = 9 | 512 | 0 (exact) | **0 (exact)** |" in text
    assert "no CT at the place given" in text
    assert (tmp_path / "found.png").stat().st_size > 1000
    stamp = (tmp_path / "quick.json").stat().st_mtime_ns
    bench.script.main(["--quick", "--tables", str(tmp_path), "--ct", str(tmp_path), "--out", str(out)])
    assert (tmp_path / "quick.json").stat().st_mtime_ns == stamp, "finished results are kept"


def test_a_real_table_is_judged_and_reported(bench):
    game = bench.games.make_game(12, True, seed=5)
    sample = replace(game.sample(300, seed=1), blocks=None)
    key = "CT toy, spleen"
    cache = SimpleNamespace(get=lambda _, run: {**run(), "seconds": 1.0, "date": "2026-01-01"})
    found = {key: bench.runs.run_table(cache, key, sample, ("tp",))}
    assert set(found[key]) == {1, 2, 4, 8}
    assert found[key][4]["evaluations"] == 48
    text = bench.report.report((), {}, found, {}, True, "## Reading")
    assert "### CT toy, spleen, 12 units" in text
    assert f"| {key}: tp at 4M at most 0.12 |" in text
    truth = bench.games.known_values(game)
    own = bench.methods.paired_estimates(sample.pairs(np.arange(24)))["gaussian process"].values
    real = bench.methods.relative_error(own, truth)[0]
    measured = bench.report.real_error(found, key, 4, "gaussian process", "tp")
    assert measured == pytest.approx(real, abs=0.15)
