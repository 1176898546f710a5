# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Synthetic CT torsos with named organs, lymph-node-like nodules and look-alikes whose truth is known."""

from __future__ import annotations

from monai_segshap.phantoms.canvas import ORGAN_NAMES
from monai_segshap.phantoms.nodules import Mimic, Nodule
from monai_segshap.phantoms.torso import CLASS_NAMES, TorsoPhantom, torso_phantom

__all__ = ["CLASS_NAMES", "ORGAN_NAMES", "Mimic", "Nodule", "TorsoPhantom", "torso_phantom"]
