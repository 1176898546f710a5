# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Judge the explanations of an evaluation with MONAI metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_segshap.handlers.events import ExplainedCase, ExplanationEvents, register_explanation_events
from monai_segshap.metrics import CaseTableMetric

__all__ = ["ExplanationMetricHandler"]


class ExplanationMetricHandler:
    """Take the cases that an `ExplanationHandler` explains into a metric of explanations.

    MONAI's `IgniteMetricHandler` reads what an engine predicts for every case; this one reads what the transforms of
    the `ExplanationHandler` made of those that it chose. At the end of each epoch the result of ``aggregate`` stands in
    ``engine.state.metrics``, where loggers and MONAI's `MetricsSaver` find it (attach these afterwards). Rows of all
    processes are gathered; as with MONAI's metrics, all of them must have a case.

    Args:
        metric: for example `monai_segshap.metrics.PerturbationCurveMetric`, or `ConvergenceMetric` with ``keys``
            "explanations".
        name: in ``engine.state.metrics``; of a metric with ``named=True`` there is an entry for each column instead.
        keys: what the metric gets of a case, one or two entries: ``y_pred``, and ``y``.
        output_dir: the rows are written to NAME.csv there, by the first process; None: they are not.

    Raises:
        ValueError: for other numbers of keys.

    Example:
        >>> from monai_segshap.metrics import PerturbationCurveMetric
        >>> handler = ExplanationMetricHandler(PerturbationCurveMetric("dice"), "curves")  # handler.attach(evaluator)
    """

    def __init__(
        self,
        metric: CaseTableMetric,
        name: str,
        keys: str | Sequence[str] = ("curves", "explanations"),
        output_dir: str | Path | None = None,
    ) -> None:
        self.metric, self.name = metric, name
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)
        if len(self.keys) not in (1, 2):
            raise ValueError(f"keys are {self.keys}; expected one or two entries of a case, for y_pred and y.")
        self.output_dir = None if output_dir is None else Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, beside an `ExplanationHandler`."""
        register_explanation_events(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(ExplanationEvents.CASE_EXPLAINED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def __call__(self, engine: Engine) -> None:
        """Take in the case that was explained just now.

        Raises:
            ValueError: if the transforms did not make what the metric needs.
        """
        case: ExplainedCase = engine.state.explained_case
        missing = [key for key in self.keys if key not in case.made]
        if missing:
            raise ValueError(
                f"the metric {self.name!r} needs {missing[0]!r} of case {case.name!r}, which has "
                f"{sorted(map(str, case.made))}; add the transform that makes it to `explain` of the "
                "ExplanationHandler (PerturbationCurvesd makes 'curves')."
            )
        self.metric(*([case.made[key]] for key in self.keys))

    def _start(self, engine: Engine) -> None:
        if getattr(engine.state, "explanations", None) is None:
            raise ValueError(
                f"the metric {self.name!r} is attached to an engine that explains nothing; attach an "
                "ExplanationHandler to it, too (before or after the metric)."
            )
        self.metric.reset()

    def _finish(self, engine: Engine) -> None:
        found: Any = self.metric.aggregate()
        found = found[0] if isinstance(found, (tuple, list)) else found
        engine.state.metrics.update(found if isinstance(found, Mapping) else {self.name: found})
        if self.output_dir is not None:
            self.metric.save_table(self.output_dir / f"{self.name}.csv")
