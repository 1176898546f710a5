# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A cohort from its tables of contrast values alone: values, ranks, agreement, stability, and a summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from monai_segshap.files import whole_folder, write_whole
from monai_segshap.metrics import (
    ContrastCohort,
    RankVariance,
    ReferenceRanking,
    contrast_agreement,
    contrast_associations,
    contrast_fold_ranks,
    contrast_stability,
    contrast_value_summary,
    fold_rank_variance,
    read_contrast_table,
)

from . import colors
from .contrast_pictures import save_contrast_ranks, save_contrast_values
from .contrast_scatter import save_contrast_agreement, save_contrast_stability
from .contrast_summary import contrast_summary_text

__all__ = ["ContrastFindings", "analyze_contrasts"]

#: All files that a report may hold; the summary comes last, so that where it stands everything else does.
_FILES = (
    "values.csv", "values.png", "ranks.csv", "ranks.png", "agreement.csv", "agreement.png", "stability.csv",
    "stability.png", "associations.csv", "summary.md",
)  # fmt: skip
_N_NAMED = 5


class ContrastFindings(NamedTuple):
    """What was found; tables are None where the data do not allow them, and ``remarks`` say why."""

    cohort: ContrastCohort
    reference: ReferenceRanking | None
    values: pd.DataFrame
    ranks: pd.DataFrame
    variances: dict[str, RankVariance]
    agreement: pd.DataFrame | None
    stability: pd.DataFrame | None
    associations: pd.DataFrame | None
    high: float
    low: float | None
    remarks: tuple[str, ...]


def analyze_contrasts(
    table: pd.DataFrame | str | Path | Sequence[pd.DataFrame | str | Path],
    output_dir: str | Path,
    reference: ReferenceRanking | str | Path | None = None,
    *,
    score: str | None = None,
    high: float = 0.6,
    low: float | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Path]:
    """Analyze contrast values of a cohort from their tables, without images or network (paper 003).

    Writes ``values.csv`` and ``.png`` (mean values), ``ranks.csv`` and ``.png`` (how each fold ranks the contrasts),
    with a reference ``agreement.csv`` and ``.png``, with two folds or more ``stability.csv`` and ``.png`` (rank
    variance), ``associations.csv`` (what goes with Dice), and ``summary.md``. Pictures against Dice need the score
    "dice_truth" in the table. All files appear, or none.

    Args:
        table: data frame or CSV file as `monai_segshap.handlers.ContrastTableHandler` and
            `monai_segshap.transforms.SaveContrastsd` write them, or several.
        output_dir: made if absent. Files of an earlier analysis are replaced, other files stay.
        reference: a ranking of the contrasts for each sub-region, or its YAML file; None: agreement is left out.
        score: whose values are analyzed; None: the only one of the table, or "dice_truth" if it is there.
        high: pairs with Dice above this are the high-Dice group.
        low: pairs with Dice below this are the low-Dice group; None: all others.
        n_resamples: of the bootstrap over cases.
        seed: of the bootstrap, and of small shifts of points in ``agreement.png``.

    Returns:
        file name -> path.

    Raises:
        ImportError: if matplotlib is missing, or PyYAML for a YAML file; nothing is written then.
        ValueError: if a table is faulty (see `read_contrast_table`), or the reference ranks other contrasts.
        OSError: if the folder can not be written; nothing half-written stays.
    """
    colors.require_matplotlib()
    cohort = read_contrast_table(table, score)
    expected = ReferenceRanking.read(reference) if isinstance(reference, (str, Path)) else reference
    found = _find(cohort, expected, high, low, n_resamples, seed)
    return _publish(found, Path(output_dir), seed)


def _publish(found: ContrastFindings, target: Path, seed: int) -> dict[str, Path]:
    """Write all files beside the target first, then move them there."""
    with whole_folder(target, _FILES.index) as staging:
        _write_tables(found, staging)
        _draw(found, staging, seed)
        written = [name for name in _FILES if (staging / name).exists()]
        write_whole(staging / "summary.md", contrast_summary_text(found, written))
        written.append("summary.md")
    for name in set(_FILES) - set(written):
        (target / name).unlink(missing_ok=True)
    return {name: target / name for name in written}


def _find(
    cohort: ContrastCohort,
    reference: ReferenceRanking | None,
    high: float,
    low: float | None,
    n_resamples: int,
    seed: int,
) -> ContrastFindings:
    remarks = _remarks_on_rows(cohort)
    agreement = None
    if reference is None:
        remarks.append("There is no reference ranking: nothing is said about agreement.")
    else:
        without = [name for name in cohort.sub_regions if name not in reference.orders]
        if without:
            remarks.append(f"The reference does not rank {', '.join(without)}: no agreement is given there.")
        if len(without) < len(cohort.sub_regions):
            agreement = contrast_agreement(cohort, reference)
    stability = None
    if len(cohort.folds) > 1:
        stability = contrast_stability(cohort)
    else:
        remarks.append(
            "There is one network: ranks are given over cases only, and nothing is said about rank variance over folds."
        )
    if not np.isfinite(cohort.dice).any():
        remarks.append(
            "The table holds no Dice against ground truth (score dice_truth): nothing is compared with the quality of "
            "the segmentations."
        )
    associations = None
    if agreement is not None or stability is not None:
        options: dict[str, Any] = {"high": high, "low": low, "n_resamples": n_resamples, "seed": seed}
        associations = contrast_associations(agreement, stability, **options)
    values = contrast_value_summary(cohort, n_resamples=n_resamples, seed=seed)
    ranks, variances = contrast_fold_ranks(cohort, reference), fold_rank_variance(cohort)
    tables = values, ranks, variances, agreement, stability, associations
    return ContrastFindings(cohort, reference, *tables, high, low, tuple(remarks))


def _remarks_on_rows(cohort: ContrastCohort) -> list[str]:
    """What of the cases and folds is not there, or has no ranking."""
    remarks, missing = [], cohort.missing_pairs()
    if len(cohort.removals) > 1:
        remarks.append("Contrasts were removed in several ways: values of different ways do not measure the same.")
    if missing:
        named = [f"{case} lacks fold {fold}" for case, fold in missing[:_N_NAMED]]
        more = f" and {len(missing) - _N_NAMED} more" if len(missing) > _N_NAMED else ""
        n_pairs = len(cohort.cases) * len(cohort.folds)
        remarks.append(
            f"{len(missing)} of {n_pairs} pairs of case and fold are not in the table: {', '.join(named)}{more}. Folds "
            "with other cases differ for that reason, too."
        )
    tied = cohort.tied.sum(axis=(0, 1)) if len(cohort.contrasts) > 1 else np.zeros(len(cohort.sub_regions))
    found = [f"{name} ({int(n)})" for name, n in zip(cohort.sub_regions, tied, strict=True) if n]
    if found:
        remarks.append(
            f"Pairs of case and fold where all values are equal, for example all 0: {', '.join(found)}. There all "
            "contrasts share the middle rank in the means; agreement and rank variance are undefined."
        )
    return remarks


def _write_tables(found: ContrastFindings, folder: Path) -> None:
    tables = {
        "values.csv": found.values,
        "ranks.csv": found.ranks,
        "agreement.csv": found.agreement,
        "stability.csv": found.stability,
        "associations.csv": found.associations,
    }
    for name, frame in tables.items():
        if frame is not None:
            write_whole(folder / name, frame.to_csv(index=False))


def _draw(found: ContrastFindings, folder: Path, seed: int) -> None:
    save_contrast_values(found.cohort, folder / "values.png", summary=found.values)
    save_contrast_ranks(found.cohort, folder / "ranks.png", found.reference)
    look: dict[str, Any] = {"associations": found.associations, "high": found.high, "seed": seed}
    if found.agreement is not None and _both(found.agreement, "agreement", "dice"):
        save_contrast_agreement(found.agreement, folder / "agreement.png", **look)
    if found.stability is not None and _both(found.stability, "rank_variance", "mean_dice"):
        save_contrast_stability(found.stability, folder / "stability.png", **look)


def _both(frame: pd.DataFrame, *columns: str) -> bool:
    return bool(np.isfinite(frame[list(columns)].to_numpy(np.float64)).all(axis=1).any())
