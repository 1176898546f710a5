# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The benchmark of perturbation curves: who pays for what, whether the curves judge rightly, and its tables."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from monai.inferers import SlidingWindowInferer

from monai_segshap.explainers import KernelSHAPExplainer
from monai_segshap.explainers.preparation import PreparedCase
from monai_segshap.geometry import VoxelGrid
from monai_segshap.metrics import exact_aopc_bounds
from monai_segshap.region import Region
from monai_segshap.shapley import all_coalitions
from monai_segshap.units import partition_from_labels

pytest.importorskip("captum")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def bench(load_benchmark):
    """The benchmark's modules, and its script."""
    return load_benchmark("perturbation_curves", "methods", "cases", "report", "reading")


@pytest.fixture
def question(bench):
    """An additive score and one with products, of eight units."""
    return bench.cases.tiny_question(8, 0)


class TestEvaluations:
    def test_captum_asks_for_n_coalitions_of_its_own(self, bench, question):
        calls = []

        def game(rows):
            calls.append(rows)
            return question.values(rows)[:, 1]

        values, asked = bench.methods.captum_kernel_shap(game, 8, 40, seed=3)
        rows = np.concatenate(calls)
        assert rows.shape == (40, 8)
        np.testing.assert_array_equal(rows, asked)
        assert rows[0].all()
        assert not rows[1].any()
        sizes = rows[2:].sum(axis=1)
        assert set(sizes) <= set(range(1, 8))
        # its regression, solved independently from what it asked for
        weights = np.sqrt(np.where(np.arange(40) < 2, 1e6, 1.0))[:, None]
        design = np.column_stack([np.ones(40), rows])
        expected = np.linalg.lstsq(weights * design, weights[:, 0] * question.values(rows)[:, 1], rcond=None)[0][1:]
        np.testing.assert_allclose(values, expected, atol=1e-4)

    def test_its_draws_depend_on_the_seed_alone_and_smaller_ones_are_a_beginning(self, bench, question):
        few, many, other = (bench.methods.captum_rows(8, n, s) for n, s in ((40, 1), (64, 1), (64, 2)))
        np.testing.assert_array_equal(many[:40], few)
        assert not np.array_equal(many, other)
        _, asked = bench.methods.captum_kernel_shap(lambda rows: question.values(rows)[:, 0], 8, 64, 1)
        np.testing.assert_array_equal(asked, many)

    def test_every_method_pays_n_and_the_game_each_coalition_once(self, bench, question):
        evaluated, plain = [], question.outputs
        question.outputs = lambda rows: (evaluated.append(rows), plain(rows))[1]
        found = bench.methods.attributions(question, {"auto": 2, "kernelshap": 1, "captum": 2, "published": 1}, 40)
        assert [a.asked for a in found] == [40] * 6
        assert [(a.method, a.seed) for a in found if a.method == "captum"] == [("captum", 0), ("captum", 1)]
        plans = [bench.methods.draws(question, a.method, 40, a.seed) for a in found]
        union = np.unique(np.concatenate([getattr(plan, "rows", plan) for plan in plans]), axis=0)
        assert len(evaluated) == 1
        np.testing.assert_array_equal(np.unique(evaluated[0], axis=0), union)
        assert len(evaluated[0]) == len(union) == question.memory.n_evaluations
        for a, plan in zip(found, plans, strict=True):
            assert a.distinct == len(np.unique(getattr(plan, "rows", plan), axis=0))
        assert [a.distinct for a in found if a.method == "auto"] == [40, 40]

    def test_attributions_are_those_of_the_explainer(self, bench, make_network, make_case):
        shape = (20, 16, 12)
        case, network = make_case(shape, 24), make_network("conv")
        inferer = SlidingWindowInferer((8, 8, 8), 2, overlap=0.5, mode="gaussian")
        logits = inferer(case.image[None], network)[0].detach()
        mask = np.zeros(shape, dtype=bool)
        mask[6:10, 5:9, 2:5] = True
        partition = partition_from_labels(case.labels.numpy(), VoxelGrid(shape, np.eye(4)), "cells")
        asked = (case.image, partition, [Region(mask, "box", 1, 0)], logits)
        explainer = KernelSHAPExplainer(
            network, inferer, bench.cases.SCORES, budget=62, tolerance=None, progress=False, batch_size="library"
        )
        made = bench.cases.prepared_question("tiny", "cells", PreparedCase(explainer.settings, *asked))
        assert made.n_units > 20
        (auto,) = bench.methods.attributions(made, {"auto": 1}, 64)
        (explained,) = explainer(*asked)
        assert auto.estimator == explained.method == "gaussian_process"
        assert auto.asked == explained.evaluations == 64
        np.testing.assert_allclose(auto.values, explained.values[explained.visible], atol=1e-12)
        assert (np.ptp(auto.values, axis=0)[[0, 2, 3]] > 0).all()
        rows = np.random.default_rng(0).random((5, made.n_units)) < 0.5
        game = explainer.game(case.image, partition, asked[2][0], logits)
        np.testing.assert_allclose(made.values(rows), game.of_visible(rows), atol=1e-12)


class TestJudging:
    def test_an_additive_game_is_ranked_perfectly(self, bench, question):
        question.memory(all_coalitions(8))
        found = bench.methods.attributions(question, {"auto": 1, "random": 1}, 40)
        np.testing.assert_allclose(found[0].values[:, 0], question.facts["weights"], atol=1e-10)
        rows = bench.methods.judge(question, found)
        ours, chance = (
            next(r for r in rows if (r["score"], r["method"]) == ("additive", m)) for m in ("auto", "random")
        )
        assert ours["naopc"] == pytest.approx(1.0, abs=1e-10)
        assert ours["lerf"] == pytest.approx(1.0, abs=1e-10)
        assert chance["naopc"] < 0.99
        assert chance["abpc"] < ours["abpc"]
        assert ours["nabpc"] == pytest.approx(ours["abpc"] / question.facts["weights"].sum())

    def test_a_random_order_and_its_reverse_cancel(self, bench, question):
        found = bench.methods.attributions(question, {"captum": 1, "random": 2}, 40)
        rows = [row for row in bench.methods.judge(question, found) if row["method"] == "random"]
        assert len(rows) == 2 * 2 * 2
        for one, other in zip(rows[::2], rows[1::2], strict=True):
            assert (one["score"], one["seed"] + 1) == (other["score"], other["seed"])
            assert one["abpc"] != 0
            np.testing.assert_allclose(
                [other["abpc"], other["nabpc"], other["naopc"], other["lerf"]],
                [-one["abpc"], -one["nabpc"], 1 - one["lerf"], 1 - one["naopc"]],
                atol=1e-12,
            )

    def test_bounds_through_known_coalitions(self, bench, question):
        every = all_coalitions(8)
        values = question.values(every)[:, 1]
        exact = exact_aopc_bounds(values)
        np.testing.assert_allclose(bench.methods.known_bounds(every, values), (exact.lower, exact.upper), atol=1e-12)

    def test_bounds_equal_those_of_all_orders_that_are_known(self, bench):
        rng = np.random.default_rng(0)
        every, table = all_coalitions(5), rng.normal(size=32)
        orders = [rng.permutation(5) for _ in range(4)]
        known = {31, 0} | {int(2 ** o[k:] @ np.ones(5 - k, dtype=int)) for o in orders for k in range(1, 5)}
        areas = []
        for order in itertools.permutations(range(5)):
            masks = np.concatenate([[31], 31 - np.cumsum(2 ** np.array(order))])
            if set(masks.tolist()) <= known:
                areas.append(table[31] - table[masks[1:]].mean())
        assert 4 <= len(areas) < 120
        rows = sorted(known)
        found = bench.methods.known_bounds(every[rows], table[rows])
        np.testing.assert_allclose(found, (min(areas), max(areas)), atol=1e-12)

    def test_bounds_without_any_order_are_refused(self, bench):
        with pytest.raises(ValueError, match="no order"):
            bench.methods.known_bounds(np.array([[True, True], [False, False]]), np.array([1.0, 0.0]))
        with pytest.raises(ValueError, match="not both known"):
            bench.methods.known_bounds(np.array([[True, True], [False, True]]), np.array([1.0, 0.0]))


def _cells(text):
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]


class TestReport:
    @pytest.fixture
    def table(self):
        """Two cases, two draws; captum is better in the second case."""
        rows = []
        for case, ours, peer in (("a", (0.5, 0.7), (0.4, 0.65)), ("b", (0.2, 0.2), (0.2, 0.3))):
            for method, values in (("auto", ours), ("captum", peer)):
                rows += [
                    {"case": case, "score": "tp", "method": method, "seed": s, "nabpc": v} for s, v in enumerate(values)
                ]
        return pd.DataFrame(rows)

    def test_differences_are_paired_by_case_and_wins_by_draw(self, bench, table):
        pairs = bench.report.paired(table, "tp", "nabpc")
        np.testing.assert_allclose(pairs["difference"], [0.075, -0.05])
        assert bench.report.at_least(table, "tp", "nabpc") == (3, 4)

    def test_a_case_without_a_value_is_left_out(self, bench, table):
        table.loc[(table["case"] == "a") & (table["method"] == "captum"), "nabpc"] = np.nan
        assert list(bench.report.paired(table, "tp", "nabpc").index) == ["b"]
        assert bench.report.at_least(table, "tp", "nabpc") == (1, 2)

    def test_the_interval_is_that_of_means_over_resampled_cases(self, bench):
        # of two cases the mean is the first, the second or half of both, with 1/4, 1/4 and 1/2
        assert bench.report.interval(np.array([0.0, 1.0])) == (0.0, 1.0)
        assert bench.report.interval(np.array([0.3, 0.3, 0.3])) == pytest.approx((0.3, 0.3))
        assert np.isnan(bench.report.interval(np.array([1.0]))).all()
        rng = np.random.default_rng(1)
        sample = rng.normal(size=400)
        low, high = bench.report.interval(sample)
        error = sample.std() / np.sqrt(400)
        np.testing.assert_allclose([low, high], sample.mean() + np.array([-1.96, 1.96]) * error, atol=0.15 * error)

    def test_a_normalizer_of_the_wrong_sign_is_left_out(self, bench):
        row = {
            "case": "a",
            "kind": "k",
            "score": "tp",
            "method": "captum",
            "estimator": "captum",
            "n": 8,
            "nabpc": -1.0,
        }
        found = [
            {"facts": {"n_units": 4}, "results": [{**row, "seed": 0, "drop": -1.0}, {**row, "seed": 1, "drop": 1.0}]}
        ]
        table = bench.report.results_table(found)
        assert table["nabpc"].isna().tolist() == [True, False]
        assert set(table["setting"]) == {"2 evaluations a unit"}

    def test_draws_of_auto_are_those_of_the_method_that_it_chose(self, bench):
        row = {"case": "a", "kind": "k", "score": "tp", "n": 8, "drop": 1.0, "estimator": "kernelshap"}
        rows = [
            {**row, "method": "auto", "seed": 0, "nabpc": 0.5},
            {**row, "method": "auto", "seed": 1, "nabpc": 0.7},
            {**row, "method": "kernelshap", "seed": 0, "nabpc": 0.5},
            {**row, "method": "auto", "seed": 2, "nabpc": 0.9, "estimator": "gaussian_process"},
        ]
        table = bench.report.results_table([{"facts": {"n_units": 4}, "results": rows}])
        kernelshap = table[table["method"] == "kernelshap"]
        assert dict(zip(kernelshap["seed"], kernelshap["nabpc"], strict=True)) == {0: 0.5, 1: 0.7}
        assert len(table) == 5


def test_a_quick_run_writes_every_table_and_resumes(bench, tmp_path, monkeypatch):
    out = tmp_path / "found.md"
    command = ["--quick", "--cases", "2", "--results", str(tmp_path / "kept"), "--out", str(out)]
    bench.script.main(command)
    text = out.read_text(encoding="utf-8")
    assert text.startswith("# Perturbation curves")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Reading",
        "## What was run",
        "## hand-made, 40 evaluations",
        "## hand-made, 64 evaluations",
    ]
    assert "auto is kernelshap here" in text
    rows = _cells(text)
    heads = [row for row in rows if row[:2] == ["score", "judged by"]]
    assert len(heads) == 2
    assert heads[0][2:7] == list(bench.methods.METHODS)
    additive = [row for row in rows if row[:2] == ["additive", "NAOPC"]]
    assert [row[2] for row in additive] == ["1.000 (0.000)"] * 2
    assert [row[-2] for row in additive] == ["2 of 2"] * 2
    assert len([row for row in rows if row[0] == "interacting"]) == 8
    assert [row[0] for row in rows if row[0].startswith("game")] == ["game 0", "game 1"] * 3

    draws = [
        {(r["method"], r["seed"]) for r in json.loads(path.read_text(encoding="utf-8"))["results"]}
        for path in sorted((tmp_path / "kept").glob("*.json"))
    ]
    assert len(draws) == 2
    assert [seed for method, seed in sorted(draws[1]) if method == "captum"] == [2, 3]
    assert not draws[0] & draws[1], "equal draws of two cases would not be independent"

    monkeypatch.setattr(bench.script, "run_tiny", lambda *_: pytest.fail("a finished case ran again"))
    bench.script.main(command)
    assert out.read_text(encoding="utf-8") == text
