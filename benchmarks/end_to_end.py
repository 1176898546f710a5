# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Seconds, network passes and memory of the ways to evaluate the same coalitions, end to end in one run.

From the repository root: ``python benchmarks/end_to_end.py``; on a GPU ``--device cuda --append`` adds its section.
`end_to_end_methods.py` has the methods, `end_to_end_cases.py` the cases, `end_to_end_measuring.py` the clock, and
`end_to_end_report.py` the tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from end_to_end_cases import demo_cases, slow_case
from end_to_end_report import (
    compare,
    heading,
    report_batches_of_one,
    report_fast,
    report_memory,
    report_regions,
    report_setting,
    report_slow,
)

_INTRO = """# End to end: ways to evaluate the same coalitions

`python benchmarks/end_to_end.py` writes this file; `--device cuda --append` adds a section for a GPU.

One network (the demo network of `bundles/torso_kernelshap`), one case (phantom seed 1010, the predicted lymph node
nearest to file voxel (103, 67, 16), margin 3 mm), the same coalitions for (a), (b), (d) and (e), all four scores, one
run:

- **(a)** MONAI's `SlidingWindowInferer` on the whole perturbed volume, once for each coalition.
- **(b)** the cache of paper 000, section III-E, written for this benchmark from the paper: baseline logits of all
  windows on the CPU, reused for windows without a masked voxel; all other windows of a coalition run
  together, in batches of the deployed size so that its scores can equal (a) exactly.
- **(c)** captum's `KernelShap` on (a): its own draws, as many evaluations, one score.
- **(d)** what `KernelSHAPExplainer` runs: plan, calibration, sweep; all of it counts.
- **(e)** (d) in another numeric mode, `numerics='fast'`. It has a table of its own: its scores are not the deployed
  network's, and no statement about (d) is about (e).

Each method ran in a process of its own, after the deployed prediction, which a user has before he explains anything.
Ratios come first. Seconds on the CPU are those of the one thread, so that other work on the machine does not count
(wall time where the network sleeps, and on a GPU); they still vary by about a tenth between runs, passes do not.
*Outside the network* is the share of the time that was not spent in the network's forward. *Added* memory is the peak
above what the process held before the method began (Python, torch, network); it varies by some 40 MiB between runs.
Units that the region can not see are always kept, in all methods: a favor to (b), whose other windows are then more
often unchanged.

## Reading

The numbers named here are those of the CPU section.

- Few coalitions flatter nobody: (d) shares windows between coalitions, so its share of (a) falls as they grow. The line
  under each table has the passes that 1024 coalitions would need. This case is small (48 windows, a region in the
  middle of the volume that 18 of them touch); counts for large volumes and usual patches are in `forwards.py`.
- (b) saves little wherever a window holds several units: nearly every coalition removes one of them.
- On the half-window crop every window touches the region and holds most of the organs, so there is little to share:
  with few coalitions (d) needs as many passes as (a) there, with its calibration more, and with 1024 it saves about a
  seventh. The crop is cheap for all methods because it has few windows, at the price of a prediction that differs from
  the deployed one.
- The calibration takes two batches at least: 8 passes here, 3 % of the 232 for organs, 6 % of the 128 on the crop, and
  4 on top of the 32 of the slow network. Only trying further batch sizes is bound to 5 % of the passes; in short runs
  the two batches cost more than that.
- A window of the demo network takes about 25 ms; planning and fusion can not vanish beside that, nor beside a few
  hundred passes: (d) spends 3.5 to 4.9 % outside the network, at the edge of the goal of 5 %. The section with a slower
  network shows what is left for networks of usual size: about 0.9 s in all. The machine was busy then, and a window
  took 1.8 s instead of 1 s; with 36 windows of 1 s the same 0.9 s would be 2.5 %.
- (e) needs about 0.7 of (d)'s time for a window on this CPU, which has bf16 instructions. A logit of the prediction
  moves by up to 0.22; tp, dice and soft_dice by at most 2 % of their spread, but fp, which is small here, by up to 8 %.
- Not good: where the deployed inferer sends one window at a time, a batch of two takes less than half the time of a
  window here, and 'auto' can not use it, since it changes the last digits: its run is as slow as 'library'. 'fastest'
  takes it, for scores that differ by 5e-7. It stopped at two: a batch of four was tried and did not save another 5 %.
- With room for a twentieth of the logits a sweep needs 1.28 times the passes, and its peak of logits falls from 166 to
  45 MiB, the memory that the process adds from 252 to 76 MiB. It can not fall below the 36 MiB of one coalition, and
  so lies far above the bound itself, which is 8 MiB.
- The three regions below touch 27 windows, the one 18: a factor of 1.5 if all windows need equally many passes. The
  windows that are added hold more organs than the others, so their contents repeat less often. The goal of 1.6 is met
  for FCC cells at every count, and for organs up to 64 coalitions (1.55); organs reach 1.60 at 256 and 1.67 at 1024,
  where it is missed.
- captum needs one such run for each score; the other methods give all four at once.

"""


def sections(device: str, coalitions: int, quick: bool) -> Iterator[str]:
    """Everything that is measured, one section after the other."""
    yield heading(device)
    cases = demo_cases(device, coalitions)
    settings = []
    for case in cases[:3]:
        found = compare(case, device)
        settings.append((case, found))
        yield report_setting(case, found)
    yield report_fast(settings)
    yield report_batches_of_one(cases[0], device, 4 * coalitions)
    yield report_memory(cases[0], device, 2 * coalitions)
    yield report_slow(slow_case(device, quick), device, 0.1 if quick else 1.0)
    yield report_regions(cases[3:], device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--coalitions", type=int, default=16, help="for each setting, the full and empty one included")
    parser.add_argument("--quick", action="store_true", help="few coalitions and a small phantom: a smoke test")
    parser.add_argument("--append", action="store_true", help="add a section to the file instead of writing it anew")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = options.out.read_text(encoding="utf-8").rstrip() + "\n\n" if options.append else _INTRO
    for section in sections(options.device, 4 if options.quick else options.coalitions, options.quick):
        print(section, flush=True)
        text += section + "\n"
        options.out.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
