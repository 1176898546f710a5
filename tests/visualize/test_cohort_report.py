# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("networkx")
pytest.importorskip("sklearn")

from importance_rows import published_frame, random_table
from matplotlib.image import imread

from monai_segshap.cohort import ImportanceTable, OutlierModel, outlier_correlation, read_importances, write_importances
from monai_segshap.visualize import analyze_cohort, cohort_report

NAMES = ("background", "liver", "aorta", "ribs")
ALWAYS = {
    "matrix.csv", "global.csv", "matrix.png", "graph.png", "boxplots.png", "context_use.csv", "context_use.png",
    "outliers.csv", "outliers.png", "summary.md",
}  # fmt: skip


@pytest.fixture
def published(tmp_path):
    return write_published(tmp_path)


def write_published(folder):
    """A table as others publish it: the last four of 24 cases look for the liver in the ribs."""
    table = random_table(24, NAMES, seed=1)
    values = table.values.copy()
    values[20:, 1] = 0.4 * values[20:, 1] + 0.6 * np.array([0, 0, 0, 1.0])
    values[2, 2] = np.nan
    frame = published_frame(ImportanceTable(table.cases, NAMES, NAMES, values))
    frame["sex"] = ["F", "M"] * 12
    path = folder / "published.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A folder with the published table, the one of a reference cohort, and a report; and the report's files."""
    folder = tmp_path_factory.mktemp("report")
    write_importances(folder / "reference.csv", random_table(60, NAMES, seed=9))
    published = write_published(folder)
    return folder, analyze_cohort(published, folder / "out", reference=folder / "reference.csv", n_resamples=100)


def test_everything_comes_from_the_table_alone(report):
    folder, files = report
    assert set(files) == ALWAYS | {"correlations.csv", "groups.csv"}
    assert {p.name for p in (folder / "out").iterdir()} == set(files)
    assert sorted(p.name for p in folder.iterdir()) == ["out", "published.csv", "reference.csv"]

    table = read_importances(folder / "published.csv")
    matrix = pd.read_csv(files["matrix.csv"], index_col=0)
    np.testing.assert_allclose(matrix.to_numpy(), np.nanmean(table.values, axis=0))
    assert (list(matrix.index), list(matrix.columns)) == (list(NAMES), list(NAMES))
    overall = pd.read_csv(files["global.csv"]).set_index(["explained", "region"])
    assert overall.loc[("aorta", "liver"), "n"] == 23
    assert overall.loc[("liver", "ribs"), "low"] < matrix.loc["liver", "ribs"] < overall.loc[("liver", "ribs"), "high"]

    model = OutlierModel.fit(random_table(60, NAMES, seed=9), seed=123)
    scores = pd.read_csv(files["outliers.csv"], index_col=0)
    pd.testing.assert_frame_equal(scores, model.scores(table))
    found = pd.read_csv(files["correlations.csv"], index_col=0)
    expected = outlier_correlation(model.scores(table), table.dice)
    np.testing.assert_allclose(found["rho"], expected["rho"])
    groups = pd.read_csv(files["groups.csv"])
    assert groups["column"].unique().tolist() == ["sex"]
    assert groups["class"].tolist() == list(NAMES)
    for name in files:
        if name.endswith(".png"):
            assert imread(files[name]).std() > 0.01


def test_the_summary_names_the_planted_cases_the_sign_and_what_is_missing(report):
    text = report[1]["summary.md"].read_text()
    assert text.startswith("# What each class relies on\n\n24 cases, 4 explained classes, 4 regions.")
    assert "LOW means abnormal" in text
    assert "a positive correlation means: the more abnormal, the worse the segmentation" in text
    assert "Absent in some cases, which means leave out: aorta (1)." in text
    assert "fitted on 60 cases" in text
    assert "itself" not in text
    lowest = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| s1")]
    assert set(lowest[:4]) == {"s1020", "s1021", "s1022", "s1023"}
    for name in ("matrix.png", "graph.png", "boxplots.png", "context_use.png", "outliers.png"):
        assert f"({name})" in text


def test_a_cohort_alone_says_that_outliers_are_relative_and_old_files_go(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("correlations.csv", "matrix.csv", "notes.txt"):
        (out / name).write_text("old")
    bare = random_table(5, NAMES, seed=2)
    files = analyze_cohort(bare, out, n_resamples=50)
    assert set(files) == ALWAYS
    assert {p.name for p in out.iterdir()} == ALWAYS | {"notes.txt"}
    text = files["summary.md"].read_text()
    assert "fitted on this cohort itself" in text
    assert "So few cases say little" in text
    assert "holds no Dice" in text
    assert "no groups" in text


def test_one_case_and_classes_without_a_region_are_described_as_far_as_they_go(tmp_path, monkeypatch):
    table = random_table(1, NAMES, seed=2).join_regions({"vessels": ["aorta"]})
    files = analyze_cohort(table, tmp_path / "out", n_resamples=10)
    assert set(files) == ALWAYS - {"outliers.csv", "outliers.png"}
    text = files["summary.md"].read_text()
    assert "nothing to compare a case with" in text
    assert "No region is called aorta" in text
    assert list(pd.read_csv(files["context_use.csv"], index_col=0).columns) == ["background", "liver", "ribs"]
    monkeypatch.setattr(cohort_report, "_draw", lambda *_, **__: None)
    with_own = analyze_cohort(table, tmp_path / "out", n_resamples=10, own={"aorta": "vessels"})
    assert list(pd.read_csv(with_own["context_use.csv"], index_col=0).columns) == ["aorta"]


def test_metadata_and_a_saved_model_come_from_files(tmp_path, published):
    metadata = tmp_path / "patients.csv"
    rows = [f"s{1000 + n},{'old' if n < 12 else 'new'},{n}" for n in reversed(range(24))]
    metadata.write_text("patient,scanner,age\n" + "\n".join(rows))
    model = OutlierModel.fit(random_table(60, NAMES, seed=9), seed=3).save(tmp_path / "normal.npz")
    files = analyze_cohort(published, tmp_path / "out", reference=model, metadata=metadata, n_resamples=10)
    groups = pd.read_csv(files["groups.csv"])
    assert groups["column"].unique().tolist() == ["scanner"]  # each age occurs once
    assert groups["groups"].iloc[0] == "new (12); old (12)"
    liver = groups.set_index("class").loc["liver"]
    scores = pd.read_csv(files["outliers.csv"], index_col=0)["liver"]
    new, old = scores.iloc[12:].to_numpy(), scores.iloc[:12].to_numpy()
    assert liver["effect"] == pytest.approx(np.mean(new[:, None] > old[None]))
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column with names of cases"):
        analyze_cohort(published, tmp_path / "out", metadata=tmp_path / "bad.csv")


def test_a_failure_leaves_nothing_half_written(tmp_path, published, monkeypatch):
    def fails(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(cohort_report, "save_boxplots", fails)
    with pytest.raises(OSError, match="no space left"):
        analyze_cohort(published, tmp_path / "out", n_resamples=10)
    assert [p.name for p in tmp_path.iterdir()] == ["published.csv"]
    monkeypatch.undo()

    def without(name, *arguments):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"monai_segshap\[plots\]"):
        analyze_cohort(published, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["published.csv"]
