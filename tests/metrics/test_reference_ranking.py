# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import sys

import pytest

from monai_segshap.metrics import ReferenceRanking, rank_agreement

TEXT = """
source: by hand, for this test
regions:
  ET: [t1c, [t2f, t2w], t1n]
  ED: [t2f, t2w, t1c, t1n]
  NCR: [[t1n, t1c, t2w, t2f]]
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "reference.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_ranks_follow_the_order_of_the_values_and_ties_share(write):
    found = ReferenceRanking.read(write(TEXT))
    assert found.source == "by hand, for this test"
    assert found.orders["ET"] == (("t1c",), ("t2f", "t2w"), ("t1n",))
    assert found.ranks("ET", ["t1n", "t1c", "t2w", "t2f"]).tolist() == [4, 1, 2.5, 2.5]
    assert found.ranks("ED", ["t2f", "t1n", "t1c", "t2w"]).tolist() == [1, 4, 3, 2]
    assert found.ranks("NCR", ["t2f", "t1n", "t1c", "t2w"]).tolist() == [2.5] * 4
    assert rank_agreement([0.9, 0.1, 0.2, 0.3], found.ranks("ED", ["t2f", "t1n", "t1c", "t2w"])) == 1.0


def test_names_of_any_brats_year_are_one_contrast(write):
    found = ReferenceRanking.read(write(TEXT))
    assert found.ranks("ED", ["FLAIR", "T1", "T1ce", "T2"]).tolist() == [1, 4, 3, 2]


def test_it_can_be_made_in_python_and_is_frozen():
    found = ReferenceRanking({"ET": ["a", ("b", "c")]}, "a test")
    assert found.ranks("ET", ["c", "b", "a"]).tolist() == [2.5, 2.5, 1]
    with pytest.raises(TypeError):
        found.orders["ED"] = ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("regions: {ET: [t1c]}", r"holds \['regions'\]; expected keys 'source'"),
        (TEXT + "more: 1", "expected keys 'source'"),
        ("- t1c", "holds list"),
        ("source: [", "is no YAML file"),
        ("source: ' '\nregions: {ET: [t1c]}", "where the ranking comes from"),
        ("source: x\nregions: {}", "regions are {}"),
        ("source: x\nregions: {ET: t1c}", "the ranking of 'ET' is 't1c'"),
        ("source: x\nregions: {ET: [t1c, 2]}", "'ET' has a place 2"),
        ("source: x\nregions: {ET: [t1c, []]}", r"'ET' has a place \[\]"),
        ("source: x\nregions: {ET: [t1c, [t1n, t1ce]]}", "'ET' names t1c more than once"),
    ],
)
def test_bad_files(write, text, message):
    with pytest.raises(ValueError, match=message):
        ReferenceRanking.read(write(text))


@pytest.mark.parametrize(
    ("region", "contrasts", "message"),
    [
        ("WT", ["t1n", "t1c", "t2w", "t2f"], "no reference for sub-region 'WT'; the file ranks ET, ED, NCR"),
        ("ET", ["t1n", "t1c", "t2w"], r"not in the file \[\], without a value \['t2f'\]"),
        ("ET", ["t1n", "t1c", "t2w", "t2f", "dwi"], r"not in the file \['dwi'\]"),
        ("ET", ["t1n", "t1c", "t2w", "t2f", "flair"], "Give each contrast once"),
    ],
)
def test_contrasts_that_do_not_fit(write, region, contrasts, message):
    with pytest.raises(ValueError, match=message):
        ReferenceRanking.read(write(TEXT)).ranks(region, contrasts)


def test_without_pyyaml_the_way_out_is_named(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r"monai_segshap\[bundle\]"):
        ReferenceRanking.read(write(TEXT))


def test_contrasts_can_be_checked_for_all_sub_regions_at_once():
    ranking = ReferenceRanking({"ET": ["t1c", "t2f"], "WT": ["FLAIR", "t1ce"]}, "an example")
    ranking.require_contrasts(["t2f", "t1c"])
    with pytest.raises(ValueError, match=r"not in the file \['t2w'\], without a value \['t2f'\]"):
        ranking.require_contrasts(["t1c", "t2w"])
