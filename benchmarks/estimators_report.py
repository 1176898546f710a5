# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Tables, goals and the picture of `estimators.py`."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from estimators_methods import OWN, PAIRED
from estimators_runs import Result, Setting

_PACKAGES = ("numpy", "scipy", "torch", "monai", "captum", "shap")
_SHORT = {"gaussian process": "process", "gaussian process, blocks": "process, blocks"}
BLOCKS = PAIRED[-1]

Games = Mapping[str, Sequence[Result]]
Real = Mapping[str, Mapping[int, Result]]


def report(settings: Sequence[Setting], games: Games, real: Real, demo: Real, has_ct: bool, reading: str) -> str:
    """Everything as Markdown."""
    no_ct = "No CT was found (`--ct`), so this section was not run."
    lines = [
        "# Estimators: error against evaluations",
        "",
        "`python benchmarks/estimators.py --tables FOLDER` writes this file and `estimators.png`.",
        "",
        *_what_was_run(games, real, demo, has_ct),
        "",
        "## Goals",
        "",
        *_goals(settings, games, real),
        "",
        reading,
        "",
        "## Games with known values",
        "",
        *(_games_table(settings, games) if games else ["Not run."]),
        "",
        "## The real CT",
        "",
        *(_real_tables(real) if real else ["Not run." if has_ct else no_ct]),
        "",
        "## The demo phantom",
        "",
        *(_real_tables(demo) if demo else ["Not run."]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _what_was_run(games: Games, real: Real, demo: Real, has_ct: bool) -> list[str]:
    parts = {
        "games with known values": [r for found in games.values() for r in found],
        "CT, networks and regions of `shared/ct`": [r for found in real.values() for r in found.values()],
        "demo phantom": [r for found in demo.values() for r in found.values()],
    }
    on = [
        f"{len(games)} families, {max((len(f) for f in games.values()), default=0)} seeds each",
        _tables(real) or ("not run" if has_ct else "not run: no CT at the place given"),
        _tables(demo) or "not run",
    ]
    lines = ["## What was run", "", "| what | on what | when | CPU seconds of the estimators |", "|---|---|---|---|"]
    for (what, results), where in zip(parts.items(), on, strict=True):
        dates = sorted({r["date"] for r in results})
        when = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "-"
        lines.append(f"| {what} | {where} | {when} | {sum(r['seconds'] for r in results):.0f} |")
    versions = ", ".join(f"{p} {_version(p)}" for p in _PACKAGES)
    return [*lines, "", f"One CPU thread of a shared machine; Python {platform.python_version()}, {versions}."]


def _tables(real: Real) -> str:
    """Units and evaluations of each table and region."""
    found = []
    for key, results in real.items():
        if results:
            one = next(iter(results.values()))
            found.append(f"{key}: {one['units']} units, {2 * one['pairs']} evaluations")
    return "; ".join(found)


def _cell(value: float, note: str = "") -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return (f"{value:.{digits}f}" if value > 0 else "< 0") + note


def medians(results: Sequence[Result], budget: int, method: str, what: str = "error") -> float:
    """Median over the seeds; NaN where the method did not run."""
    found = [r["budgets"][str(budget)].get(method, {}).get(what) for r in results]
    known = [x for x in found if x is not None]
    return float(np.median(known)) if known else float("nan")


def _games_table(settings: Sequence[Setting], games: Games) -> list[str]:
    names = (*PAIRED, *OWN)
    lines = [
        "Median relative L2 error over seeds, each with a game and coalitions of its own; in brackets the percentage "
        'of units whose value lies in the stated 95 % interval (mean over seeds). Bold: what `method="auto"` takes. '
        "-: the method can not use so few coalitions, or does not apply, or is not installed.",
        "",
        "| game | evaluations | " + " | ".join(_SHORT.get(n, n) for n in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for setting in settings:
        results = games[setting.name]
        for budget in setting.budgets:
            cells = []
            for name in names:
                error = medians(results, budget, name)
                covered = [r["budgets"][str(budget)].get(name, {}).get("coverage") for r in results]
                known = [x for x in covered if x is not None]
                note = f" ({100 * np.mean(known):.0f})" if known else ""
                text = "-" if np.isnan(error) else "0 (exact)" if error < 1e-9 else _cell(error, note)
                cells.append(f"**{text}**" if name == setting.default else text)
            lines.append(f"| {setting.name} | {budget} | " + " | ".join(cells) + " |")
    truth = [r["truth_error"] for s in settings if s.ratio for r in games[s.name]]
    if truth:
        lines += ["", f"The Dice values are known to {100 * max(truth):.1f} % (one standard error)."]
    return lines


def _root(squared: float) -> float:
    return float(np.sqrt(max(squared, 0.0)))


def real_error(real: Real, key: str, multiple: int, method: str, score: str) -> float:
    """Relative error; NaN where it was not run."""
    result = real.get(key, {}).get(multiple)
    squared = {} if result is None else result["squared_error"].get(method, {})
    return _root(squared[score]) if score in squared else float("nan")


def _real_tables(real: Real) -> list[str]:
    lines = [
        "Relative L2 error, in brackets the stated one (root of the sum of the squared standard errors, over the norm "
        "of the values). *Reference*: error of the independent estimate that judges, for A and B together; errors have "
        "no bias from it, but an error much below it is uncertain. *Same ten*: units among the ten with the largest "
        "values that two disjoint sets of coalitions share, for the same estimator.",
        "",
    ]
    for key, results in real.items():
        if not results:
            lines += [f"### {key}", "", "Too few coalitions in the table.", ""]
            continue
        one = next(iter(results.values()))
        lines += [
            f"### {key}, {one['units']} units",
            "",
            "| score | evaluations (chunks) | " + " | ".join(_SHORT.get(n, n) for n in PAIRED) + " | reference |",
            "|---|---|" + "---|" * (len(PAIRED) + 1),
        ]
        for score in one["reference"]:
            lines += [_real_row(score, multiple, result) for multiple, result in results.items()]
        lines += ["", *_overlaps(results), ""]
    return lines


def _real_row(score: str, multiple: int, result: Result) -> str:
    cells = []
    for name in PAIRED:
        if name in result["squared_error"]:
            stated = f" ({_cell(result['stated'][name][score])})"
            cells.append(_cell(_root(result["squared_error"][name][score]), stated))
        else:
            cells.append("-")
    label = f"{multiple}M = {result['evaluations']} ({result['chunks']})"
    return f"| {score} | {label} | " + " | ".join(cells) + f" | {_cell(result['reference'][score])} |"


def _overlaps(results: Mapping[int, Result]) -> list[str]:
    found = results.get(4, {}).get("overlap")
    if not found:
        return ["Same ten at 4M: not run, too few coalitions."]
    scores = list(next(iter(found.values())))
    lines = ["| same ten at 4M | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores)]
    for name in PAIRED:
        if name in found:
            lines.append(f"| {_SHORT.get(name, name)} | " + " | ".join(f"{found[name][s]:.0f}" for s in scores) + " |")
    return lines


def _verdict(holds: bool | None) -> str:
    return "not run" if holds is None else "met" if holds else "**missed**"


def _line(goal: str, found: float, most: float) -> str:
    unknown = bool(np.isnan(found))
    return f"| {goal} | {'-' if unknown else f'{found:.3f}'} | {_verdict(None if unknown else found <= most)} |"


def _goals(settings: Sequence[Setting], games: Games, real: Real) -> list[str]:
    """One line for each goal."""
    lines = ["| goal | found | |", "|---|---|---|"]
    for setting in settings:
        if setting.ratio or setting.name not in games:
            continue
        results, most = games[setting.name], setting.budgets[-1]
        if not setting.local and setting.n_units in (64, 200):
            ratio = medians(results, most, setting.default) / medians(results, most, "leverage")
            lines.append(_line(f"{setting.name}, 8M: error of the default / plain leverage at most 0.6", ratio, 0.6))
        if setting.local and setting.n_units == 400:
            error = medians(results, most, setting.default)
            lines.append(_line(f"{setting.name}, {most} evaluations: error of the default at most 0.1", error, 0.1))
    for key in real:
        for region, score, most in _REAL_GOALS:
            if region in key:
                lines += _real_goal(real, key, score, most)
    return lines


_REAL_GOALS = (("spleen", "tp", 0.12), ("spleen", "dice", 0.17), ("false positive", "mass", 0.20))


def _real_goal(real: Real, key: str, score: str, most: float) -> Iterable[str]:
    error = real_error(real, key, 4, BLOCKS, score)
    yield _line(f"{key}: {score} at 4M at most {most:.2f}", error, most)
    yield _line(
        f"{key}: {score} at 4M at most 0.3 of plain leverage", error / real_error(real, key, 4, "leverage", score), 0.3
    )
    shared = real.get(key, {}).get(4, {}).get("overlap", {}).get(BLOCKS, {}).get(score)
    holds = None if shared is None else shared >= 8
    text = "-" if shared is None else f"{shared:.0f}"
    goal = f"{key}: {score} at 4M, at least 8 of the ten largest units the same in two sets"
    yield f"| {goal} | {text} | {_verdict(holds)} |"


_COLORS = {
    "leverage": "#777777",
    "kernelshap": "#1f77b4",
    "ridge": "#2ca02c",
    "gaussian process": "#ff9f40",
    "gaussian process, blocks": "#d62728",
    "walks": "#9467bd",
    "published": "#8c564b",
    "captum": "#17a2b8",
    "shap": "#e377c2",
}


def _curves(settings: Sequence[Setting], games: Games, real: Real) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """For each panel and method the points (evaluations, error)."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for setting in settings:
        if setting.name in games:
            panels[setting.name] = {
                name: [(float(b), medians(games[setting.name], b, name)) for b in setting.budgets] for name in _COLORS
            }
    for key, results in real.items():
        for score in ("mass", "count") if "false positive" in key else ("tp", "dice"):
            panels[f"{key}\n{score}"] = {
                name: [(float(r["evaluations"]), real_error(real, key, m, name, score)) for m, r in results.items()]
                for name in PAIRED
            }
    return panels


def picture(settings: Sequence[Setting], games: Games, real: Real, path: Path) -> None:
    """Relative error against evaluations, one panel for each game."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    panels = {
        title: curves
        for title, curves in _curves(settings, games, real).items()
        if any(np.isfinite(y) for points in curves.values() for _, y in points)
    }
    columns = 4
    rows = -(-(len(panels) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.0 * columns, 3.1 * rows), squeeze=False)
    for axis in axes.ravel()[len(panels) :]:
        axis.axis("off")
    for axis, (title, curves) in zip(axes.ravel(), panels.items(), strict=False):
        for name, points in curves.items():
            known = [(x, y) for x, y in points if np.isfinite(y) and y > 1e-9]
            if known:
                wide = 2.4 if name.startswith("gaussian") else 1.3
                axis.plot(*zip(*known, strict=True), "o-", color=_COLORS[name], lw=wide, ms=4, label=name)
        axis.set(xscale="log", yscale="log", ylim=(0.003, 12.0))
        axis.set_title(title, fontsize=9)
        ticks = sorted({x for points in curves.values() for x, _ in points})
        axis.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator(), minor_formatter=NullFormatter())
        axis.set_xticks(ticks, [f"{t:.0f}" for t in ticks])
        axis.set_yticks(
            [0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10], ["0.003", "0.01", "0.03", "0.1", "0.3", "1", "3", "10"]
        )
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("relative L2 error")
    handles = [plt.Line2D([], [], color=c, marker="o", ms=4, label=n) for n, c in _COLORS.items()]
    figure.legend(
        handles=handles, loc="lower right", fontsize=10, ncols=2, title="evaluations on the x axis", frameon=False
    )
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
