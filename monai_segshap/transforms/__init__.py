# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Dictionary and array transforms, from `LoadImaged` to `SaveImaged`."""

from __future__ import annotations

from monai_segshap.transforms.checks import CheckImaged, MatchGridd
from monai_segshap.transforms.curves import PerturbationCurvesd
from monai_segshap.transforms.explain import KernelSHAPd, PredictLogitsd, SaveExplanationd, SelectRegiond
from monai_segshap.transforms.organs import LoadOrgans, LoadOrgansd, carried_organ_names
from monai_segshap.transforms.units import (
    UNIT_KINDS,
    CubeUnits,
    CubeUnitsd,
    FCCUnits,
    FCCUnitsd,
    HybridUnits,
    HybridUnitsd,
    OrganUnits,
    OrganUnitsd,
    PredictedClassUnits,
    PredictedClassUnitsd,
    UnitsOfKindd,
)

__all__ = [
    "UNIT_KINDS",
    "CheckImaged",
    "CubeUnits",
    "CubeUnitsd",
    "FCCUnits",
    "FCCUnitsd",
    "HybridUnits",
    "HybridUnitsd",
    "KernelSHAPd",
    "LoadOrgans",
    "LoadOrgansd",
    "MatchGridd",
    "OrganUnits",
    "OrganUnitsd",
    "PerturbationCurvesd",
    "PredictLogitsd",
    "PredictedClassUnits",
    "PredictedClassUnitsd",
    "SaveExplanationd",
    "SelectRegiond",
    "UnitsOfKindd",
    "carried_organ_names",
]
