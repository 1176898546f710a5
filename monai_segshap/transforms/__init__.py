# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Dictionary and array transforms, from `LoadImaged` to `SaveImaged`."""

from __future__ import annotations

from monai_segshap.transforms.agg2exp import LocalImportanced, VoxelAttributionsd
from monai_segshap.transforms.cases import CaseOrgansd, file_of_case, name_of_case
from monai_segshap.transforms.checks import CheckImaged, MatchGridd
from monai_segshap.transforms.contrasts import CheckContrastFilesd, ContrastShapleyd, SaveContrastsd
from monai_segshap.transforms.curves import PerturbationCurvesd
from monai_segshap.transforms.explain import KernelSHAPd, PredictLogitsd, SaveExplanationd, SelectRegiond
from monai_segshap.transforms.intensity import PointwiseIntensity, intensity_of
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
    "CaseOrgansd",
    "CheckContrastFilesd",
    "CheckImaged",
    "ContrastShapleyd",
    "CubeUnits",
    "CubeUnitsd",
    "FCCUnits",
    "FCCUnitsd",
    "HybridUnits",
    "HybridUnitsd",
    "KernelSHAPd",
    "LoadOrgans",
    "LoadOrgansd",
    "LocalImportanced",
    "MatchGridd",
    "OrganUnits",
    "OrganUnitsd",
    "PerturbationCurvesd",
    "PointwiseIntensity",
    "PredictLogitsd",
    "PredictedClassUnits",
    "PredictedClassUnitsd",
    "SaveContrastsd",
    "SaveExplanationd",
    "SelectRegiond",
    "UnitsOfKindd",
    "VoxelAttributionsd",
    "carried_organ_names",
    "file_of_case",
    "intensity_of",
    "name_of_case",
]
