# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Ignite handlers: explanations while an evaluation runs."""

from __future__ import annotations

from monai_segshap.handlers.explanation import ExplanationHandler
from monai_segshap.handlers.selectors import DiceBelow, HasFalsePositive

__all__ = ["DiceBelow", "ExplanationHandler", "HasFalsePositive"]
