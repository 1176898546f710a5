# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Dice per case and the false-positive components of the demo network, as an Ignite handler."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from scipy import ndimage

from monai_segshap.phantoms import CLASS_NAMES, ORGAN_NAMES, TorsoPhantom, torso_phantom


class PhantomReport:
    """Collect Dice and false positives of an evaluator over phantoms, then log them and write them to files.

    A false-positive component is a 26-connected component of a predicted class without any voxel of that class's truth.
    Files, written under a temporary name first: ``evaluation.json`` and ``false_positives.csv``.

    Args:
        output_dir: folder of the two files; made if it does not exist.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)
        self.dice: list[dict[str, Any]] = []
        self.components: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Add one step per case and one at the end.

        Args:
            engine: evaluator whose decollated batch holds ``seed`` and whose output holds ``pred``, class indices
                (1, H, W, D) with the affine of their grid.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_case)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def add_case(self, engine: Engine) -> None:
        """Score the cases of one iteration."""
        for batch, item in zip(engine.state.batch, engine.state.output, strict=True):
            seed = int(batch["seed"])
            case = torso_phantom(seed=seed)
            to_file = np.linalg.inv(case.affine) @ np.asarray(item["pred"].affine, dtype=np.float64)
            prediction = on_file_grid(item["pred"].cpu().numpy()[0].astype(np.uint8), to_file)
            row: dict[str, Any] = {"case": seed}
            for index, name in enumerate(CLASS_NAMES[1:], start=1):
                ours, truth = prediction == index, case.targets == index
                row[name] = round(2.0 * float((ours & truth).sum()) / max(int(ours.sum() + truth.sum()), 1), 4)
                self.components += false_positives(case, seed, index, ours, truth)
            self.dice.append(row)

    def write(self, engine: Engine) -> None:
        """Log the two tables and write the two files."""
        log = logging.getLogger(type(self).__name__)
        names = CLASS_NAMES[1:]
        values = {name: np.array([row[name] for row in self.dice]) for name in names}
        summary = {n: {"mean": round(float(v.mean()), 4), "min": float(v.min())} for n, v in values.items()}
        for name, numbers in summary.items():
            log.info(f"Dice {name}: mean {numbers['mean']:.4f}, lowest {numbers['min']:.4f}, {len(self.dice)} cases")
        log.info(f"{len(self.components)} false-positive components")
        for component in self.components:
            log.info("  " + ", ".join(f"{key} {value}" for key, value in component.items()))
        self.output_dir.mkdir(parents=True, exist_ok=True)
        result = {"dice": summary, "cases": self.dice, "false_positives": self.components}
        replace_text(self.output_dir / "evaluation.json", json.dumps(result, indent=1) + "\n")
        table = io.StringIO()
        if self.components:
            writer = csv.DictWriter(table, list(self.components[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.components)
        replace_text(self.output_dir / "false_positives.csv", table.getvalue())


def on_file_grid(labels: np.ndarray, to_file: np.ndarray) -> np.ndarray:
    """Flip labels (H, W, D) back to the file's grid.

    Args:
        labels: labels on a grid that differs from the file's by flips only.
        to_file: voxel of ``labels`` to voxel of the file, (4, 4).

    Raises:
        ValueError: if the two grids differ by more than flips.
    """
    signs = np.diag(to_file)[:3]
    if not np.allclose(to_file[:3, :3], np.diag(np.sign(signs)), atol=1e-3):
        raise ValueError(f"expected a prediction that is a flip of the file's grid, got the map {to_file.tolist()}.")
    return np.flip(labels, [axis for axis in range(3) if signs[axis] < 0])


def false_positives(
    case: TorsoPhantom, seed: int, index: int, ours: np.ndarray, truth: np.ndarray
) -> list[dict[str, Any]]:
    """Describe each predicted component without a voxel of the truth: size, place, and what lies beneath.

    Args:
        case: the phantom.
        seed: its number.
        index: class index.
        ours: predicted mask, bool (H, W, D).
        truth: true mask, bool (H, W, D).
    """
    spacing = np.linalg.norm(case.affine[:3, :3], axis=0)
    labels, _ = ndimage.label(ours, np.ones((3, 3, 3)))
    rows = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[box] == number
        if (mask & truth[box]).any():
            continue
        voxels = np.argwhere(mask) + [part.start for part in box]
        centre = voxels[np.linalg.norm((voxels - voxels.mean(0)) * spacing, axis=1).argmin()]
        organs, counts = np.unique(case.organs[box][mask], return_counts=True)
        beneath = ORGAN_NAMES.get(int(organs[counts.argmax()]), "fat")
        gaps = [float(np.linalg.norm((centre - np.array(m.centre_ijk)) * spacing)) for m in case.mimics]
        nearest = int(np.argmin(gaps)) if gaps else -1
        rows.append(
            {
                "case": seed,
                "class": CLASS_NAMES[index],
                "voxels": len(voxels),
                "centre_ijk": " ".join(str(int(v)) for v in centre),
                "organ": beneath,
                "nearest_mimic": case.mimics[nearest].kind if gaps else "none",
                "mimic_mm": round(gaps[nearest], 1) if gaps else float("nan"),
            }
        )
    return rows


def replace_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    temporary = path.with_name(f".{os.getpid()}_{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
