# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The network sees the bits that nnU-Net's predictor gives it, and every voxel knows its place."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import Compose, EnsureChannelFirst, Lambdad, LoadImage, LoadImaged, Orientation
from tiny_nnunet import TinyPlan, make_phantom_case, write_results_folder

pytest.importorskip("nnunetv2")

from monai_segshap.geometry import current_grid, resample_nearest, source_grid
from monai_segshap.nnunet import load_nnunet
from monai_segshap.nnunet.preprocessing import (
    NNUNetPreprocessd,
    baseline_of,
    channel_files,
    nnunet_properties,
    preprocess_array,
    preprocess_files,
    preprocess_image,
)

CT = TinyPlan("Dataset920_Ct")
PLANAR = replace(CT, name="Dataset921_Planar", configuration="2d", spacing=(2.0, 2.0), patch_size=(32, 32))
PLANS = {
    "plain": CT,
    "lowres": replace(
        CT, configuration="3d_lowres", spacing=(2.0, 3.75, 2.25), patch_size=(16, 12, 16), transpose_forward=(2, 0, 1)
    ),
    "pair": replace(CT, channels=("CT", "T2")),
    "planar": replace(PLANAR, mirror_axes=(0, 1)),
    "zscore": replace(CT, channels=("T2",), spacing=(2.0, 2.0, 2.0)),
    "separate": replace(CT, spacing=(6.0, 1.5, 1.5)),
    "world": replace(
        CT,
        channels=("CT", "CT", "CT"),
        intensities={"mean": 0.0, "std": 1.0, "percentile_00_5": -1e6, "percentile_99_5": 1e6},
    ),
}
PLANS["world_lowres"] = replace(
    PLANS["world"], spacing=PLANS["lowres"].spacing, transpose_forward=PLANS["lowres"].transpose_forward
)
PLANS["world_fine"] = replace(PLANS["world"], spacing=(1.0, 1.1, 0.9), transpose_forward=(1, 2, 0))
PLANS["world_planar"] = replace(PLANS["planar"], channels=("CT",) * 3, intensities=PLANS["world"].intensities)
READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
CASES = {
    "LPS": {},
    "RAS, cropped": {"codes": "RAS", "margin": ((2, 1), (0, 3), (4, 1))},
    "tilted": {"codes": "RPI", "tilt": 12.0, "margin": ((0, 2), (1, 0), (0, 5))},
}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """``model_of("plain", reader="SimpleITKIO")``: a model of `PLANS` with random weights."""
    made = {}

    def load(name, reader="SimpleITKIO"):
        if (name, reader) not in made:
            folder = write_results_folder(tmp_path_factory.mktemp("model"), PLANS[name])
            plans = json.loads((folder / "plans.json").read_text())
            plans["image_reader_writer"] = reader
            (folder / "plans.json").write_text(json.dumps(plans))
            made[name, reader] = load_nnunet(folder)
        return made[name, reader]

    return load


@pytest.fixture(scope="module")
def case_of(tmp_path_factory):
    made = {}

    def make(name, n_channels=1):
        if (name, n_channels) not in made:
            folder = tmp_path_factory.mktemp("case")
            made[name, n_channels] = make_phantom_case(folder, 3, n_channels=n_channels, **CASES[name])
        return made[name, n_channels]

    return make


def save(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.diag([1.25, 1.5, 2.5, 1.0]) if affine is None else affine), path)
    return path


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(-900, 300, shape).astype(np.int16)


def as_nnunet(model, files):
    """What nnUNetPredictor gives its network."""
    preprocessor = model.config.preprocessor_class(verbose=False)
    names = [str(f) for f in files]
    data, _, properties = preprocessor.run_case(names, None, model.plans, model.config, model.dataset)
    return torch.from_numpy(data).to(torch.float32), properties


def loaded(files):
    return torch.cat([EnsureChannelFirst()(LoadImage(image_only=True)(f)) for f in files])


def same(found, expected):
    return torch.equal(torch.as_tensor(found).as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))


def turned_file(path):
    """Axes (x, y, z) of the file run to posterior, inferior, right, and 0 around the body."""
    affine = np.array([[0, 0, 1.25, -30], [-1.5, 0, 0, 40], [0, -2.5, 0, 12], [0, 0, 0, 1.0]])
    values = np.zeros((28, 20, 24), dtype=np.int16)
    values[2:, 1:-3, :-4] = np.where(noise((26, 16, 20)) == 0, 1, noise((26, 16, 20)))
    return save(path, values, affine)


class TestBits:
    @pytest.mark.parametrize("place", CASES)
    @pytest.mark.parametrize("plan", ["plain", "lowres", "pair", "planar", "zscore", "separate"])
    def test_files_and_images_are_what_the_predictor_gets(self, model_of, case_of, plan, place):
        model = model_of(plan)
        files = case_of(place, model.n_channels).images
        expected, properties = as_nnunet(model, files)
        read, handed = preprocess_files(model, files), preprocess_image(model, loaded(files))
        assert isinstance(read, MetaTensor)
        assert read.dtype == torch.float32
        assert same(read, expected)
        assert same(handed, expected)
        np.testing.assert_allclose(handed.affine, read.affine, atol=1e-6)
        for image in (read, handed):
            kept = nnunet_properties(image)
            assert kept["bbox_used_for_cropping"] == [list(b) for b in properties["bbox_used_for_cropping"]]
            np.testing.assert_allclose(kept["spacing"], properties["spacing"], rtol=0, atol=0)

    @pytest.mark.parametrize("fixture", ["tiny_3d", "tiny_lowres", "tiny_two_channels", "tiny_2d"])
    def test_trained_folders(self, request, fixture, tiny_two_channel_case):
        model = load_nnunet(request.getfixturevalue(fixture))
        files = tiny_two_channel_case.images[: model.n_channels]
        expected, _ = as_nnunet(model, files)
        assert same(preprocess_files(model, files[0]), expected)
        assert same(preprocess_image(model, loaded(files)), expected)

    @pytest.mark.parametrize("plan", ["plain", "lowres", "zscore"])
    @pytest.mark.parametrize("reader", READERS)
    def test_every_reader_and_turned_axes(self, model_of, tmp_path, reader, plan):
        model, file = model_of(plan, reader), turned_file(tmp_path / "turned.nii.gz")
        expected, _ = as_nnunet(model, [file])
        read, handed = preprocess_files(model, file), preprocess_image(model, loaded([file]))
        assert same(read, expected)
        assert same(handed, expected)
        np.testing.assert_allclose(handed.affine, read.affine, atol=1e-6)

    @pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.1, -1000), (0.0123, 3.3)])
    def test_integers_that_the_header_scales(self, model_of, tmp_path, slope, intercept):
        content = bytearray(nib.Nifti1Image(np.abs(noise((20, 18, 16))), np.diag([1.25, 1.5, 2.5, 1.0])).to_bytes())
        content[112:120] = np.array([slope, intercept], dtype="<f4").tobytes()
        file, model = tmp_path / "scaled.nii", model_of("lowres")
        file.write_bytes(content)
        expected, _ = as_nnunet(model, [file])
        assert same(preprocess_files(model, file), expected)
        assert same(preprocess_image(model, loaded([file])), expected)
        assert nib.load(file).dataobj.slope == pytest.approx(slope)

    def test_other_formats(self, model_of, case_of, tmp_path):
        import SimpleITK

        file = case_of("tilted").images[0]
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(file)), str(tmp_path / "case.nrrd"))
        found, expected = (preprocess_files(model_of("lowres"), f) for f in (tmp_path / "case.nrrd", file))
        assert same(found, expected)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
        np.testing.assert_allclose(source_grid(found).affine, source_grid(expected).affine, atol=1e-4)

    def test_a_slice_for_a_2d_model(self, model_of, tmp_path):
        model, file = model_of("planar"), save(tmp_path / "slice.nii.gz", noise((40, 50)))
        found = preprocess_files(model, file)
        assert same(found, as_nnunet(model, [file])[0])
        assert source_grid(found).shape == (40, 50, 1)

    def test_the_image_is_left_alone(self, model_of, case_of):
        image = loaded(case_of("LPS").images)
        before = image.clone()
        preprocess_image(model_of("plain"), image)
        assert torch.equal(image, before)


class TestPlace:
    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize("plan", ["world", "world_lowres", "world_fine", "world_planar"])
    @pytest.mark.parametrize("tilt", [0.0, 20.0])
    def test_voxels_read_their_own_coordinates(self, model_of, tmp_path, plan, reader, tilt):
        a = np.deg2rad(tilt)
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.array([[0, 0, 1.25], [-1.5, 0, 0], [0, -2.5, 0]])
        affine[:3, 3] = (-31.5, 40.25, 12.0)
        if tilt == 0.0:
            affine[:3, :3] = np.diag([-1.25, 1.5, -2.5])
        index = np.stack(np.meshgrid(*[np.arange(n) for n in (30, 26, 28)], indexing="ij"), axis=-1)
        world = index @ affine[:3, :3].T + affine[:3, 3] + 1000.0
        world[:3], world[:, -2:], world[:, :, :1] = 0, 0, 0
        files = [save(tmp_path / f"w_{k:04d}.nii.gz", world[..., k].astype(np.float32), affine) for k in range(3)]
        model = model_of(plan, reader)
        image = preprocess_files(model, files)
        grid = current_grid(image)
        scale = np.divide(grid.shape, nnunet_properties(image)["shape_after_cropping_and_before_resampling"])
        inside = tuple(slice(int(5 * s) + 1, -int(5 * s) - 1) for s in scale)
        at = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)[inside]
        found = np.moveaxis(image.as_subclass(torch.Tensor).numpy()[(slice(None), *inside)], 0, -1) - 1000.0
        assert found.size > 500
        np.testing.assert_allclose(found, grid.to_world(at), atol=2e-2)

    def test_slices_resampled_by_themselves_lie_within_half_a_slice(self, model_of, tmp_path):
        index = np.stack(np.meshgrid(*[np.arange(n) for n in (20, 20, 40)], indexing="ij"), axis=-1)
        world = index * (1.5, 1.5, 2.5) + 1000.0
        affine = np.diag([1.5, 1.5, 2.5, 1.0])
        file = save(tmp_path / "z.nii.gz", world[..., 2].astype(np.float32), affine)
        model = model_of("world")
        config = type(model.config)({**model.config.configuration, "spacing": [6.0, 1.5, 1.5]})
        image = preprocess_files(replace(model, config=config), [file] * 3)
        z = current_grid(image).to_world([(k, 5, 5) for k in range(image.shape[1])])[:, 2]
        assert np.abs(image[2, :, 5, 5].numpy() - 1000.0 - z).max() <= 1.25 + 1e-3

    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize("place", CASES)
    def test_labels_go_to_the_network_and_back(self, model_of, case_of, place, reader):
        case = case_of(place)
        image = preprocess_files(model_of("plain", reader), case.images)
        labels = np.asarray(nib.load(case.labels).dataobj)
        there = resample_nearest(labels, source_grid(image), current_grid(image))
        assert there.shape == tuple(image.shape[1:])
        assert np.array_equal(resample_nearest(there, current_grid(image), source_grid(image)), labels)
        for organ, hu in ((1, 110), (2, 190), (3, 270)):
            inside = image[0].numpy()[there == organ] * 180.0 + 40.0
            assert abs(np.median(inside) - hu) < 3

    @pytest.mark.parametrize("place", CASES)
    def test_the_file_is_remembered_as_monai_does(self, model_of, case_of, place):
        file = case_of(place).images[0]
        image, plain = preprocess_files(model_of("lowres"), file), LoadImage(image_only=True)(file)
        assert tuple(image.meta["spatial_shape"]) == tuple(plain.meta["spatial_shape"])
        assert np.array_equal(image.meta["original_affine"], plain.meta["original_affine"])
        assert image.meta["filename_or_obj"] == plain.meta["filename_or_obj"] == str(file)

    def test_spacing_of_a_plain_tensor_is_one(self, model_of):
        image = preprocess_image(model_of("plain"), torch.from_numpy(noise((1, 30, 20, 20)).astype(np.float32)))
        assert nnunet_properties(image)["spacing"] == [1.0, 1.0, 1.0]
        assert "filename_or_obj" not in image.meta


class TestBaseline:
    @pytest.mark.parametrize(("hu", "effective"), [(-1024, -1004.0), (-500.0, -500.0), (40, 40.0), (3000, 320.0)])
    def test_is_what_preprocessing_writes(self, model_of, tmp_path, hu, effective):
        values = noise((20, 18, 16))
        values[5:9, 4:8, 3:9] = hu
        image = preprocess_files(model_of("plain"), save(tmp_path / "case.nii.gz", values))
        written = torch.unique(image[0, 3:9, 4:8, 5:9])
        baseline = baseline_of(model_of("plain"), hu)
        fill = baseline.fill(image, (1.0, 1.0, 1.0))
        assert written.tolist() == [baseline.value]
        assert torch.equal(torch.unique(fill), written.as_subclass(torch.Tensor))
        assert (baseline.hu, baseline.requested_hu) == (effective, hu)
        json.dumps(baseline.describe())

    def test_channels_without_hu_get_the_other_value(self, model_of):
        baseline = baseline_of(model_of("pair"), other=-1.5)
        assert baseline.value == (baseline_of(model_of("plain")).value, -1.5)
        assert baseline.hu == -1004.0
        alone = baseline_of(model_of("zscore"), other=-1.5)
        assert (alone.value, alone.hu, alone.requested_hu) == (-1.5, None, None)

    def test_channels_that_clip_differently_have_no_common_hu(self, model_of):
        model = model_of("world")
        measured = model.plans.foreground_intensity_properties_per_channel
        saved = measured["1"]
        measured["1"] = {**saved, "percentile_00_5": -200.0}
        try:
            baseline = baseline_of(model)
        finally:
            measured["1"] = saved
        assert baseline.value == (-1024.0, -200.0, -1024.0)
        assert baseline.hu is None
        assert baseline.requested_hu == -1024.0


class TestRawMasking:
    """Removing units in the file's HU, against removing them in network space."""

    def compare(self, model, case, fill_hu=-1024.0, crop_box="frozen"):
        image = loaded(case.images)
        labels = np.asarray(nib.load(case.labels).dataobj)
        whole = preprocess_image(model, image)
        box = nnunet_properties(whole)["bbox_used_for_cropping"] if crop_box == "frozen" else None
        removed = image.clone()
        removed[0][torch.from_numpy(labels == 2)] = fill_hu
        raw = preprocess_image(model, removed, crop_box=box)
        there = resample_nearest(labels == 2, source_grid(whole), current_grid(whole))
        mask = torch.from_numpy(there)[None]
        fill = baseline_of(model, fill_hu).fill(whole, (1.0, 1.0, 1.0))
        return raw.as_subclass(torch.Tensor), torch.where(mask, fill, whole.as_subclass(torch.Tensor)), mask

    @pytest.mark.parametrize("place", CASES)
    def test_equal_bits_without_resampling(self, model_of, case_of, place):
        raw, network, mask = self.compare(model_of("plain"), case_of(place))
        assert bool(mask.any())
        assert torch.equal(raw, network)

    def test_resampling_changes_voxels_around_the_unit(self, model_of, case_of):
        raw, network, mask = self.compare(model_of("lowres"), case_of("LPS"))
        changed = raw != network
        assert int(changed.sum()) > int(mask.sum())
        assert float((raw - network).abs().max()) > 0.5

    def test_statistics_of_the_image_change_every_voxel(self, model_of, case_of):
        model = model_of("zscore")
        raw, network, _ = self.compare(model, case_of("LPS"))
        assert float((raw != network).float().mean()) > 0.9

    def test_a_box_of_its_own_moves(self, model_of, case_of):
        model, case = model_of("plain"), case_of("RAS, cropped")
        image = loaded(case.images)
        whole = preprocess_image(model, image)
        box = nnunet_properties(whole)["bbox_used_for_cropping"]
        filled = torch.where(image == 0, -1024.0, image)
        assert preprocess_image(model, filled).shape[1:] == (28, 48, 56)
        assert preprocess_image(model, filled, crop_box=box).shape == whole.shape

    @pytest.mark.parametrize("plan", ["plain", "lowres", "zscore", "planar", "separate"])
    def test_the_given_box_gives_the_bits_of_the_found_one(self, model_of, case_of, plan):
        model, files = model_of(plan), case_of("RAS, cropped").images
        expected = preprocess_files(model, files)
        box = nnunet_properties(expected)["bbox_used_for_cropping"]
        found = preprocess_files(model, files, crop_box=box)
        assert same(found, expected)
        assert nnunet_properties(found) == nnunet_properties(expected)

    def test_masks_for_normalization_are_kept(self, model_of, case_of):
        model = model_of("zscore")
        masked = replace(model, config=type(model.config)({**model.config.configuration, "use_mask_for_norm": [True]}))
        files = case_of("RAS, cropped").images
        expected = preprocess_files(masked, files)
        box = nnunet_properties(expected)["bbox_used_for_cropping"]
        assert same(expected, as_nnunet(masked, files)[0])
        assert same(preprocess_files(masked, files, crop_box=box), expected)

    @pytest.mark.parametrize("box", [[[0, 28], [0, 48], [0, 57]], [[3, 3], [0, 4], [0, 4]], [[0, 4], [0, 4]]])
    def test_a_box_outside_the_image(self, model_of, case_of, box):
        with pytest.raises(ValueError, match=r"the crop box is .*; expected \[first, last \+ 1\] for three axes"):
            preprocess_files(model_of("plain"), case_of("LPS").images, crop_box=box)


class TestPipeline:
    @pytest.mark.parametrize("how", ["path", "list", "image"])
    @pytest.mark.parametrize("plan", ["plain", "lowres", "pair"])
    def test_everything_survives_collating(self, model_of, case_of, plan, how):
        model = model_of(plan)
        files = case_of("tilted", model.n_channels).images
        given = {"path": str(files[0]), "list": [str(f) for f in files], "image": [str(f) for f in files]}[how]
        steps = [NNUNetPreprocessd("image", model)]
        if how == "image":
            steps.insert(0, LoadImaged("image", ensure_channel_first=True))
        found = []
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset([{"image": given}], Compose(steps)), batch_size=1),
            network=torch.nn.Identity(),
            inferer=SimpleInferer(),
            postprocessing=Lambdad("image", lambda image: found.append(image) or image),
            decollate=True,
        )
        evaluator.run()
        image, expected = found[0], preprocess_files(model, files)
        assert same(image, expected)
        np.testing.assert_allclose(image.affine, expected.affine, atol=1e-6)
        assert source_grid(image).same_as(source_grid(expected), 1e-6)
        assert current_grid(image).same_as(current_grid(expected), 1e-6)
        assert image.meta["filename_or_obj"] == str(files[0])
        kept, known = nnunet_properties(image), nnunet_properties(expected)
        own = {"sitk_stuff", "files"}  # a loaded image knows its first file only
        assert {k: kept[k] for k in kept.keys() - own} == {k: known[k] for k in known.keys() - own}
        assert kept["files"][0] == str(files[0])
        assert nnunet_properties(expected[None]) == known

    def test_a_batch_carries_its_properties_too(self, model_of, case_of):
        case = {"image": case_of("LPS").images[0]}
        batch = next(iter(DataLoader(Dataset([case], NNUNetPreprocessd("image", model_of("plain"))), batch_size=1)))
        assert nnunet_properties(batch["image"])["network_shape"] == [28, 48, 56]

    @pytest.mark.parametrize("place", CASES)
    def test_display_is_the_raw_image_on_the_network_grid(self, model_of, case_of, place):
        file = case_of(place).images[0]
        d = NNUNetPreprocessd("image", model_of("plain"), display_key="shown")({"image": file})
        raw = np.asarray(nib.load(file).dataobj)
        grid = current_grid(d["image"])
        assert np.array_equal(d["shown"][0].numpy(), resample_nearest(raw, source_grid(d["image"]), grid))
        assert current_grid(d["shown"]).same_as(grid)
        assert source_grid(d["shown"]).same_as(source_grid(d["image"]))

    def test_display_is_interpolated_where_the_network_resamples(self, model_of, tmp_path):
        affine = np.diag([-1.25, 1.5, 2.5, 1.0])
        index = np.stack(np.meshgrid(*[np.arange(n) for n in (30, 26, 28)], indexing="ij"), axis=-1)
        world = (index @ affine[:3, :3])[..., 2] + 1000.0
        file = save(tmp_path / "w.nii.gz", world.astype(np.float32), affine)
        d = NNUNetPreprocessd("image", model_of("lowres"))({"image": file})
        shape = tuple(d["ct"].shape[1:])
        assert shape == tuple(d["image"].shape[1:])
        at = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)[2:-2, 2:-2, 2:-2]
        shown = d["ct"][0, 2:-2, 2:-2, 2:-2].numpy() - 1000.0
        np.testing.assert_allclose(shown, current_grid(d["ct"]).to_world(at)[..., 2], atol=1e-2)

    def test_display_can_be_left_out(self, model_of, case_of):
        d = NNUNetPreprocessd("image", model_of("plain"), display_key=None)({"image": case_of("LPS").images[0]})
        assert list(d) == ["image"]

    @pytest.mark.parametrize("keys", [["image", "other"], "ct"])
    def test_keys(self, model_of, keys):
        with pytest.raises(ValueError, match="expected one key"):
            NNUNetPreprocessd(keys, model_of("plain"))

    def test_images_without_properties(self):
        with pytest.raises(ValueError, match="carries no properties of nnU-Net"):
            nnunet_properties(MetaTensor(torch.zeros(1, 2, 2, 2)))


class TestFiles:
    def test_siblings_are_found(self, case_of):
        files = list(case_of("LPS", 2).images)
        assert channel_files(files[0], 2) == files
        assert channel_files(str(files[0]), 2) == files
        assert channel_files([str(f) for f in files], 2) == files
        assert channel_files([files[0]], 1) == channel_files(files[0], 1) == files[:1]

    def test_dots_in_names(self, tmp_path):
        names = [tmp_path / f"case.v1_{k:04d}.nii.gz" for k in range(3)]
        for name in names:
            name.write_bytes(b"")
        assert channel_files(names[0], 3) == names

    @pytest.mark.parametrize(
        ("names", "n", "error", "message"),
        [
            (["a_0000.nii", "a_0001.nii"], 1, ValueError, "got 2 files .* takes 1 channel"),
            (["a_0000.nii", "a_0001.nii"], 3, ValueError, "got 2 files .* takes 3 channel"),
            ("a_0000.nii", 3, FileNotFoundError, "missing in .*: a_0002.nii; the model takes 3 files"),
            ("a_0001.nii", 2, ValueError, "got one file, a_0001.nii; the model takes 2 channels"),
            ("plain.nii", 2, ValueError, "got one file, plain.nii; the model takes 2 channels"),
            (["a_0001.nii", "a_0000.nii"], 2, ValueError, "not in the order of their numbers"),
            ("gone.nii", 1, FileNotFoundError, "gone.nii is missing"),
            (".", 1, FileNotFoundError, "is a folder; give its files"),
            ([], 1, ValueError, "got 0 files"),
        ],
    )
    def test_wrong_files(self, tmp_path, names, n, error, message):
        for name in ("a_0000.nii", "a_0001.nii", "plain.nii"):
            (tmp_path / name).write_bytes(b"")
        given = tmp_path / names if isinstance(names, str) else [tmp_path / name for name in names]
        with pytest.raises(error, match=message):
            channel_files(given, n)

    @pytest.mark.parametrize("plan", ["plain", "lowres"])
    def test_files_that_are_no_3d_image(self, model_of, tmp_path, plan):
        (tmp_path / "junk.nii.gz").write_bytes(b"junk")
        (tmp_path / "junk.mha").write_bytes(b"junk")
        whole = save(tmp_path / "whole.nii", noise((10, 12, 9)))
        (tmp_path / "cut.nii").write_bytes(whole.read_bytes()[:900])
        packed = save(tmp_path / "packed.nii.gz", noise((10, 12, 9)))
        (tmp_path / "cut.nii.gz").write_bytes(packed.read_bytes()[:900])
        save(tmp_path / "slice.nii.gz", noise((10, 12)))
        save(tmp_path / "four.nii.gz", noise((10, 12, 9, 2)))
        holes = noise((10, 12, 9)).astype(np.float32)
        holes[1, 2, 3] = np.nan
        save(tmp_path / "holes.nii.gz", holes)
        messages = {
            "junk.nii.gz": "can not be read as an image",
            "junk.mha": "can not be read as an image",
            "cut.nii": "can not be read as an image: Expected 2160 bytes",
            "cut.nii.gz": "can not be read as an image",
            "slice.nii.gz": r"holds a 2D image of \(10, 12\) pixels; the model takes 3D images",
            "four.nii.gz": r"holds an array of shape \(10, 12, 9, 2\); expected one 3D image",
            "holes.nii.gz": r"holds 1 values that are not finite .* \[0, 1, 2, 3\]",
        }
        for name, message in messages.items():
            with pytest.raises(ValueError, match=message):
                preprocess_files(model_of(plan), tmp_path / name)

    def test_holes_that_simpleitk_reads_as_they_are(self, model_of, tmp_path):
        import SimpleITK

        holes = noise((9, 12, 10)).astype(np.float32)
        holes[1, 2, 3] = np.inf
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(holes), str(tmp_path / "holes.mha"))
        with pytest.raises(ValueError, match="1 values that are not finite"):
            preprocess_files(model_of("plain"), tmp_path / "holes.mha")

    def test_sheared_files(self, model_of, tmp_path):
        affine = np.diag([1.25, 1.5, 2.5, 1.0])
        affine[0, 1] = 0.8
        with pytest.raises(ValueError, match=r"(?s)can not read sheared\.nii\.gz: .*orthonormal"):
            preprocess_files(model_of("plain"), save(tmp_path / "sheared.nii.gz", noise((9, 9, 9)), affine))

    def test_channels_on_different_grids(self, model_of, tmp_path):
        model = model_of("pair")
        first = save(tmp_path / "a.nii", noise((10, 12, 9)))
        for other in (
            save(tmp_path / "b.nii", noise((10, 12, 8))),
            save(tmp_path / "c.nii", noise((10, 12, 9)), np.eye(4)),
        ):
            with pytest.raises(ValueError, match=r"the channels lie on different grids: a\.nii has .*; [bc]\.nii has"):
                preprocess_files(model, [first, other])

    def test_channels_at_different_places_warn(self, model_of, tmp_path):
        moved = np.eye(4)
        moved[:3, 3] = 5
        files = [save(tmp_path / f"{k}.nii", noise((10, 12, 9)), a) for k, a in (("a", np.eye(4)), ("b", moved))]
        with pytest.warns(UserWarning, match="Not all input images have the same origin"):
            preprocess_files(model_of("pair"), files)

    def test_readers_without_patient_space(self, model_of, tmp_path):
        file = save(tmp_path / "a.nii", noise((10, 12, 9)))
        with pytest.raises(ValueError, match="nnU-Net's Tiff3DIO, which knows no patient space"):
            preprocess_files(model_of("plain", "Tiff3DIO"), file)

    def test_the_smallest_image_and_one_of_zeros(self, model_of, tmp_path):
        for name, values in {"one": np.full((1, 1, 1), 50), "zero": np.zeros((6, 7, 8))}.items():
            file = save(tmp_path / f"{name}.nii.gz", values.astype(np.int16))
            for plan in ("plain", "lowres", "planar"):
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    found = preprocess_files(model_of(plan), file)
                assert same(found, as_nnunet(model_of(plan), [file])[0])

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_too_thin_an_image(self, model_of, tmp_path):
        file = save(tmp_path / "thin.nii.gz", noise((2, 12, 9)), np.diag([0.1, 0.1, 0.1, 1.0]))
        with pytest.raises(ValueError, match=r"can not preprocess an image of shape \(1, 9, 12, 2\).*too thin"):
            preprocess_files(model_of("plain"), file)


class TestImages:
    @pytest.mark.parametrize("shape", [(2, 8, 8, 8), (8, 8, 8), (1, 8, 8), (1, 1, 8, 8, 8)])
    def test_shapes(self, model_of, shape):
        with pytest.raises(ValueError, match=r"expected \(C, x, y, z\) with 1 channel\(s\) \(CT\)"):
            preprocess_image(model_of("plain"), torch.ones(shape))

    def test_holes(self, model_of):
        image = torch.ones(1, 8, 8, 8)
        image[0, 1, 2, 3] = float("nan")
        with pytest.raises(ValueError, match=r"1 values that are not finite .*\[0, 1, 2, 3\]"):
            preprocess_image(model_of("plain"), image)

    def test_images_that_were_reoriented(self, model_of, case_of):
        image = Orientation(axcodes="RAS", labels=None)(loaded(case_of("LPS").images))
        with pytest.raises(ValueError, match="was reoriented, cropped or resampled after it was loaded"):
            preprocess_image(model_of("plain"), image)

    def test_arrays(self, model_of):
        with pytest.raises(ValueError, match="with 1 channel"):
            preprocess_array(model_of("plain"), np.ones((2, 8, 8, 8)), {"spacing": [1, 1, 1]})
        found, properties = preprocess_array(model_of("plain"), noise((1, 9, 8, 7)), {"spacing": [2.5, 1.5, 1.25]})
        assert found.shape == (1, 9, 8, 7)
        assert found.dtype == np.float32
        assert tuple(properties["shape_before_cropping"]) == (9, 8, 7)


def test_without_nnunet(monkeypatch, model_of):
    from monai_segshap.nnunet import preprocessing

    def missing():
        raise ImportError('nnunetv2 is not installed; pip install "monai_segshap[nnunet]".')

    monkeypatch.setattr(preprocessing, "require_nnunet", missing)
    for call in (lambda: preprocess_files(None, "x"), lambda: preprocess_image(None, None), lambda: baseline_of(None)):
        with pytest.raises(ImportError, match="monai_segshap"):
            call()
