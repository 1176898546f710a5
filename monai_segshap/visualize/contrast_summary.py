# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The summary of a cohort of contrast values as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_segshap.metrics import POOLED

from .contrast_pictures import contrast_score_label, counted, mean_words
from .markdown import markdown_table

if TYPE_CHECKING:
    from .contrast_report import ContrastFindings

__all__ = ["contrast_summary_text"]

_FEW = 20
#: Cases below which no association is spoken of: a bootstrap over fewer has hardly any spread.
_ENOUGH = 5
_DIRECTIONS = {"agreement": "Agreement", "rank_variance": "Rank variance"}


def contrast_summary_text(found: ContrastFindings, files: Sequence[str]) -> str:
    """The whole summary.

    Args:
        found: what was found.
        files: names of the pictures and tables that were written.
    """
    parts = [_head(found), _order(found), _agreement(found), _stability(found), _associations(found), _caveats(found)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    for name in ("agreement.png", "stability.png"):
        if name not in files:
            text = text.replace(f"\n\n![{name.removesuffix('.png')}]({name})", "")
    return text


def _head(found: ContrastFindings) -> str:
    cohort = found.cohort
    folds = "one network"
    if len(cohort.folds) > 1:
        folds = f"{len(cohort.folds)} folds ({', '.join(cohort.folds)})"
    others = [name for name in cohort.scores if name != cohort.score]
    removal = "The table does not say what removed contrasts became."
    if cohort.removals:
        ways = [f"{words} ({counted(n, 'case')})" for words, n in cohort.removals.items()]
        removal = f"Removed contrasts became: {'; '.join(ways)}."
    lines = [
        "# Which contrast the segmentation rests on",
        "",
        f"{counted(len(cohort.cases), 'case')}, {folds}, {counted(len(cohort.sub_regions), 'sub-region')} "
        f"({', '.join(cohort.sub_regions)}), {counted(len(cohort.contrasts), 'contrast')} "
        f"({', '.join(cohort.contrasts)}).",
        "",
        f"Values are Shapley values of the score `{cohort.score}`: {contrast_score_label(cohort.score)}. Those of a "
        "sub-region add up to the score with every contrast minus that with none. " + removal,
    ]
    if others:
        lines += ["", f"The table also holds the scores {', '.join(others)}, which are not analyzed here."]
    if found.reference is not None:
        lines += ["", f"Reference ranking: {found.reference.source.strip()}"]
    return "\n".join([*lines, "", "![values](values.png)"])


def _order(found: ContrastFindings) -> str:
    cohort, rows = found.cohort, []
    for region, part in found.values.groupby("sub_region", sort=False):
        known = part.dropna(subset=["mean"]).sort_values("mean", ascending=False, kind="stable")
        best = [
            f"{row.contrast} {_number(row.mean)}{_interval(row.low, row.high)}" for row in known.itertuples(index=False)
        ]
        s = cohort.sub_regions.index(str(region))
        dice = cohort.dice[:, :, s]
        mean_dice = _number(float(dice[np.isfinite(dice)].mean())) if np.isfinite(dice).any() else ""
        cells = best + [""] * (len(cohort.contrasts) - len(best)) if best else _no_value(len(cohort.contrasts))
        rows.append([str(region), str(int(part["n_cases"].max())), mean_dice, *cells])
    head = ["sub-region", "cases", "mean Dice", *(str(n) for n in range(1, len(cohort.contrasts) + 1))]
    words = mean_words(cohort)
    return (
        f"## Order by mean value\n\n{words[0].upper()}{words[1:]} [95 % bootstrap interval over cases]; the largest "
        "value first.\n\n" + markdown_table(head, rows) + "\n\n![ranks](ranks.png)"
    )


def _no_value(n: int) -> list[str]:
    return ["no value", *[""] * (n - 1)]


def _agreement(found: ContrastFindings) -> str:
    if found.agreement is None or found.associations is None:
        return ""
    table, rows = found.associations[found.associations["measure"] == "agreement"], []
    for row in table.itertuples(index=False):
        own = found.agreement
        own = own if row.sub_region == POOLED else own[own["sub_region"] == row.sub_region]
        cells = [row.sub_region, str(row.n_values), f"{_number(row.mean)}{_interval(row.mean_low, row.mean_high)}"]
        others = [_number(own[name].mean()) for name in ("chance", "spearman", "kendall")]
        rows.append([*cells, *others, _percent(own["reference_first"].mean())])
    head = ["sub-region", "n", "mean agreement", "chance", "Spearman", "Kendall", "reference's first ranks first"]
    return (
        "## Agreement with the reference\n\nOf each case and fold: 1 identical ranks, 0 as far away as ranks can be; "
        "random rankings reach the chance level, not 0. The last column counts how often the contrast that the "
        "reference puts first has the largest value (ties share).\n\n"
        + markdown_table(head, rows)
        + "\n\n![agreement](agreement.png)"
    )


def _stability(found: ContrastFindings) -> str:
    if found.stability is None or found.associations is None:
        return ""
    table, rows = found.associations[found.associations["measure"] == "rank_variance"], []
    for row in table.itertuples(index=False):
        of_means = found.variances.get(row.sub_region)
        means = "" if of_means is None else _number(of_means.variance)
        mean = f"{_number(row.mean)}{_interval(row.mean_low, row.mean_high)}"
        rows.append([row.sub_region, str(row.n_values), mean, _number(row.chance), means])
    head = ["sub-region", "cases", "mean rank variance", "chance", "of the folds' mean values"]
    return (
        "## Rank variance over folds\n\nHow much the rank of a contrast moves from fold to fold in one case: 0 where "
        "all folds agree. It measures instability; it is no statement of coverage.\n\n"
        + markdown_table(head, rows)
        + "\n\n![stability](stability.png)"
    )


def _associations(found: ContrastFindings) -> str:
    if found.associations is None or not (found.associations["n"] > 0).any():
        return ""
    lines = []
    for row in found.associations.itertuples(index=False):
        if row.n == 0:
            continue
        where = "all sub-regions together" if row.sub_region == POOLED else row.sub_region
        lines.append(f"* {_DIRECTIONS[row.measure]}, {where}: {_correlation(row)} {_groups(row, found.high)}")
    return (
        "## What goes with Dice\n\nPearson correlation with the 95 % bootstrap interval over cases; an association "
        "is called shown where both this interval and Fisher's exclude 0. Then high against "
        f"low Dice (above {found.high:g} against "
        + (f"below {found.low:g}" if found.low is not None else "the others")
        + "; Mann-Whitney, two-sided, not corrected for the number of tests; effect 0.5: no difference).\n\n"
        + "\n".join(lines)
    )


def _correlation(row: Any) -> str:
    pairs = f"{counted(row.n, 'pair')} of {counted(row.n_cases, 'case')}"
    low, high = row.bootstrap_low, row.bootstrap_high
    if np.isnan(row.r):
        return f"no correlation ({pairs}: too few, or one of the two is constant)."
    if row.n_cases < _ENOUGH:
        return f"r = {_number(row.r)}, from too few cases to speak of an association ({pairs})."
    if np.isnan(low):
        return f"r = {_number(row.r)} without an interval ({pairs})."
    shown = all(ends[0] > 0 or ends[1] < 0 for ends in ((low, high), (row.fisher_low, row.fisher_high)))
    said = f"{'rises' if row.r > 0 else 'falls'} with Dice" if shown else "no association is shown"
    return f"{said}, r = {_number(row.r)}{_interval(low, high)} ({pairs})."


def _groups(row: Any, high: float) -> str:
    if np.isnan(row.p_rank_test):
        return f"No comparison: {row.n_high} with Dice above {high:g} and {row.n_low} with low Dice."
    return (
        f"Median {_number(row.median_high)} with high ({row.n_high}) and {_number(row.median_low)} with low Dice "
        f"({row.n_low}), U = {row.u_statistic:g}, p = {_number(row.p_rank_test)}, effect {_number(row.effect)}."
    )


def _caveats(found: ContrastFindings) -> str:
    cohort, lines = found.cohort, list(found.remarks)
    for s, region in enumerate(cohort.sub_regions):
        without = ~np.isfinite(cohort.values[:, :, s]).any(axis=(1, 2))
        there = cohort.present[:, :, s].any(axis=1)
        if (without & there).any():
            c = int(np.flatnonzero(without & there)[0])
            k = int(np.flatnonzero(cohort.present[c, :, s])[0])
            lines.append(
                f"{region} has no value in {int((without & there).sum())} of {len(cohort.cases)} cases, which means "
                f"leave out; the first is {cohort.cases[c]}: {cohort.reason(c, k, s)}."
            )
        if not there.all():
            lines.append(f"{region} has no row in {int((~there).sum())} of {len(cohort.cases)} cases.")
    if len(cohort.cases) < _FEW:
        lines.append(f"With {counted(len(cohort.cases), 'case')} the intervals over cases are rough.")
    if len(cohort.folds) > 1:
        lines.append(
            "Several folds of a case are no independent pairs: p values, and Fisher's intervals in associations.csv, "
            "take them as such and are too optimistic; the bootstrap intervals draw whole cases."
        )
        lines.append(
            "The table can not say whether a fold's network was trained on a case. Rank variance means what it says "
            "only for cases that no fold has seen."
        )
    lines.append("Equal values share the mean of their ranks.")
    return "## Remarks\n\n" + "\n".join(f"* {line}" for line in lines)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{round(value, 10) + 0.0:.3g}"


def _interval(low: float, high: float) -> str:
    return f" [{_number(low)}, {_number(high)}]" if np.isfinite([low, high]).all() else ""


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{share:.0%}"
