# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Where the cases of a study come from, and how its settings are known again."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import ScaleIntensityRange

from monai_segshap.running import read_datalist
from monai_segshap.study import changed_settings, describe, phantom_cases, study_cases
from monai_segshap.study.identity import file_digest
from monai_segshap.transforms import HybridUnitsd, KernelSHAPd

ENTRIES = [{"image": "a/ct.nii.gz", "organs": "a/organs"}, {"image": "b/ct.nii.gz"}]


def expected(folder):
    return [
        {"image": str(folder / "a/ct.nii.gz"), "case": "a_ct", "organs": str(folder / "a/organs")},
        {"image": str(folder / "b/ct.nii.gz"), "case": "b_ct"},
    ]


def test_json_and_csv_and_list_are_the_same_cases(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(ENTRIES))
    (tmp_path / "monai.json").write_text(json.dumps({"name": "task", "labels": {"0": "x"}, "testing": ENTRIES}))
    (tmp_path / "table.csv").write_text("image,organs\na/ct.nii.gz,a/organs\nb/ct.nii.gz,\n")
    for name in ("list.json", "monai.json", "table.csv"):
        assert read_datalist(tmp_path / name) == expected(tmp_path), name
    absolute = [{key: str(tmp_path / value) for key, value in entry.items()} for entry in ENTRIES]
    assert study_cases(tmp_path, datalist=absolute) == expected(tmp_path)


def test_names_are_taken(tmp_path):
    (tmp_path / "table.csv").write_text("case,image\np1,x.nii.gz\np2,x.nii.gz\n")
    assert [case["case"] for case in read_datalist(tmp_path / "table.csv")] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"training": [{"image": "a"}], "testing": [{"image": "b"}]}', "holds 2 lists of cases"),
        ('{"labels": {}}', "holds 0 lists of cases"),
        ("[]", "holds no list of cases"),
        ('["a.nii.gz"]', "holds no list of cases"),
        ('[{"image": "a"}, {"organs": "b"}]', r"entries \[1\]"),
        ('[{"image": "a", "case": "x"}, {"image": "b"}]', "some do not"),
        ('[{"image": "a", "case": "x"}, {"image": "b", "case": "x"}]', "several cases are named x"),
        ("{half", "neither CSV nor JSON"),
    ],
)
def test_bad_lists_are_named(content, message, tmp_path):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_datalist(tmp_path / "list.json")


def test_images_come_before_phantoms_and_exclude_a_list(tmp_path):
    assert study_cases(tmp_path, image="ct.nii.gz", phantom_seeds=[1])[0]["case"] == "ct"
    with pytest.raises(ValueError, match="give one of them"):
        study_cases(tmp_path, datalist=ENTRIES, image="ct.nii.gz")
    with pytest.raises(ValueError, match="no case"):
        study_cases(tmp_path)


def test_phantoms_are_written_once(tmp_path):
    (case,) = phantom_cases(tmp_path, [7], shape=(32, 32, 8))
    assert case["case"] == "phantom_7"
    assert nib.load(case["image"]).shape == (32, 32, 8)
    before = file_digest(case["image"])
    (tmp_path / "phantom_7" / "inputs" / "ct.nii.gz").write_bytes(b"mine")
    phantom_cases(tmp_path, [7], shape=(32, 32, 8))
    assert file_digest(case["image"]) != before  # not written again
    with pytest.raises(ValueError, match="twice"):
        phantom_cases(tmp_path, [7, 7], shape=(32, 32, 8))


def explainer(network, **options):
    inferer = SlidingWindowInferer((8, 8, 8), options.pop("sw_batch_size", 2), options.pop("overlap", 0.5))
    return KernelSHAPd("image", network, inferer, **options)


def test_a_description_is_plain_and_tells_what_changed(make_network):
    network = make_network("conv")
    now = describe(explainer(network, budget=70))
    assert json.loads(json.dumps(now)) == now
    assert changed_settings(now, describe(explainer(network, budget=70))) == []
    for options, sentence in (
        ({"budget": 80}, "explainer.settings.budget was 70, is 80"),
        ({"budget": 70, "overlap": 0.25}, "explainer.settings.inferer.overlap was 0.5, is 0.25"),
        ({"budget": 70, "tolerance": None}, "explainer.settings.tolerance was 0.2, is None"),
    ):
        assert changed_settings(now, describe(explainer(network, **options))) == [sentence]
    (other,) = changed_settings(now, describe(explainer(make_network("conv", seed=1), budget=70)))
    assert other.startswith("explainer.settings.network.weights was ")


def test_what_changes_no_number_is_left_out(make_network):
    network = make_network("conv")
    options = {"store_dir": "elsewhere", "progress": False, "batch_size": 8, "max_bytes": 5, "sw_batch_size": 4}
    assert changed_settings(describe(explainer(network)), describe(explainer(network, **options))) == []


def test_an_inferer_that_has_run_is_the_same(make_network):
    network, inferer = (
        make_network("conv"),
        SlidingWindowInferer((8, 8, 8), 2, mode="gaussian", cache_roi_weight_map=True),
    )
    before = describe(inferer)
    with torch.no_grad():
        inferer(torch.zeros(1, 1, 12, 12, 12), network)
    assert changed_settings(before, describe(inferer)) == []


def test_transforms_arrays_and_functions_are_told_apart():
    assert describe(HybridUnitsd("organs", scale_mm=40.0))["transform"]["scale_mm"] == 40.0
    assert describe(ScaleIntensityRange(-1000, 1000, 0, 1)) != describe(ScaleIntensityRange(-1000, 900, 0, 1))
    assert describe(np.zeros(3)) != describe(np.ones(3))
    assert describe(lambda x: x + 1) != describe(lambda x: x + 2)
    assert describe(range(3)) == [0, 1, 2]
    assert changed_settings({"a": [1, 2]}, {"b": 3}) == ["a was [1, 2], is absent", "b was absent, is 3"]


def test_a_folder_is_known_by_names_and_content(tmp_path):
    (tmp_path / "spleen.nii.gz").write_bytes(b"1")
    before = file_digest(tmp_path)
    (tmp_path / "spleen.nii.gz").rename(tmp_path / "liver.nii.gz")
    assert file_digest(tmp_path) != before
