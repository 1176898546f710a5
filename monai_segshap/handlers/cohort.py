# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Collect the importances of a cohort while an evaluation runs, and analyze them at its end (paper 001)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from monai_segshap.cohort import ImportanceStore, ImportanceTable, read_importances
from monai_segshap.handlers.events import ExplainedCase, ExplanationEvents
from monai_segshap.handlers.explanation import ExplanationHandler
from monai_segshap.transforms import name_of_case

__all__ = ["CohortHandler"]

Case = dict[str, Any]


class CohortHandler:
    """Explain every case of a MONAI evaluator by regions, and write matrix, graph and outliers of all of them.

    Into ``output_dir`` go ``importances.csv``, a row for each case as soon as it is explained, and at the end of the
    epoch what ``analyze`` makes of it. A case that is in the file already is not explained again, so that a stopped
    evaluation continues where it was. With several processes each one has a file of its own,
    ``importances.rankN.csv``, and the first one analyzes all of them; a process without any case must run its evaluator
    by `monai_segshap.running.run_evaluator`, or the others wait for it.

    Args:
        explain: a transform that adds a list of `monai_segshap.cohort.ImportanceMatrix` to a case, for example a
            Compose of `VoxelAttributionsd` and `LocalImportanced`; see `ExplanationHandler`.
        output_dir: made if absent.
        analyze: called by the first process with the CSV files of all of them and ``output_dir``; None: nothing is.
        settings: what the importances depend on, for example method and checkpoint; written into columns, and a file of
            other settings is refused.
        metadata_keys: entries of a case, for example "group", that go into columns.
        key: under which ``explain`` puts the matrices.
        on_error: "raise" or "warn", see `ExplanationHandler`.

    Attributes:
        explained: cases that were explained in this epoch by this process.

    Example:
        >>> handler = CohortHandler(lambda case: {**case, "importances": []}, "importances")
    """

    def __init__(
        self,
        explain: Callable[[Case], Mapping[Any, Any]],
        output_dir: str | Path,
        analyze: Callable[[Sequence[Path], Path], Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        metadata_keys: Sequence[str] = (),
        key: str = "importances",
        on_error: str = "raise",
    ) -> None:
        self.output_dir, self.analyze = Path(output_dir), analyze
        self.settings, self.metadata_keys = dict(settings or {}), tuple(metadata_keys)
        self._explain = ExplanationHandler(explain, self._is_new, key=key, on_error=on_error, keep=False)
        self._store: ImportanceStore | None = None
        self.explained: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Raises:
            ValueError: see `ExplanationHandler.attach`.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        self._explain.attach(engine)
        engine.add_event_handler(ExplanationEvents.CASE_EXPLAINED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    @property
    def files(self) -> list[Path]:
        """The CSV files of all processes, also of earlier runs."""
        return sorted(self.output_dir.glob("importances*.csv"))

    def table(self, variant: str = "mass", part: str = "absolute") -> ImportanceTable:
        """All cases so far, of all processes.

        Raises:
            ValueError: if there is none.
        """
        return read_importances(self.files, variant=variant, part=part, id_column="case")

    def __call__(self, engine: Engine) -> None:
        """Add the case that was explained just now to the file."""
        case: ExplainedCase = engine.state.explained_case
        metadata = {name: case.made.get(name) for name in self.metadata_keys}
        self._opened().append(case.explanations, metadata)
        self.explained.append(case.name)

    def _start(self, engine: Engine) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        part = f".rank{idist.get_rank()}" if idist.get_world_size() > 1 else ""
        self._store = ImportanceStore(self.output_dir / f"importances{part}.csv", self.settings)
        self._known = {case for path in self.files for case in ImportanceStore(path, self.settings).cases}
        self.explained = []

    def _opened(self) -> ImportanceStore:
        if self._store is None:
            raise RuntimeError("the epoch has not started; attach the handler to an evaluator and run that.")
        return self._store

    def _is_new(self, case: Case) -> bool:
        return name_of_case(case) not in self._known

    def _finish(self, engine: Engine) -> None:
        missed = engine.state.unexplained
        if missed:
            print(
                f"{len(missed)} cases were not explained; the first one, {missed[0].name}: {missed[0].reason}",
                flush=True,
            )
        idist.barrier()
        if not self.files:
            reason = f" The first reason: {missed[0].reason}" if missed else " The evaluation had none."
            raise ValueError(f"no case of the cohort was explained, so there is nothing to analyze.{reason}")
        if idist.get_rank() == 0:
            if self.analyze is not None:
                self.analyze(self.files, self.output_dir)
            cases = sum(len(ImportanceStore(path, self.settings)) for path in self.files)
            print(f"{cases} cases in {self.output_dir}, {len(self.explained)} of them explained now", flush=True)
        idist.barrier()
