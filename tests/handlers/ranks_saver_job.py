# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""An evaluation that a test runs under torchrun: ``ranks_saver_job.py FOLDER``, with the cases in files.json.

After its own cases each process meets one more that can not be explained."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ignite.distributed as idist
import torch
from evaluated_files import evaluator, explain, network
from ignite.engine import Events
from monai.data import DistributedSampler

from monai_segshap.handlers import ExplanationHandler, ExplanationSaver
from monai_segshap.running import join_ranks, leave_ranks, run_evaluator

if __name__ == "__main__":
    torch.set_num_threads(1)
    join_ranks()
    folder, rank = Path(sys.argv[1]), idist.get_rank()
    files = json.loads((folder / "files.json").read_text(encoding="utf-8"))
    sampler = DistributedSampler(files, even_divisible=False, shuffle=False)
    own = [files[n] for n in sampler]
    net = network()
    whole = explain(net)

    def make(case):
        if "number" in case:
            raise ValueError("not this one")
        return whole(case)

    engine = evaluator([*own, {**own[0], "number": 1, "case": "bad"}], net)
    saver = ExplanationSaver(folder / "out", overview=False, print_table=False)
    saver.attach(engine)
    ExplanationHandler(make, on_error="warn").attach(engine)
    seen = []

    @engine.on(Events.ITERATION_COMPLETED)
    def look(_):
        seen[:] = sorted(p.name for p in (folder / "out").glob(f"*.rank{rank}.csv"))

    engine.run()
    result = {"part": seen[0], "cases": [e.case for e in engine.state.explanations]}
    (folder / f"rank{rank}.json").write_text(json.dumps(result), encoding="utf-8")

    engine = evaluator(files[:1] if rank == 0 else [], net)  # fewer cases than processes
    ExplanationSaver(folder / "one", overview=False, print_table=False).attach(engine)
    ExplanationHandler(whole).attach(engine)
    run_evaluator(engine)
    leave_ranks()
