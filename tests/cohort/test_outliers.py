# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import builtins
import importlib
import warnings

import numpy as np
import pytest
from importance_rows import random_table

pytest.importorskip("sklearn")

from sklearn.ensemble import IsolationForest

from monai_segshap.cohort import ImportanceTable, OutlierModel, outlier_correlation, planted_auc

NAMES = ("liver", "spleen", "kidney", "aorta")


def cohort_with_planted_group(seed=0, n_normal=40, n_abnormal=8):
    """Normal cases, and cases whose liver row has turned towards the aorta; the other rows are as everywhere."""
    table = random_table(n_normal + n_abnormal, NAMES, seed=seed)
    values = table.values.copy()
    towards = np.array([0.0, 0.0, 0.0, 1.0])
    values[n_normal:, 0] = 0.5 * values[n_normal:, 0] + 0.5 * towards
    planted = np.arange(n_normal + n_abnormal) >= n_normal
    return ImportanceTable(table.cases, NAMES, NAMES, values), planted


def test_scores_are_those_of_a_forest_on_the_class_rows():
    reference, other = random_table(60, NAMES, seed=1), random_table(9, NAMES, seed=2)
    model = OutlierModel.fit(reference, seed=5, n_estimators=20)
    scores = model.scores(other)
    for t, name in enumerate(NAMES):
        forest = IsolationForest(n_estimators=20, random_state=5).fit(reference.values[:, t])
        np.testing.assert_array_equal(scores[name], forest.decision_function(other.values[:, t]))
    np.testing.assert_array_equal(model.anomaly(other), -scores)


def test_a_planted_group_is_found_in_its_class_and_nowhere_else():
    reference = random_table(80, NAMES, seed=11)
    cohort, planted = cohort_with_planted_group()
    scores = OutlierModel.fit(reference, n_estimators=50).scores(cohort)
    found = planted_auc(scores, planted)
    assert found.loc["liver", "auc"] > 0.99
    assert scores["liver"][planted].max() < 0  # LOW is abnormal, below 0 an outlier
    assert scores["liver"][~planted].median() > 0
    assert found.loc[["spleen", "kidney", "aorta"], "auc"].between(0.2, 0.8).all()
    assert found.loc["liver", ["n_abnormal", "n_normal"]].tolist() == [8, 40]


def test_scores_that_follow_a_bad_segmentation_correlate_positively_with_dice():
    reference = random_table(80, NAMES, seed=11)
    cohort, _ = cohort_with_planted_group()
    scores = OutlierModel.fit(reference, n_estimators=50).scores(cohort)
    dice = scores.copy()
    dice[:] = np.random.default_rng(0).uniform(0.6, 1.0, size=scores.shape)
    dice["liver"] = 0.9 + 0.3 * scores["liver"]
    found = outlier_correlation(scores, dice)
    assert found.loc["liver", "rho"] == pytest.approx(1.0)
    assert found.loc["liver", "p_holm"] < 1e-6


def test_cases_without_a_class_are_named_and_have_no_score():
    table = random_table(10, NAMES, seed=3)
    values = table.values.copy()
    values[[2, 7], 1] = np.nan
    values[1:, 3] = np.nan
    holes = ImportanceTable(table.cases, NAMES, NAMES, values)
    model = OutlierModel.fit(holes, n_estimators=10)
    assert model.left_out["spleen"] == ("case 3", "case 8")
    assert model.n_fitted == {"liver": 10, "spleen": 8, "kidney": 10, "aorta": 1}
    scores = model.scores(holes)
    assert scores.index[scores["spleen"].isna()].tolist() == ["case 3", "case 8"]
    assert scores["aorta"].isna().all()  # one case is no cohort
    assert scores["liver"].notna().all()
    complete = OutlierModel.fit(
        table.select([c for n, c in enumerate(table.cases) if n not in (2, 7)]), n_estimators=10
    )
    np.testing.assert_array_equal(
        scores["spleen"].dropna(), complete.scores(table)["spleen"].drop(["case 3", "case 8"])
    )


def test_names_are_found_whatever_their_order_and_further_ones_ignored():
    reference = random_table(30, NAMES, seed=1)
    model = OutlierModel.fit(reference, n_estimators=10)
    other = random_table(5, NAMES, seed=2)
    order = [3, 1, 0, 2]
    turned = tuple(NAMES[n] for n in order)
    values = np.concatenate([other.values[:, order][:, :, order], np.full((5, 4, 1), 0.5)], axis=2)
    table = ImportanceTable(other.cases, turned, (*turned, "effusion"), values)
    np.testing.assert_array_equal(model.scores(table), model.scores(other))
    with pytest.raises(ValueError, match=r"lacks the explained classes \[\] and the regions \['aorta'\]"):
        model.scores(other.join_regions({"vessels": ["aorta"]}))
    means = ImportanceTable(other.cases, NAMES, NAMES, other.values, variant="mean")
    with pytest.raises(ValueError, match="holds \\(mean, absolute\\)"):
        model.scores(means)


def test_a_saved_model_gives_the_same_scores_without_pickled_code(tmp_path):
    reference, other = random_table(30, NAMES, seed=1), random_table(9, NAMES, seed=2)
    model = OutlierModel.fit(reference, seed=9, n_estimators=12)
    path = model.save(tmp_path / "model.npz")
    with np.load(path, allow_pickle=False) as content:
        assert all(content[name].dtype != object for name in content.files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = OutlierModel.load(path)
    np.testing.assert_array_equal(again.scores(other), model.scores(other))
    assert (again.seed, again.n_estimators, again.table.cases) == (9, 12, reference.cases)


def test_a_model_that_refits_otherwise_says_so(tmp_path):
    model = OutlierModel.fit(random_table(30, NAMES, seed=1), n_estimators=5)
    path = model.save(tmp_path / "model.npz")
    with np.load(path) as content:
        held = {name: content[name] for name in content.files}
    np.savez(path, **{**held, "scores": held["scores"] + 0.01, "sklearn": np.array("0.1")})
    with pytest.warns(UserWarning, match="differs by up to 0.01 .*saved with scikit-learn 0.1"):
        OutlierModel.load(path)
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match="is no saved outlier model"):
        OutlierModel.load(path)
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        model.save(tmp_path / "model.pkl")
    with pytest.raises(FileNotFoundError):
        OutlierModel.load(tmp_path / "none.npz")


def test_tables_without_complete_rows_and_a_missing_library_are_named(monkeypatch):
    table = random_table(3, NAMES, seed=1)
    with pytest.raises(ValueError, match="no class has a complete row in 2 of the 3 cases"):
        OutlierModel.fit(ImportanceTable(table.cases, NAMES, NAMES, np.full(table.values.shape, np.nan)))
    with pytest.raises(ValueError, match="got 0 trees"):
        OutlierModel.fit(table, n_estimators=0)

    def without(name, *arguments):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return builtins.__import__(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"pip install monai_segshap\[cohort\]"):
        OutlierModel.fit(table)
