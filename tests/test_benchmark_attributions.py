# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The benchmark of attribution methods on a tiny network: its measures, its means, its report."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_segshap.explainers import ATTRIBUTION_METHODS
from monai_segshap.gradients import ClassOutputs, vanilla_gradient
from monai_segshap.metrics import effective_complexity


@pytest.fixture(scope="module")
def bench(load_benchmark):
    return load_benchmark("attributions").script


@pytest.fixture(scope="module")
def rows(bench, make_network):
    """Two cases of noise, judged with the quick options."""
    network, inferer = make_network("conv"), SlidingWindowInferer((8, 8, 8), 2, overlap=0.5, mode="gaussian")
    methods = {**bench.QUICK, "KernelSHAP, cubes": ("kernelshap_cubes", {"scale_mm": 5.0, "budget": 40})}
    tables = []
    for seed in range(2):
        image = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 10, 9, 8)).astype(np.float32))
        found = bench.judge(network, inferer, image, ("background", "a", "b"), methods, n_subsets=6, n_noise=1)
        tables.append(found.assign(case=f"case{seed}"))
    outputs = ClassOutputs(network, inferer, image, progress=False)
    complexity = effective_complexity(vanilla_gradient(outputs, image).maps)
    return pd.concat(tables, ignore_index=True), complexity


def test_every_method_of_the_paper_is_judged(bench, rows):
    table, complexity = rows
    assert {method for method, _ in bench.METHODS.values()} == set(ATTRIBUTION_METHODS)
    assert set(bench.QUICK) == set(bench.METHODS) == set(table["method"])
    assert len(table) == 2 * 5 * 3
    last = table[(table["case"] == "case1") & (table["method"] == "vanilla gradient")]
    np.testing.assert_allclose(last["complexity"], complexity)


def test_means_are_over_classes_then_cases(bench, rows):
    table = rows[0]
    mine = table[table["method"] == "SmoothGrad"]
    by_case = [np.nanmean(part["sensitivity"]) for _, part in mine.groupby("case")]
    found = bench.summary(table).set_index("method").loc["SmoothGrad"]
    assert found["sensitivity"] == pytest.approx(np.mean(by_case))
    assert found["sensitivity_low"] <= found["sensitivity"] <= found["sensitivity_high"]


def test_a_finished_case_is_not_judged_again(bench, rows, tmp_path):
    table, calls = rows[0], []

    def make(name):
        calls.append(name)
        return table[table["case"] == name].drop(columns="case")

    cases = {name: (lambda name=name: make(name)) for name in ("case0", "case1")}
    first = bench.run(tmp_path, cases)
    again = bench.run(tmp_path, cases)
    assert calls == ["case0", "case1"]
    pd.testing.assert_frame_equal(first, again)
    np.testing.assert_allclose(first["faithfulness"], table["faithfulness"])
    times = pd.DataFrame([{"method": "vanilla gradient", "time": 7.4, "forwards": 1.0, "backwards": 3.0}])
    text = bench.report(first, times, bench.QUICK, quick=True)
    assert "| vanilla gradient | 7.4 | 1 | 3 |" in text
    assert "2 cases, 3 classes each" in text
    assert all(f"| {name} |" in text for name in bench.METHODS)


def test_costs_are_counted_in_inferences(bench, make_network):
    network, inferer = make_network("conv"), SlidingWindowInferer((8, 8, 8), 2, overlap=0.5, mode="gaussian")
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 10, 9, 8)).astype(np.float32))
    found = bench.factors(
        network, inferer, image, {"a": bench.QUICK["vanilla gradient"], "b": bench.QUICK["SmoothGrad"]}
    )
    assert list(found["forwards"]) == [1.0, 2.0]  # every window sees every class
    assert list(found["backwards"]) == [3.0, 6.0]
    assert (found["time"] > 0).all()
