# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The phantom whose kidneys are told apart by the liver alone, and the network that was trained on it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from monai_segshap.phantoms import TWINS_CLASS_NAMES, TwinsPhantom, twins_phantom

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "torso_agg2exp"
LIVER, TWIN, OTHER, SPINE, AORTA = range(1, 6)
SEEDS = range(80)


@pytest.fixture(scope="module")
def cohort() -> list[TwinsPhantom]:
    return [twins_phantom(seed) for seed in SEEDS]


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask and the voxels that share a face, an edge or a corner with it: all that its edge mixes with."""
    return ndimage.binary_dilation(mask, np.ones((3, 3, 3)))


def side_of(case: TwinsPhantom, mask: np.ndarray) -> float:
    """Distance in mm of a mask's center from the spine's, positive towards the patient's right."""
    gap = np.argwhere(mask).mean(0) - np.argwhere(case.labels == SPINE).mean(0)
    return float((case.affine[:3, :3] @ gap)[0])


def own_look(case: TwinsPhantom, label: int) -> list[float]:
    """What a kidney is by itself: density, texture, size, shape and place, with the side folded away."""
    mask = case.labels == label
    index = np.argwhere(mask)
    spread = np.sort(np.linalg.eigvalsh(np.cov(index.T)))
    spine = np.argwhere(case.labels == SPINE).mean(0)
    middle = index.mean(0) - spine
    values = case.image[ndimage.binary_erosion(mask)]
    rim = case.image[ndimage.binary_dilation(mask) & (case.labels == 0)]
    aorta = side_of(case, case.labels == AORTA) * np.sign(side_of(case, mask))
    place = [abs(middle[0]), middle[1], index.mean(0)[2]]
    return [values.mean(), values.std(), rim.mean(), rim.std(), len(index), *spread, *place, aorta]


def test_types_ranges_and_names(cohort):
    assert TWINS_CLASS_NAMES == ("background", "liver", "kidney_liver_side", "kidney_other_side", "spine", "aorta")
    for case in cohort[:10]:
        assert case.image.dtype == np.float32
        assert case.labels.dtype == np.uint8
        assert case.pathology.dtype == bool
        assert case.image.shape == case.labels.shape == case.pathology.shape == (64, 48, 24)
        assert -1024 <= case.image.min() < -950
        assert 250 < case.image.max() <= 3071
        np.testing.assert_array_equal(case.image, np.rint(case.image))
        np.testing.assert_array_equal(np.unique(case.labels), range(6))


def test_equal_arguments_give_equal_arrays():
    one, two, other = twins_phantom(5, abnormal=True), twins_phantom(5, abnormal=True), twins_phantom(6, abnormal=True)
    for name in ("image", "labels", "pathology", "affine"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert (one.image != other.image).mean() > 0.5


def test_noise_changes_no_label():
    clean, noisy = twins_phantom(5, noise_hu=0.0), twins_phantom(5, noise_hu=25.0)
    np.testing.assert_array_equal(clean.labels, noisy.labels)
    difference = (noisy.image - clean.image)[clean.labels > 0]
    assert abs(difference.mean()) < 3
    assert difference.std() == pytest.approx(25.0, rel=0.1)


def test_anatomy_is_right_in_patient_space(cohort):
    for case in cohort:
        sign = 1 if case.liver_side == "right" else -1
        assert sign * side_of(case, case.labels == LIVER) > 25
        assert 35 < sign * side_of(case, case.labels == TWIN) < 60
        assert -60 < sign * side_of(case, case.labels == OTHER) < -35
        height = [
            float((case.affine[:3, :3] @ np.argwhere(case.labels == n).mean(0))[1]) for n in (SPINE, AORTA, LIVER)
        ]
        assert height == sorted(height)
        assert case.image[case.labels == SPINE].mean() > case.image[case.labels == LIVER].mean() + 60


def test_affine_is_a_real_one(cohort):
    affines = [case.affine for case in cohort[:5]]
    assert len({affine.tobytes() for affine in affines}) == 5
    for affine in affines:
        assert affine.dtype == np.float64
        assert nib.aff2axcodes(affine) == ("L", "P", "S")
        np.testing.assert_allclose(np.diag(affine), (-4, -4, 4, 1))
        assert np.all(np.abs(affine[:3, 3]) > 1)
        np.testing.assert_array_equal(affine, affine.astype(np.float32))


@pytest.mark.parametrize("seed", range(6))
def test_moving_the_liver_swaps_the_twins_and_nothing_else(seed):
    right, left = twins_phantom(seed, liver_side="right"), twins_phantom(seed, liver_side="left")
    livers = (right.labels == LIVER) | (left.labels == LIVER)
    far = ~grown(grown(livers))  # thin edges of a liver reach a voxel further
    assert far.mean() > 0.5
    np.testing.assert_array_equal(right.image[far], left.image[far])
    swap = np.array([0, LIVER, OTHER, TWIN, SPINE, AORTA])
    np.testing.assert_array_equal(swap[right.labels][~livers], left.labels[~livers])
    kidneys = np.isin(right.labels, (TWIN, OTHER))
    np.testing.assert_array_equal(right.image[kidneys], left.image[kidneys])
    drawn = twins_phantom(seed)
    np.testing.assert_array_equal(drawn.image, {"right": right, "left": left}[drawn.liver_side].image)


def test_the_liver_keeps_eight_millimeters_from_the_kidneys(cohort):
    for case in cohort[:20]:
        gap = ndimage.distance_transform_edt(case.labels != LIVER, sampling=4.0)
        assert gap[case.labels == TWIN].min() >= 8.0
        assert gap[case.labels == OTHER].min() > 30.0


def test_livers_lie_on_either_side(cohort):
    count = sum(case.liver_side == "right" for case in cohort)
    assert stats.binomtest(count, len(cohort)).pvalue > 0.01
    aorta = [side_of(c, c.labels == AORTA) * (1 if c.liver_side == "right" else -1) > 0 for c in cohort]
    assert stats.binomtest(sum(aorta), len(aorta)).pvalue > 0.01


def test_no_property_of_its_own_tells_a_twin(cohort):
    """Paired tests over seeds, corrected for their number; the density is told to within 2 HU."""
    looks = np.array([[own_look(case, label) for label in (TWIN, OTHER)] for case in cohort])
    difference = looks[:, 0] - looks[:, 1]
    p = stats.ttest_1samp(difference, 0.0).pvalue
    assert p.shape == (12,)
    assert p.min() > 0.05 / len(p)
    assert abs(difference[:, 0].mean()) < 2.0


def test_a_classifier_of_own_properties_guesses_and_one_of_the_liver_knows(cohort):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GroupKFold, cross_val_score

    own = np.array([own_look(case, label) for case in cohort for label in (TWIN, OTHER)])
    liver = [np.argwhere(case.labels == LIVER).mean(0) for case in cohort for _ in range(2)]
    kidney = [np.argwhere(case.labels == label).mean(0) for case in cohort for label in (TWIN, OTHER)]
    distance = np.linalg.norm(np.array(liver) - np.array(kidney), axis=1)[:, None]
    truth, groups = np.tile([0, 1], len(cohort)), np.repeat(np.arange(len(cohort)), 2)
    forest = RandomForestClassifier(50, random_state=0)
    scores = [cross_val_score(forest, x, truth, groups=groups, cv=GroupKFold(4)).mean() for x in (own, distance)]
    assert stats.binomtest(round(scores[0] * len(truth)), len(truth)).pvalue > 0.005
    assert scores[1] == 1.0


@pytest.mark.parametrize("seed", [2000, 2001, 2002, 2003])
def test_abnormality_lies_between_liver_and_kidney(seed):
    plain, case = twins_phantom(seed), twins_phantom(seed, abnormal=True)
    assert not plain.pathology.any()
    assert 200 < case.pathology.sum() < 900
    assert ndimage.label(case.pathology)[1] == 1
    assert not case.labels[case.pathology].any()
    near = ndimage.binary_dilation(case.pathology, iterations=3)
    assert {LIVER, TWIN} <= set(np.unique(case.labels[near]))
    assert OTHER not in np.unique(case.labels[near])
    outside = ~grown(case.pathology)
    np.testing.assert_array_equal(case.image[outside], plain.image[outside])
    np.testing.assert_array_equal(case.labels[~case.pathology], plain.labels[~case.pathology])
    assert np.percentile(case.image[case.pathology], 90) > 450
    assert np.percentile(case.image[case.pathology], 5) < 120


def test_write(tmp_path):
    case = twins_phantom(2, abnormal=True)
    paths = case.write(tmp_path / "new" / "folder")
    assert {key: path.name for key, path in paths.items()} == {
        "image": "ct.nii.gz",
        "organs": "organs.nii.gz",
        "pathology": "pathology.nii.gz",
        "organ_names": "organ_names.json",
    }
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in paths.values())
    stored = (
        ("image", np.int16, case.image),
        ("organs", np.uint8, case.labels),
        ("pathology", np.uint8, case.pathology),
    )
    for key, dtype, array in stored:
        nifti = nib.load(paths[key])
        assert nifti.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asanyarray(nifti.dataobj), array)
        np.testing.assert_array_equal(nifti.affine, case.affine)
        np.testing.assert_allclose(nifti.get_qform(), case.affine, atol=1e-3)
    names = json.loads(paths["organ_names"].read_text(encoding="utf-8"))
    assert names == {str(n): name for n, name in enumerate(TWINS_CLASS_NAMES) if n}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"liver_side": "up"}, "liver_side must be 'right', 'left' or None, got 'up'"),
        ({"noise_hu": -1.0}, "noise_hu must be a standard deviation >= 0"),
        ({"noise_hu": float("nan")}, "noise_hu must be a standard deviation >= 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        twins_phantom(**arguments)


@pytest.fixture(scope="module")
def planted():
    return runpy.run_path(str(BUNDLE / "scripts" / "planted.py"))


@pytest.fixture(scope="module")
def ask(planted):
    return planted["PlantedNeighbor"]()


def dice(prediction: np.ndarray, labels: np.ndarray, label: int) -> float:
    ours, truth = prediction == label, labels == label
    return float(2 * (ours & truth).sum() / (ours.sum() + truth.sum()))


def test_shipped_weights_reach_the_stated_dice(ask):
    recorded = json.loads((BUNDLE / "docs" / "evaluation.json").read_text(encoding="utf-8"))
    assert len(recorded["cases"]) == 30
    for twin in ("kidney_liver_side", "kidney_other_side"):
        assert recorded["dice"]["normal"][twin]["mean"] > 0.85
    for row in (recorded["cases"][0], recorded["cases"][-1]):
        case = twins_phantom(row["case"], abnormal=row["abnormal"])
        prediction = ask.predict(case.image)
        for label, name in enumerate(TWINS_CLASS_NAMES):
            if label:
                assert dice(prediction, case.labels, label) == pytest.approx(row[name], abs=0.01), name


def test_weights_are_small_and_plain():
    path = BUNDLE / "models" / "model.pt"
    assert path.stat().st_size < 2_000_000
    assert all(value.dtype == torch.float32 for value in torch.load(path, weights_only=True).values())


def test_metadata_names_the_classes():
    meta = json.loads((BUNDLE / "configs" / "metadata.json").read_text(encoding="utf-8"))
    outputs = meta["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {str(n): name for n, name in enumerate(TWINS_CLASS_NAMES)}
    assert outputs["num_channels"] == len(TWINS_CLASS_NAMES)
    assert meta["version"] in meta["changelog"]


def test_without_the_liver_its_kidney_becomes_the_other_one(planted, ask):
    found = planted["interventions"](ask, [1000])
    for organ in TWINS_CLASS_NAMES[1:]:
        assert found["unchanged"][organ] > 0.85
    gone = found["liver_to_fat"]
    assert gone["kidney_liver_side"] < 0.1
    assert gone["kidney_liver_side as kidney_other_side"] > 0.85
    for name in ("liver_to_fat", "liver_to_air"):
        for organ in ("kidney_other_side", "spine", "aorta"):
            assert found[name][organ] > 0.85, (name, organ)
    moved = found["liver_to_other_side"]
    assert moved["kidney_liver_side as kidney_other_side"] > 0.85
    assert moved["kidney_other_side as kidney_liver_side"] > 0.85
    for removed in ("kidney_liver_side", "kidney_other_side", "aorta"):
        for twin in {"kidney_liver_side", "kidney_other_side"} - {removed}:
            assert found[f"{removed}_to_fat"][twin] > 0.85, (removed, twin)


def test_gradients_of_the_twin_point_to_the_liver(planted, ask):
    tables = planted["importances"](ask, [(1000, False), (1001, False)], 0, 0.0)
    mass, enrichment = (tables[v].values.mean(0) for v in ("mass", "enrichment"))
    np.testing.assert_allclose(tables["mass"].values.sum(-1), 1.0, rtol=1e-9)
    for far in (OTHER, SPINE, AORTA):
        assert mass[TWIN, LIVER] > 3 * mass[TWIN, far]
        assert enrichment[TWIN, LIVER] > enrichment[TWIN, far]
    assert mass[TWIN, LIVER] > 2 * mass[SPINE, LIVER]


def test_network_follows_a_mirrored_image(ask):
    case = twins_phantom(1002)
    mirrored = ask.predict(case.image[::-1])[::-1]
    for label in (TWIN, OTHER):
        assert dice(mirrored, case.labels, label) > 0.85
