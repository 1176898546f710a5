# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Labels on the grid of the file brought to the image's, and the deployed model's own label map on the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd, SpatialCropd

from monai_segshap.explainers import Explanation
from monai_segshap.transforms import (
    KernelSHAPd,
    LoadOrgansd,
    MatchGridd,
    OrganUnitsd,
    PredictLogitsd,
    SaveExplanationd,
    SelectRegiond,
)
from monai_segshap.units import Partition

AFFINE = np.array([[-2.0, 0, 0, 60], [0, 2.0, 0, -40], [0, 0, 4.0, -30], [0, 0, 0, 1]])
SHAPE = (24, 18, 10)
START, END = (5, 3, 2), (21, 17, 9)
#: What preprocessing does to the image, and alone to the image.
SPATIAL: dict[str, list[Any]] = {
    "as it is": [],
    "cropped": [SpatialCropd("image", roi_start=START, roi_end=END)],
    "flipped": [Orientationd("image", "RPI", labels=None)],
    "permuted": [Orientationd("image", "SLA", labels=None)],
    "cropped and permuted": [
        SpatialCropd("image", roi_start=START, roi_end=END),
        Orientationd("image", "ILP", labels=None),
    ],
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    rng = np.random.default_rng(0)
    organs = rng.integers(0, 5, SHAPE).astype(np.int16)
    ct = rng.normal(size=SHAPE).astype(np.float32)
    ct[8:14, 6:12, 3:7] += 4
    found = {"image": ct, "organs": organs}
    for name, volume in found.items():
        nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / f"{name}.nii.gz")
    return {name: str(tmp_path / f"{name}.nii.gz") for name in found}


def load(files: dict[str, str], spatial: list[Any], **options: Any) -> dict[Any, Any]:
    steps = [LoadImaged("image"), EnsureChannelFirstd("image"), *spatial, LoadOrgansd("organs")]
    return Compose([*steps, MatchGridd("organs", **options)])(dict(files))


def by_position(image: MetaTensor, organs: np.ndarray) -> np.ndarray:
    """Label of each voxel of the image: that of the nearest voxel of the file, one voxel at a time."""
    found = np.zeros(image.shape[1:], dtype=int)
    back = np.linalg.inv(AFFINE)
    for index in np.ndindex(*found.shape):
        place = back @ np.asarray(image.affine, dtype=float) @ [*index, 1]
        nearest = np.floor(np.round(place[:3], 6) + 0.5).astype(int)
        if ((nearest >= 0) & (nearest < organs.shape)).all():
            found[index] = organs[tuple(nearest)]
    return found


@pytest.mark.parametrize("name", SPATIAL)
def test_labels_of_the_file_follow_the_image(name, files):
    case = load(files, SPATIAL[name], of_file=True)
    organs = nib.load(files["organs"]).get_fdata().astype(int)
    assert case["organs"].shape == case["image"].shape
    np.testing.assert_allclose(case["organs"].affine, case["image"].affine, atol=1e-6)
    found = case["organs"][0].numpy().astype(int)
    np.testing.assert_array_equal(found, by_position(case["image"], organs))
    # turned and cut, no label is lost or invented
    inside = organs[tuple(slice(a, b) for a, b in zip(START, END, strict=True))] if "cropped" in name else organs
    np.testing.assert_array_equal(np.bincount(found.ravel()), np.bincount(inside.ravel()))


@pytest.mark.parametrize("spacing", [(3.0, 2.5, 5.0), (1.1, 1.3, 2.7)], ids=["coarse", "fine"])
def test_labels_of_the_file_follow_a_resampled_image(spacing, files):
    case = load(files, [Spacingd("image", spacing)], of_file=True)
    organs = nib.load(files["organs"]).get_fdata().astype(int)
    expected = by_position(case["image"], organs)
    assert case["organs"].shape == case["image"].shape != (1, *SHAPE)
    assert (case["organs"][0].numpy() == expected).mean() == 1.0


@pytest.mark.parametrize("name", [n for n in SPATIAL if n != "as it is"])
def test_without_of_file_the_same_labels_are_refused(name, files):
    with pytest.raises(RuntimeError) as caught:
        load(files, SPATIAL[name])
    assert "'organs' and 'image' lie on different grids" in str(caught.value.__cause__)


def test_labels_on_the_preprocessed_grid_are_refused_with_of_file(files):
    # the file's grid is promised, another one may be a mistake even if it is the image's
    case = load(files, SPATIAL["cropped"], of_file=True)
    with pytest.raises(ValueError, match=r"different grids.*shape \(16, 14, 7\).*shape \(24, 18, 10\)"):
        MatchGridd("organs", of_file=True)(case)
    kept = MatchGridd("organs", of_file=True, resample=True)(case)["organs"]
    assert torch.equal(torch.as_tensor(kept), torch.as_tensor(case["organs"]))


def test_labels_on_another_grid_are_refused_with_both_unless_resampling_is_asked_for(files, tmp_path):
    organs = nib.load(files["organs"])
    moved = organs.affine.copy()
    moved[0, 3] += 4.0  # two voxels
    files["organs"] = str(tmp_path / "moved.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(organs.dataobj), moved), files["organs"])
    with pytest.raises(RuntimeError) as caught:
        load(files, SPATIAL["cropped"], of_file=True)
    message = str(caught.value.__cause__)
    assert "different grids" in message
    assert "64.0" in message
    assert "60.0" in message  # both origins
    assert "[[-2.0, 0.0, 0.0, 50.0]" not in message  # and not that of the cropped image
    assert "--resample_organs True" in message
    found = load(files, SPATIAL["cropped"], of_file=True, resample=True)["organs"]
    expected = np.roll(np.asarray(organs.dataobj), -2, axis=0)[tuple(map(slice, START, END))]
    assert tuple(found.shape[1:]) == expected.shape
    # the labels moved by two voxels to the left: voxel i of the image is voxel i + 2 of the label file
    np.testing.assert_array_equal(found[0].numpy(), expected)


def test_grids_within_the_tolerance_are_the_files(files, tmp_path):
    organs = nib.load(files["organs"])
    near = organs.affine.copy()
    near[0, 3] += 0.05
    files["organs"] = str(tmp_path / "near.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(organs.dataobj), near), files["organs"])
    case = load(files, SPATIAL["cropped"], of_file=True)
    np.testing.assert_array_equal(case["organs"][0].numpy(), np.asarray(organs.dataobj)[tuple(map(slice, START, END))])
    with pytest.raises(RuntimeError):
        load(files, SPATIAL["cropped"], of_file=True, tolerance_mm=0.01)


@pytest.mark.parametrize("name", ["as it is", "cropped and permuted"])
def test_names_of_a_folder_of_masks_survive(name, files, tmp_path):
    organs = np.asarray(nib.load(files["organs"]).dataobj)
    folder = tmp_path / "masks"
    folder.mkdir()
    for number, organ in enumerate(["aorta", "liver", "spleen"], start=1):
        nib.save(nib.Nifti1Image((organs == number).astype(np.uint8), AFFINE), folder / f"{organ}.nii.gz")
    case = load({**files, "organs": str(folder)}, SPATIAL[name], of_file=True)
    partition = Partition.from_metatensor(OrganUnitsd("organs")(case)["units"])
    assert list(partition.names) == ["aorta", "liver", "spleen"]
    counts = np.bincount(by_position(case["image"], np.where(organs < 4, organs, 0)).ravel())
    assert np.bincount(partition.labels.ravel()).tolist() == counts.tolist()


def test_an_image_without_a_file_counts_as_its_own(files):
    plain = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.eye(4))
    labels = MetaTensor(torch.ones(1, 4, 4, 4), affine=torch.eye(4))
    assert MatchGridd("organs", of_file=True)({"image": plain, "organs": labels})["organs"] is labels


# --- the deployed model's own label map ---


class Bright(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = torch.nn.AvgPool3d(3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.pool(x) - 2 + x.mean(dim=(2, 3, 4), keepdim=True)
        return torch.cat([-z, z], dim=1)


def explained(files: dict[str, str], out: Path, exported: Any, **options: Any) -> Explanation:
    network, inferer = Bright(), SlidingWindowInferer((8, 8, 6), overlap=0.5)
    case = load(files, SPATIAL["cropped and permuted"], of_file=True)
    key = options.get("exported_key", "exported")
    if exported is not None:
        case[key] = exported
    for step in (
        PredictLogitsd("image", network, inferer),
        SelectRegiond("pred", 1, inferer=inferer),
        OrganUnitsd("organs"),
        KernelSHAPd("image", network, inferer, progress=False, scores=("tp",), **options),
        SaveExplanationd("explanations", out, overview=False, print_table=False),
    ):
        case = step(case)
    return case["explanations"][0]


def test_the_label_map_of_the_deployed_model_is_written_as_it_is(files, tmp_path):
    exported = np.random.default_rng(3).integers(0, 7, SHAPE)
    found = explained(files, tmp_path / "out", exported)
    written = nib.load(tmp_path / "out" / "image" / "prediction.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), exported)
    np.testing.assert_array_equal(written.affine, AFFINE)
    assert written.get_data_dtype() == np.uint8
    # the explanation itself still speaks of the network's own prediction
    assert set(np.unique(found.prediction)) == {0, 1}
    units = nib.load(tmp_path / "out" / "image" / "units.nii.gz")
    assert units.shape == written.shape


def test_without_one_the_prediction_goes_back_to_the_file_by_nearest_neighbor(files, tmp_path):
    found = explained(files, tmp_path / "out", None)
    written = np.asarray(nib.load(tmp_path / "out" / "image" / "prediction.nii.gz").dataobj)
    expected = found.on_file_grid(found.prediction)
    np.testing.assert_array_equal(written, expected)
    assert written[8:14, 6:12, 3:7].mean() > 0.3
    assert written[: START[0]].sum() == 0


def test_another_key_and_large_numbers_are_possible(files, tmp_path):
    exported = np.full(SHAPE, 300, dtype=np.uint16)
    explained(files, tmp_path / "out", exported, exported_key="written")
    written = nib.load(tmp_path / "out" / "image" / "prediction.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), exported)


def test_the_record_does_not_depend_on_the_label_map(files, tmp_path):
    exported = np.random.default_rng(3).integers(0, 7, SHAPE)
    explained(files, tmp_path / "a", exported)
    explained(files, tmp_path / "b", None)
    first, second = (json.loads((tmp_path / name / "image" / "explanation.json").read_text()) for name in ("a", "b"))
    for record in (first, second):
        record.pop("seconds")
        record["execution"] = None
    assert first == second


def test_a_label_map_on_another_grid_than_the_files_is_refused(files, tmp_path):
    with pytest.raises(ValueError, match="shape"):
        explained(files, tmp_path / "out", np.zeros((3, 4, 5), dtype=np.uint8))
