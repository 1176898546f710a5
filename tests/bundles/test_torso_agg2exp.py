# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The cohort bundle: its files, MONAI's own checks, and the main job on phantoms and on a data list."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from bundle_checks import BundleUnderTest, reasons
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer

from monai_segshap.cohort import VARIANTS, column_name, read_importances
from monai_segshap.networks import load_weights
from monai_segshap.phantoms import TWINS_CLASS_NAMES, twins_phantom

pytestmark = pytest.mark.xdist_group("test_torso_agg2exp")

AGG2EXP = BundleUnderTest("torso_agg2exp")
CLASSES = TWINS_CLASS_NAMES
FEW = {"method_options": {"n": 2}, "abnormal_seeds": "$range(2000, 2003)", "reference_seeds": "$range(3000, 3002)"}
NORMAL, ABNORMAL = [f"normal_{n}" for n in (1000, 1001, 1002)], [f"abnormal_{n}" for n in (2000, 2001, 2002)]
REPORT = {
    *(f"{name}.csv" for name in ("matrix", "global", "context_use", "outliers", "correlations", "groups")),
    *(f"{name}.png" for name in ("matrix", "graph", "boxplots", "context_use", "outliers")),
    "summary.md",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What the command wrote about six phantoms."""
    folder = tmp_path_factory.mktemp("cohort") / "out"
    done = AGG2EXP.command(output_dir=folder, device="cpu", phantom_seeds="$range(1000, 1003)", **FEW)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def table(finished):
    return read_importances(finished / "importances.csv")


def test_required_files_exist():
    AGG2EXP.check_files()


def test_metadata_is_valid_and_says_what_changed():
    AGG2EXP.check_metadata(CLASSES)


def test_network_input_and_output_are_as_the_metadata_says():
    AGG2EXP.check_network(inputs=1, outputs=len(CLASSES))


def test_network_exports_to_torchscript(tmp_path):
    AGG2EXP.check_torchscript(tmp_path / "model.ts", (48, 48, 16))


def test_inference_properties_are_complete(tmp_path):
    job = AGG2EXP.workflow(tmp_path / "out")
    job.initialize()
    assert job.check_properties() == []


def test_configurations_have_one_network_and_one_sliding_window():
    files = [str(AGG2EXP.folder / "configs" / f"{name}.yaml") for name in ("train", "evaluate", "inference")]
    train, evaluate, inference = map(ConfigParser.load_config_file, files)
    for key in ("network_def", "roi_size", "overlap", "intensity_range"):
        assert train[key] == evaluate[key] == inference[key], key
    assert evaluate["inferer"]["mode"] == inference["inferer"]["mode"]
    assert tuple(inference["class_names"]) == CLASSES


def test_the_command_writes_a_report_of_all_cases(finished, table):
    assert REPORT | {"importances.csv", "phantoms", "reference"} == {path.name for path in finished.iterdir()}
    assert sorted(table.cases) == sorted(NORMAL + ABNORMAL)
    assert (table.explained, table.regions) == (CLASSES, (*CLASSES, "pathology"))
    reference = read_importances(finished / "reference" / "importances.csv")
    assert reference.cases == ("normal_3000", "normal_3001")
    summary = (finished / "summary.md").read_text(encoding="utf-8")
    assert "fitted on 2 cases" in summary
    assert 'method smooth_gradient, method_options {"n": 2}' in summary
    for name in [n for n in REPORT if n.endswith(".png")]:
        assert (finished / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    scores = pd.read_csv(finished / "outliers.csv", index_col="case")
    assert set(scores.index) == set(table.cases)
    assert np.isfinite(scores[list(CLASSES)].to_numpy()).all()


def test_masses_sum_to_one_over_the_classes_and_the_pathology_is_counted_beside_them(finished, table):
    np.testing.assert_allclose(table.values[..., : len(CLASSES)].sum(-1), 1.0, rtol=1e-12)
    pathology = table.values[..., table.regions.index("pathology")]
    abnormal = np.array([case in ABNORMAL for case in table.cases])
    assert (pathology[~abnormal] == 0).all()
    assert (pathology[abnormal] > 0).all()
    matrix = pd.read_csv(finished / "matrix.csv", index_col="explained")
    np.testing.assert_allclose(matrix.to_numpy(), table.values.mean(0), rtol=1e-12)


def test_every_variant_is_a_column_and_enrichment_is_mass_over_volume(finished):
    mass, enrichment = (read_importances(finished / "importances.csv", variant=v) for v in ("mass", "enrichment"))
    share = mass.values / enrichment.values  # of the volume: one for each region, whatever is explained
    assert np.nanmax(np.ptp(share, axis=1)) < 1e-9
    np.testing.assert_allclose(np.nansum(share[:, 0, : len(CLASSES)], axis=-1), 1.0, rtol=1e-9)
    header = pd.read_csv(finished / "importances.csv", nrows=0).columns
    assert {column_name("aorta", "spine", variant) for variant in VARIANTS} <= set(header)
    assert not [column for column in header if "positive" in column or "negative" in column]


def test_rows_are_explained_and_columns_are_where_the_attribution_lies(table):
    """The planted neighbor: the kidney beside the liver leans on it in every case, not the other way round."""
    cell = {(e, r): table.values[:, CLASSES.index(e), CLASSES.index(r)] for e in CLASSES for r in CLASSES}
    leaning = cell["kidney_liver_side", "liver"]
    assert (leaning > 3 * cell["kidney_other_side", "liver"]).all()
    assert (leaning > 3 * cell["liver", "kidney_liver_side"]).all()


def test_groups_and_dice_stand_beside_the_importances(finished, table):
    groups = table.metadata["group"]
    assert dict(groups) == {case: case.split("_")[0] for case in table.cases}
    compared = pd.read_csv(finished / "groups.csv")
    assert set(compared["column"]) == {"group"}
    assert list(table.dice.columns) == list(CLASSES)
    recorded = json.loads((AGG2EXP.folder / "docs" / "evaluation.json").read_text(encoding="utf-8"))["cases"]
    known = {f"{'abnormal' if row['abnormal'] else 'normal'}_{row['case']}": row for row in recorded}
    for case in table.cases:
        for name in CLASSES[1:]:
            assert table.dice.loc[case, name] == pytest.approx(known[case][name], abs=0.01), (case, name)


def test_a_second_run_explains_what_is_new_alone(finished, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    before = {path: path.read_bytes() for path in folder.rglob("importances.csv")}
    (folder / "summary.md").unlink()
    job = AGG2EXP.run(folder, phantom_seeds=[1000, 1001, 1002], **FEW)
    handlers = [job.parser.get_parsed_content(name) for name in ("handler", "reference_handler")]
    assert [handler.explained for handler in handlers] == [[], []]
    assert {path: path.read_bytes() for path in folder.rglob("importances.csv")} == before
    assert (folder / "summary.md").read_text(encoding="utf-8") == (finished / "summary.md").read_text(encoding="utf-8")
    job = AGG2EXP.run(folder, phantom_seeds=[1001, 1003], analysis=None, **FEW)
    assert job.parser.get_parsed_content("handler").explained == ["normal_1003"]
    assert (folder / "importances.csv").read_bytes().startswith(before[folder / "importances.csv"])
    assert len(read_importances(folder / "importances.csv").cases) == 7


def test_a_run_with_other_settings_is_refused_in_the_same_folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        AGG2EXP.run(tmp_path / "out", phantom_seeds=[1000], **{**FEW, "method_options": {"n": 3}})
    told = reasons(caught.value)[-1]
    assert "belongs to another run" in told
    assert """{'method_options': '{"n": 2}'}, here it is {'method_options': '{"n": 3}'}""" in told


def expected_masses(phantom):
    """Rows of the vanilla gradient by autograd through MONAI's inferer as a whole, axes turned by hand."""
    parser = ConfigParser(ConfigParser.load_config_file(AGG2EXP.config))
    network = load_weights(parser.get_parsed_content("network_def"), AGG2EXP.weights).eval()
    scaled = (np.clip(phantom.image, -1024, 1024) + 1024) / 2048
    image = torch.from_numpy(scaled[::-1, ::-1].copy()).requires_grad_()
    logits = SlidingWindowInferer((48, 48, 16), 4, 0.5, mode="gaussian")(image[None, None], network)[0]
    predicted = logits.argmax(0)
    rows = []
    for c in range(len(CLASSES)):
        (gradient,) = torch.autograd.grad(logits[c][predicted == c].sum(), image, retain_graph=True)
        strength = gradient.abs().double()
        rows.append([float(strength[predicted == r].sum() / strength.sum()) for r in range(len(CLASSES))])
    return np.array(rows)


def test_a_data_list_of_images_alone(tmp_path):
    phantoms = {"anna": twins_phantom(1000), "bert": twins_phantom(1001)}
    for name, phantom in phantoms.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), tmp_path / "data" / name / "ct.nii.gz")
    entries = [{"image": f"{name}/ct.nii.gz"} for name in phantoms]
    (tmp_path / "data" / "cohort.json").write_text(json.dumps({"testing": entries}))
    options = {"datalist": str(tmp_path / "data" / "cohort.json"), "extra_regions": {}, "method": "vanilla_gradient"}
    AGG2EXP.run(tmp_path / "results", **options)
    assert not (tmp_path / "results" / "phantoms").exists()
    assert not (tmp_path / "results" / "reference").exists()
    table = read_importances(tmp_path / "results" / "importances.csv")
    assert table.cases == ("anna_ct", "bert_ct")  # files of one name are told apart by their folders
    assert table.regions == CLASSES
    assert set(pd.read_csv(tmp_path / "results" / "importances.csv")["method"]) == {"vanilla_gradient"}
    for found, phantom in zip(table.values, phantoms.values(), strict=True):
        np.testing.assert_allclose(found, expected_masses(phantom), atol=1e-5)
    summary = (tmp_path / "results" / "summary.md").read_text(encoding="utf-8")
    for remark in ("fitted on this cohort itself", "holds no Dice", "hold no groups"):
        assert remark in summary
    written = {path.name for path in (tmp_path / "results").iterdir()}
    assert REPORT - written == {"correlations.csv", "groups.csv"}


BAD = {
    "method": ({"method": "grad_cam"}, "unknown method 'grad_cam'; expected one of vanilla_gradient, smooth_gradient"),
    "option": ({"method_options": {"steps": 3}}, "smooth_gradient has no options steps; it has n, sigma, seed"),
    "datalist": ({"datalist": "nowhere.json"}, "nowhere.json"),
    "weights": ({"checkpoint": "nowhere.pt"}, "cannot read network weights from nowhere.pt"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, tmp_path):
    override, message = BAD[name]
    few = {"phantom_seeds": [1000], "abnormal_seeds": [], "reference_seeds": [3000]}
    with pytest.raises(Exception) as caught:  # noqa: PT011
        AGG2EXP.run(tmp_path / "out", **{**few, **override})
    chain = reasons(caught.value)
    assert any(message in text for text in chain), chain
    assert len(chain) <= 4, "the sentence is buried under wrappers"
    assert not [path for path in Path(tmp_path).rglob("*.png")]
