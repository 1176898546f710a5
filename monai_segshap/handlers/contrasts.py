# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The contrast values of all cases of an evaluation, in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine, Events

from monai_segshap.explainers.contrast import CONTRAST_COLUMNS, ContrastExplanation, contrast_table
from monai_segshap.files import write_whole
from monai_segshap.handlers.events import ExplanationEvents, register_explanation_events
from monai_segshap.running import gather_objects

__all__ = ["ContrastTableHandler"]

_ORDER = ["case", "fold"]


class ContrastTableHandler:
    """Collect what an `ExplanationHandler` with `ContrastShapleyd` explains, for rank metrics over cases and folds.

    Attach it to the engine beside the `ExplanationHandler`, before or after it. At the end of each epoch
    ``engine.state.contrast_table`` is a data frame of the columns of
    `monai_segshap.explainers.ContrastExplanation.table`, over the cases of all processes, by name of case and fold. A
    process without any case must run its evaluator by `monai_segshap.running.run_evaluator`, or the others wait for it.

    Args:
        output_dir: the first process writes ``contrasts.csv`` there, and ``unexplained.csv`` with reasons if cases
            could not be explained (``on_error="warn"`` of the other handler); until the end of the epoch each process
            keeps the cases so far, in ``contrasts.rankN.csv`` where there are several. None: nothing is written.
        analyze: called by the first process at the end of the epoch with ``contrasts.csv`` and ``output_dir``, for
            example `monai_segshap.visualize.analyze_contrasts`; not called if no case was explained.

    Raises:
        ValueError: for ``analyze`` without ``output_dir``.

    Example:
        >>> handler = ContrastTableHandler()  # then handler.attach(evaluator), beside an ExplanationHandler with
        >>> key = "contrast_explanations"  # as its key
    """

    def __init__(
        self, output_dir: str | Path | None = None, analyze: Callable[[Path, Path], Any] | None = None
    ) -> None:
        if analyze is not None and output_dir is None:
            raise ValueError("analyze needs an output_dir: it is called with the table there.")
        self.output_dir, self.analyze = None if output_dir is None else Path(output_dir), analyze
        self._own: list[pd.DataFrame] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Raises:
            ValueError: when the evaluation starts, if nothing on it explains.
        """
        register_explanation_events(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(ExplanationEvents.CASE_EXPLAINED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def __call__(self, engine: Engine) -> None:
        """Take in the case that was explained just now.

        Raises:
            OSError: if the table can not be written.
        """
        found = [one for one in engine.state.explained_case.explanations if isinstance(one, ContrastExplanation)]
        if found:
            self._own.append(contrast_table(found))
            if self._part is not None:
                write_whole(self._part, _joined(self._own).to_csv(index=False))

    @property
    def _part(self) -> Path | None:
        """Where the cases of this process so far go."""
        part = f".rank{idist.get_rank()}" if idist.get_world_size() > 1 else ""
        return None if self.output_dir is None else self.output_dir / f"contrasts{part}.csv"

    def _start(self, engine: Engine) -> None:
        if getattr(engine.state, "explanations", None) is None:
            raise ValueError(
                "the engine has no explanations; attach an ExplanationHandler with ContrastShapleyd and "
                "key='contrast_explanations' to it, too."
            )
        self._own = []
        if self.output_dir is not None:
            self.output_dir.mkdir(parents=True, exist_ok=True)

    def _finish(self, engine: Engine) -> None:
        gathered = gather_objects((self._own, [(one.name, one.reason) for one in engine.state.unexplained]))
        table = _joined([part for parts, _ in gathered for part in parts])
        missed = pd.DataFrame([one for _, some in gathered for one in some], columns=["case", "reason"])
        engine.state.contrast_table = table
        if self.output_dir is not None and idist.get_rank() == 0:
            self._publish(table, missed, self.output_dir)
        if not len(table) and len(missed):
            raise ValueError(f"no case was explained. The first reason, of {missed['case'][0]}: {missed['reason'][0]}")
        if idist.get_world_size() > 1:
            idist.barrier()

    def _publish(self, table: pd.DataFrame, missed: pd.DataFrame, folder: Path) -> None:
        path = write_whole(folder / "contrasts.csv", table.to_csv(index=False))
        (folder / "unexplained.csv").unlink(missing_ok=True)
        if len(missed):
            write_whole(folder / "unexplained.csv", missed.to_csv(index=False))
        for part in folder.glob("contrasts.rank*.csv"):
            part.unlink()
        if self.analyze is not None and len(table):
            self.analyze(path, folder)
            not_explained = f"; {len(missed)} were not explained, see unexplained.csv" if len(missed) else ""
            print(f"{table['case'].nunique()} cases in {folder}{not_explained}", flush=True)


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """All rows, once (a sampler may give one case to two processes), by case and fold."""
    if not parts:
        return pd.DataFrame(columns=list(CONTRAST_COLUMNS))
    table = pd.concat(parts, ignore_index=True).drop_duplicates([*_ORDER, "score", "sub_region", "contrast"])
    return table.sort_values(_ORDER, kind="stable", ignore_index=True)
