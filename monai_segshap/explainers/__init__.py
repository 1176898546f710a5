# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Explainers: from a network, units and regions to explanations."""

from __future__ import annotations

from monai_segshap.explainers.case_game import CaseGame
from monai_segshap.explainers.explanation import EvaluatedCoalitions, Explanation, software_versions
from monai_segshap.explainers.kernel_shap import KernelSHAPExplainer
from monai_segshap.explainers.ranks import Ranks

__all__ = ["CaseGame", "EvaluatedCoalitions", "Explanation", "KernelSHAPExplainer", "Ranks", "software_versions"]
