# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_segshap.units import cube_labels, fcc_labels

# distance of neighboring centers for a scale of 1, from the volume of a cell: spacing a -> a**3 / sqrt(2)
NEIGHBOR_DISTANCE = {
    "spacing": 1.0,
    "cubic_cell": (math.sqrt(2.0) / 4.0) ** (1.0 / 3.0),
    "volume": math.sqrt(2.0) ** (1.0 / 3.0),
}


def voxel_mm(shape, spacing) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1)


def centers_mm(shape, spacing, neighbor_mm, origin) -> np.ndarray:
    """Integer combinations of three primitive vectors at 60 degrees, around the volume."""
    primitive = neighbor_mm / math.sqrt(2.0) * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    extent = np.asarray(shape) * np.asarray(spacing)
    reach = int(np.ceil((extent.sum() + np.abs(origin).sum()) / neighbor_mm)) + 3
    steps = np.array(list(product(range(-reach, reach + 1), repeat=3)))
    centers = steps @ primitive + origin
    near = ((centers > -2 * neighbor_mm) & (centers < extent + 2 * neighbor_mm)).all(axis=1)
    return centers[near]


def assert_nearest(labels, shape, spacing, neighbor_mm, origin):
    """Every voxel is with its nearest center (ties apart), and labels and centers are one to one."""
    centers = centers_mm(shape, spacing, neighbor_mm, origin)
    points = voxel_mm(shape, spacing).reshape(-1, 3)
    distance = np.linalg.norm(points[:, None] - centers[None], axis=-1)
    order = np.sort(distance, axis=1)
    clear = order[:, 1] - order[:, 0] > 1e-6 * neighbor_mm
    pairs = np.unique(np.stack([labels.ravel()[clear], distance.argmin(axis=1)[clear]]), axis=1)
    assert clear.mean() > 0.3
    assert len(np.unique(pairs[0])) == pairs.shape[1]
    assert len(np.unique(pairs[1])) == pairs.shape[1]


@pytest.mark.parametrize("definition", ["spacing", "cubic_cell", "volume"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 1.5, 1.5), (0.7, 2.2, 3.1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_fcc_labels_are_the_nearest_center(definition, spacing, seed):
    shape = (7, 11, 9)
    rng = np.random.default_rng(seed)
    origin = rng.uniform(0, 10, size=3)
    scale = rng.uniform(6, 9)
    labels = fcc_labels(shape, spacing, scale, origin_mm=origin, scale_definition=definition)
    assert_nearest(labels, shape, spacing, scale * NEIGHBOR_DISTANCE[definition], origin)


@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5.0)] * 3),
    scale=st.floats(4.0, 12.0),
    origin=st.tuples(*[st.floats(-20.0, 20.0)] * 3),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_fcc_cells_hold_no_voxel_beyond_the_circumscribed_radius(shape, spacing, scale, origin):
    labels = fcc_labels(shape, spacing, scale, origin_mm=origin)
    centers = centers_mm(shape, spacing, scale, np.asarray(origin))
    points = voxel_mm(shape, spacing)
    for unit in range(1, labels.max() + 1):
        reach = np.linalg.norm(points[labels == unit][:, None] - centers[None], axis=-1).max(axis=0)
        assert reach.min() <= scale / math.sqrt(2.0) * (1 + 1e-9)


def test_default_origin_puts_a_center_in_the_middle_of_the_volume():
    shape, spacing = (12, 9, 14), (2.0, 1.0, 3.0)
    middle = (np.array(shape) - 1) * spacing / 2
    assert_nearest(fcc_labels(shape, spacing, 8.0), shape, spacing, 8.0, middle)


@pytest.mark.parametrize(
    ("definition", "cell_volume"), [("spacing", 10**3 / math.sqrt(2)), ("cubic_cell", 10**3 / 4), ("volume", 10**3)]
)
def test_inner_cells_have_the_volume_of_the_definition(definition, cell_volume):
    labels = fcc_labels((90, 90, 45), (0.9, 0.9, 1.8), 10.0, scale_definition=definition)
    rim = np.ones(labels.shape, bool)
    rim[1:-1, 1:-1, 1:-1] = False
    inner = np.setdiff1d(np.unique(labels), np.unique(labels[rim]))
    sizes = np.bincount(labels.ravel())[inner]
    assert len(inner) > 100
    assert sizes.mean() * 0.9 * 0.9 * 1.8 == pytest.approx(cell_volume, rel=0.01)
    assert sizes.std() / sizes.mean() < 0.1


def test_mean_cell_volume_tends_to_scale_cubed_over_root_two():
    shortfall = []
    for n in (20, 80, 160):
        count = fcc_labels((n, n, n), (2.0, 2.0, 2.0), 10.0).max()
        shortfall.append(1 - (2 * n) ** 3 / count / (1000 / math.sqrt(2)))
    assert shortfall[0] > shortfall[1] > shortfall[2] > 0
    assert shortfall[2] < 0.12


@pytest.mark.parametrize("labels_of", [fcc_labels, cube_labels])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 3), (17, 23, 11)])
@pytest.mark.parametrize("scale", [0.3, 7.0, 500.0])
def test_labels_are_int32_and_contiguous_from_one(labels_of, shape, scale):
    labels = labels_of(shape, (5.0, 1.5, 1.5), scale)
    assert labels.dtype == np.int32
    assert labels.shape == shape
    np.testing.assert_array_equal(np.unique(labels), np.arange(1, labels.max() + 1))


def test_tiny_scales_give_every_voxel_its_own_cell():
    assert fcc_labels((9, 8, 7), (3.0, 2.0, 2.5), 0.05).max() == 9 * 8 * 7


def test_label_order_follows_the_position_of_the_center():
    shape, spacing, scale, origin = (24, 22, 20), (1.0, 1.0, 1.0), 7.0, np.array([0.123, 0.257, 0.391])
    labels = fcc_labels(shape, spacing, scale, origin_mm=origin)
    centers = centers_mm(shape, spacing, scale, origin)
    points = voxel_mm(shape, spacing)
    owner = []
    for unit in range(1, labels.max() + 1):
        reach = np.linalg.norm(points[labels == unit][:, None] - centers[None], axis=-1).max(axis=0)
        owner.append(tuple(np.round(centers[reach.argmin()], 6)))
    interior = [c for c in owner if all(2 < x < n - 3 for x, n in zip(c, shape, strict=True))]
    assert len(interior) > 10
    assert interior == sorted(interior)


def test_labels_do_not_depend_on_the_unit_of_length():
    np.testing.assert_array_equal(
        fcc_labels((9, 10, 11), (1.3, 2.1, 0.9), 5.7), fcc_labels((9, 10, 11), (13.0, 21.0, 9.0), 57.0)
    )


def test_single_point_far_away_from_its_origin():
    assert fcc_labels((2, 2, 2), (1, 1, 1), 50.0, origin_mm=(1e5 + 0.3, -2e5, 7e4)).max() <= 8


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 1.5, 2.0)])
def test_cubes_start_at_the_faces_of_the_volume(spacing):
    shape, edge = (8, 13, 11), 6.0
    expected = {}
    labels = cube_labels(shape, spacing, edge)
    for voxel in np.ndindex(shape):
        cube = tuple(math.floor((i + 0.5) * s / edge + 1e-9) for i, s in zip(voxel, spacing, strict=True))
        assert expected.setdefault(cube, labels[voxel]) == labels[voxel]
    assert len(set(expected.values())) == len(expected) == labels.max()


def test_cubes_of_whole_voxels_are_equal():
    labels = cube_labels((12, 8, 6), (1.0, 1.5, 2.0), 6.0)
    assert np.unique(labels, return_counts=True)[1].tolist() == [6 * 4 * 3] * 8


def test_cubes_from_an_origin():
    labels = cube_labels((6, 1, 1), (1.0, 1.0, 1.0), 3.0, origin_mm=(1.5, 0.0, 0.0))
    assert labels.ravel().tolist() == [1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("labels_of", [fcc_labels, cube_labels])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 4), (1, 1, 1), 5), r"shape is \(4, 4\); expected three positive sizes"),
        (((4, 0, 4), (1, 1, 1), 5), "expected three positive sizes"),
        (((4, 4, 4), (1, 1), 5), r"spacing_mm is \(1, 1\); expected three positive lengths"),
        (((4, 4, 4), (1, -1, 1), 5), "expected three positive lengths"),
        (((4, 4, 4), (1, math.nan, 1), 5), "expected three positive lengths"),
        (((4, 4, 4), (1, 1, 1), 0), "scale_mm is 0; expected a positive length"),
        (((4, 4, 4), (1, 1, 1), math.inf), "scale_mm is inf"),
    ],
)
def test_refuses_impossible_lattices(labels_of, arguments, message):
    with pytest.raises(ValueError, match=message):
        labels_of(*arguments)


def test_refuses_an_unknown_scale_definition():
    with pytest.raises(ValueError, match="scale_definition is 'edge'; expected one of spacing, cubic_cell, volume"):
        fcc_labels((4, 4, 4), (1, 1, 1), 5, scale_definition="edge")
