# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The tables of `contrasts.py`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from contrasts_cases import same

HOW = """
Exact Shapley values of four MRI contrasts need a prediction for each of 2^4 = 16 coalitions. Removed contrasts are 0
after normalization, which is also what lies outside the brain, so a window of background has the same input whatever is
removed, and all such windows have the same input as any window with all contrasts removed.
`ContrastShapleyExplainer` runs each distinct input once.

- *naive*: every window of MONAI's grid for each of the 16 coalitions.
- *distinct*: different inputs among these, counted from the windows that MONAI's own inferer sends, without the
  package.
- *planned*, *run*: what the explainer announced before the first pass, and what went through the network for the
  coalitions, counted in the network's forward; the benchmark stops if they differ. They exceed *distinct* by the
  windows that fill up the last batches, and by a second empty window where the last batch of MONAI's inferer is smaller
  and stays so because the network's bits depend on the size of the batch.
- *calibration*: passes before the run, on top.
"""

READING = """
- All four contrasts of a case are cut to the same brain, so a window holds all of them or none. With W windows of
  which E hold none, *distinct* is 15 (W - E) + 1: a window with brain has 16 different inputs, one of which, nothing
  at all, is the same everywhere. There is nothing else to share, since no other two inputs are equal.
- Sharing matters for small windows in much air: 0.545 and 0.443 of the naive passes for windows of 40^3 in a file as
  it comes, 0.889 and 0.831 in the volume of 160 x 192 x 160. Windows of 96^3 and 128^3 always hold some brain, and
  only the empty coalition is saved: 0.943 to 0.969, since a run ends with full batches.
- A file that is cut to the brain first costs less in any case (4,924 passes instead of 7,384 for 40^3, overlap 0.5),
  but has another grid of windows, hence another prediction. Explain what is deployed.
- Time follows the passes: 0.86 of the loop's CPU time with one thread, for 0.89 of its passes. With two threads both
  take about 30 s, and which is faster changes from run to run. A window of this small network takes 4 to 6 ms, and
  explainer and loop need 1.5 ms of one core beside it.
- The bundle's command needs 37 s for one case of 160 x 192 x 160 voxels and one network on two cores, 84 s for its
  eight phantoms and five networks, with all files and pictures.
- The loop adds about 40 % of the explainer's memory: it keeps no logits of windows and no replacement of the image.
"""


def report(found: Mapping[str, Any], quick: bool) -> str:
    """The results as Markdown."""
    large_cpu, large_loop_cpu = best(found, "explainer_cpu"), best(found, "loop_cpu")
    large, large_loop, demo, demo_loop = (best(found, name) for name in ("explainer", "loop", "demo", "demo_loop"))
    lines = [
        "# Contrasts: passes, seconds and memory of exact Shapley values",
        "",
        f"`python benchmarks/contrasts.py --results FOLDER{' --quick' if quick else ''}` writes this file.",
        HOW,
        "## Reading",
        READING,
        "## What was run",
        "",
        *_setting(found),
        "",
        "## Passes",
        "",
        *_counts(found["counts"]["result"]),
        "",
        f"## Seconds of {_times(large['shape'])} voxels, one network",
        "",
        *_seconds(large, large_loop),
        "",
        "The same with one thread, CPU seconds instead of wall time, so that other work on the machine counts little:",
        "",
        *_SECONDS,
        _line("`ContrastShapleyExplainer`", 16, large_cpu, large_loop_cpu["seconds"]),
        _line("loop over MONAI's inferer", 16, large_loop_cpu, large_loop_cpu["seconds"]),
        "",
        *_agreement(found["agreement"]["result"], demo["shape"]),
        "",
        f"## The bundle's folds: {_times(demo['shape'])} voxels, {demo['folds']} networks",
        "",
        *_demo(demo, demo_loop),
        "",
        "The bundle's own command, from its start to its last file, once each:",
        "",
        *_bundle(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def best(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The fastest of a part's repeats, with the seconds of all of them as ``all_seconds``."""
    runs = [part["result"] for key, part in found.items() if key.rpartition("_")[0] == name]
    return {**min(runs, key=lambda run: run["seconds"]), "all_seconds": sorted(run["seconds"] for run in runs)}


def _setting(found: Mapping[str, Any]) -> list[str]:
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{package} {version(package)}" for package in ("torch", "monai", "numpy")]
    dates = sorted({part["date"] for part in found.values()})
    explainer, demo = best(found, "explainer"), best(found, "demo")
    large, small = (f"{_times(one['shape'])} voxels of {one['voxel_mm']:g} mm" for one in (explainer, demo))
    return [
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}; {os.cpu_count()} CPU cores of a shared machine; "
        f"{', '.join(versions)}.",
        "",
        f"- `brain_phantom` at {large} (seed {explainer['seeds'][0]}, all three parts of a tumor) and at",
        f"  {small} (seeds {', '.join(map(str, demo['seeds']))}), normalized as in `bundles/contrast_shapley`.",
        "  *Brain's box* is cut to the brain, *as files come* has the background of a BraTS file.",
        "- Passes: a network of one 1 x 1 x 1 convolution, batches of 4.",
        "- Seconds: the networks of the bundle (UNet, channels 16, 24, 32, 40), windows of "
        f"{_times([explainer['roi']] * 3)}, overlap",
        "  0.5, batches of 4, five sub-regions, `dice_truth`. Wall time with two threads, each way in a process of its",
        "  own. *Load* is the mean number of running processes over a minute, before and after: up to 2 if nothing",
        "  else ran. *Added* is the peak of memory above what the process held with network and case loaded.",
    ]


def _counts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| volume | voxels | window | overlap | windows | of background | naive | distinct | planned | run "
        "| calibration | run / naive |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['volume']} | {_times(row['shape'])} | {row['roi']} | {row['overlap']} | {row['windows']:,} | "
            f"{row['background']:,} | {row['naive']:,} | {row['distinct']:,} | {row['planned']:,} | {row['run']:,} | "
            f"{row['calibration']} | {row['run'] / row['naive']:.3f} |"
        )
    return lines


_SECONDS = [
    "| way | coalitions | passes (calibration, on top) | seconds | seconds / loop | CPU seconds | seconds a pass "
    "| outside the network | peak MiB (of these, added) | load |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def _line(name: str, coalitions: int, numbers: Mapping[str, Any], loop_seconds: float, factor: int = 1) -> str:
    """One row; seconds and passes are multiplied by ``factor``."""
    seconds, cpu, passes = (numbers[key] * factor for key in ("seconds", "cpu_seconds", "passes"))
    calibration = numbers.get("calibration", 0)
    return (
        f"| {name} | {coalitions} | {passes:,} ({calibration}) | {seconds:.1f} | {seconds / loop_seconds:.2f} | "
        f"{cpu:.1f} | {seconds / (passes + calibration):.4f} | "
        f"{1 - numbers['network_seconds'] / numbers['seconds']:.1%} | "
        f"{numbers['peak_mib']:.0f} ({numbers['added_mib']:.0f}) | {numbers['load'][0]:.1f}, {numbers['load'][1]:.1f} |"
    )


def _seconds(ours: Mapping[str, Any], loop: Mapping[str, Any]) -> list[str]:
    equal = sum(same(np.array(a), np.array(b)) for a, b in zip(ours["scores"], loop["scores"], strict=True))
    return [
        *_SECONDS,
        _line("`ContrastShapleyExplainer`", 16, ours, loop["seconds"]),
        _line("loop over MONAI's inferer", 16, loop, loop["seconds"]),
        "",
        f"The fastest of {len(ours['all_seconds'])} runs each: {_list(ours['all_seconds'])} s; loop "
        f"{_list(loop['all_seconds'])} s. The Dice of all five sub-regions are the same numbers for {equal} of 16 "
        f"coalitions. The explainer held at most {ours['logits_mib']:.0f} MiB of windows' logits.",
    ]


def _agreement(found: Mapping[str, Any], shape: Sequence[int]) -> list[str]:
    return [
        f"In full, at {_times(shape)} voxels, {found['n_passes']:,} passes against {found['n_looped']:,}: the fused "
        f"logits of {found['same_logits']} of {found['coalitions']} coalitions have the bits of the loop's "
        f"({found['voxels']:,} voxels, 3 channels each), and the Dice of {found['same_scores']} are the same numbers.",
    ]


def _demo(ours: Mapping[str, Any], loop: Mapping[str, Any]) -> list[str]:
    cases, folds = ours["cases"], ours["folds"]
    one = {**ours, **{key: ours[key] / cases for key in ("seconds", "cpu_seconds", "network_seconds")}}
    one["passes"], one["calibration"] = ours["passes"] // cases, 0
    whole = loop["seconds"] * folds
    return [
        *_SECONDS,
        _line(f"`ContrastShapleyExplainer`, a case (mean of {cases})", 16 * folds, one, whole),
        _line(f"loop, one fold timed, times {folds}", 16 * folds, loop, whole, folds),
        "",
        f"The fastest of {len(ours['all_seconds'])} runs each. {ours['windows']} windows; "
        f"{ours['passes'] // (cases * folds):,} passes for a fold. {ours['calibration']} passes of calibration in all, "
        "which only the first case of a process needs, are in the seconds.",
    ]


def _bundle(found: Mapping[str, Any]) -> list[str]:
    lines = ["| `monai.bundle run` | seconds | load |", "|---|---|---|"]
    for name, what in (("bundle_large", "one large case, one fold"), ("bundle_phantoms", "its phantoms and folds")):
        one = best(found, name)
        lines.append(f"| {what} | {one['seconds']:.1f} | {_list(one['load'])} |")
    return lines


def _list(seconds: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in seconds)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
