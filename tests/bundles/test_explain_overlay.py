# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The overlay explain.yaml over a bundle that knows nothing of it."""

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
import zoo_bundle as zoo
from monai.bundle import ConfigWorkflow
from monai.inferers import SlidingWindowInferer

from monai_segshap.explainers import KernelSHAPExplainer
from monai_segshap.geometry import current_grid, source_grid
from monai_segshap.inferers import window_plan_of
from monai_segshap.perturbation import ConstantBaseline
from monai_segshap.region import RegionSpec, select_region
from monai_segshap.units import cube_partition, fcc_partition

OVERLAY = Path(__file__).resolve().parents[2] / "bundles" / "torso_kernelshap" / "configs" / "explain.yaml"
QUICK = {"explain#scores": ["tp"], "explain#budget": 130, "explain#unit_scale_mm": 80.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return zoo.write_bundle(tmp_path_factory.mktemp("zoo"))


def command_line(root, *files, **options):
    """Run as a user does, in the folder of the bundle."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str([str(f) for f in files])]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def workflow(root, names, overlay=True, **override):
    files = [str(root / "configs" / f"{name}.json") for name in names] + ([str(OVERLAY)] if overlay else [])
    options = {"bundle_root": str(root), **override}
    found = ConfigWorkflow(files, logging_file=False, workflow_type="inference", **options)
    found.initialize()
    return found


def directly(root, case, kind, scores, budget, scale):
    """The same case with the explainer alone; -1024 HU is 0 after the clipping."""
    image = zoo.tensors(root, case)["image"]
    network, inferer = zoo.network_of(root), SlidingWindowInferer(**zoo.INFERER)
    with torch.no_grad():
        logits = inferer(image[None], network)[0].as_subclass(torch.Tensor)
    predicted = logits.argmax(0).numpy()
    region = select_region(predicted, 1, RegionSpec.parse("largest"), current_grid(image), source_grid(image))
    field = window_plan_of(inferer, image.as_subclass(torch.Tensor)).receptive_field([region.box])
    make = {"fcc": fcc_partition, "cubes": cube_partition}[kind]
    partition = make(current_grid(image), scale, field)
    explainer = KernelSHAPExplainer(
        network, inferer, scores, budget, baseline=ConstantBaseline(0.0), progress=False, batch_size="library"
    )
    (found,) = explainer(image, partition, [region], logits, case=case)
    return found


def assert_same(folder, expected):
    """What was written about a case, and the explanation made without a bundle."""
    record = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
    assert record["case"] == expected.case
    assert record["evaluations"] == expected.evaluations
    assert [a["name"] for a in record["attributions"]] == list(expected.partition.names)
    for t, score in enumerate(expected.scores):
        found = [a[score] for a in record["attributions"]]
        assert np.abs(expected.values[:, t]).max() > 1e-3
        np.testing.assert_allclose(found, expected.values[:, t], atol=1e-6)
        assert record["scores"][score]["full"] == pytest.approx(expected.full[t], abs=1e-6)


def test_the_command_line_explains_and_changes_nothing_of_the_bundle(root):
    command_line(root, "configs/inference.json", output_dir="plain")
    options = {"explain#units": "cubes", "explain#unit_scale_mm": 50, "explain#scores": "['tp','dice']"}
    options |= {"explain#budget": 160, "explain#tolerance": "$None", "explain#max_cases": 1, "output_dir": "with"}
    shown = command_line(root, "configs/inference.json", OVERLAY, **options)
    assert shown.count("anna: why is this bright?") == 1
    assert "1 cases explained in with/explanations" in shown
    for case in zoo.CASES:
        plain, same = (nib.load(root / folder / case / f"{case}_seg.nii.gz") for folder in ("plain", "with"))
        np.testing.assert_array_equal(np.asarray(plain.dataobj), np.asarray(same.dataobj))
        np.testing.assert_array_equal(plain.affine, same.affine)
        assert np.asarray(plain.dataobj).sum() > 100
    assert sorted(p.name for p in (root / "plain").iterdir()) == ["anna", "bert"]
    assert sorted(p.name for p in (root / "with").iterdir()) == ["anna", "bert", "explanations"]
    out = root / "with" / "explanations"
    expected = directly(root, "anna", "cubes", ("tp", "dice"), 160, 50.0)
    assert_same(out / "anna", expected)
    table = pd.read_csv(out / "explanations.csv")
    assert table[["case", "class", "score", "units"]].values.tolist() == [
        ["anna", "bright", score, expected.partition.n_units] for score in ("tp", "dice")
    ]
    assert pd.read_csv(out / "unexplained.csv").empty
    assert len(list((out / "evaluations").glob("*/manifest.json"))) == 1


def test_defaults_need_no_organs_and_maps_lie_on_the_grid_of_the_file(root, tmp_path):
    job = workflow(root, ["inference"], output_dir=str(tmp_path), **{"explain#budget": 130, "explain#max_cases": 1})
    job.run()
    out = tmp_path / "explanations"
    assert pd.read_csv(out / "explanations.csv")["case"].unique().tolist() == ["anna"]
    expected = directly(root, "anna", "fcc", ("tp", "fp", "dice", "soft_dice"), 130, 60.0)
    assert_same(out / "anna", expected)
    image = zoo.tensors(root, "anna")["image"]
    source = nib.load(root / "data" / "imagesTs" / "anna.nii.gz")
    written = nib.load(out / "anna" / "attribution_tp.nii.gz")
    assert written.shape == source.shape
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    values = np.asarray(written.dataobj)
    rng = np.random.default_rng(0)
    ijk = rng.integers(0, source.shape, size=(300, 3))
    world = np.c_[ijk, np.ones(len(ijk))] @ source.affine.T
    place = world @ np.linalg.inv(image.affine.numpy()).T
    near = np.abs(place[:, :3] - np.round(place[:, :3])).max(axis=1) < 0.4  # not on the border of two voxels
    inside = ((place[:, :3] > -0.4) & (place[:, :3] < np.array(image.shape[1:]) - 0.6)).all(axis=1)
    assert (near & inside).sum() > 50
    for file_voxel, voxel in zip(ijk[near & inside], np.round(place[near & inside, :3]).astype(int), strict=True):
        unit = int(expected.partition.labels[tuple(voxel)])
        value = expected.values[unit - 1, 0] if unit else 0.0
        assert values[tuple(file_voxel)] == pytest.approx(value, abs=1e-6)


def dice_of(root, case):
    """Dice of class 1 on the grid of the network."""
    data = zoo.tensors(root, case)
    with torch.no_grad():
        logits = SlidingWindowInferer(**zoo.INFERER)(data["image"][None], zoo.network_of(root))[0]
    a, b = logits.argmax(0).numpy() == 1, data["label"][0].numpy() == 1
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_an_evaluation_over_a_training_configuration(root, tmp_path):
    names = ["train", "evaluate"]
    workflow(root, names, overlay=False, output_dir=str(tmp_path / "plain")).run()
    dice = [dice_of(root, case) for case in zoo.CASES]
    lower = int(np.argmin(dice))
    assert dice[lower] < dice[1 - lower] - 0.01
    select = f"$monai_segshap.handlers.DiceBelow(target=1, threshold={np.mean(dice)})"
    options = {**QUICK, "explain#evaluator": "@validate#evaluator", "explain#select": select}
    workflow(root, names, output_dir=str(tmp_path / "with"), **options).run()
    plain, same = (pd.read_csv(tmp_path / name / "val_mean_dice_raw.csv").iloc[:, 1] for name in ("plain", "with"))
    np.testing.assert_array_equal(same, plain)
    assert plain.min() > 0.05
    out = tmp_path / "with" / "explanations"
    assert pd.read_csv(out / "explanations.csv")["case"].tolist() == [zoo.CASES[lower]]
    assert_same(out / zoo.CASES[lower], directly(root, zoo.CASES[lower], "fcc", ("tp",), 130, 80.0))


def organs_of(root, folder, cases):
    """Two organs of a case on the grid of its file: the halves of the image."""
    folder.mkdir()
    for case in cases:
        source = nib.load(root / "data" / "imagesTs" / f"{case}.nii.gz")
        labels = np.ones(source.shape, dtype=np.uint8)
        labels[:, source.shape[1] // 2 :] = 2
        nib.save(nib.Nifti1Image(labels, source.affine), folder / f"{case}.nii.gz")
    (folder / "names.json").write_text(json.dumps({"1": "left half", "2": "right half"}), encoding="utf-8")
    return folder


def test_organs_by_the_name_of_the_case_and_a_case_without_them_is_noted(root, tmp_path):
    organs = organs_of(root, tmp_path / "organs", ["bert"])
    options = {"explain#units": "organs", "explain#organs": str(organs / "{case}.nii.gz"), **QUICK}
    options |= {"explain#organ_names": str(organs / "names.json"), "output_dir": str(tmp_path / "out")}
    workflow(root, ["inference"], **options).run()
    record = json.loads((tmp_path / "out" / "explanations" / "bert" / "explanation.json").read_text())
    assert [a["name"] for a in record["attributions"]] == ["left half", "right half"]
    missed = pd.read_csv(tmp_path / "out" / "explanations" / "unexplained.csv")
    assert missed["case"].tolist() == ["anna"]
    assert missed["reason"][0].endswith("anna.nii.gz, which does not exist.")
    assert (tmp_path / "out" / "anna" / "anna_seg.nii.gz").is_file()


def test_z_scores_of_the_image_have_no_hu_and_a_value_is_the_way_out(root, tmp_path):
    steps = zoo.steps(["image"], ["bilinear"])
    steps[4] = {"_target_": "NormalizeIntensityd", "keys": "image"}
    options = {"preprocessing#transforms": steps, "output_dir": str(tmp_path), "explain#max_cases": 1, **QUICK}
    with pytest.raises(RuntimeError) as caught:
        workflow(root, ["inference"], **options)
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__
    assert chain[-1].startswith("NormalizeIntensityd in the preprocessing does not map a voxel by its value alone")
    assert "explain#baseline_value" in chain[-1]
    job = workflow(root, ["inference"], **options, **{"explain#baseline_value": -1.5, "explain#on_error": "raise"})
    job.run()
    record = json.loads((tmp_path / "explanations" / "anna" / "explanation.json").read_text())
    assert record["baseline"]["network_value"] == -1.5


def test_a_bundle_without_initialize_handlers_or_metadata(root, tmp_path):
    config = zoo.inference()
    del config["initialize"], config["handlers"], config["checkpointloader"], config["evaluator"]["val_handlers"]
    config["network"] = "$monai_segshap.networks.load_weights(@network_def, @bundle_root + '/models/model.pt')"
    config["imports"] += ["$import monai_segshap.networks", "$import monai_segshap"]
    (tmp_path / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    options = {"bundle_root": str(root), "output_dir": str(tmp_path / "out"), "explain#max_cases": 1, **QUICK}
    with pytest.warns(UserWarning, match="initialize"):
        job = ConfigWorkflow([str(tmp_path / "inference.json"), str(OVERLAY)], logging_file=False, **options)
    job.initialize()
    job.run()
    table = pd.read_csv(tmp_path / "out" / "explanations" / "explanations.csv")
    assert table[["case", "class", "class_index"]].values.tolist() == [["anna", "class 1", 1]]


def test_no_id_of_the_overlay_lies_outside_its_name(root):
    before = workflow(root, ["inference"], overlay=False).parser.get()
    after = workflow(root, ["inference"]).parser.get()
    assert set(after) - set(before) == {"explain"}
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"initialize"}
