# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Five attribution methods on faithfulness, sensitivity, complexity and seconds (the layout of paper 001, Table 1).

From the repository root: ``python benchmarks/attributions.py --results FOLDER``. The folder keeps finished cases; a run
that was stopped goes on from there, and with a full folder only the report is written. The whole run takes
about half an hour of one core.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser

from monai_segshap.explainers import Agg2ExpExplainer
from monai_segshap.files import write_whole
from monai_segshap.gradients import VoxelAttributions
from monai_segshap.inferers import window_plan_of
from monai_segshap.metrics import voxel_metrics
from monai_segshap.networks import evaluation_mode, load_weights
from monai_segshap.phantoms import TWINS_CLASS_NAMES, twins_phantom
from monai_segshap.study import mean_interval

ROOT = Path(__file__).resolve().parents[1]
SEEDS = tuple(range(1000, 1005))
#: Name in the table -> method and its options.
METHODS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "vanilla gradient": ("vanilla_gradient", {}),
    "SmoothGrad": ("smooth_gradient", {"n": 20, "sigma": 0.1}),
    "integrated gradients": ("integrated_gradients", {"steps": 20}),
    "KernelSHAP, cubes": ("kernelshap_cubes", {"cubes": 512, "budget": 1000, "estimator": "ridge"}),
    "KernelSHAP, semantic": ("kernelshap_semantic", {"budget": 200}),
}
QUICK: Mapping[str, tuple[str, dict[str, Any]]] = {
    "vanilla gradient": ("vanilla_gradient", {}),
    "SmoothGrad": ("smooth_gradient", {"n": 2}),
    "integrated gradients": ("integrated_gradients", {"steps": 2}),
    "KernelSHAP, cubes": ("kernelshap_cubes", {"cubes": 12, "budget": 100}),
    "KernelSHAP, semantic": ("kernelshap_semantic", {"budget": 200}),
}
#: Columns of the table, and whether more is better.
MEASURES = {"faithfulness": "more", "sensitivity": "less", "complexity": "less", "seconds": "less"}

HOW = """
Each method explains the sum of a class's logits over the voxels that it is predicted as (paper 001, Eq. 2).
Faithfulness (Eq. 8): Pearson correlation, over 100 random sets of voxels of one size, between the attribution of a
set and the fall of the class output when the set becomes air; mask fixed. Sensitivity (Eq. 9): relative change of
the map under Gaussian noise of 0.1 of the range of the image, 3 draws, each explained from its own prediction on.
Complexity (Eq. 10): share of voxels above a tenth of the largest attribution. Seconds: one image with its
prediction, over the number of its classes; ratios between methods mean something, seconds of a shared machine do
not. Numbers are means over classes, then over cases, with 95 % bootstrap intervals over cases. Options are those of
paper 001, but for the cubes' estimator: with two coalitions for each cube its least squares has no answer, so the
ridge with a distance prior takes that place.
"""

READING = """
* Gradients are more faithful than KernelSHAP here, as paper 001 found; unlike there, integrated gradients are
  ahead of SmoothGrad by far. The measure removes voxels by making them air, and air is the baseline of integrated
  gradients: both ask the same question. This network has batch norm; with instance norm integrated gradients from
  air need ``exponent=4`` to be complete.
* Vanilla gradient and SmoothGrad of the liver go against the removal: a gradient says what a slightly brighter
  voxel does, not what its absence does.
* KernelSHAP moves least under noise, and has the largest maps: a unit is one number. A random set of voxels takes
  a part of every unit, which no coalition of units does, so this faithfulness asks units for what they can not
  know; cubes of four voxels' edge fare better than organs. Perturbation curves judge units by themselves
  (`perturbation_curves.md`).
* Of the semantic units there are six, so their values are exact; their errors are those of the question.
* Five cases of one small network on synthetic images: a check of the machinery, no ranking of methods.
"""


def bundle_model() -> tuple[torch.nn.Module, Any]:
    """Network and inferer of bundles/torso_agg2exp."""
    folder = ROOT / "bundles" / "torso_agg2exp"
    parser = ConfigParser(ConfigParser.load_config_file(str(folder / "configs" / "inference.yaml")))
    parser["checkpoint"] = str(folder / "models" / "model.pt")
    network = load_weights(parser.get_parsed_content("network_def"), folder / "models" / "model.pt")
    return network, parser.get_parsed_content("inferer")


def phantom_image(seed: int) -> torch.Tensor:
    """Network input (1, H, W, D) of a phantom, on its own grid turned to RAS."""
    case = twins_phantom(seed=seed)
    scaled = (np.clip(case.image, -1024, 1024) + 1024) / 2048
    return torch.from_numpy(np.ascontiguousarray(scaled[::-1, ::-1], dtype=np.float32))[None]


def judge(
    network: torch.nn.Module,
    inferer: Any,
    image: torch.Tensor,
    names: Sequence[str],
    methods: Mapping[str, tuple[str, dict[str, Any]]],
    n_subsets: int = 100,
    n_noise: int = 3,
) -> pd.DataFrame:
    """A row for each method and class of one image, see `monai_segshap.metrics.voxel_metrics`."""
    explainers = {
        name: Agg2ExpExplainer(network, inferer, method, progress=False, options=options)
        for name, (method, options) in methods.items()
    }
    outputs = next(iter(explainers.values())).outputs(image)
    calls = {name: partial(_explain, explainer) for name, explainer in explainers.items()}
    return voxel_metrics(
        calls,
        outputs,
        image,
        names=names,
        faithfulness={"n_subsets": n_subsets, "progress": False},
        sensitivity={"n": n_noise},
    )


def _explain(explainer: Agg2ExpExplainer, image: torch.Tensor) -> torch.Tensor:
    with evaluation_mode(explainer.network):
        logits = explainer.inferer(image[None], explainer.network)[0]
    return explainer(image, logits).maps


def factors(
    network: torch.nn.Module, inferer: Any, image: torch.Tensor, methods: Mapping[str, tuple[str, dict[str, Any]]]
) -> pd.DataFrame:
    """CPU time and passes of each method for all classes of one image, over those of one inference."""

    def inference() -> torch.Tensor:
        with evaluation_mode(network):
            return inferer(image[None], network)[0]

    logits = inference()
    spent = min(_cpu_seconds(inference) for _ in range(5))
    windows = window_plan_of(inferer, image).n_windows
    rows = []
    for name, (method, options) in methods.items():
        explainer = Agg2ExpExplainer(network, inferer, method, progress=False, options=options)
        kept: list[VoxelAttributions] = []
        seconds = _cpu_seconds(lambda e=explainer, k=kept: k.append(e(image, logits)))
        forwards, backwards = kept[0].n_forwards / windows, kept[0].n_backwards / windows
        rows.append({"method": name, "time": seconds / spent, "forwards": forwards, "backwards": backwards})
    return pd.DataFrame(rows)


def _cpu_seconds(call: Callable[[], Any]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over classes, then over cases, with an interval: a row for each method, three columns for each measure."""
    by_case = rows.groupby(["method", "case"], sort=False)[list(MEASURES)].mean()
    found = []
    for method in rows["method"].unique():
        row: dict[str, Any] = {"method": method}
        for measure in MEASURES:
            mean = mean_interval(by_case.loc[method][measure].to_numpy())
            row |= {measure: mean.mean, f"{measure}_low": mean.low, f"{measure}_high": mean.high}
        found.append(row)
    return pd.DataFrame(found)


def report(
    rows: pd.DataFrame, times: pd.DataFrame, methods: Mapping[str, tuple[str, dict[str, Any]]], quick: bool
) -> str:
    """Everything as Markdown."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "numpy"))
    lines = [
        "# Attribution methods: faithfulness, sensitivity, complexity, seconds",
        "",
        "`python benchmarks/attributions.py --results FOLDER` writes this file.",
        HOW.rstrip(),
        "",
        "## Reading",
        "" if quick else READING.rstrip(),
        "",
        "## What was run",
        "",
        f"{time.strftime('%Y-%m-%d')}, one CPU thread of a shared machine; Python {platform.python_version()}, "
        f"{packages}.",
        "A quick run with few samples." if quick else "The network and unseen phantoms of `bundles/torso_agg2exp`.",
        f"{rows['case'].nunique()} cases, {rows['class'].nunique()} classes each.",
        "",
        *_options(methods),
        "",
        "## Means",
        "",
        *_means(summary(rows)),
        "",
        "## Cost, in inferences",
        "",
        "CPU time and windows that went through the network, forward and back, for all classes of one image without",
        "its prediction; one inference of the image is 1.",
        "",
        *_factors(times),
        "",
        "## Faithfulness of each class",
        "",
        *_classes(rows),
    ]
    missing = rows[rows["notes"].astype(str).str.len() > 0]
    if len(missing):
        lines += ["", f"{len(missing)} of {len(rows)} rows have a number that is undefined:", ""]
        lines += [f"* {note} ({count} rows)" for note, count in missing["notes"].value_counts().items()]
    return "\n".join(lines).rstrip() + "\n"


def _options(methods: Mapping[str, tuple[str, dict[str, Any]]]) -> list[str]:
    lines = ["| method | options |", "|---|---|"]
    texts = {
        name: ", ".join(f"{k} {v}" for k, v in options.items()) or "none" for name, (_, options) in methods.items()
    }
    return lines + [f"| {name} | {text} |" for name, text in texts.items()]


def _means(table: pd.DataFrame) -> list[str]:
    heads = [f"{measure} ({better} is better)" for measure, better in MEASURES.items()]
    lines = ["| method | " + " | ".join([*heads, "seconds, vanilla gradient = 1"]) + " |", "|---" * 6 + "|"]
    first = float(table["seconds"].iloc[0])
    for row in table.to_dict("records"):
        cells = [f"{row[m]:.3g} [{row[m + '_low']:.3g}, {row[m + '_high']:.3g}]" for m in MEASURES]
        lines.append(f"| {row['method']} | " + " | ".join(cells) + f" | {row['seconds'] / first:.1f} |")
    return lines


def _factors(table: pd.DataFrame) -> list[str]:
    lines = ["| method | CPU time | forwards | backwards |", "|---|---|---|---|"]
    for row in table.to_dict("records"):
        lines.append(f"| {row['method']} | {row['time']:.3g} | {row['forwards']:.4g} | {row['backwards']:.4g} |")
    return lines


def _classes(rows: pd.DataFrame) -> list[str]:
    table = rows.pivot_table(index="class", columns="method", values="faithfulness", aggfunc="mean", sort=False)
    lines = ["| class | " + " | ".join(table.columns) + " |", "|---" * (1 + len(table.columns)) + "|"]
    for name, row in table.iterrows():
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
    return lines


def cached(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table of a file, or else what is made, and kept there."""
    if not path.exists():
        started = time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, make().to_csv(index=False))
        print(f"{path.stem}: {time.perf_counter() - started:.0f} s", flush=True)
    return pd.read_csv(path, keep_default_na=False, na_values={measure: [""] for measure in MEASURES})


def run(results: Path, cases: Mapping[str, Callable[[], pd.DataFrame]]) -> pd.DataFrame:
    """Rows of all cases; those that the folder has are not run again."""
    tables = [cached(results / f"{name}.csv", make).assign(case=name) for name, make in cases.items()]
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder of finished cases")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--quick", action="store_true", help="one case, few samples")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, inferer = bundle_model()
    methods, seeds = (QUICK, SEEDS[:2]) if options.quick else (METHODS, SEEDS)
    counts = {"n_subsets": 8, "n_noise": 1} if options.quick else {}
    cases = {
        f"normal_{seed}": partial(
            lambda seed: judge(network, inferer, phantom_image(seed), TWINS_CLASS_NAMES, methods, **counts), seed
        )
        for seed in seeds
    }
    rows = run(options.results, cases)
    times = cached(options.results / "factors.csv", lambda: factors(network, inferer, phantom_image(seeds[0]), methods))
    options.out.write_text(report(rows, times, methods, options.quick), encoding="utf-8")


if __name__ == "__main__":
    main()
