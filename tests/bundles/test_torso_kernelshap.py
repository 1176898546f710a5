# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The demo bundle: its files, MONAI's own checks, and the main job from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from bundle_checks import ROOT, BundleUnderTest, reasons
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from processes import run_processes

from monai_segshap.networks import load_weights
from monai_segshap.phantoms import CLASS_NAMES, ORGAN_NAMES, torso_phantom
from monai_segshap.transforms import UnitsOfKindd
from monai_segshap.units import Partition

TORSO = BundleUnderTest("torso_kernelshap")


@pytest.fixture
def case(tmp_path):
    return {k: str(v) for k, v in torso_phantom(seed=3, shape=(96, 64, 16)).write(tmp_path / "case").items()}


def workflow(tmp_path, **override):
    return TORSO.workflow(tmp_path / "out", **{"sw_batch_size": 2, **override})


def run(tmp_path, case, **override):
    files = {"image": case["image"], "organs": case["organs"], "organ_names": case["organ_names"]}
    region = {"mode": "box", "box_ijk": [[20, 20, 4], [30, 30, 8]]}
    TORSO.run(tmp_path / "out", **{"sw_batch_size": 2, "region": region, **files, **override})
    return tmp_path / "out"


def test_required_files_exist():
    TORSO.check_files()


def test_metadata_is_valid_and_says_what_changed():
    TORSO.check_metadata(CLASS_NAMES)


def test_network_input_and_output_are_as_the_metadata_says():
    TORSO.check_network(inputs=1, outputs=3)


def test_network_exports_to_torchscript(tmp_path):
    TORSO.check_torchscript(tmp_path / "model.ts", (64, 64, 16))


def test_inference_properties_are_complete(tmp_path):
    job = workflow(tmp_path)
    job.initialize()
    assert job.check_properties() == []


def test_dice_on_unseen_phantoms_is_as_the_docs_say(tmp_path):
    recorded = json.loads((TORSO.folder / "docs" / "evaluation.json").read_text())
    assert recorded["dice"]["spleen"]["mean"] >= 0.90
    assert recorded["dice"]["lymph_node"]["mean"] >= 0.70
    parser = ConfigParser(ConfigParser.load_config_file(TORSO.config))
    network = load_weights(parser.get_parsed_content("network_def"), TORSO.weights)
    for row in [r for r in recorded["cases"] if r["case"] in (1000, 1001)]:
        dice = _dice(network, row["case"])
        assert dice["spleen"] == pytest.approx(row["spleen"], abs=0.01)
        assert dice["lymph_node"] == pytest.approx(row["lymph_node"], abs=0.01)


def _dice(network, seed):
    """Dice by a plain loop over MONAI's inferer, with the axes turned by hand."""
    from monai.inferers import SlidingWindowInferer

    phantom = torso_phantom(seed=seed)
    assert np.sign(np.diag(phantom.affine)[:3]).tolist() == [-1, -1, 1]
    image = (np.clip(phantom.image, -1024, 1024) + 1024) / 2048
    turned = torch.from_numpy(image[::-1, ::-1].copy())[None, None].float()
    with torch.no_grad():
        logits = SlidingWindowInferer((64, 64, 16), 4, 0.5, mode="gaussian")(turned, network)
    predicted = logits.argmax(1)[0].numpy()[::-1, ::-1]
    found = {}
    for index, name in enumerate(CLASS_NAMES[1:], start=1):
        a, b = predicted == index, phantom.targets == index
        found[name] = 2 * (a & b).sum() / (a.sum() + b.sum())
    return found


def test_the_command_of_the_readme(tmp_path):
    """The command line on the embedded case, with a smaller budget."""
    result = TORSO.command(output_dir=tmp_path / "out", units="predicted", device="cpu")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "torso: why is this lymph_node?" in result.stdout
    assert "network passes (windows): naive" in result.stdout
    assert "network passes: 100%" in result.stderr.replace("\r", "\n")
    folder = tmp_path / "out" / "torso"
    record = json.loads((folder / "explanation.json").read_text())
    assert record["method"] == "exact"
    assert record["forwards"]["run"] == record["forwards"]["planned"]
    scores = [f"attribution_{s}.nii.gz" for s in ("tp", "fp", "dice", "soft_dice")]
    for name in [*scores, "units.nii.gz", "prediction.nii.gz", "units_colors.csv", "overview.png", "attributions.csv"]:
        assert (folder / name).stat().st_size > 0, name
    source = nib.load(folder / "inputs" / "ct.nii.gz")
    for name in [*scores, "units.nii.gz", "prediction.nii.gz"]:
        written = nib.load(folder / name)
        assert written.shape == source.shape
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)


@pytest.mark.parametrize("units", ["organs", "fcc", "hybrid", "cubes"])
def test_own_files_with_every_kind_of_units(units, case, tmp_path):
    out = run(tmp_path, case, target_class=1, scores=["fp"], units=units, unit_scale_mm=60.0, budget=240)
    record = json.loads((out / "ct" / "explanation.json").read_text())
    assert record["units"]["kind"] == units
    assert record["scores"]["fp"]["full"] == 0.0
    colors = pd.read_csv(out / "ct" / "units_colors.csv")
    assert list(colors.columns) == ["LabelValue", "Name", "Color_R", "Color_G", "Color_B"]
    assert colors["LabelValue"].tolist() == list(range(1, record["units"]["count"] + 1))
    if units == "organs":
        assert set(colors["Name"]) <= set(ORGAN_NAMES.values())


def _edited(path, tmp_path, change, **nifti):
    source = nib.load(path)
    data = np.asarray(source.dataobj).astype(np.float32)
    target = tmp_path / f"edited_{Path(path).name}"
    nib.save(nib.Nifti1Image(change(data), nifti.get("affine", source.affine)), target)
    return str(target)


def _shear(path):
    affine = nib.load(path).affine.copy()
    affine[0, 1] += 0.4
    return affine


def _nan(data):
    data[3, 4, 5] = np.nan
    return data


BAD = {
    "absent_class": (
        {"region": "largest", "target_class": "lymph_node", "intensity_range": [2000, 3000]},
        "holds no voxel",
    ),
    "unknown_class": ({"target_class": "heart"}, "target class 'heart' is not among"),
    "box_outside": ({"region": {"mode": "box", "box_ijk": [[0, 0, 0], [99, 9, 9]]}}, "does not lie inside the image"),
    "unknown_region": ({"region": "biggest"}, "unknown region mode 'biggest'"),
    "unknown_score": ({"scores": ["iou"]}, "unknown scores"),
    "unknown_units": ({"units": "slic"}, "unknown units 'slic'"),
    "missing_weights": ({"checkpoint": "nowhere.pt"}, "cannot read network weights from nowhere.pt"),
    "small_budget": ({"budget": 4, "units": "fcc", "unit_scale_mm": 30.0}, "a budget of 4 gives 2 pairs"),
    "dummies": ({"baseline_hu": 0, "image": "constant"}, "all are dummies"),
    "nan": ({"image": "nan"}, "values that are not finite"),
    "other_grid": ({"organs": "other_grid"}, "lie on different grids"),
    "sheared": ({"image": "sheared", "organs": None, "units": "fcc"}, "sheared"),
    "channels": ({"image": "channels"}, "with 1 channel"),
    "unreadable": ({"image": "unreadable"}, "unreadable.nii.gz"),
    "no_masks": ({"organs": "no_masks"}, "holds no mask"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_no_file(name, case, tmp_path, capfd):
    override, message = BAD[name]
    override = dict(override)
    if override.get("image") == "nan":
        override["image"] = _edited(case["image"], tmp_path, _nan)
    if override.get("image") == "constant":
        override["image"] = _edited(case["image"], tmp_path, lambda d: d * 0)
    if override.get("image") == "sheared":
        override["image"] = _edited(case["image"], tmp_path, lambda d: d, affine=_shear(case["image"]))
    if override.get("image") == "channels":
        override["image"] = _edited(case["image"], tmp_path, lambda d: np.stack([d, d], axis=-1))
    if override.get("image") == "unreadable":
        (tmp_path / "unreadable.nii.gz").write_bytes(b"no image")
        override["image"] = str(tmp_path / "unreadable.nii.gz")
    if override.get("organs") == "other_grid":
        override["organs"] = _edited(case["organs"], tmp_path, lambda d: d[:-4])
    if override.get("organs") == "no_masks":
        (tmp_path / "empty").mkdir()
        override["organs"] = str(tmp_path / "empty")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(tmp_path, case, **{"target_class": 1, "units": "organs", "budget": 60, **override})
    chain = reasons(caught.value)
    assert any(message in text for text in chain), chain
    assert len(chain) <= 4, "the sentence is buried under wrappers"
    left = [p for p in (tmp_path / "out").rglob("*") if p.is_file()] if (tmp_path / "out").exists() else []
    assert left == []


def test_labels_on_another_grid_are_resampled_on_request(case, tmp_path):
    case["organs"] = _edited(case["organs"], tmp_path, lambda d: d[:-4])
    out = run(tmp_path, case, target_class=1, scores=["fp"], resample_organs=True, budget=60)
    assert (out / "ct" / "explanation.json").exists()


def _masks(case, folder):
    """The label map of a case as TotalSegmentator writes organs: one file each, also for those that are absent."""
    source, names = nib.load(case["organs"]), json.loads(Path(case["organ_names"]).read_text())
    folder.mkdir()
    for number, name in {**names, "99": "absent"}.items():
        mask = (np.asarray(source.dataobj) == int(number)).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, source.affine), folder / f"{name}.nii.gz")
    return str(folder)


@pytest.mark.parametrize("units", ["organs", "hybrid"])
def test_a_folder_of_masks_gives_the_units_of_the_label_map(units, case, tmp_path):
    """Files, preprocessing, batch and units; without the explanation."""
    found = []
    folder = _masks(case, tmp_path / "segmentations")
    for organs, names in ((case["organs"], case["organ_names"]), (folder, None)):
        options = {"image": case["image"], "organs": organs, "organ_names": names, "unit_scale_mm": 60.0}
        job = workflow(tmp_path, units=units, **options)
        (batch,) = job.parser.get_parsed_content("dataloader")
        (ready,) = decollate_batch(batch)
        ready["receptive_field"] = torch.ones(ready["image"].shape)
        (make,) = [t for t in job.parser.get_parsed_content("postprocessing").transforms if isinstance(t, UnitsOfKindd)]
        found.append(Partition.from_metatensor(make(ready)["units"]))
    by_map, by_folder = found
    assert sorted(by_folder.names) == sorted(by_map.names)
    assert set(by_folder.skipped) == {*by_map.skipped, "absent"}
    assert by_folder.grid.same_as(by_map.grid)
    for name in by_map.names:
        np.testing.assert_array_equal(by_folder.mask(name), by_map.mask(name), err_msg=name)
    assert dict(zip(by_folder.names, by_folder.organs, strict=True)) == dict(
        zip(by_map.names, by_map.organs, strict=True)
    )


def test_window_larger_than_the_image_works_by_padding(case, tmp_path):
    override = {"roi_size": [96, 96, 32], "target_class": 1, "units": "cubes", "unit_scale_mm": 60.0, "scores": ["fp"]}
    out = run(tmp_path, case, budget=40, **override)
    assert json.loads((out / "ct" / "explanation.json").read_text())["forwards"]["run"] > 0


@pytest.mark.xdist_group("ranks")
def test_a_cohort_is_shared_out_by_cases(tmp_path):
    for seed in (3, 4, 5):
        torso_phantom(seed=seed, shape=(96, 64, 16)).write(tmp_path / f"patient_{seed}")
    files = {name: [str(tmp_path / f"patient_{s}" / f"{name}.nii.gz") for s in (3, 4, 5)] for name in ("ct", "organs")}
    options = {
        "image": str(files["ct"]),
        "organs": str(files["organs"]),
        "organ_names": str(tmp_path / "patient_3" / "organ_names.json"),
        "output_dir": str(tmp_path / "out"),
        "ranks": "alone",
        "target_class": "spleen",
        "scores": "['tp']",
        "method": "kernelshap",
        "budget": "70",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = run_processes(["-m", "monai.bundle", "run", "--config_file", TORSO.config, *flags], cwd=ROOT)
    folders = sorted(p.parent.name for p in (tmp_path / "out").glob("*/explanation.json"))
    assert folders == ["patient_3_ct", "patient_4_ct", "patient_5_ct"]
    assert done.stdout.count("22 organ units: ") == 3
