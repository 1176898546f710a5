# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Cases by name: what a case is called, which file it came from, and where its organs are."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_segshap.running import case_name
from monai_segshap.transforms.checks import MatchGridd
from monai_segshap.transforms.organs import LoadOrgans

__all__ = ["CaseOrgansd", "file_of_case", "name_of_case"]

#: What stands for the name of the case in a pattern.
_PLACE = "{case}"


def file_of_case(image: Any) -> str | None:
    """The file (the first one of several channels) that an image was loaded from; None if it does not say."""
    source = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
    if isinstance(source, (list, tuple)):
        source = source[0] if source else None
    return str(source) if source else None


def name_of_case(data: Mapping[Any, Any], image_key: Hashable = "image", case_key: Hashable = "case") -> str:
    """What a case is called.

    Args:
        data: the case.
        image_key: key of the image.
        case_key: key of a name.

    Returns:
        what stands under ``case_key``, or else the name of the image file, or else "case".
    """
    named, source = data.get(case_key), file_of_case(data.get(image_key))
    return str(named) if named else case_name(source) if source else "case"


class CaseOrgansd(MapTransform):
    """Read the organs of a case by its name, onto the grid that preprocessing has given its image.

    Args:
        keys: the one key of the organ label map that is added.
        path: a label map file or a folder of masks, as `LoadOrgans` reads them; "{case}" in it stands for the name of
            the case. None: nothing is done, and organs that the case has already stay.
        image_key: key of the image.
        case_key: key of the name of the case, see `name_of_case`.
        resample: whether organs on another grid than the image's file are taken, too; False: that is an error.
        allow_missing_keys: as in MONAI.

    Raises:
        ValueError: for several keys; for a case whose file or folder does not exist; see `LoadOrgans` and `MatchGridd`
            for the others.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(
        self,
        keys: KeysCollection = "organs",
        path: str | Path | None = None,
        image_key: str = "image",
        case_key: str = "case",
        resample: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"CaseOrgansd got keys {self.keys}; expected one.")
        self.path = None if path is None else str(path)
        self.image_key, self.case_key = image_key, case_key
        self.load = LoadOrgans()
        self.match = MatchGridd(self.keys, image_key, resample, of_file=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the organs to the dictionary."""
        d = dict(data)
        if self.path is None:
            return d
        name = name_of_case(d, self.image_key, self.case_key)
        path = Path(self.path.replace(_PLACE, name)).expanduser()
        if not path.exists():
            hint = "" if _PLACE in self.path else f' Write "{_PLACE}" where the name of the case belongs.'
            raise ValueError(f"the organs of case {name!r} are expected in {path}, which does not exist.{hint}")
        (key,) = self.keys
        d[key] = self.load(path)
        return self.match(d)
