# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What the scores of a question depend on, so that stored ones are never mistaken for another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.games import CHANNELS
from monai_segshap.heads import OutputHeads
from monai_segshap.inferers import CoalitionEvaluator
from monai_segshap.networks import weights_digest
from monai_segshap.numerics import NumericMode, autocast_state
from monai_segshap.region import Region
from monai_segshap.shapley import CoalitionPlan, digest
from monai_segshap.units import Partition

__all__ = ["question_identity", "run_identity"]


def run_identity(
    evaluator: CoalitionEvaluator, image: torch.Tensor, numerics: NumericMode, batch_size: str | int
) -> dict[str, str]:
    """What the logits of any coalition depend on beside network, units and replacement, as names and digests.

    Args:
        evaluator: holds the window plan.
        image: (C, H, W, D), network space.
        numerics: how the network computes.
        batch_size: "auto" and "library" give the same bits; others are known by their name.
    """
    plan = evaluator.plan
    windows = f"{plan.roi_size} {plan.padded_shape} {plan.padding_mode} {plan.padding_value} {plan.folds}"
    return {
        "image": digest(image.cpu().numpy()),
        "windows": digest(plan.starts, plan.batch_sizes, plan.weight.cpu().numpy(), windows),
        "numbers": f"{numerics.describe()}, {image.dtype} on {evaluator.device.type}, "
        f"autocast {autocast_state(evaluator.device)}, torch {torch.__version__}",
        "batches": "of the library's bits" if batch_size in ("auto", "library") else str(batch_size),
    }


def question_identity(
    evaluator: CoalitionEvaluator,
    network: Any,
    regions: Sequence[Region],
    blocks: Sequence[NDArray[np.int64]],
    signal: str,
    coalitions: CoalitionPlan,
    partition: Partition,
    fill: torch.Tensor,
    image: torch.Tensor,
    numerics: NumericMode,
    batch_size: str | int,
    heads: OutputHeads,
) -> dict[str, str]:
    """Everything that a score depends on but the coalition itself, as names and digests.

    Args:
        evaluator: holds the window plan.
        network: as given, before any numeric mode.
        regions: what is explained.
        blocks: of each region.
        signal: what the scores sum.
        coalitions: their method and seed.
        partition: the units.
        fill: (C, H, W, D), replacement of removed voxels.
        image: (C, H, W, D), network space.
        numerics: how the network computes.
        batch_size: "auto" and "library" give the same bits; others are known by their name.
        heads: how logits become a prediction.
    """
    return {
        **run_identity(evaluator, image, numerics, batch_size),
        "network": weights_digest(network),
        "replacement": digest(fill.cpu().numpy(), "" if evaluator.perturbed is None else evaluator.perturbed.name),
        "units": digest(partition.labels),
        "regions": digest(*(r.mask for r in regions), str([r.target for r in regions])),
        "coalitions": f"{'pairs' if coalitions.is_paired else coalitions.method}, {evaluator.n_units} units, "
        f"seed {coalitions.seed}",
        "blocks": digest(*blocks),
        "signal": f"{signal} of {heads.kind}: {', '.join(CHANNELS)}",
    }
