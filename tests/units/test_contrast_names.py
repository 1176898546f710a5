# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Contrasts by name: groups of channels, names of several years, and files in the wrong order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_segshap.units import (
    Contrasts,
    canonical_contrast,
    check_contrast_sources,
    contrast_of_file,
    order_contrast_files,
)

FOUR = Contrasts.parse(["t1c", "t1n", "t2w", "t2f"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flair", "t2f"),
        ("FLAIR", "t2f"),
        ("T2-FLAIR", "t2f"),
        ("t2f", "t2f"),
        ("t1", "t1n"),
        ("T1w", "t1n"),
        ("t1ce", "t1c"),
        ("T1-Gd", "t1c"),
        ("t1gd", "t1c"),
        ("t2", "t2w"),
        ("ADC", "adc"),
    ],
)
def test_both_naming_schemes_and_others_are_one(name, expected):
    assert canonical_contrast(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BraTS2021_00000_flair.nii.gz", "t2f"),
        ("BraTS2021_00000_t1ce.nii.gz", "t1c"),
        ("BraTS-GLI-00000-000-t1n.nii.gz", "t1n"),
        ("folder_flair/BraTS-GLI-00000-000-t2w.nii.gz", "t2w"),
        ("case_T1_CE.nii", "t1c"),
        ("case_T2_FLAIR.mha", "t2f"),
        ("t1_study_t2.nii.gz", "t2w"),
        ("sub-01_ce-GD_T1w.nii.gz", "t1c"),
        ("sub-01_T1w.nii.gz", "t1n"),
        ("case_0000.nii.gz", None),
        ("BraTS2021_00000_seg.nii.gz", None),
        ("t2starmap.nii.gz", None),
        ("flair", "t2f"),
        ("", None),
    ],
)
def test_the_contrast_of_a_file_is_its_last_known_word(name, expected):
    assert contrast_of_file(name) == expected


def test_contrasts_of_other_names_are_known_by_them():
    assert contrast_of_file("case_adc.nii.gz") is None
    assert contrast_of_file("case_ADC.nii.gz", ["adc"]) == "adc"


def test_groups_of_channels_and_channels_of_no_group():
    found = Contrasts.parse({"T1": [0, 1], "T2": 3})
    assert (found.names, found.channels) == (("T1", "T2"), ((0, 1), (3,)))
    assert found.channel_names == ("", "", "", "T2")
    labels = found.labels((2, 3, 4))
    assert labels.shape == (4, 2, 3, 4)
    assert [int(v) for v in labels[:, 1, 2, 3]] == [1, 1, 0, 2]
    assert torch.equal(labels, labels[:, :1, :1, :1].expand_as(labels))
    named = Contrasts.parse({"T1": ["t1n", "t1ce"], "T2": ["flair"]}, ["t1c", "t1", "t2w", "t2f"])
    assert (named.channels, named.n_channels) == (((1, 0), (3,)), 4)
    assert Contrasts.parse(["flair", "t1"], ["t1n", "t2f", "extra"]).channels == ((1,), (0,))
    assert Contrasts.parse(named) is named
    assert named.describe() == "T1 = channels 1, 0, T2 = channel 3"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["t1", "t1n"], "t1, t1n name the same contrast"),
        (["t1ce", "flair", "T2-FLAIR"], "flair, T2-FLAIR name the same"),
        ([], "at least one contrast"),
        ("t1", "expected their names in the order"),
        ({"a": [0, 1], "b": 1}, "at most once"),
        ({"a": -1}, "at most once"),
        ({"a": []}, "one or more channels"),
        ({"a": "t1c"}, "none of the channel names"),
    ],
)
def test_contrasts_that_make_no_sense_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        Contrasts.parse(value)


def test_too_few_channel_names_are_refused():
    with pytest.raises(ValueError, match=r"got 1 channel names; the contrasts use channels up to 1"):
        Contrasts(("a", "b"), ((0,), (1,)), ("a",))


def test_another_number_of_channels_is_refused():
    FOUR.require_channels(4)
    with pytest.raises(ValueError, match=r"the image has 3 channels; the contrasts describe 4: t1c = channel 0"):
        FOUR.require_channels(3)


def files(*names: str) -> list[str]:
    return [f"folder/BraTS2021_00000_{name}.nii.gz" for name in names]


def test_files_of_either_scheme_in_the_right_order_agree():
    expected = ("t1c", "t1n", "t2w", "t2f")
    assert check_contrast_sources(FOUR, files("t1ce", "t1", "t2", "flair")) == expected
    assert check_contrast_sources(FOUR, files("t1c", "t1n", "t2w", "t2f")) == expected
    old = Contrasts.parse(["t1ce", "t1", "t2", "flair"])
    assert check_contrast_sources(old, files("t1c", "t1n", "t2w", "t2f")) == expected
    assert check_contrast_sources(FOUR, {"3": "FLAIR", "0": "T1-Gd", "1": "T1", "2": "T2"}) == expected
    assert check_contrast_sources(FOUR, files("a", "b", "t2", "c")) == (None, None, "t2w", None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("t1", "t1ce", "t2", "flair"), "wrong order: channel 0 should be t1c, but BraTS2021_00000_t1.nii.gz is t1n"),
        (("t1ce", "t1", "t2", "t2"), "t2w occurs more than once; t2f is missing"),
        (("t1ce", "t1", "t2", "t1n"), "t1n occurs more than once; t2f is missing"),
        (("t1ce", "t1", "t2"), "got 3 files or channel names"),
        (("t1ce", "t1", "t2", "flair", "t1"), "got 5 files or channel names"),
    ],
)
def test_wrong_order_and_missing_or_repeated_contrasts_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        check_contrast_sources(FOUR, files(*names))


def test_repeated_files_for_channels_without_names_are_refused():
    grouped = Contrasts.parse({"T1": [0, 1], "rest": [2, 3]})
    assert check_contrast_sources(grouped, files("t1ce", "t1", "t2", "flair"))[0] == "t1c"
    with pytest.raises(ValueError, match="files repeat: t1n, t1n"):
        check_contrast_sources(grouped, files("t1", "t1", "t2", "flair"))


def test_numbers_of_nnunet_must_ascend():
    numbered = [f"case_{n:04d}.nii.gz" for n in range(4)]
    assert check_contrast_sources(FOUR, numbered) == (None,) * 4
    with pytest.raises(ValueError, match=r"numbered case_0001\.nii\.gz, case_0000\.nii\.gz"):
        check_contrast_sources(FOUR, [numbered[1], numbered[0], *numbered[2:]])
    check_contrast_sources(FOUR, ["a_0003.nii.gz", "b_0002.nii.gz", "c_0001.nii.gz", "d_0000.nii.gz"])  # case numbers


def test_files_are_brought_into_the_order_of_the_channels():
    shuffled = [Path(name) for name in files("flair", "t1", "t1ce", "t2")]
    assert order_contrast_files(FOUR, shuffled) == files("t1ce", "t1", "t2", "flair")
    for names, message in (
        (("flair", "t1", "t1ce"), r"missing \['t2w'\]"),
        (("flair", "t1", "t1ce", "t2", "t2w"), "BraTS2021_00000_t2w"),
        (("flair", "t1", "t1ce", "t2", "seg"), "of none of them .*seg"),
    ):
        with pytest.raises(ValueError, match=message):
            order_contrast_files(FOUR, files(*names))
