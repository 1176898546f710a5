# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Explanations of trained nnU-Net v2 models; needs ``pip install "monai_segshap[nnunet]"`` when used."""

from __future__ import annotations

from monai_segshap.nnunet.export import NNUNetExportd, export_labels
from monai_segshap.nnunet.inferer import ACCUMULATORS, NNUNetInferer
from monai_segshap.nnunet.model import NNUNetModel, load_nnunet
from monai_segshap.nnunet.network import FoldsNetwork
from monai_segshap.nnunet.preprocessing import (
    NNUNetPreprocessd,
    baseline_of,
    nnunet_properties,
    preprocess_array,
    preprocess_files,
    preprocess_image,
)
from monai_segshap.nnunet.raw_space import NNUNetRawPerturbationd, raw_equals_network_space, raw_perturbation
from monai_segshap.nnunet.reading import RawCase, channel_files, raw_case_from_files, raw_case_from_image

__all__ = [
    "ACCUMULATORS",
    "FoldsNetwork",
    "NNUNetExportd",
    "NNUNetInferer",
    "NNUNetModel",
    "NNUNetPreprocessd",
    "NNUNetRawPerturbationd",
    "RawCase",
    "baseline_of",
    "channel_files",
    "export_labels",
    "load_nnunet",
    "nnunet_properties",
    "preprocess_array",
    "preprocess_files",
    "preprocess_image",
    "raw_case_from_files",
    "raw_case_from_image",
    "raw_equals_network_space",
    "raw_perturbation",
]
