# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Hand-made results of a study."""

from __future__ import annotations

import numpy as np

from monai_segshap.metrics import PerturbationCurves, perturbation_curves
from monai_segshap.study import StudyRecord


def curves_of(drops: list[float], keep: float = 0.0) -> PerturbationCurves:
    """Of an additive game: unit i is worth drops[i], and ``keep`` stays without units."""
    worth = np.array(drops)
    volumes = np.arange(1.0, len(worth) + 1)
    return perturbation_curves(lambda rows: rows @ worth + keep, worth, volumes=volumes, bounds="none")


def made(case: str, kind: str, scores: dict[str, list[float]], run: int = 40, **changes) -> StudyRecord:
    """A record with additive games; the score with all units is the sum of their worths."""
    found = {name: curves_of(drops) for name, drops in scores.items()}
    explanation = {
        "units": {"count": 9, "visible": len(next(iter(scores.values())))},
        "target_class": {"index": 2, "name": "nodule"},
        "method": "exact",
        "evaluations": 16,
        "convergence": {"tolerance": 0.2, **dict.fromkeys(scores, True)},
        "scores": {name: {"full": float(c.morf[0]), "empty": float(c.morf[-1])} for name, c in found.items()},
        "forwards": {"naive": 100, "published_cache": 90, "planned": run, "run": run, "calibration": 4},
        "seconds": {"network": 8.0, "total": 9.0, "window": 0.1},
    }
    fields = {
        "explanation": explanation,
        "target": {"voxels": 10, "covered": 0.5, "units": 1, "purity": 0.25, "value": {n: 1.0 for n in scores}},
        "curves": {n: {"summary": c.summary(), "table": c.table().to_dict("list")} for n, c in found.items()},
        "curve_forwards": 7,
        "seconds": {"case": 1.0, "explanation": 10.0, "curves": 2.0},
    }
    return StudyRecord(case, kind, {"files": {}}, **{**fields, **changes})


def failed(case: str, kind: str) -> StudyRecord:
    return StudyRecord(case, kind, {}, reason="ValueError: the prediction holds no voxel | of nodule")
