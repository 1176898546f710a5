# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Cohorts of synthetic abdomens as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_segshap.phantoms import twins_phantom


def phantom_cohort(
    output_dir: str | Path, seeds: Sequence[int], abnormal_seeds: Sequence[int] = ()
) -> list[dict[str, str]]:
    """Write cases that are not there yet.

    Args:
        output_dir: they go to ``output_dir/CASE``.
        seeds: of normal cases.
        abnormal_seeds: of cases with a planted abnormality.

    Returns:
        for each case "image", "label", "pathology" (files), "case" and "group" ("normal" or "abnormal").
    """
    cases = []
    for group, numbers in (("normal", seeds), ("abnormal", abnormal_seeds)):
        for seed in numbers:
            name = f"{group}_{seed}"
            folder = Path(output_dir) / name
            if not (folder / "organ_names.json").is_file():  # written last
                twins_phantom(seed=int(seed), abnormal=group == "abnormal").write(folder)
            files = {"image": "ct.nii.gz", "label": "organs.nii.gz", "pathology": "pathology.nii.gz"}
            cases.append({key: str(folder / file) for key, file in files.items()} | {"case": name, "group": group})
    return cases
