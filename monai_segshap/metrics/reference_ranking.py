# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Reference rankings of contrasts for each sub-region, from a small file that says where they come from."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_segshap.units import canonical_contrast

__all__ = ["ReferenceRanking"]

Order = tuple[tuple[str, ...], ...]

_FORM = "expected keys 'source' (text) and 'regions' (sub-region: [most important, ..., [tied, tied], ..., least])"


@dataclass(frozen=True)
class ReferenceRanking:
    """Contrasts by importance for each sub-region, and who says so. No ranking is built in as truth.

    The file::

        source: who ranked the contrasts, and how
        regions:
          ET: [t1c, t2f, [t1n, t2w]]
          ED: [t2f, t2w, t1c, t1n]

    A nested list holds contrasts of equal importance. Names may follow any BraTS year ("t1ce" is "t1c").

    Attributes:
        orders: for each sub-region its contrasts, most important first; each place is a tuple of tied contrasts.
        source: where the order comes from, not empty.
    """

    orders: Mapping[str, Order]
    source: str

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source.strip():
            raise ValueError(f"source is {self.source!r}; expected a text that says where the ranking comes from.")
        if not isinstance(self.orders, Mapping) or not self.orders:
            raise ValueError(f"regions are {self.orders!r}; expected sub-region: [contrasts, most important first].")
        orders = {str(region): _order(str(region), listed) for region, listed in self.orders.items()}
        object.__setattr__(self, "orders", MappingProxyType(orders))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ReferenceRanking:
        """Read a YAML file. Needs PyYAML, which is in the extra ``bundle``.

        Raises:
            ImportError: without PyYAML.
            ValueError: if the file is no YAML, has other keys, or a ranking with repeated or nameless contrasts.
        """
        try:
            yaml = importlib.import_module("yaml")
        except ImportError as error:
            raise ImportError(
                "a reference ranking is a YAML file and PyYAML is not installed; pip install 'monai_segshap[bundle]', "
                "or make ReferenceRanking(orders, source) in Python."
            ) from error
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML file: {error}") from error
        if not isinstance(content, Mapping) or set(content) != {"source", "regions"}:
            got = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
            raise ValueError(f"{path} holds {got}; {_FORM}.")
        try:
            return cls(content["regions"], content["source"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def ranks(self, region: str, contrasts: Sequence[str]) -> NDArray[np.float64]:
        """Ranks for `rank_agreement`: float64 (N,), 1 = most important, tied contrasts share the mean of their ranks.

        Args:
            region: a sub-region of the file.
            contrasts: N names, in the order of the values that are to be compared.

        Raises:
            ValueError: for an unknown region, or contrasts that are not those of the file.
        """
        if region not in self.orders:
            raise ValueError(f"no reference for sub-region {region!r}; the file ranks {', '.join(self.orders)}.")
        place: dict[str, float] = {}
        for tied in self.orders[region]:
            place |= dict.fromkeys(map(canonical_contrast, tied), len(place) + (len(tied) + 1) / 2)
        names = [canonical_contrast(name) for name in contrasts]
        unknown = [name for name, plain in zip(contrasts, names, strict=True) if plain not in place]
        missing = [name for name in place if name not in names]
        if unknown or missing or len(set(names)) < len(names):
            raise ValueError(
                f"the reference for {region!r} ranks {', '.join(place)}, the values are of {', '.join(contrasts)}: "
                f"not in the file {unknown}, without a value {missing}. Give each contrast once, in the order of the "
                "values, or correct the file."
            )
        return np.array([place[name] for name in names])

    def require_contrasts(self, contrasts: Sequence[str]) -> None:
        """Raise unless every sub-region ranks these contrasts, so that a long run does not end with it.

        Raises:
            ValueError: see `ranks`.
        """
        for region in self.orders:
            self.ranks(region, contrasts)


def _order(region: str, listed: Any) -> Order:
    """Places of a ranking, checked.

    Raises:
        ValueError: if it is no list, or contrasts repeat or have no name.
    """
    if isinstance(listed, str) or not isinstance(listed, Sequence) or not listed:
        raise ValueError(f"the ranking of {region!r} is {listed!r}; {_FORM}.")
    found: list[tuple[str, ...]] = []
    for place in listed:
        tied = (place,) if isinstance(place, str) else place
        if not isinstance(tied, Sequence) or not tied or not all(isinstance(n, str) and n.strip() for n in tied):
            raise ValueError(f"the ranking of {region!r} has a place {place!r}; {_FORM}.")
        found.append(tuple(tied))
    names = [canonical_contrast(name) for tied in found for name in tied]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"the ranking of {region!r} names {', '.join(repeated)} more than once; expected each once.")
    return tuple(found)
