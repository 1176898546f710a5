# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Tables and explanations of contrasts with values given by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from monai_segshap.explainers import CONTRAST_COLUMNS, ContrastExplanation, SubRegion
from monai_segshap.inferers import ForwardCounts
from monai_segshap.units import Contrasts

NAMES = ("t1c", "t1n", "t2w", "t2f")

#: Case, fold -> values. Against the order of `NAMES` their agreement is 1, 3/4, 0 and 3/4.
BY_HAND = {
    ("p", "0"): (4.0, 3.0, 2.0, 1.0),
    ("p", "1"): (4.0, 3.0, 1.0, 2.0),
    ("q", "0"): (1.0, 2.0, 3.0, 4.0),
    ("q", "1"): (4.0, 2.0, 3.0, 1.0),
}


def contrast_rows(
    values: Mapping[tuple[str, str | None], Sequence[float]],
    sub_region: str = "ET",
    *,
    dice: Mapping[tuple[str, str | None], float] | float = 0.5,
    names: Sequence[str] = NAMES,
    score: str = "dice_truth",
    removal: str = "",
    reason: str = "",
) -> pd.DataFrame:
    """The table of one sub-region."""
    rows = []
    for (case, fold), row in values.items():
        full = dice if isinstance(dice, float) else dice[case, fold]
        head = {"case": case, "fold": fold, "score": score, "sub_region": sub_region}
        tail = {"full": full, "empty": 0.0, "truth_voxels": 9, "predicted_voxels": 9, "removal": removal}
        for name, value in zip(names, row, strict=True):
            why = reason if math.isnan(value) else ""
            rows.append({**head, "contrast": name, "value": value, **tail, "reason": why})
    return pd.DataFrame(rows, columns=list(CONTRAST_COLUMNS))


def random_rows(n_cases: int, n_folds: int, regions: Sequence[str] = ("ET", "WT"), seed: int = 0) -> pd.DataFrame:
    """Random values, in which contrasts differ by region, and Dice."""
    rng = np.random.default_rng(seed)
    pairs = [(f"c{c}", str(k)) for c in range(n_cases) for k in range(n_folds)]
    tables = []
    for number, region in enumerate(regions):
        shift = np.roll([0.4, 0.2, 0.1, 0.0], number)
        values = {pair: shift + rng.normal(scale=0.1, size=4) for pair in pairs}
        tables.append(contrast_rows(values, region, dice={pair: float(rng.uniform(0.3, 0.95)) for pair in pairs}))
    return pd.concat(tables, ignore_index=True)


def made_explanation(
    case: str,
    fold: str | None,
    values: Mapping[str, Sequence[float]],
    reasons: Mapping[str, str] | None = None,
    names: Sequence[str] = NAMES,
) -> ContrastExplanation:
    """An explanation whose values of each sub-region are given."""
    table = np.array(list(values.values()), dtype=np.float64).T[None]
    n, n_regions = table.shape[1:]
    return ContrastExplanation(
        case=case,
        contrasts=Contrasts.parse(list(names)),
        sub_regions=tuple(SubRegion(name, (number,)) for number, name in enumerate(values)),
        scores=("dice_truth",),
        values=table,
        coalition_scores=np.full((1, 2**n, n_regions), 0.5),
        predicted_voxels=np.ones((2**n, n_regions), dtype=np.int64),
        truth_voxels=np.ones(n_regions, dtype=np.int64),
        reasons={"dice_truth": dict(reasons or {})},
        live=np.ones(n, dtype=bool),
        removal={"kind": "constant", "network_value": 0.0},
        fold=fold,
        forwards=ForwardCounts(0, 0, 0),
        segmentation_forwards=0,
        seconds={},
    )
