# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The contrast values of all cases of an evaluation, in one table."""

from __future__ import annotations

import json
from pathlib import Path

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather

from monai_segshap.explainers.contrast import CONTRAST_COLUMNS, ContrastExplanation, contrast_table
from monai_segshap.files import write_whole

__all__ = ["ContrastTableHandler"]


class ContrastTableHandler:
    """Collect what an `ExplanationHandler` with `ContrastShapleyd` explains, for rank metrics over cases and folds.

    At the end of each epoch ``engine.state.contrast_table`` is a data frame of the columns of
    `monai_segshap.explainers.ContrastExplanation.table`, over the cases of all processes; the explanations of this
    process stay in ``engine.state.explanations``. As with MONAI's metrics, all processes must have a case.

    Args:
        output_dir: the first process writes ``contrasts.csv`` there; None: nothing is written.

    Example:
        >>> handler = ContrastTableHandler()  # then handler.attach(evaluator), beside an ExplanationHandler with
        >>> key = "contrast_explanations"  # as its key
    """

    def __init__(self, output_dir: str | Path | None = None) -> None:
        self.output_dir = None if output_dir is None else Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Make the table of the epoch.

        Raises:
            ValueError: if nothing on the engine explains.
        """
        if not hasattr(engine.state, "explanations"):
            raise ValueError(
                "the engine has no explanations; attach an ExplanationHandler with ContrastShapleyd and "
                "key='contrast_explanations' to it, too."
            )
        own = [one for one in engine.state.explanations if isinstance(one, ContrastExplanation)]
        rows = [json.dumps(row) for row in contrast_table(own).to_dict("records")] if own else []
        gathered = string_list_all_gather(rows) if idist.get_world_size() > 1 else rows
        table = pd.DataFrame([json.loads(row) for row in gathered], columns=list(CONTRAST_COLUMNS))
        engine.state.contrast_table = table
        if self.output_dir is not None and idist.get_rank() == 0:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_whole(self.output_dir / "contrasts.csv", table.to_csv(index=False))
