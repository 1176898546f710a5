# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Tables of a study: every result, means as paper 000's Table I, paired comparisons, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from monai_segshap.study.records import StudyRecord, curve_table
from monai_segshap.study.statistics import mean_interval, paired_differences

__all__ = ["MEASURES", "all_curves", "comparisons", "costs", "means", "results"]

#: Columns of the results that are compared, with the names of paper 000 (nABPC and nAOPC are normalized by the two ends
#: of the curve); the last one is that of Edin et al. (2024), between the worst and the best order.
MEASURES: dict[str, str] = {
    "abpc": "ABPC",
    "abpc_endpoint_normalized": "nABPC",
    "aopc": "AOPC",
    "aopc_endpoint_normalized": "nAOPC",
    "naopc": "NAOPC",
}
#: Differences below this share of the largest value are rounding of a network in single precision.
_ROUNDING = 1e-6
_OF_CURVES = (*MEASURES, "sufficiency", "lower", "upper", "bounds", "random_abpc", "random_abpc_sd")


def results(records: Sequence[StudyRecord], scores: Sequence[str] | None = None) -> pd.DataFrame:
    """One row for each case, kind of units and score.

    Failed pairs have a row for each score, too, with "status" failed, the "reason", and NaN in place of numbers.

    Args:
        records: of a study.
        scores: default those of the first result.

    Returns:
        "case", "kind", "score", "status", "reason"; "units", "visible_units", "method", "evaluations", "converged",
        "full" and "empty" (the score with all units, and with no visible one); the `MEASURES`, "sufficiency", "lower",
        "upper", "bounds"; "target_voxels", "target_covered", "target_units", "target_purity", "target_value", see
        `StudyRecord`; "curve_evaluations", "curve_reused", "notes".
    """
    done = [record for record in records if not record.failed]
    names = list(scores) if scores is not None else list(done[0].curves) if done else []
    rows = [_row(record, score) for record in records for score in names]
    return pd.DataFrame(rows)


def _row(record: StudyRecord, score: str) -> dict[str, Any]:
    row: dict[str, Any] = {"case": record.case, "kind": record.kind, "score": score}
    row |= {"status": "failed" if record.failed else "done", "reason": record.reason}
    if record.failed:
        return row | dict.fromkeys(MEASURES, math.nan)
    made, summary, target = record.explanation, record.curves[score]["summary"], record.target
    row |= {"units": made["units"]["count"], "visible_units": made["units"]["visible"], "method": made["method"]}
    row |= {"evaluations": made["evaluations"], "converged": made["convergence"].get(score)}
    row |= {"full": made["scores"][score]["full"], "empty": made["scores"][score]["empty"]}
    row |= {name: _number(summary[name]) for name in _OF_CURVES if name in summary}
    row |= {f"target_{name}": _number(target[name]) for name in ("voxels", "covered", "units", "purity")}
    row |= {"target_value": _number(target["value"][score])}
    row |= {"curve_evaluations": summary["evaluations"], "curve_reused": summary["reused"]}
    unbounded = ("naopc", "sufficiency") if summary["bounds"] == "none" else ()
    notes = {name: why for name, why in summary["notes"].items() if name not in unbounded}
    return row | {"notes": "; ".join(f"{name}: {why}" for name, why in notes.items())}


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def all_curves(records: Sequence[StudyRecord]) -> pd.DataFrame:
    """Every step of every curve: case, kind, score, and the columns of `curve_table`."""
    parts = [
        curve_table(record, score).assign(case=record.case, kind=record.kind, score=score)
        for record in records
        if not record.failed
        for score in record.curves
    ]
    if not parts:
        return pd.DataFrame()
    frame = pd.concat(parts, ignore_index=True)
    first = ["case", "kind", "score"]
    return frame[[*first, *[column for column in frame if column not in first]]]


def means(frame: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Means over cases with 95 % bootstrap intervals, in the layout of paper 000's Table I.

    Args:
        frame: of `results`.
        resamples: see `mean_interval`.
        seed: see `mean_interval`.

    Returns:
        one row for each measure and score ("measure", "score"); for each kind "KIND" (the mean), "KIND_low",
        "KIND_high", "KIND_median", "KIND_n" (cases with a number) and "KIND_nan" (cases without one, failed ones
        included). A measure that no case has is left out.
    """
    rows = []
    for column, name in MEASURES.items():
        if frame.empty or not np.isfinite(frame[column].to_numpy(np.float64)).any():
            continue
        for score in dict.fromkeys(frame["score"]):
            row: dict[str, Any] = {"measure": name, "score": score}
            for kind in dict.fromkeys(frame["kind"]):
                chosen = frame[(frame["score"] == score) & (frame["kind"] == kind)]
                found = mean_interval(chosen[column].to_numpy(np.float64), resamples, seed)
                row |= {kind: found.mean, f"{kind}_low": found.low, f"{kind}_high": found.high}
                row |= {f"{kind}_median": found.median, f"{kind}_n": found.n, f"{kind}_nan": found.n_nan}
            rows.append(row)
    return pd.DataFrame(rows)


def comparisons(frame: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Differences between kinds of units, case by case, for each measure and score.

    Args:
        frame: of `results`.
        resamples: see `mean_interval`.
        seed: see `mean_interval`.

    Returns:
        "measure", "score", "first", "second" (kinds), "mean", "low", "high", "median" of ``second - first`` over the
        cases in which both are numbers, "n" of these cases, "larger" (in how many second is above first by more than
        rounding), and "differences", one for each case.
    """
    rows = []
    kinds = list(dict.fromkeys(frame["kind"])) if not frame.empty else []
    for column, name in MEASURES.items():
        if frame.empty or not np.isfinite(frame[column].to_numpy(np.float64)).any():
            continue
        for score in dict.fromkeys(frame["score"]):
            wide = frame[frame["score"] == score].pivot(index="case", columns="kind", values=column)
            for first, second in combinations(kinds, 2):
                found = paired_differences(wide[first].to_numpy(np.float64), wide[second].to_numpy(np.float64))
                mean = mean_interval(found, resamples, seed)
                row: dict[str, Any] = {"measure": name, "score": score, "first": first, "second": second}
                row |= {"mean": mean.mean, "low": mean.low, "high": mean.high, "median": mean.median, "n": mean.n}
                rounding = _ROUNDING * float(np.nanmax(np.abs(wide[[first, second]].to_numpy(np.float64)), initial=0.0))
                rows.append(row | {"larger": int((found > rounding).sum()), "differences": found.tolist()})
    return pd.DataFrame(rows)


def costs(records: Sequence[StudyRecord]) -> pd.DataFrame:
    """Network passes, hit rates and seconds of each finished case and kind (paper 000, section V-C).

    Returns:
        "case", "kind", "units", "visible_units", "evaluations"; "naive", "published_cache" and "run": passes for the
        explanation, see `monai_segshap.inferers.ForwardCounts`; "hit_rate", 1 - run / naive, and "published_hit_rate",
        1 - published_cache / naive; "calibration"; "curve_forwards"; "seconds_network" and "seconds_explanation";
        "seconds_per_coalition"; "seconds_curves". Seconds are those of the session that finished the pair.
    """
    rows = []
    for record in records:
        if record.failed:
            continue
        made, passes = record.explanation, record.explanation["forwards"]
        row: dict[str, Any] = {"case": record.case, "kind": record.kind, "units": made["units"]["count"]}
        row |= {"visible_units": made["units"]["visible"], "evaluations": made["evaluations"]}
        row |= {name: passes[name] for name in ("naive", "published_cache", "run")}
        row |= {"hit_rate": _saved(passes, "run"), "published_hit_rate": _saved(passes, "published_cache")}
        row |= {"calibration": passes["calibration"], "curve_forwards": record.curve_forwards}
        spent = record.seconds["explanation"]
        row |= {"seconds_network": made["seconds"]["network"], "seconds_explanation": spent}
        row |= {"seconds_per_coalition": made["seconds"]["network"] / made["evaluations"]}
        rows.append(row | {"seconds_curves": record.seconds["curves"]})
    return pd.DataFrame(rows)


def _saved(passes: Mapping[str, int], name: str) -> float:
    return 1.0 - passes[name] / passes["naive"] if passes["naive"] else math.nan
