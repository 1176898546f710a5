# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Dice of every class in every case, normal and abnormal ones apart, as an Ignite handler."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from monai_segshap.phantoms import TWINS_CLASS_NAMES


class DiceReport:
    """Collect the Dice of an evaluator over phantoms, then log it and write ``evaluation.json``.

    Args:
        output_dir: folder of the file; made if it does not exist. It is written under a temporary name first.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)
        self.cases: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Add one step per case and one at the end.

        Args:
            engine: evaluator whose decollated batch holds ``seed`` and ``abnormal``, and whose output holds ``pred``
                and ``label``, class indices (1, H, W, D).
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_case)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def add_case(self, engine: Engine) -> None:
        """Score the cases of one iteration."""
        for batch, item in zip(engine.state.batch, engine.state.output, strict=True):
            row: dict[str, Any] = {"case": int(batch["seed"]), "abnormal": bool(batch["abnormal"])}
            prediction, label = np.asarray(item["pred"].cpu()), np.asarray(item["label"].cpu())
            for index, name in enumerate(TWINS_CLASS_NAMES[1:], start=1):
                ours, truth = prediction == index, label == index
                row[name] = round(2.0 * float((ours & truth).sum()) / max(int(ours.sum() + truth.sum()), 1), 4)
            self.cases.append(row)

    def write(self, engine: Engine) -> None:
        """Log the means and write the file."""
        log = logging.getLogger(type(self).__name__)
        summary: dict[str, Any] = {}
        for group, abnormal in (("normal", False), ("abnormal", True)):
            rows = [row for row in self.cases if row["abnormal"] is abnormal]
            if not rows:
                continue
            summary[group] = {}
            for name in TWINS_CLASS_NAMES[1:]:
                values = np.array([row[name] for row in rows])
                found = {"mean": round(float(values.mean()), 4), "min": float(values.min())}
                summary[group][name] = found
                log.info(f"Dice {name}: mean {found['mean']:.4f}, lowest {found['min']:.4f}, {len(rows)} {group} cases")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        path = self.output_dir / "evaluation.json"
        temporary = path.with_name(f".{os.getpid()}_{path.name}")
        text = json.dumps({"dice": summary, "cases": self.cases}, indent=1) + "\n"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
