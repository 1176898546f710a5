# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The files of an explanation: all of them or none."""

from __future__ import annotations

import json
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

import monai_segshap.writers as writers
from monai_segshap.explainers import KernelSHAPExplainer
from monai_segshap.geometry import current_grid
from monai_segshap.inferers import CachingSlidingWindowInferer
from monai_segshap.region import select_region
from monai_segshap.units import partition_from_labels
from monai_segshap.writers import format_table, write_explanation


class Bright(torch.nn.Module):
    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], dim=1)


@pytest.fixture(scope="module")
def explanation():
    rng = np.random.default_rng(1)
    values = rng.uniform(0.3, 0.45, (1, 12, 10, 8)).astype(np.float32)
    values[0, 3:8, 3:7, 2:6] = 0.9
    image = MetaTensor(torch.from_numpy(values), affine=torch.diag(torch.tensor([-2.0, 2, 4, 1])))
    labels = np.zeros((12, 10, 8), np.int32)
    labels[3:6, 3:7, 2:6], labels[6:8, 3:7, 2:6], labels[11] = 1, 2, 400
    grid = current_grid(image)
    partition = partition_from_labels(labels, grid, "organs", {1: "left part", 2: "right part", 400: "edge"})
    logits = Bright()(image.as_subclass(torch.Tensor)[None])[0]
    region = select_region(logits.argmax(0).numpy(), 1, {"mode": "largest", "margin_mm": 2.0}, grid)
    inferer = CachingSlidingWindowInferer((8, 8, 8), 2, 0.5)
    explainer = KernelSHAPExplainer(Bright(), inferer, progress=False)
    return explainer(image, partition, [region], logits, ["background", "block"], case="case 1")[0]


EXPECTED = {
    "explanation.json",
    "attributions.csv",
    "units_colors.csv",
    "units.nii.gz",
    "prediction.nii.gz",
    "region.nii.gz",
    "overview.png",
    *(f"overview_{s}.png" for s in ("fp", "dice", "soft_dice")),
    *(f"attribution_{s}.nii.gz" for s in ("tp", "fp", "dice", "soft_dice")),
}


def test_all_files_are_written_and_nothing_else_stays(explanation, tmp_path):
    written = write_explanation(explanation, tmp_path / "a" / "case")
    assert set(written) == EXPECTED == {p.name for p in (tmp_path / "a" / "case").iterdir()}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["case"]


def test_volumes_hold_values_in_compact_types(explanation, tmp_path):
    write_explanation(explanation, tmp_path / "case", overview=False)
    units = nib.load(tmp_path / "case" / "units.nii.gz")
    assert units.get_data_dtype() == np.int16
    assert units.header.get_xyzt_units()[0] == "mm"
    assert np.array_equal(np.asarray(units.dataobj), explanation.partition.labels)
    painted = np.asarray(nib.load(tmp_path / "case" / "attribution_tp.nii.gz").dataobj)
    for label in (1, 2, 3):
        inside = painted[explanation.partition.labels == label]
        assert inside == pytest.approx(explanation.values[label - 1, 0])
    assert (painted[explanation.partition.labels == 0] == 0).all()


def test_an_earlier_run_is_replaced_and_other_files_stay(explanation, tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "explanation.json").write_text("old")
    write_explanation(explanation, folder, overview=False)
    assert (folder / "notes.txt").read_text() == "mine"
    assert json.loads((folder / "explanation.json").read_text())["case"] == "case 1"


@pytest.mark.parametrize("broken", ["nib.save", "to_csv", "picture", "rename"])
def test_a_full_disk_leaves_nothing_half_written(broken, explanation, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if broken == "nib.save":
        monkeypatch.setattr(writers.nib, "save", full)
    elif broken == "to_csv":
        monkeypatch.setattr(writers.pd.DataFrame, "to_csv", full)
    elif broken == "picture":
        monkeypatch.setattr(writers, "save_overview", full)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_explanation(explanation, tmp_path / "case")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rerun_keeps_the_earlier_result(explanation, tmp_path, monkeypatch):
    write_explanation(explanation, tmp_path / "case", overview=False)
    before = {p.name: p.read_bytes() for p in (tmp_path / "case").iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers.nib, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_explanation(explanation, tmp_path / "case", overview=False)
    assert {p.name: p.read_bytes() for p in (tmp_path / "case").iterdir()} == before


def test_a_file_in_the_way_is_named(explanation, tmp_path):
    (tmp_path / "case").write_text("a file")
    with pytest.raises(OSError, match="case"):
        write_explanation(explanation, tmp_path / "case", overview=False)
    assert [p.name for p in tmp_path.iterdir()] == ["case"]


def test_table_is_ordered_and_says_that_it_is_exact(explanation):
    text = format_table(explanation, n_units=2)
    assert text.startswith("case 1: why is this block? 2 of 3 organ units, by |tp|; exact")
    assert text.index("left part") < text.index("right part")
    assert "edge" not in text
    assert "±" not in text
