# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Two processes with unequal numbers of cases report what one process would."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from metric_ranks_job import case
from processes import run_processes

from monai_segshap.metrics import effective_complexity

JOB = Path(__file__).with_name("metric_ranks_job.py")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metric_ranks")
    run_processes([JOB, folder, 3, 2])
    return folder, [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def rows_of(numbers):
    return np.array([effective_complexity(case(n)["image"]) for n in numbers])


@pytest.mark.xdist_group("ranks")
def test_every_process_has_the_rows_of_all(ran):
    rows = rows_of(range(5))
    assert np.isnan(rows[:, 1]).tolist() == [True, False, True, False, True]
    for found in (rank["evaluator"] for rank in ran[1]):
        np.testing.assert_allclose(found["rows"], rows, rtol=1e-6)
        np.testing.assert_allclose(found["mean"], [rows[:, 0].mean(), (rows[1, 1] + rows[3, 1]) / 2])
        assert found["seen"] == found["mean"]
        assert found["counts"] == [5, 2]
        assert found["n"] == 5
        assert found["cases"] == [f"case{n}" for n in range(5)]
        assert [bool(note) for note in found["notes"]] == [True, False, True, False, True]


@pytest.mark.xdist_group("ranks")
def test_the_first_process_writes_the_files(ran):
    folder, rows = ran[0], rows_of(range(5))
    assert not list(folder.glob(".*"))
    table = pd.read_csv(folder / "table.csv", float_precision="round_trip")
    np.testing.assert_array_equal(table[["complexity_1", "complexity_2"]], rows)
    with (folder / "complexity_raw.csv").open() as file:
        lines = list(csv.reader(file))
    assert [line[0] for line in lines[1:]] == [f"case{n}" for n in range(5)]
    np.testing.assert_allclose([[float(v) for v in line[1:3]] for line in lines[1:]], rows, rtol=1e-6)


@pytest.mark.xdist_group("ranks")
def test_a_process_without_cases_takes_part(ran):
    rows = rows_of([0, 1, 3])
    for found in ran[1]:
        assert found["direct"]["cases"] == ["case0", "case1", "case3"]
        np.testing.assert_allclose(found["direct"]["mean"], np.nanmean(rows, axis=0))
        assert np.isnan(found["nobody"]["mean"]).all()
        assert found["nobody"]["cases"] == []
