# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Organs from a label map file or from a folder of masks."""

from __future__ import annotations

import warnings
import weakref

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

from monai_segshap.transforms import (
    HybridUnitsd,
    LoadOrgans,
    LoadOrgansd,
    MatchGridd,
    OrganUnits,
    OrganUnitsd,
    UnitsOfKindd,
    carried_organ_names,
    organs,
)
from monai_segshap.units import Partition

AFFINE = np.array([[-2.0, 0, 0, 60], [0, -2.0, 0, 40], [0, 0, 4.0, -30], [0, 0, 0, 1]])
SHAPE = (10, 8, 6)


def save(path, volume, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.asarray(volume), affine), path)
    return path


def box(*sides):
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(a, b) for a, b in sides)] = 1
    return mask


LIVER = box((0, 5), (0, 8), (0, 6))
SPLEEN = box((6, 9), (0, 4), (1, 5))
NAMES = {1: "gallbladder", 2: "liver", 3: "spleen"}


@pytest.fixture
def folder(tmp_path):
    """As TotalSegmentator leaves it: masks, most of them empty, and other files."""
    place = tmp_path / "segmentations"
    place.mkdir()
    save(place / "spleen.nii.gz", SPLEEN)
    save(place / "gallbladder.nii.gz", np.zeros(SHAPE, np.uint8))
    save(place / "liver.nii.gz", LIVER * 255)
    (place / "statistics.json").write_text("{}")
    (place / "._liver.nii.gz").write_bytes(b"of another system")
    (place / "more").mkdir()
    return place


@pytest.fixture
def label_map(tmp_path):
    return save(tmp_path / "organs.nii.gz", 2 * LIVER + 3 * SPLEEN)


def plain(path):
    return Compose([LoadImaged("organs"), EnsureChannelFirstd("organs")])({"organs": str(path)})["organs"]


def tensor(labels):
    return labels.as_subclass(torch.Tensor)


def text_of(meta):
    return {k: str(v) for k, v in meta.items()}


def test_a_file_is_read_as_monai_reads_it(label_map):
    loaded, expected = LoadOrgansd("organs")({"organs": str(label_map)})["organs"], plain(label_map)
    assert isinstance(loaded, MetaTensor)
    assert loaded.dtype == expected.dtype == torch.float32
    assert torch.equal(tensor(loaded), tensor(expected))
    assert text_of(loaded.meta) == text_of(expected.meta)
    assert carried_organ_names(loaded) == {}


def test_a_folder_gives_the_label_map_and_the_names_of_its_files(folder, label_map):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = LoadOrgans()(folder)
    expected = plain(label_map)
    assert torch.equal(tensor(loaded), tensor(expected))
    assert loaded.dtype == expected.dtype
    np.testing.assert_array_equal(loaded.affine, expected.affine)
    for key in ("original_affine", "spatial_shape", "space", "original_channel_dim"):
        assert str(loaded.meta[key]) == str(expected.meta[key]), key
    assert loaded.meta["filename_or_obj"] == str(folder)
    assert carried_organ_names(loaded) == NAMES


def test_the_type_of_the_label_map_can_be_chosen(folder, label_map):
    assert LoadOrgans(dtype=np.uint8)(folder).dtype == torch.uint8
    assert LoadOrgans(dtype=None)(folder).dtype == torch.int16
    assert LoadOrgans(dtype=None)(label_map).dtype == torch.uint8


def test_names_survive_orientation_and_batches(folder):
    chain = Compose([LoadOrgansd("organs"), Orientationd("organs", "RAS", labels=None)])
    loader = DataLoader(Dataset([{"organs": str(folder)}], chain), batch_size=1, num_workers=0)
    (case,) = decollate_batch(next(iter(loader)))
    assert carried_organ_names(case["organs"]) == NAMES
    assert np.sign(np.diag(case["organs"].affine)).tolist() == [1, 1, 1, 1]
    partition = Partition.from_metatensor(OrganUnitsd("organs")(case)["units"])
    assert partition.names == ("liver", "spleen")
    assert partition.skipped == ("gallbladder",)
    np.testing.assert_array_equal(partition.labels, (LIVER + 2 * SPLEEN)[::-1, ::-1])


def test_names_survive_resampling(folder):
    affine = AFFINE.copy()
    affine[0, 3] -= 4.0  # two voxels further
    image = MetaTensor(torch.zeros(1, *SHAPE), affine=torch.as_tensor(affine))
    case = MatchGridd("organs", resample=True)({"image": image, "organs": LoadOrgans()(folder)})
    assert carried_organ_names(case["organs"]) == NAMES
    assert torch.equal(tensor(case["organs"])[0, :8], torch.from_numpy(2.0 * LIVER + 3.0 * SPLEEN)[2:].float())


@pytest.mark.parametrize("kind", ["organs", "hybrid"])
def test_units_are_those_of_the_label_map(kind, folder, label_map):
    field = torch.ones(1, *SHAPE)
    found = []
    for path, names in ((folder, None), (label_map, NAMES)):
        units = UnitsOfKindd("image", kind, scale_mm=12.0, names=names)
        case = units({"image": field, "receptive_field": field, "organs": LoadOrgans()(path)})
        found.append(Partition.from_metatensor(case["units"]))
    assert found[0].names == found[1].names
    assert found[0].organs == found[1].organs
    assert found[0].skipped == found[1].skipped
    assert found[0].grid.same_as(found[1].grid, 0.0)
    np.testing.assert_array_equal(found[0].labels, found[1].labels)


def test_names_given_too_must_have_those_of_the_files(folder):
    loaded = LoadOrgans()(folder)
    assert Partition.from_metatensor(OrganUnits("totalsegmentator")(loaded)).names == ("liver", "spleen")
    with pytest.raises(ValueError, match=r"2 of 3 masks .*\('gallbladder', 'liver'\).*organ_names null"):
        OrganUnits({1: "spleen"})(loaded)
    hybrid = HybridUnitsd("organs", scale_mm=12.0, names={1: "spleen", 2: "heart"})
    with pytest.raises(ValueError, match="not among the organ names given"):
        hybrid({"organs": loaded})


def brute_force(masks):
    """The smallest mask at each voxel, the first by name among equals; and the voxels in several."""
    sizes = {name: int(mask.sum()) for name, mask in masks.items()}
    names = sorted(masks)
    labels = np.zeros(SHAPE, int)
    for voxel in np.ndindex(*SHAPE):
        here = [name for name in names if masks[name][voxel]]
        if here:
            labels[voxel] = names.index(min(here, key=lambda name: sizes[name])) + 1
    return labels, int((sum(masks.values()) > 1).sum())


@pytest.mark.parametrize("seed", range(4))
def test_the_smaller_structure_wins_where_masks_overlap(seed, tmp_path):
    rng = np.random.default_rng(seed)
    shares = [0.6, 0.1, 0.3, 0.3, 0.8]
    masks = {f"m{n}": (rng.random(SHAPE) < share).astype(np.uint8) for n, share in enumerate(shares)}
    masks["n"] = masks["m2"][::-1].copy()  # as many voxels as m2
    for name, mask in masks.items():
        save(tmp_path / f"{name}.nii.gz", mask)
    expected, shared = brute_force(masks)
    with pytest.warns(UserWarning, match=f"^{shared} voxels lie in more than one mask"):
        loaded = LoadOrgans()(tmp_path)
    np.testing.assert_array_equal(tensor(loaded)[0].numpy(), expected)


def test_the_warning_names_the_pair_and_what_is_covered(folder):
    save(folder / "body.nii.gz", LIVER)
    save(folder / "left.nii.gz", box((0, 1), (0, 1), (0, 2)))
    with pytest.warns(UserWarning, match="more than one mask") as caught:
        loaded = LoadOrgans()(folder)
    (message,) = [str(w.message) for w in caught]
    assert message.startswith("240 voxels lie in more than one mask of")
    assert "the largest share between 'body' and 'liver' (238)" in message
    assert message.endswith("No voxel was left of 'liver'.")
    assert carried_organ_names(loaded) == {1: "body", 2: "gallbladder", 3: "left", 4: "liver", 5: "spleen"}
    assert Partition.from_metatensor(OrganUnits()(loaded)).names == ("body", "left", "spleen")


def test_one_mask_is_held_at_a_time(folder, monkeypatch):
    alive, most = weakref.WeakSet(), []
    load = organs._load_mask

    def watched(path):
        most.append(len(alive))
        mask = load(path)
        alive.add(mask)
        return mask

    monkeypatch.setattr(organs, "_load_mask", watched)
    LoadOrgans()(folder)
    assert most == [0, 0, 0]


def _floats(value):
    mask = SPLEEN.astype(np.float32)
    mask[0, 0, 0] = value
    return mask


def _other_affine():
    affine = AFFINE.copy()
    affine[2, 3] += 4.0
    return affine


BAD = {
    "shape": (lambda f: save(f / "spleen.nii.gz", SPLEEN[:-1]), r"spleen.nii.gz lies on another grid than gallbladder"),
    "affine": (lambda f: save(f / "liver.nii.gz", LIVER, _other_affine()), r"liver.nii.gz lies on another grid"),
    "values": (lambda f: save(f / "liver.nii.gz", LIVER + SPLEEN * 3), r"liver.nii.gz holds 3 .* \(0, 1, 3\)"),
    "labels": (
        lambda f: save(f / "a.nii", np.arange(480).reshape(SHAPE).astype(np.int16)),
        r"a.nii holds 480 .*, \.\.\.",
    ),
    "no_zero": (lambda f: save(f / "liver.nii.gz", LIVER + np.uint8(1)), r"liver.nii.gz holds 2 .* \(1, 2\)"),
    "nan": (lambda f: save(f / "liver.nii.gz", _floats(np.nan)), r"liver.nii.gz holds values that are not finite"),
    "channels": (lambda f: save(f / "liver.nii.gz", np.stack([LIVER] * 2, -1)), r"liver.nii.gz has shape \(2, 10, 8"),
    "flat": (lambda f: save(f / "liver.nii.gz", LIVER[..., 0]), r"liver.nii.gz has shape \(1, 10, 8\)"),
    "twice": (lambda f: save(f / "liver.nii", LIVER), r"several masks named liver"),
    "unreadable": (lambda f: (f / "liver.nii.gz").write_bytes(b"no image"), r"cannot read the mask .*liver.nii.gz"),
    "truncated": (
        lambda f: (f / "liver.nii.gz").write_bytes((f / "liver.nii.gz").read_bytes()[:-40]),
        r"cannot read the mask .*liver.nii.gz",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_mask_is_named(name, folder):
    spoil, message = BAD[name]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        LoadOrgans()(folder)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_folder_without_masks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no mask \(it holds nothing\)"):
        LoadOrgans()(tmp_path)
    (tmp_path / "segmentations").mkdir()
    (tmp_path / "report.txt").write_text("")
    with pytest.raises(ValueError, match=r"it holds report.txt, segmentations/\).*directly in it"):
        LoadOrgans()(tmp_path)


def test_a_label_map_that_can_not_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the organ label map .*absent.nii.gz"):
        LoadOrgans()(tmp_path / "absent.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read the organ label map .*broken.nii.gz"):
        LoadOrgans()(tmp_path / "broken.nii.gz")


def test_a_folder_of_empty_masks_has_no_unit(tmp_path):
    save(tmp_path / "liver.nii.gz", np.zeros(SHAPE, np.uint8))
    loaded = LoadOrgans()(tmp_path)
    assert not loaded.any()
    with pytest.raises(ValueError, match="no "):
        OrganUnits()(loaded)


def test_a_case_without_organs_passes_when_allowed():
    assert LoadOrgansd("organs", allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(KeyError, match="organs"):
        LoadOrgansd("organs")({"image": 1})
