# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Seconds and memory of the explainer and of a direct loop, each in a process of its own; and whether both agree."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from contrasts_cases import (
    BUNDLE,
    CONTRASTS,
    SEEDS,
    brain,
    coalition,
    fold_networks,
    inferer,
    plain_dice,
    same,
    sub_regions,
    voxel_mm,
    without,
)
from end_to_end_measuring import peak_mib, reset_peak
from end_to_end_methods import TimedNetwork

from monai_segshap.explainers import ContrastExplanation, ContrastShapleyExplainer
from monai_segshap.heads import OutputHeads
from monai_segshap.phantoms import brain_phantom

THREADS = 2


class HeardHeads(OutputHeads):
    """Sigmoid heads that keep the fused logits of every coalition that they are shown."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "heard", [])

    def predicted(self, logits: torch.Tensor, target: int) -> torch.Tensor:
        if not any(logits is other for other in self.heard):
            self.heard.append(logits)
        return super().predicted(logits, target)


def explain(shape: Sequence[int], n_folds: int, seeds: Sequence[int] = SEEDS[:1], roi: int = 40) -> dict[str, Any]:
    """Exact Shapley values of all four contrasts, five sub-regions, Dice against ground truth."""
    networks = {name: TimedNetwork(network, clock=_clock()) for name, network in fold_networks(n_folds).items()}
    explainer = ContrastShapleyExplainer(networks, inferer(roi), CONTRASTS, sub_regions(), progress=False)
    cases = [brain(shape, seed) for seed in seeds]
    found: list[list[ContrastExplanation]] = []
    with measured(networks) as numbers:
        for case in cases:
            found.append(explainer(case.image, case.label))
    explained = [one for folds in found for one in folds]
    calibration = sum(one.forwards.calibration for one in explained)
    return {
        **numbers,
        "shape": list(shape),
        "voxel_mm": voxel_mm(shape)[0],
        "seeds": list(seeds),
        "roi": roi,
        "cases": len(cases),
        "folds": n_folds,
        "windows": explained[0].segmentation_forwards,
        "passes": sum(one.passes for one in networks.values()) - calibration,
        "planned": sum(one.forwards.planned for one in explained),
        "calibration": calibration,
        "logits_mib": max(one.execution["peak_window_bytes"] for one in explained) / 2**20,
        "scores": explained[0].coalition_scores[0].tolist(),
    }


def loop(shape: Sequence[int], roi: int = 40) -> dict[str, Any]:
    """The same Dice of all 16 coalitions, each by MONAI's inferer over the volume."""
    network = TimedNetwork(next(iter(fold_networks(1).values())), clock=_clock())
    slide, case = inferer(roi), brain(shape)
    scores = []
    with measured({"fold_0": network}) as numbers, torch.no_grad():
        for mask in range(2 ** len(CONTRASTS)):
            logits = slide(without(case.image, coalition(mask))[None], network)[0]
            scores.append(plain_dice(logits, case.label))
    return {**numbers, "passes": network.passes, "scores": scores}


def _clock() -> Callable[[], float]:
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


@contextmanager
def measured(networks: dict[str, TimedNetwork]) -> Iterator[dict[str, Any]]:
    """Wall and CPU seconds, seconds in the networks, peak memory and the machine's load, of what runs inside.

    With one thread ``seconds`` and those in the networks are CPU seconds, so that other work does not count.
    """
    numbers: dict[str, Any] = {}
    load, before = os.getloadavg()[0], reset_peak("cpu")
    clock = _clock()
    cpu, started = time.process_time(), clock()
    yield numbers
    numbers["seconds"] = clock() - started
    numbers["cpu_seconds"] = time.process_time() - cpu
    numbers["network_seconds"] = sum(network.seconds for network in networks.values())
    numbers["peak_mib"] = peak_mib("cpu")
    numbers["added_mib"] = numbers["peak_mib"] - before
    numbers["load"] = [load, os.getloadavg()[0]]


@dataclass(frozen=True)
class Agreement:
    """Whether explainer and loop agree: coalitions whose fused logits have the same bits, and the same five scores."""

    coalitions: int
    same_logits: int
    same_scores: int
    voxels: int
    n_passes: int
    n_looped: int


def agreement(shape: Sequence[int], roi: int = 40) -> Agreement:
    """Compare all 16 coalitions of one fold, logit by logit."""
    network, case, heads = TimedNetwork(next(iter(fold_networks(1).values()))), brain(shape), HeardHeads("sigmoid")
    explainer = ContrastShapleyExplainer(network, inferer(roi), CONTRASTS, sub_regions(), heads=heads, progress=False)
    (found,) = explainer(case.image, case.label)
    passes = network.passes
    first, *others = heads.heard
    by_mask = [*others, first]  # the coalition of all contrasts comes first
    logits_agree = scores_agree = 0
    with torch.no_grad():
        for mask, ours in enumerate(by_mask):
            logits = inferer(roi)(without(case.image, coalition(mask))[None], network)[0]
            logits_agree += torch.equal(logits, ours)
            scores_agree += same(np.array(plain_dice(logits, case.label)), found.coalition_scores[0, mask])
    return Agreement(
        len(by_mask),
        logits_agree,
        scores_agree,
        first[0].numel(),
        passes - found.forwards.calibration,
        network.passes - passes,
    )


def in_fresh_process(function: Callable[..., Any], *arguments: Any, threads: int = THREADS) -> Any:
    """Call a function in a process of its own, so that nothing inherits a peak of memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_threaded, threads, function, *arguments).result()


def _threaded(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(threads)
    return function(*arguments)


def bundle(shape: Sequence[int] | None) -> dict[str, Any]:
    """The bundle's own command, from its start to its last file: its phantoms and folds, or one large case and fold.

    Raises:
        RuntimeError: if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "monai.bundle", "run"]
        command += ["--config_file", str(BUNDLE / "configs" / "inference.yaml"), "--output_dir", f"{folder}/out"]
        if shape is not None:
            brain_phantom(SEEDS[0], tuple(shape), voxel_mm(shape)).write(f"{folder}/cases/{SEEDS[0]}")
            command += ["--datalist", f"{folder}/cases", "--folds", "[0]"]
        load, started = os.getloadavg()[0], time.perf_counter()
        threads = {"OMP_NUM_THREADS": str(THREADS)}
        done = subprocess.run(
            command, cwd=BUNDLE.parents[1], capture_output=True, text=True, env={**os.environ, **threads}
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"the bundle stopped:\n{done.stderr[-2000:]}")
        return {"seconds": seconds, "load": [load, os.getloadavg()[0]]}
