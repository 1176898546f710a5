# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Importances to test with: rows of shares, and a table as a paper's authors publish it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from monai_segshap.cohort import ImportanceTable

CHEST = (
    "background", "aorta", "lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right",
    "lung_middle_lobe_right", "lung_lower_lobe_right", "trachea", "heart", "pulmonary_vein", "thyroid_gland", "ribs",
    "vertebraes", "autochthon_left", "autochthon_right", "sternum", "costal_cartilages",
)  # fmt: skip


def random_table(n_cases: int, names: tuple[str, ...], seed: int, concentration: float = 400.0) -> ImportanceTable:
    """Rows around a mean row of each class, which sums to 1; cases "case 1", ..."""
    generator = np.random.default_rng(seed)
    means = np.random.default_rng(99).dirichlet(np.full(len(names), 0.6), size=len(names))
    values = np.stack([[generator.dirichlet(concentration * row + 0.05) for row in means] for _ in range(n_cases)])
    cases = tuple(f"case {n + 1}" for n in range(n_cases))
    return ImportanceTable(cases, names, names, values)


def published_frame(table: ImportanceTable, dice: bool = True) -> pd.DataFrame:
    """Columns in the style of published tables: mass and mean side by side, further statistics, IoU and Dice."""
    generator = np.random.default_rng(5)
    columns: dict[str, object] = {"patient": [f"s{1000 + n:04d}" for n in range(table.n_cases)]}
    for t, explained in enumerate(table.explained):
        for r, region in enumerate(table.regions):
            columns[f"{explained}_explanation_in_{region}_mass"] = table.values[:, t, r]
            columns[f"{explained}_explanation_in_{region}_mean"] = table.values[:, t, r] * 1e-7
        columns[f"{explained}_explanation_var"] = 1e-12
        columns[f"{explained}_explanation_mean"] = 1e-9
    if dice:
        for ending in ("iou", "dice"):
            for name in table.explained:
                columns[f"{name}_{ending}"] = generator.uniform(0.5, 1.0, size=table.n_cases)
    return pd.DataFrame(columns)
