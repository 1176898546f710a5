# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Small files on a grid of their own, and evaluators over them, as tests and their processes need them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)

from monai_segshap.explainers import Explanation
from monai_segshap.transforms import CubeUnitsd, KernelSHAPd, PredictLogitsd, SelectRegiond

INFERER = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
#: Voxels of the file: axes are left, posterior, superior here, and stored in another order.
SHAPE = (10, 14, 6)
AFFINE = np.array([[0, -1.6, 0, 40.0], [-2.0, 0, 0, 30.0], [0, 0, 2.9, -20.0], [0, 0, 0, 1]])
REGION = {"mode": "box", "box_ijk": [[3, 4, 2], [6, 8, 4]]}
KEYS = ("image", "label")


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    convolution, readout = torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.Conv3d(4, 3, 1)
    # normalized last, so that no class has all voxels
    return torch.nn.Sequential(convolution, torch.nn.ReLU(), readout, torch.nn.InstanceNorm3d(3)).eval()


def write_files(folder: Path, names: list[str]) -> list[dict[str, str]]:
    """An image of noise and a label for each name (a path without ending)."""
    found = []
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        image = rng.normal(size=SHAPE).astype(np.float32)
        volumes = {"image": image, "label": (image > 0.8).astype(np.uint8)}
        case = {}
        for key, volume in volumes.items():
            path = folder / key / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(volume, AFFINE), path)
            case[key] = str(path)
        found.append(case)
    return found


def preprocessing() -> Compose:
    """Turned to other axes, and to cubic voxels."""
    return Compose(
        [
            LoadImaged(KEYS),
            EnsureChannelFirstd(KEYS),
            Orientationd(KEYS, "RAS", labels=None),
            Spacingd(KEYS, (2.0, 2.0, 2.0), mode=("bilinear", "nearest")),
            ScaleIntensityRanged("image", -4, 4, -1, 1),
        ]
    )


def explain(net: torch.nn.Module, target=1, region=None, budget=60, **options) -> Compose:
    """From raw logits to explanations."""
    settings = {"budget": budget, "progress": False, "scores": ("tp", "fp"), **options}
    return Compose(
        [
            SelectRegiond("pred", target, region or REGION),
            CubeUnitsd("image", scale_mm=10.0),
            KernelSHAPd("image", net, SlidingWindowInferer(**INFERER), **settings),
        ]
    )


def evaluator(files, net, batch_size=1, decollate=True, invert=True, sampler=None, **options) -> SupervisedEvaluator:
    to_tensor = preprocessing()
    post = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", to_tensor, "image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
        ]
    )
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(files, to_tensor), batch_size=batch_size, sampler=sampler),
        network=net,
        inferer=SlidingWindowInferer(**INFERER),
        postprocessing=post if invert else None,
        decollate=decollate,
        **options,
    )


def alone(file: dict[str, str], net: torch.nn.Module, **options) -> list[Explanation]:
    """The same case without an engine."""
    case = preprocessing()(dict(file))
    case = PredictLogitsd("image", net, SlidingWindowInferer(**INFERER))(case)
    return explain(net, **options)(case)["explanations"]
