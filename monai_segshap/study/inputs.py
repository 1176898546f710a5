# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The cases of a study: synthetic torsos, files named in a configuration, or a data list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_segshap.phantoms import torso_phantom
from monai_segshap.running import list_cases, read_datalist

__all__ = ["phantom_cases", "study_cases"]

Case = dict[str, Any]


def study_cases(
    output_dir: str | Path,
    datalist: str | Path | Sequence[Mapping[str, Any]] | None = None,
    image: str | Path | Sequence[str | Path] | None = None,
    organs: str | Path | Sequence[str | Path] | None = None,
    phantom_seeds: Sequence[int] = (),
    phantom_shape: Sequence[int] | None = None,
) -> list[Case]:
    """Cases for a study: of the data list, or else the images given, or else synthetic torsos.

    Args:
        output_dir: torsos are written to ``output_dir/CASE/inputs``.
        datalist: see `monai_segshap.running.read_datalist`.
        image: image file, or a list.
        organs: label maps or folders of masks, one for each image.
        phantom_seeds: of the torsos.
        phantom_shape: of the torsos, (H, W, D); None: the default of `torso_phantom`.

    Returns:
        a dictionary with "image", "case" and, where there are organs, "organs" for each case.

    Raises:
        ValueError: for both a data list and images, or no case.
    """
    if datalist is not None and image is not None:
        raise ValueError("got a datalist and images; give one of them.")
    if datalist is not None:
        return read_datalist(datalist)
    if image is not None:
        return list_cases(image, organs)
    return phantom_cases(output_dir, phantom_seeds, phantom_shape)


def phantom_cases(output_dir: str | Path, seeds: Sequence[int], shape: Sequence[int] | None = None) -> list[Case]:
    """Synthetic torsos as files; those that are there already stay.

    Args:
        output_dir: they go to ``output_dir/phantom_SEED/inputs``.
        seeds: one for each case.
        shape: (H, W, D); None: the default of `torso_phantom`.

    Raises:
        ValueError: for no seed, or a seed that occurs twice.
    """
    if not len(seeds):
        raise ValueError("there is no case: give a datalist, images, or seeds of phantoms.")
    cases, options = [], {} if shape is None else {"shape": tuple(int(n) for n in shape)}
    for seed in seeds:
        folder = Path(output_dir) / f"phantom_{seed}" / "inputs"
        files = {"image": folder / "ct.nii.gz", "organs": folder / "organs.nii.gz"}
        if not (folder / "organ_names.json").is_file():  # written last
            torso_phantom(seed=int(seed), **options).write(folder)  # type: ignore[arg-type]
        cases.append({key: str(path) for key, path in files.items()} | {"case": f"phantom_{seed}"})
    if len({case["case"] for case in cases}) < len(cases):
        raise ValueError(f"seeds {list(seeds)} hold one of them twice; expected different ones.")
    return cases
