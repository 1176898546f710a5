# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A small explanation that a test runs under torchrun.

``ranks_job.py FOLDER [store] [different] [alone] [early]``. Rank 0 writes result.json; alone, each writes its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch

from monai_segshap.explainers import KernelSHAPExplainer
from monai_segshap.geometry import VoxelGrid
from monai_segshap.inferers import CachingSlidingWindowInferer
from monai_segshap.region import select_region
from monai_segshap.running import join_ranks, leave_ranks
from monai_segshap.units import cube_partition

#: A run that stops before its budget is spent.
EARLY = {"roi": 14, "budget": 600, "method": "gaussian_process", "scores": ("tp", "soft_dice"), "tolerance": 0.4}


class Fragile(torch.nn.Module):
    """Breaks down after a number of windows, as a killed process would."""

    def __init__(self, limit):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 1)
        )
        self.limit, self.seen = limit, 0

    def forward(self, x):
        self.seen += len(x)
        if self.seen > self.limit:
            raise KeyboardInterrupt
        return self.layers(x)


def job(store_dir=None, budget=130, network=None, seed=0, ranks="share", roi=8, **options):
    """Explanations of two regions of noise by a random network, 48 cubes as units."""
    torch.set_num_threads(1)
    network = network or Fragile(10**9)
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 18, 18, 12)).astype(np.float32))
    inferer = CachingSlidingWindowInferer((roi, roi, min(roi, 12)), sw_batch_size=2, overlap=0.5, mode="gaussian")
    with torch.no_grad():
        logits = inferer(image[None], network)[0]
    grid = VoxelGrid((18, 18, 12), np.eye(4))
    boxes = ([[6, 6, 4], [9, 9, 7]], [[3, 3, 3], [5, 5, 5]])
    prediction = logits.argmax(0).numpy()
    regions = [select_region(prediction, 1, {"mode": "box", "box_ijk": b}, grid) for b in boxes]
    explainer = KernelSHAPExplainer(
        network,
        inferer,
        budget=budget,
        store_dir=store_dir,
        ranks=ranks,
        **{"method": "kernelshap", "progress": False, **options},
    )
    return explainer(image, cube_partition(grid, 5.0), regions, logits)


def record(explanations):
    """What must not depend on ranks or interruptions."""
    found = [e.to_dict() for e in explanations]
    for entry in found:
        entry.pop("seconds")
    return found


if __name__ == "__main__":
    join_ranks()
    folder = Path(sys.argv[1])
    own = idist.get_rank() if "different" in sys.argv else 0
    how = "alone" if "alone" in sys.argv else "share"
    options = EARLY if "early" in sys.argv else {}
    result = record(job(folder / "store" if "store" in sys.argv else None, seed=own, ranks=how, **options))
    if idist.get_rank() == 0 or how == "alone":
        (folder / f"result{own or ''}.json").write_text(json.dumps(result))
    leave_ranks()
