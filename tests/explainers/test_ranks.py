# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from processes import run_processes
from ranks_exchange_job import TEXT, rows_of

from monai_segshap.explainers.ranks import RANKS, Ranks

JOB = Path(__file__).with_name("ranks_exchange_job.py")


@pytest.mark.parametrize("how", RANKS)
def test_a_single_process_is_its_own_first_one(how):
    ranks = Ranks(how)
    array, counts, table = np.ones((2, 3)), np.array([3, 4]), rows_of([1])
    assert (ranks.count, ranks.own) == (1, 0)
    assert ranks.text_of_first(TEXT) == TEXT
    assert ranks.array_of_first(array) is array
    assert ranks.sum(counts) is counts
    assert ranks.merge_rows(table) is table
    ranks.require_one_case("no digest at all")


def test_alone_is_the_default():
    assert Ranks() == Ranks("alone")


@pytest.mark.parametrize("how", ["together", "", "ALONE", None])
def test_another_way_is_refused_with_those_allowed(how):
    with pytest.raises(ValueError, match=r"unknown ranks .*expected one of alone, share"):
        Ranks(how)


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_processes([JOB, folder])
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.xdist_group("ranks")
def test_sharing_processes_get_texts_and_arrays_of_the_first(exchanged):
    for rank, found in enumerate(exchanged):
        share = found["share"]
        assert (share["count"], share["own"]) == (2, rank)
        assert share["texts"] == [TEXT, "", "ü"]
        assert share["arrays"] == [[[0, 1, 2], [3, 4, 5]], [True, False], []]
        assert share["types"] == ["float64", "bool", "int32"]
        assert share["sum"] == [1, 20, 0]
        assert share["kept"][0] == ([[0, 1, 2], [3, 4, 5]] if rank == 0 else [[1] * 3] * 2)


@pytest.mark.xdist_group("ranks")
def test_rows_of_sharing_processes_are_merged_and_a_row_on_none_or_two_is_an_error_for_all(exchanged):
    for found in exchanged:
        share = found["share"]
        assert share["merged"] == np.arange(24.0).reshape(4, 2, 3).tolist()
        for case in ("missing", "twice"):
            assert share[case].startswith("RuntimeError: a coalition was evaluated by no rank or by several")
        assert share["same"] is None
        assert share["different"].startswith("ValueError: the processes work on different cases or questions")


@pytest.mark.xdist_group("ranks")
def test_processes_alone_keep_what_they_have(exchanged):
    first, second = (found["alone"] for found in exchanged)
    assert (first["count"], first["own"]) == (second["count"], second["own"]) == (1, 0)
    assert first["texts"] == [TEXT, "", "ü"] != second["texts"]
    assert second["arrays"] == second["kept"]
    assert (first["sum"], second["sum"]) == ([0, 10, 0], [1, 10, 0])
    assert first["different"] is second["different"] is None
