# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Seconds, network passes and memory of a method, in a process of its own."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from end_to_end_cases import bundle_parts, first_region, first_rows
from end_to_end_methods import METHODS, Case, SweepFacts, TimedNetwork, make_sweep, synchronize, with_predictions
from numpy.typing import NDArray

from monai_segshap.inferers import ForwardCounts


@dataclass(frozen=True)
class Measured:
    """What one method needed, and what it found: scores (K, regions, 4).

    Attributes:
        seconds: everything, the calibration of a sweep included. On the CPU those of this process, since other work on
            the machine would count otherwise; on a GPU, and for a network that sleeps, wall time.
        network_seconds: of these in the network.
        passes: windows through the network for the coalitions.
        calibration_passes: those before, of a sweep.
    """

    seconds: float
    network_seconds: float
    passes: int
    calibration_passes: int
    peak_mib: float
    added_mib: float
    scores: NDArray[np.float64]
    facts: SweepFacts | None = None

    @property
    def outside(self) -> float:
        """Share of the time that was not spent in the network."""
        return 1.0 - self.network_seconds / self.seconds

    @property
    def sweep(self) -> SweepFacts:
        """The facts of a sweep, (d) or (e)."""
        if self.facts is None:
            raise ValueError("this method runs no sweep.")
        return self.facts

    def difference(self, other: Measured) -> float:
        """Largest one of a score."""
        return float(np.abs(self.scores - other.scores).max())


def measure(method: str, case: Case, device: str, seconds_per_window: float = 0.0, **asked: Any) -> Measured:
    """Run one method in this process, after the deployed prediction, which a user has before he explains anything.

    Args:
        method: see `METHODS`.
        case: the case.
        device: where the network runs.
        seconds_per_window: see `TimedNetwork`.
        asked: further arguments of the method.
    """
    torch.set_num_threads(1)
    clock = time.process_time if device == "cpu" and not seconds_per_window else time.perf_counter
    network = TimedNetwork(bundle_parts(device, "network")["network"], seconds_per_window, clock)
    if method == "captum":
        import captum.attr  # noqa: F401
    case = with_predictions(network.network, case, device)  # warms up, too
    before = reset_peak(device)
    started = clock()
    found = METHODS[method](network, case, device, **asked)
    synchronize(torch.device(device))
    seconds = clock() - started
    peak = peak_mib(device)
    spent = found.facts.calibration.passes if found.facts is not None else 0
    return Measured(
        seconds, network.seconds, network.passes - spent, spent, peak, peak - before, found.scores, found.facts
    )


def in_fresh_process(method: str, case: Case, device: str, seconds_per_window: float = 0.0, **asked: Any) -> Measured:
    """`measure` in a process of its own, so that no method inherits the peak memory of another."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, method, case, device, seconds_per_window, **asked).result()


def _status_mib(field: str) -> float:
    """A memory field of /proc/self/status in MiB; NaN where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":")), float("nan"))


def reset_peak(device: str) -> float:
    """Forget earlier peaks; returns what is in use now, MiB."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _status_mib("VmHWM")
    return _status_mib("VmRSS")


def peak_mib(device: str) -> float:
    """Most memory in use since `reset_peak`, MiB."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else _status_mib("VmHWM")


def planned_counts(case: Case, coalitions: int) -> ForwardCounts:
    """Passes for many more coalitions of the same case, planned and not run."""
    rows = first_rows(case.rows.shape[1], coalitions)
    return make_sweep(torch.nn.Identity(), replace(case, rows=rows)).planned


def region_passes(case: Case, coalitions: int) -> tuple[int, int]:
    """Planned passes of the first region alone, and of all regions, for the same coalitions."""
    many = replace(case, rows=first_rows(case.rows.shape[1], coalitions))
    found = [make_sweep(torch.nn.Identity(), c).planned.planned for c in (first_region(many), many)]
    return found[0], found[1]
