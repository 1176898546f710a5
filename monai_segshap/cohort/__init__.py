# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What a model relies on, in one case and over a cohort: attribution mass of each class in each region (Agg2Exp)."""

from __future__ import annotations

from monai_segshap.cohort.averages import GlobalImportance, context_use, global_importance
from monai_segshap.cohort.files import ImportanceStore, read_importances, write_importances
from monai_segshap.cohort.importance import join_maps, local_importance, measure_importance
from monai_segshap.cohort.matrix import PARTS, VARIANTS, ImportanceMatrix, column_name
from monai_segshap.cohort.monai_metric import MassAccuracyMetric
from monai_segshap.cohort.outliers import OutlierModel
from monai_segshap.cohort.regions import RegionMasks
from monai_segshap.cohort.statistics import (
    MEAN_ROW,
    adjust_p_values,
    group_differences,
    outlier_correlation,
    planted_auc,
)
from monai_segshap.cohort.table import ImportanceTable

__all__ = [
    "MEAN_ROW",
    "PARTS",
    "VARIANTS",
    "GlobalImportance",
    "ImportanceMatrix",
    "ImportanceStore",
    "ImportanceTable",
    "MassAccuracyMetric",
    "OutlierModel",
    "RegionMasks",
    "adjust_p_values",
    "column_name",
    "context_use",
    "global_importance",
    "group_differences",
    "join_maps",
    "local_importance",
    "measure_importance",
    "outlier_correlation",
    "planted_auc",
    "read_importances",
    "write_importances",
]
