# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Cases by name, and the organs that belong to them."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd

from monai_segshap.transforms import CaseOrgansd, carried_organ_names, file_of_case, name_of_case

AFFINE = np.diag([-2.0, 2.0, 4.0, 1.0])
SHAPE = (8, 6, 4)


def image(meta=None):
    return MetaTensor(torch.zeros(1, *SHAPE), meta=meta or {})


def test_names_come_from_the_entry_then_the_file_then_nowhere():
    loaded = image({"filename_or_obj": "scans/anna_0000.nii.gz"})
    assert name_of_case({"image": loaded, "case": "one"}) == "one"
    assert name_of_case({"image": loaded}) == "anna"
    assert name_of_case({"image": image()}) == name_of_case({"image": torch.zeros(1)}) == name_of_case({}) == "case"
    assert name_of_case({"ct": loaded}, image_key="ct") == "anna"
    assert file_of_case(loaded) == "scans/anna_0000.nii.gz"
    assert file_of_case(image({"filename_or_obj": ["a.nii", "b.nii"]})) == "a.nii"
    assert file_of_case(torch.zeros(1)) is None


@pytest.fixture
def case(tmp_path):
    """An image, turned and with thinner slices than its file."""
    path = tmp_path / "anna.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), AFFINE), path)
    to_tensor = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (2.0, 2.0, 2.0)),
        ]
    )
    return to_tensor({"image": str(path)})


def labels():
    volume = np.zeros(SHAPE, dtype=np.uint8)
    volume[:3], volume[5:, :2] = 1, 2
    return volume


def test_organs_are_brought_to_the_grid_of_the_preprocessed_image(case, tmp_path):
    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "anna_organs.nii.gz")
    found = CaseOrgansd("organs", tmp_path / "{case}_organs.nii.gz")(case)["organs"]
    assert found.shape == case["image"].shape == (1, 8, 6, 7)
    np.testing.assert_allclose(found.affine, case["image"].affine)
    turned = labels()[::-1]
    for k in range(0, 7, 2):  # every second slice is one of the file
        np.testing.assert_array_equal(found[0, :, :, k].numpy(), turned[:, :, k // 2])


def test_a_folder_of_masks_for_each_case(case, tmp_path):
    folder = tmp_path / "masks" / "anna"
    folder.mkdir(parents=True)
    for number, name in enumerate(("liver", "spleen"), start=1):
        nib.save(nib.Nifti1Image((labels() == number).astype(np.uint8), AFFINE), folder / f"{name}.nii.gz")
    found = CaseOrgansd(path=str(tmp_path / "masks" / "{case}"))(case)["organs"]
    assert carried_organ_names(found) == {1: "liver", 2: "spleen"}
    assert set(np.unique(found.numpy())) == {0, 1, 2}


def test_without_a_path_nothing_is_done_and_one_path_serves_all(case, tmp_path):
    assert CaseOrgansd()({**case, "organs": "kept"})["organs"] == "kept"
    assert "organs" not in CaseOrgansd()(case)
    nib.save(nib.Nifti1Image(labels(), AFFINE), tmp_path / "atlas.nii.gz")
    assert CaseOrgansd(path=tmp_path / "atlas.nii.gz")(case)["organs"].shape == case["image"].shape


def test_what_is_missing_or_lies_elsewhere_is_named(case, tmp_path):
    with pytest.raises(ValueError, match=r"organs of case 'anna' are expected in .*anna\.nii, which does not exist\.$"):
        CaseOrgansd(path=tmp_path / "organs" / "{case}.nii")(case)
    with pytest.raises(ValueError, match=r'does not exist\. Write "\{case\}" where the name of the case belongs'):
        CaseOrgansd(path=tmp_path / "organs.nii")(case)
    other = np.diag([-2.0, 2.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image(labels(), other), tmp_path / "other.nii.gz")
    with pytest.raises(ValueError, match="lie on different grids"):
        CaseOrgansd(path=tmp_path / "other.nii.gz")(case)
    assert CaseOrgansd(path=tmp_path / "other.nii.gz", resample=True)(case)["organs"].max() > 0
    with pytest.raises(ValueError, match=r"got keys \('a', 'b'\); expected one"):
        CaseOrgansd(["a", "b"])
