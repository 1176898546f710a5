# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Importance matrices as a cumulative MONAI metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric

from monai_segshap.cohort.averages import GlobalImportance, global_importance
from monai_segshap.cohort.importance import local_importance
from monai_segshap.cohort.matrix import check_kind
from monai_segshap.cohort.regions import RegionMasks
from monai_segshap.cohort.table import ImportanceTable

__all__ = ["MassAccuracyMetric"]


class MassAccuracyMetric(CumulativeIterationMetric):
    """Accumulates the class-by-region matrix of `local_importance` over cases, on all processes.

    Called with ``y_pred``: signed attribution maps (B, T, H, W, D), or (B, T, C, H, W, D) of C input channels; and
    ``y``: label maps (B, 1, H, W, D) with numbers 0..R-1, or masks (B, R, H, W, D) of type bool or with values 0 and 1,
    which may overlap. Lists of such tensors without B work too. It returns float64 (B, T, R); the row of a class
    whose map is 0 or NaN everywhere is NaN, and means leave it out.

    Args:
        explained: T names of the explained classes, the channels of ``y_pred``.
        regions: R names, of the label numbers or the masks; None: the explained classes.
        variant: "mass", "mean" or "enrichment".
        part: "absolute", "positive" or "negative".

    Raises:
        ValueError: for other words, or (when called) other shapes.

    Example:
        >>> metric = MassAccuracyMetric(["background", "liver"])
        >>> maps = torch.tensor([1.0, 3.0, 0.0, 2.0]).reshape(1, 2, 1, 1, 2)
        >>> metric(maps, torch.tensor([0, 1]).reshape(1, 1, 1, 1, 2)).tolist()
        [[[0.25, 0.75], [0.0, 1.0]]]
    """

    def __init__(
        self,
        explained: Sequence[str],
        regions: Sequence[str] | None = None,
        variant: str = "mass",
        part: str = "absolute",
    ) -> None:
        super().__init__()
        check_kind(variant, part)
        self.explained = tuple(map(str, explained))
        self.regions = self.explained if regions is None else tuple(map(str, regions))
        self.variant, self.part = variant, part

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if y is None or y_pred.ndim not in (5, 6) or y_pred.shape[1] != len(self.explained) or len(y) != len(y_pred):
            shapes = tuple(y_pred.shape), None if y is None else tuple(y.shape)
            raise ValueError(
                f"got y_pred and y of shapes {shapes}; expected maps (B, {len(self.explained)}, [C,] H, W, D) and "
                f"label maps (B, 1, H, W, D) or masks (B, {len(self.regions)}, H, W, D)."
            )
        found = [
            local_importance(maps, self._regions_of(regions), variant=self.variant, part=self.part)
            for maps, regions in zip(y_pred, y, strict=True)
        ]
        return torch.from_numpy(np.stack(found))

    def _regions_of(self, regions: torch.Tensor) -> RegionMasks:
        n_regions = len(self.regions)
        if len(regions) == n_regions and (n_regions > 1 or regions.dtype == torch.bool):
            return RegionMasks.from_masks(dict(zip(self.regions, regions, strict=True)))
        if len(regions) == 1:
            return RegionMasks.from_labels(regions, list(self.regions))
        raise ValueError(
            f"got regions with {len(regions)} channels; expected a label map (1 channel) or {n_regions} masks, one for "
            f"each of {list(self.regions)}."
        )

    def aggregate(self) -> torch.Tensor:
        """float64 (T, R), mean over the cases of all processes that have a value; NaN where none has.

        Raises:
            ValueError: if the metric was not called yet.
        """
        return torch.nanmean(self._gathered(), dim=0)

    def table(self, cases: Sequence[str] | None = None) -> ImportanceTable:
        """All cases of all processes.

        Args:
            cases: their names, in the order of the ranks and calls; None: "row 1", "row 2", ...
        """
        values = self._gathered().cpu().numpy()
        names = [f"row {n + 1}" for n in range(len(values))] if cases is None else [str(case) for case in cases]
        return ImportanceTable(tuple(names), self.explained, self.regions, values, self.variant, self.part)

    def summary(self, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> GlobalImportance:
        """Mean, median, counts and bootstrap intervals, as `global_importance`."""
        return global_importance(self.table(), level=level, n_resamples=n_resamples, seed=seed)

    def _gathered(self) -> torch.Tensor:
        values = self.get_buffer()
        if not isinstance(values, torch.Tensor):
            raise ValueError("no case was counted yet; call the metric with maps and regions first.")
        return values.as_subclass(torch.Tensor)
