# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The nnU-Net bundle: its files, its demonstration model, and the job on models of every kind, from file to file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out
from monai.data import decollate_batch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_nnunet import train_on_case
from tiny_nnunet_broken import make_cascade

from monai_segshap.nnunet import load_nnunet
from monai_segshap.phantoms import CLASS_NAMES, ORGAN_NAMES, torso_phantom
from monai_segshap.transforms import UnitsOfKindd
from monai_segshap.units import Partition

pytestmark = pytest.mark.xdist_group("test_nnunet_kernelshap")

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "nnunet_kernelshap"
CONFIG = str(BUNDLE / "configs" / "inference.yaml")
META = str(BUNDLE / "configs" / "metadata.json")
DEMO = BUNDLE / "models" / "demo"
REAL_CT = Path(os.environ.get("SEGSHAP_CT", ROOT.parent / "shared" / "ct"))
ORGANS = {"1": "liver", "2": "spleen", "3": "kidney"}


@pytest.fixture
def organs(tiny_case, tmp_path):
    """The label map of the tiny case with its names."""
    names = tmp_path / "names.json"
    names.write_text(json.dumps(ORGANS))
    return {"organs": str(tiny_case.labels), "organ_names": str(names)}


def workflow(tmp_path, **override):
    options = {"output_dir": str(tmp_path / "out"), "device": "cpu", **override}
    return ConfigWorkflow(CONFIG, META, logging_file=False, workflow_type="inference", **options)


def run(tmp_path, folder=None, image=None, **override):
    """The job on a model and an image file; returns the folder of the results."""
    files = {} if folder is None else {"model_folder": str(folder), "image": str(image)}
    job = workflow(tmp_path, **{**files, "scores": ["tp", "dice"], **override})
    job.initialize()
    job.run()
    job.finalize()
    (record,) = (tmp_path / "out").rglob("explanation.json")
    return record.parent


def read(path):
    return np.asarray(nib.load(path).dataobj)


def check(out, image, scores=("tp", "dice")):
    """What holds for every result: passes as planned, efficiency, dummies, all volumes on the file's grid."""
    record = json.loads((out / "explanation.json").read_text())
    table = pd.read_csv(out / "attributions.csv")
    assert 0 < record["forwards"]["run"] == record["forwards"]["planned"] <= record["forwards"]["naive"]
    assert record["units"]["count"] == record["units"]["visible"] + record["units"]["dummies"] == len(table)
    source = nib.load(image)
    for name in ("units", "prediction", "region", *(f"attribution_{s}" for s in scores)):
        written = nib.load(out / f"{name}.nii.gz")
        assert written.shape == source.shape, name
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    for score in scores:
        found = record["scores"][score]
        span = max(abs(found["full"] - found["empty"]), table[score].abs().max())
        assert span > 0
        assert table[score].sum() == pytest.approx(found["full"] - found["empty"], abs=1e-6 * span)
        assert (table.loc[~table["visible"], score] == 0).all()
    assert (out / "overview.png").stat().st_size > 20_000
    return record, table


def test_required_files_exist_and_the_weights_are_small_and_plain():
    names = ("LICENSE", "configs/metadata.json", "configs/inference.yaml", "configs/logging.conf", "docs/README.md")
    for name in (*names, "docs/data_license.txt"):
        assert (BUNDLE / name).is_file(), name
    weights = DEMO / "fold_0" / "checkpoint_final.pth"
    assert weights.stat().st_size <= 300_000
    torch.load(weights, weights_only=True)


def test_metadata_is_valid_and_describes_the_demonstration_model():
    verify_metadata(META, filepath=str(Path(__file__).with_name("metadata_schema.json")))
    meta, model = json.loads(Path(META).read_text()), load_nnunet(DEMO)
    assert meta["version"] in meta["changelog"]
    found = meta["network_data_format"]
    assert model.class_names == CLASS_NAMES == tuple(found["outputs"]["pred"]["channel_def"].values())
    assert model.channel_names == tuple(found["inputs"]["image"]["channel_def"].values())
    assert list(model.patch_size) == found["inputs"]["image"]["spatial_shape"]
    verify_net_in_out(net_id="network", config_file=CONFIG, meta_file=META, device="cpu")  # raises if it differs


def test_inference_properties_are_complete(tmp_path):
    job = workflow(tmp_path)
    job.initialize()
    assert job.check_properties() == []


def test_without_overrides_a_nodule_of_the_demonstration_model_is_explained(tmp_path):
    """As a user starts it, with the organs of the phantom, but fewer coalitions; Dice on this phantom, which is new."""
    out = run(tmp_path, budget=44)
    assert out == tmp_path / "out" / "torso"
    record, table = check(out, out / "inputs" / "ct.nii.gz")
    assert record["target_class"] == {"index": 2, "name": "lymph_node"}
    assert record["units"]["kind"] == "organs"
    assert -1000 < record["baseline"]["hu"] < -900 < record["baseline"]["requested_hu"] + 200
    assert table.sort_values("tp")["name"].iloc[-1] == "lymph_nodes"
    truth = torso_phantom(seed=1004)
    predicted = read(out / "prediction.nii.gz")
    for index, least in ((1, 0.9), (2, 0.75)):
        a, b = predicted == index, truth.targets == index
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > least
    units = read(out / "units.nii.gz")
    for label, name in ORGAN_NAMES.items():
        assert np.array_equal(units == number_of(table, name), truth.organs == label), name


def number_of(table, name):
    """Number of a unit in units.nii.gz: its row, counted from 1."""
    return int(np.flatnonzero(table["name"] == name)[0]) + 1


def test_the_command_line_with_a_model_folder(tiny_3d, tiny_case, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", "bundles/nnunet_kernelshap/configs/inference.yaml", "--model_folder", str(tiny_3d)]
    command += ["--image", str(tiny_case.images[0]), "--target_class", "spleen", "--units", "predicted"]
    command += ["--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "case: why is this spleen?" in done.stdout
    assert "batches of 2 (library: 1)" in done.stdout
    record, _ = check(tmp_path / "out" / "case", tiny_case.images[0], ("tp", "fp", "dice", "soft_dice"))
    assert record["method"] == "exact"


@pytest.mark.parametrize("units", ["organs", "hybrid", "fcc"])
def test_units_of_every_kind(units, tiny_3d, tiny_case, organs, tmp_path):
    files = organs if units != "fcc" else {}
    kind = {"units": units} if units == "hybrid" else {}  # 'organs' where there are some, and else 'fcc'
    out = run(tmp_path, tiny_3d, tiny_case.images[0], unit_scale_mm=40.0, budget=60, **files, **kind)
    record, table = check(out, tiny_case.images[0])
    assert record["units"]["kind"] == units
    assert record["target_class"] == {"index": 1, "name": "liver"}
    if units == "organs":
        truth = read(tiny_case.labels)
        numbers = read(out / "units.nii.gz")
        for label, name in ORGANS.items():
            place = numbers == number_of(table, name)
            assert np.array_equal(place, truth == int(label)), name
            values = read(out / "attribution_tp.nii.gz")[place]
            np.testing.assert_allclose(values, table["tp"][number_of(table, name) - 1], rtol=1e-6)
        assert table["name"][table["tp"].idxmax()] == "liver"


def test_a_folder_of_masks_gives_the_units_of_the_label_map(tiny_3d, tiny_tilted_case, tmp_path):
    """As TotalSegmentator writes it; on a tilted grid, without the explanation."""
    folder, source = tmp_path / "segmentations", nib.load(tiny_tilted_case.labels)
    folder.mkdir()
    for label, name in {**ORGANS, "9": "absent"}.items():
        mask = (np.asarray(source.dataobj) == int(label)).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, source.affine), folder / f"{name}.nii.gz")
    names = tmp_path / "names.json"
    names.write_text(json.dumps(ORGANS))
    found = []
    for organs, of in ((str(tiny_tilted_case.labels), str(names)), (str(folder), None)):
        files = {"model_folder": str(tiny_3d), "image": str(tiny_tilted_case.images[0])}
        job = workflow(tmp_path, organs=organs, organ_names=of, **files)
        (batch,) = job.parser.get_parsed_content("dataloader")
        (ready,) = decollate_batch(batch)
        ready["receptive_field"] = torch.ones(ready["image"].shape)
        (make,) = [t for t in job.parser.get_parsed_content("postprocessing").transforms if isinstance(t, UnitsOfKindd)]
        found.append(Partition.from_metatensor(make(ready)["units"]))
    by_map, by_folder = found
    assert sorted(by_folder.names) == sorted(by_map.names)
    assert set(ORGANS.values()) <= set(by_map.names)
    for name in by_map.names:
        np.testing.assert_array_equal(by_folder.mask(name), by_map.mask(name), err_msg=name)


def test_the_target_by_name_and_by_number_is_one(tiny_3d, tiny_case, organs, tmp_path):
    tables = []
    for target in ("kidney", 3):
        options = {"target_class": target, "budget": 20, **organs}
        out = run(tmp_path / str(target), tiny_3d, tiny_case.images[0], **options)
        record, table = check(out, tiny_case.images[0])
        assert record["target_class"] == {"index": 3, "name": "kidney"}
        tables.append(table)
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize(
    ("model", "target", "named"),
    [
        ("tiny_regions", "core", {"index": 1, "name": "core"}),
        ("tiny_regions", 0, {"index": 0, "name": "whole"}),
        ("tiny_2d", "spleen", {"index": 2, "name": "spleen"}),
        ("tiny_3d_folds", 1, {"index": 1, "name": "liver"}),
    ],
)
def test_regions_slices_and_folds(model, target, named, tiny_case, organs, tmp_path, request):
    folder = request.getfixturevalue(model)
    options = {"target_class": target, "budget": 20, **organs}
    out = run(tmp_path, folder, tiny_case.images[0], **options)
    record, _ = check(out, tiny_case.images[0])
    assert record["target_class"] == named
    predicted = read(out / "prediction.nii.gz")
    assert set(np.unique(predicted)) <= {0, 1, 2, 3}
    assert predicted.any()


def test_a_transposed_and_resampled_model_answers_on_the_grid_of_the_ct(tiny_lowres, tiny_case, organs, tmp_path):
    out = run(tmp_path, tiny_lowres, tiny_case.images[0], target_class="liver", budget=20, **organs)
    _, table = check(out, tiny_case.images[0])
    truth = read(tiny_case.labels)
    numbers, values = read(out / "units.nii.gz"), read(out / "attribution_tp.nii.gz")
    for label, name in ORGANS.items():
        number = number_of(table, name)
        place, organ = numbers == number, truth == int(label)
        assert 2 * (place & organ).sum() / (place.sum() + organ.sum()) > 0.85, name
        np.testing.assert_allclose(values[place], table["tp"][number - 1], rtol=1e-6)
        inner = eroded(organ, 2)
        assert inner.any()
        assert (place[inner]).all(), name
    predicted, liver = read(out / "prediction.nii.gz") == 1, truth == 1
    assert 2 * (predicted & liver).sum() / (predicted.sum() + liver.sum()) > 0.6
    region = read(out / "region.nii.gz") > 0
    assert (region & predicted).sum() > 0.9 * predicted.sum()


def eroded(mask, steps):
    from scipy import ndimage

    return ndimage.binary_erosion(mask, iterations=steps)


@pytest.mark.parametrize("model", ["tiny_3d", "tiny_lowres"])
def test_the_prediction_is_the_file_that_nnunet_writes(model, tiny_padded_case, tmp_path, request):
    folder, image = request.getfixturevalue(model), str(tiny_padded_case.images[0])
    predictor = nnUNetPredictor(
        device=torch.device("cpu"), use_mirroring=True, perform_everything_on_device=False, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), None)
    predictor.predict_from_files_sequential([[image]], [str(tmp_path / "theirs")], False, True)
    theirs = read(tmp_path / "theirs.nii.gz")
    corner = {"mode": "box", "box_ijk": [[6, 2, 4], [9, 5, 6]]}  # few windows see it
    options = {"accumulate": "nnunet", "mirror": True, "units": "predicted", "region": corner, "scores": ["fp"]}
    out = run(tmp_path, folder, image, **options)
    assert np.array_equal(read(out / "prediction.nii.gz"), theirs)
    assert theirs.any()
    record = json.loads((out / "explanation.json").read_text())
    assert record["forwards"]["run"] == record["forwards"]["planned"]
    assert record["execution"]["library_bits"]


def test_a_case_of_two_channels_finds_its_second_file(tiny_two_channels, tiny_two_channel_case, tmp_path):
    image = tiny_two_channel_case.images[0]
    assert image.name == "case_0000.nii.gz"
    box = {"mode": "box", "box_ijk": [[12, 14, 10], [22, 24, 16]]}
    options = {"organs": str(tiny_two_channel_case.labels), "target_class": "spleen", "budget": 20, "region": box}
    out = run(tmp_path, tiny_two_channels, image, **options)
    assert out.name == "case"
    record, _ = check(out, image)
    assert record["baseline"]["network_value"][1] == 0


def test_removal_in_raw_intensities_is_the_same_without_resampling(tiny_3d, tiny_case, organs, tmp_path, capfd):
    tables = []
    for perturb in ("network", "raw"):
        out = run(tmp_path / perturb, tiny_3d, tiny_case.images[0], perturb=perturb, budget=20, **organs)
        tables.append(check(out, tiny_case.images[0])[1])
    pd.testing.assert_frame_equal(*tables)
    assert "equals removal in network space here, bit for bit" in capfd.readouterr().out


def test_removal_in_raw_intensities_is_near_with_resampling(tiny_lowres, tiny_case, organs, tmp_path, capfd):
    found = []
    for perturb in ("network", "raw"):
        options = {"perturb": perturb, "budget": 20, "target_class": "liver", "scores": ["tp"], **organs}
        out = run(tmp_path / perturb, tiny_lowres, tiny_case.images[0], **options)
        record = json.loads((out / "explanation.json").read_text())
        assert record["forwards"]["run"] == record["forwards"]["planned"]
        found.append((record["scores"]["tp"], pd.read_csv(out / "attributions.csv")["tp"].to_numpy()))
    (network, by_network), (raw, by_raw) = found
    assert network["full"] == raw["full"]
    assert not np.array_equal(by_network, by_raw)
    np.testing.assert_allclose(by_raw, by_network, atol=0.25 * np.abs(by_network).max())
    assert "the image is resampled from" in capfd.readouterr().out


BAD = {
    "wrong_folder": ({"model_folder": "nowhere"}, "the nnU-Net model folder 'nowhere' does not exist"),
    "not_a_model": ({"model_folder": "bundles"}, "has no plans.json"),
    "missing_fold": ({"folds": 3}, "fold 3 is not in"),
    "missing_checkpoint": ({"checkpoint": "checkpoint_best.pth"}, "has no 'checkpoint_best.pth'; it holds"),
    "cascade": ({"model_folder": "cascade"}, "second stage of a cascade"),
    "no_mirroring": ({"model_folder": str(DEMO), "mirror": True}, "allows no mirroring"),
    "channels": ({"image": "two"}, "expected one 3D image. Save each channel by itself"),
    "single_channel": ({"model_folder": "two"}, "missing in .*: case_0001.nii.gz"),
    "missing_image": ({"image": "nowhere.nii.gz"}, "nowhere.nii.gz is missing"),
    "unknown_class": ({"target_class": "heart"}, "target class 'heart' is not among the class names"),
    "unknown_head": ({"target_class": 4}, "target class 4 is none of the network's 4 classes"),
    "unknown_perturb": ({"perturb": "hu"}, "unknown perturb 'hu'; expected one of network, raw"),
    "unknown_accumulate": ({"accumulate": "half"}, "unknown accumulate 'half'"),
    "organs_elsewhere": ({"organs": "cut"}, "lie on different grids"),
    "organs_missing": ({"units": "organs"}, "Give an organ label map or a folder of masks"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_no_file(name, tiny_3d, tiny_two_channels, tiny_case, tmp_path):
    override, message = dict(BAD[name][0]), BAD[name][1]
    files = {"model_folder": str(tiny_3d), "image": str(tiny_case.images[0]), **override}
    if files["model_folder"] == "cascade":
        files["model_folder"] = str(make_cascade(tmp_path / "models"))
    if files["model_folder"] == "two":
        files["model_folder"] = str(tiny_two_channels)
    if files["image"] == "two":
        data = read(tiny_case.images[0])
        both = nib.Nifti1Image(np.stack([data, data], axis=-1), nib.load(tiny_case.images[0]).affine)
        files["image"] = str(tmp_path / "two.nii.gz")
        nib.save(both, files["image"])
    if files.get("organs") == "cut":
        files["organs"] = str(tmp_path / "cut.nii.gz")
        nib.save(nib.load(tiny_case.labels).slicer[:-4], files["organs"])
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(tmp_path, files.pop("model_folder"), files.pop("image"), budget=10, **files)
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert any(contains(message, text) for text in chain), chain
    assert len(chain) <= 4, "the sentence is buried under wrappers"
    left = [p for p in (tmp_path / "out").rglob("*") if p.is_file()] if (tmp_path / "out").exists() else []
    assert left == []


def contains(pattern, text):
    first, _, rest = pattern.partition(".*")
    return first in text and rest in text


@pytest.mark.real_ct
@pytest.mark.slow
@pytest.mark.skipif(not REAL_CT.is_dir(), reason=f"no real CT at {REAL_CT}; name its folder in SEGSHAP_CT")
def test_a_model_trained_on_a_real_ct_is_explained_on_it(tmp_path):
    """Training by the recipe of these tests, then folder and CT to files in one call."""
    image, labels = REAL_CT / "example_ct_sm.nii.gz", REAL_CT / "example_seg.nii.gz"
    groups = {"spleen": [1], "kidneys": [2, 3], "liver": [5]}
    folder, _ = train_on_case(image, labels, tmp_path / "model", 200, groups=groups)
    files = {"organs": str(labels), "organ_names": "totalsegmentator", "target_class": "spleen"}
    out = run(tmp_path, folder, image, budget=60, **files)
    record, table = check(out, image)
    assert out.name == "example_ct_sm"
    assert record["units"]["kind"] == "organs"
    assert record["units"]["dummies"] > 0
    predicted, truth = read(out / "prediction.nii.gz"), read(labels)
    for index, numbers in enumerate(groups.values(), start=1):
        a, b = predicted == index, np.isin(truth, numbers)
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.6, list(groups)[index - 1]
    assert table["name"][table["dice"].idxmax()] == "spleen"
