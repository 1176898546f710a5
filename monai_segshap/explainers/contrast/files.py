# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Contrast explanations as files: one JSON and one table for a case with all its folds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_segshap.explainers.contrast.explanation import ContrastExplanation, contrast_table
from monai_segshap.explainers.contrast.sub_regions import SubRegion
from monai_segshap.files import whole_folder
from monai_segshap.inferers import ForwardCounts
from monai_segshap.units.contrasts import Contrasts

__all__ = ["format_contrast_table", "read_contrasts", "write_contrasts"]

_RECORD, _TABLE = "contrasts.json", "contrasts.csv"


def write_contrasts(explanations: Sequence[ContrastExplanation], folder: str | Path) -> dict[str, Path]:
    """Write ``contrasts.csv`` and ``contrasts.json``; either both appear or none, the JSON last.

    Args:
        explanations: of one case, one for each network.
        folder: made if absent; files of an earlier run are replaced, other files stay.

    Returns:
        file name -> path.

    Raises:
        ValueError: for no explanation, or several cases.
        OSError: if the folder can not be written; nothing half-written stays.
    """
    cases = sorted({one.case for one in explanations})
    if len(cases) != 1:
        raise ValueError(f"got explanations of the cases {cases}; expected those of one case.")
    record = {**explanations[0].case_dict(), "folds": [one.to_dict() for one in explanations]}
    texts = {
        _TABLE: contrast_table(explanations).to_csv(index=False),
        _RECORD: json.dumps(record, indent=2, allow_nan=False) + "\n",
    }
    with whole_folder(folder) as staging:
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
    return {name: Path(folder) / name for name in texts}


def read_contrasts(folder: str | Path) -> list[ContrastExplanation]:
    """Read what `write_contrasts` wrote, one explanation for each network, equal to those that were written.

    Args:
        folder: of one case.

    Raises:
        ValueError: if its ``contrasts.json`` is none, or is damaged.
        OSError: if it can not be read.
    """
    path = Path(folder) / _RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return [_restored(record, fold) for fold in record["folds"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no record of contrast values ({type(error).__name__}: {error}); explain the case again."
        ) from error


def format_contrast_table(explanations: Sequence[ContrastExplanation]) -> str:
    """Values as text, for each score and network one row a contrast and one column a sub-region, and the notes.

    Args:
        explanations: of one case.
    """
    lines = []
    for one in explanations:
        where = one.case if one.fold is None else f"{one.case}, fold {one.fold}"
        width = max(len(name) for name in (*one.contrasts.names, "all - none"))
        for t, score in enumerate(one.scores):
            lines += [f"{where}: {score}", f"{'':{width}}" + "".join(f"{name:>12}" for name in one.sub_region_names)]
            rows = [*zip(one.contrasts.names, one.values[t], strict=True), ("all - none", one.full[t] - one.empty[t])]
            lines += [f"{name:{width}}" + "".join(f"{value:+12.4f}" for value in values) for name, values in rows]
    notes = dict.fromkeys(sentence for one in explanations for sentence in one.warnings)
    return "\n".join([*lines, *(f"note: {sentence}" for sentence in notes)])


def _restored(case: Mapping[str, Any], fold: Mapping[str, Any]) -> ContrastExplanation:
    """One explanation from what its case and its network have in ``contrasts.json``."""
    names = tuple(entry["name"] for entry in case["contrasts"])
    channels = tuple(tuple(entry["channels"]) for entry in case["contrasts"])
    regions = tuple(SubRegion.parse(region) for region in case["sub_regions"])
    scores, forwards = fold["scores"], fold["forwards"]
    by_score = [[scores[score][region.name] for region in regions] for score in scores]
    reasons = {
        score: {name: entry["reason"] for name, entry in found.items() if entry["reason"] is not None}
        for score, found in scores.items()
    }
    values = [[[entry["values"][name] for entry in entries] for name in names] for entries in by_score]
    tables = [[entry["coalition_scores"] for entry in entries] for entries in by_score]
    voxels = [[row["predicted_voxels"][region.name] for region in regions] for row in fold["coalitions"]]
    truth = case["truth_voxels"]
    return ContrastExplanation(
        case=case["case"],
        contrasts=Contrasts(names, channels, tuple(case["channel_names"])),
        sub_regions=regions,
        scores=tuple(scores),
        values=np.array(values, dtype=np.float64),
        coalition_scores=np.array(tables, dtype=np.float64).transpose(0, 2, 1),
        predicted_voxels=np.array(voxels, dtype=np.int64),
        truth_voxels=None if truth is None else np.array([truth[region.name] for region in regions], dtype=np.int64),
        reasons={score: found for score, found in reasons.items() if found},
        live=np.array([entry["live"] for entry in case["contrasts"]], dtype=bool),
        removal=dict(case["removal"]),
        fold=fold["fold"],
        forwards=ForwardCounts(
            forwards["naive"], forwards["naive"], forwards["planned"], forwards["run"], forwards["calibration"]
        ),
        segmentation_forwards=forwards["segmentation"],
        seconds=dict(fold["seconds"]),
        heads=dict(case["heads"]),
        signal=case["signal"],
        absent=case["absent"],
        execution=dict(fold["execution"]),
        warnings=tuple(fold["warnings"]),
        versions=dict(fold["versions"]),
        identity=dict(fold["identity"]),
    )
