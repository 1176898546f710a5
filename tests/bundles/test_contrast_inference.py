# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The contrast bundle's main job: on phantoms, folders and lists, continued, with bad input, and by two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import contrast_oracle as oracle
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from bundle_checks import ROOT, BundleUnderTest, reasons
from monai.bundle import ConfigParser
from processes import run_processes

from monai_segshap.explainers import read_contrasts
from monai_segshap.phantoms import CONTRASTS, brain_phantom, planted_order

pytestmark = pytest.mark.xdist_group("test_contrast_inference")

CONTRAST = BundleUnderTest("contrast_shapley")
CASES = ("brain_5000", "brain_5002")
FEW = {"phantom_seeds": [5000, 5002], "folds": [0, 1]}
REGIONS = ("WT", "TC", "ET", "ED", "NCR")
REPORT = {
    *(f"{name}.csv" for name in ("contrasts", "values", "ranks", "agreement", "stability", "associations")),
    *(f"{name}.png" for name in ("values", "ranks", "agreement", "stability")),
    "summary.md",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """What the command wrote about two phantoms and two folds, and what it said."""
    folder = tmp_path_factory.mktemp("contrasts") / "out"
    done = CONTRAST.command(output_dir=folder, device="cpu", **FEW)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def copied(finished: tuple[Path, str], folder: Path) -> Path:
    return Path(shutil.copytree(finished[0], folder / "out"))


def run(folder: Path, **options) -> pd.DataFrame:
    CONTRAST.run(folder, progress=False, **options)
    return pd.read_csv(folder / "contrasts.csv")


def test_inference_properties_are_complete(tmp_path):
    job = CONTRAST.workflow(tmp_path / "out", phantom_seeds=[])
    job.initialize()
    assert job.check_properties() == []


def test_metadata_and_network_are_those_of_the_configuration():
    CONTRAST.check_metadata(("TC", "WT", "ET"))
    CONTRAST.check_network(inputs=4, outputs=3)
    configs = [str(CONTRAST.folder / "configs" / f"{name}.yaml") for name in ("train", "evaluate", "inference")]
    train, evaluate, inference = map(ConfigParser.load_config_file, configs)
    for key in ("network_def", "roi_size", "overlap"):
        assert train[key] == evaluate[key] == inference[key], key
    assert inference["contrasts"] == list(CONTRASTS)
    assert {**evaluate["inferer"], "sw_batch_size": 0} == {**inference["inferer"], "sw_batch_size": 0}
    assert evaluate["inferer"]["sw_batch_size"] == inference["sw_batch_size"]
    assert evaluate["preprocessing"]["transforms"][-1] == train["normalize"] == inference["normalization"]


def test_the_command_writes_values_pictures_and_a_summary(finished):
    folder, said = finished
    assert {path.name for path in folder.iterdir()} == REPORT | {"cases", "evaluations", "phantoms"}
    table = pd.read_csv(folder / "contrasts.csv")
    assert len(table) == 2 * 2 * 5 * 4
    assert set(table["case"]) == set(CASES)
    assert set(table["fold"]) == {"fold_0", "fold_1"}
    assert "all 16 coalitions, exact; dice_truth of WT, TC, ET, ED, NCR" in said
    assert "naive 864 passes" in said
    for name in REPORT:
        if name.endswith(".png"):
            assert (folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    assert "2 cases, 2 folds" in summary
    assert "constant 0.0" in summary  # what removed contrasts became
    assert "VISIBILITY" in summary  # where the reference comes from
    for case in CASES:
        found = read_contrasts(folder / "cases" / case)
        assert [one.fold for one in found] == ["fold_0", "fold_1"]
        assert all(one.forwards.run == one.forwards.planned < one.forwards.naive == 16 * 27 for one in found)
        assert not any("no file name or metadata" in w for one in found for w in one.warnings)  # names were checked


def test_values_are_those_of_a_direct_loop_over_16_inferences(finished):
    phantom = brain_phantom(5002)
    direct = oracle.coalition_dice(
        oracle.fold_network(CONTRAST.folder / "models" / "fold_1.pt"), phantom.image, phantom.targets
    )
    expected = oracle.contrast_shapley(direct)
    table = pd.read_csv(finished[0] / "contrasts.csv")
    table = table[(table["case"] == "brain_5002") & (table["fold"] == "fold_1")]
    assert set(expected) == set(REGIONS)
    for region, values in expected.items():
        found = table[table["sub_region"] == region].set_index("contrast")["value"]
        np.testing.assert_allclose(found[list(CONTRASTS)], values, atol=1e-12)
    full, empty = (direct[(keep,) * 4] for keep in (True, False))
    rows = table.drop_duplicates("sub_region").set_index("sub_region")
    for region in REGIONS:
        assert rows.loc[region, "full"] == pytest.approx(full[region], abs=1e-12)
        assert rows.loc[region, "empty"] == pytest.approx(empty[region], abs=1e-12)


@pytest.fixture(scope="module")
def recorded() -> pd.DataFrame:
    """The default run of which the documentation speaks."""
    return pd.read_csv(CONTRAST.folder / "docs" / "contrasts.csv")


def test_recorded_values_are_found_again(finished, recorded):
    table = pd.read_csv(finished[0] / "contrasts.csv")
    keys = ["case", "fold", "sub_region", "contrast"]
    both = recorded.merge(table, on=keys, suffixes=("", "_now"))
    assert len(both) == len(table)
    for column in ("value", "full"):  # Dice of another CPU may differ by some voxels
        np.testing.assert_allclose(both[column], both[f"{column}_now"], atol=0.01)


def test_the_documentation_shows_the_recorded_run(recorded):
    text = (CONTRAST.folder / "docs" / "README.md").read_text(encoding="utf-8").split("## Which contrast")[1]
    rows = {
        line.split(" | ")[0].strip("| "): [c.strip(" |") for c in line.split(" | ")[1:]] for line in text.splitlines()
    }
    seeds, folds = (recorded[name].unique().tolist() for name in ("case", "fold"))
    assert (seeds, folds) == ([f"brain_{n}" for n in range(5000, 5008)], [f"fold_{n}" for n in range(5)])
    present = recorded.dropna(subset="value")
    means = present.groupby(["contrast", "sub_region"])["value"].mean().unstack()[list(REGIONS)]
    for contrast in CONTRASTS:
        assert rows[contrast] == [f"{value:.3f}" for value in means.loc[contrast]]
    assert rows["cases with it"] == [str(present[present.sub_region == r]["case"].nunique()) for r in REGIONS]
    orders = {region: planted_order(region) for region in REGIONS}
    assert rows["planted order"] == [", ".join(orders[region]) for region in REGIONS]
    wide = present.pivot(index=["sub_region", "case", "fold"], columns="contrast", values="value")[list(CONTRASTS)]
    first, agreement, variance = [], [], []
    for region, order in orders.items():
        values = wide.loc[region]
        first.append(f"{(values.idxmax(axis=1) == order[0]).mean():.0%}".replace("%", " %"))
        ranks = values.rank(axis=1, ascending=False)
        reference = np.array([order.index(name) + 1 for name in CONTRASTS])
        agreement.append(f"{(1 - (ranks - reference).abs().sum(axis=1) / 8).mean():.2f}")
        variance.append(f"{ranks.groupby('case').var().mean(axis=1).mean():.3f}")
    assert rows["planted first contrast has the largest value"] == first
    assert rows["agreement with the planted order (chance 0.375)"] == agreement
    assert rows["rank variance over folds (chance 1.25)"] == variance


def test_a_sub_region_that_a_case_does_not_have_has_no_value_and_a_reason(finished):
    table = pd.read_csv(finished[0] / "contrasts.csv")
    absent = table[table["truth_voxels"] == 0]
    assert set(absent["case"]) == {"brain_5000"}  # one of the two has no edema
    assert set(absent["sub_region"]) == {"ED"}
    assert absent["value"].isna().all()
    assert (absent["reason"] == "ED is absent from the ground truth").all()
    assert table[table["truth_voxels"] > 0]["value"].notna().all()


def test_a_fold_more_runs_alone_and_the_rest_is_taken_from_the_first_run(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "evaluations").iterdir()}
    assert len(before) == 4
    table = run(folder, **{**FEW, "folds": [0, 1, 2]})
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "evaluations").iterdir()}
    assert len(after) == 6
    assert before.items() <= after.items()
    assert set(table["fold"]) == {"fold_0", "fold_1", "fold_2"}
    old = pd.read_csv(finished[0] / "contrasts.csv")
    same = table[table["fold"] != "fold_2"].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, old)


def write_brats(folder: Path, seed: int, scheme: str = "2021") -> dict[str, str]:
    return {name: str(path) for name, path in brain_phantom(seed).write(folder, scheme).items()}


def test_a_folder_of_2021_and_lists_in_any_form_give_the_same_values(finished, tmp_path):
    files = write_brats(tmp_path / "data" / "brain_5002", 5002)
    old = pd.read_csv(finished[0] / "contrasts.csv")
    expected = old[(old["case"] == "brain_5002") & (old["fold"] == "fold_0")].reset_index(drop=True)
    by_name = {"image": {"flair": files["t2f"], "t1": files["t1n"], "t2": files["t2w"], "t1ce": files["t1c"]}}
    entry = {**by_name, "label": files["label"], "case": "brain_5002"}
    (tmp_path / "list.json").write_text(json.dumps({"testing": [entry]}))
    weights = str(CONTRAST.folder / "models" / "fold_0.pt")
    forms = [(tmp_path / "data", "2021"), (tmp_path / "list.json", 2021)]  # a command line makes a number of it
    for number, (datalist, year) in enumerate(forms):
        found = run(tmp_path / f"out{number}", datalist=str(datalist), label_values=year, checkpoints=weights)
        np.testing.assert_array_equal(found["value"], expected["value"])
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)
        assert not (tmp_path / f"out{number}" / "agreement.csv").exists()  # a reference for phantoms is none for others
        assert not (tmp_path / f"out{number}" / "stability.csv").exists()  # one fold


def test_the_command_works_from_any_folder(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", CONTRAST.config, "--output_dir", "out"]
    command += ["--phantom_seeds", "[5002]", "--folds", "[0]", "--sub_region_names", "[WT]", "--progress", "False"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "summary.md").is_file()
    assert "VISIBILITY" in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")


def test_groups_of_channels_are_removed_together(tmp_path):
    groups = {"T1": [0, 1], "T2": ["t2w", "t2f"]}
    options = {"phantom_seeds": [5002], "folds": [0], "contrasts": groups, "channel_names": list(CONTRASTS)}
    table = run(tmp_path / "out", sub_region_names=["WT"], **options)
    assert table["contrast"].tolist() == ["T1", "T2"]
    (found,) = read_contrasts(tmp_path / "out" / "cases" / "brain_5002")
    assert found.contrasts.channels == ((0, 1), (2, 3))
    assert table["value"].sum() == pytest.approx(table["full"][0] - table["empty"][0], abs=1e-12)


def test_without_ground_truth_the_own_prediction_is_explained_and_dice_against_truth_is_refused(tmp_path):
    files = write_brats(tmp_path / "data" / "case", 5002)
    Path(files["label"]).unlink()
    options = {"datalist": str(tmp_path / "data"), "folds": [0], "sub_region_names": ["WT", "ET"]}
    table = run(tmp_path / "out", scores=["dice", "tp"], **options)
    assert set(table["score"]) == {"dice", "tp"}
    assert table["truth_voxels"].isna().all()
    assert (table[table["score"] == "dice"]["full"] > 1 - 1e-6).all()
    assert "score `dice`" in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    with pytest.raises(Exception, match=r".") as caught:
        run(tmp_path / "other", **options)
    assert any(
        "'dice_truth' needs a ground truth; give one, or explain 'dice'" in text for text in reasons(caught.value)
    )


def test_bad_cases_are_listed_and_the_others_explained(finished, tmp_path):
    good, bad = (write_brats(tmp_path / "data" / name, 5002, "2023") for name in ("good", "bad"))
    wrong_order = {"image": [bad[name] for name in CONTRASTS[::-1]], "label": bad["label"], "case": "order"}
    shifted = {"image": [bad[name] for name in CONTRASTS], "label": str(tmp_path / "label.nii.gz"), "case": "grid"}
    label = nib.load(bad["label"])
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[:-1], label.affine), tmp_path / "label.nii.gz")
    listed = [{"image": [good[name] for name in CONTRASTS], "label": good["label"], "case": "good"}]
    with pytest.raises(Exception, match=r".") as caught:
        run(tmp_path / "out", datalist=[*listed, wrong_order], folds=[0])
    assert any("channel 0 should be t1n, but" in text for text in reasons(caught.value))
    with pytest.raises(Exception, match=r".") as caught:
        run(tmp_path / "out", datalist=[*listed, shifted], folds=[0])
    assert any("'label' and 'image' lie on different grids" in text for text in reasons(caught.value))
    assert set(pd.read_csv(tmp_path / "out" / "contrasts.csv")["case"]) == {"good"}  # what was finished stays


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": "nowhere.pt"}, "cannot read network weights from nowhere.pt"),
        ({"reference": "nowhere.yaml"}, "nowhere.yaml"),
        ({"reference": "other.yaml"}, "the reference for 'WT' ranks t1c, t2f, the values are of t1n, t1c, t2w, t2f"),
        ({"datalist": "nowhere.json"}, "nowhere.json"),
        ({"contrasts": ["t1c", "t1n", "t2w", "t2f"]}, "channel 0 should be t1c, but t1n is t1n"),
        ({"contrasts": ["t1n", "t1c", "t2w"]}, "the contrasts describe 3 channels"),
        ({"contrasts": {"T1": [0, 1], "T2": [2, 3]}}, "give channel_names"),
        ({"scores": ["iou"]}, "expected some of dice_truth"),
        ({"sub_region_names": ["liver"]}, "does not follow from the output channels"),
        ({"removal": "nothing"}, "unknown removal 'nothing'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options_are_named_before_anything_runs(options, message, finished, tmp_path):
    (tmp_path / "other.yaml").write_text("source: an example\nregions:\n  WT: [t1c, t2f]\n")
    if options.get("reference") == "other.yaml":
        options = {"reference": str(tmp_path / "other.yaml")}
    with pytest.raises(Exception, match=r".") as caught:
        run(copied(finished, tmp_path), **FEW, **options)
    assert any(message in text for text in reasons(caught.value)), reasons(caught.value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(Exception, match=r".") as caught:
        run(tmp_path / "out", phantom_seeds=[5000], checkpoints={"mine": str(tmp_path / "other.pt")})
    assert any("belongs to another network than UNet" in text for text in reasons(caught.value))


def test_two_processes_explain_their_own_cases_into_one_table(finished, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(finished[0] / "phantoms", folder / "phantoms")
    command = ["-m", "monai.bundle", "run", "--config_file", "bundles/contrast_shapley/configs/inference.yaml"]
    command += ["--output_dir", folder, "--device", "cpu", "--progress", "False"]
    run_processes([*command, "--phantom_seeds", FEW["phantom_seeds"], "--folds", [1]], cwd=ROOT, timeout=500)
    report = REPORT - {"stability.csv", "stability.png"}  # one fold
    assert {path.name for path in folder.iterdir()} == report | {"cases", "evaluations", "phantoms"}
    expected = pd.read_csv(finished[0] / "contrasts.csv").query("fold == 'fold_1'").reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "contrasts.csv"), expected, check_exact=False, atol=1e-9)
