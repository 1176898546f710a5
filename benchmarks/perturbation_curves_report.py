# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The tables of `perturbation_curves.py`."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
from perturbation_curves_methods import METHODS, METRICS
from perturbation_curves_reading import HOW, READING

_PACKAGES = ("torch", "monai", "captum", "scikit-learn", "numpy")
_BOOTSTRAPS = 10_000
OURS, PEER = "auto", "captum"


def report(found: Sequence[Mapping[str, Any]], seeds: Mapping[str, int], quick: bool = False) -> str:
    """Everything as Markdown.

    Args:
        found: facts and results of each question, see `study`.
        seeds: draws of each method.
        quick: of tiny games.
    """
    results = results_table(found)
    draws = ", ".join(f"{name} {count}" for name, count in seeds.items())
    lines = [
        "# Perturbation curves: our attributions and captum's from as many coalitions",
        "",
        "`python benchmarks/perturbation_curves.py --results FOLDER` writes this file.",
        "",
        HOW.strip(),
        "",
        "## Reading",
        "",
        "A quick run: tiny games by hand." if quick else READING.strip(),
        "",
        "## What was run",
        "",
        f"{time.strftime('%Y-%m-%d')}, one CPU thread of a shared machine; {_versions()}.",
        f"Draws of each method: {draws}; random orders go in both directions, and where auto is kernelshap its",
        "draws are that method's. Draws depend on seed and number of units; cases with as many units have other seeds.",
        "",
        *_runs([f["facts"] for f in found]),
        "",
    ]
    for (kind, n), part in _settings(results):
        lines += [f"## {kind}, {n}", "", *_means(part), "", *_cases(part), ""]
    return "\n".join(lines).rstrip() + "\n"


def results_table(found: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row an attribution and score; ``setting`` is the number of coalitions, or that number for each unit.

    An nABPC whose normalizer is negative is left out (NaN): its sign would be the opposite of that of ABPC. Where auto
    is one of the methods by name, its draws are that method's, too.
    """
    rows = []
    for question in found:
        facts = question["facts"]
        fixed = len({r["n"] for r in question["results"]}) > 1
        for row in question["results"]:
            per_unit = f"{row['n'] / facts['n_units']:g} evaluations a unit"
            rows.append({**row, "setting": f"{row['n']} evaluations" if fixed else per_unit})
    table = pd.DataFrame(rows)
    table.loc[table["drop"] < 0, "nabpc"] = np.nan
    named = table[(table["method"] == OURS) & table["estimator"].isin(METHODS)]
    same = named.assign(method=named["estimator"])
    both = pd.concat([table, same], ignore_index=True)
    return both.drop_duplicates(["case", "kind", "score", "method", "n", "seed"], ignore_index=True)


def paired(part: pd.DataFrame, score: str, metric: str) -> pd.DataFrame:
    """Means over draws of ours and captum's, one row a case where both are defined: ours, captum, difference."""
    chosen = part[(part["score"] == score) & part["method"].isin((OURS, PEER))]
    means = chosen.groupby(["case", "method"])[metric].mean().unstack("method").reindex(columns=[OURS, PEER]).dropna()
    return means.assign(difference=means[OURS] - means[PEER])


def interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over cases; NaN for fewer than two."""
    if len(differences) < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(differences), size=(_BOOTSTRAPS, len(differences)))
    low, high = np.quantile(differences[chosen].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def at_least(part: pd.DataFrame, score: str, metric: str) -> tuple[int, int]:
    """Draws (case and seed) in which ours is at least captum's of the same number, and all that are defined."""
    chosen = part[(part["score"] == score) & part["method"].isin((OURS, PEER))]
    both = chosen.pivot_table(index=["case", "seed"], columns="method", values=metric).reindex(columns=[OURS, PEER])
    both = both.dropna()
    return int((both[OURS] >= both[PEER] - 1e-12).sum()), len(both)


def _settings(results: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    order = results.drop_duplicates(["kind", "setting"]).sort_values(["n"], kind="stable")
    kinds = list(dict.fromkeys(results["kind"]))
    found = [(str(r.kind), str(r.setting)) for kind in kinds for r in order[order["kind"] == kind].itertuples()]
    return [((k, s), results[(results["kind"] == k) & (results["setting"] == s)]) for k, s in found]


def _means(part: pd.DataFrame) -> list[str]:
    """Means over cases and draws, and the paired difference."""
    methods = [m for m in METHODS if m in set(part["method"])]
    known = part[part["method"] != "random"]
    distinct = known.groupby("method")["distinct"].mean().reindex([m for m in methods if m != "random"])
    chosen = ", ".join(sorted(set(part[part["method"] == OURS]["estimator"])))
    lines = [
        f"auto is {chosen} here. Different coalitions among the evaluated ones, on average: "
        + ", ".join(f"{name} {count:.0f}" for name, count in distinct.items())
        + f" of {known['asked'].mean():.0f}.",
        "",
        "| score | judged by | "
        + " | ".join(methods)
        + " | auto - captum (95 % interval) | cases with auto >= captum | draws |",
        "|---" * (len(methods) + 5) + "|",
    ]
    for score in dict.fromkeys(part["score"]):
        for metric, label in METRICS.items():
            of_score = part[part["score"] == score]
            cells = [_mean(of_score[of_score["method"] == m], metric) for m in methods]
            lines.append(f"| {score} | {label} | " + " | ".join([*cells, *_comparison(part, score, metric)]) + " |")
    return lines


def _mean(rows: pd.DataFrame, metric: str) -> str:
    """Mean over the cases; in brackets the standard deviation of draws within a case."""
    if rows[metric].notna().sum() == 0:
        return "-"
    by_case = rows.groupby("case")[metric]
    spread = np.sqrt(by_case.var(ddof=1).mean())
    mean = round(by_case.mean().mean(), 3) + 0.0  # no minus before zero
    return f"{mean:.3f}" + (f" ({spread:.3f})" if np.isfinite(spread) else "")


def _comparison(part: pd.DataFrame, score: str, metric: str) -> list[str]:
    pairs = paired(part, score, metric)
    if pairs.empty:
        return ["-", "0 of 0", "0 of 0"]
    difference = pairs["difference"].to_numpy()
    low, high = interval(difference)
    between = f" ({low:+.3f} to {high:+.3f})" if np.isfinite(low) else ""
    won, count = at_least(part, score, metric)
    cases = int((difference >= -1e-12).sum())
    return [
        f"{difference.mean():+.3f}{between}",
        f"{cases} of {len(pairs)}",
        f"{won} of {count}",
    ]


def _cases(part: pd.DataFrame) -> list[str]:
    """Ours / captum's of every case: nABPC, or ABPC where that is never defined."""
    scores = list(dict.fromkeys(part["score"]))
    metrics = {s: "nabpc" if not paired(part, s, "nabpc").empty else "abpc" for s in scores}
    lines = [
        "| case | " + " | ".join(f"{s}, {METRICS[metrics[s]]}: auto / captum" for s in scores) + " |",
        "|---" * (1 + len(scores)) + "|",
    ]
    pairs = {s: paired(part, s, metrics[s]) for s in scores}
    digits = {s: 4 if pairs[s].abs().to_numpy().max(initial=0) < 0.1 else 3 for s in scores}
    for case in dict.fromkeys(part["case"]):
        cells = []
        for s in scores:
            if case in pairs[s].index:
                row, d = pairs[s].loc[case], digits[s]
                cells.append(f"{row[OURS]:.{d}f} / {row[PEER]:.{d}f}")
            else:
                cells.append("-")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return lines


def _runs(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| case | units | visible units | voxels of the region | windows that touch it | coalitions for attributions | "
        "for curves, on top | network passes | seconds |",
        "|---" * 9 + "|",
    ]
    for f in facts:
        lines.append(
            f"| {f['case']} | {f['kind']} | {f['n_units']} | {f.get('voxels', '-')} | {f.get('windows', '-')} | "
            f"{f['sampled']} | {f['judged']} | {f['forwards']} | {f['seconds']:.0f} |"
        )
    total = sum(f["seconds"] for f in facts)
    passes = sum(f["forwards"] for f in facts)
    return [*lines, "", f"In all {passes} passes and {total / 60:.0f} minutes of one core."]


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    return ", ".join(found)
