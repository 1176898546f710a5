# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, SpatialCropd

from monai_segshap.explainers import Explanation, software_versions
from monai_segshap.geometry import VoxelGrid, current_grid, source_grid
from monai_segshap.inferers import ForwardCounts
from monai_segshap.region import Region
from monai_segshap.units import partition_from_labels

FILE_SHAPE = (9, 7, 5)
#: Storage of the file: LPS, LAS, and axes in another order with an offset; columns are the axes, in mm of RAS.
AFFINES = {
    "LPS": np.array([[-2.0, 0, 0, 30], [0, -3, 0, 40], [0, 0, 5, -50], [0, 0, 0, 1]]),
    "LAS": np.array([[-2.0, 0, 0, 30], [0, 3, 0, -40], [0, 0, 5, -50], [0, 0, 0, 1]]),
    "PIR": np.array([[0.0, 0, 5, 30], [-2, 0, 0, 40], [0, -3, 0, 50], [0, 0, 0, 1]]),
}
CROP = {"roi_start": [1, 2, 1], "roi_end": [4, 5, 4]}


def load(path: Path, volume: np.ndarray, affine: np.ndarray, codes: str, crop: bool) -> Any:
    """Write a volume with its affine, and load it as a deployed pipeline does: channel first, turned, cropped."""
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), affine), path)
    steps: list[Any] = [
        LoadImaged("image"),
        EnsureChannelFirstd("image"),
        Orientationd("image", axcodes=codes, labels=None),
    ]
    if crop:
        steps.append(SpatialCropd("image", **CROP))
    return Compose(steps)({"image": path})["image"]


@pytest.fixture
def make_explanation() -> Callable[..., Explanation]:
    """Three units, the second one a dummy, with made-up values for two scores."""

    def build(grid: VoxelGrid, file_grid: VoxelGrid | None = None, mask: np.ndarray | None = None) -> Explanation:
        labels = np.zeros(grid.shape, dtype=np.int32)
        labels[0], labels[1], labels[-1, 0] = 1, 2, 3
        if mask is None:
            mask = np.zeros(grid.shape, dtype=bool)
            mask[:2, 1:, 1] = True
        return Explanation(
            case="liver 7",
            target=2,
            target_name="spleen",
            region=Region(mask, "box", 2, 3),
            partition=partition_from_labels(
                labels, grid, "organs", names={1: "liver", 2: "aorta", 3: "rib"}, skipped=["pancreas"]
            ),
            visible=np.array([True, False, True]),
            scores=("tp", "fp"),
            values=np.array([[0.5, -0.25], [0.0, 0.0], [-1.5, 1.0]]),
            standard_errors=np.array([[0.1, 0.2], [0.0, 0.0], [0.3, 0.4]]),
            full=np.array([1.0, 0.0]),
            empty=np.array([2.0, -0.5]),
            method="kernelshap",
            evaluations=62,
            seed=4,
            baseline={"kind": "constant", "local": True, "hu": -175.0, "requested_hu": -1024.0, "network_value": 0.0},
            forwards=ForwardCounts(100, 60, 40, 39),
            segmentation_forwards=18,
            seconds={"network": 1.23456, "total": 2.0},
            image=np.zeros(grid.shape, dtype=np.float32),
            prediction=np.zeros(grid.shape, dtype=np.int32),
            file_grid=file_grid or grid,
            diagnostics={"condition_number": 3.0, "rank": 1, "residual_dof": 2, "warnings": ["low"]},
            warnings=("be careful",),
            versions=software_versions(torch.device("cpu")),
        )

    return build


@pytest.fixture
def explanation(make_explanation: Callable[..., Explanation]) -> Explanation:
    return make_explanation(VoxelGrid((4, 3, 2), AFFINES["LPS"]))


# --- the record ---


def test_record_has_the_promised_keys(explanation):
    record = explanation.to_dict()
    promised = {
        "case", "target_class", "region", "units", "baseline", "method", "evaluations", "seed", "grid", "scores",
        "attributions", "forwards", "seconds", "versions",
    }  # fmt: skip
    assert promised <= set(record)
    assert {"index", "name"} <= set(record["target_class"])
    assert {"mode", "voxels", "box_ijk"} <= set(record["region"])
    assert {"kind", "count", "visible", "dummies"} <= set(record["units"])
    assert {"kind", "hu", "network_value"} <= set(record["baseline"])
    assert list(record["scores"]) == ["tp", "fp"]
    assert all({"full", "empty", "efficiency_gap"} == set(score) for score in record["scores"].values())
    assert {"naive", "published_cache", "planned", "run"} <= set(record["forwards"])
    assert {"network", "total"} <= set(record["seconds"])
    row = {"id", "name", "volume_ml", "visible", "tp", "tp_se", "fp", "fp_se"}
    assert all(row <= set(entry) for entry in record["attributions"])


def test_record_survives_json(explanation):
    record = explanation.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_record_says_what_was_computed(explanation):
    record = explanation.to_dict()
    assert record["target_class"] == {"index": 2, "name": "spleen"}
    assert record["region"]["voxels"] == 4
    assert record["region"]["box_ijk"] == [[0, 1, 1], [1, 2, 1]]
    units = record["units"]
    assert (units["kind"], units["count"], units["visible"], units["dummies"], units["skipped"]) == (
        "organs",
        3,
        2,
        1,
        ["pancreas"],
    )
    assert record["scores"]["tp"] == {"full": 1.0, "empty": 2.0, "efficiency_gap": 0.0}
    assert record["scores"]["fp"] == {"full": 0.0, "empty": -0.5, "efficiency_gap": 0.25}
    first, second, third = record["attributions"]
    assert (first["id"], first["name"], first["volume_ml"], first["visible"]) == (1, "liver", 0.18, True)
    assert (first["tp"], first["tp_se"], first["fp"], first["fp_se"]) == (0.5, 0.1, -0.25, 0.2)
    assert (second["name"], second["visible"], second["tp"]) == ("aorta", False, 0.0)
    assert (third["id"], third["name"], third["volume_ml"], third["fp_se"]) == (3, "rib", 0.06, 0.4)
    forwards = [record["forwards"][key] for key in ("naive", "published_cache", "planned", "run", "segmentation")]
    assert forwards == [100, 60, 40, 39, 18]
    assert (record["method"], record["evaluations"], record["seed"], record["grid"]) == (
        "kernelshap",
        62,
        4,
        "deployed",
    )
    assert record["warnings"] == ["be careful"]
    assert record["diagnostics"]["condition_number"] == 3.0


def test_versions_name_everything_that_can_change_a_number():
    versions = software_versions(torch.device("cpu"))
    assert {"monai_segshap", "monai", "torch", "numpy", "scipy", "python", "device"} <= set(versions)
    assert (versions["torch"], versions["device"]) == (torch.__version__, "cpu")


# --- the table ---


def test_table_has_a_row_for_each_unit_and_the_promised_columns(explanation):
    table = explanation.table()
    columns = ["id", "name", "organ", "volume_ml", "x_mm", "y_mm", "z_mm", "visible", "tp", "tp_se", "fp", "fp_se"]
    assert list(table.columns) == columns
    assert table["id"].tolist() == [1, 2, 3]
    assert table["name"].tolist() == table["organ"].tolist() == ["liver", "aorta", "rib"]
    assert table["visible"].tolist() == [True, False, True]
    np.testing.assert_array_equal(table[["tp", "fp"]], explanation.values)
    np.testing.assert_array_equal(table[["tp_se", "fp_se"]], explanation.standard_errors)


def test_table_says_where_the_units_are_in_ras(explanation):
    # unit 3 is the row i = 3, j = 0 of a grid with two voxels along k: x = 30 - 2 * 3, y = 40, z = -50 + 5 / 2
    assert explanation.table()[["x_mm", "y_mm", "z_mm"]].to_numpy()[2].tolist() == [24.0, 40.0, -47.5]


@pytest.mark.parametrize(("score", "order"), [("tp", [3, 1, 2]), ("fp", [3, 1, 2]), (None, [1, 2, 3])])
def test_table_is_sorted_by_absolute_value(explanation, score, order):
    table = explanation.table(sort_by=score)
    assert table["id"].tolist() == order
    assert table.index.tolist() == [0, 1, 2]
    assert table.loc[table["id"] == 3, "tp"].item() == -1.5


@pytest.mark.parametrize("method", ["table", "attribution_map", "score_index"])
def test_a_score_that_was_not_computed_is_refused(explanation, method):
    with pytest.raises(ValueError, match="score 'dice' was not computed; this explanation has tp, fp"):
        getattr(explanation, method)("dice")


# --- maps ---


def test_attribution_map_paints_each_unit_with_its_value(explanation):
    painted = explanation.attribution_map("fp")
    expected = np.zeros((4, 3, 2), dtype=np.float32)
    expected[0], expected[3, 0] = -0.25, 1.0
    assert painted.dtype == np.float32
    np.testing.assert_array_equal(painted, expected)


def test_efficiency_gap_is_the_sum_of_the_values_minus_the_effect(explanation):
    np.testing.assert_allclose(explanation.efficiency_gap, [0.0, 0.25])


def numbered_voxels() -> np.ndarray:
    return 1.0 + np.arange(np.prod(FILE_SHAPE)).reshape(FILE_SHAPE)


@pytest.mark.parametrize("stored", AFFINES)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA"])
@pytest.mark.parametrize("crop", [False, True], ids=["whole", "cropped"])
def test_a_volume_of_the_network_returns_to_the_voxels_of_the_file(tmp_path, make_explanation, stored, codes, crop):
    volume = numbered_voxels()
    image = load(tmp_path / "image.nii.gz", volume, AFFINES[stored], codes, crop)
    explanation = make_explanation(current_grid(image), source_grid(image))
    assert explanation.file_grid.shape == FILE_SHAPE
    np.testing.assert_allclose(explanation.file_grid.affine, AFFINES[stored])
    seen = np.asarray(image[0])
    found = explanation.on_file_grid(seen, fill=-1)
    np.testing.assert_array_equal(found, np.where(np.isin(volume, seen), volume, -1))
    assert seen.size == (27 if crop else volume.size)


@pytest.mark.parametrize("stored", AFFINES)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA"])
@pytest.mark.parametrize("crop", [False, True], ids=["whole", "cropped"])
def test_box_of_the_region_is_given_in_voxels_of_the_file(tmp_path, make_explanation, stored, codes, crop):
    volume = numbered_voxels()
    image = load(tmp_path / "image.nii.gz", volume, AFFINES[stored], codes, crop)
    seen = np.asarray(image[0])
    mask = np.zeros(seen.shape, dtype=bool)
    mask[1:3, 0:2, 1:2] = True
    box = make_explanation(current_grid(image), source_grid(image), mask).file_box()
    voxels = np.argwhere(np.isin(volume, seen[mask]))
    assert box == (tuple(voxels.min(axis=0).tolist()), tuple(voxels.max(axis=0).tolist()))
    assert all(type(n) is int for corner in box for n in corner)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float32])
def test_maps_keep_their_type_on_the_file_grid(make_explanation, dtype):
    flipped = AFFINES["LPS"] @ np.array([[-1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    explanation = make_explanation(VoxelGrid((4, 3, 2), AFFINES["LPS"]), VoxelGrid((4, 3, 2), flipped))
    volume = np.arange(24).reshape(4, 3, 2).astype(dtype)
    found = explanation.on_file_grid(volume)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, volume[::-1])


def test_a_plain_tensor_has_one_grid(make_explanation):
    image = torch.zeros(1, 4, 3, 2)
    explanation = make_explanation(current_grid(image), source_grid(image))
    volume = np.arange(24).reshape(4, 3, 2)
    np.testing.assert_array_equal(explanation.on_file_grid(volume), volume)
    assert explanation.file_box() == ((0, 1, 1), (1, 2, 1))


def test_on_file_grid_returns_a_copy(explanation):
    volume = np.ones((4, 3, 2))
    explanation.on_file_grid(volume)[:] = 0
    assert volume.all()


def test_a_coarser_file_grid_is_sampled_at_the_nearest_voxel(make_explanation):
    coarse = VoxelGrid((2, 3, 2), AFFINES["LPS"] @ np.diag([2.0, 1, 1, 1]))
    explanation = make_explanation(VoxelGrid((4, 3, 2), AFFINES["LPS"]), coarse)
    volume = np.arange(24).reshape(4, 3, 2)
    np.testing.assert_array_equal(explanation.on_file_grid(volume), volume[::2])


def test_an_explanation_can_not_be_changed(explanation):
    with pytest.raises(AttributeError):
        explanation.method = "exact"
    assert replace(explanation, method="exact").method == "exact"
