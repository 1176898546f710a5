# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import nibabel
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from monai_segshap.visualize import plot_voxel_map, save_voxel_map

SHAPE = (24, 20, 12)
AFFINE = np.diag([2.0, 3.0, 5.0, 1.0])


def scene():
    """A RAS image; red in front of the organ, blue on the patient's left of it."""
    image = np.full(SHAPE, 50.0)
    organ = np.zeros(SHAPE, dtype=bool)
    organ[8:14, 6:12, 4:8] = True
    values = np.zeros(SHAPE)
    values[8:14, 12:16, 4:8] = 2.0  # anterior
    values[14:20, 6:12, 4:8] = -1.0  # RAS: larger i is further right, so this is the patient's right
    return values, image, organ


def stored_as(codes, *volumes):
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(AFFINE), nibabel.orientations.axcodes2ornt(codes))
    affine = AFFINE @ nibabel.orientations.inv_ornt_aff(turn, SHAPE)
    return [nibabel.apply_orientation(volume, turn) for volume in volumes], affine


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_signs_and_directions_are_right_for_any_stored_order(codes):
    (values, image, organ), affine = stored_as(codes, *scene())
    figure = plot_voxel_map(values, image, organ, affine, percentile=100)
    axial = figure.axes[0]
    assert axial.get_title(loc="left").startswith("Axial")
    assert [t.get_text() for t in axial.texts][:4] == ["R", "L", "A", "P"]
    colored = axial.get_images()[1].get_array()
    red = (colored[..., 0] > colored[..., 2] + 0.1) & (colored[..., 3] > 0)
    blue = (colored[..., 2] > colored[..., 0] + 0.1) & (colored[..., 3] > 0)
    rows, columns = np.nonzero(red), np.nonzero(blue)
    height, width = red.shape
    assert rows[0].mean() < height / 2  # anterior is up
    assert columns[1].mean() < width / 2  # the patient's right is on the left
    assert (red.sum(), blue.sum()) == (6 * 4, 6 * 6)


def test_channels_are_added_and_a_spacing_stands_for_an_affine():
    values, image, organ = scene()
    one = plot_voxel_map(values, image, organ, AFFINE, percentile=100)
    two = plot_voxel_map(np.stack([0.25 * values, 0.75 * values]), image, organ, (2.0, 3.0, 5.0), percentile=100)
    for first, second in zip(one.axes[:3], two.axes[:3], strict=True):
        np.testing.assert_allclose(first.get_images()[1].get_array(), second.get_images()[1].get_array())


def test_colors_saturate_at_a_percentile_and_the_picture_says_so(tmp_path):
    values, image, organ = scene()
    values[10, 8, 5] = 1000.0
    figure = plot_voxel_map(values, image, organ, AFFINE, percentile=99.0, label="logit")
    bar = figure.axes[3]
    assert bar.get_xlim()[1] == pytest.approx(np.percentile(np.abs(values[values != 0]), 99.0))
    assert "saturate at the 99th percentile" in bar.get_xlabel().replace("\n", " ")
    whole = plot_voxel_map(values, image, organ, AFFINE, percentile=100)
    assert whole.axes[3].get_xlim()[1] == 1000
    assert "saturate" not in whole.axes[3].get_xlabel()
    assert save_voxel_map(values, image, organ, AFFINE, tmp_path / "map.png", title="spleen").stat().st_size > 10_000


def test_a_map_of_zeros_can_be_drawn():
    _, image, organ = scene()
    figure = plot_voxel_map(np.zeros(SHAPE), image, organ, AFFINE)
    assert figure.axes[0].get_images()[1].get_array()[..., 3].max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.zeros(SHAPE, dtype=bool)}, "not empty"),
        ({"mask": np.ones(SHAPE)}, "expected bool"),
        ({"attribution": np.ones((5, 5, 5))}, "of shapes"),
        ({"attribution": np.full(SHAPE, np.nan)}, "an absent class has no map"),
        ({"percentile": 0}, "percentile is 0"),
    ],
)
def test_wrong_input_is_refused(change, message):
    values, image, organ = scene()
    arguments = {"attribution": values, "image": image, "mask": organ, "grid": AFFINE, **change}
    with pytest.raises(ValueError, match=message):
        plot_voxel_map(**arguments)
