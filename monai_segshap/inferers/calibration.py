# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Before a run: do batches change bits on this device, which batch size is fastest, and how long does a window take?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from monai_segshap.inferers.evaluation import CoalitionEvaluator, EvaluationPlan
from monai_segshap.inferers.passes import NetworkPasses, largest_divisor, peak_memory

__all__ = ["BATCH_CHOICES", "Calibration", "calibrate", "check_batch_size", "largest_difference"]

#: "auto": the fastest size with the library's bits; "library": its own; "fastest": whatever the bits.
BATCH_CHOICES = ("auto", "library", "fastest")
#: Largest batch that is tried, on the CPU and on a GPU.
_LARGEST = {"cpu": 8}
_LARGEST_ELSEWHERE = 32
#: A larger batch has to save this share of the time of a window.
_GAIN = 0.05
#: Passes that trying batch sizes may cost, as a share of the planned ones.
_SHARE = 0.05


@dataclass(frozen=True)
class Calibration:
    """What a few passes before the run found on this device.

    Attributes:
        batch_sizes: library batch size -> batch size in which its windows run.
        same_bits: the network gave every window the bits that it has in a library batch, whatever its place and its
            neighbors, at every size in ``batch_sizes``.
        largest_difference: of a logit from that of the library's batch (and exact mode); 0 for the same bits.
        verified: batch sizes at which that was tested and held for the windows of every library batch size.
        seconds_per_window: at the chosen size, of the most frequent library batch size.
        passes: windows that went through the network for this.
        peak_bytes: most memory held so far: by tensors on a GPU, otherwise by the process; None: unknown.
        note: what a user may want to do about it.
    """

    batch_sizes: dict[int, int]
    same_bits: bool
    largest_difference: float
    verified: tuple[int, ...]
    seconds_per_window: float
    passes: int
    peak_bytes: int | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = asdict(self)
        found["batch_sizes"] = {str(k): v for k, v in self.batch_sizes.items()}
        found["verified"] = list(self.verified)
        return found

    def keeps_bits(self, lowered_to: int | None) -> bool:
        """Whether the bits are still the library's where memory allowed parts of ``lowered_to`` windows at most."""
        if lowered_to is None:
            return self.same_bits
        parts = {largest_divisor(size, lowered_to) for size in self.batch_sizes.values()}
        return self.same_bits and 1 not in parts and parts <= set(self.verified)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_dict` described."""
        sizes = {int(k): int(v) for k, v in values["batch_sizes"].items()}
        return cls(**{**values, "batch_sizes": sizes, "verified": tuple(values["verified"])})


def check_batch_size(choice: str | int) -> None:
    """Raise ValueError unless a batch size is one of `BATCH_CHOICES` or a positive number."""
    if choice not in BATCH_CHOICES and not (type(choice) is int and choice > 0):
        raise ValueError(f"batch_size {choice!r}; expected a positive number, or one of {', '.join(BATCH_CHOICES)}.")


def calibrate(
    evaluator: CoalitionEvaluator,
    evaluation: EvaluationPlan,
    choice: str | int = "auto",
    planned: int = 0,
    exact: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Calibration:
    """Test and time a few windows of a run.

    Every library batch size is run twice, with its windows at different places of the batch; other sizes until windows
    with known logits have stood at every place. Larger batches are tried
    while they save time, and while all of this needs no more than 5 % of the planned passes. On the CPU the choice
    "auto" does not look at the clock, so that a run can be repeated pass for pass: there only batches of one are slow,
    and they become batches of two where that changes no bit.

    Args:
        evaluator: of the case, with the library's batch sizes.
        evaluation: some of its coalitions; their windows are used.
        choice: see `BATCH_CHOICES`, or a number.
        planned: passes that the run will need.
        exact: in a fast mode, the network in the exact mode: the same windows run through it once.

    Returns:
        what was found; `CoalitionEvaluator.use_batch_sizes` takes its sizes.

    Raises:
        ValueError: for an unknown choice, or a network whose output does not fit.
        MemoryError: if a single window does not fit into memory.
    """
    check_batch_size(choice)
    trials = _Trials(evaluator, evaluation, exact)
    sizes, counts = np.unique(evaluator.library_sizes, return_counts=True)
    main = int(sizes[counts.argmax()])
    trials.reference(main)
    allowed = _SHARE * planned
    chosen = main
    if isinstance(choice, int):
        chosen = choice
        if choice != main:
            trials.measure(main, choice)
    elif choice != "library" and evaluator.passes.lowered_to is None:
        auto = choice == "auto"
        by_clock = not auto or evaluator.device.type != "cpu"
        chosen = trials.fastest(main, auto and exact is None, by_clock, allowed)
    chosen_sizes = {main: chosen}
    for size in sorted({int(s) for s in sizes} - {main}):
        chosen_sizes[size] = trials.merged(size, chosen, choice, allowed)
    return trials.result(chosen_sizes, main)


@dataclass(frozen=True)
class _Trial:
    """Seconds of a window in a batch size, and the largest difference of a logit from the library's batch."""

    seconds: float
    difference: float


class _Trials:
    """Windows of one run, sent through the network in several batch sizes."""

    def __init__(
        self,
        evaluator: CoalitionEvaluator,
        evaluation: EvaluationPlan,
        exact: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> None:
        self.evaluator, self.evaluation = evaluator, evaluation
        self.before = evaluator.passes.n_windows
        self.exact = NetworkPasses(exact, evaluator.device) if exact is not None else None
        self.expected: dict[int, torch.Tensor] = {}
        self.found: dict[tuple[int, int], _Trial] = {}
        self.note = ""

    def reference(self, library_size: int) -> None:
        """Run the library's batch, and test whether places in it change bits."""
        jobs = self._jobs(library_size, library_size)
        windows = self.evaluator.windows(self.evaluation, jobs)
        logits = (self.exact or self.evaluator.passes)(windows)
        self.evaluator.check(logits, len(jobs), self.evaluation.n_classes)
        self.expected = {job: logits[i].clone() for i, job in enumerate(jobs)}
        del windows, logits
        self.measure(library_size, library_size)

    def measure(self, library_size: int, size: int, whole: bool = False) -> _Trial:
        """Run a batch size several times, until windows with known logits have stood at every place.

        ``whole``: raise where memory runs out.
        """
        jobs = self._jobs(library_size, size)
        difference, seconds = 0.0, []
        for shift in self._shifts(library_size, size):
            placed = [*jobs[size - shift :], *jobs[: size - shift]]
            before = self.evaluator.passes.seconds
            logits = self.evaluator.passes(self.evaluator.windows(self.evaluation, placed), whole)
            seconds.append((self.evaluator.passes.seconds - before) / size)
            self.evaluator.check(logits, size, self.evaluation.n_classes)
            for place, job in enumerate(placed):
                if job in self.expected:
                    difference = max(difference, largest_difference(logits[place], self.expected[job]))
        found = _Trial(min(seconds), difference)
        self.found[library_size, size] = found
        return found

    def _shifts(self, library_size: int, size: int) -> list[int]:
        """Places by which the windows are moved on; in a fast mode bits are not compared, and two runs do."""
        if self.exact is not None:
            return [0, size // 2]
        return [1 % size] if size == library_size else list(range(0, size, library_size))

    def fastest(self, main: int, same_bits: bool, by_clock: bool, allowed: float) -> int:
        """The batch size with the least time for a window among those that may be used."""
        largest = _LARGEST.get(self.evaluator.device.type, _LARGEST_ELSEWHERE) if by_clock else 2
        best, size = main, 2 * main
        while size <= largest and self._passes + size * len(self._shifts(main, size)) <= allowed:
            try:
                trial = self.measure(main, size, whole=True)
            except MemoryError:
                break
            saved = 1.0 - trial.seconds / max(self.found[main, best].seconds, 1e-9)
            if same_bits and trial.difference:
                if saved > 0.2:
                    self.note = (
                        f"batches of {size} would save {saved:.0%} of the time of a window, but differ from the "
                        f"library's batches of {main} in the last digits (a logit by up to {trial.difference:.1e}): "
                        "batch_size='fastest' takes them"
                    )
                break
            if by_clock and saved < _GAIN:
                break
            best, size = size, 2 * size
        return best

    def merged(self, library_size: int, chosen: int, choice: str | int, allowed: float) -> int:
        """The batch size for windows of a ragged library batch: the others', if that changes no bit or none counts."""
        if choice == "fastest" or self.exact is not None:
            return chosen
        self.reference(library_size)
        cost = chosen * len(self._shifts(library_size, chosen))
        if choice == "library" or (choice == "auto" and self._passes + cost > allowed):
            return library_size
        difference = self.measure(library_size, chosen).difference
        return chosen if isinstance(choice, int) or difference == 0.0 else library_size

    def result(self, sizes: dict[int, int], main: int) -> Calibration:
        """Put together what holds for the chosen sizes."""
        tested = [self.found[pair] for pair in sizes.items() if pair in self.found]
        largest = max(trial.difference for trial in tested)
        untested = len(tested) < len(sizes)
        lowered = self.evaluator.passes.lowered_to is not None
        good = {pair for pair, trial in self.found.items() if trial.difference == 0.0}
        verified = {size for _, size in good if all((library, size) in good for library in sizes)}
        return Calibration(
            batch_sizes=sizes,
            same_bits=largest == 0.0 and not untested and not lowered and self.exact is None,
            largest_difference=largest,
            verified=tuple(sorted(verified)),
            seconds_per_window=self.found[main, sizes[main]].seconds,
            passes=self._passes,
            peak_bytes=peak_memory(self.evaluator.device),
            note=self.note,
        )

    @property
    def _passes(self) -> int:
        spent = self.evaluator.passes.n_windows - self.before
        return spent + (self.exact.n_windows if self.exact is not None else 0)

    def _jobs(self, library_size: int, count: int) -> list[int]:
        """As many jobs whose windows the library runs in one batch size; from the beginning again if there are few."""
        windows = self.evaluation.jobs.windows
        known = np.flatnonzero(self.evaluator.library_sizes[windows] == library_size)
        return [int(known[i % len(known)]) for i in range(count)]


def largest_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference; 0 for the same numbers only, NaN in the same places included."""
    logits = logits.to(expected.device)
    same = (logits == expected) | (logits.isnan() & expected.isnan())
    difference = (logits.to(torch.float64) - expected.to(torch.float64)).abs()
    return float(torch.where(same, 0.0, difference).nan_to_num(nan=torch.finfo(torch.float64).max).max())
