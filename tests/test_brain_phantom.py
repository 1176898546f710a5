# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The multi-contrast brain: determinism, geometry, files, and that each contrast shows what the table says."""

from __future__ import annotations

from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from monai_segshap.phantoms import CONTRASTS, SUB_REGIONS, TISSUES, VISIBILITY, brain_phantom, planted_order

SMALL = {"shape": (32, 40, 32), "spacing_mm": (4.0, 4.0, 4.0)}
NUMBER = {name: number for number, name in TISSUES.items()}
LABEL = {name: number for number, name in SUB_REGIONS.items()}


@pytest.fixture(scope="module")
def cases():
    return [brain_phantom(seed) for seed in range(14)]


def test_types_and_ranges(cases):
    for case in cases[:3]:
        assert case.image.dtype == np.float32
        assert case.targets.dtype == case.tissues.dtype == np.uint8
        assert case.image.shape == (4, 64, 80, 64)
        assert case.targets.shape == case.tissues.shape == (64, 80, 64)
        np.testing.assert_array_equal(case.image, np.rint(case.image))
        assert case.image.max() < 32768
        assert set(np.unique(case.tissues)) <= {0, *TISSUES}
        np.testing.assert_array_equal(case.affine, case.affine.astype(np.float32))


def test_background_is_zero_in_all_contrasts_and_brain_is_not(cases):
    for case in cases:
        brain = case.tissues > 0
        np.testing.assert_array_equal(case.image != 0, np.broadcast_to(brain, case.image.shape))
        assert case.image.min() == 0
        assert 0.2 < brain.mean() < 0.6
        assert ndimage.label(brain)[1] == 1


def test_equal_arguments_give_equal_arrays_and_other_seeds_others():
    one, two, other = (brain_phantom(seed, **SMALL) for seed in (5, 5, 6))
    for name in ("image", "targets", "tissues", "affine"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert (one.tumor, one.mimics) == (two.tumor, two.mimics)
    assert (one.image != other.image).mean() > 0.2


def test_noise_changes_no_label():
    clean, noisy = brain_phantom(5, **SMALL, noise=0.0), brain_phantom(5, **SMALL, noise=2.0)
    np.testing.assert_array_equal(clean.tissues, noisy.tissues)
    np.testing.assert_array_equal(clean.targets, noisy.targets)
    white = clean.tissues == NUMBER["white_matter"]
    for channel in range(4):
        assert noisy.image[channel][white].std() > 3 * clean.image[channel][white].std()


def test_labels_follow_the_tissues_and_the_list_of_sub_regions(cases):
    names = {"NCR": "necrosis", "ED": "edema", "ET": "enhancing_tumor"}
    for case in cases:
        for region, tissue in names.items():
            np.testing.assert_array_equal(case.targets == LABEL[region], case.tissues == NUMBER[tissue])
        present = {SUB_REGIONS[int(label)] for label in np.unique(case.targets) if label}
        assert present == set(case.tumor.sub_regions)


def test_about_half_of_the_cases_have_all_sub_regions_and_each_is_absent_somewhere():
    kinds = [brain_phantom(seed, **SMALL).tumor.sub_regions for seed in range(60)]
    assert 0.35 < np.mean([len(kind) == 3 for kind in kinds]) < 0.75
    for region in VISIBILITY:
        assert sum(region not in kind for kind in kinds) >= 3


@pytest.mark.parametrize("wanted", [("ED",), ("NCR", "ET"), ("ET", "ED"), ()])
def test_sub_regions_can_be_asked_for(wanted):
    case = brain_phantom(3, **SMALL, sub_regions=wanted)
    assert {SUB_REGIONS[int(label)] for label in np.unique(case.targets) if label} == set(wanted)
    assert set(case.tumor.sub_regions) == set(wanted)
    np.testing.assert_array_equal(case.affine, brain_phantom(3, **SMALL).affine)


def test_sub_regions_lie_within_each_other(cases):
    for case in cases:
        necrosis, core = case.targets == 1, np.isin(case.targets, (1, 3))
        if case.tumor.sub_regions == ("NCR", "ED", "ET"):
            rim = ndimage.binary_dilation(necrosis) & ~necrosis
            assert (case.targets[rim] == 3).mean() > 0.85
        if "ED" in case.tumor.sub_regions and core.any():
            rim = ndimage.binary_dilation(core) & ~core
            assert (case.targets[rim] == 2).mean() > 0.6
        assert ndimage.label(case.targets > 0)[0].max() <= 3


def steps(case, region):
    """Signal inside minus just outside (4,), in standard deviations of white matter, and the case's factors (4,)."""
    outside = {
        "ED": (NUMBER["white_matter"], NUMBER["gray_matter"]),
        "ET": (NUMBER["edema"],),
        "NCR": (NUMBER["enhancing_tumor"],),
    }[region]
    inside = case.targets == LABEL[region]
    shell = ndimage.binary_dilation(inside, iterations=4) & np.isin(case.tissues, outside)
    inner = ndimage.binary_erosion(inside) if ndimage.binary_erosion(inside).sum() > 60 else inside
    white = case.tissues == NUMBER["white_matter"]
    noise = np.array([channel[white].std() for channel in case.image])
    return np.array([channel[inner].mean() - channel[shell].mean() for channel in case.image]) / noise


@pytest.mark.parametrize("region", list(VISIBILITY))
def test_measured_contrast_to_noise_has_the_planted_order_and_size(cases, region):
    neighbor = {"ED": None, "ET": "ED", "NCR": "ET"}[region]
    chosen = [c for c in cases if region in c.tumor.sub_regions and neighbor in (None, *c.tumor.sub_regions)]
    assert len(chosen) >= 6
    factors = np.array([case.tumor.factors for case in chosen])
    measured = np.array([steps(case, region) for case in chosen])
    slope = (factors * measured).sum(axis=0) / (factors**2).sum(axis=0)  # least squares through 0
    planted = np.array([VISIBILITY[region][name] for name in CONTRASTS])
    assert tuple(np.array(CONTRASTS)[np.argsort(-np.abs(slope))]) == planted_order(region)
    np.testing.assert_allclose(slope, planted, rtol=0.35, atol=0.3)


def test_tables_hold_every_sub_region_and_contrast_and_no_ties():
    assert set(VISIBILITY) == set(SUB_REGIONS.values())
    for region, row in VISIBILITY.items():
        assert tuple(row) == CONTRASTS
        sizes = sorted(map(abs, row.values()))
        assert all(b > 1.2 * a for a, b in pairwise(sizes)), region
    assert planted_order("ET")[0] == planted_order("NCR")[0] == "t1c"
    assert planted_order("ED")[:2] == ("t2f", "t2w")
    assert planted_order("WT") == planted_order("ED")
    assert planted_order("TC") == planted_order("ET")
    with pytest.raises(ValueError, match="'core'; expected one of NCR, ED, ET, TC, WT"):
        planted_order("core")


def test_mimics_look_like_the_tumor_in_some_contrasts_and_like_brain_in_others(cases):
    found = {"enhancing_vessel": [], "cyst": [], "gliosis": []}
    for case in cases:
        white = case.tissues == NUMBER["white_matter"]
        noise = np.array([channel[white].std() for channel in case.image])
        for kind in found:
            assert any(mimic.kind == kind for mimic in case.mimics)
            mask = case.tissues == NUMBER[kind]
            mask = ndimage.binary_erosion(mask) if kind != "enhancing_vessel" else mask
            healthy = np.isin(case.tissues, (NUMBER["white_matter"], NUMBER["gray_matter"]))
            if mask.sum() > 30:
                step = [channel[mask].mean() - channel[healthy].mean() for channel in case.image]
                found[kind].append(np.array(step) / noise)
        for mimic in case.mimics:
            assert case.targets[mimic.centre_ijk] == 0
    _, t1c, t2w, t2f = np.mean(found["enhancing_vessel"], axis=0)
    assert t1c > 1.5 > 0.6 > max(abs(t2w), abs(t2f))
    _, _, t2w, t2f = np.mean(found["cyst"], axis=0)
    assert t2w > 1.0 > 0.6 > abs(t2f)
    _, _, t2w, t2f = np.mean(found["gliosis"], axis=0)
    assert t2f > 1.5 > 0.6 > abs(t2w)


def test_affine_is_flipped_and_centered_somewhere(cases):
    case = cases[0]
    assert nib.aff2axcodes(case.affine) == ("L", "P", "S")
    np.testing.assert_allclose(np.diag(case.affine), (-2, -2, 2, 1))
    assert np.abs(case.affine[:3, 3]).min() > 1
    stem = np.argwhere(case.tissues[:, :, 0] > 0)  # the brain stem is below, behind the middle
    assert len(stem) > 0
    assert stem[:, 1].mean() > 40
    wide = np.array([(case.tissues[:, j] > 0).sum() for j in range(80)])
    assert abs((np.arange(80) * wide).sum() / wide.sum() - 39.5) < 6


@pytest.mark.parametrize(
    ("shape", "spacing"), [((24, 30, 26), (5.0, 5.0, 5.0)), ((40, 48, 30), (3.0, 3.5, 4.0)), ((80, 96, 80), (1.8,) * 3)]
)
def test_other_grids(shape, spacing):
    case = brain_phantom(2, shape=shape, spacing_mm=spacing)
    assert case.image.shape == (4, *shape)
    np.testing.assert_allclose(np.linalg.norm(case.affine[:3, :3], axis=0), spacing, rtol=1e-6)
    assert np.isfinite(case.image).all()
    reference = brain_phantom(2)
    np.testing.assert_allclose(
        np.array(case.tumor.centre_ijk) / shape, np.array(reference.tumor.centre_ijk) / (64, 80, 64), atol=0.06
    )
    assert case.tumor.factors == reference.tumor.factors


@pytest.mark.parametrize(
    ("scheme", "endings", "enhancing"),
    [
        ("2023", ("-000-t1n", "-000-t1c", "-000-t2w", "-000-t2f", "-000-seg"), 3),
        ("2021", ("_t1", "_t1ce", "_t2", "_flair", "_seg"), 4),
    ],
)
def test_write(tmp_path, scheme, endings, enhancing):
    case = brain_phantom(7, **SMALL, sub_regions=("NCR", "ED", "ET"))
    paths = case.write(tmp_path / "case", scheme=scheme)
    begin = {"2023": "BraTS-GLI-00007", "2021": "BraTS2021_00007"}[scheme]
    assert tuple(paths) == (*CONTRASTS, "label")
    assert [path.name for path in paths.values()] == [f"{begin}{ending}.nii.gz" for ending in endings]
    assert {path.name for path in (tmp_path / "case").iterdir()} == {path.name for path in paths.values()}
    for channel, name in enumerate(CONTRASTS):
        file = nib.load(paths[name])
        np.testing.assert_array_equal(np.asarray(file.dataobj), case.image[channel].astype(np.int16))
        np.testing.assert_array_equal(file.affine, case.affine)
    labels = np.asarray(nib.load(paths["label"]).dataobj)
    np.testing.assert_array_equal(labels == enhancing, case.targets == 3)
    assert set(np.unique(labels)) == {0, 1, 2, enhancing}


def test_file_names_are_understood_by_the_contrasts_as_units(tmp_path):
    from monai_segshap.units import Contrasts, check_contrast_sources

    for scheme in ("2023", "2021"):
        paths = brain_phantom(1, **SMALL).write(tmp_path, scheme=scheme)
        found = check_contrast_sources(Contrasts.parse(list(CONTRASTS)), [paths[name] for name in CONTRASTS])
        assert found == CONTRASTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"shape": (64, 64)}, "shape must be three whole numbers"),
        ({"shape": (64, 64, 8)}, r"at least \(24, 24, 24\)"),
        ({"spacing_mm": (2.0, 2.0, 0.0)}, "three positive lengths"),
        ({"sub_regions": ("WT",)}, "some of NCR, ED, ET"),
        ({"sub_regions": "ED"}, "some of NCR, ED, ET"),
        ({"noise": -0.5}, "noise must be a factor"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        brain_phantom(**options)


def test_unknown_scheme(tmp_path):
    with pytest.raises(ValueError, match="'2020'; expected one of 2023, 2021"):
        brain_phantom(1, **SMALL).write(tmp_path, scheme="2020")
