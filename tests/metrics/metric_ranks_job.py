# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""An evaluation that a test runs under torchrun: each process has cases of its own, and not equally many.

``metric_ranks_job.py FOLDER COUNT...``: rank r has COUNT[r] cases; each writes rankR.json, and MONAI its files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, MetricsSaver, from_engine
from monai.inferers import SimpleInferer

from monai_segshap.metrics import ComplexityMetric
from monai_segshap.running import join_ranks, leave_ranks


def case(number):
    """Maps of two classes, the second one 0 in every other case."""
    maps = np.random.default_rng(number).normal(size=(2, 4, 4, 4)).astype(np.float32) ** 3
    maps[1] *= number % 2
    return {"image": MetaTensor(maps, meta={"filename_or_obj": f"case{number}.nii.gz"})}


def run(folder, numbers):
    metric = ComplexityMetric([1, 2], get_not_nans=True)
    engine = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([case(n) for n in numbers]), batch_size=2),
        network=torch.nn.Identity(),
        inferer=SimpleInferer(),
        key_val_metric={
            "complexity": IgniteMetricHandler(metric_fn=metric, output_transform=from_engine(["pred", "image"]))
        },
        val_handlers=[MetricsSaver(str(folder), metric_details="*", batch_transform=metric.file_names)],
        prepare_batch=lambda batch, *_, **__: (batch["image"], None),
    )
    if numbers:
        engine.run()
        seen = engine.state.metrics["complexity"].tolist()
    else:  # no case, but the others wait for this process wherever they gather
        seen = metric.aggregate()[0].tolist()
        idist.barrier()
    mean, counts = metric.aggregate()
    path = metric.save_table(folder / "table.csv")
    return {
        "seen": seen,
        "mean": mean.tolist(),
        "counts": counts.tolist(),
        "rows": metric.get_buffer().tolist(),
        "cases": metric.table()["case"].tolist(),
        "notes": metric.table()["notes"].tolist(),
        "n": len(metric),
        "path": path.name,
    }


def direct(numbers):
    """Without an engine: a process may have no row at all."""
    metric = ComplexityMetric([1, 2])
    for number in numbers:
        image = case(number)["image"]
        metric([image], [image])
    return {"mean": metric.aggregate().tolist(), "cases": metric.table()["case"].tolist()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    join_ranks()
    folder, counts = Path(sys.argv[1]), [int(n) for n in sys.argv[2:]]
    rank = idist.get_rank()
    first = sum(counts[:rank])
    found = {"evaluator": run(folder, list(range(first, first + counts[rank])))}
    found["direct"] = direct([] if rank == 1 else [0, 1, 3])
    found["nobody"] = direct([])
    (folder / f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    leave_ranks()
