# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Multi-contrast cases from folders and data lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_segshap.units import read_contrast_cases

NAMES = ("t1n", "t1c", "t2w", "t2f")
YEARS = {
    "2023": ("BraTS-GLI-00005-100", ["-t1n", "-t1c", "-t2w", "-t2f", "-seg"]),
    "2021": ("BraTS2021_00005", ["_t1", "_t1ce", "_t2", "_flair", "_seg"]),
}


def make_case(home: Path, year: str = "2023", endings: list[str] | None = None) -> list[str]:
    """Empty files of one case; in the order of NAMES, and the label last."""
    name, all_endings = YEARS[year]
    folder = home / name
    folder.mkdir(parents=True)
    files = [folder / f"{name}{ending}.nii.gz" for ending in endings or all_endings]
    for file in files:
        file.touch()
    return [str(file) for file in files]


@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 3, 2)])
def test_a_folder_of_cases_and_a_single_case(year, order, tmp_path):
    files = make_case(tmp_path, year)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    names = [NAMES[n] for n in order]
    expected = {"image": [files[n] for n in order], "label": files[4], "case": YEARS[year][0]}
    assert read_contrast_cases(tmp_path, names) == [expected]
    assert read_contrast_cases(str(Path(files[0]).parent), names) == [expected]


def test_other_images_of_a_case_and_an_absent_ground_truth(tmp_path):
    files = make_case(tmp_path, endings=["-t1n", "-t1c", "-t2w", "-t2f", "-adc"])
    assert read_contrast_cases(tmp_path, NAMES) == [{"image": files[:4], "case": YEARS["2023"][0]}]


def test_every_form_of_a_data_list_is_the_same_case(tmp_path):
    files = make_case(tmp_path)
    short = [str(Path(file).relative_to(tmp_path)) for file in files]
    name = YEARS["2023"][0]
    by_name = {"T1CE": short[1], "t1": short[0], "FLAIR": short[3], "T2": short[2]}
    lists = {
        "list.json": json.dumps([{"image": short[:4], "label": short[4], "age": 40}]),
        "monai.json": json.dumps({"testing": [{"image": by_name, "label": short[4], "age": 40}]}),
        "folder.json": json.dumps([{"image": name, "age": 40}]),
    }
    expected = {"image": files[:4], "label": files[4], "case": name, "age": 40}
    for file, text in lists.items():
        (tmp_path / file).write_text(text)
        assert read_contrast_cases(tmp_path / file, NAMES) == [expected], file
    (tmp_path / "table.csv").write_text(
        f"age,flair,t1,t1ce,t2,label\n40,{short[3]},{short[0]},{short[1]},{short[2]},{short[4]}\n"
    )
    assert read_contrast_cases(tmp_path / "table.csv", NAMES) == [{**expected, "age": "40"}]
    direct = [{"image": files[:4], "label": files[4], "age": 40, "case": "mine"}]
    assert read_contrast_cases(direct, NAMES) == [{**expected, "case": "mine"}]


def test_one_file_with_all_channels_and_an_empty_label(tmp_path):
    (tmp_path / "table.csv").write_text("image,label\nall.nii.gz,\n")
    expected = [{"image": str(tmp_path / "all.nii.gz"), "case": "all"}]
    assert read_contrast_cases(tmp_path / "table.csv", NAMES) == expected


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["p1-t1n.nii", "p1-t1c.nii"], "p1"),
        (["p/t1n.nii", "p/t1c.nii"], "p"),
        (["p/sub-07_ses-1_T1w.nii.gz", "p/sub-07_ses-1_T2w.nii.gz"], "sub-07_ses-1"),
        (["a_0000.nii.gz", "a_0001.nii.gz"], "a"),
    ],
)
def test_names_of_cases_are_what_their_files_share(files, name):
    assert read_contrast_cases([{"image": files}], ("x", "y"))[0]["case"] == name


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="has no images"):
        read_contrast_cases(tmp_path, NAMES)
    make_case(tmp_path, endings=["-t1n", "-t1c", "-t2w"])
    with pytest.raises(ValueError, match=r"BraTS-GLI-00005-100: .*missing \['t2f'\]"):
        read_contrast_cases(tmp_path, NAMES)
    make_case(tmp_path / "b", endings=["-t1n", "-t1c", "-t2w", "-t2f", "-flair"])
    with pytest.raises(ValueError, match="several for one contrast"):
        read_contrast_cases(tmp_path / "b", NAMES)
    make_case(tmp_path / "c", endings=["-t1n", "-t1c", "-t2w", "-t2f", "-seg", "-mask"])
    with pytest.raises(ValueError, match="several files that may be the ground truth"):
        read_contrast_cases(tmp_path / "c", NAMES)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"label": "a.nii"}], r"entry 0 of the data list given has no images; expected 'image', or t1n, t1c"),
        ([{"image": {"t1": "a", "t2": "b"}}], "has images of t1, t2; expected one of each"),
        ([{"image": {"t1": "a", "t1n": "b", "t2": "c", "flair": "d"}}], "expected one of each"),
        ([{"t1n": "a", "t1c": "b", "t2w": "c"}], "has images of t1n, t1c, t2w; expected"),
        ([{"image": "x.nii"}, {"image": "y/x.nii"}], "several cases are named x"),
        ([], "no list of cases"),
    ],
)
def test_bad_lists_of_contrasts_are_named(entries, message):
    with pytest.raises(ValueError, match=message):
        read_contrast_cases(entries, NAMES)
