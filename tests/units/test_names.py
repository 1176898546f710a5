# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json

import pytest

from monai_segshap.units import load_label_names

EXPECTED = {1: "spleen", 7: "liver"}


@pytest.mark.parametrize(
    "content",
    [
        {"1": "spleen", "7": "liver"},
        {"spleen": 1, "liver": 7},
        {"spleen": "1", "liver": "7"},
        {"0": "background", "1": "spleen", "7": "liver"},
        {"channel_names": {"0": "CT"}, "labels": {"background": 0, "spleen": 1, "liver": 7}, "numTraining": 3},
        {"labels": {"0": "background", "1": "spleen", "7": "liver"}},
    ],
)
def test_both_orders_and_dataset_json_are_read(content, tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert load_label_names(path) == EXPECTED
    assert load_label_names(str(path)) == EXPECTED
    assert load_label_names(content) == EXPECTED


def test_dictionaries_with_integer_keys_are_read():
    assert load_label_names({1: "spleen", 7: "liver"}) == EXPECTED


def test_no_source_means_no_names():
    assert load_label_names(None) == {}


@pytest.mark.parametrize("word", ["totalsegmentator", "TotalSegmentator"])
def test_totalsegmentator_has_its_117_classes(word):
    names = load_label_names(word)
    assert sorted(names) == list(range(1, 118))
    assert len(set(names.values())) == 117
    landmarks = {
        1: "spleen",
        5: "liver",
        51: "heart",
        52: "aorta",
        90: "brain",
        116: "sternum",
        117: "costal_cartilages",
    }
    assert {number: names[number] for number in landmarks} == landmarks


def test_names_beyond_ascii(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"1": "Löwenzahn"}, ensure_ascii=False), encoding="utf-8")
    assert load_label_names(path) == {1: "Löwenzahn"}


def test_missing_file_says_what_was_expected(tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot read organ names from .*absent\.json.*Expected 'totalsegmentator' or"
    ):
        load_label_names(tmp_path / "absent.json")


@pytest.mark.parametrize("content", [b"", b"{", b"spleen, liver", b"\x1f\x8b\x08\x00\x93NUMPY\xff\xfe"])
def test_unreadable_files_are_named(content, tmp_path):
    path = tmp_path / "organs.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read organ names from .*organs\.json"):
        load_label_names(path)


@pytest.mark.parametrize("content", [["spleen", "liver"], "spleen", 5, None])
def test_files_with_something_else_are_refused(content, tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="expected a dictionary of numbers and names"):
        load_label_names(path)


@pytest.mark.parametrize("content", [{"spleen": "left"}, {"whole tumor": [1, 2]}, {"spleen": None}, {"spleen": 1.5}])
def test_pairs_without_a_number_are_refused(content):
    with pytest.raises(ValueError, match=r"(spleen|whole tumor).* pairs no number with a name"):
        load_label_names(content)


@pytest.mark.parametrize("content", [{"spleen": 1, "liver": 1}, {"1": "spleen", "01": "liver"}])
def test_two_names_for_one_number_are_refused(content):
    with pytest.raises(ValueError, match="number 1 has two names, 'spleen' and 'liver'"):
        load_label_names(content)
