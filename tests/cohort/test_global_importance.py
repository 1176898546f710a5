# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import warnings

import numpy as np
import pytest
from importance_rows import random_table
from scipy import stats

from monai_segshap.cohort import ImportanceMatrix, ImportanceTable, context_use, global_importance


def table_with_holes():
    table = random_table(12, ("a", "b", "c"), seed=7, concentration=8.0)
    values = table.values.copy()
    values[[0, 3, 5], 1] = np.nan  # b absent in three cases
    values[:, 2] = np.nan  # c absent everywhere
    values[1:, 0] = np.nan  # a in one case only
    return ImportanceTable(table.cases, table.explained, table.regions, values)


def test_mean_median_and_counts_ignore_absent_classes():
    table = table_with_holes()
    found = global_importance(table, n_resamples=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(found.mean, np.nanmean(table.values, axis=0))
        np.testing.assert_allclose(found.median, np.nanmedian(table.values, axis=0))
    assert found.counts.tolist() == [[1] * 3, [9] * 3, [0] * 3]
    assert found.n_cases == 12
    assert np.isnan(found.low[[0, 2]]).all()  # one case, no case: no interval
    assert (found.low[1] < found.mean[1]).all()
    assert (found.mean[1] < found.high[1]).all()


def test_intervals_equal_a_plain_loop_over_resamples():
    table = table_with_holes()
    found = global_importance(table, level=0.9, n_resamples=200, seed=4)
    generator = np.random.default_rng(4)
    draws = generator.integers(12, size=(200, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        means = np.stack([np.nanmean(table.values[draw, 1], axis=0) for draw in draws])
    np.testing.assert_allclose(found.low[1], np.nanpercentile(means, 5, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.high[1], np.nanpercentile(means, 95, axis=0), rtol=1e-12)
    again = global_importance(table, level=0.9, n_resamples=200, seed=4)
    np.testing.assert_array_equal(again.low, found.low)


def test_intervals_agree_with_scipy_on_a_cell_without_holes():
    table = random_table(40, ("a", "b"), seed=8, concentration=5.0)
    found = global_importance(table, n_resamples=5000, seed=1)
    column = table.values[:, 0, 1]
    other = stats.bootstrap(
        (column,), np.mean, n_resamples=5000, method="percentile", random_state=2
    ).confidence_interval
    width = other.high - other.low
    assert abs(found.low[0, 1] - other.low) < 0.05 * width
    assert abs(found.high[0, 1] - other.high) < 0.05 * width


def test_as_table_matrix_and_from_a_list_of_matrices():
    matrices = [
        ImportanceMatrix("x", ("a", "b"), ("a", "b"), np.array([[0.2, 0.8], [0.4, 0.6]])),
        ImportanceMatrix("y", ("a", "b"), ("a", "b"), np.array([[0.4, 0.6], [np.nan, np.nan]])),
    ]
    found = global_importance(matrices)
    np.testing.assert_allclose(found.mean, [[0.3, 0.7], [0.4, 0.6]])
    assert found.matrix().case == "Mean of 2 cases"
    np.testing.assert_array_equal(found.matrix("median").values, found.median)
    frame = found.to_frame().set_index(["explained", "region"])
    assert frame.loc[("a", "b"), "mean"] == pytest.approx(0.7)
    assert frame.loc[("b", "a"), "n"] == 1
    assert np.isnan(frame.loc[("b", "a"), "low"])


def test_context_use_is_the_mass_outside_the_class():
    values = np.array([[[0.2, 0.7, 0.1], [0.4, 0.6, 0.0]], [[0.5, 0.5, 0.0], [np.nan] * 3]])
    table = ImportanceTable(("x", "y"), ("a", "b"), ("a", "b", "fluid"), values)
    found = context_use(table)
    np.testing.assert_allclose(found.to_numpy(), [[0.8, 0.4], [0.5, np.nan]])
    turned = context_use(table, own={"a": "fluid"})
    np.testing.assert_allclose(turned["a"], [0.9, 1.0])


def test_wrong_requests_are_refused():
    table = random_table(3, ("a", "b"), seed=1)
    with pytest.raises(ValueError, match=r"level 1\.0"):
        global_importance(table, level=1.0)
    with pytest.raises(ValueError, match="expected mean, median"):
        global_importance(table).matrix("mode")
    lonely = ImportanceTable(("x",), ("a", "b"), ("a", "c"), np.full((1, 2, 2), 0.5))
    with pytest.raises(ValueError, match=r"no region for \{'b': 'b'\}"):
        context_use(lonely)
    with pytest.raises(ValueError, match="expected masses"):
        context_use(ImportanceTable(table.cases, table.explained, table.regions, table.values, variant="mean"))
