# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The tables of `end_to_end.py`."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from end_to_end_cases import first_region, first_rows
from end_to_end_measuring import Measured, in_fresh_process, planned_counts, region_passes
from end_to_end_methods import METHODS, SCORES, Case, make_sweep

from monai_segshap.inferers import monai_window_plan
from monai_segshap.numerics import NumericMode

#: Coalitions that a real run of this size would evaluate; passes for them are planned, not run.
REAL_BUDGET = 1024
_LABELS = {
    "plain": "(a) plain inferer",
    "published": "(b) published cache",
    "captum": "(c) captum KernelShap",
    "ours": "(d) ours",
}


def compare(case: Case, device: str) -> dict[str, Measured]:
    """Measure all methods on one case."""
    methods = [m for m in METHODS if m != "captum" or _version("captum") != "absent"]
    return {m: in_fresh_process(m, case, device) for m in methods}


def report_setting(case: Case, found: Mapping[str, Measured]) -> str:
    """The table of the methods that compute as the network is deployed."""
    plain = found["plain"]
    plan = monai_window_plan(case.inferer(), torch.from_numpy(case.image))
    n_windows, touching = plan.n_windows, len(plan.touching(case.boxes))
    lines = [
        f"### {case.name}: {case.rows.shape[1]} visible units, {len(case.rows)} coalitions, {n_windows} windows, "
        f"{touching} of them touch the region",
        "",
        "| method | time / (a) | passes / (a) | passes (calibration, on top) | seconds | outside the network | "
        "peak MiB (of these, added) | largest difference of scores to (a) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, label in _LABELS.items():
        if name not in found:
            continue
        m = found[name]
        if name == "captum":
            same = np.abs(m.scores[:2] - plain.scores[:2, :1]).max()
            difference = f"{same:.1e} (full and empty; other draws)"
        else:
            difference = f"{m.difference(plain):.1e}"
        lines.append(
            f"| {label} | {m.seconds / plain.seconds:.2f} | {m.passes / plain.passes:.2f} | {_passes(m)} | "
            f"{m.seconds:.1f} | {100 * m.outside:.1f} % | {m.peak_mib:.0f} ({m.added_mib:.0f}) | {difference} |"
        )
    bare = make_sweep(torch.nn.Identity(), case).planned.published_cache
    counts = planned_counts(case, REAL_BUDGET)
    whole = n_windows * REAL_BUDGET
    lines += [
        "",
        f"(b) without the fillers of its batches: {bare} passes ({bare / plain.passes:.2f} of (a)).",
        f"Planned, not run, for {REAL_BUDGET} coalitions of the same case: (a) {whole} passes, (b) "
        f"{counts.published_cache} ({counts.published_cache / whole:.2f}), (d) {counts.planned} "
        f"({counts.planned / whole:.3f} of (a), {counts.planned / counts.published_cache:.3f} of (b)).",
        "",
    ]
    return "\n".join(lines)


def report_fast(settings: Sequence[tuple[Case, Mapping[str, Measured]]]) -> str:
    """(e), which computes in another numeric mode, and how far its scores are from the deployed network's."""
    mode = NumericMode.parse("fast").describe().removeprefix("fast: ")
    lines = [
        "### (e), another numeric mode: not the deployed network's numbers",
        "",
        f"The sweep of (d) with `numerics='fast'` ({mode}). Its calibration also runs a batch in the exact mode. "
        "*In the prediction*: largest difference of a logit in the region, nothing removed. The spread of a score is "
        "its largest less its smallest value over the coalitions in (a).",
        "",
        "| units | time / (a) | time / (d) | seconds a window / (d) | passes (calibration, on top) | "
        "peak MiB (of these, added) | in the prediction | "
        + " | ".join(f"largest difference to (a) of {name} (spread)" for name in SCORES)
        + " |",
        "|---" * (7 + len(SCORES)) + "|",
    ]
    for case, found in settings:
        plain, exact, fast = found["plain"], found["ours"], found["fast"]
        differences = np.abs(fast.scores - plain.scores).max(axis=(0, 1))
        spreads = np.ptp(plain.scores, axis=0).max(axis=0)
        window = fast.sweep.seconds_per_window / exact.sweep.seconds_per_window
        lines.append(
            f"| {case.name} | {fast.seconds / plain.seconds:.2f} | {fast.seconds / exact.seconds:.2f} | {window:.2f} | "
            f"{_passes(fast)} | {fast.peak_mib:.0f} ({fast.added_mib:.0f}) | {fast.sweep.prediction_difference:.1e} | "
            + " | ".join(f"{d:.1e} ({s:.1e})" for d, s in zip(differences, spreads, strict=True))
            + " |"
        )
    return "\n".join([*lines, ""])


def report_batches_of_one(case: Case, device: str, coalitions: int) -> str:
    """What `batch_size` does where the deployed inferer sends one window at a time."""
    rows = first_rows(case.rows.shape[1], coalitions)
    alone = replace(case, rows=rows, windows={**case.windows, "sw_batch_size": 1})
    few = replace(alone, rows=rows[: len(case.rows)])
    choices = ("library", "auto", "fastest")
    found = {choice: in_fresh_process("ours", alone, device, batch_size=choice) for choice in choices}
    plain, library = in_fresh_process("plain", few, device), found["library"]
    ratio = plain.network_seconds / plain.passes / library.sweep.seconds_per_window
    exact = float(np.abs(library.scores[: len(few.rows)] - plain.scores).max())
    lines = [
        "### Batches of one",
        "",
        f"{case.name}, {len(rows)} coalitions, the deployed inferer with `sw_batch_size=1`; (d) with each "
        f"`batch_size`. In 'library' batches the scores of the first {len(few.rows)} coalitions differ by at most "
        f"{exact:.1e} from (a); a window of (a) takes {ratio:.2f} times as long.",
        "",
        "| batch_size | windows a batch | seconds a window / library | time / library | passes (calibration, on top) | "
        "the library's bits | largest difference of a logit in the calibration | of scores to 'library' |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for choice, m in found.items():
        facts = m.sweep
        lines.append(
            f"| {choice} | {facts.calibration.batch_sizes[1]} | "
            f"{facts.seconds_per_window / library.sweep.seconds_per_window:.2f} | {m.seconds / library.seconds:.2f} | "
            f"{_passes(m)} | {'yes' if facts.calibration.same_bits else 'no'} | "
            f"{facts.calibration.largest_difference:.1e} | {m.difference(library):.1e} |"
        )
    return "\n".join([*lines, ""])


def report_memory(case: Case, device: str, coalitions: int) -> str:
    """What a bound for the logits held costs in passes and saves in memory."""
    everything = np.ones(case.labels.shape, dtype=np.bool_)
    whole = replace(case, regions=(everything,), rows=first_rows(case.rows.shape[1], coalitions))
    unlimited = in_fresh_process("ours", whole, device, max_bytes=2**62)
    most = unlimited.sweep.planned_peak_bytes
    found = {"none": (None, unlimited)}
    for part in (4, 20):
        found[f"1/{part}"] = (most // part, in_fresh_process("ours", whole, device, max_bytes=most // part))
    one = max(plan.jobs.peak_bytes for _, plan in make_sweep(torch.nn.Identity(), whole).chunks[:1])
    kept = all(m.sweep.held_bytes <= m.sweep.planned_peak_bytes for _, m in found.values())
    same = all(m.difference(unlimited) == 0.0 for _, m in found.values())
    lines = [
        "### Memory bound",
        "",
        f"{case.name}, {len(whole.rows)} coalitions, and the whole volume as region, so that there are many logits to "
        f"hold: those of one coalition are {_mib(one)} MiB. `max_bytes` bounds what is kept from one coalition to the "
        "next, the coalitions in work come on top: the planned peak has both. The peak measured is at most the one "
        f"planned: **{'yes' if kept else 'no'}**. Scores are the same in all rows: **{'yes' if same else 'no'}**.",
        "",
        "| bound / unlimited peak | bound, MiB | passes | passes / unlimited | time / unlimited | planned peak of "
        "logits, MiB | measured, MiB | memory added, MiB | largest difference of scores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (bound, m) in found.items():
        lines.append(
            f"| {name} | {'none' if bound is None else _mib(bound)} | {m.passes} | {m.passes / unlimited.passes:.2f} | "
            f"{m.seconds / unlimited.seconds:.2f} | {_mib(m.sweep.planned_peak_bytes)} | {_mib(m.sweep.held_bytes)} | "
            f"{m.added_mib:.0f} | {m.difference(unlimited):.1e} |"
        )
    return "\n".join([*lines, ""])


def report_slow(case: Case, device: str, seconds_per_window: float) -> str:
    """Time outside a slow network."""
    m = in_fresh_process("ours", case, device, seconds_per_window)
    size = " x ".join(str(n) for n in case.windows["roi_size"])
    verdict = "met" if m.outside <= 0.05 else "missed"
    return "\n".join(
        [
            f"### A network of {seconds_per_window:g} s a window",
            "",
            f"The demo network on windows of {size} voxels, made to last {seconds_per_window:g} s a window; volume "
            f"{' x '.join(str(n) for n in case.labels.shape)}, region: the spleen's box, {int(case.regions[0].sum())} "
            f"voxels, {len(case.rows)} coalitions of {case.rows.shape[1]} organs, four scores.",
            "",
            f"(d) {m.passes} passes and {m.calibration_passes} of calibration in {m.seconds:.1f} s, "
            f"**{100 * m.outside:.2f} % outside the network** (goal: at most 5 %, {verdict}), planning and calibration "
            f"included; a window really took {m.network_seconds / (m.passes + m.calibration_passes):.2f} s. Peak "
            f"{m.peak_mib:.0f} MiB, {m.added_mib:.0f} added.",
            "",
        ]
    )


def report_regions(cases: Sequence[Case], device: str) -> str:
    """One region against three that overlap, in passes; the shared scores must be the same."""
    lines = [
        "### Four scores and three overlapping regions in one sweep",
        "",
        "The region, the same 7 voxels wider in the plane on each side, and its box moved by half its size. The number "
        "of scores changes no pass. *Difference*: largest one between the first region's scores alone and shared. "
        "Coalitions are of the units that any of the three regions sees, so the single region's passes differ a little "
        "from those above.",
        "",
        "| units | windows that touch one, three | coalitions | passes for one score of one region | for four scores "
        "of three regions | ratio (goal: below 1.6) | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        plan = monai_window_plan(case.inferer(), torch.from_numpy(case.image))
        touched = f"{len(plan.touching(case.boxes[:1]))}, {len(plan.touching(case.boxes))}"
        one, three = (in_fresh_process("ours", c, device) for c in (first_region(case), case))
        difference = f"{np.abs(three.scores[:, :1] - one.scores).max():.1e}"
        planned = region_passes(case, REAL_BUDGET)
        for count, a, b, shown in (
            (f"{len(case.rows)}, run", one.passes, three.passes, difference),
            (f"{REAL_BUDGET}, planned", *planned, "not run"),
        ):
            lines.append(f"| {case.name} | {touched} | {count} | {a} | {b} | {b / a:.2f} | {shown} |")
    return "\n".join([*lines, ""])


def _passes(m: Measured) -> str:
    return f"{m.passes} ({m.calibration_passes})" if m.facts is not None else str(m.passes)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def heading(device: str) -> str:
    """The machine and the versions."""
    on = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"{os.cpu_count()} CPU cores, one thread (shared)"
    )
    packages = ("torch", "monai", "captum", "scikit-learn", "numpy")
    versions = ", ".join(f"{p} {_version(p)}" for p in packages)
    return f"## On {on}\n\n{time.strftime('%Y-%m-%d')}; Python {platform.python_version()}, {versions}.\n"
