# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The summary of a cohort as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from monai_segshap.cohort import MEAN_ROW

from .importance import value_label
from .markdown import markdown_table

if TYPE_CHECKING:
    from .cohort_report import CohortFindings

__all__ = ["summary_text"]

_SIGNIFICANT = 0.05
_N_NAMED = 10


def summary_text(found: CohortFindings) -> str:
    """The whole summary."""
    parts = [_head(found), _relies_on(found), _context(found), _outliers(found), _correlations(found), _groups(found)]
    if found.remarks:
        parts.append("## Remarks\n\n" + "\n".join(f"* {remark}" for remark in found.remarks))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(found: CohortFindings) -> str:
    table = found.table
    sums = np.nansum(table.values, axis=2)[np.isfinite(table.values).all(axis=2)]
    whole = table.variant == "mass" and sums.size and np.abs(sums - 1).max() < 1e-3
    lines = [
        "# What each class relies on",
        "",
        f"{table.n_cases} cases, {len(table.explained)} explained classes, {len(table.regions)} regions. Values are "
        f"{value_label(table.variant, table.part)}.",
        "",
        "Rows are explained classes, columns are regions."
        + (" Each row sums to 1: the regions share out the whole volume." if whole else ""),
    ]
    fixed = [c for c in table.metadata if table.metadata[c].dtype == object or table.metadata[c].dtype == "str"]
    same = [f"{c} {table.metadata[c].iloc[0]}" for c in fixed if table.metadata[c].nunique(dropna=False) == 1]
    if same and table.n_cases > 1:
        lines += ["", f"The same for all cases: {', '.join(same)}."]
    absent = {n: int(c) for n, c in zip(table.explained, np.isnan(table.values).all(axis=2).sum(axis=0), strict=True)}
    missing = [f"{name} ({count})" for name, count in absent.items() if count]
    if missing:
        lines += ["", f"Absent in some cases, which means leave out: {', '.join(missing)}."]
    if table.variant == "mass":
        lines += ["", "Large regions collect more mass. Compare a class over cases before comparing regions."]
    return "\n".join([*lines, "", "![matrix](matrix.png)", "", "![graph](graph.png)"])


def _relies_on(found: CohortFindings) -> str:
    overall, rows = found.overall, []
    for t, name in enumerate(overall.explained):
        order = np.argsort(-np.nan_to_num(overall.mean[t], nan=-1.0), kind="stable")[:3]
        best = [
            f"{overall.regions[r]} {_number(overall.mean[t, r])} [{_number(overall.low[t, r])}, "
            f"{_number(overall.high[t, r])}]"
            for r in order
            if np.isfinite(overall.mean[t, r])
        ]
        rows.append([name, str(int(overall.counts[t].max())), *best, *[""] * (3 - len(best))])
    head = ["class", "n", "first region", "second", "third"]
    level = f"{overall.level:.0%}"
    return (
        f"## The three regions of most importance\n\nMean over cases [{level} bootstrap interval of the mean].\n\n"
        + markdown_table(head, rows)
        + "\n\n![box plots](boxplots.png)"
    )


def _context(found: CohortFindings) -> str:
    if found.context is None:
        return ""
    middle = found.context.median().sort_values(ascending=False)
    rows = [[name, str(int(found.context[name].notna().sum())), _number(value)] for name, value in middle.items()]
    return (
        "## Context use\n\nShare of each class's attribution outside the class, median over cases.\n\n"
        + markdown_table(["class", "n", "outside"], rows)
        + "\n\n![context use](context_use.png)"
    )


def _outliers(found: CohortFindings) -> str:
    if found.scores is None or found.model is None:
        return ""
    scores, model = found.scores, found.model
    below = (scores < 0).sum(axis=1)
    lowest = scores.mean(axis=1).sort_values().head(_N_NAMED)
    rows = []
    for case, value in lowest.items():
        row = scores.loc[case].dropna().sort_values()
        named = ", ".join(f"{name} {_number(v)}" for name, v in row.head(3).items())
        rows.append([str(case), _number(value), f"{below[case]} of {len(row)}", named])
    fitted = sorted(set(model.n_fitted.values()))
    size = f"{fitted[0]}" if len(fitted) == 1 else f"{fitted[0]} to {fitted[-1]}"
    caution = " So few cases say little about what is normal." if fitted[-1] < 20 else ""
    return (
        "## Outliers\n\nIsolation forests on the rows of each class, fitted on "
        f"{size} cases (seed {model.seed}, {model.n_estimators} trees).{caution} Scores are the decision function: LOW "
        "means abnormal, below 0 a forest calls a case an outlier. The cases with the lowest mean over classes:\n\n"
        + markdown_table(["case", "mean score", "classes below 0", "lowest classes"], rows)
        + "\n\n![outliers](outliers.png)"
    )


def _correlations(found: CohortFindings) -> str:
    if found.correlations is None:
        return ""
    table = found.correlations
    tested = table.drop(index=MEAN_ROW).dropna(subset=["p"])
    order = [
        *tested.sort_values("p").index,
        *[n for n in table.index if n not in tested.index and n != MEAN_ROW],
        MEAN_ROW,
    ]
    rows = [
        [name, str(int(row["n"])), *(_number(row[c]) for c in ("rho", "p", "p_bh", "p_holm")), row["note"]]
        for name, row in table.loc[order].iterrows()
    ]
    plain, corrected = int((tested["p"] < _SIGNIFICANT).sum()), int((tested["p_holm"] < _SIGNIFICANT).sum())
    return (
        "## Outlier scores and Dice\n\nSpearman correlation. As LOW scores are abnormal, a positive correlation means: "
        f"the more abnormal, the worse the segmentation. p < {_SIGNIFICANT:g} for {plain} of {len(tested)} classes, "
        f"for {corrected} after Holm's correction.\n\n"
        + markdown_table(["class", "n", "rho", "p", "p (Benjamini-Hochberg)", "p (Holm)", "note"], rows)
    )


def _groups(found: CohortFindings) -> str:
    if found.groups is None:
        return ""
    parts = []
    for column, part in found.groups.groupby("column", sort=False):
        tested = part.dropna(subset=["p"])
        if tested.empty:
            parts.append(f"* {column}: no class can be tested.")
            continue
        best = tested.loc[tested["p"].idxmin()]
        hits = int((tested["p_holm"] < _SIGNIFICANT).sum())
        parts.append(
            f"* {column} ({best['groups']}; {best['test']}): p (Holm) < {_SIGNIFICANT:g} for {hits} of {len(tested)} "
            f"classes; smallest p {_number(best['p'])} for {best['class']}, corrected {_number(best['p_holm'])}; "
            f"medians {best['medians']}."
        )
    lines = "\n".join(parts)
    return f"## Outlier scores of groups\n\nTwo-sided rank tests, corrected within each column.\n\n{lines}"


def _number(value: object) -> str:
    number = float(value)  # type: ignore[arg-type]
    return "" if np.isnan(number) else f"{number:.3g}"
