# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""An evaluation that a test runs under torchrun: each process explains cases of its own, and not equally many.

``contrast_ranks_job.py FOLDER TESTS COUNT...``: rank r has COUNT[r] cases and writes rankR.json; TESTS is the folder of
contrast_rows.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer

from monai_segshap.handlers import ExplanationHandler, ExplanationMetricHandler
from monai_segshap.metrics import RankAgreementMetric, RankVarianceMetric, ReferenceRanking
from monai_segshap.running import join_ranks, leave_ranks

REGIONS = ("ET", "WT")
ORDERS = {"ET": ["t1c", "t1n", "t2w", "t2f"], "WT": ["t2f", "t2w", "t1n", "t1c"]}


def explanations_of(number):
    """Two folds of a case; case 1 has no ET."""
    from contrast_rows import made_explanation

    found = []
    for fold in (0, 1):
        values = {r: np.random.default_rng([number, fold, s]).normal(size=4) for s, r in enumerate(REGIONS)}
        if number == 1:
            values["ET"] = np.full(4, np.nan)
        found.append(made_explanation(f"case{number}", str(fold), values, {"ET": "absent"} if number == 1 else None))
    return found


def metrics():
    return {
        "agreement": RankAgreementMetric(ReferenceRanking(ORDERS, "for this test")),
        "variance": RankVarianceMetric(REGIONS),
    }


def run(folder, numbers):
    def case(number):
        return {"image": MetaTensor(torch.full((1, 2, 2, 2), float(number)))}

    def explain(entries):
        return {**entries, "contrast_explanations": explanations_of(int(entries["image"].max()))}

    engine = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([case(n) for n in numbers]), batch_size=2),
        network=torch.nn.Identity(),
        inferer=SimpleInferer(),
        prepare_batch=lambda batch, *_, **__: (batch["image"], None),
    )
    used = metrics()
    for name, metric in used.items():
        ExplanationMetricHandler(metric, name, "contrast_explanations", output_dir=folder).attach(engine)
    ExplanationHandler(explain, key="contrast_explanations").attach(engine)
    engine.run()
    return {
        name: {
            "state": engine.state.metrics[name].tolist(),
            "cases": metric.table()["case"].tolist(),
            "notes": metric.table()["notes"].tolist(),
        }
        for name, metric in used.items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[2])
    join_ranks()
    folder, counts = Path(sys.argv[1]), [int(n) for n in sys.argv[3:]]
    rank = idist.get_rank()
    first = sum(counts[:rank])
    found = run(folder, list(range(first, first + counts[rank])))
    (folder / f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    leave_ranks()
