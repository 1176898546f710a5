# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of explanations (needs the ``plots`` extra; importing this package does not)."""

from __future__ import annotations

from .cohort_report import CohortFindings, analyze_cohort
from .contrast_pictures import (
    plot_contrast_ranks,
    plot_contrast_values,
    save_contrast_ranks,
    save_contrast_values,
)
from .contrast_report import ContrastFindings, analyze_contrasts
from .contrast_scatter import (
    plot_contrast_agreement,
    plot_contrast_stability,
    save_contrast_agreement,
    save_contrast_stability,
)
from .curves import plot_convergence, plot_curves, save_convergence, save_curves
from .differences import plot_differences, save_differences
from .distributions import (
    plot_boxplots,
    plot_context_use,
    plot_outlier_scores,
    save_boxplots,
    save_context_use,
    save_outlier_scores,
)
from .importance import plot_heatmap, save_heatmap
from .importance_graph import importance_graph, plot_graph, save_graph
from .overview import plot_overview, save_overview
from .systems import SYSTEM_COLORS, system_of
from .voxel_map import plot_voxel_map, save_voxel_map

__all__ = [
    "SYSTEM_COLORS",
    "CohortFindings",
    "ContrastFindings",
    "analyze_cohort",
    "analyze_contrasts",
    "importance_graph",
    "plot_boxplots",
    "plot_context_use",
    "plot_contrast_agreement",
    "plot_contrast_ranks",
    "plot_contrast_stability",
    "plot_contrast_values",
    "plot_convergence",
    "plot_curves",
    "plot_differences",
    "plot_graph",
    "plot_heatmap",
    "plot_outlier_scores",
    "plot_overview",
    "plot_voxel_map",
    "save_boxplots",
    "save_context_use",
    "save_contrast_agreement",
    "save_contrast_ranks",
    "save_contrast_stability",
    "save_contrast_values",
    "save_convergence",
    "save_curves",
    "save_differences",
    "save_graph",
    "save_heatmap",
    "save_outlier_scores",
    "save_overview",
    "save_voxel_map",
    "system_of",
]
