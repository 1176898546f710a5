# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Is an explanation true? Perturbation curves with exact bounds, and convergence, on any game."""

from __future__ import annotations

from monai_segshap.metrics.bounds import BOUNDS, AopcBounds, beam_aopc_bounds, exact_aopc_bounds
from monai_segshap.metrics.case_curves import case_curves
from monai_segshap.metrics.convergence import ConvergenceReport, convergence_report
from monai_segshap.metrics.curves import PerturbationCurves, RandomControl, curve_coalitions, perturbation_curves
from monai_segshap.metrics.memory import ScoreMemory

__all__ = [
    "BOUNDS",
    "AopcBounds",
    "ConvergenceReport",
    "PerturbationCurves",
    "RandomControl",
    "ScoreMemory",
    "beam_aopc_bounds",
    "case_curves",
    "convergence_report",
    "curve_coalitions",
    "exact_aopc_bounds",
    "perturbation_curves",
]
