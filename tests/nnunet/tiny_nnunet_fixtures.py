# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Results folders and cases for the tests of nnU-Net models, made once a session and only if a test asks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_nnunet import REGIONS, TinyCase, TinyPlan, make_phantom_case, write_results_folder


@pytest.fixture(scope="session")
def tiny_training_cases(tmp_path_factory: pytest.TempPathFactory) -> list[TinyCase]:
    """Two phantoms of two channels; models of one channel train on the first."""
    folder = tmp_path_factory.mktemp("training")
    return [make_phantom_case(folder, seed, name=f"train{seed}", n_channels=2) for seed in (11, 12)]


@pytest.fixture(scope="session")
def tiny_case(tmp_path_factory: pytest.TempPathFactory) -> TinyCase:
    """A phantom CT that no model was trained on: (z, y, x) = (28, 48, 56), axes LPS, no zero margin."""
    return make_phantom_case(tmp_path_factory.mktemp("case"), 1)


@pytest.fixture(scope="session")
def tiny_padded_case(tmp_path_factory: pytest.TempPathFactory) -> TinyCase:
    """The same with margins of 0 HU, different on each side, that nnU-Net crops; axes LAS."""
    margin = ((2, 1), (0, 3), (4, 1))
    return make_phantom_case(tmp_path_factory.mktemp("padded"), 1, codes="LAS", margin=margin)


@pytest.fixture(scope="session")
def tiny_tilted_case(tmp_path_factory: pytest.TempPathFactory) -> TinyCase:
    """The same on a grid that is turned by 12 degrees, axes near RPS."""
    return make_phantom_case(tmp_path_factory.mktemp("tilted"), 1, codes="RPS", tilt=12.0)


@pytest.fixture(scope="session")
def tiny_two_channel_case(tmp_path_factory: pytest.TempPathFactory) -> TinyCase:
    """A CT and something like an MR of one body."""
    return make_phantom_case(tmp_path_factory.mktemp("two"), 1, n_channels=2)


def _first_channels(cases: list[TinyCase], n: int = 1) -> list[TinyCase]:
    return [TinyCase(c.images[:n], c.labels) for c in cases]


@pytest.fixture(scope="session")
def make_results(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_results(plan, cases=(), folds=(0,), steps=0, seed=0)`` writes a results folder of its own."""

    def make(plan: TinyPlan, *args, **kwargs) -> Path:
        return write_results_folder(tmp_path_factory.mktemp("results"), plan, *args, **kwargs)

    return make


@pytest.fixture(scope="session")
def tiny_3d(make_results, tiny_training_cases) -> Path:
    """3d_fullres, fold 0, one CT channel, spacing of the case, patch (16, 32, 32); trained."""
    return make_results(TinyPlan("Dataset901_Tiny"), _first_channels(tiny_training_cases), steps=80, seed=4)


@pytest.fixture(scope="session")
def tiny_3d_folds(make_results, tiny_training_cases) -> Path:
    """The same with folds 0 and 1, trained for a few steps only."""
    plan = TinyPlan("Dataset902_TinyFolds")
    return make_results(plan, _first_channels(tiny_training_cases), folds=(0, 1), steps=8, seed=5)


@pytest.fixture(scope="session")
def tiny_regions(make_results, tiny_training_cases) -> Path:
    """Heads are the regions whole, core and inner; the classes are 1, 2, 3 in that order."""
    plan = TinyPlan("Dataset903_TinyRegions", labels=REGIONS, regions_class_order=(1, 2, 3))
    return make_results(plan, _first_channels(tiny_training_cases), steps=90, seed=4)


@pytest.fixture(scope="session")
def tiny_2d(make_results, tiny_training_cases) -> Path:
    """Configuration 2d: slices along z, patch (32, 32)."""
    plan = TinyPlan(
        "Dataset904_TinyPlanar", configuration="2d", spacing=(1.5, 1.25), patch_size=(32, 32), mirror_axes=(0, 1)
    )
    return make_results(plan, _first_channels(tiny_training_cases), steps=200, seed=4)


@pytest.fixture(scope="session")
def tiny_two_channels(make_results, tiny_training_cases) -> Path:
    """Two channels: CT with CTNormalization and T2 with ZScoreNormalization."""
    return make_results(TinyPlan("Dataset905_TinyPair", channels=("CT", "T2")), tiny_training_cases, steps=12)


@pytest.fixture(scope="session")
def tiny_lowres(make_results, tiny_training_cases) -> Path:
    """3d_lowres: axes (x, z, y) at 2 x 3.75 x 2.25 mm, so the case is transposed and resampled."""
    plan = TinyPlan(
        "Dataset906_TinyLow",
        configuration="3d_lowres",
        spacing=(2.0, 3.75, 2.25),
        patch_size=(16, 12, 16),
        transpose_forward=(2, 0, 1),
    )
    return make_results(plan, _first_channels(tiny_training_cases), steps=130, seed=2)


@pytest.fixture(scope="session")
def usable_torchvision() -> Iterator[bool]:
    """Lets nnU-Net search all its trainers where torchvision was built for another torch; True if that was needed.

    The search for any trainer but nnUNetTrainer imports torchvision. Built for CUDA beside a CPU torch it dies with
    "operator torchvision::nms does not exist"; declaring its operators is enough to import it.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        yield False
        return
    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # the declarations last as long as this object
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

    yield True
