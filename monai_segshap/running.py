# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Run a bundle: over several processes, and with clear sentences where the input is wrong."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine

__all__ = ["join_ranks", "leave_ranks", "local_device", "root_cause", "run_evaluator"]

logger = logging.getLogger(__name__)

#: Errors that speak of the input. Anything else keeps its whole traceback.
_INPUT_ERRORS = (ValueError, OSError)


def join_ranks() -> None:
    """Join the process group if torchrun started several processes (NCCL on CUDA, otherwise gloo)."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        device = local_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave_ranks() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def local_device() -> torch.device:
    """The CUDA device of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def root_cause(error: BaseException) -> BaseException:
    """The first error of a chain of "raised from"."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None:
            break
        error = before
    return error


def run_evaluator(evaluator: Engine) -> Any:
    """Run an evaluator; an error about the input is raised alone, without the transforms that it passed through.

    Args:
        evaluator: for example MONAI's `SupervisedEvaluator`.

    Returns:
        what ``evaluator.run()`` returns.

    Raises:
        ValueError, OSError: the error about the input itself. The full chain goes to the log at level DEBUG.
    """
    quiet = logging.getLogger(f"ignite.engine.engine.{type(evaluator).__name__}")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        return evaluator.run()
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, _INPUT_ERRORS):
            raise
        logger.debug("the error came from here", exc_info=error)
    finally:
        quiet.setLevel(level)
    # outside the handler, so that the wrappers do not become its context
    raise cause.with_traceback(None) from None
