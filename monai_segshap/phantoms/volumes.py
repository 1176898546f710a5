# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Volumes and names of a synthetic case as files, each under a temporary name first and then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

__all__ = ["write_names", "write_volume"]


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write a NIfTI file (H, W, D) with its affine as qform and sform, in mm."""
    nifti = nib.Nifti1Image(array, affine)
    nifti.set_qform(affine, code="scanner")
    nifti.header.set_xyzt_units("mm")
    temporary = path.with_name(f".{os.getpid()}_{path.name}")
    nib.save(nifti, temporary)
    return temporary.replace(path)


def write_names(path: Path, names: Mapping[int, str]) -> Path:
    """Write label numbers and their names as JSON."""
    temporary = path.with_name(f".{os.getpid()}_{path.name}")
    temporary.write_text(json.dumps({str(n): name for n, name in names.items()}, indent=1) + "\n", encoding="utf-8")
    return temporary.replace(path)
