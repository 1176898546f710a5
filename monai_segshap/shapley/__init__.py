# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Game theory on NumPy arrays: coalition plans, estimators, diagnostics. Knows neither torch nor MONAI."""

from __future__ import annotations

from monai_segshap.shapley.coalitions import (
    METHODS,
    CoalitionPlan,
    default_budget,
    least_rows,
    plan_coalitions,
    plan_prefix,
    restrict_plan,
    stop_rows,
)
from monai_segshap.shapley.estimate import Game, ShapleyEstimate, estimate_shapley, solve
from monai_segshap.shapley.exact import MAX_EXACT_UNITS, all_coalitions, exact_shapley
from monai_segshap.shapley.locality import BlockTable, Locality
from monai_segshap.shapley.store import ValueStore, digest

__all__ = [
    "MAX_EXACT_UNITS",
    "METHODS",
    "BlockTable",
    "CoalitionPlan",
    "Game",
    "Locality",
    "ShapleyEstimate",
    "ValueStore",
    "all_coalitions",
    "default_budget",
    "digest",
    "estimate_shapley",
    "exact_shapley",
    "least_rows",
    "plan_coalitions",
    "plan_prefix",
    "restrict_plan",
    "solve",
    "stop_rows",
]
