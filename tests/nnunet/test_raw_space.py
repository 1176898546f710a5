# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Removal in the file's intensities: against nnU-Net's own preprocessing and windows, one coalition after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from tiny_nnunet import TinyCase, TinyPlan, make_phantom_case, write_case, write_results_folder

pytest.importorskip("nnunetv2")

from raw_space_oracle import HU, N_UNITS, Setting, by_nnunet, file_units, setting_of

from monai_segshap.geometry import current_grid
from monai_segshap.inferers import PerturbedImages
from monai_segshap.nnunet import (
    NNUNetModel,
    NNUNetPreprocessd,
    NNUNetRawPerturbationd,
    baseline_of,
    load_nnunet,
    nnunet_properties,
    preprocess_files,
    preprocess_image,
    raw_case_from_files,
    raw_case_from_image,
    raw_equals_network_space,
    raw_perturbation,
)
from monai_segshap.perturbation import ConstantBaseline
from monai_segshap.transforms import KernelSHAPd, PredictLogitsd, SelectRegiond
from monai_segshap.units import partition_from_labels

pytestmark = pytest.mark.xdist_group("test_raw_space")

SMALL = (20, 37, 40)  # for the lowres model no voxel lies just between two of the network


@pytest.fixture(scope="module")
def small_case(tmp_path_factory: pytest.TempPathFactory) -> TinyCase:
    return make_phantom_case(tmp_path_factory.mktemp("small"), 1, shape=SMALL)


@pytest.fixture(scope="module")
def small_padded_case(tmp_path_factory: pytest.TempPathFactory) -> TinyCase:
    margin = ((2, 1), (1, 3), (4, 2))
    shape = [n + sum(m) for n, m in zip(SMALL, margin, strict=True)]
    return make_phantom_case(tmp_path_factory.mktemp("padded"), 1, shape=shape, codes="LAS", margin=margin)


@pytest.fixture(scope="module")
def lowres(tiny_lowres: Path, small_case: TinyCase) -> Setting:
    return setting_of(tiny_lowres, small_case)


@pytest.fixture(scope="module")
def two_units(lowres: Setting) -> Setting:
    """The same with two units, for fewer coalitions; some windows see one of them only."""
    first = np.indices(lowres.partition.labels.shape)[0]
    labels = 1 * (first < 8) + 2 * (first >= 17)
    return replace(lowres, partition=partition_from_labels(labels, current_grid(lowres.image), "parts"))


@pytest.fixture(scope="module")
def zero_filled(tiny_lowres: Path, small_padded_case: TinyCase) -> Setting:
    """Removed voxels become 0, which nnU-Net's cropping would take for the margin of this image."""
    return setting_of(tiny_lowres, small_padded_case, hu=0.0)


# --- when it differs ---


def test_ct_on_its_own_grid_gives_no_reason(tiny_3d, tiny_case, tiny_padded_case):
    model = load_nnunet(tiny_3d)
    for case in (tiny_case, tiny_padded_case):
        assert raw_equals_network_space(model, preprocess_files(model, case.images)) == []


def test_resampling_is_a_reason_with_both_shapes(lowres):
    (reason,) = raw_equals_network_space(lowres.model, lowres.image)
    assert reason == f"the image is resampled from (40, 20, 37) to {tuple(lowres.image.shape[1:])} voxels"


def test_statistics_of_the_image_are_a_reason(tiny_two_channels, tiny_two_channel_case):
    model = load_nnunet(tiny_two_channels)
    image = preprocess_files(model, tiny_two_channel_case.images)
    (reason,) = raw_equals_network_space(model, image)
    assert reason == "ZScoreNormalization has no fixed value for the intensity of a removed voxel"


# --- values ---


@pytest.mark.parametrize("name", ["lowres", "zero_filled"])
def test_values_equal_a_brute_force_over_raw_intensities(name, request):
    setting: Setting = request.getfixturevalue(name)
    perturbed = setting.perturbed
    assert perturbed is not None
    found = setting.explain(perturbed)
    values, game = setting.oracle()
    assert found.method == "exact"
    assert found.visible.all()
    assert (np.ptp(values, axis=0) > 1e-2).all()
    np.testing.assert_allclose(found.values, values, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.full, game[(True,) * N_UNITS], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.empty, game[(False,) * N_UNITS], rtol=0, atol=1e-4)
    # and they are other values than those of network space
    other = setting.explain(None)
    assert (np.abs(other.values - found.values).max(axis=0) > 5e-4).all()
    assert (found.baseline["space"], found.baseline["hu"]) == ("file", setting.hu)
    assert other.baseline["space"] == "network"


@pytest.mark.parametrize("name", ["lowres", "zero_filled"])
def test_images_of_coalitions_have_the_bits_of_nnunets_preprocessing(name, request):
    setting: Setting = request.getfixturevalue(name)
    perturbed = setting.perturbed
    units = file_units(setting.partition.labels, setting.model, nnunet_properties(setting.image))
    for kept in ([1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1]):
        removed = np.isin(units, 1 + np.flatnonzero(np.equal(kept, 0)))
        expected = by_nnunet(setting.model, setting.case.image_names, removed, setting.hu)
        assert torch.equal(perturbed(np.array(kept, dtype=bool)), expected)
    assert torch.equal(perturbed(np.ones(N_UNITS, dtype=bool)), setting.image.as_subclass(torch.Tensor))


def test_the_frozen_box_matters_for_the_zero_filled_case(zero_filled):
    # otherwise the test above would prove nothing about it
    model, properties = zero_filled.model, nnunet_properties(zero_filled.image)
    units = file_units(zero_filled.partition.labels, model, properties)
    voxels, reader = model.plans.image_reader_writer_class().read_images(zero_filled.case.image_names)
    voxels = np.where(units > 0, 0, voxels[0])[None].astype(np.float32)
    moved = model.config.preprocessor_class(verbose=False).run_case_npy(
        voxels, None, dict(reader), model.plans, model.config, model.dataset
    )[2]
    before = properties["bbox_used_for_cropping"]
    assert before != [[0, n] for n in properties["shape_before_cropping"]]
    assert [list(map(int, ends)) for ends in moved["bbox_used_for_cropping"]] != before


def test_without_resampling_network_space_has_the_values_of_raw_space(tiny_3d, small_padded_case):
    setting = setting_of(tiny_3d, small_padded_case)
    assert setting.perturbed is None
    found = setting.explain(None)
    values, game = setting.oracle()
    assert found.method == "exact"
    assert (np.ptp(values, axis=0) > 1e-2).all()
    np.testing.assert_allclose(found.values, values, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.empty, game[(False,) * N_UNITS], rtol=0, atol=1e-4)
    units = file_units(setting.partition.labels, setting.model, nnunet_properties(setting.image))
    expected = by_nnunet(setting.model, setting.case.image_names, units > 0, HU)
    removed = torch.from_numpy(setting.partition.labels > 0)
    masked = torch.where(removed, baseline_of(setting.model).fill(setting.image, (1.0, 1.0, 1.0)), setting.image)
    assert torch.equal(masked.as_subclass(torch.Tensor), expected)


def test_channels_that_are_not_normalized_are_no_reason_only_if_both_write_the_same_value(tmp_path, tiny_case):
    # raw removal writes -1024 here; the baseline of such a channel is 0 in network space
    folder = write_results_folder(tmp_path, TinyPlan("Dataset931_Plain", channels=("noNorm",)))
    plans = folder / "plans.json"
    plans.write_text(plans.read_text().replace("ZScoreNormalization", "NoNormalization"))
    model = load_nnunet(folder)
    image = preprocess_files(model, tiny_case.images)
    labels = np.zeros(image.shape[1:], dtype=int)
    labels[5:20, 20:30, 20:30] = 1
    partition = partition_from_labels(labels, current_grid(image), "parts")
    whole = ((0, 0, 0), tuple(n - 1 for n in labels.shape))
    perturbed = raw_perturbation(model, raw_case_from_files(model, list(tiny_case.images)), image, partition, whole, HU)
    network = torch.where(torch.from_numpy(labels == 1), baseline_of(model, HU).fill(image, (1.0, 1.0, 1.0)), image)
    expected = by_nnunet(model, tiny_case.image_names, labels == 1, HU)
    found = network if perturbed is None else perturbed(np.zeros(1, dtype=bool))
    assert torch.equal(found.as_subclass(torch.Tensor), expected)


# --- dummies ---


LONG = TinyPlan("Dataset932_Long", spacing=(1.25, 2.0, 2.0), patch_size=(16, 12, 16))
SEEN = ((0, 0, 0), (15, 23, 19))  # voxels of the network's grid, two of which are one of the file along the first axis


def long_setting(folder: Path, ct: np.ndarray) -> tuple[PerturbedImages, MetaTensor, int]:
    """Slabs of one voxel of the file, and a perturbation for windows at one end; two columns belong to no slab."""
    model = load_nnunet(write_results_folder(folder, LONG))
    case = write_case(folder, "long", [ct], np.zeros(ct.shape), np.diag([-1.25, -1.5, 2.5, 1.0]))
    image = preprocess_files(model, case.images)
    labels = np.broadcast_to(1 + np.arange(image.shape[1])[:, None, None] // 2, image.shape[1:]).copy()
    labels[:, :, :2] = 0
    partition = partition_from_labels(labels, current_grid(image), "slabs")
    assert partition.n_units == len(ct)
    perturbed = raw_perturbation(model, raw_case_from_files(model, list(case.images)), image, partition, SEEN)
    assert perturbed is not None
    return perturbed, image, partition.n_units


def changed_where_seen(perturbed: PerturbedImages, n_units: int, removed: Any) -> int:
    """Voxels of the seen part that change if these units are removed."""
    kept = np.ones(n_units, dtype=bool)
    full = perturbed.make(kept)
    kept[removed] = False
    part = (slice(None), *(slice(a, b + 1) for a, b in zip(*SEEN, strict=True)))
    return int((perturbed.make(kept)[part] != full[part]).sum())


def noise(low: int, high: int, n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (n, 32, 32)).astype(np.int16)


def test_far_units_change_no_bit_of_the_windows_and_near_ones_do(tmp_path):
    ct = noise(30, 300)
    ct[:, ::2, 0], ct[:, 1::2, 0] = -1024, 1500  # both ends of the range stay, whatever is removed
    perturbed, _, n = long_setting(tmp_path, ct)
    assert perturbed.visible.tolist() == [True] * 37 + [False] * (n - 37)
    for unit in (37, 38, 44, n - 1):
        assert changed_where_seen(perturbed, n, unit) == 0, unit
    assert changed_where_seen(perturbed, n, ~perturbed.visible) == 0
    changes = [changed_where_seen(perturbed, n, unit) for unit in (7, 9, 12, 16)]
    assert min(changes) > 0
    assert changes == sorted(changes, reverse=True)


@pytest.mark.parametrize("hu", [1500, 40], ids=["largest", "smallest"])
def test_far_units_that_hold_the_extreme_of_the_image_are_no_dummies(tmp_path, hu):
    ct = noise(30, 60)
    ct[50:, :, :16] = hu  # bone far away is the largest value; whatever is removed becomes the smallest one
    perturbed, _, n = long_setting(tmp_path, ct)
    idle = np.flatnonzero(~perturbed.visible)
    assert all(changed_where_seen(perturbed, n, unit) == 0 for unit in idle[::4])


def test_statistics_of_the_image_make_every_unit_visible(tmp_path):
    folder = write_results_folder(tmp_path, replace(LONG, channels=("T2",)))
    model = load_nnunet(folder)
    case = write_case(tmp_path, "long", [noise(30, 300)], np.zeros((60, 32, 32)), np.diag([-1.25, -1.5, 2.5, 1.0]))
    image = preprocess_files(model, case.images)
    labels = np.broadcast_to(1 + np.arange(image.shape[1])[:, None, None] // 30, image.shape[1:]).copy()
    partition = partition_from_labels(labels, current_grid(image), "slabs")
    perturbed = raw_perturbation(model, raw_case_from_files(model, list(case.images)), image, partition, SEEN)
    assert perturbed.visible.all()
    assert changed_where_seen(perturbed, partition.n_units, partition.n_units - 1) > 16 * 24 * 20 * 0.99


def test_units_that_already_hold_the_replacement_are_dummies(tmp_path):
    ct = noise(30, 300)
    ct[3] = -1024
    perturbed, _, n = long_setting(tmp_path, ct)
    assert not perturbed.visible[3]
    assert perturbed.visible[2]
    assert changed_where_seen(perturbed, n, 3) == 0


# --- passes and stores ---


def test_every_coalition_costs_all_of_its_windows(two_units, counting):
    counted = counting(two_units.model.network())
    found = two_units.explain(two_units.perturbed, counted, batch_size="library")
    windows = len(two_units.model.inferer().window_plan(two_units.image).touching([two_units.region.box]))
    assert found.forwards.run == found.forwards.planned == 4 * windows
    assert counted.n_windows == found.forwards.run + found.forwards.calibration
    whole = two_units.model.inferer().window_plan(two_units.image).n_windows
    assert found.forwards.naive == 4 * whole
    shared = two_units.explain(None, batch_size="library")
    assert shared.forwards.run < found.forwards.run


@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_every_image_is_made_once_for_the_run(two_units, batch_size):
    perturbed = two_units.perturbed
    made: list[bytes] = []

    def make(kept: np.ndarray) -> torch.Tensor:
        made.append(np.packbits(kept).tobytes())
        return perturbed.make(kept)

    plain = two_units.explain(perturbed, batch_size="library")
    found = two_units.explain(PerturbedImages(make, perturbed.visible, perturbed.name), batch_size=batch_size)
    np.testing.assert_allclose(found.values, plain.values, rtol=0, atol=1e-4)
    assert len(set(made)) == 4
    assert len(made) <= 2 * 4  # the calibration may need some of them once more


def test_stores_of_both_spaces_are_not_mistaken_for_each_other(two_units, tmp_path):
    first = two_units.explain(two_units.perturbed, store_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    other = two_units.explain(None, store_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    otherwise = replace(two_units, hu=0.0)
    zero = two_units.explain(otherwise.perturbed, store_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert not np.array_equal(first.values, other.values)
    assert not np.array_equal(first.values, zero.values)
    again = two_units.explain(two_units.perturbed, store_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert np.array_equal(again.values, first.values)


def test_a_second_baseline_and_the_cropped_grid_are_refused(two_units):
    perturbed = two_units.perturbed
    with pytest.raises(ValueError, match="second baseline can not be used with images that are perturbed as a whole"):
        two_units.explain(perturbed, second_baseline=ConstantBaseline(0.0))
    with pytest.raises(ValueError, match="need the deployed grid; use grid='deployed'"):
        two_units.explain(perturbed, grid="crop")


def test_a_perturbation_of_other_units_is_refused(lowres):
    perturbed = replace(lowres.perturbed, visible=np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="knows 3 units; expected 4"):
        lowres.explain(perturbed)


# --- as a transform ---


def chain(model: NNUNetModel, labels_of: Any, perturb: str = "raw", **options: Any) -> Compose:
    network, inferer = model.network(), model.inferer()

    def add_units(d: dict[str, Any]) -> dict[str, Any]:
        labels = labels_of(d["pred"])
        return d | {"units": partition_from_labels(labels, current_grid(d["image"]), "parts").to_metatensor()}

    return Compose(
        [
            NNUNetPreprocessd("image", model),
            PredictLogitsd("image", network, inferer),
            SelectRegiond("pred", "spleen", class_names=model.class_names, inferer=inferer),
            add_units,
            NNUNetRawPerturbationd("image", model, perturb),
            KernelSHAPd(
                "image",
                network,
                inferer,
                baseline=baseline_of(model),
                class_names=model.class_names,
                display_key="ct",
                progress=False,
                **options,
            ),
        ]
    )


def organs_of(logits: torch.Tensor) -> np.ndarray:
    return logits.argmax(dim=0).cpu().numpy().astype(int)


def test_transforms_explain_like_the_functions(lowres, capsys):
    files = {"image": lowres.case.image_names[0]}
    found = chain(lowres.model, organs_of)(dict(files))
    assert "shares no window: the image is resampled from (40, 20, 37) to" in capsys.readouterr().out
    (explanation,) = found["explanations"]
    setting = replace(lowres, partition=explanation.partition, region=explanation.region)
    np.testing.assert_array_equal(explanation.values, setting.explain(setting.perturbed).values)
    network = chain(lowres.model, organs_of, "network")(dict(files))
    assert "perturbed" not in network
    np.testing.assert_array_equal(network["explanations"][0].values, setting.explain(None).values)


def test_the_transform_says_that_nothing_differs(tiny_3d, small_case, capsys):
    found = chain(load_nnunet(tiny_3d), organs_of)({"image": small_case.image_names[0]})
    assert "equals removal in network space here, bit for bit" in capsys.readouterr().out
    assert "perturbed" not in found
    assert found["explanations"][0].baseline["space"] == "network"


def test_an_image_without_files_and_an_unknown_space_are_refused(lowres):
    name = lowres.case.image_names[0]
    loaded = nib.load(name)
    tensor = MetaTensor(torch.from_numpy(loaded.get_fdata(dtype=np.float32))[None], affine=loaded.affine)
    image = preprocess_image(lowres.model, tensor)
    data = {"image": image, "units": lowres.partition.to_metatensor(), "receptive_field": torch.ones(1, 2, 2, 2)}
    with pytest.raises(ValueError, match=r"does not know its files.*preprocess it from files"):
        NNUNetRawPerturbationd("image", lowres.model)(data)
    with pytest.raises(ValueError, match="unknown perturb 'hu'; expected one of network, raw"):
        NNUNetRawPerturbationd("image", lowres.model, "hu")
    # a loaded image can still be perturbed by the function
    raw = raw_case_from_image(lowres.model, tensor)
    whole = ((0, 0, 0), tuple(n - 1 for n in lowres.partition.labels.shape))
    by_image = raw_perturbation(lowres.model, raw, image, lowres.partition, whole)
    kept = np.array([1, 0, 1, 0], dtype=bool)
    assert torch.equal(by_image(kept), lowres.perturbed(kept))


def test_files_on_a_tilted_grid_are_perturbed_where_the_units_are(tiny_lowres, tmp_path):
    case = make_phantom_case(tmp_path, 1, codes="RAS", tilt=12.0, margin=((0, 2), (1, 3), (0, 6)))
    setting = setting_of(tiny_lowres, case)
    kept = np.array([1, 0, 1, 0], dtype=bool)
    units = file_units(setting.partition.labels, setting.model, nnunet_properties(setting.image))
    expected = by_nnunet(setting.model, case.image_names, np.isin(units, [2, 4]), HU)
    assert torch.equal(setting.perturbed(kept), expected)
