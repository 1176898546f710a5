# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, Flip, LoadImage, Orientation, Spacing, SpatialCrop

from monai_segshap.geometry import VoxelGrid, current_grid, require_unsheared, resample_nearest, source_grid

SHAPE = (6, 7, 8)


def rotation(degrees: float) -> np.ndarray:
    a = np.deg2rad(degrees)
    around_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    around_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    return around_z @ around_x


def oblique() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(20.0) @ np.diag([-0.8, 1.1, 3.0])
    affine[:3, 3] = [-150.3, 88.1, -700.7]
    return affine


def sheared() -> np.ndarray:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 2] = 0.3
    return affine


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, size=SHAPE).astype(np.int32)


@pytest.fixture(params=["oblique", "flipped"])
def grid(request) -> VoxelGrid:
    return VoxelGrid(SHAPE, oblique() if request.param == "oblique" else np.diag([-1.5, -1.5, 5.0, 1.0]))


def regridded(grid: VoxelGrid, array: np.ndarray, index: np.ndarray) -> VoxelGrid:
    """The grid of an array whose voxel n lies at voxel ``index @ n`` of a grid."""
    return VoxelGrid(array.shape, grid.affine @ index)


def brute_force(volume, source, target, fill):
    inverse = np.linalg.inv(source.affine)
    out = np.full(target.shape, fill, volume.dtype)
    for voxel in np.ndindex(target.shape):
        index = np.floor((inverse @ target.affine @ [*voxel, 1.0])[:3] + 0.5).astype(int)
        if (index >= 0).all() and (index < volume.shape).all():
            out[voxel] = volume[tuple(index)]
    return out


def test_spacing_and_voxel_volume_of_an_oblique_grid():
    grid = VoxelGrid(SHAPE, oblique())
    assert grid.spacing_mm == pytest.approx((0.8, 1.1, 3.0))
    assert grid.voxel_ml == pytest.approx(0.8 * 1.1 * 3.0 / 1000)


def test_voxel_volume_of_a_sheared_grid_is_base_times_height():
    assert VoxelGrid(SHAPE, sheared()).voxel_ml == pytest.approx(6.0 / 1000)


def test_world_and_index_are_inverse(grid):
    index = np.random.default_rng(1).uniform(-5, 20, size=(4, 5, 3))
    world = grid.to_world(index)
    np.testing.assert_allclose(world[2, 3], (grid.affine @ [*index[2, 3], 1.0])[:3])
    np.testing.assert_allclose(grid.to_index(world), index, atol=1e-9)
    np.testing.assert_allclose(grid.to_world([0, 0, 0]), grid.affine[:3, 3])


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), np.diag([1.0, 1.0, 0.0, 1.0])])
def test_refuses_affines_that_are_not_invertible(affine):
    with pytest.raises(ValueError, match=r"expected an invertible \(4, 4\) matrix"):
        VoxelGrid(SHAPE, affine)


@pytest.mark.parametrize(("shift", "same"), [(0.0, True), (0.009, True), (0.011, False), (-0.011, False)])
def test_same_as_compares_offsets_in_mm(grid, shift, same):
    moved = grid.affine.copy()
    moved[1, 3] += shift
    assert grid.same_as(VoxelGrid(SHAPE, moved)) is same


def test_same_as_looks_at_the_far_corner():
    far = VoxelGrid((512, 512, 400), np.eye(4))
    stretched = VoxelGrid((512, 512, 400), np.diag([1.0, 1.0, 1.0001, 1.0]))
    assert not far.same_as(stretched)
    assert VoxelGrid((5, 5, 5), np.eye(4)).same_as(VoxelGrid((5, 5, 5), stretched.affine))


def test_same_as_needs_one_shape_and_takes_a_tolerance(grid):
    assert not grid.same_as(VoxelGrid((6, 7, 9), grid.affine))
    moved = grid.affine.copy()
    moved[0, 3] += 0.5
    assert grid.same_as(VoxelGrid(SHAPE, moved), tolerance_mm=0.6)
    assert not grid.same_as(VoxelGrid(SHAPE, moved), tolerance_mm=0.4)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_flips_are_exact(grid, volume, axes):
    index = np.eye(4)
    for axis in axes:
        index[axis, axis], index[axis, 3] = -1.0, SHAPE[axis] - 1
    flipped = np.flip(volume, axes)
    target = regridded(grid, flipped, index)
    np.testing.assert_array_equal(resample_nearest(volume, grid, target), flipped)
    np.testing.assert_array_equal(resample_nearest(flipped.copy(), target, grid), volume)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_permutations_are_exact(grid, volume, order):
    index = np.zeros((4, 4))
    index[3, 3] = 1.0
    for new, old in enumerate(order):
        index[old, new] = 1.0
    permuted = volume.transpose(order)
    target = regridded(grid, permuted, index)
    np.testing.assert_array_equal(resample_nearest(volume, grid, target), permuted)
    np.testing.assert_array_equal(resample_nearest(np.ascontiguousarray(permuted), target, grid), volume)


def test_crops_are_exact_and_pad_with_the_fill_value(grid, volume):
    index = np.eye(4)
    index[:3, 3] = [2, 1, 3]
    crop = volume[2:5, 1:6, 3:8]
    target = regridded(grid, crop, index)
    np.testing.assert_array_equal(resample_nearest(volume, grid, target), crop)
    back = resample_nearest(crop, target, grid, fill=-7)
    assert back.dtype == volume.dtype
    expected = np.full(SHAPE, -7)
    expected[2:5, 1:6, 3:8] = crop
    np.testing.assert_array_equal(back, expected)


def test_twice_as_fine_repeats_every_voxel(grid, volume):
    fine = volume.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    index = np.diag([0.5, 0.5, 0.5, 1.0])
    index[:3, 3] = -0.25
    np.testing.assert_array_equal(resample_nearest(volume, grid, regridded(grid, fine, index)), fine)


def test_twice_as_coarse_takes_every_other_voxel(grid, volume):
    coarse = volume[::2, ::2, ::2]
    target = regridded(grid, coarse, np.diag([2.0, 2.0, 2.0, 1.0]))
    np.testing.assert_array_equal(resample_nearest(volume, grid, target), coarse)


def test_ties_are_broken_alike_everywhere(volume):
    grid = VoxelGrid(SHAPE, oblique())
    index = np.diag([2.0, 2.0, 2.0, 1.0])
    index[:3, 3] = 0.5
    coarse = resample_nearest(volume, grid, VoxelGrid((3, 3, 4), grid.affine @ index))
    choices = [volume[a : a + 6 : 2, b : b + 6 : 2, c : c + 8 : 2] for a, b, c in np.ndindex(2, 2, 2)]
    assert any(coarse.shape == choice.shape and (coarse == choice).all() for choice in choices)


@pytest.mark.parametrize("seed", range(4))
def test_any_grid_equals_the_voxelwise_nearest(grid, volume, seed):
    rng = np.random.default_rng(seed)
    index = np.eye(4)
    index[:3, :3] = rotation(rng.uniform(-40, 40)) @ np.diag(rng.uniform(0.4, 1.7, size=3))
    index[:3, 3] = rng.uniform(-2, 2, size=3)
    target = VoxelGrid((9, 8, 10), grid.affine @ index)
    np.testing.assert_array_equal(
        resample_nearest(volume, grid, target, fill=-1), brute_force(volume, grid, target, -1)
    )


def test_the_same_oblique_grid_with_rounding_noise_is_exact(volume):
    grid = VoxelGrid(SHAPE, oblique())
    noisy = VoxelGrid(SHAPE, oblique().astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(resample_nearest(volume, grid, noisy), volume)


def test_the_result_is_a_copy(grid, volume):
    out = resample_nearest(volume, grid, VoxelGrid(SHAPE, grid.affine.copy()))
    out[:] = 0
    assert volume.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("top", [100, 200])
def test_type_and_values_survive(grid, dtype, top):
    if top > np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else False:
        top = int(np.iinfo(dtype).max)
    volume = np.full(SHAPE, top, dtype)
    index = np.eye(4)
    index[0, 3] = 1
    moved = resample_nearest(volume, grid, regridded(grid, volume, index))
    assert moved.dtype == dtype
    assert set(np.unique(moved)) == {0, top}


@pytest.mark.parametrize("label", [128, 300, 2**24 + 1, 2**31 - 1])
def test_large_labels_are_not_interpolated(grid, label):
    volume = np.full(SHAPE, label, np.int32)
    index = np.diag([0.5, 0.5, 0.5, 1.0])
    target = VoxelGrid((6, 7, 8), grid.affine @ index)
    assert np.unique(resample_nearest(volume, grid, target)).tolist() == [label]


@pytest.mark.parametrize("affine", [oblique(), np.diag([-1.0, 2.0, 5.0, 1.0]), np.eye(4)[[1, 2, 0, 3]] * 1.0])
def test_right_angles_pass(affine):
    assert require_unsheared(affine) is None


def test_sheared_affines_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"cosine of 0\.100, expected 0 .*monai\.transforms\.Spacingd"):
        require_unsheared(sheared())


def test_current_grid_is_the_tensors_own():
    image = MetaTensor(torch.zeros(2, *SHAPE), affine=torch.as_tensor(oblique()))
    assert current_grid(image).same_as(VoxelGrid(SHAPE, oblique()), tolerance_mm=1e-9)
    assert current_grid(torch.zeros(1, *SHAPE)).same_as(VoxelGrid(SHAPE, np.eye(4)), tolerance_mm=0)
    moved = Flip(spatial_axis=0)(image)
    np.testing.assert_allclose(current_grid(moved).to_world([0, 0, 0]), VoxelGrid(SHAPE, oblique()).to_world([5, 0, 0]))


def test_current_grid_refuses_images_without_a_channel():
    with pytest.raises(ValueError, match=r"expected a channel-first image \(C, H, W, D\)"):
        current_grid(torch.zeros(SHAPE))


def test_source_grid_is_the_files_after_any_transform(tmp_path):
    path = tmp_path / "ct.nii.gz"
    affine = np.diag([-1.5, -1.5, 5.0, 1.0])
    affine[:3, 3] = [30.0, 40.0, -50.0]
    nib.save(nib.Nifti1Image(np.zeros((12, 10, 8), np.float32), affine), path)
    load = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation("PLI", labels=None),
            Spacing((2.0, 2.0, 3.0)),
            SpatialCrop(roi_start=(1, 1, 1), roi_end=(4, 5, 6)),
        ]
    )
    image = load(path)
    assert source_grid(image).same_as(VoxelGrid((12, 10, 8), affine), tolerance_mm=1e-4)
    assert current_grid(image).shape != (12, 10, 8)


def test_source_grid_without_a_file_is_the_current_grid():
    image = MetaTensor(torch.zeros(1, *SHAPE), affine=torch.as_tensor(oblique()))
    assert source_grid(image).same_as(current_grid(image), tolerance_mm=0)
    assert source_grid(torch.zeros(1, *SHAPE)).same_as(VoxelGrid(SHAPE, np.eye(4)), tolerance_mm=0)
