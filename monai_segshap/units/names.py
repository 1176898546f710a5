# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Names of label numbers: JSON files, dictionaries, and the TotalSegmentator classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["load_label_names"]


def load_label_names(source: str | Path | Mapping[Any, Any] | None) -> dict[int, str]:
    """Read label names.

    Args:
        source: "totalsegmentator" for the 117 classes of its task "total" (version 2), a JSON file or a dictionary of
            either ``{"1": "spleen"}`` or ``{"spleen": 1}`` (nnU-Net's dataset.json with its "labels" is understood),
            or None for no names.

    Returns:
        label number -> name, without 0.

    Raises:
        ValueError: if the file can not be read or holds something else.
    """
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return _parse(source, "the dictionary of names")
    if str(source).lower() == "totalsegmentator":
        text = resources.files("monai_segshap.units").joinpath("totalsegmentator.json").read_text(encoding="utf-8")
        return _parse(json.loads(text), "totalsegmentator.json")
    path = Path(source)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read organ names from {path}: {error}. Expected 'totalsegmentator' or a JSON file such as "
            '{"1": "spleen", "2": "liver"}.'
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dictionary of numbers and names.")
    return _parse(content, str(path))


def _parse(content: Mapping[Any, Any], where: str) -> dict[int, str]:
    if isinstance(content.get("labels"), Mapping):
        content = content["labels"]
    names: dict[int, str] = {}
    for key, value in content.items():
        number, name = (key, value) if str(key).strip().lstrip("-").isdigit() else (value, key)
        if isinstance(number, bool) or not str(number).strip().lstrip("-").isdigit():
            raise ValueError(f"{where}: {key!r}: {value!r} pairs no number with a name.")
        number = int(number)
        if number in names:
            raise ValueError(f"{where}: number {number} has two names, {names[number]!r} and {name!r}.")
        names[number] = str(name)
    names.pop(0, None)
    return names
