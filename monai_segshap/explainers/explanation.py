# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The result: Shapley values of named units for the scores of one region, and everything needed to trust them."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Any

import monai
import numpy as np
import pandas as pd
import scipy
import torch
from numpy.typing import NDArray

import monai_segshap
from monai_segshap.geometry import VoxelGrid, resample_nearest
from monai_segshap.inferers import ForwardCounts
from monai_segshap.region import Box, Region
from monai_segshap.units import Partition

__all__ = ["EvaluatedCoalitions", "Explanation", "UnitGroups", "software_versions"]


@dataclass(frozen=True)
class UnitGroups:
    """Sums of values over units that belong together, such as the cells of an organ.

    Attributes:
        names: of the G groups.
        values: float64 (G, T).
        standard_errors: float64 (G, T), which know how the errors of the units are related; 0 where exact.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    standard_errors: NDArray[np.float64]


@dataclass(frozen=True)
class EvaluatedCoalitions:
    """The table that the values were estimated from, for other estimators, curves and reports.

    Attributes:
        rows: bool (K, V), coalitions of the V visible units; True keeps a unit.
        scores: float64 (K, T), in the order of the explanation's scores.
    """

    rows: NDArray[np.bool_]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """Why the network segments a region as it does.

    Arrays are on the network's grid; `on_file_grid` brings them to the grid of the image file.

    Attributes:
        case: name of the case.
        target: index of the explained class.
        target_name: its name.
        region: what is explained.
        partition: the M units.
        visible: bool (M,), units that can change the region's prediction; the others are exact zeros.
        scores: names of the T scores.
        values: float64 (M, T), Shapley values in the unit of the score. Positive: the unit raises the score.
        standard_errors: float64 (M, T); 0 where exact.
        full: float64 (T,), scores with every unit kept.
        empty: float64 (T,), scores with every visible unit removed.
        method: estimator.
        evaluations: coalitions evaluated.
        seed: seed of the coalitions.
        baseline: what removed voxels became, see `monai_segshap.perturbation.Baseline.describe`.
        forwards: network passes for the coalitions.
        segmentation_forwards: network passes of the whole-volume prediction.
        seconds: wall time: "network" and "total", and that of one "window" found by the calibration.
        image: float32 (H, W, D), for pictures: the network's input or an image given for display.
        prediction: int (H, W, D), predicted classes, or what `monai_segshap.heads.OutputHeads.label_map` paints.
        file_grid: grid of the image file.
        diagnostics: of the estimator.
        warnings: sentences that a reader must know.
        window_grid: "deployed": windows of the whole-volume inference; "crop, half window" or "crop, full window".
        signal: what the scores sum, see `monai_segshap.heads.SIGNALS`.
        reason: why this estimator was used.
        versions: of the software.
        execution: how the network ran: numeric mode, batch sizes, and whether the bits are the library's.
        tolerance: half-width of 95 % intervals, as a share of the largest value of the score, at which the budget may
            stop growing; None: none was asked for.
        converged: for each score whether that was reached; exact values always are.
        groups: sums over units of one organ, where several units are one; None: there are none.
        background: what the game does without units: "empty_classes", voxels of each class that the network predicts
            in the region with every visible unit removed; "by_kept_share", mean scores of the evaluated coalitions
            that keep about a twentieth, a tenth, ... of the units.
        predicted: bool (H, W, D), voxels predicted as the target, where that is not ``prediction == target``.
        exported: int, on the file's grid: the label map that the deployed model writes, where it is known.
        heads: how logits become a prediction, see `monai_segshap.heads.OutputHeads`.
        sensitivity: the same with another baseline, see `KernelSHAPExplainer`; empty: not asked for.
        evaluated: coalitions of the visible units with their scores; None: they were not kept.
    """

    case: str
    target: int
    target_name: str
    region: Region
    partition: Partition
    visible: NDArray[np.bool_]
    scores: tuple[str, ...]
    values: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    full: NDArray[np.float64]
    empty: NDArray[np.float64]
    method: str
    evaluations: int
    seed: int
    baseline: dict[str, Any]
    forwards: ForwardCounts
    segmentation_forwards: int
    seconds: dict[str, float]
    image: NDArray[np.float32]
    prediction: NDArray[np.integer]
    file_grid: VoxelGrid
    diagnostics: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    window_grid: str = "deployed"
    signal: str = "logit"
    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    tolerance: float | None = None
    converged: tuple[bool, ...] = ()
    groups: UnitGroups | None = None
    background: dict[str, Any] = field(default_factory=dict)
    sensitivity: dict[str, Any] = field(default_factory=dict)
    predicted: NDArray[np.bool_] | None = None
    exported: NDArray[np.integer] | None = None
    heads: dict[str, Any] = field(default_factory=dict)
    evaluated: EvaluatedCoalitions | None = None

    @property
    def target_mask(self) -> NDArray[np.bool_]:
        """Bool (H, W, D), voxels predicted as the target."""
        return self.prediction == self.target if self.predicted is None else self.predicted

    @property
    def efficiency_gap(self) -> NDArray[np.float64]:
        """float64 (T,): sum of the values minus (full - empty); rounding error."""
        return self.values.sum(axis=0) - (self.full - self.empty)

    def score_index(self, score: str) -> int:
        """Column of a score.

        Raises:
            ValueError: if the score was not computed.
        """
        if score not in self.scores:
            raise ValueError(f"score {score!r} was not computed; this explanation has {', '.join(self.scores)}.")
        return self.scores.index(score)

    def attribution_map(self, score: str) -> NDArray[np.float32]:
        """Float32 (H, W, D): each voxel has the value of its unit, 0 outside units."""
        table = np.concatenate([[0.0], self.values[:, self.score_index(score)]]).astype(np.float32)
        return table[self.partition.labels]

    def on_file_grid(self, volume: NDArray[np.generic], fill: float = 0) -> NDArray[np.generic]:
        """A volume of the network's grid on the grid of the image file, by nearest neighbor."""
        return resample_nearest(volume, self.partition.grid, self.file_grid, fill)

    def file_box(self) -> Box:
        """Bounding box of the region in voxels of the image file, both corners inside."""
        low, high = self.region.box
        corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1).T
        index = np.round(self.file_grid.to_index(self.partition.grid.to_world(corners))).astype(int)
        index = np.clip(index, 0, np.asarray(self.file_grid.shape) - 1)
        first, last = index.min(axis=0).tolist(), index.max(axis=0).tolist()
        return (first[0], first[1], first[2]), (last[0], last[1], last[2])

    def table(self, sort_by: str | None = None) -> pd.DataFrame:
        """One row a unit: id, name, organ, volume_ml, position, visible, and value and standard error of each score.

        Args:
            sort_by: score whose absolute value orders the rows, largest first; default by id.
        """
        center = self.partition.centroids_mm
        columns: dict[str, Any] = {
            "id": np.arange(1, self.partition.n_units + 1),
            "name": self.partition.names,
            "organ": self.partition.organs,
            "volume_ml": np.round(self.partition.volumes_ml, 4),
            "x_mm": np.round(center[:, 0], 2),
            "y_mm": np.round(center[:, 1], 2),
            "z_mm": np.round(center[:, 2], 2),
            "visible": self.visible,
        }
        return self._with_scores(columns, self.values, self.standard_errors, sort_by)

    def group_table(self, sort_by: str | None = None) -> pd.DataFrame:
        """One row a group: name, and value and standard error of each score; empty without groups.

        Args:
            sort_by: score whose absolute value orders the rows, largest first.
        """
        if self.groups is None:
            return pd.DataFrame(columns=["name"])
        return self._with_scores({"name": self.groups.names}, self.groups.values, self.groups.standard_errors, sort_by)

    def _with_scores(
        self, columns: dict[str, Any], values: NDArray[np.float64], errors: NDArray[np.float64], sort_by: str | None
    ) -> pd.DataFrame:
        for t, score in enumerate(self.scores):
            columns[score], columns[f"{score}_se"] = values[:, t], errors[:, t]
        frame = pd.DataFrame(columns)
        if sort_by is None:
            return frame
        order = np.argsort(-np.abs(values[:, self.score_index(sort_by)]), kind="stable")
        return frame.iloc[order].reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """Content of ``explanation.json``: plain numbers, strings, lists and dictionaries."""
        scores = {
            score: {
                "full": float(self.full[t]),
                "empty": float(self.empty[t]),
                "efficiency_gap": float(self.efficiency_gap[t]),
            }
            for t, score in enumerate(self.scores)
        }
        keys = ["id", "name", "organ", "volume_ml", "visible"]
        keys += [column for score in self.scores for column in (score, f"{score}_se")]
        visible = int(self.visible.sum())
        return {
            "case": self.case,
            "target_class": {"index": self.target, "name": self.target_name},
            "region": {
                "mode": self.region.mode,
                "voxels": self.region.voxels,
                "target_voxels": self.region.target_voxels,
                "component_voxels": self.region.component_voxels,
                "box_ijk": [list(corner) for corner in self.file_box()],
            },
            "units": {
                "kind": self.partition.kind,
                "count": self.partition.n_units,
                "visible": visible,
                "dummies": self.partition.n_units - visible,
                "skipped": list(self.partition.skipped),
            },
            "baseline": self.baseline,
            "method": self.method,
            "reason": self.reason,
            "evaluations": self.evaluations,
            "seed": self.seed,
            "grid": self.window_grid,
            "signal": self.signal,
            "heads": self.heads,
            "scores": scores,
            "convergence": {
                "tolerance": self.tolerance,
                **dict(zip(self.scores, self.converged, strict=False)),
            },
            "attributions": [_plain(row) for row in self.table()[keys].to_dict("records")],
            "groups": [_plain(row) for row in self.group_table().to_dict("records")],
            "background": self.background,
            "sensitivity": self.sensitivity,
            "forwards": {
                "naive": self.forwards.naive,
                "published_cache": self.forwards.published_cache,
                "planned": self.forwards.planned,
                "run": self.forwards.run,
                "segmentation": self.segmentation_forwards,
                "calibration": self.forwards.calibration,
            },
            "execution": self.execution,
            "seconds": {key: round(value, 6) for key, value in self.seconds.items()},
            "diagnostics": {k: v for k, v in self.diagnostics.items() if k != "warnings"},
            "warnings": list(self.warnings),
            "versions": self.versions,
        }


def software_versions(device: torch.device) -> dict[str, str]:
    """Versions of everything that can change a number."""
    return {
        "monai_segshap": monai_segshap.__version__,
        "monai": str(monai.__version__),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
