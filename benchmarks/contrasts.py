# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What exact Shapley values of four contrasts cost: network passes, seconds and memory.

From the repository root: ``python benchmarks/contrasts.py --results FOLDER``. The folder keeps finished parts; a part
whose file is removed runs again, and with a full folder only the report is written. `contrasts_cases.py` has volumes
and network, `contrasts_counting.py` the passes, `contrasts_timing.py` the seconds, `contrasts_report.py` the tables.
All takes about half an hour of two cores; the seconds mean something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from contrasts_cases import DEMO_SHAPE, FILE_SHAPE, SEEDS, SHAPE, backgrounds, brain
from contrasts_counting import OVERLAPS, WINDOWS, count_all
from contrasts_report import report
from contrasts_timing import agreement, bundle, explain, in_fresh_process, loop

from monai_segshap.files import write_whole

Part = Callable[[], Any]


def parts(quick: bool) -> dict[str, Part]:
    """Everything that is measured, by name."""
    large, demo, files, roi = (SHAPE, DEMO_SHAPE, FILE_SHAPE, 40)
    windows, overlaps, folds, seeds, repeats = WINDOWS, OVERLAPS, 5, SEEDS, 2
    if quick:
        large, demo, files, roi = ((40, 48, 40), (32, 40, 32), (60, 60, 39), 16)
        windows, overlaps, folds, seeds, repeats = (16, 24), (0.5,), 2, SEEDS[:1], 1

    def counts() -> list[dict[str, Any]]:
        return [row for volume in backgrounds(brain(large), files) for row in count_all(volume, windows, overlaps)]

    timed: dict[str, Part] = {
        "explainer": lambda: in_fresh_process(explain, large, 1, SEEDS[:1], roi),
        "loop": lambda: in_fresh_process(loop, large, roi),
        "explainer_cpu": lambda: in_fresh_process(explain, large, 1, SEEDS[:1], roi, threads=1),
        "loop_cpu": lambda: in_fresh_process(loop, large, roi, threads=1),
        "demo": lambda: in_fresh_process(explain, demo, folds, seeds, roi),
        "demo_loop": lambda: in_fresh_process(loop, demo, roi),
    }
    return {
        "counts": counts,
        "agreement": lambda: asdict(in_fresh_process(agreement, demo, roi)),
        **{
            f"{name}_{number}": part
            for number in range(1, repeats + 1)
            for name, part in timed.items()
            if number == 1 or not name.endswith("_cpu")
        },
        "bundle_large_1": lambda: bundle(large),
        "bundle_phantoms_1": lambda: bundle(demo if quick else None),
    }


def run(folder: Path, wanted: dict[str, Part]) -> dict[str, Any]:
    """Results of all parts with their dates; those that the folder has are not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, part in wanted.items():
        file = folder / f"{name}.json"
        if not file.exists():
            print(f"{name} ...", flush=True)
            write_whole(file, json.dumps({"date": time.strftime("%Y-%m-%d"), "result": part()}, indent=1))
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder for finished parts")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--quick", action="store_true", help="small volumes: a smoke test")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = run(options.results, parts(options.quick))
    write_whole(options.out, report(found, options.quick))


if __name__ == "__main__":
    main()
