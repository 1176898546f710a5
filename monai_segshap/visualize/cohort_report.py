# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A cohort from its table of importances alone: matrix, graph, box plots, context, outliers, and a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from monai_segshap.cohort import (
    GlobalImportance,
    ImportanceTable,
    OutlierModel,
    context_use,
    global_importance,
    group_differences,
    outlier_correlation,
    read_importances,
)
from monai_segshap.cohort.averages import classes_without_region
from monai_segshap.cohort.files import case_column
from monai_segshap.files import whole_folder, write_whole

from . import colors
from .cohort_summary import summary_text
from .distributions import save_boxplots, save_context_use, save_outlier_scores
from .importance import save_heatmap
from .importance_graph import importance_graph, save_graph

__all__ = ["CohortFindings", "analyze_cohort"]

#: All files that a report may hold; the summary comes last, so that where it stands everything else does.
_FILES = (
    "matrix.csv", "global.csv", "matrix.png", "graph.png", "boxplots.png", "context_use.csv", "context_use.png",
    "outliers.csv", "outliers.png", "correlations.csv", "groups.csv", "summary.md",
)  # fmt: skip
_MOST_GROUPS = 6


class CohortFindings(NamedTuple):
    """What was found in a cohort; tables are None where the data do not allow them, and ``remarks`` say why."""

    table: ImportanceTable
    overall: GlobalImportance
    context: pd.DataFrame | None
    model: OutlierModel | None
    scores: pd.DataFrame | None
    correlations: pd.DataFrame | None
    groups: pd.DataFrame | None
    remarks: tuple[str, ...]


def analyze_cohort(
    table: ImportanceTable | str | Path | Sequence[str | Path],
    output_dir: str | Path,
    reference: ImportanceTable | OutlierModel | str | Path | None = None,
    metadata: pd.DataFrame | str | Path | None = None,
    *,
    variant: str = "mass",
    part: str = "absolute",
    group_columns: Sequence[str] | None = None,
    own: Mapping[str, str] | None = None,
    systems: Mapping[str, str] | None = None,
    top_k: int = 3,
    drop: Sequence[str] = ("background",),
    n_resamples: int = 2000,
    seed: int = 123,
) -> dict[str, Path]:
    """Analyze a cohort from its table of local importances, without images or network.

    Writes ``matrix.csv`` (means), ``global.csv`` (n, mean, bootstrap interval, median), ``matrix.png``, ``graph.png``,
    ``boxplots.png``, ``context_use.csv`` and ``.png``, ``outliers.csv`` and ``.png`` (decision function: LOW means
    abnormal), ``correlations.csv`` where the table holds Dice, ``groups.csv`` where the metadata hold groups, and
    ``summary.md``. All of them appear, or none.

    Args:
        table: the cohort, or its CSV files as `read_importances` reads them.
        output_dir: made if absent. Files of an earlier analysis are replaced, other files stay.
        reference: the cohort on which outlier models are fitted, or a fitted model, or their file (``.csv``, ``.npz``);
            None: the cohort itself, among which outliers are then only relative.
        metadata: a table with a row for each case, or its CSV file; None: the further columns of ``table``.
        variant: which values to read from files.
        part: which part of the attributions to read from files.
        group_columns: columns of the metadata whose groups are compared; None: all that hold 2 to 6 different values,
            at least two of them in three cases or more.
        own: explained class -> the region that is the class itself; None: the region of the same name.
        systems: name -> body system, for colors.
        top_k: incoming edges of each class in the graph.
        drop: names left out of the graph.
        n_resamples: of the bootstrap.
        seed: of the forests and the bootstrap.

    Returns:
        file name -> path.

    Raises:
        ImportError: if matplotlib, networkx or scikit-learn is missing; nothing is written then.
        ValueError: if a table is faulty, or the reference has other names.
        OSError: if the folder can not be written; nothing half-written stays.
    """
    colors.require_matplotlib()
    cohort = table if isinstance(table, ImportanceTable) else read_importances(table, variant=variant, part=part)
    importance_graph(cohort.matrix(cohort.cases[0]), top_k, drop)
    found = _find(cohort, reference, metadata, group_columns, own, n_resamples, seed)
    return _publish(found, Path(output_dir), own=own, systems=systems, top_k=top_k, drop=drop)


def _publish(found: CohortFindings, target: Path, **look: Any) -> dict[str, Path]:
    """Write all files beside the target first, then move them there."""
    with whole_folder(target, _FILES.index) as staging:
        _write_tables(found, staging)
        _draw(found, staging, **look)
        write_whole(staging / "summary.md", summary_text(found))
        written = [name for name in _FILES if (staging / name).exists()]
    for name in set(_FILES) - set(written):
        (target / name).unlink(missing_ok=True)
    return {name: target / name for name in written}


def _find(
    cohort: ImportanceTable,
    reference: Any,
    metadata: Any,
    group_columns: Sequence[str] | None,
    own: Mapping[str, str] | None,
    n_resamples: int,
    seed: int,
) -> CohortFindings:
    remarks: list[str] = []
    overall = global_importance(cohort, n_resamples=n_resamples, seed=seed)
    context = _context(cohort, own, remarks)
    model = _model(cohort, reference, seed, remarks)
    scores = None if model is None else model.scores(cohort)
    if scores is not None and not np.isfinite(scores.to_numpy()).any():
        remarks.append("No case has a complete row of a class that has a forest: there are no outlier scores.")
        scores = None
    correlations = None
    if scores is not None and len(cohort.dice.columns):
        correlations = outlier_correlation(scores, cohort.dice)
    elif not len(cohort.dice.columns):
        remarks.append("The table holds no Dice: nothing is said about the quality of the segmentations.")
    groups = None if scores is None else _groups(scores, _metadata(cohort, metadata), group_columns, remarks)
    return CohortFindings(cohort, overall, context, model, scores, correlations, groups, tuple(remarks))


def _context(cohort: ImportanceTable, own: Mapping[str, str] | None, remarks: list[str]) -> pd.DataFrame | None:
    if cohort.variant != "mass":
        remarks.append(f"Context use is a share of mass; the table holds {cohort.variant}.")
        return None
    if own is None:
        without = classes_without_region(cohort)
        if without:
            remarks.append(f"No region is called {', '.join(without)}: context use is not given for them (own=...).")
        own = {name: name for name in cohort.explained if name not in without}
    return context_use(cohort, own) if own else None


def _model(cohort: ImportanceTable, reference: Any, seed: int, remarks: list[str]) -> OutlierModel | None:
    if isinstance(reference, OutlierModel):
        return reference
    if isinstance(reference, (str, Path)) and Path(reference).suffix == ".npz":
        return OutlierModel.load(reference)
    if reference is not None:
        rows = reference if isinstance(reference, ImportanceTable) else read_importances(
            reference, variant=cohort.variant, part=cohort.part
        )  # fmt: skip
        return OutlierModel.fit(rows, seed=seed)
    complete = np.isfinite(cohort.values).all(axis=2).sum(axis=0)
    if complete.max() < 2:
        remarks.append("No class has two cases with complete rows: there is nothing to compare a case with.")
        return None
    remarks.append(
        "Outlier models were fitted on this cohort itself: they find what is rare in it. To find what differs from "
        "normal cases, give those as reference."
    )
    return OutlierModel.fit(cohort, seed=seed)


def _metadata(cohort: ImportanceTable, metadata: Any) -> pd.DataFrame:
    if metadata is None:
        return cohort.metadata
    if isinstance(metadata, pd.DataFrame):
        return metadata
    frame = pd.read_csv(metadata, dtype=str)
    names = case_column(list(frame.columns), None)
    if names is None:
        raise ValueError(
            f"{metadata} has no column with names of cases, such as 'case'; its columns are {list(frame)}."
        )
    return frame.set_index(names)


def _groups(
    scores: pd.DataFrame, metadata: pd.DataFrame, asked: Sequence[str] | None, remarks: list[str]
) -> pd.DataFrame | None:
    """Differences of outlier scores between groups, for each column of the metadata that holds some."""
    columns = list(asked) if asked is not None else [c for c in metadata.columns if _holds_groups(metadata[c])]
    if not columns:
        remarks.append("The metadata hold no groups to compare.")
        return None
    parts = [group_differences(scores, metadata, column).reset_index() for column in columns]
    named = [part.rename(columns={"feature": "class"}) for part in parts]
    for column, part in zip(columns, named, strict=True):
        part.insert(0, "column", column)
    return pd.concat(named, ignore_index=True)


def _holds_groups(column: pd.Series) -> bool:
    sizes = column.value_counts()
    return 2 <= len(sizes) <= _MOST_GROUPS and int((sizes >= 3).sum()) >= 2


def _write_tables(found: CohortFindings, folder: Path) -> None:
    tables = {
        "matrix.csv": found.overall.matrix().to_frame(),
        "global.csv": found.overall.to_frame().set_index("explained"),
        "context_use.csv": found.context,
        "outliers.csv": found.scores,
        "correlations.csv": found.correlations,
        "groups.csv": None if found.groups is None else found.groups.set_index("column"),
    }
    for name, frame in tables.items():
        if frame is not None:
            write_whole(folder / name, frame.to_csv().encode())


def _draw(
    found: CohortFindings,
    folder: Path,
    own: Mapping[str, str] | None,
    systems: Mapping[str, str] | None,
    top_k: int,
    drop: Sequence[str],
) -> None:
    save_heatmap(found.overall, folder / "matrix.png")
    save_graph(found.overall, folder / "graph.png", top_k=top_k, drop=drop, systems=systems)
    save_boxplots(found.table, found.table.explained, folder / "boxplots.png", n_regions=8, systems=systems)
    if found.context is not None:
        pairs = own if own is not None else {name: name for name in found.context.columns}
        save_context_use(found.table, folder / "context_use.png", own=pairs, systems=systems)
    if found.scores is not None:
        save_outlier_scores(found.scores, folder / "outliers.png")
