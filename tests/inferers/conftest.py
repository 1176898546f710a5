# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Calibrations of a row of windows, and a clock that only the network moves."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from batchwise import MANY
from monai.inferers import SlidingWindowInferer

from monai_segshap.inferers import Calibration, CoalitionEvaluator, calibrate, monai_window_plan
from monai_segshap.inferers import passes as passes_module

ROI = (8, 8, 8)


@pytest.fixture(scope="module")
def quick_collection() -> Iterator[None]:
    """The collector does not go through all modules of this process each time memory runs out."""
    gc.freeze()
    yield
    gc.unfreeze()


class Clock:
    """Moved by the network only: ``cost`` seconds for a batch."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.cost, self.now = cost, 0.0

    def attach(self, network: torch.nn.Module) -> torch.nn.Module:
        network.register_forward_hook(lambda module, inputs, logits: self.add(len(inputs[0])))
        return network

    def add(self, size: int) -> None:
        self.now += self.cost(size)

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.nn.Module]:
    def attach(network: torch.nn.Module, cost: Callable[[int], float]) -> torch.nn.Module:
        clock = Clock(cost)
        monkeypatch.setattr(passes_module, "time", clock)
        return clock.attach(network)

    return attach


@pytest.fixture
def calibrated(make_case: Any) -> Callable[..., tuple[Calibration, CoalitionEvaluator]]:
    """Calibrate a network on a row of windows that lie side by side."""

    def run(
        network: Any, n_windows: int = 8, library: int = 1, n_rows: int = 12, **options: Any
    ) -> tuple[Calibration, CoalitionEvaluator]:
        case = make_case((8 * n_windows, 8, 8), 3 * n_windows)
        plan = monai_window_plan(SlidingWindowInferer(ROI, library, overlap=0), case.image)
        box = ((0, 0, 0), (8 * n_windows - 1, 7, 7))
        evaluator = CoalitionEvaluator(network, plan, case.image, case.labels, case.fill, [box])
        assert len(evaluator.library_sizes) == n_windows
        rows = np.random.default_rng(0).random((n_rows, evaluator.n_units)) < 0.5
        options.setdefault("planned", MANY)
        return calibrate(evaluator, evaluator.prepare(rows, 3), **options), evaluator

    return run
