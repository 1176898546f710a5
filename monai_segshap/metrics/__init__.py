# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Is an explanation true? Perturbation curves with exact bounds, and convergence, on any game."""

from __future__ import annotations

from monai_segshap.metrics.association import (
    GroupComparison,
    RankedCorrelation,
    compare_groups,
    correlation_with_interval,
)
from monai_segshap.metrics.attribution_metrics import ComplexityMetric, FaithfulnessMetric, SensitivityMetric
from monai_segshap.metrics.bounds import BOUNDS, AopcBounds, beam_aopc_bounds, exact_aopc_bounds
from monai_segshap.metrics.case_convergence import case_convergence
from monai_segshap.metrics.case_curves import case_curves
from monai_segshap.metrics.case_table import CaseRow, CaseTableMetric
from monai_segshap.metrics.contrast_associations import POOLED, contrast_associations
from monai_segshap.metrics.contrast_cohort import ContrastCohort, read_contrast_table
from monai_segshap.metrics.contrast_metrics import RankAgreementMetric, RankVarianceMetric
from monai_segshap.metrics.contrast_statistics import (
    contrast_agreement,
    contrast_fold_ranks,
    contrast_stability,
    contrast_value_summary,
    fold_rank_variance,
)
from monai_segshap.metrics.convergence import ConvergenceReport, convergence_report
from monai_segshap.metrics.curves import PerturbationCurves, RandomControl, curve_coalitions, perturbation_curves
from monai_segshap.metrics.explanation_metrics import (
    CONVERGENCE_FIELDS,
    CURVE_FIELDS,
    ConvergenceMetric,
    PerturbationCurveMetric,
)
from monai_segshap.metrics.faithfulness import CORRELATIONS, FaithfulnessResult, faithfulness_correlation
from monai_segshap.metrics.memory import ScoreMemory
from monai_segshap.metrics.ranks import (
    RankAgreement,
    RankVariance,
    rank_agreement,
    rank_agreement_report,
    rank_variance,
    rank_variance_report,
    ranks_of,
)
from monai_segshap.metrics.reference_ranking import ReferenceRanking
from monai_segshap.metrics.voxel import (
    NOISES,
    SensitivityResult,
    attribution_sensitivity,
    effective_complexity,
    voxel_metrics,
)

__all__ = [
    "BOUNDS",
    "CONVERGENCE_FIELDS",
    "CORRELATIONS",
    "CURVE_FIELDS",
    "NOISES",
    "POOLED",
    "AopcBounds",
    "CaseRow",
    "CaseTableMetric",
    "ComplexityMetric",
    "ContrastCohort",
    "ConvergenceMetric",
    "ConvergenceReport",
    "FaithfulnessMetric",
    "FaithfulnessResult",
    "GroupComparison",
    "PerturbationCurveMetric",
    "PerturbationCurves",
    "RandomControl",
    "RankAgreement",
    "RankAgreementMetric",
    "RankVariance",
    "RankVarianceMetric",
    "RankedCorrelation",
    "ReferenceRanking",
    "ScoreMemory",
    "SensitivityMetric",
    "SensitivityResult",
    "attribution_sensitivity",
    "beam_aopc_bounds",
    "case_convergence",
    "case_curves",
    "compare_groups",
    "contrast_agreement",
    "contrast_associations",
    "contrast_fold_ranks",
    "contrast_stability",
    "contrast_value_summary",
    "convergence_report",
    "correlation_with_interval",
    "curve_coalitions",
    "effective_complexity",
    "exact_aopc_bounds",
    "faithfulness_correlation",
    "fold_rank_variance",
    "perturbation_curves",
    "rank_agreement",
    "rank_agreement_report",
    "rank_variance",
    "rank_variance_report",
    "ranks_of",
    "read_contrast_table",
    "voxel_metrics",
]
