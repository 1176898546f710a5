# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import os
import stat

import numpy as np
import pandas as pd
import pytest
from importance_rows import CHEST, published_frame, random_table

from monai_segshap.cohort import (
    ImportanceMatrix,
    ImportanceStore,
    ImportanceTable,
    RegionMasks,
    column_name,
    measure_importance,
    read_importances,
    write_importances,
)
from monai_segshap.cohort.matrix import ColumnName

MATRIX = ImportanceMatrix(
    "case 1", ("liver", "spleen"), ("liver", "fat", "spleen"), np.array([[0.7, 0.1 + 0.2, 0.0], [np.nan] * 3]),
    dice={"liver": 0.9},
)  # fmt: skip

HAND_WRITTEN = """patient,liver_explanation_in_liver_mass,liver_explanation_in_spleen_mass,liver_explanation_var,\
spleen_explanation_in_liver_mass,spleen_explanation_in_spleen_mass,liver_dice,spleen_dice,sex
007,0.75,0.25,1e-9,0.125,0.875,0.5,0.25,F
12,0.5,0.5,1e-9,,,1.0,,M
"""


def test_a_record_holds_a_column_for_each_cell_and_reads_back():
    record = MATRIX.to_record()
    assert record["case"] == "case 1"
    assert record["liver_explanation_in_fat_mass"] == 0.1 + 0.2
    assert record["liver_dice"] == 0.9
    assert len(record) == 1 + 6 + 1
    back = ImportanceMatrix.from_record(record)
    np.testing.assert_array_equal(back.values, MATRIX.values)
    assert (back.explained, back.regions, dict(back.dice)) == (MATRIX.explained, MATRIX.regions, {"liver": 0.9})
    assert MATRIX.to_frame().loc["liver", "fat"] == 0.1 + 0.2


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("aorta_explanation_in_pulmonary_vein_mass", ("aorta", "pulmonary_vein", "mass", "absolute")),
        ("aorta_explanation_in_heart_mean_neg", ("aorta", "heart", "mean", "negative")),
        ("lean_mass_explanation_in_fat_mass_mass_pos", ("lean_mass", "fat_mass", "mass", "positive")),
        ("aorta_explanation_in_heart_enrichment", ("aorta", "heart", "enrichment", "absolute")),
        ("aorta_explanation_mean", None),
        ("aorta_dice", None),
        ("mass", None),
    ],
)
def test_columns_are_read_by_their_names(column, expected):
    assert ColumnName.parse(column) == expected
    if expected is not None:
        assert column_name(*expected) == column


def test_a_hand_written_file_is_read_with_absent_classes_dice_and_metadata(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(HAND_WRITTEN)
    table = read_importances(path)
    assert table.cases == ("007", "12")
    assert (table.explained, table.regions) == (("liver", "spleen"), ("liver", "spleen"))
    expected = [[[0.75, 0.25], [0.125, 0.875]], [[0.5, 0.5], [np.nan, np.nan]]]
    np.testing.assert_array_equal(table.values, expected)
    assert table.dice.loc["007"].to_dict() == {"liver": 0.5, "spleen": 0.25}
    assert np.isnan(table.dice.loc["12", "spleen"])
    assert list(table.metadata.columns) == ["liver_explanation_var", "sex"]
    assert table.metadata["sex"].tolist() == ["F", "M"]
    assert table.row("spleen").loc["007"].tolist() == [0.125, 0.875]
    assert dict(table.matrix("12").dice) == {"liver": 1.0}


def test_seventeen_classes_as_published_mass_and_mean_side_by_side(tmp_path):
    truth = random_table(5, CHEST, seed=1)
    published_frame(truth).to_csv(tmp_path / "chest.csv", index=False)
    table = read_importances(tmp_path / "chest.csv")
    assert (table.explained, table.regions) == (CHEST, CHEST)
    assert table.cases[0] == "s1000"
    np.testing.assert_array_equal(table.values, truth.values)
    np.testing.assert_allclose(table.values.sum(axis=2), 1, atol=1e-9)
    assert list(table.dice.columns) == list(CHEST)
    means = read_importances(tmp_path / "chest.csv", variant="mean")
    np.testing.assert_allclose(means.values, truth.values * 1e-7)


def test_tables_of_parts_with_endings_are_read(tmp_path):
    frame = published_frame(random_table(3, ("a", "b"), seed=2)).drop(columns="patient")
    both = pd.concat([frame.add_suffix("_neg"), (frame * 0.5).add_suffix("_pos")], axis=1)
    both.to_csv(tmp_path / "parts.csv")  # with an unnamed column of row numbers
    table = read_importances(tmp_path / "parts.csv", part="positive")
    assert table.cases == ("0", "1", "2")
    np.testing.assert_allclose(table.values.sum(axis=2), 0.5)
    np.testing.assert_allclose(table.dice["a"], frame["a_dice"] * 0.5)
    with pytest.raises(ValueError, match=r"variant and part \[.*'negative'.*Choose one with variant"):
        read_importances(tmp_path / "parts.csv")


def test_writing_and_reading_keeps_every_bit(tmp_path):
    truth = random_table(4, ("a", "b", "c"), seed=3)
    holes = truth.values.copy()
    holes[1, 2] = np.nan
    cases = pd.Index(truth.cases)
    dice = pd.DataFrame({"b": [0.1, 0.2, np.nan, 1 / 3]}, index=cases)
    meta = pd.DataFrame({"site": ["x", "y, z", 'q"', None], "age": [1, 2, 3, 4]}, index=cases)
    mass = ImportanceTable(truth.cases, truth.explained, truth.regions, holes, dice=dice, metadata=meta)
    mean = ImportanceTable(truth.cases, truth.explained, truth.regions, holes * 1e-9, variant="mean")
    path = write_importances(tmp_path / "out.csv", [mass, mean])
    back = read_importances(path)
    np.testing.assert_array_equal(back.values, holes)
    np.testing.assert_array_equal(read_importances(path, variant="mean").values, holes * 1e-9)
    np.testing.assert_array_equal(back.dice["b"], dice["b"])
    assert back.metadata["site"].tolist()[:3] == ["x", "y, z", 'q"']
    assert back.metadata["age"].tolist() == [1, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv"]
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_several_files_of_one_cohort_are_read_together_whatever_their_order_of_columns(tmp_path):
    truth = random_table(6, ("a", "b", "c"), seed=4)
    write_importances(tmp_path / "0.csv", truth.select(truth.cases[:4]))
    flat = truth.select(truth.cases[4:]).to_frame()
    flat[["case", *reversed(flat.columns[1:])]].to_csv(tmp_path / "1.csv", index=False)
    table = read_importances([tmp_path / "0.csv", tmp_path / "1.csv"])
    assert table.cases == truth.cases
    np.testing.assert_array_equal(table.values, truth.values)


def test_pathologies_from_another_file_become_further_columns(tmp_path):
    truth = random_table(3, ("a", "b"), seed=4)
    cells = {"a_explanation_in_fluid_mass": [0.1, 0.2, 0.3], "b_explanation_in_fluid_mass": [0.4, 0.5, 0.6]}
    fluid = read_importances(pd.DataFrame({"case": ["case 3", "case 1", "case 2"], **cells}))
    table = truth.with_regions(fluid)
    assert table.regions == ("a", "b", "fluid")
    assert table.values[:, 0, 2].tolist() == [0.2, 0.3, 0.1]
    assert table.values[:, 1, 2].tolist() == [0.5, 0.6, 0.4]
    with pytest.raises(ValueError, match=r"share the regions \['fluid'\]"):
        table.with_regions(fluid)


def test_joined_columns_of_a_table_are_sums_of_masses():
    truth = random_table(2, ("a", "b", "c"), seed=4)
    joined = truth.join_regions({"ac": ["a", "c"]})
    assert joined.regions == ("ac", "b")
    np.testing.assert_allclose(joined.values[:, :, 0], truth.values[:, :, 0] + truth.values[:, :, 2])
    assert truth.join_regions({"ac": ["a", "c"]}, keep=True).regions == ("a", "b", "c", "ac")
    means = ImportanceTable(truth.cases, truth.explained, truth.regions, truth.values, variant="mean")
    with pytest.raises(ValueError, match="only masses of separate regions add up"):
        means.join_regions({"ac": ["a", "c"]})


def test_enrichments_follow_from_masses_and_means():
    generator = np.random.default_rng(0)
    labels = generator.choice(4, p=[0.6, 0.25, 0.1, 0.05], size=(6, 7, 8))
    maps = generator.normal(size=(3, 6, 7, 8))
    maps[0][labels == 1] = 0  # a row that says nothing of the size of region 1
    maps[2] = 0
    names, regions = ("a", "b", "c"), RegionMasks.from_labels(labels, ["p", "q", "r", "s", "empty"])
    tables = {
        variant: ImportanceTable.of(measure_importance("x", maps, names, regions, variants=[variant]))
        for variant in ("mass", "mean", "enrichment")
    }
    found = tables["mass"].enrichment(tables["mean"])
    assert found.variant == "enrichment"
    np.testing.assert_allclose(found.values, tables["enrichment"].values, rtol=1e-12)
    with pytest.raises(ValueError, match="expected masses and their means"):
        tables["mean"].enrichment(tables["mass"])
    with pytest.raises(ValueError, match="another order"):
        tables["mass"].enrichment(ImportanceTable(("x",), names, tuple("spqrt"), np.ones((1, 3, 5)), "mean"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f.drop(columns="liver_explanation_in_spleen_mass"),
            "1 of 4 columns are missing.*liver_explanation_in",
        ),
        (lambda f: f[["patient", "sex"]], "no column holds importances"),
        (lambda f: f.assign(liver_explanation_in_liver_mass=["0.5", "n.a."]), "row 2, column liver.*'n.a.'"),
        (lambda f: f.assign(liver_explanation_in_liver_mass=[0.5, 1.5]), "case 12: mass of liver in liver is 1.5"),
        (lambda f: f.assign(liver_explanation_in_liver_mass=[-0.5, 0.5]), "expected 0 to 1"),
        (lambda f: f.assign(patient=["a", "a"]), r"several rows are of the cases \['a'\]"),
        (lambda f: f.assign(patient=["a", None]), "row 2 has no name of a case"),
        (lambda f: f.iloc[:0], "has no row"),
    ],
)
def test_faulty_tables_are_refused_with_the_place(tmp_path, change, message):
    path = tmp_path / "published.csv"
    path.write_text(HAND_WRITTEN)
    change(pd.read_csv(path)).to_csv(tmp_path / "faulty.csv", index=False)
    with pytest.raises(ValueError, match=message) as caught:
        read_importances(tmp_path / "faulty.csv")
    assert "faulty.csv" in str(caught.value)


def test_missing_files_ids_and_ambiguous_names_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_importances(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="the file is empty"):
        read_importances(tmp_path / "empty.csv")
    (tmp_path / "published.csv").write_text(HAND_WRITTEN)
    with pytest.raises(ValueError, match="no column 'subject'"):
        read_importances(tmp_path / "published.csv", id_column="subject")
    assert read_importances(tmp_path / "published.csv", id_column="sex").cases == ("F", "M")
    with pytest.raises(ValueError, match="reads otherwise"):
        column_name("a_explanation_in_b", "c")
    unnamed = pd.read_csv(tmp_path / "published.csv").drop(columns="patient")
    assert read_importances(unnamed).cases == ("row 1", "row 2")


def matrix_of(case, value=0.25):
    return ImportanceMatrix(case, ("a",), ("a", "b"), np.array([[value, 1 - value]]), dice={"a": 0.5})


def test_a_store_grows_by_cases_and_is_continued(tmp_path):
    path = tmp_path / "importances.csv"
    settings = {"method": "smooth", "steps": 20}
    store = ImportanceStore(path, settings)
    assert not path.exists()
    for case, value in (("x", 0.1 + 0.2), ("y", np.nan)):
        assert case not in store
        store.append([matrix_of(case, value)], {"sex": "F"})
    again = ImportanceStore(path, settings)
    assert "x" in again
    assert len(again) == 2
    again.append([matrix_of("z")], {"sex": None})
    table = again.table()
    assert table.cases == ("x", "y", "z")
    np.testing.assert_array_equal(table.values[:, 0, 0], [0.1 + 0.2, np.nan, 0.25])
    assert table.metadata["method"].tolist() == ["smooth"] * 3
    with pytest.raises(ValueError, match="case x is already in"):
        again.append([matrix_of("x")])


def test_cases_without_dice_and_further_metadata_share_a_store(tmp_path):
    path = tmp_path / "importances.csv"
    store = ImportanceStore(path)
    bare = ImportanceMatrix("x", ("a",), ("a", "b"), np.array([[0.1, 0.9]]))
    store.append([bare])
    store.append([matrix_of("y")], {"site": "p, q"})
    store.append([ImportanceMatrix("z", ("a",), ("a", "b"), np.array([[0.2, 0.8]]))])
    table = ImportanceStore(path).table()
    assert table.values[:, 0, 0].tolist() == [0.1, 0.25, 0.2]
    np.testing.assert_array_equal(table.dice["a"], [np.nan, 0.5, np.nan])
    assert table.metadata["site"].fillna("").tolist() == ["", "p, q", ""]


def test_a_store_refuses_other_settings_columns_and_files(tmp_path):
    path = tmp_path / "importances.csv"
    ImportanceStore(path, {"method": "smooth"}).append([matrix_of("x")])
    with pytest.raises(ValueError, match=r"case x has \{'method': 'smooth'\}, here it is \{'method': 'vanilla'\}"):
        ImportanceStore(path, {"method": "vanilla"})
    other = ImportanceMatrix("y", ("a",), ("a", "c"), np.array([[0.5, 0.5]]), dice={"a": 0.5})
    store = ImportanceStore(path, {"method": "smooth"})
    with pytest.raises(ValueError, match=r"columns of .* and of case y differ"):
        store.append([other])
    with pytest.raises(ValueError, match="one case at a time"):
        store.append([matrix_of("p"), matrix_of("q")])
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no table of importances"):
        ImportanceStore(tmp_path / "notes.csv")


def test_a_failure_while_writing_leaves_the_finished_cases(tmp_path, monkeypatch):
    path = tmp_path / "importances.csv"
    store = ImportanceStore(path)
    store.append([matrix_of("x")])
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        store.append([matrix_of("y")])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["importances.csv"]
    assert "y" not in store
    store.append([matrix_of("y")])
    assert ImportanceStore(path).cases == ["x", "y"]


def test_tables_of_unlike_matrices_are_refused():
    with pytest.raises(ValueError, match="got no matrix"):
        ImportanceTable.of([])
    with pytest.raises(ValueError, match="regions of x and y differ"):
        ImportanceTable.of([matrix_of("x"), ImportanceMatrix("y", ("a",), ("a", "c"), np.array([[0.5, 0.5]]))])
    with pytest.raises(ValueError, match="one variant and part"):
        ImportanceTable.of([matrix_of("x"), ImportanceMatrix("y", ("a",), ("a", "b"), np.ones((1, 2)), "mean")])
    turned = ImportanceMatrix("y", ("a",), ("b", "a"), np.array([[0.9, 0.1]]))
    assert ImportanceTable.of([matrix_of("x"), turned]).values[1].tolist() == [[0.1, 0.9]]
    with pytest.raises(ValueError, match="has shape"):
        ImportanceMatrix("y", ("a",), ("a", "b"), np.ones((2, 2)))
    with pytest.raises(ValueError, match="no case is called 'q'"):
        ImportanceTable.of([matrix_of("x")]).matrix("q")
    with pytest.raises(ValueError, match="metadata has no row for"):
        ImportanceTable.of([matrix_of("x")], pd.DataFrame({"sex": ["F"]}, index=["other"]))
