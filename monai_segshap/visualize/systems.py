# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Colors of body systems, so that a name's color says what kind of structure it is in every picture of a cohort."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["SYSTEM_COLORS", "color_of", "system_of", "systems_of"]

#: System -> color, in the order of legends and of nodes around a graph.
SYSTEM_COLORS: Mapping[str, str] = {
    "cardiovascular": "#c0392b",
    "muscles": "#d9a400",
    "skeleton": "#2f6fb3",
    "other organs": "#7d7d7d",
    "pathology": "#1a1a1a",
    "background": "#bdbdbd",
}

_BEGINNINGS = {
    "cardiovascular": "aort arter vein veins vena venous heart atri myocard vessel cava carotid portal",
    "muscles": "autochthon muscle gluteus iliopsoas psoas",
    "skeleton": "rib ribs vertebra stern cartilage scapula clavic femur humer hip hips sacrum skull bone spine",
    "pathology": "tumor tumour lesion effusion consolidation nodule cancer metasta patholog fluid opacit cyst "
    "hemorrhage edema",
}
_WHOLE_WORDS = {"vein", "veins", "rib", "ribs", "hip", "hips", "vena"}


def system_of(name: str) -> str:
    """Guess the body system of a structure from the words of its English name; "other organs" if none fits.

    Example:
        >>> system_of("pulmonary_vein"), system_of("rib_left_4"), system_of("liver")
        ('cardiovascular', 'skeleton', 'other organs')
    """
    words = re.findall(r"[a-z]+", name.lower())
    if "background" in words:
        return "background"
    for system in ("pathology", "cardiovascular", "muscles", "skeleton"):
        for beginning in _BEGINNINGS[system].split():
            if any(w == beginning if beginning in _WHOLE_WORDS else w.startswith(beginning) for w in words):
                return system
    return "other organs"


def systems_of(names: Iterable[str], systems: Mapping[str, str] | None = None) -> dict[str, str]:
    """System of each name: as given, otherwise guessed.

    Raises:
        ValueError: for a system that has no color.
    """
    given = dict(systems or {})
    unknown = sorted(set(given.values()) - set(SYSTEM_COLORS))
    if unknown:
        raise ValueError(f"got the systems {unknown}; expected some of {list(SYSTEM_COLORS)}.")
    return {name: given.get(name, system_of(name)) for name in names}


def color_of(system: str) -> str:
    """Color of a system."""
    return SYSTEM_COLORS[system]
