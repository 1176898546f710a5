# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Explain cases while a MONAI evaluator runs over them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.transforms import Decollated

from monai_segshap.handlers.events import (
    ExplainedCase,
    ExplanationEvents,
    UnexplainedCase,
    register_explanation_events,
)
from monai_segshap.running import root_cause
from monai_segshap.transforms import file_of_case, name_of_case

__all__ = ["ExplanationHandler"]

#: Not the engine's: `monai_segshap.running.run_evaluator` silences that one.
logger = logging.getLogger(__name__)

Case = dict[str, Any]


class ExplanationHandler:
    """Explain cases of a MONAI evaluator, whatever its post-processing does.

    The handler acts when the network has run and nothing has been done to its logits yet
    (``IterationEvents.FORWARD_COMPLETED``): each case of the batch goes through ``explain`` alone, with its meta data,
    under the engine's autocast if it has one (``amp``). Neither batch nor output of the engine are changed. An
    evaluation of several processes explains on each one its own cases.

    Results are in ``engine.state.explanations``, and the paths that `SaveExplanationd` or `ExplanationSaver` wrote in
    ``engine.state.explanation_files``, lists that start anew with each epoch. After each case
    ``ExplanationEvents.CASE_EXPLAINED`` is fired, with the case in ``engine.state.explained_case``.

    Args:
        explain: a transform that adds a list of explanations to a case, for example a Compose of `SelectRegiond`,
            a transform of units, `KernelSHAPd` and `SaveExplanationd`. It gets the case's entries of the batch, and
            "image", "label" and "pred" as the engine has them: channels first, "pred" raw logits.
        select: which cases; gets the same entries. None: all of them.
        max_cases: at most so many cases an epoch (in each process).
        key: under which ``explain`` puts the explanations.
        on_error: "raise", or "warn": a case that can not be explained, for example because the class is absent, is
            noted in ``engine.state.unexplained`` as an `UnexplainedCase`, and logged; the evaluation goes on.
        keep: whether ``engine.state.explanations`` holds all explanations of the epoch, with their volumes; False:
            those of the case explained last, for long evaluations whose explanations are saved.

    Raises:
        ValueError: for other values.

    Example:
        >>> handler = ExplanationHandler(explain=lambda case: {**case, "explanations": []}, max_cases=2)
    """

    def __init__(
        self,
        explain: Callable[[Case], Mapping[Any, Any]],
        select: Callable[[Case], bool] | None = None,
        max_cases: int | None = None,
        key: str = "explanations",
        on_error: str = "raise",
        keep: bool = True,
    ) -> None:
        if max_cases is not None and max_cases < 1:
            raise ValueError(f"max_cases is {max_cases}; expected 1 or more, or None for every case.")
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'warn'.")
        self.explain, self.select, self.max_cases = explain, select, max_cases
        self.key, self.on_error, self.keep = key, on_error, keep
        self._seen = self._taken = 0

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Raises:
            ValueError: if the engine has no such event, because it is no MONAI engine.
        """
        if not engine.has_registered_events(IterationEvents.FORWARD_COMPLETED):
            raise ValueError(
                f"the engine ({type(engine).__name__}) does not fire FORWARD_COMPLETED; expected a MONAI engine, for "
                "example SupervisedEvaluator."
            )
        register_explanation_events(engine)
        self._start(engine)  # others can see from now on that the engine explains
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Explain the cases of the batch that the engine has just run."""
        for case in _cases(engine):
            number, self._seen = self._seen, self._seen + 1
            if self.max_cases is not None and self._taken >= self.max_cases:
                continue
            if self.select is not None and not self.select(case):
                continue
            self._taken += 1
            try:
                with _precision(engine):
                    made = dict(self.explain(dict(case)))
                found = made[self.key]
            except Exception as error:
                if self.on_error == "raise":
                    raise
                missed = UnexplainedCase(number, name_of_case(case), str(root_cause(error)))
                engine.state.unexplained.append(missed)
                logger.warning("case %d (%s) was not explained: %s", *missed)
                continue
            explanations = tuple(found) if isinstance(found, (list, tuple)) else (found,)
            self._deliver(engine, ExplainedCase(number, _name(case, explanations), _file(case), explanations, made))

    def _deliver(self, engine: Engine, case: ExplainedCase) -> None:
        kept = engine.state.explanations if self.keep else []
        engine.state.explanations = [*kept, *case.explanations]
        engine.state.explanation_files += case.made.get("explanation_files", [])
        engine.state.explained_case = case
        engine.fire_event(ExplanationEvents.CASE_EXPLAINED)

    def _start(self, engine: Engine) -> None:
        self._seen = self._taken = 0
        engine.state.explanations, engine.state.explanation_files, engine.state.unexplained = [], [], []
        engine.state.explained_case = None


def _name(case: Case, explanations: tuple[Any, ...]) -> str:
    named = getattr(explanations[0], "case", None) if explanations else None
    return str(named) if named else name_of_case(case)


def _file(case: Case) -> str | None:
    return file_of_case(case.get("image"))


def _precision(engine: Engine) -> AbstractContextManager[Any]:
    """The autocast under which a MONAI engine runs its network, so that the model that it evaluates is explained."""
    device = getattr(engine.state, "device", None)
    if getattr(engine, "amp", False) and device is not None and device.type == "cuda":
        return torch.autocast("cuda", **engine.amp_kwargs)
    return nullcontext()


def _cases(engine: Engine) -> list[Case]:
    """Each case of the batch, with what the engine made of it."""
    split = Decollated(keys=None, detach=True)
    output = split(dict(engine.state.output))
    batch = engine.state.batch
    entries = split(dict(batch)) if isinstance(batch, Mapping) else [{}] * len(output)
    return [{**own, **made} for own, made in zip(entries, output, strict=True)]
