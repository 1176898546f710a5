# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Write the explanations of an evaluation, each as soon as it exists, and a table of all of them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pandas as pd
from ignite.engine import Engine, Events

from monai_segshap.explainers import Explanation
from monai_segshap.files import write_whole
from monai_segshap.handlers.events import ExplainedCase, ExplanationEvents, register_explanation_events
from monai_segshap.running import gather_objects
from monai_segshap.writers import explanation_folders, format_report, write_explanation

__all__ = ["ExplanationSaver", "explanation_rows"]

#: In the folder of a case: its name and its image.
_OWNER = "case.json"
#: Units in a row of the table.
_TOP = 3
_COLUMNS = (
    ["case", "folder", "class", "class_index", "region", "region_voxels", "score", "full", "empty"]
    + [f"top_{n}_{what}" for n in range(1, _TOP + 1) for what in ("unit", "value", "se")]
    + ["units", "visible", "method", "evaluations", "converged", "forwards", "seconds", "notes"]
)
_MISSED = ["case", "number", "rank", "reason"]

Row = dict[str, Any]


class ExplanationSaver:
    """Write what `ExplanationHandler` explains during an evaluation.

    Attach it to the engine beside an `ExplanationHandler`, before or after it. Each explanation is written when it
    exists, so that an error in a later case loses nothing. Into ``output_dir`` go

    * a folder CASE for each case, or CASE/NUMBER_CLASS where a case has several explanations, with the files of
      `monai_segshap.writers.write_explanation`. ``CASE/case.json`` says which image it belongs to: a case of the same
      name with another image gets CASE_2, also in a later run, and the same image its own folder again;
    * ``explanations.csv``: a row for each explanation and score, see `explanation_rows`; during the epoch it holds
      the cases so far;
    * ``unexplained.csv``: cases that could not be explained, with reasons (``on_error="warn"`` of the handler), at the
      end of the epoch.

    With several processes each one writes the folders of its own cases, and the first one the tables of all of them
    at the end of the epoch; until then each keeps its rows in ``explanations.rankN.csv``. A process without any case
    must run its evaluator by `monai_segshap.running.run_evaluator`, or the others wait for it. The tables are those of
    the last epoch. Written paths are added to ``engine.state.explanation_files``.

    Args:
        output_dir: made if absent.
        overview: whether to draw pictures (needs matplotlib).
        print_table: whether to print the most important units of each explanation.

    Example:
        >>> saver = ExplanationSaver("explanations")  # then saver.attach(evaluator)
    """

    def __init__(self, output_dir: str | Path, overview: bool = True, print_table: bool = True) -> None:
        self.output_dir, self.overview, self.print_table = Path(output_dir), overview, print_table
        self._rows: dict[Path, list[Row]] = {}
        self._done: dict[Path, tuple[int, int]] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Raises:
            ValueError: when the evaluation starts, if it has no `ExplanationHandler`.
        """
        register_explanation_events(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(ExplanationEvents.CASE_EXPLAINED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def __call__(self, engine: Engine) -> None:
        """Write the explanations of the case that was explained just now, and the table so far.

        Raises:
            TypeError: for explanations of another type.
            OSError: if a folder can not be written.
        """
        case: ExplainedCase = engine.state.explained_case
        other = [type(one).__name__ for one in case.explanations if not isinstance(one, Explanation)]
        if other:
            raise TypeError(
                f"ExplanationSaver got a {other[0]} of case {case.name!r}; expected an Explanation of KernelSHAPd. "
                "Let a transform of the handler's `explain` write others."
            )
        owner = case.file or f"case {case.number} of process {idist.get_rank()}"
        home = _own_folder(self.output_dir, case.name, owner)
        number, done = self._done.get(home, (case.number, 0))
        done = done if number == case.number else 0  # of another handler; a case that comes twice is written again
        self._done[home] = (case.number, done + len(case.explanations))
        for explanation, folder in zip(
            case.explanations, explanation_folders(case.explanations, home, done), strict=True
        ):
            engine.state.explanation_files.append(write_explanation(explanation, folder, self.overview))
            self._rows[folder] = explanation_rows(explanation, folder.relative_to(self.output_dir).as_posix())
            if self.print_table:
                print(format_report(explanation, folder), flush=True)
        _write_table(self._own_table, _COLUMNS, itertools.chain.from_iterable(self._rows.values()))

    @property
    def _own_table(self) -> Path:
        part = f".rank{idist.get_rank()}" if idist.get_world_size() > 1 else ""
        return self.output_dir / f"explanations{part}.csv"

    def _start(self, engine: Engine) -> None:
        if getattr(engine.state, "explanations", None) is None:
            raise ValueError(
                "ExplanationSaver is attached to an engine that explains nothing; attach an ExplanationHandler to it, "
                "too (before or after the saver)."
            )
        self._rows, self._done = {}, {}
        self._own_table.unlink(missing_ok=True)

    def _finish(self, engine: Engine) -> None:
        rank = idist.get_rank()
        missed = [
            {"case": m.name, "number": m.number, "rank": rank, "reason": m.reason} for m in engine.state.unexplained
        ]
        own = {"rows": list(itertools.chain.from_iterable(self._rows.values())), "missed": missed}
        parts = gather_objects(own)
        if rank == 0:
            # a sampler may give one case to two processes
            rows = {(row["folder"], row["score"]): row for part in parts for row in part["rows"]}
            _write_table(self.output_dir / "explanations.csv", _COLUMNS, rows.values())
            _write_table(self.output_dir / "unexplained.csv", _MISSED, [m for part in parts for m in part["missed"]])
            for part in self.output_dir.glob("explanations.rank*.csv"):
                part.unlink()
        idist.barrier()
        if self.print_table:
            not_explained = f"; {len(missed)} were not, see unexplained.csv" if missed else ""
            print(f"{len(self._done)} cases explained in {self.output_dir}{not_explained}", flush=True)


def explanation_rows(explanation: Explanation, folder: str = "") -> list[Row]:
    """What stands in the table about an explanation: a row for each score.

    Args:
        explanation: of one region.
        folder: of its files, in the folder of the table.

    Returns:
        rows with "case", "folder", "class", "class_index", "region" (mode), "region_voxels", "score", "full" and
        "empty" (the score with all units, and with none), "top_1_unit", "top_1_value" and "top_1_se" to "top_3_se" (the
        units with the largest absolute values, in the unit of the score), "units", "visible", "method", "evaluations",
        "converged" (None: no tolerance was asked for), "forwards" and "seconds" (of the case: its regions and scores
        share them) and "notes" (number of warnings).
    """
    rows = []
    for t, score in enumerate(explanation.scores):
        row: Row = {
            "case": explanation.case,
            "folder": folder,
            "class": explanation.target_name,
            "class_index": explanation.target,
            "region": explanation.region.mode,
            "region_voxels": explanation.region.voxels,
            "score": score,
            "full": float(explanation.full[t]),
            "empty": float(explanation.empty[t]),
        }
        order = np.argsort(-np.abs(explanation.values[:, t]), kind="stable")[:_TOP]
        for place, unit in enumerate(order, start=1):
            row[f"top_{place}_unit"] = explanation.partition.names[unit]
            row[f"top_{place}_value"] = float(explanation.values[unit, t])
            row[f"top_{place}_se"] = float(explanation.standard_errors[unit, t])
        rows.append(
            row
            | {
                "units": explanation.partition.n_units,
                "visible": int(explanation.visible.sum()),
                "method": explanation.method,
                "evaluations": explanation.evaluations,
                "converged": explanation.converged[t] if t < len(explanation.converged) else None,
                "forwards": explanation.forwards.run,
                "seconds": round(explanation.seconds["total"], 3),
                "notes": len(explanation.warnings),
            }
        )
    return rows


def _own_folder(output_dir: Path, name: str, owner: str) -> Path:
    """Folder of a case: its name, or with a number if the name is that of a case with another image."""
    folder, number = output_dir / name, 1
    text = json.dumps({"case": name, "image": owner}, indent=2) + "\n"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(folder / _OWNER, "x", encoding="utf-8") as file:  # of several processes one gets it
                file.write(text)
            return folder
        except FileExistsError:
            if _owner(folder / _OWNER) in (owner, None):
                return folder
        number += 1
        folder = output_dir / f"{name}_{number}"


def _owner(path: Path, patience_s: float = 2.0) -> str | None:
    """The image that a folder belongs to; another process may be writing it now. None: it can not be read."""
    end = time.monotonic() + patience_s
    while True:
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["image"])
        except (json.JSONDecodeError, KeyError, TypeError):
            if time.monotonic() > end:
                return None
            time.sleep(0.05)


def _write_table(path: Path, columns: Sequence[str], rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, pd.DataFrame(list(rows), columns=list(columns)).to_csv(index=False))
