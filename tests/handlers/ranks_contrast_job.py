# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Evaluations that a test runs under torchrun: ``ranks_contrast_job.py FOLDER``; in the second, one has no case."""

from __future__ import annotations

import sys
from pathlib import Path

import ignite.distributed as idist
import torch
from test_contrast_table import contrasts_of, evaluator

from monai_segshap.handlers import ContrastTableHandler, ExplanationHandler
from monai_segshap.running import join_ranks, leave_ranks, run_evaluator

if __name__ == "__main__":
    torch.set_num_threads(1)
    join_ranks()
    folder, rank = Path(sys.argv[1]), idist.get_rank()
    networks = torch.load(folder / "networks.pt", weights_only=False)
    for name, cases in (("three", [(0, 2), (1,)]), ("one", [(0,), ()])):
        engine = evaluator(networks, cases[rank])
        calls: list[Path] = []
        ExplanationHandler(contrasts_of(networks), key="contrast_explanations").attach(engine)
        ContrastTableHandler(folder / name, analyze=lambda path, _, calls=calls: calls.append(path)).attach(engine)
        run_evaluator(engine)
        if rank == 0:
            (folder / f"{name}.txt").write_text(str(len(calls)))
    leave_ranks()
