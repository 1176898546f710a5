# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest

from monai_segshap.geometry import VoxelGrid, resample_nearest
from monai_segshap.region import RegionSpec, bounding_box, select_region

SHAPE = (20, 24, 12)
SPACING = (1.5, 2.0, 5.0)
TARGET = 3


def diagonal(spacing=SPACING, offset=(0.0, 0.0, 0.0)) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = offset
    return affine


GRID = VoxelGrid(SHAPE, diagonal())


@pytest.fixture
def prediction() -> np.ndarray:
    """Components of 48, 12, 12 and 1 voxels, and another class."""
    volume = np.zeros(SHAPE, np.uint8)
    volume[2:6, 3:7, 2:5] = TARGET
    volume[10:12, 10:12, 4:7] = TARGET
    volume[15:18, 18:20, 8:10] = TARGET
    volume[19, 0, 11] = TARGET
    volume[0:2, 20:24, 0:3] = 1
    return volume


def box_of(low, high, shape=SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
    return mask


def within_mm(core: np.ndarray, margin: float, spacing=SPACING) -> np.ndarray:
    inside = np.argwhere(core) * spacing
    out = np.zeros(core.shape, bool)
    for voxel in np.ndindex(core.shape):
        out[voxel] = np.linalg.norm(inside - np.array(voxel) * spacing, axis=1).min() <= margin + 1e-9
    return out


def test_largest_is_the_component_with_the_most_voxels(prediction):
    region = select_region(prediction, TARGET, {"mode": "largest", "margin_mm": 0}, GRID)
    np.testing.assert_array_equal(region.mask, box_of((2, 3, 2), (5, 6, 4)))
    assert (region.mode, region.target, region.target_voxels, region.voxels) == ("largest", TARGET, 48, 48)
    assert region.box == ((2, 3, 2), (5, 6, 4))


@pytest.mark.parametrize(
    ("rank", "low", "high"),
    [
        (1, (2, 3, 2), (5, 6, 4)),
        (2, (10, 10, 4), (11, 11, 6)),
        (3, (15, 18, 8), (17, 19, 9)),
        (4, (19, 0, 11), (19, 0, 11)),
    ],
)
def test_components_are_ranked_by_size_and_ties_by_position(prediction, rank, low, high):
    region = select_region(prediction, TARGET, {"mode": "component", "rank": rank, "margin_mm": 0}, GRID)
    np.testing.assert_array_equal(region.mask, box_of(low, high))


@pytest.mark.parametrize("step", [(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, -1, 1)])
def test_voxels_that_touch_at_a_corner_are_one_component(step):
    volume = np.zeros(SHAPE, np.uint8)
    volume[5, 5, 5] = 1
    volume[tuple(np.array([5, 5, 5]) + step)] = 1
    assert select_region(volume, 1, {"mode": "largest", "margin_mm": 0, "extent": "component"}, GRID).voxels == 2


def test_voxels_two_apart_are_two_components():
    volume = np.zeros(SHAPE, np.uint8)
    volume[5, 5, 5] = volume[7, 5, 5] = 1
    assert select_region(volume, 1, {"mode": "largest", "margin_mm": 0, "extent": "component"}, GRID).voxels == 1


@pytest.mark.parametrize(
    ("margin", "pad"),
    [(0, (0, 0, 0)), (1.5, (1, 1, 1)), (3.0, (2, 2, 1)), (5.0, (4, 3, 1)), (5.1, (4, 3, 2)), (10, (7, 5, 2))],
)
def test_margins_are_millimeters_rounded_up_to_voxels_and_clipped(prediction, margin, pad):
    region = select_region(prediction, TARGET, {"mode": "largest", "margin_mm": margin}, GRID)
    low, high = np.maximum(np.array([2, 3, 2]) - pad, 0), np.minimum(np.array([5, 6, 4]) + pad, np.array(SHAPE) - 1)
    np.testing.assert_array_equal(region.mask, box_of(low, high))
    assert region.target_voxels == int((prediction[region.mask] == TARGET).sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_margins_clip_at_the_far_border(axis):
    volume = np.zeros(SHAPE, np.uint8)
    corner = tuple(n - 1 for n in SHAPE)
    volume[corner] = 1
    region = select_region(volume, 1, {"mode": "largest", "margin_mm": 6}, GRID)
    assert region.box[1] == corner
    assert corner[axis] - region.box[0][axis] == (4, 3, 2)[axis]


def test_default_margin_is_ten_millimeters_for_components_and_none_for_boxes_and_masks():
    assert [RegionSpec(mode=m).margin for m in ("largest", "component")] == [10.0, 10.0]
    assert RegionSpec(mode="nearest", point_ijk=(1, 2, 3)).margin == 10.0
    assert RegionSpec(mode="box", box_ijk=((0, 0, 0), (1, 1, 1))).margin == 0.0
    assert RegionSpec(mode="mask", mask="m.nii").margin == 0.0
    assert RegionSpec(margin_mm=2).margin == 2.0


def test_a_mode_alone_is_a_region(prediction):
    by_word, by_dictionary = (select_region(prediction, TARGET, s, GRID) for s in ("largest", {"mode": "largest"}))
    np.testing.assert_array_equal(by_word.mask, box_of((0, 0, 0), (12, 11, 6)))
    np.testing.assert_array_equal(by_word.mask, by_dictionary.mask)


def test_extent_component_is_the_component_alone(prediction):
    prediction[7, 3, 2] = TARGET
    prediction[6, 3, 2] = TARGET
    spec = {"mode": "largest", "margin_mm": 0, "extent": "component"}
    region = select_region(prediction, TARGET, spec, GRID)
    expected = box_of((2, 3, 2), (5, 6, 4))
    expected[6:8, 3, 2] = True
    np.testing.assert_array_equal(region.mask, expected)
    assert region.target_voxels == region.voxels == 50


@pytest.mark.parametrize("margin", [1.9, 4.0, 6.0])
def test_extent_component_with_a_margin_is_everything_within_it(prediction, margin):
    spec = {"mode": "component", "rank": 2, "margin_mm": margin, "extent": "component"}
    region = select_region(prediction, TARGET, spec, GRID)
    np.testing.assert_array_equal(region.mask, within_mm(box_of((10, 10, 4), (11, 11, 6)), margin))


@pytest.mark.parametrize(
    ("point", "low"),
    [((3, 4, 3), (2, 3, 2)), ((10, 10, 9), (10, 10, 4)), ((19, 23, 0), (10, 10, 4)), ((14, 16, 8), (15, 18, 8))],
)
def test_nearest_component_to_a_voxel_is_nearest_in_millimeters(prediction, point, low):
    hits = np.argwhere(prediction == TARGET)
    nearest = hits[(((hits - point) * SPACING) ** 2).sum(axis=1).argmin()]
    region = select_region(prediction, TARGET, {"mode": "nearest", "point_ijk": point, "margin_mm": 0}, GRID)
    assert region.mask[tuple(nearest)]
    assert region.box[0] == low


def test_millimeters_decide_where_voxels_would_say_otherwise():
    volume = np.zeros(SHAPE, np.uint8)
    volume[10, 10, 2] = volume[14, 10, 5] = 1
    near_in_voxels, near_in_mm = (10, 10, 2), (14, 10, 5)
    region = select_region(volume, 1, {"mode": "nearest", "point_ijk": (10, 10, 5), "margin_mm": 0}, GRID)
    assert np.linalg.norm(np.subtract(near_in_voxels, (10, 10, 5))) < np.linalg.norm(
        np.subtract(near_in_mm, (10, 10, 5))
    )
    assert region.box[0] == near_in_mm


def file_and_network(kind: str, prediction: np.ndarray) -> tuple[np.ndarray, VoxelGrid, VoxelGrid]:
    """The prediction on the network's grid, that grid, and the file's."""
    file_grid = VoxelGrid(SHAPE, diagonal((-1.5, -2.0, 5.0), (100.0, 50.0, -200.0)))
    index = np.eye(4)
    if kind == "flipped":
        index[0, 0], index[0, 3] = -1, SHAPE[0] - 1
        index[1, 1], index[1, 3] = -1, SHAPE[1] - 1
        volume = prediction[::-1, ::-1]
    elif kind == "cropped":
        index[:3, 3] = [1, 2, 1]
        volume = prediction[1:, 2:, 1:]
    elif kind == "permuted":
        index = np.eye(4)[:, [2, 0, 1, 3]]
        volume = prediction.transpose(2, 0, 1)
    else:
        raise ValueError(kind)
    volume = np.ascontiguousarray(volume)
    return volume, VoxelGrid(volume.shape, file_grid.affine @ index), file_grid


@pytest.mark.parametrize("kind", ["flipped", "cropped", "permuted"])
@pytest.mark.parametrize("point", [(3, 4, 3), (11, 10, 5), (16, 19, 8), (13, 22, 9)])
@pytest.mark.parametrize("by", ["point_ijk", "point_mm"])
def test_points_refer_to_the_file_whatever_the_networks_grid(prediction, kind, point, by):
    volume, grid, file_grid = file_and_network(kind, prediction)
    place = point if by == "point_ijk" else tuple((file_grid.affine @ [*point, 1.0])[:3])
    region = select_region(
        volume, TARGET, {"mode": "nearest", by: place, "margin_mm": 0, "extent": "component"}, grid, file_grid
    )
    expected = select_region(
        prediction, TARGET, {"mode": "nearest", "point_ijk": point, "margin_mm": 0, "extent": "component"}, file_grid
    )
    in_file = resample_nearest(region.mask.astype(np.uint8), grid, file_grid) > 0
    np.testing.assert_array_equal(in_file, expected.mask)
    assert region.voxels == expected.voxels


@pytest.mark.parametrize("kind", ["flipped", "cropped", "permuted"])
def test_boxes_refer_to_the_voxels_of_the_file(prediction, kind):
    volume, grid, file_grid = file_and_network(kind, prediction)
    low, high = (2, 3, 2), (12, 9, 6)
    region = select_region(volume, TARGET, {"mode": "box", "box_ijk": [low, high]}, grid, file_grid)
    for voxel in np.argwhere(region.mask):
        index = np.round(file_grid.to_index(grid.to_world(voxel))).astype(int)
        assert (index >= low).all()
        assert (index <= high).all()
    assert region.voxels == np.prod(np.subtract(high, low) + 1)
    assert region.target_voxels == int((prediction[box_of(low, high)] == TARGET).sum())


def test_boxes_hold_both_corners_and_grow_by_their_margin(prediction):
    corners = ((4, 5, 6), (4, 8, 6))
    exact = select_region(prediction, TARGET, {"mode": "box", "box_ijk": corners}, GRID)
    np.testing.assert_array_equal(exact.mask, box_of(*corners))
    grown = select_region(prediction, TARGET, {"mode": "box", "box_ijk": corners, "margin_mm": 3.0}, GRID)
    np.testing.assert_array_equal(grown.mask, box_of((2, 3, 5), (6, 10, 7)))


def test_boxes_and_masks_need_no_voxel_of_the_class():
    volume = np.zeros(SHAPE, np.uint8)
    region = select_region(volume, TARGET, {"mode": "box", "box_ijk": ((0, 0, 0), (2, 2, 2))}, GRID)
    assert (region.voxels, region.target_voxels) == (27, 0)


def test_user_masks_come_from_any_grid(prediction):
    fine = VoxelGrid((40, 48, 24), diagonal([s / 2 for s in SPACING], [-s / 4 for s in SPACING]))
    coarse = np.random.default_rng(0).random(SHAPE) < 0.2
    mask = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[::-1].astype(np.float32) * 0.5
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1, 39
    region = select_region(
        prediction,
        TARGET,
        {"mode": "mask", "mask": "lesion.nii.gz"},
        GRID,
        user_mask=(np.ascontiguousarray(mask), VoxelGrid(fine.shape, fine.affine @ flip)),
    )
    np.testing.assert_array_equal(region.mask, coarse)
    assert region.target_voxels == int((prediction[coarse] == TARGET).sum())


def test_user_masks_grow_by_their_margin(prediction):
    core = np.zeros(SHAPE, np.uint8)
    core[8, 9, 5] = core[9, 10, 5] = 1
    spec = {"mode": "mask", "mask": "m.nii", "margin_mm": 4.0}
    region = select_region(prediction, TARGET, spec, GRID, user_mask=(core, GRID))
    np.testing.assert_array_equal(region.mask, within_mm(core > 0, 4.0))


def test_selecting_leaves_prediction_and_mask_alone(prediction):
    before, core = prediction.copy(), np.ones(SHAPE, bool)
    region = select_region(prediction, TARGET, {"mode": "mask", "mask": "m"}, GRID, user_mask=(core, GRID))
    region.mask[:] = False
    np.testing.assert_array_equal(prediction, before)
    assert core.all()


def test_bounding_box_holds_both_corners():
    mask = np.zeros(SHAPE, bool)
    mask[3, 4, 5] = mask[7, 2, 5] = True
    assert bounding_box(mask) == ((3, 2, 5), (7, 4, 5))
    assert all(isinstance(i, int) for corner in bounding_box(mask) for i in corner)


def test_bounding_box_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="holds no voxel"):
        bounding_box(np.zeros(SHAPE, bool))


def test_absent_class_lists_the_classes_there_are_and_the_way_out(prediction):
    with pytest.raises(ValueError, match=r"no voxel of liver; it holds classes 0, 1, 3\. Choose another target_class"):
        select_region(prediction, 7, "largest", GRID, target_name="liver")
    with pytest.raises(ValueError, match="no voxel of class 7"):
        select_region(prediction, 7, "largest", GRID)


def test_a_rank_too_large_lists_the_sizes(prediction):
    with pytest.raises(ValueError, match=r"component 5 of spleen, which has 4 component\(s\) of 48, 12, 12, 1 voxels"):
        select_region(prediction, TARGET, {"mode": "component", "rank": 5}, GRID, target_name="spleen")


@pytest.mark.parametrize("point", [(-1, 0, 0), (0, 24, 0), (0, 0, 11.6)])
def test_points_outside_the_file_are_refused(prediction, point):
    place = tuple((GRID.affine @ [*point, 1.0])[:3])
    with pytest.raises(ValueError, match=r"point_ijk .* is outside the image of shape \(20, 24, 12\)"):
        select_region(prediction, TARGET, {"mode": "nearest", "point_ijk": point}, GRID)
    with pytest.raises(ValueError, match=r"point_mm .* is outside the image: it would be voxel"):
        select_region(prediction, TARGET, {"mode": "nearest", "point_mm": place}, GRID)


@pytest.mark.parametrize(
    "corners", [((0, 0, 0), (20, 5, 5)), ((-1, 0, 0), (5, 5, 5)), ((6, 6, 6), (5, 7, 7)), ((30, 30, 30), (40, 40, 40))]
)
def test_boxes_outside_the_file_are_refused(prediction, corners):
    with pytest.raises(ValueError, match=r"does not lie inside the image of shape \(20, 24, 12\)"):
        select_region(prediction, TARGET, {"mode": "box", "box_ijk": corners}, GRID)


def test_a_box_outside_the_networks_crop_is_refused(prediction):
    volume, grid, file_grid = file_and_network("cropped", prediction)
    with pytest.raises(ValueError, match="the box holds no voxel of the image grid"):
        select_region(volume, TARGET, {"mode": "box", "box_ijk": ((0, 0, 0), (0, 5, 5))}, grid, file_grid)


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (1e4, 0.0, 0.0)])
def test_masks_without_a_voxel_here_are_refused(prediction, offset):
    mask = np.full(SHAPE, float(offset != (0.0, 0.0, 0.0)))
    spec = {"mode": "mask", "mask": "m.nii"}
    with pytest.raises(ValueError, match="the mask holds no voxel of the image grid"):
        select_region(prediction, TARGET, spec, GRID, user_mask=(mask, VoxelGrid(SHAPE, diagonal(offset=offset))))


def test_mode_mask_needs_the_volume(prediction):
    with pytest.raises(ValueError, match="needs the mask volume"):
        select_region(prediction, TARGET, {"mode": "mask", "mask": "m.nii"}, GRID)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("biggest", "unknown region mode 'biggest'; expected one of largest, component, nearest, box, mask"),
        ({"mode": "largest", "margin": 5}, r"unknown keys \['margin'\]; expected some of .*'margin_mm'"),
        ({"mode": "largest", "extent": "sphere"}, "region extent is 'sphere'; expected 'box' or 'component'"),
        ({"mode": "component", "rank": 0}, "region rank is 0; expected 1"),
        ({"margin_mm": -1}, "margin_mm is -1; expected millimeters of 0 or more"),
        ({"margin_mm": float("inf")}, "margin_mm is inf"),
        ({"margin_mm": float("nan")}, "margin_mm is nan"),
        ({"mode": "nearest"}, "mode 'nearest' needs point_ijk or point_mm"),
        ({"mode": "box"}, "mode 'box' needs box_ijk"),
        ({"mode": "mask"}, r"mode 'mask' needs mask \(a path\)"),
        ({"mode": "nearest", "point_ijk": [1, 2]}, r"point_ijk is \[1, 2\]; expected three finite numbers"),
        ({"mode": "nearest", "point_mm": [1, 2, float("nan")]}, "point_mm .* expected three finite numbers"),
        ({"mode": "box", "box_ijk": [[1, 2, 3]]}, "expected two corners"),
        ({"mode": "box", "box_ijk": [[1, 2, 3], [4, 5]]}, "box_ijk is .* expected three finite numbers"),
        (5, "region is 5; expected a mode such as 'largest' or a dictionary"),
        (None, "region is None; expected a mode"),
    ],
)
def test_bad_specifications_say_what_was_expected(spec, message):
    with pytest.raises(ValueError, match=message):
        RegionSpec.parse(spec)


def test_parsing_reads_lists_and_keeps_specs():
    spec = RegionSpec.parse({"mode": "box", "box_ijk": [[1, 2, 3], [4, 5, 6]]})
    assert spec.box_ijk == ((1, 2, 3), (4, 5, 6))
    assert RegionSpec.parse(spec) is spec
    assert RegionSpec.parse({"mode": "nearest", "point_ijk": [0, 0, 0]}).point_ijk == (0.0, 0.0, 0.0)
    assert RegionSpec.parse("largest") == RegionSpec()


def test_the_first_voxel_is_a_valid_point(prediction):
    region = select_region(prediction, TARGET, {"mode": "nearest", "point_ijk": [0, 0, 0], "margin_mm": 0}, GRID)
    assert region.box[0] == (2, 3, 2)


def test_voxels_of_other_components_inside_the_box_are_counted():
    prediction = np.zeros((12, 8, 4), dtype=np.uint8)
    prediction[2:5, 2:5, 1:3] = 1
    prediction[7, 2:4, 1] = 1
    grid = VoxelGrid((12, 8, 4), np.eye(4))
    near = select_region(prediction, 1, {"mode": "largest", "margin_mm": 1.0}, grid)
    wide = select_region(prediction, 1, {"mode": "largest", "margin_mm": 3.0}, grid)
    assert (near.component_voxels, near.other_voxels) == (18, 0)
    assert (wide.component_voxels, wide.other_voxels) == (18, 2)
    assert select_region(prediction, 1, {"mode": "box", "box_ijk": [[0, 0, 0], [11, 7, 3]]}, grid).other_voxels == 0
