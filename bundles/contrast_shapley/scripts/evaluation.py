# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Dice of every fold's network on cases that none of them has seen, as an Ignite handler."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

REGIONS = ("WT", "TC", "ET", "ED", "NCR")


class FoldReport:
    """Collect the Dice of an evaluator that runs once for each fold, then write ``evaluation.json``.

    A sub-region that a case does not have is null, and no part of the mean.

    Args:
        output_dir: folder of the file; made if it does not exist.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)
        self.rows: list[dict[str, Any]] = []
        self.fold = -1

    def attach(self, engine: Engine) -> None:
        """Add one step per case.

        Args:
            engine: evaluator whose decollated batch holds ``seed`` and whose output holds ``pred`` and ``label``, masks
                (3, H, W, D) of tumor core, whole tumor and enhancing tumor.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_case)

    def evaluate(self, evaluator: Any, network: torch.nn.Module, checkpoint: str | os.PathLike[str], fold: int) -> None:
        """Run the evaluator with the weights of one fold."""
        network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
        self.fold = int(fold)
        evaluator.run()

    def add_case(self, engine: Engine) -> None:
        """Score the cases of one iteration."""
        for batch, item in zip(engine.state.batch, engine.state.output, strict=True):
            predicted, truth = (sub_regions(item[key].cpu().numpy() > 0.5) for key in ("pred", "label"))
            row: dict[str, Any] = {"fold": self.fold, "case": int(batch["seed"])}
            for name in REGIONS:
                size = int(predicted[name].sum() + truth[name].sum())
                both = int((predicted[name] & truth[name]).sum())
                row[name] = round(2 * both / size, 4) if truth[name].any() else None
            self.rows.append(row)

    def write(self) -> None:
        """Write the file under a temporary name, then rename it."""
        folds = sorted({row["fold"] for row in self.rows})
        found: dict[str, Any] = {"folds": {}, "cases": self.rows}
        for fold in folds:
            table = {name: [row[name] for row in self.rows if row["fold"] == fold] for name in REGIONS}
            found["folds"][str(fold)] = {name: summary(values) for name, values in table.items()}
            logging.getLogger(__name__).info("fold %d: %s", fold, found["folds"][str(fold)])
        self.output_dir.mkdir(parents=True, exist_ok=True)
        temporary = self.output_dir / f".{os.getpid()}_evaluation.json"
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.output_dir / "evaluation.json")


def sub_regions(masks: np.ndarray) -> dict[str, np.ndarray]:
    """Overlapping and disjoint sub-regions, bool (H, W, D), from TC, WT and ET, bool (3, H, W, D)."""
    core, whole, enhancing = masks
    return {"WT": whole, "TC": core, "ET": enhancing, "ED": whole & ~core & ~enhancing, "NCR": core & ~enhancing}


def summary(values: list[float | None]) -> dict[str, float | int | None]:
    """Mean and lowest Dice of the cases that have the sub-region, and how many these are."""
    present = [value for value in values if value is not None and math.isfinite(value)]
    if not present:
        return {"mean": None, "min": None, "cases": 0}
    return {"mean": round(float(np.mean(present)), 4), "min": min(present), "cases": len(present)}
