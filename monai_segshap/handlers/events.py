# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What an evaluation says about its explanations, for handlers that wait for them."""

from __future__ import annotations

from typing import Any, NamedTuple

from ignite.engine import Engine, EventEnum

__all__ = ["ExplainedCase", "ExplanationEvents", "UnexplainedCase", "register_explanation_events"]


class ExplanationEvents(EventEnum):
    """Events that `ExplanationHandler` fires.

    ``CASE_EXPLAINED``: a case was explained; it is in ``engine.state.explained_case``.
    """

    CASE_EXPLAINED = "case_explained"


class ExplainedCase(NamedTuple):
    """A case that was explained just now.

    Attributes:
        number: of the case in the evaluation of this process, from 0.
        name: of the case.
        file: that the image was loaded from; None if it does not say.
        explanations: of the case, one for each region: `monai_segshap.explainers.Explanation`, or what else
            ``explain`` makes.
        made: everything that the transforms made of the case, for example "curves".
    """

    number: int
    name: str
    file: str | None
    explanations: tuple[Any, ...]
    made: dict[Any, Any]


class UnexplainedCase(NamedTuple):
    """A case that could not be explained.

    Attributes:
        number: of the case in the evaluation of this process, from 0.
        name: of the case.
        reason: message of the error.
    """

    number: int
    name: str
    reason: str


def register_explanation_events(engine: Engine) -> None:
    """Let an engine fire `ExplanationEvents`; nothing happens if it already does."""
    if not engine.has_registered_events(ExplanationEvents.CASE_EXPLAINED):
        engine.register_events(*ExplanationEvents)
