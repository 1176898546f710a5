# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What a study keeps of one case and one kind of units: a JSON file of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.explainers import Explanation
from monai_segshap.files import write_whole
from monai_segshap.metrics import PerturbationCurves

__all__ = ["StudyRecord", "curve_table", "read_record", "record_of", "write_json"]

_VERSION = 1


@dataclass(frozen=True)
class StudyRecord:
    """One case explained with one kind of units.

    Attributes:
        case: its name.
        kind: of the units.
        identity: what the numbers depend on, see `monai_segshap.study.describe`.
        reason: why there is no result, with the error's type; empty where there is one.
        explanation: of `monai_segshap.explainers.Explanation.to_dict`.
        target: the predicted target in the region: "voxels"; "covered", the share of them that lies in units; "units"
            that hold some; "purity", the share of these units' voxels that is target; "value", for each score the sum
            of these units' values.
        curves: for each score "summary" and "table" of its `monai_segshap.metrics.PerturbationCurves`.
        curve_forwards: network passes for the curves, beyond those of the explanation.
        seconds: "case" (loading, prediction and region; shared by all kinds of a case), "explanation", "curves".
        version: of this layout.
    """

    case: str
    kind: str
    identity: dict[str, Any]
    reason: str = ""
    explanation: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    curve_forwards: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    version: int = _VERSION

    @property
    def failed(self) -> bool:
        """Whether there is no result."""
        return bool(self.reason)

    def write(self, path: str | Path) -> Path:
        """Write the record; it appears whole or not at all. NaN becomes null."""
        return write_json(asdict(self), path)


def record_of(
    case: str,
    kind: str,
    identity: Mapping[str, Any],
    explanation: Explanation,
    curves: Mapping[str, PerturbationCurves],
    curve_forwards: int,
    seconds: Mapping[str, float],
) -> StudyRecord:
    """The record of a result."""
    found = {score: {"summary": one.summary(), "table": one.table().to_dict("list")} for score, one in curves.items()}
    return StudyRecord(
        case=case,
        kind=kind,
        identity=dict(identity),
        explanation=explanation.to_dict(),
        target=_target(explanation),
        curves=found,
        curve_forwards=curve_forwards,
        seconds={name: float(value) for name, value in seconds.items()},
    )


def read_record(path: str | Path) -> StudyRecord | None:
    """A record from its file; None where there is no file, or one of another layout."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        return None
    return StudyRecord(**content)


def curve_table(record: StudyRecord, score: str) -> pd.DataFrame:
    """The curves of a score, as `monai_segshap.metrics.PerturbationCurves.table` had them."""
    return pd.DataFrame(record.curves[score]["table"])


def write_json(content: Any, path: str | Path) -> Path:
    """Write plain values as JSON under another name, then rename."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, json.dumps(_plain(content), allow_nan=False) + "\n")


def _target(explanation: Explanation) -> dict[str, Any]:
    target: NDArray[np.bool_] = explanation.target_mask & explanation.region.mask
    labels = explanation.partition.labels
    holding = np.unique(labels[target])
    holding = holding[holding > 0]
    own = np.isin(labels, holding)
    voxels = int(target.sum())
    return {
        "voxels": voxels,
        "covered": float((labels[target] > 0).mean()) if voxels else math.nan,
        "units": len(holding),
        "purity": float((target & own).sum() / own.sum()) if len(holding) else math.nan,
        "value": {s: float(explanation.values[holding - 1, t].sum()) for t, s in enumerate(explanation.scores)},
    }


def _plain(thing: Any) -> Any:
    if isinstance(thing, np.generic):
        thing = thing.item()
    if isinstance(thing, float) and not math.isfinite(thing):
        return None
    if isinstance(thing, Mapping):
        return {str(key): _plain(value) for key, value in thing.items()}
    if isinstance(thing, np.ndarray):
        return _plain(thing.tolist())
    if isinstance(thing, (list, tuple)):
        return [_plain(value) for value in thing]
    return thing
