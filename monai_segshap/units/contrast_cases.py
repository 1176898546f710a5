# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Multi-contrast cases from a data list or a folder as BraTS has it: files in the order of the network's channels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_segshap.running import datalist_entries, file_stem, require_distinct_cases
from monai_segshap.units.contrasts import Contrasts, canonical_contrast, contrast_of_file, order_contrast_files

__all__ = ["read_contrast_cases"]

_IMAGES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
_LABEL_WORDS = ("seg", "label", "mask")


def read_contrast_cases(source: str | Path | Sequence[Mapping[str, Any]], contrasts: Any) -> list[dict[str, Any]]:
    """Cases for a MONAI `Dataset`.

    Args:
        source: one of

            * a folder with a folder for each case (or one case's files), in which the contrast stands in each file's
              name, and "seg", "label" or "mask" in that of the ground truth, if there is one;
            * a data list, JSON or CSV, see `monai_segshap.running.read_datalist`, or such a list itself. The images of
              an entry are "image": a list of files in the order of the channels, a mapping from contrast to file, a
              folder of files, or one file with all channels; or else an entry for each contrast by its name, such as
              the columns "t1n", "t1c", "t2w", "t2f" of a CSV. Paths are relative to the file's folder.
        contrasts: see `Contrasts.parse`; names may follow any BraTS year.

    Returns:
        for each case "image" (list of files in the order of the channels, or one file), "label" where given, "case" (a
        name) and everything else of its entry.

    Raises:
        ValueError: for no cases, a contrast that is missing or there twice, several files that may be the ground
            truth, or two cases of one name.
        OSError: if the list can not be read.
    """
    units = Contrasts.parse(contrasts)
    if isinstance(source, (str, Path)) and Path(source).expanduser().is_dir():
        cases = _cases_of_folder(Path(source).expanduser(), units)
    else:
        entries, folder, named = datalist_entries(source)
        cases = [_case(entry, folder, units, f"entry {n} of the data list {named}") for n, entry in enumerate(entries)]
    require_distinct_cases([case["case"] for case in cases])
    return cases


def _cases_of_folder(folder: Path, contrasts: Contrasts) -> list[dict[str, Any]]:
    homes = [folder] if _images_in(folder) else sorted(path for path in folder.iterdir() if path.is_dir())
    cases = [{**_files_of(home, contrasts), "case": home.name} for home in homes if _images_in(home)]
    if not cases:
        raise ValueError(
            f"the folder {folder} has no images ({', '.join(_IMAGES)}), nor has a folder in it; expected a folder for "
            "each case with one file for each contrast."
        )
    return cases


def _files_of(folder: Path, contrasts: Contrasts) -> dict[str, Any]:
    """The images of a case's folder in order, and its ground truth."""
    known = {canonical_contrast(name) for name in contrasts.channel_names}
    files = _images_in(folder)
    labels = [file for file in files if _is_label(file)]
    images = [f for f in files if f not in labels and contrast_of_file(f, contrasts.channel_names) in known]
    if len(labels) > 1:
        raise ValueError(f"{folder} holds several files that may be the ground truth: {[f.name for f in labels]}.")
    try:
        found: dict[str, Any] = {"image": order_contrast_files(contrasts, images)}
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return found | ({"label": str(labels[0])} if labels else {})


def _case(entry: Mapping[str, Any], folder: Path, contrasts: Contrasts, place: str) -> dict[str, Any]:
    """One entry of a data list, with whole paths."""
    case = {key: value for key, value in entry.items() if not _is_column(key, entry, contrasts)}
    image = entry.get("image") or {key: value for key, value in entry.items() if key not in case and value}
    if not image:
        raise ValueError(f"{place} has no images; expected 'image', or {', '.join(contrasts.channel_names)}.")
    if isinstance(image, Mapping):
        case["image"] = [str(folder / Path(str(file)).expanduser()) for file in _in_order(image, contrasts, place)]
    elif isinstance(image, (str, Path)):
        path = folder / Path(image).expanduser()
        case = {**case, "image": str(path), **(_files_of(path, contrasts) if path.is_dir() else {})}
    else:
        case["image"] = [str(folder / Path(str(file)).expanduser()) for file in image]
    if entry.get("label"):
        case["label"] = str(folder / Path(str(entry["label"])).expanduser())
    elif "label" in case and not case["label"]:
        del case["label"]
    case["case"] = str(entry.get("case") or _name_of(case["image"]))
    return case


def _is_column(key: Any, entry: Mapping[str, Any], contrasts: Contrasts) -> bool:
    """Whether an entry without "image" has a file of a contrast under this key."""
    names = {canonical_contrast(name) for name in contrasts.channel_names if name}
    return not entry.get("image") and canonical_contrast(str(key)) in names


def _in_order(files: Mapping[Any, Any], contrasts: Contrasts, place: str) -> list[Any]:
    given: dict[str, list[Any]] = {}
    for name, file in files.items():
        given.setdefault(canonical_contrast(str(name)), []).append(file)
    wanted = [canonical_contrast(name) for name in contrasts.channel_names]
    if not all(wanted) or sorted(given) != sorted(wanted) or any(len(group) != 1 for group in given.values()):
        raise ValueError(
            f"{place} has images of {', '.join(map(str, files))}; expected one of each: "
            f"{', '.join(contrasts.channel_names)}."
        )
    return [given[name][0] for name in wanted]


def _name_of(image: str | list[str]) -> str:
    """What the files of a case have in common, or else their folder's name."""
    if isinstance(image, str):
        return file_stem(image)
    words = [re.findall(r"[^-_. ]+[-_. ]*", file_stem(file)) for file in image]
    shared = []
    for column in zip(*words, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "".join(shared).strip("-_. ") or Path(image[0]).parent.name or "case"


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(_IMAGES))


def _is_label(file: Path) -> bool:
    words = re.split(r"[^0-9a-z]+", file_stem(file).lower())
    return any(word in _LABEL_WORDS for word in words)
