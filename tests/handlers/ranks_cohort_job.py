# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A cohort that a test explains under torchrun: ``ranks_cohort_job.py FOLDER``; first three cases, then one."""

from __future__ import annotations

import sys
from pathlib import Path

import ignite.distributed as idist
import torch
from test_cohort_handler import evaluator_of, explain

from monai_segshap.handlers import CohortHandler
from monai_segshap.running import join_ranks, leave_ranks, run_evaluator

if __name__ == "__main__":
    torch.set_num_threads(1)
    join_ranks()
    folder, rank = Path(sys.argv[1]), idist.get_rank()
    network = torch.load(folder / "network.pt", weights_only=False)
    for name, cases in (("three", [(0, 2), (1,)]), ("one", [(0,), ()])):
        calls: list[list[str]] = []
        note = lambda files, _, calls=calls: calls.append(sorted(file.name for file in files))  # noqa: E731
        handler = CohortHandler(explain(network), folder / name, note, metadata_keys=["group"])
        run_evaluator(evaluator_of(network, handler, cases[rank]))
        (folder / f"{name}_{rank}.txt").write_text(f"{calls} {sorted(handler.explained)}")
    leave_ranks()
