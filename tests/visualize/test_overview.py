# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib import rcParams
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from monai_segshap.visualize import colors, overview, plot_overview, save_overview

SHAPE, SPACING = (24, 20, 12), (2.0, 3.0, 5.0)
RAS_AFFINE = np.diag([*SPACING, 1.0])
RAS_AFFINE[:3, 3] = (-20.0, -30.0, 100.0)
STORED = ["RAS", "LPS", "LAS", "SPL", "PIR", "ASL"]


def marked_body() -> tuple[np.ndarray, np.ndarray]:
    """Return a RAS image with one mark per direction, and unit labels: 1 right, 2 posterior, 3 superior."""
    image, units = np.zeros(SHAPE), np.zeros(SHAPE, dtype=int)
    image[2:22, 2:18, :] = 100
    units[16:20, 8:12, 4:8] = 1
    units[10:14, 3:6, 2:10] = 2
    units[10:14, 8:12, 10:12] = 3
    return image + 50 * units, units


def stored_as(codes: str, *volumes: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Store RAS volumes in another axis order and return them with their affine."""
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(RAS_AFFINE), nibabel.orientations.axcodes2ornt(codes)
    )
    affine = RAS_AFFINE @ nibabel.orientations.inv_ornt_aff(turn, SHAPE)
    return [nibabel.apply_orientation(volume, turn) for volume in volumes], affine


def example(codes: str = "RAS", **changes: Any) -> dict[str, Any]:
    values = np.array([2.0, -3.0, 0.5])
    image, units = marked_body()
    painted = np.concatenate([[0.0], values])[units]
    region = np.zeros(SHAPE, dtype=bool)
    region[15:21, 7:13, 3:9] = True
    (image, painted, region, prediction), affine = stored_as(codes, image, painted, region, units == 1)
    arguments: dict[str, Any] = {
        "image": image, "attribution": painted, "region": region, "affine": affine, "prediction": prediction,
        "names": ["liver", "spine", "head"], "values": values, "standard_errors": np.array([0.1, 0.2, 0.05]),
        "score_label": "TP score (logit)", "title": "case, liver", "notes": "exact, 8 evaluations",
    }  # fmt: skip
    return {**arguments, **changes}


def panel_titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes[:3]]


def texts(figure: Figure) -> str:
    labels = [axes.get_xlabel() for axes in figure.axes] + [axes.get_title(loc="left") for axes in figure.axes]
    return "\n".join([text.get_text() for axes in figure.axes for text in axes.texts] + labels)


@pytest.mark.parametrize("codes", STORED)
def test_display_shows_patient_right_on_the_left_and_up_as_up(codes: str) -> None:
    _, units = marked_body()
    (stored,), affine = stored_as(codes, units)
    ras = overview.Grid(affine, stored.shape).turn(stored)
    axial = overview.display_section(ras, overview.AXIAL, 5)
    coronal = overview.display_section(ras, overview.CORONAL, 9)
    sagittal = overview.display_section(ras, overview.SAGITTAL, 12)
    assert axial.shape == (20, 24)
    assert coronal.shape == (12, 24)
    assert sagittal.shape == (12, 20)
    assert np.argwhere(axial == 1)[:, 1].max() < 12, "the patient's right is on the left of the axial slice"
    assert np.argwhere(axial == 2)[:, 0].min() >= 14, "the spine lies at the bottom of the axial slice"
    assert np.argwhere(coronal == 3)[:, 0].max() == 1, "the head lies at the top of the coronal slice"
    assert np.argwhere(coronal == 1)[:, 1].max() < 12
    assert np.argwhere(sagittal == 2)[:, 1].min() >= 14, "posterior lies on the right of the sagittal slice"
    assert np.argwhere(sagittal == 3)[:, 0].max() == 1


@pytest.mark.parametrize("codes", STORED[1:])
def test_same_picture_whatever_the_storage_order(codes: str) -> None:
    expected, figure = plot_overview(**example()), plot_overview(**example(codes))
    for panel, other in zip(expected.axes[:3], figure.axes[:3], strict=True):
        for image, other_image in zip(panel.images, other.images, strict=True):
            np.testing.assert_array_equal(image.get_array(), other_image.get_array())
            assert image.get_extent() == pytest.approx(other_image.get_extent())
        assert [text.get_text() for text in panel.texts] == [text.get_text() for text in other.texts]
    mm = [title.split(" (")[0] for title in panel_titles(expected)]
    assert [title.split(" (")[0] for title in panel_titles(figure)] == mm


def test_letters_positions_and_true_aspect() -> None:
    figure = plot_overview(**example("LPS"))
    letters = [[text.get_text() for text in axes.texts[:4]] for axes in figure.axes[:3]]
    assert letters == [list("RLAP"), list("RLSI"), list("APSI")]
    assert panel_titles(figure) == [
        "Axial, z = 125 mm (k = 5)", "Coronal, y = \N{MINUS SIGN}3 mm (j = 10)", "Sagittal, x = 14 mm (i = 6)"
    ]  # fmt: skip
    pixels_per_mm = []
    for axes in figure.axes[:3]:
        extent, box = axes.images[0].get_extent(), axes.get_window_extent()
        pixels_per_mm += [box.width / abs(extent[1] - extent[0]), box.height / abs(extent[3] - extent[2])]
    np.testing.assert_allclose(pixels_per_mm, pixels_per_mm[0], rtol=1e-6)


def test_oblique_grid_is_said_and_letters_are_the_nearest() -> None:
    turn = np.eye(4)
    turn[:3, :3] = nibabel.eulerangles.euler2mat(z=np.radians(12))
    arguments = example("LPS")
    figure = plot_overview(**{**arguments, "affine": turn @ arguments["affine"]})
    assert "12\N{DEGREE SIGN} oblique" in texts(figure).replace("\n", " ")
    assert [text.get_text() for text in figure.axes[0].texts[:4]] == list("RLAP")
    assert "oblique" not in texts(plot_overview(**arguments))


def test_slices_take_the_largest_section_then_the_prediction_then_the_middle() -> None:
    region = np.zeros((9, 9, 9), dtype=bool)
    region[2:7, 2:7, 2:7] = True
    assert overview.crossing_slices(region, None) == (4, 4, 4)
    prediction = np.zeros_like(region)
    prediction[6, 3, 0:3] = True
    assert overview.crossing_slices(region, prediction) == (6, 3, 2)
    region[8, 0:9, 0:9] = True
    assert overview.crossing_slices(region, None)[0] == 8


def test_view_is_cropped_around_region_and_colored_units_only() -> None:
    region, attribution = np.zeros((200, 200, 40), dtype=bool), np.zeros((200, 200, 40))
    region[98:102, 98:102, 20] = True
    attribution[60:140, 98:102, 20] = 1.0
    attribution[0, 0, 0] = 0.001
    box = overview.view_box(region, attribution, np.array([2.0, 2.0, 5.0]))
    assert box == (slice(47, 153), slice(75, 125), slice(10, 31))
    assert overview.view_box(region[90:110], attribution[90:110], np.ones(3))[0] == slice(0, 20)


def test_color_limits_are_symmetric_and_zero_is_transparent() -> None:
    assert colors.symmetric_limit(np.array([1.0, -3.0]), np.array([[2.0]])) == 3.0
    rgba = colors.overlay_rgba(np.array([-3.0, -0.3, 0.0, 0.3, 3.0]), 3.0)
    assert rgba[2, 3] == 0
    np.testing.assert_allclose(rgba[:, 3], rgba[::-1, 3])
    assert (np.diff(rgba[2:, 3]) > 0).all()
    assert (rgba[3:, 0] > rgba[3:, 2]).all(), "positive is red"
    assert (rgba[:2, 0] < rgba[:2, 2]).all(), "negative is blue"
    bar = plot_overview(**example()).axes[4]
    assert bar.get_xlim() == (-3.0, 3.0)
    assert bar.get_xlabel() == "TP score (logit)"


def test_bars_are_sorted_by_absolute_value_with_95_percent_intervals() -> None:
    chart = plot_overview(**example(n_units=2)).axes[5]
    assert [label.get_text() for label in chart.get_yticklabels()] == ["spine", "liver"]
    assert [bar.get_width() for bar in chart.patches] == [-3.0, 2.0]
    assert [bar.get_facecolor()[:3] for bar in chart.patches] == [
        to_rgb(colors.NEGATIVE_COLOR), to_rgb(colors.POSITIVE_COLOR)
    ]  # fmt: skip
    whiskers = [segment[:, 0] for segment in chart.collections[0].get_segments()]
    np.testing.assert_allclose(whiskers, [[-3 - 0.392, -3 + 0.392], [2 - 0.196, 2 + 0.196]])
    assert chart.get_ylim()[0] > chart.get_ylim()[1], "the first bar is on top"
    assert "95 % interval" in chart.get_xlabel()
    assert "2 of 3 units shown" in chart.get_title(loc="left")


def test_exact_values_have_no_error_bars() -> None:
    chart = plot_overview(**example(standard_errors=np.zeros(3))).axes[5]
    assert not chart.collections
    assert "exact" in chart.get_xlabel()
    assert "all 3 units shown" in chart.get_title(loc="left")


def test_all_zero_attribution_is_drawn_and_said() -> None:
    arguments = example(values=np.zeros(3), standard_errors=np.zeros(3), prediction=None)
    figure = plot_overview(**{**arguments, "attribution": np.zeros(SHAPE)})
    assert "all values are 0" in texts(figure)
    assert figure.axes[4].get_xlim() == (-1.0, 1.0)


def test_outline_follows_pixel_edges() -> None:
    mask = np.zeros((3, 4), dtype=bool)
    mask[0, 1] = True
    edges = {tuple(map(tuple, segment)) for segment in colors.outline_segments(mask)}
    assert edges == {((1, 0), (2, 0)), ((1, 1), (2, 1)), ((1, 0), (1, 1)), ((2, 0), (2, 1))}


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (2.5, "+2.5"), (-0.0712, "-0.0712"), (2633.0, "+2630"), (-1.3e-5, "-1.3e-05")]
)
def test_numbers_are_short_with_a_true_minus(value: float, text: str) -> None:
    assert colors.number(value) == text.replace("-", "\N{MINUS SIGN}")


def test_long_names_keep_both_ends() -> None:
    name = "autochthon_left_and_more / cell 163"
    assert len(colors.shortened(name)) == 30
    assert colors.shortened(name).startswith("autochthon_left")
    assert colors.shortened(name).endswith("cell 163")


@pytest.mark.parametrize(
    ("low", "region_value", "expected"),
    [(-1024.0, 50.0, (-160.0, 240.0)), (-1024.0, -800.0, (-1000.0, 200.0)), (7.0, 7.0, (6.5, 7.5))],
)
def test_grey_window(low: float, region_value: float, expected: tuple[float, float]) -> None:
    image, region = np.full((4, 4, 4), low), np.zeros((4, 4, 4), dtype=bool)
    region[0] = True
    image[region] = region_value
    assert colors.grey_window(image, region) == expected


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"attribution": np.zeros((2, 3, 4))}, r"attribution must be a volume .*\(24, 20, 12\), got shape \(2, 3, 4\)"),
    ({"image": np.zeros((24, 20))}, r"image must be a volume"),
    ({"region": np.zeros(SHAPE, dtype=bool)}, "region must hold at least one voxel"),
    ({"region": np.ones(SHAPE)}, "region must be a bool mask, got dtype float64"),
    ({"prediction": np.ones((1, 1, 1), dtype=bool)}, "prediction must be a volume"),
    ({"image": np.full(SHAPE, np.nan)}, "image must be finite, got 5760"),
    ({"attribution": np.full(SHAPE, np.inf)}, "attribution must be finite"),
    ({"affine": np.eye(3)}, r"affine must be .* got shape \(3, 3\)"),
    ({"affine": np.diag([1.0, 1.0, 0.0, 1.0])}, "affine must be an invertible"),
    ({"names": ["a", "b"]}, "got 2 names, values"),
    ({"standard_errors": np.zeros(2)}, r"standard_errors \(2,\)"),
    ({"standard_errors": np.array([0.0, np.nan, 0.0])}, "standard_errors must be finite.*'spine'"),
    ({"standard_errors": np.array([0.0, -1.0, 0.0])}, "standard_errors must be at least 0"),
    ({"values": np.array([np.inf, 0.0, 0.0])}, "values must be finite.*'liver'"),
    ({"n_units": 0}, "n_units must be at least 1"),
    ({"intensity_window": (5.0, 5.0)}, "intensity_window must be two finite numbers"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_errors_say_what_came_and_what_was_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_overview(**example(**changes))


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install monai_segshap\[plots\]"):
        plot_overview(**example())


def test_saves_a_png_and_leaves_global_state_alone(tmp_path: Path) -> None:
    before = dict(rcParams)
    path = save_overview(tmp_path / "overview.png", **example())
    assert path == tmp_path / "overview.png"
    assert imread(path).shape[1] >= 1400
    assert [file.name for file in tmp_path.iterdir()] == ["overview.png"]
    assert dict(rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_failed_save_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "overview.png"
    path.write_bytes(b"old")

    def broken(figure: Figure, target: Path, **kwargs: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        save_overview(path, **example())
    assert [file.name for file in tmp_path.iterdir()] == ["overview.png"]
    assert path.read_bytes() == b"old"


def test_save_wants_a_png_in_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.png"):
        save_overview(tmp_path / "overview.pdf", **example())
    with pytest.raises(FileNotFoundError, match="create it first"):
        save_overview(tmp_path / "missing" / "overview.png", **example())
