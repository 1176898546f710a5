# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A bundle with the ids that segmentation bundles for CT usually have, its data and a tiny network, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)

from monai_segshap.phantoms import torso_phantom

SPACING = [4.0, 4.0, 5.0]
NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
INFERER = {"roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5}
HU = {"a_min": -200, "a_max": 300, "b_min": 0, "b_max": 1, "clip": True}
CASES = ("anna", "bert")


def steps(keys: list[str], modes: list[str]) -> list[dict]:
    """From files to tensors, as the configurations have it."""
    return [
        {"_target_": "LoadImaged", "keys": keys},
        {"_target_": "EnsureChannelFirstd", "keys": keys},
        {"_target_": "Orientationd", "keys": keys, "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": keys, "pixdim": SPACING, "mode": modes},
        {"_target_": "ScaleIntensityRanged", "keys": "image", **HU},
        {"_target_": "EnsureTyped", "keys": keys},
    ]


def tensors(root: Path, case: str) -> dict:
    """The tensors of a case, without any bundle."""
    keys = ["image", "label"]
    to_tensor = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Orientationd(keys, "RAS"),
            Spacingd(keys, SPACING, mode=["bilinear", "nearest"]),
            ScaleIntensityRanged("image", **HU),
            EnsureTyped(keys),
        ]
    )
    folders = {"image": "imagesTs", "label": "labelsTs"}
    return to_tensor({key: str(root / "data" / folder / f"{case}.nii.gz") for key, folder in folders.items()})


def network_of(root: Path) -> torch.nn.Module:
    net = UNet(**NETWORK)
    net.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    return net.eval()


def inference() -> dict:
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "$@bundle_root + '/data'",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, 'imagesTs', '*.nii.gz')))",
        "device": "$torch.device('cpu')",
        "network_def": {"_target_": "UNet", **NETWORK},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": steps(["image"], ["bilinear"])},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': name} for name in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SlidingWindowInferer", **INFERER},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg"},
            ],
        },
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }


def training() -> dict:
    """The part of a training configuration that an evaluation uses."""
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "output_dir": "$@bundle_root + '/eval'",
        "images": "$sorted(glob.glob(@bundle_root + '/data/imagesTs/*.nii.gz'))",
        "labels": "$sorted(glob.glob(@bundle_root + '/data/labelsTs/*.nii.gz'))",
        "device": "$torch.device('cpu')",
        "network_def": {"_target_": "UNet", **NETWORK},
        "network": "$@network_def.to(@device)",
        "train": {"deterministic_transforms": steps(["image", "label"], ["bilinear", "nearest"])},
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": "%train#deterministic_transforms"},
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]",
                "transform": "@validate#preprocessing",
                "progress": False,
            },
            "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset", "batch_size": 1},
            "inferer": {"_target_": "SlidingWindowInferer", **INFERER},
            "postprocessing": {"_target_": "Compose", "transforms": []},
            "handlers": [],
            "key_metric": {
                "val_mean_dice": {
                    "_target_": "MeanDice",
                    "include_background": False,
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                }
            },
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "inferer": "@validate#inferer",
                "postprocessing": "@validate#postprocessing",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
                "amp": True,
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@train#trainer.run()"],
    }


def evaluation() -> dict:
    """What an evaluation changes of the training configuration."""
    return {
        "validate#dataset#cache_rate": 0,
        "validate#postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": ["pred", "label"],
                    "transform": "@validate#preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": [False, True],
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 2},
            ],
        },
        "validate#handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@ckpt_dir + '/model.pt'",
                "load_dict": {"model": "@network"},
            },
            {
                "_target_": "MetricsSaver",
                "save_dir": "@output_dir",
                "metrics": ["val_mean_dice"],
                "metric_details": ["val_mean_dice"],
                "summary_ops": "*",
            },
        ],
        "run": ["$@validate#evaluator.run()"],
    }


METADATA = {
    "version": "0.1.0",
    "network_data_format": {
        "outputs": {"pred": {"type": "image", "num_channels": 2, "channel_def": {"0": "background", "1": "bright"}}}
    },
}


def write_bundle(root: Path) -> Path:
    """A bundle with two cases whose files have flipped and permuted axes and another spacing than the network."""
    for name, content in {
        "inference": inference(),
        "train": training(),
        "evaluate": evaluation(),
        "metadata": METADATA,
    }.items():
        (root / "configs").mkdir(parents=True, exist_ok=True)
        (root / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    for number, case in enumerate(CASES):
        _write_case(root / "data", case, seed=3 + number, bright_hu=100 + 150 * number)
    (root / "models").mkdir()
    torch.save(_network(tensors(root, CASES[0])["image"]).state_dict(), root / "models" / "model.pt")
    return root


def _write_case(folder: Path, case: str, seed: int, bright_hu: float) -> None:
    phantom = torso_phantom(seed=seed, shape=(96, 64, 16))
    turn = np.array([[0, -1, 0, 63], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float)
    shrink = np.diag([2.0, 1.0, 1.0, 1.0])  # every second row
    affine = phantom.affine @ np.linalg.inv(turn) @ shrink
    for kind, volume in (("imagesTs", phantom.image), ("labelsTs", (phantom.organs > 0) & (phantom.image > bright_hu))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        turned = volume.transpose(1, 0, 2)[::-1][::2].astype(np.float32)
        nib.save(nib.Nifti1Image(turned, affine), folder / kind / f"{case}.nii.gz")


def _network(image: torch.Tensor) -> torch.nn.Module:
    """Random weights that blur; class 1 is bright, with such a bias that a fortieth of the voxels is predicted."""
    torch.manual_seed(5)
    net = UNet(**NETWORK).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
        up = net.model[2].conv.weight  # (in, out, 3, 3, 3), transposed: even interpolation, no checkerboard
        hat = torch.tensor([0.5, 1.0, 0.5])
        up.copy_(up.mean(dim=(2, 3, 4), keepdim=True) * hat[:, None, None] * hat[:, None] * hat)
        up[:, 0] *= -1
        logits = SlidingWindowInferer(**INFERER)(image[None], net)[0].as_subclass(torch.Tensor)
        shift = float(np.quantile((logits[1] - logits[0]).numpy(), 0.975))
        net.model[2].conv.bias[0] += shift
    return net
