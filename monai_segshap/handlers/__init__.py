# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Ignite handlers: explanations while an evaluation runs."""

from __future__ import annotations

from monai_segshap.handlers.bundle import class_names_of, preprocessing_of
from monai_segshap.handlers.cohort import CohortHandler
from monai_segshap.handlers.contrasts import ContrastTableHandler
from monai_segshap.handlers.events import ExplainedCase, ExplanationEvents, UnexplainedCase
from monai_segshap.handlers.explained_metric import ExplanationMetricHandler
from monai_segshap.handlers.explanation import ExplanationHandler
from monai_segshap.handlers.saver import ExplanationSaver, explanation_rows
from monai_segshap.handlers.selectors import DiceBelow, HasFalsePositive

__all__ = [
    "CohortHandler",
    "ContrastTableHandler",
    "DiceBelow",
    "ExplainedCase",
    "ExplanationEvents",
    "ExplanationHandler",
    "ExplanationMetricHandler",
    "ExplanationSaver",
    "HasFalsePositive",
    "UnexplainedCase",
    "class_names_of",
    "explanation_rows",
    "preprocessing_of",
]
