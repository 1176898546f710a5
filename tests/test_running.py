# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Names of cases and files."""

from __future__ import annotations

import json

import pytest

from monai_segshap.running import case_name, file_stem, list_cases, read_datalist


@pytest.mark.parametrize(
    ("path", "stem", "case"),
    [
        ("a/ct.nii.gz", "ct", "ct"),
        ("a/liver_12_0000.nii.gz", "liver_12_0000", "liver_12"),
        ("b/scan.v2.nrrd", "scan.v2", "scan.v2"),
        ("_0000.nii", "_0000", "_0000"),
        ("notes_0000.txt", "notes_0000.txt", "notes_0000.txt"),
    ],
)
def test_names_of_files_and_cases(path, stem, case):
    assert (file_stem(path), case_name(path)) == (stem, case)


def test_cases_of_one_name_are_told_apart_by_their_folder():
    cases = list_cases(["p1/ct_0000.nii.gz", "p2/ct_0000.nii.gz"])
    assert [c["case"] for c in cases] == ["p1_ct", "p2_ct"]


def test_a_data_list_keeps_what_is_known_of_a_case(tmp_path):
    entries = [{"image": "a.nii.gz", "label": "a_seg.nii.gz", "group": "normal"}, {"image": "b.nii.gz", "label": ""}]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    found = read_datalist(tmp_path / "list.json", files=("image", "label"))
    files = {"image": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / "a_seg.nii.gz")}
    assert found == [{**files, "group": "normal", "case": "a"}, {"image": str(tmp_path / "b.nii.gz"), "case": "b"}]
