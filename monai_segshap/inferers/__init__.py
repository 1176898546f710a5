# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Sliding windows: plans, the fewest passes for a set of coalitions, and a caching inferer."""

from __future__ import annotations

from monai_segshap.inferers.caching import CacheInfo, CachingSlidingWindowInferer, UnitPerturbation
from monai_segshap.inferers.calibration import (
    BATCH_CHOICES,
    Calibration,
    calibrate,
    check_batch_size,
    largest_difference,
)
from monai_segshap.inferers.chunks import plan_chunks, total_forwards
from monai_segshap.inferers.evaluation import CoalitionEvaluator, EvaluationPlan, infer_volume
from monai_segshap.inferers.images import PerturbedImages
from monai_segshap.inferers.jobs import (
    ForwardCounts,
    Incidence,
    JobPlan,
    compute_incidence,
    count_forwards,
    plan_jobs,
)
from monai_segshap.inferers.window_plan import (
    DILATIONS,
    GRIDS,
    PlansWindows,
    WindowPlan,
    crop_box,
    monai_window_plan,
    window_plan_of,
)

__all__ = [
    "BATCH_CHOICES",
    "DILATIONS",
    "GRIDS",
    "CacheInfo",
    "CachingSlidingWindowInferer",
    "Calibration",
    "CoalitionEvaluator",
    "EvaluationPlan",
    "ForwardCounts",
    "Incidence",
    "JobPlan",
    "PerturbedImages",
    "PlansWindows",
    "UnitPerturbation",
    "WindowPlan",
    "calibrate",
    "check_batch_size",
    "compute_incidence",
    "count_forwards",
    "crop_box",
    "infer_volume",
    "largest_difference",
    "monai_window_plan",
    "plan_chunks",
    "plan_jobs",
    "total_forwards",
    "window_plan_of",
]
