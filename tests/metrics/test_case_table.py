# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import csv
import math

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics.utils import do_metric_reduction
from monai.utils import MetricReduction

from monai_segshap.metrics import CaseRow, CaseTableMetric
from monai_segshap.metrics.case_table import name_of_image

NAN = math.nan
TABLE = [[1.0, 10.0, NAN], [2.0, NAN, NAN], [NAN, NAN, NAN], [6.0, 40.0, NAN]]


class Numbers(CaseTableMetric):
    """Rows as they come: for each case (name, list of rows)."""

    def case_rows(self, y_pred, y):
        name, rows = y_pred
        notes = () if y is None else (y,)
        return [CaseRow(name, row, notes) for row in rows]


def metric(**options):
    found = Numbers(["a", "b", "c"], **options)
    found([("first", TABLE[:1]), ("second", TABLE[1:3])], ["seen", "NaN: why"])
    found([("third", []), ("", TABLE[3:])])
    return found


def test_a_call_returns_its_rows_and_keeps_them():
    one = Numbers(["a", "b", "c"])
    rows = one([("x", TABLE[:1]), ("y", TABLE[1:2])])
    np.testing.assert_array_equal(rows, TABLE[:2])
    assert rows.dtype == torch.float64
    assert one([("nothing", [])]).shape == (0, 3)
    assert len(one) == 2
    np.testing.assert_array_equal(one.get_buffer(), TABLE[:2])
    assert one.get_buffer().dtype == torch.float32
    one.reset()
    assert len(one) == 0
    assert one.get_buffer().shape == (0, 3)


@pytest.mark.parametrize(
    ("reduction", "expected", "counts"),
    [
        ("mean_batch", [3.0, 25.0, NAN], [3, 2, 0]),
        ("sum_batch", [9.0, 50.0, NAN], [3, 2, 0]),
        ("mean_channel", [5.5, 2.0, NAN, 23.0], [2, 1, 0, 2]),
        ("sum_channel", [11.0, 2.0, NAN, 46.0], [2, 1, 0, 2]),
        ("mean", (5.5 + 2.0 + 23.0) / 3, 3),
        ("sum", 59.0, 5),
        ("none", TABLE, [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]]),
    ],
)
def test_reductions_by_hand(reduction, expected, counts):
    found, known = metric(reduction=reduction, get_not_nans=True).aggregate()
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(known, counts)
    np.testing.assert_allclose(metric().aggregate(reduction), expected)


@pytest.mark.parametrize("reduction", [r for r in MetricReduction if r != MetricReduction.NONE])
def test_reductions_are_those_of_monai_where_there_is_something_to_reduce(reduction):
    rows = torch.tensor([[1.0, 2.0, NAN], [5.0, NAN, 7.0], [0.5, 3.0, NAN]], dtype=torch.float64)
    one = Numbers(["a", "b", "c"], reduction=reduction, get_not_nans=True)
    one([("x", rows.tolist())])
    expected, counts = do_metric_reduction(rows.clone(), reduction)
    found, known = one.aggregate()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(known, counts)


def test_a_mean_over_nothing_is_nan():
    nothing = Numbers(["a", "b", "c"], get_not_nans=True)
    found, counts = nothing.aggregate()
    assert torch.isnan(found).all()
    assert counts.tolist() == [0, 0, 0]
    assert math.isnan(nothing.aggregate("mean")[0])
    assert nothing.table().empty


def test_named_numbers_and_infinite_ones():
    one = Numbers(["a", "b"], named=True)
    one([("x", [[1.0, math.inf], [2.0, 3.0]])])
    assert one.aggregate() == {"a": 1.5, "b": math.inf}
    assert one.aggregate("mean_batch").tolist() == [1.5, math.inf]


def test_the_table_has_names_and_notes_and_is_written_with_all_digits(tmp_path):
    one = metric()
    one([("fourth", [[1e-9 / 3, 1.0, 2.0]])])
    table = one.table()
    assert table["case"].tolist() == ["first", "second", "second", "3", "fourth"]
    assert table["notes"].tolist() == ["seen", "NaN: why", "NaN: why", "", ""]
    path = one.save_table(tmp_path / "new" / "table.csv")
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]
    back = pd.read_csv(path, float_precision="round_trip")
    assert " ".join(back) == "case a b c notes"
    np.testing.assert_array_equal(back[["a", "b", "c"]], table[["a", "b", "c"]])
    assert back["a"].iloc[-1] == 1e-9 / 3
    with path.open() as file:
        assert next(csv.DictReader(file))["c"] == ""


def test_names_of_the_rows_since_the_last_call_are_meta_data():
    one = metric()
    assert [m["filename_or_obj"] for m in one.file_names()] == ["first", "second", "second", "3"]
    one([("x", TABLE[:2]), ("y", TABLE[:1])])
    one([("z", TABLE[:1])])
    assert [m["filename_or_obj"] for m in one.file_names("any batch")] == ["x", "x", "y", "z"]
    one([("nothing", [])])
    assert one.file_names() == []
    one.reset()
    one([("again", TABLE[:1])])
    assert one.file_names() == [{"filename_or_obj": "again"}]


def test_rows_of_numbers_can_be_added_as_to_any_metric():
    one = Numbers(["a", "b", "c"])
    one.extend(torch.tensor(TABLE[:2]))
    one.append(torch.tensor(TABLE[3]))
    np.testing.assert_array_equal(one.get_buffer(), [TABLE[0], TABLE[1], TABLE[3]])
    assert one.table()["case"].tolist() == ["0", "1", "2"]


def test_names_of_images():
    image = torch.zeros(1, 2, 2, 2)
    assert name_of_image(image) == name_of_image(None) == name_of_image(MetaTensor(image)) == ""
    assert name_of_image(MetaTensor(image, meta={"filename_or_obj": "some/where/case_3_0000.nii.gz"})) == "case_3"
    assert name_of_image(MetaTensor(image, meta={"filename_or_obj": ["some/where/b.nii.gz"]})) == "b"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": []}, "expected one or more different names"),
        ({"columns": ["a", "a"]}, "expected one or more different names"),
        ({"columns": ["a"], "reduction": "median"}, "unknown reduction 'median'; expected one of none, mean"),
        ({"columns": ["a"], "named": True, "reduction": "mean"}, "named with reduction 'mean'"),
        ({"columns": ["a"], "named": True, "get_not_nans": True}, "get_not_nans True"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Numbers(**options)


def test_bad_calls():
    one = Numbers(["a", "b"])
    with pytest.raises(ValueError, match="y_pred has 1 cases and y 2"):
        one([("x", [])], ["u", "v"])
    with pytest.raises(ValueError, match="a row has 3 numbers; expected 2"):
        one([("x", TABLE)])
    assert len(one) == 0
    with pytest.raises(ValueError, match="unknown reduction"):
        one.aggregate("middle")
