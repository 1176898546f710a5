# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Synthetic brains as files, named as BraTS names them since 2023."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_segshap.phantoms import brain_phantom
from monai_segshap.units import read_contrast_cases

FILES = 5


def phantom_cases(output_dir: str | Path, seeds: Sequence[int], contrasts: Any) -> list[dict[str, Any]]:
    """Write cases that are not there yet.

    Args:
        output_dir: they go to ``output_dir/brain_SEED``.
        seeds: of the cases.
        contrasts: see `monai_segshap.units.Contrasts.parse`.

    Returns:
        for each case "image" (files in the order of the contrasts), "label" and "case".
    """
    cases = []
    for seed in seeds:
        folder = Path(output_dir) / f"brain_{seed}"
        if len(list(folder.glob("*.nii.gz"))) < FILES:
            brain_phantom(seed=int(seed)).write(folder)
        cases += read_contrast_cases(folder, contrasts)
    return cases
