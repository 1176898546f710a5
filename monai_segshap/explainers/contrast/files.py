# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Contrast explanations as files: one JSON and one table for a case with all its folds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from monai_segshap.explainers.contrast.explanation import ContrastExplanation, contrast_table
from monai_segshap.files import whole_folder

__all__ = ["format_contrast_table", "write_contrasts"]


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
        "contrasts.csv": contrast_table(explanations).to_csv(index=False),
        "contrasts.json": json.dumps(record, indent=2, allow_nan=False) + "\n",
    }
    with whole_folder(folder) as staging:
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
    return {name: Path(folder) / name for name in texts}


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
