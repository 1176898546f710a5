# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The compared ways to evaluate the same coalitions of one case: (a) to (e) of `end_to_end.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray

from monai_segshap.explainers.sweep import Sweep
from monai_segshap.games import RegionGame
from monai_segshap.inferers import (
    Calibration,
    CoalitionEvaluator,
    WindowPlan,
    calibrate,
    monai_window_plan,
    plan_chunks,
)
from monai_segshap.networks import evaluation_mode
from monai_segshap.numerics import NumericMode
from monai_segshap.region import Box, Region, bounding_box, box_slices

SCORES = ("tp", "fp", "dice", "soft_dice")
#: Coalitions whose windows are used to calibrate, as in `KernelSHAPExplainer`.
_CALIBRATION_ROWS = 32


@dataclass(frozen=True)
class Case:
    """One question in plain arrays: everything that a method needs, and nothing that belongs to one of them.

    Attributes:
        name: of the setting.
        image: float32 (C, H, W, D), network space.
        labels: int64 (H, W, D), visible units 1..M; 0 is never perturbed.
        fill: what removed voxels become.
        regions: bool (H, W, D), one mask for each region.
        target: explained class.
        n_classes: channels of the network's output.
        rows: bool (K, M), True keeps a unit; the full coalition first, the empty one second.
        windows: roi_size, sw_batch_size, overlap and mode of the sliding window.
        predictions: for each region the logits (classes, h, w, d) of the unperturbed image inside its box, which a user
            has before he explains anything; see `with_predictions`.
    """

    name: str
    image: NDArray[np.float32]
    labels: NDArray[np.int64]
    fill: float
    regions: tuple[NDArray[np.bool_], ...]
    target: int
    n_classes: int
    rows: NDArray[np.bool_]
    windows: dict[str, Any]
    predictions: tuple[torch.Tensor, ...] = ()

    @property
    def boxes(self) -> list[Box]:
        """Boxes of the regions."""
        return [bounding_box(mask) for mask in self.regions]

    def inferer(self, **changes: Any) -> SlidingWindowInferer:
        """MONAI's plain inferer with the case's windows."""
        return SlidingWindowInferer(**{**self.windows, **changes})

    def masked(self, image: torch.Tensor, row: NDArray[np.bool_]) -> tuple[torch.Tensor, NDArray[np.bool_]]:
        """The image without the removed units, and bool (H, W, D) where it was changed."""
        removed = np.concatenate([[False], ~row])[self.labels]
        return torch.where(
            torch.from_numpy(removed).to(image.device), torch.full_like(image, self.fill), image
        ), removed


@dataclass(frozen=True)
class SweepFacts:
    """What only a sweep can tell.

    Attributes:
        calibration: what was found before it, and the passes that this took.
        seconds_per_window: of the sweep's passes, those of the calibration left out.
        planned_peak_bytes: most bytes of logits held at once, planned.
        held_bytes: the same, measured.
        prediction_difference: largest one of a logit in the regions from the deployed prediction.
    """

    calibration: Calibration
    seconds_per_window: float
    planned_peak_bytes: int
    held_bytes: int
    prediction_difference: float


@dataclass(frozen=True)
class Found:
    """Scores (K, regions, 4) of a method, and for a sweep what else it tells."""

    scores: NDArray[np.float64]
    facts: SweepFacts | None = None


class _Spent:
    """Windows and seconds; one for a network and all its copies."""

    def __init__(self) -> None:
        self.windows, self.seconds = 0, 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> _Spent:
        return self


class TimedNetwork(torch.nn.Module):
    """Counts windows and seconds of a network and of its copies.

    With ``seconds_per_window`` it sleeps until so much has passed; the clock must be one that sees it sleep.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        seconds_per_window: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        self.network, self.seconds_per_window, self.clock = network, seconds_per_window, clock
        self._spent = _Spent()

    @property
    def passes(self) -> int:
        """Windows so far."""
        return self._spent.windows

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._spent.seconds

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        synchronize(windows.device)
        started = self.clock()
        logits = self.network(windows)
        synchronize(windows.device)
        left = self.seconds_per_window * len(windows) - (self.clock() - started)
        if left > 0:
            time.sleep(left)
        self._spent.windows += len(windows)
        self._spent.seconds += self.clock() - started
        return logits


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plain_inferer(network: torch.nn.Module, case: Case, device: str = "cpu") -> Found:
    """(a) MONAI's `SlidingWindowInferer` on the whole perturbed volume, once for each coalition."""
    image = torch.from_numpy(case.image).to(device)
    inferer, scorer = case.inferer(), _Scorer(case)
    found = []
    with evaluation_mode(network):
        for row in case.rows:
            masked, _ = case.masked(image, row)
            found.append(scorer(inferer(masked[None], network)[0]))
    return Found(np.array(found))


def published_cache(network: torch.nn.Module, case: Case, device: str = "cpu") -> Found:
    """(b) Paper 000, section III-E: baseline logits of every window on the CPU, reused where no voxel is masked.

    All other windows of a coalition run together, in batches of the library's size: kernels may round differently for
    another one. The repeats that fill the last batch count as passes.
    """
    image = torch.from_numpy(case.image).to(device)
    plan = monai_window_plan(case.inferer(), image)
    inferer, scorer = case.inferer(with_coord=True), _Scorer(case)
    number = {tuple(int(s) for s in start): window for window, start in enumerate(plan.starts)}
    current: dict[int, torch.Tensor] = {}

    def served(windows: torch.Tensor, coordinates: Sequence[Any]) -> torch.Tensor:
        places = [number[tuple(int(s.start) for s in place[2:])] for place in coordinates]
        return torch.stack([(current[w] if w in current else baseline[w]).to(device) for w in places])

    found = []
    with evaluation_mode(network):
        baseline = {
            w: logits.cpu().clone() for w, logits in _run_windows(network, case, plan, image, range(plan.n_windows))
        }
        for row in case.rows:
            masked, changed = case.masked(image, row)
            removed = plan.pad(torch.from_numpy(changed)[None].to(torch.uint8), as_image=False)[0]
            missing = [w for w in range(plan.n_windows) if bool(removed[plan.window_slices(w)].any())]
            current = dict(_run_windows(network, case, plan, masked, missing))
            found.append(scorer(inferer(masked[None], served)[0]))
    return Found(np.array(found))


def _run_windows(
    network: torch.nn.Module, case: Case, plan: WindowPlan, image: torch.Tensor, windows: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Logits of some windows of an image, in batches of the size and memory layout in which the library runs them."""
    padded = plan.pad(image, as_image=True)
    for size in sorted({int(plan.batch_sizes[w]) for w in windows}):
        those = [w for w in windows if plan.batch_sizes[w] == size]
        for start in range(0, len(those), size):
            batch = those[start : start + size]
            parts = [padded[(slice(None), *plan.window_slices(w))] for w in batch]
            parts += [parts[-1]] * (size - len(parts))
            alone = case.windows["sw_batch_size"] == 1
            logits = network(parts[0][None] if alone else torch.stack(parts))
            yield from zip(batch, logits, strict=False)


def captum_kernel_shap(network: torch.nn.Module, case: Case, device: str = "cpu") -> Found:
    """(c) captum's `KernelShap` on the plain inferer: as many evaluations, its own draws, one region and score.

    captum lets every voxel belong to a feature; voxels of no unit are put back before the network sees them.

    Returns:
        scores (K, 1, 4) of captum's own coalitions; its first two are the full and the empty one.
    """
    from captum.attr import KernelShap

    image = torch.from_numpy(case.image).to(device)
    labels = torch.from_numpy(case.labels).to(device)
    inferer, scorer = case.inferer(), _Scorer(replace(case, regions=case.regions[:1]))
    found = []

    def score(masked: torch.Tensor) -> torch.Tensor:
        restored = torch.where(labels == 0, image, masked[0])
        found.append(scorer(inferer(restored[None], network)[0]))
        return torch.tensor([found[-1][0, 0]])

    with evaluation_mode(network):
        torch.manual_seed(0)
        KernelShap(score).attribute(
            image[None],
            baselines=case.fill,
            feature_mask=(labels - 1).clamp(min=0)[None, None],
            n_samples=len(case.rows),
            perturbations_per_eval=1,
        )
    return Found(np.array(found))


#: Bytes of logits that a sweep may keep; the default of `KernelSHAPExplainer`.
KEPT_BYTES = 4 * 1024**3


def ours(
    network: TimedNetwork,
    case: Case,
    device: str = "cpu",
    numerics: str = "exact",
    batch_size: str | int = "auto",
    max_bytes: int = KEPT_BYTES,
) -> Found:
    """(d) What `KernelSHAPExplainer` runs: plan, calibrate, plan again where batches changed, sweep.

    (e) is the same in the numerics "fast", another numeric mode. The case needs its predictions.
    """
    mode = NumericMode.parse(numerics)
    running = mode.apply(network, torch.device(device))
    sweep = make_sweep(running, case, device, max_bytes)
    evaluator = sweep.evaluator
    calibration = calibrate(
        evaluator,
        evaluator.prepare(sweep.rows[:_CALIBRATION_ROWS], case.n_classes),
        batch_size,
        sweep.planned.planned,
        None if mode.is_exact else network,
    )
    evaluator.use_batch_sizes(calibration.batch_sizes)
    sweep = replace(sweep, chunks=plan_chunks(evaluator, sweep.rows, case.n_classes))
    before = network.seconds
    result = sweep.run(progress=False)
    facts = SweepFacts(
        calibration,
        (network.seconds - before) / result.forwards.run,
        max(plan.jobs.peak_bytes for _, plan in sweep.chunks),
        evaluator.peak_held_bytes,
        float(result.prediction_differences.max()),
    )
    return Found(np.stack([result.scores(r) for r in range(len(case.regions))], axis=1), facts)


METHODS: dict[str, Callable[..., Found]] = {
    "plain": plain_inferer,
    "published": published_cache,
    "captum": captum_kernel_shap,
    "ours": ours,
    "fast": partial(ours, numerics="fast"),
}


def make_sweep(network: torch.nn.Module, case: Case, device: str = "cpu", max_bytes: int = KEPT_BYTES) -> Sweep:
    """The sweep of a case in the library's batches, planned and not yet run; a plan alone needs no predictions."""
    image = torch.from_numpy(case.image).to(device)
    evaluator = CoalitionEvaluator(
        network,
        monai_window_plan(case.inferer(), image),
        image,
        torch.from_numpy(case.labels),
        torch.full_like(image, case.fill),
        case.boxes,
        max_bytes=max_bytes,
        n_units=case.rows.shape[1],
    )
    rows = case.rows[:, evaluator.visible]
    regions = [Region(mask, "mask", case.target, 0) for mask in case.regions]
    chunks = plan_chunks(evaluator, rows, case.n_classes)
    one_block = [np.zeros(int(mask.sum()), dtype=np.int64) for mask in case.regions]
    return Sweep(
        evaluator=evaluator,
        rows=rows,
        chunks=chunks,
        regions=regions,
        blocks=one_block,
        predictions=case.predictions,
        scores=SCORES,
        signal="logit",
    )


def with_predictions(network: torch.nn.Module, case: Case, device: str = "cpu") -> Case:
    """The case with the deployed prediction inside its regions' boxes."""
    with evaluation_mode(network):
        logits = case.inferer()(torch.from_numpy(case.image).to(device)[None], network)[0]
    return replace(case, predictions=tuple(logits[(slice(None), *box_slices(box))].clone() for box in case.boxes))


class _Scorer:
    """Scores of all regions from whole-volume logits (classes, H, W, D); the first call must be the full coalition."""

    def __init__(self, case: Case) -> None:
        self._case, self._games = case, list[RegionGame]()
        self._parts = [box_slices(box) for box in case.boxes]

    def __call__(self, logits: torch.Tensor) -> NDArray[np.float64]:
        inside = [logits[(slice(None), *part)] for part in self._parts]
        if not self._games:
            self._games = [
                RegionGame(
                    torch.from_numpy(np.ascontiguousarray(mask[part])).to(logits.device),
                    found.argmax(dim=0) == self._case.target,
                    self._case.target,
                    SCORES,
                )
                for mask, part, found in zip(self._case.regions, self._parts, inside, strict=True)
            ]
        return np.array([game(found) for game, found in zip(self._games, inside, strict=True)])
