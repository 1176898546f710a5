# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Contrasts from files to tables inside a MONAI Compose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, LoadImaged, NormalizeIntensityd

from monai_segshap.explainers import ContrastShapleyExplainer, tumor_sub_regions
from monai_segshap.transforms import CheckContrastFilesd, ContrastShapleyd, SaveContrastsd

NAMES = ("t1c", "t1n", "t2w", "t2f")
OLD = ("t1ce", "t1", "t2", "flair")
SHAPE = (12, 10, 9)
INFERER = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.25}


@pytest.fixture(scope="module")
def network(make_network):
    return make_network("conv", in_channels=4)


@pytest.fixture
def case(tmp_path) -> dict:
    """Four files with the names of 2021 and a label map, on an affine of their own."""
    rng, affine = np.random.default_rng(0), np.diag([-1.0, 1.5, 2.0, 1.0])

    def save(name: str, volume: np.ndarray) -> str:
        nib.save(nib.Nifti1Image(volume, affine), tmp_path / name)
        return str(tmp_path / name)

    volumes = rng.integers(50, 200, (4, *SHAPE)).astype(np.float32)
    volumes[:, 8:] = 0
    files = [save(f"BraTS2021_00007_{name}.nii.gz", v) for name, v in zip(OLD, volumes, strict=True)]
    label = save("BraTS2021_00007_seg.nii.gz", rng.choice([0, 1, 2, 4], SHAPE).astype(np.uint8))
    return {"image": files, "label": label, "case": "BraTS2021_00007"}


def pipeline(network, output_dir: Path | None = None, **options) -> Compose:
    steps = [
        CheckContrastFilesd("image", NAMES),
        LoadImaged(["image", "label"], ensure_channel_first=True, image_only=True),
        NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        ContrastShapleyd(
            "image",
            network,
            SlidingWindowInferer(**INFERER),
            NAMES,
            tumor_sub_regions(label_values="2021"),
            progress=False,
            **options,
        ),
    ]
    return Compose([*steps, SaveContrastsd(output_dir=output_dir, print_table=False)] if output_dir else steps)


def test_a_case_from_files_to_files(network, case, tmp_path):
    made = pipeline([network, network], tmp_path / "out")(case)
    found = made["contrast_explanations"]
    explain = ContrastShapleyExplainer(
        network, SlidingWindowInferer(**INFERER), NAMES, tumor_sub_regions(label_values="2021"), progress=False
    )
    (expected,) = explain(made["image"], made["label"])
    assert [one.fold for one in found] == ["0", "1"]
    assert {one.case for one in found} == {"BraTS2021_00007"}
    for one in found:
        assert np.array_equal(one.values, expected.values)
        assert one.warnings == ()  # names were checked, and 0 is the background
    assert np.abs(expected.values).max() > 1e-3
    assert found[0].removal["contrasts"]["t2f"]["background"] == pytest.approx(1 / 3, abs=0.01)
    (files,) = made["explanation_files"]
    assert files["contrasts.json"] == tmp_path / "out" / "BraTS2021_00007" / "contrasts.json"
    assert len(json.loads(files["contrasts.json"].read_text())["folds"]) == 2


def test_files_in_the_wrong_order_stop_before_they_are_loaded(network, case):
    swapped = {**case, "image": case["image"][::-1]}
    with pytest.raises(ValueError, match="channel 0 should be t1c, but BraTS2021_00007_flair"):
        CheckContrastFilesd("image", NAMES)(swapped)
    with pytest.raises(ValueError, match="got 3 files"):
        CheckContrastFilesd("image", NAMES)({**case, "image": case["image"][:3]})
    shutil.rmtree(Path(case["label"]).parent)
    with pytest.raises(RuntimeError, match="CheckContrastFilesd"):  # not LoadImaged
        pipeline(network)(swapped)


def test_one_file_with_all_channels_is_taken_as_it_is(network, case):
    checked = CheckContrastFilesd("image", NAMES)({**case, "image": "all.nii.gz"})
    assert "contrast_files" not in checked
    assert CheckContrastFilesd("image", NAMES)(case)["contrast_files"] == case["image"]


def test_a_label_is_needed_only_by_scores_that_compare_with_it(network):
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(4, *SHAPE)).astype(np.float32))
    arguments = ("image", network, SlidingWindowInferer(**INFERER), NAMES, tumor_sub_regions())
    made = ContrastShapleyd(*arguments, scores=("dice",), progress=False, case="x")({"image": image})
    assert made["contrast_explanations"][0].case == "x"
    assert made["contrast_explanations"][0].truth_voxels is None
    with pytest.raises(ValueError, match="'dice_truth' needs a ground truth"):
        ContrastShapleyd(*arguments, progress=False)({"image": image})


def test_values_are_printed(network, case, tmp_path, capsys):
    explained = pipeline(network)(case)
    SaveContrastsd(output_dir=tmp_path / "out")(explained)
    assert "BraTS2021_00007: dice_truth" in capsys.readouterr().out
