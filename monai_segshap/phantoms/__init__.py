# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Synthetic images whose truth is known: CT torsos with organs and nodules, multi-contrast brains with a tumor."""

from __future__ import annotations

from monai_segshap.phantoms.brain import BRATS_SCHEMES, BrainPhantom, brain_phantom
from monai_segshap.phantoms.brain_anatomy import (
    CONTRASTS,
    SUB_REGIONS,
    TISSUES,
    VISIBILITY,
    BrainMimic,
    BrainTumor,
    planted_order,
)
from monai_segshap.phantoms.canvas import ORGAN_NAMES
from monai_segshap.phantoms.nodules import Mimic, Nodule
from monai_segshap.phantoms.torso import CLASS_NAMES, TorsoPhantom, torso_phantom
from monai_segshap.phantoms.twins import TWINS_CLASS_NAMES, TwinsPhantom, twins_phantom

__all__ = [
    "BRATS_SCHEMES",
    "CLASS_NAMES",
    "CONTRASTS",
    "ORGAN_NAMES",
    "SUB_REGIONS",
    "TISSUES",
    "TWINS_CLASS_NAMES",
    "VISIBILITY",
    "BrainMimic",
    "BrainPhantom",
    "BrainTumor",
    "Mimic",
    "Nodule",
    "TorsoPhantom",
    "TwinsPhantom",
    "brain_phantom",
    "planted_order",
    "torso_phantom",
    "twins_phantom",
]
