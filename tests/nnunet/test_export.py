# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Label maps from logits are the files that nnU-Net's own prediction writes."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

pytest.importorskip("nnunetv2")

from monai_segshap.nnunet import load_nnunet
from monai_segshap.nnunet.export import export_labels
from monai_segshap.nnunet.preprocessing import nnunet_properties, preprocess_files, preprocess_image

CASES = ("tiny_case", "tiny_padded_case", "tiny_tilted_case")


def stock_predictor(folder):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    return predictor


def stock_file(predictor, files, folder):
    """The label map that nnUNetv2_predict writes, (x, y, z) as in the file."""
    folder.mkdir()
    predictor.predict_from_files_sequential([[str(f) for f in files]], [str(folder / "case")])
    return nib.load(folder / "case.nii.gz")


def with_reader(folder, reader, to):
    shutil.copytree(folder, to)
    plans = json.loads((to / "plans.json").read_text())
    (to / "plans.json").write_text(json.dumps({**plans, "image_reader_writer": reader}))
    return to


@pytest.fixture(scope="module")
def plain(tiny_3d, tiny_padded_case):
    """A model, a preprocessed image that was cropped, and logits of noise."""
    model = load_nnunet(tiny_3d)
    image = preprocess_files(model, tiny_padded_case.images)
    logits = torch.randn((model.n_heads, *image.shape[1:]), generator=torch.Generator().manual_seed(0))
    return model, image, logits


@pytest.mark.parametrize("fixture", ["tiny_3d", "tiny_regions", "tiny_lowres", "tiny_2d"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_file_of_nnunet(request, tmp_path, fixture, case):
    folder, files = request.getfixturevalue(fixture), request.getfixturevalue(case).images
    model, predictor = load_nnunet(folder), stock_predictor(folder)
    image = preprocess_files(model, files)
    logits = predictor.predict_logits_from_preprocessed_data(image.as_subclass(torch.Tensor))
    expected = stock_file(predictor, files, tmp_path / "out")
    found = export_labels(model, logits, nnunet_properties(image))
    assert found.shape == expected.shape == tuple(nib.load(files[0]).shape)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(expected.dataobj))
    assert len(np.unique(found)) > 2


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"])
@pytest.mark.parametrize("fixture", ["tiny_regions", "tiny_lowres"])
def test_readers_that_turn_the_axes(request, tmp_path, tiny_padded_case, fixture, reader):
    folder = with_reader(request.getfixturevalue(fixture), reader, tmp_path / "model")
    source = nib.load(tiny_padded_case.images[0])
    turned = source.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, tmp_path / "turned_0000.nii.gz")
    model, predictor = load_nnunet(folder), stock_predictor(folder)
    image = preprocess_files(model, tmp_path / "turned_0000.nii.gz")
    logits = predictor.predict_logits_from_preprocessed_data(image.as_subclass(torch.Tensor))
    expected = stock_file(predictor, [tmp_path / "turned_0000.nii.gz"], tmp_path / "out")
    found = export_labels(model, logits, nnunet_properties(image))
    assert found.shape == expected.shape == turned.shape
    assert np.array_equal(found, np.asarray(expected.dataobj))
    assert found.any()


def test_a_loaded_image_exports_alike(plain, tiny_padded_case):
    from monai.transforms import EnsureChannelFirst, LoadImage

    model, image, logits = plain
    handed = preprocess_image(model, EnsureChannelFirst()(LoadImage(image_only=True)(tiny_padded_case.images[0])))
    first, second = (export_labels(model, logits, nnunet_properties(i)) for i in (image, handed))
    assert np.array_equal(first, second)
    assert not first[:4].any(), "outside the crop box there is background"


def test_threads_and_logits_are_left_alone(plain):
    model, image, logits = plain
    before, threads = logits.clone(), torch.get_num_threads()
    export_labels(model, logits, nnunet_properties(image))
    assert torch.equal(logits, before)
    assert torch.get_num_threads() == threads


def test_wrong_logits(plain):
    model, image, logits = plain
    properties = nnunet_properties(image)
    for bad in (logits[:2], logits[None], logits[..., :-1], logits.argmax(0), logits.int()):
        with pytest.raises(ValueError, match=r"expected floating-point logits \(heads, a, b, c\) = \(4, "):
            export_labels(model, bad, properties)
    with pytest.raises(ValueError, match="values that are not finite"):
        export_labels(model, logits / 0, properties)


def test_properties_of_something_else(plain):
    model, _, logits = plain
    with pytest.raises(ValueError, match=r"the properties lack shape_before_cropping, .*; give nnunet_properties"):
        export_labels(model, logits, {"spacing": [1, 1, 1]})
