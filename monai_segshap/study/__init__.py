# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The study of paper 000 on cases of your own: which units explain best, by perturbation curves, and at what cost."""

from __future__ import annotations

from monai_segshap.study.identity import changed_settings, describe
from monai_segshap.study.inputs import phantom_cases, study_cases
from monai_segshap.study.records import StudyRecord, curve_table, read_record
from monai_segshap.study.runner import ExplanationStudy
from monai_segshap.study.statistics import MeanInterval, mean_interval, paired_differences
from monai_segshap.study.summary import write_study
from monai_segshap.study.tables import MEASURES, all_curves, comparisons, costs, means, results

__all__ = [
    "MEASURES",
    "ExplanationStudy",
    "MeanInterval",
    "StudyRecord",
    "all_curves",
    "changed_settings",
    "comparisons",
    "costs",
    "curve_table",
    "describe",
    "mean_interval",
    "means",
    "paired_differences",
    "phantom_cases",
    "read_record",
    "results",
    "study_cases",
    "write_study",
]
