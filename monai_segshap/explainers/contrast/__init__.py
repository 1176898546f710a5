# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Input contrasts as units: what each is worth for each sub-region of a segmentation (paper 003)."""

from __future__ import annotations

from monai_segshap.explainers.contrast.explainer import ContrastShapleyExplainer
from monai_segshap.explainers.contrast.explanation import (
    CONTRAST_COLUMNS,
    ContrastExplanation,
    contrast_table,
    contrast_values,
)
from monai_segshap.explainers.contrast.files import format_contrast_table, read_contrasts, write_contrasts
from monai_segshap.explainers.contrast.game import CONTRAST_SCORES, ContrastGame
from monai_segshap.explainers.contrast.removal import REMOVALS, removal_baseline
from monai_segshap.explainers.contrast.sub_regions import TUMOR_LABELS, SubRegion, tumor_sub_regions

__all__ = [
    "CONTRAST_COLUMNS",
    "CONTRAST_SCORES",
    "REMOVALS",
    "TUMOR_LABELS",
    "ContrastExplanation",
    "ContrastGame",
    "ContrastShapleyExplainer",
    "SubRegion",
    "contrast_table",
    "contrast_values",
    "format_contrast_table",
    "read_contrasts",
    "removal_baseline",
    "tumor_sub_regions",
    "write_contrasts",
]
