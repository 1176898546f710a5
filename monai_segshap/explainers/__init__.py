# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Explainers: from a network, units and regions to explanations."""

from __future__ import annotations

from monai_segshap.explainers.agg2exp import ATTRIBUTION_METHODS, Agg2ExpExplainer
from monai_segshap.explainers.case_game import CaseGame
from monai_segshap.explainers.contrast import (
    CONTRAST_COLUMNS,
    CONTRAST_SCORES,
    REMOVALS,
    TUMOR_LABELS,
    ContrastExplanation,
    ContrastGame,
    ContrastShapleyExplainer,
    SubRegion,
    contrast_table,
    contrast_values,
    format_contrast_table,
    read_contrasts,
    removal_baseline,
    tumor_sub_regions,
    write_contrasts,
)
from monai_segshap.explainers.explanation import EvaluatedCoalitions, Explanation, software_versions
from monai_segshap.explainers.kernel_shap import KernelSHAPExplainer
from monai_segshap.explainers.ranks import Ranks

__all__ = [
    "ATTRIBUTION_METHODS",
    "CONTRAST_COLUMNS",
    "CONTRAST_SCORES",
    "REMOVALS",
    "TUMOR_LABELS",
    "Agg2ExpExplainer",
    "CaseGame",
    "ContrastExplanation",
    "ContrastGame",
    "ContrastShapleyExplainer",
    "EvaluatedCoalitions",
    "Explanation",
    "KernelSHAPExplainer",
    "Ranks",
    "SubRegion",
    "contrast_table",
    "contrast_values",
    "format_contrast_table",
    "read_contrasts",
    "removal_baseline",
    "software_versions",
    "tumor_sub_regions",
    "write_contrasts",
]
