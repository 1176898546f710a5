# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The tiny results folders are ones that nnU-Net itself reads and predicts with."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_nnunet import TinyPlan, dice_of, train_on_case
from tiny_nnunet_broken import BREAKS, break_folder, gather_folders, make_cascade, rename_fold

pytestmark = pytest.mark.xdist_group("test_tiny_nnunet")


def _predictor(folder: Path, folds=None, mirroring: bool = False) -> nnUNetPredictor:
    found = nnUNetPredictor(
        device=torch.device("cpu"), use_mirroring=mirroring, perform_everything_on_device=False, allow_tqdm=False
    )
    found.initialize_from_trained_model_folder(str(folder), folds)
    return found


def _prepare(predictor, case):
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(
        case.image_names, None, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    return torch.as_tensor(data), properties


EXPECTED = {
    "tiny_3d": ("tiny_case", 1, 4, (28, 48, 56), 1),
    "tiny_3d_folds": ("tiny_padded_case", 2, 4, (25, 45, 51), 1),
    "tiny_regions": ("tiny_case", 1, 3, (28, 48, 56), 1),
    "tiny_2d": ("tiny_tilted_case", 1, 4, (28, 48, 56), 1),
    "tiny_two_channels": ("tiny_two_channel_case", 1, 4, (28, 48, 56), 2),
    "tiny_lowres": ("tiny_case", 1, 4, (35, 19, 32), 1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_nnunet_reads_the_folder_and_predicts_with_it(name, request):
    case_name, folds, heads, grid, channels = EXPECTED[name]
    predictor = _predictor(request.getfixturevalue(name))
    assert len(predictor.list_of_parameters) == folds
    data, _ = _prepare(predictor, request.getfixturevalue(case_name))
    assert tuple(data.shape) == (channels, *grid)
    logits = predictor.predict_logits_from_preprocessed_data(data)
    assert tuple(logits.shape) == (heads, *grid)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ["tiny_3d", "tiny_regions", "tiny_2d", "tiny_lowres"])
def test_trained_networks_find_the_organs_of_a_case_that_they_never_saw(name, request, tmp_path):
    case = request.getfixturevalue("tiny_case")
    predictor = _predictor(request.getfixturevalue(name))
    predictor.predict_from_files_sequential([case.image_names], [str(tmp_path / "found")])
    found = nib.load(tmp_path / "found.nii.gz")
    truth = nib.load(case.labels)
    np.testing.assert_allclose(found.affine, truth.affine, atol=1e-4)
    dice = dice_of(np.asarray(found.dataobj), np.asarray(truth.dataobj), 3)
    assert np.mean(dice) > 0.6, dice


def test_global_random_state_is_left_alone(make_results):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make_results(TinyPlan("Dataset907_Random", features=(4, 8)))
    assert torch.equal(before, torch.get_rng_state())


def test_checkpoints_hold_numpy_scalars_that_weights_only_refuses(tiny_3d):
    path = tiny_3d / "fold_0" / "checkpoint_final.pth"
    with pytest.raises(pickle.UnpicklingError, match=r"numpy.*scalar"):
        torch.load(path, weights_only=True)
    assert torch.load(path, weights_only=False)["trainer_name"] == "nnUNetTrainer"


def test_plain_trainer_is_found_without_torchvision(tiny_3d, monkeypatch):
    for name in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    assert len(_predictor(tiny_3d).list_of_parameters) == 1


def test_variant_trainers_load_once_torchvision_can_be_imported(tiny_3d, usable_torchvision, tmp_path):
    assert len(_predictor(break_folder(tiny_3d, tmp_path, "variant_trainer")).list_of_parameters) == 1


def test_cascade_network_takes_the_masks_of_the_previous_stage(tmp_path):
    predictor = _predictor(make_cascade(tmp_path))
    assert predictor.configuration_manager.previous_stage_name == "3d_lowres"
    assert next(predictor.network.parameters()).shape[1] == 1 + 3


@pytest.mark.parametrize("defect", sorted(set(BREAKS) - {"no_mirroring_entry", "variant_trainer"}))
def test_nnunet_itself_can_not_read_a_broken_folder(defect, make_results, tmp_path, usable_torchvision):
    folder = break_folder(make_results(TinyPlan("Dataset907_Broken", features=(4, 8))), tmp_path, defect)
    if defect == "unlisted_object":  # it unpickles everything
        assert len(_predictor(folder).list_of_parameters) == 1
    else:
        with pytest.raises(Exception):  # noqa: B017, PT011
            _predictor(folder)


def test_folds_and_folders_can_be_rearranged(make_results, tiny_3d, tiny_2d, tmp_path):
    folder = make_results(TinyPlan("Dataset907_All", features=(4, 8)))
    rename_fold(folder, "all")
    assert len(_predictor(folder, ("all",)).list_of_parameters) == 1
    names = sorted(p.name for p in gather_folders(tmp_path, tiny_3d, tiny_2d).iterdir())
    assert names == ["nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainer__nnUNetPlans__3d_fullres"]


def test_training_on_one_case_merges_labels_and_measures_the_foreground(tiny_case, tmp_path):
    groups = {"upper": [1, 2], "kidney": [3]}
    small = {"steps": 20, "patch_size": (16, 32, 32), "features": (4, 8, 16)}
    folder, case = train_on_case(tiny_case.images[0], tiny_case.labels, tmp_path, groups=groups, **small)
    predictor = _predictor(folder)
    assert predictor.dataset_json["labels"] == {"background": 0, "upper": 1, "kidney": 2}
    measured = predictor.plans_manager.foreground_intensity_properties_per_channel["0"]
    assert 50 < measured["percentile_00_5"] < 110 < measured["percentile_99_5"] < 320
    assert sum(p.numel() for p in predictor.network.parameters()) < 20_000
    predictor.predict_from_files_sequential([case.image_names], [str(tmp_path / "found")])
    assert set(np.unique(nib.load(tmp_path / "found.nii.gz").dataobj)) <= {0, 1, 2}


def test_grids_of_image_and_labels_must_match(tiny_case, tiny_tilted_case, tmp_path):
    with pytest.raises(ValueError, match="differ in grid"):
        train_on_case(tiny_case.images[0], tiny_tilted_case.labels, tmp_path, groups={"kidney": [3]})
