# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from monai_segshap.phantoms import CLASS_NAMES, ORGAN_NAMES, TorsoPhantom, torso_phantom

SMALL = {"shape": (64, 64, 16)}
NUMBER = {name: number for number, name in ORGAN_NAMES.items()}
VESSELS = [NUMBER[name] for name in ("aorta", "inferior_vena_cava", "iliac_vessels")]


@pytest.fixture(scope="module", params=[0, 1, 2])
def case(request) -> TorsoPhantom:
    return torso_phantom(seed=request.param)


@pytest.fixture(scope="module")
def oblique() -> TorsoPhantom:
    return torso_phantom(seed=4, oblique_degrees=12.0)


def centre_ras(case: TorsoPhantom, organ: str) -> np.ndarray:
    """Center of mass of an organ in RAS mm."""
    index = np.argwhere(case.organs == NUMBER[organ]).mean(0)
    return case.affine[:3, :3] @ index + case.affine[:3, 3]


def depth_mm(mask: np.ndarray, case: TorsoPhantom) -> np.ndarray:
    """Distance in mm of every voxel from a mask."""
    return ndimage.distance_transform_edt(~mask, sampling=np.linalg.norm(case.affine[:3, :3], axis=0))


def test_types_and_ranges(case):
    assert case.image.dtype == np.float32
    assert case.organs.dtype == case.targets.dtype == np.uint8
    assert case.affine.dtype == np.float64
    assert case.image.shape == case.organs.shape == case.targets.shape == (160, 128, 40)
    assert case.image.min() >= -1024
    assert case.image.max() <= 3071
    np.testing.assert_array_equal(case.image, np.rint(case.image))
    np.testing.assert_array_equal(case.affine, case.affine.astype(np.float32))


def test_every_organ_is_there_and_named(case):
    assert len(ORGAN_NAMES) >= 12
    present = set(np.unique(case.organs)) - {0}
    assert present == set(ORGAN_NAMES)


def test_targets_follow_the_organs(case):
    assert CLASS_NAMES == ("background", "spleen", "lymph_node")
    np.testing.assert_array_equal(case.targets == 1, case.organs == NUMBER["spleen"])
    np.testing.assert_array_equal(case.targets == 2, case.organs == NUMBER["lymph_nodes"])


def test_equal_arguments_give_equal_arrays():
    one, two, other = torso_phantom(5, **SMALL), torso_phantom(5, **SMALL), torso_phantom(6, **SMALL)
    for name in ("image", "organs", "targets", "affine"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert (one.nodules, one.mimics) == (two.nodules, two.mimics)
    assert (one.image != other.image).mean() > 0.5


def test_noise_changes_no_label():
    clean, noisy = torso_phantom(5, **SMALL, noise_hu=0.0), torso_phantom(5, **SMALL, noise_hu=25.0)
    np.testing.assert_array_equal(clean.organs, noisy.organs)
    difference = (noisy.image - clean.image)[clean.organs == NUMBER["muscle"]]
    assert abs(difference.mean()) < 3
    assert difference.std() == pytest.approx(25.0, rel=0.1)


@pytest.mark.parametrize(("seed", "degrees"), [(0, 0.0), (1, 0.0), (4, 12.0), (9, -20.0)])
def test_anatomy_is_right_in_patient_space(seed, degrees):
    phantom = torso_phantom(seed, oblique_degrees=degrees)
    right, anterior, superior = ({organ: centre_ras(phantom, organ)[axis] for organ in NUMBER} for axis in range(3))
    assert right["liver"] > right["vertebrae"] + 15
    assert right["spleen"] < right["vertebrae"] - 30
    assert right["lung_right"] > right["heart"] > right["lung_left"]
    assert right["kidney_right"] > right["inferior_vena_cava"] > right["aorta"] > right["kidney_left"]
    for organ in ("liver", "aorta", "kidney_left", "heart", "bowel", "pancreas"):
        assert anterior["vertebrae"] < anterior[organ]
    assert superior["heart"] > superior["liver"] > superior["kidney_right"] > superior["iliac_vessels"]
    assert superior["lung_left"] > superior["spleen"] > superior["bowel"]


def test_affine_is_a_real_one(case, oblique):
    assert nib.aff2axcodes(case.affine) == ("L", "P", "S")
    np.testing.assert_allclose(np.diag(case.affine), (-1.5, -1.5, 5.0, 1.0))
    assert np.all(np.abs(case.affine[:3, 3]) > 1)
    matrix = oblique.affine[:3, :3]
    assert np.count_nonzero(np.abs(matrix) > 1e-3) > 3
    np.testing.assert_allclose(matrix.T @ matrix, np.diag([1.5**2, 1.5**2, 25.0]), atol=1e-4)
    assert nib.aff2axcodes(oblique.affine) == ("L", "P", "S")


def test_tissue_has_plausible_ct_numbers(case):
    median = {name: np.median(case.image[case.organs == number]) for number, name in ORGAN_NAMES.items()}
    assert -900 < median["lung_left"] < -700
    assert 150 < median["vertebrae"] < 450
    for organ in ("liver", "spleen", "muscle", "kidney_left", "pancreas"):
        assert 15 < median[organ] < 200
    assert case.image[0, 0].mean() < -950


@pytest.mark.parametrize("seed", range(12))
def test_nodules_lie_along_vessels(seed):
    case = torso_phantom(seed)
    assert 3 <= len(case.nodules) <= 7
    vessel = depth_mm(np.isin(case.organs, VESSELS), case)
    for nodule in case.nodules:
        assert case.targets[nodule.centre_ijk] == 2
        assert 3.0 <= nodule.radius_mm <= 12.6
        assert vessel[nodule.centre_ijk] < nodule.radius_mm + 9
        assert nodule.vessel in {"aorta", "inferior_vena_cava", "iliac_right", "iliac_left"}
        assert -20 < case.image[nodule.centre_ijk] < 110


def test_mimics_are_no_nodules(case):
    vessel = depth_mm(np.isin(case.organs, VESSELS), case)
    kinds = {mimic.kind for mimic in case.mimics}
    assert kinds == {"bowel_loop", "vessel_cross_section"}
    for mimic in case.mimics:
        organ = "bowel" if mimic.kind == "bowel_loop" else "vessel_branches"
        assert case.targets[mimic.centre_ijk] == 0
        assert case.organs[mimic.centre_ijk] == NUMBER[organ]
        assert vessel[mimic.centre_ijk] < 20 or mimic.kind == "bowel_loop"
        assert vessel[mimic.centre_ijk] > 15 or mimic.kind == "vessel_cross_section"


def test_edges_have_partial_volume():
    case = torso_phantom(0, noise_hu=0.0)
    kidney = case.organs == NUMBER["kidney_left"]
    rim = ndimage.binary_dilation(kidney) & (case.organs == 0)
    inside = case.image[ndimage.binary_erosion(kidney, iterations=3)].mean()
    between = (case.image[rim] > -70) & (case.image[rim] < inside - 40)
    assert between.mean() > 0.3


@pytest.mark.parametrize(
    ("shape", "spacing"), [((64, 64, 16), (1.5, 1.5, 5.0)), ((33, 47, 9), (4.0, 3.0, 10.0)), ((96, 80, 24), (3, 3, 3))]
)
@pytest.mark.parametrize("seed", [0, 7, 11])
def test_other_grids(shape, spacing, seed):
    case = torso_phantom(seed, shape=shape, spacing_mm=spacing)
    assert case.image.shape == shape
    np.testing.assert_allclose(np.linalg.norm(case.affine[:3, :3], axis=0), spacing, rtol=1e-6)
    assert np.isfinite(case.image).all()
    assert set(np.unique(case.targets)) == {0, 1, 2}
    assert len(case.nodules) >= 3
    assert all(case.targets[nodule.centre_ijk] == 2 for nodule in case.nodules)
    assert centre_ras(case, "liver")[0] > centre_ras(case, "spleen")[0]


def test_anatomy_does_not_depend_on_the_grid():
    coarse, fine = torso_phantom(3, (80, 64, 20), (3.0, 3.0, 10.0)), torso_phantom(3)
    for organ in ("liver", "spleen", "heart", "vertebrae"):
        np.testing.assert_allclose(centre_ras(coarse, organ), centre_ras(fine, organ), atol=3.0)


def test_write(tmp_path):
    case = torso_phantom(2, **SMALL, oblique_degrees=-7.0)
    paths = case.write(tmp_path / "new" / "folder")
    assert {key: path.name for key, path in paths.items()} == {
        "image": "ct.nii.gz",
        "organs": "organs.nii.gz",
        "targets": "targets.nii.gz",
        "organ_names": "organ_names.json",
    }
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in paths.values())
    for key, dtype in (("image", np.int16), ("organs", np.uint8), ("targets", np.uint8)):
        nifti = nib.load(paths[key])
        assert nifti.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asanyarray(nifti.dataobj), getattr(case, key))
        np.testing.assert_array_equal(nifti.affine, case.affine)
        np.testing.assert_allclose(nifti.get_qform(), case.affine, atol=1e-3)
    names = json.loads(paths["organ_names"].read_text(encoding="utf-8"))
    assert names == {str(number): name for number, name in ORGAN_NAMES.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"shape": (64, 64)}, "shape must be three whole numbers"),
        ({"shape": (64, 64, 4)}, r"at least \(32, 32, 8\)"),
        ({"shape": (64.0, 64, 16)}, "shape must be three whole numbers"),
        ({"spacing_mm": (1.5, 0.0, 5.0)}, "spacing_mm must be three positive lengths"),
        ({"spacing_mm": (1.5, float("nan"), 5.0)}, "spacing_mm must be three positive lengths"),
        ({"oblique_degrees": 45.0}, "oblique_degrees must be within -30 to 30"),
        ({"noise_hu": -1.0}, "noise_hu must be a standard deviation >= 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        torso_phantom(**arguments)
