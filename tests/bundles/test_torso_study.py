# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The study of the demo bundle: its command, on small torsos, and its committed results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from monai.bundle import ConfigParser

from monai_segshap.phantoms import torso_phantom
from monai_segshap.study import ExplanationStudy, comparisons, means

ROOT = Path(__file__).resolve().parents[2]
FILES = [f"bundles/torso_kernelshap/configs/{name}.yaml" for name in ("inference", "study")]
DOCS = ROOT / "bundles" / "torso_kernelshap" / "docs" / "study"
SMALL = {
    "target_class": 1,
    "region": {"mode": "box", "box_ijk": [[30, 20, 4], [50, 44, 11]]},
    "unit_scale_mm": 120.0,
    "organ_select": ["spleen", "liver", "ribs", "muscle"],
    "phantom_shape": [96, 64, 16],
    "resamples": 100,
    "device": "cpu",
}


def command_line(output_dir, **options):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(FILES)]
    for name, value in {**SMALL, "output_dir": str(output_dir), **options}.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550, env=environment)


def study_of(output_dir, **options) -> ExplanationStudy:
    """The same without a process of its own."""
    parser = ConfigParser(ConfigParser.load_config_files(FILES))
    parser.update({**SMALL, "output_dir": str(output_dir), **options})
    return parser.get_parsed_content("study")


def test_the_command_studies_phantoms_and_continues(tmp_path, capsys):
    options = {"phantom_seeds": [3, 4], "unit_kinds": ["organs", "hybrid"]}
    done = command_line(tmp_path, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "study: 4 of 4: phantom_4, hybrid; 1 left" in done.stdout
    folder = tmp_path / "study"
    frame = pd.read_csv(folder / "results.csv")
    assert len(frame) == 2 * 2 * 4
    assert set(frame["score"]) == {"tp", "fp", "dice", "soft_dice"}
    assert frame["status"].eq("done").all()
    for name in ("table_1.csv", "paired.csv", "costs.csv", "curves.csv", "study.md", "paired.png", "curves_tp.png"):
        assert (folder / name).stat().st_size > 0, name
    exact = frame[frame["method"] == "exact"]
    assert len(exact)
    bounded = exact[exact["naopc"].notna()]  # all coalitions are known: NAOPC costs nothing
    assert (bounded["bounds"] == "exact").all()
    assert bounded["naopc"].between(-1e-9, 1 + 1e-9).all()
    parts = frame.pivot(index=["case", "kind"], columns="score", values="full")
    np.testing.assert_allclose(parts["soft_dice"], parts["tp"] + parts["fp"], rtol=1e-5)
    before = {p: p.stat().st_mtime_ns for p in (folder / "results").rglob("*.json")}
    study_of(tmp_path, **options).run()
    assert "study: 4 of 4 results are there already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (folder / "results").rglob("*.json")} == before
    with pytest.raises(ValueError, match=r"settings\.seed was 0, is 1"):
        study_of(tmp_path, **options, seed=1).run()


def test_a_datalist_with_a_case_that_fails(tmp_path):
    case = torso_phantom(seed=3, shape=(96, 64, 16)).write(tmp_path / "p1")
    entries = [
        {"image": "p1/ct.nii.gz", "organs": "p1/organs.nii.gz", "case": "first"},
        {"image": "p1/ct.nii.gz", "case": "without_organs"},
    ]
    (tmp_path / "cases.json").write_text(json.dumps({"testing": entries}))
    files = {"datalist": str(tmp_path / "cases.json"), "organ_names": str(case["organ_names"])}
    study_of(tmp_path, unit_kinds=["organs"], scores=["fp"], **files).run()
    frame = pd.read_csv(tmp_path / "study" / "results.csv").set_index("case")
    assert frame["status"].to_dict() == {"first": "done", "without_organs": "failed"}
    assert "Key `organs`" in frame.loc["without_organs", "reason"]


def test_the_overlay_repeats_nothing_and_its_defaults_are_sound(tmp_path):
    parser = ConfigParser(ConfigParser.load_config_files(FILES))
    parser.update({"output_dir": str(tmp_path), "phantom_shape": [32, 32, 8], "device": "cpu"})
    study = parser.get_parsed_content("study")
    assert isinstance(study, ExplanationStudy)
    assert list(study.units) == ["organs", "fcc", "hybrid"]
    assert [case["case"] for case in study.cases] == [f"phantom_{seed}" for seed in parser["phantom_seeds"]]
    assert len(study.cases) == 8
    assert "lymph_nodes" not in study.units["organs"].transform.select
    assert study.explain["fcc"].explainer.settings.budget == parser["budgets"]["fcc"]
    assert study.explain["fcc"].explainer.settings.inferer is parser.get_parsed_content("inferer")
    own, repeated = (ConfigParser.load_config_file(name) for name in reversed(FILES))
    overridden = {"run", "region", "unit_scale_mm", "min_unit_voxels", "cases", "ranks", "store_dir"}
    assert set(own) & set(repeated) == overridden


def test_committed_tables_follow_from_the_committed_results():
    frame = pd.read_csv(DOCS / "results.csv")
    assert frame.groupby(["case", "kind"]).size().eq(4).all()
    assert frame["case"].nunique() == 8
    for name, made in (("table_1.csv", means(frame)), ("paired.csv", comparisons(frame).drop(columns="differences"))):
        found = pd.read_csv(DOCS / name)
        pd.testing.assert_frame_equal(found, made, rtol=2e-5, atol=1e-6, check_dtype=False)
    for picture in DOCS.glob("*.png"):
        assert picture.stat().st_size < 200_000, picture.name


def test_what_the_docs_say_is_in_the_tables():
    frame, table = pd.read_csv(DOCS / "results.csv"), pd.read_csv(DOCS / "table_1.csv")
    paired = pd.read_csv(DOCS / "paired.csv").set_index(["measure", "score", "first", "second"]).sort_index()
    lead = table.set_index(["measure", "score"])[["organs", "fcc", "hybrid"]]
    for score in ("tp", "dice", "soft_dice"):  # what holds
        for measure in ("AOPC", "nAOPC"):
            assert lead.loc[(measure, score)].idxmax() == "fcc"
            assert paired.loc[(measure, score, "organs", "fcc"), "low"] > 0
            assert paired.loc[(measure, score, "fcc", "hybrid"), "high"] < 0
    for score in ("tp", "soft_dice"):  # what does not
        for measure in ("ABPC", "nABPC"):
            assert lead.loc[(measure, score)].idxmax() == "hybrid"
            assert (paired.loc[(measure, score), "low"] < 0).all()
            assert (paired.loc[(measure, score), "high"] > 0).all()
    assert lead.loc[("ABPC", "dice")].idxmax() == "fcc"
    assert (
        paired.loc[("ABPC", "dice", "organs", "fcc"), "low"] > 0 > paired.loc[("ABPC", "dice", "fcc", "hybrid"), "low"]
    )
    assert paired.loc[("ABPC", "dice", "fcc", "hybrid"), "high"] > 0
    fp = frame[frame["score"] == "fp"]
    assert fp["abpc_endpoint_normalized"].isna().sum() == fp["empty"].eq(0).sum() == 22
    for measure in ("ABPC", "AOPC"):
        assert lead.loc[(measure, "fp")].idxmin() == "fcc"
        assert (paired.loc[(measure, "fp"), "low"] < 0).all()
        assert (paired.loc[(measure, "fp"), "high"] > 0).all()
    signs = np.sign(paired["mean"].unstack("score"))
    assert (signs["tp"] == signs["soft_dice"]).all()
    assert frame[frame["score"].isin(["tp", "dice"])]["empty"].eq(0).all()
    converged = frame.groupby(["score", "kind"])["converged"].sum()
    assert converged[["tp", "soft_dice"]].eq(8).all()
    assert converged["dice"].to_dict() == {"fcc": 8, "hybrid": 4, "organs": 4}
    assert converged["fp"].max() <= 2
    one = frame[frame["score"] == "tp"].set_index(["kind", "case"])
    assert one.loc["fcc", "target_purity"].between(0.005, 0.035).all()
    assert one.loc[["organs", "hybrid"], "target_covered"].eq(0).all()
    assert one.loc["fcc", "aopc_endpoint_normalized"].eq(1).all()  # nothing is left after the first cell
    assert one.groupby("kind")["visible_units"].agg(["min", "max"]).to_numpy().tolist() == [[25, 37], [21, 45], [9, 16]]
    rates = pd.read_csv(DOCS / "costs.csv").groupby("kind")["published_hit_rate"].mean()
    assert rates["organs"] > 2 * rates["fcc"] > 2 * rates["hybrid"]
