# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Everything that a study writes: tables, pictures, and a summary in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monai_segshap.files import write_whole
from monai_segshap.games import SCORES
from monai_segshap.study.records import StudyRecord, curve_table
from monai_segshap.study.tables import MEASURES, all_curves, comparisons, costs, means, results
from monai_segshap.visualize import save_curves, save_differences
from monai_segshap.visualize.colors import number
from monai_segshap.visualize.curves import endpoint_normalized

__all__ = ["study_markdown", "write_study"]

_SCORE_NAMES = {"tp": "True Positive", "fp": "False Positive", "dice": "Dice", "soft_dice": "Soft Dice"}


def write_study(
    records: Sequence[StudyRecord], folder: str | Path, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Path]:
    """Write the tables, pictures and the summary of a study; each file appears whole or not at all.

    ``results.csv`` (a row for each case, kind and score), ``table_1.csv`` (means), ``paired.csv`` (differences between
    kinds), ``costs.csv`` (passes and seconds), ``curves.csv`` (every step of every curve), ``curves_SCORE.png``
    (median and interquartile range, as Figures 5 to 7 of paper 000), ``paired.png`` and ``study.md``.

    Args:
        records: of all cases and kinds.
        folder: made if absent.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        file name -> path. Without any result there are ``results.csv`` and ``study.md`` alone.

    Raises:
        ImportError: if matplotlib is not installed; the tables are there then.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    frame = results(records)
    tables = {"results.csv": frame, "table_1.csv": means(frame, resamples, seed), "costs.csv": costs(records)}
    paired = comparisons(frame, resamples, seed)
    tables |= {"paired.csv": paired.drop(columns="differences", errors="ignore"), "curves.csv": all_curves(records)}
    written = {
        name: write_whole(target / name, table.to_csv(index=False, float_format="%.7g"))
        for name, table in tables.items()
        if len(table.columns) or name == "results.csv"
    }
    text = study_markdown(records, frame, tables["table_1.csv"], paired, tables["costs.csv"], resamples)
    written["study.md"] = write_whole(target / "study.md", text)
    if any(not record.failed for record in records):
        written |= _pictures(records, paired, target)
    return written


def _pictures(records: Sequence[StudyRecord], paired: pd.DataFrame, folder: Path) -> dict[str, Path]:
    done = [record for record in records if not record.failed]
    written = {}
    for score in done[0].curves:
        panels = {
            kind: [curve_table(record, score) for record in done if record.kind == kind]
            for kind in dict.fromkeys(record.kind for record in done)
        }
        every = [table for tables in panels.values() for table in tables]
        undefined = sum(endpoint_normalized(table) is None for table in every)
        notes = "Line: median over cases; band: from the lower to the upper quartile (up to three cases: each one)."
        if 2 * undefined > len(every):
            notes += f" Scores as they are: {undefined} of {len(every)} curves end where they start, so that "
            notes += "normalizing them by their two ends is undefined."
        written[f"curves_{score}.png"] = save_curves(
            panels,
            folder / f"curves_{score}.png",
            title=f"{_name(score)}: removing units by their value",
            notes=notes,
            score_label=f"{_name(score)} score",
            normalize=2 * undefined <= len(every),
        )
    if not paired.empty:
        drawn = paired[paired["measure"] != MEASURES["naopc"]]
        written["paired.png"] = save_differences(
            drawn.assign(
                row=drawn["measure"],
                column=[_name(score) for score in drawn["score"]],
                comparison=[f"{b} \N{MINUS SIGN} {a}" for a, b in zip(drawn["first"], drawn["second"], strict=True)],
            ),
            folder / "paired.png",
            title="Kinds of units compared case by case",
            notes="Dots: differences of cases. Bar: 95 % bootstrap interval of their mean; red above 0, blue below 0.",
        )
    return written


def study_markdown(
    records: Sequence[StudyRecord],
    frame: pd.DataFrame,
    table: pd.DataFrame,
    paired: pd.DataFrame,
    cost: pd.DataFrame,
    resamples: int,
) -> str:
    """The summary: what ran, the means, the paired differences, the cost, and what failed."""
    failed = [record for record in records if record.failed]
    done = [record for record in records if not record.failed]
    kinds = list(dict.fromkeys(record.kind for record in records))
    lines = ["# Study of explanations", "", *_what_ran(done, failed, kinds)]
    if done:
        lines += ["", "## Means over cases", "", *_means_table(table, kinds, resamples)]
        if not paired.empty:
            lines += ["", "## Kinds of units compared case by case", "", *_paired_table(paired)]
        lines += ["", "## Units and the target", "", *_target_table(frame, kinds)]
        lines += ["", "## Network passes and seconds", "", *_cost_table(cost, kinds)]
    if failed:
        lines += ["", "## Failed", "", "| case | units | reason |", "|---|---|---|"]
        lines += [f"| {r.case} | {r.kind} | {_cell(r.reason)} |" for r in failed]
    return "\n".join(lines) + "\n"


def _what_ran(done: Sequence[StudyRecord], failed: Sequence[StudyRecord], kinds: Sequence[str]) -> list[str]:
    cases = list(dict.fromkeys(record.case for record in [*done, *failed]))
    lines = [f"{len(cases)} case{'s' if len(cases) > 1 else ''} ({', '.join(cases)}), units: {', '.join(kinds)}. "]
    lines[0] += f"{len(done)} of {len(done) + len(failed)} pairs of case and kind have results."
    if not done:
        return lines
    lines += ["", "| units | explained class | visible units | method | coalitions | within the tolerance |"]
    lines.append("|---|---|---|---|---|---|")
    for kind in kinds:
        own = [record.explanation for record in done if record.kind == kind]
        if not own:
            continue
        verdicts = [v for e in own for k, v in e["convergence"].items() if k != "tolerance" and v is not None]
        reached = f"{sum(verdicts)} of {len(verdicts)} scores" if verdicts else "none asked for"
        target = ", ".join(dict.fromkeys(e["target_class"]["name"] for e in own))
        method = ", ".join(dict.fromkeys(e["method"] for e in own))
        row = [kind, target, _range([e["units"]["visible"] for e in own]), method]
        lines.append(_row([*row, _range([e["evaluations"] for e in own]), reached]))
    return lines


def _means_table(table: pd.DataFrame, kinds: Sequence[str], resamples: int) -> list[str]:
    lines = [
        f"Mean with its 95 % percentile bootstrap interval over cases ({resamples} resamples), in the layout of paper "
        "000's Table I; bold: the largest mean of the row, among the kinds for which at least half of the cases have a "
        "number. nABPC and nAOPC are divided, case by case, by the difference of the score with all and with no units; "
        "where that is about 0 they are undefined. Such cases are counted."
    ]
    lines += ["", _row(["measure", "score", *kinds]), "|---" * (2 + len(kinds)) + "|"]
    for row in table.to_dict("records"):
        known = [row[kind] for kind in kinds if row[f"{kind}_n"] and row[f"{kind}_n"] >= row[f"{kind}_nan"]]
        best = max(known, default=np.nan)
        cells = []
        for kind in kinds:
            if not row[f"{kind}_n"]:
                cells.append(f"none ({row[f'{kind}_nan']} undefined)")
                continue
            mean = _digits(row[kind])
            text = f"**{mean}**" if row[kind] == best else mean
            text += f" [{_digits(row[f'{kind}_low'])}, {_digits(row[f'{kind}_high'])}]"
            cells.append(text + (f" ({row[f'{kind}_nan']} undefined)" if row[f"{kind}_nan"] else ""))
        lines.append(_row([row["measure"], _name(row["score"]), *cells]))
    return lines


def _paired_table(paired: pd.DataFrame) -> list[str]:
    lines = [
        "Mean difference with its interval, and in how many of the cases the first of the two is larger. Bold: the"
    ]
    lines[0] += " interval does not hold 0. Intervals are not corrected for their number."
    pairs = list(dict.fromkeys(zip(paired["second"], paired["first"], strict=True)))
    lines += ["", _row(["measure", "score", *[f"{b} - {a}" for b, a in pairs]]), "|---" * (2 + len(pairs)) + "|"]
    for (measure, score), part in paired.groupby(["measure", "score"], sort=False):
        cells = []
        for found in part.itertuples():
            if not found.n:
                cells.append("undefined")
                continue
            text = f"{_digits(found.mean, signed=True)} [{_digits(found.low)}, {_digits(found.high)}]"
            clear = found.low > 0 or found.high < 0
            cells.append((f"**{text}**" if clear else text) + f", {found.larger} of {found.n}")
        lines.append(_row([measure, _name(score), *cells]))
    return lines


def _target_table(frame: pd.DataFrame, kinds: Sequence[str]) -> list[str]:
    lines = ["How much of the predicted target lies in units that can be removed, and what these units carry: the sum"]
    lines[0] += " of their values as a share of the score's difference between all and no units (median over cases)."
    scores = list(dict.fromkeys(frame["score"]))
    heads = ["units", "target in units", "units that hold target", "target share of their voxels"]
    lines += ["", _row([*heads, *[f"carried, {_name(s)}" for s in scores]]), "|---" * (4 + len(scores)) + "|"]
    done = frame[frame["status"] == "done"]
    for kind in kinds:
        own = done[done["kind"] == kind]
        if own.empty:
            continue
        one = own.drop_duplicates("case")
        row = [kind, f"{one['target_covered'].median():.0%}", f"{one['target_units'].median():.3g}"]
        row.append(f"{one['target_purity'].median():.2%}" if one["target_purity"].notna().any() else "none")
        for score in scores:
            part = own[own["score"] == score]
            drop = (part["full"] - part["empty"]).to_numpy(np.float64)
            value = part["target_value"].to_numpy(np.float64)
            shares = value[drop != 0] / drop[drop != 0]
            row.append(f"{np.median(shares):.0%}" if len(shares) else "undefined")
        lines.append(_row(row))
    return lines


def _cost_table(cost: pd.DataFrame, kinds: Sequence[str]) -> list[str]:
    lines = ["Mean and standard deviation over cases. Hit rate: the share of the naive passes that did not run."]
    heads = ["units", "naive passes", "published cache", "run", "hit rate", "hit rate of the published cache"]
    heads += ["network seconds", "seconds a coalition", "passes for the curves", "seconds for the curves"]
    lines += ["", _row(heads), "|---" * len(heads) + "|"]
    columns: list[tuple[str, Callable[[float], str]]] = [(n, _whole) for n in ("naive", "published_cache", "run")]
    columns += [("hit_rate", _percent), ("published_hit_rate", _percent), ("seconds_network", _whole)]
    columns += [("seconds_per_coalition", _digits), ("curve_forwards", _whole), ("seconds_curves", _whole)]
    for kind in kinds:
        own = cost[cost["kind"] == kind] if not cost.empty else cost
        if own.empty:
            continue
        cells = []
        for column, write in columns:
            spread = f" ± {write(float(own[column].std(ddof=1)))}" if len(own) > 1 else ""
            cells.append(f"{write(float(own[column].mean()))}{spread}")
        lines.append(_row([kind, *cells]))
    return lines


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def _range(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _name(score: str) -> str:
    return _SCORE_NAMES.get(score, SCORES[score].label if score in SCORES else score)


def _digits(value: float, signed: bool = False) -> str:
    if not np.isfinite(value):
        return "none"
    return number(float(value), 3, signed=signed).replace("\N{MINUS SIGN}", "-")


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"
