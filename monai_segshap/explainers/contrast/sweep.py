# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""All coalitions of contrasts through one or several networks: planned and calibrated first, then run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.explainers.contrast.game import ContrastGame
from monai_segshap.inferers import Calibration, CoalitionEvaluator, EvaluationPlan, calibrate, largest_difference
from monai_segshap.numerics import NumericMode, autocast_state
from monai_segshap.shapley import all_coalitions

__all__ = ["FoldNetwork", "FoldScores", "PreparedFold", "coalition_rows", "fold_networks", "prepare_fold"]

#: Coalitions whose windows are used to calibrate.
_CALIBRATION_ROWS = 32


@dataclass(frozen=True)
class FoldNetwork:
    """A network, and its name among several; None: it is the only one."""

    name: str | None
    network: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FoldScores:
    """What a network made of every coalition of the V live contrasts.

    Attributes:
        scores: float64 (T, 2**V, S); the row number is a bit mask.
        predicted_voxels: int64 (2**V, S).
        forwards: network passes that ran.
        prediction_difference: largest difference of a logit, all contrasts kept, from a given whole-volume prediction;
            None: none was given.
    """

    scores: NDArray[np.float64]
    predicted_voxels: NDArray[np.int64]
    forwards: int
    prediction_difference: float | None


@dataclass(frozen=True)
class PreparedFold:
    """A network with its passes planned; only calibration has run.

    Attributes:
        name: of the network among several.
        evaluator: of the case.
        plan: every coalition of the live contrasts, all kept first; see `coalition_rows`.
        calibration: of its batches.
    """

    name: str | None
    evaluator: CoalitionEvaluator
    plan: EvaluationPlan
    calibration: Calibration

    @property
    def planned(self) -> int:
        """Network passes of all coalitions."""
        return self.plan.jobs.n_forwards

    def run(
        self, game: ContrastGame, advance: Callable[[int], None], prediction: torch.Tensor | None = None
    ) -> FoldScores:
        """Evaluate every coalition.

        Args:
            game: makes scores of logits.
            advance: called with the number of windows after each network batch.
            prediction: (channels, H, W, D), the whole-volume prediction, to compare with.
        """
        before, n_rows = self.evaluator.n_forwards, len(self.plan.rows)
        scores = np.empty((len(game.scores), n_rows, len(game.sub_regions)))
        voxels = np.empty((n_rows, len(game.sub_regions)), dtype=np.int64)
        difference = None
        for row, (logits,) in self.evaluator.run(self.plan, advance):
            mask = n_rows - 1 if row == 0 else row - 1
            scores[:, mask], voxels[mask] = game(logits)
            if row == 0 and prediction is not None:
                difference = largest_difference(prediction.as_subclass(torch.Tensor), logits)
        return FoldScores(scores, voxels, self.evaluator.n_forwards - before, difference)

    def execution(self) -> dict[str, Any]:
        """How the network ran, see `monai_segshap.explainers.announcement.execution_record`, as plain values."""
        plan, lowered = self.evaluator.plan, self.evaluator.passes.lowered_to
        return {
            "accumulator": str(plan.weight.dtype).removeprefix("torch."),
            "folds": plan.folds,
            "batch_sizes": {str(k): v for k, v in self.calibration.batch_sizes.items()},
            "lowered_to": lowered,
            "library_bits": self.calibration.keeps_bits(lowered),
            "largest_difference": self.calibration.largest_difference,
            "peak_window_bytes": self.evaluator.peak_held_bytes,
        }


def fold_networks(network: Any) -> list[FoldNetwork]:
    """One network, or several with their names.

    Args:
        network: a callable; a list, tuple or `torch.nn.ModuleList` of them, which are named "0", "1", ...; or a mapping
            (or `torch.nn.ModuleDict`) from name to network.

    Raises:
        ValueError: for no network, or something that can not be called.
    """
    if isinstance(network, (Mapping, torch.nn.ModuleDict)):
        found = [FoldNetwork(str(name), one) for name, one in network.items()]
    elif isinstance(network, (list, tuple, torch.nn.ModuleList)):
        found = [FoldNetwork(str(number), one) for number, one in enumerate(network)]
    else:
        found = [FoldNetwork(None, network)]
    strange = [type(fold.network).__name__ for fold in found if not callable(fold.network)]
    if not found or strange:
        raise ValueError(f"got {len(found)} networks, of which {strange} can not be called; expected at least one.")
    return found


def coalition_rows(n_units: int) -> NDArray[np.bool_]:
    """Bool (2**V, V), the coalition that keeps all first, then the others by their bit mask from the empty one on."""
    if n_units == 0:
        return np.ones((1, 0), dtype=bool)
    return np.roll(all_coalitions(n_units), 1, axis=0)


def prepare_fold(
    fold: FoldNetwork,
    evaluator: CoalitionEvaluator,
    batch_size: str | int,
    numerics: NumericMode,
    known: dict[Any, tuple[int, Calibration]],
) -> PreparedFold:
    """Find the number of output channels, calibrate the batches, and plan the passes of one network.

    Args:
        fold: the network.
        evaluator: of the case; its own network does not run.
        batch_size: see `monai_segshap.inferers.calibrate`.
        numerics: how the network computes.
        known: calibrations of this process by network and windows; filled here.
    """
    own = evaluator.with_network(numerics.apply(fold.network, evaluator.device))
    rows = coalition_rows(own.n_units)
    sizes = tuple(sorted({int(s) for s in own.library_sizes}))
    key = (id(fold.network), own.plan.roi_size, sizes, str(own.device), autocast_state(own.device))
    if key in known:
        n_channels, calibration = known[key]
        calibration = replace(calibration, passes=0)
    else:
        n_channels = _output_channels(own, rows)
        exact = None if numerics.is_exact else fold.network
        sample = own.prepare(rows[:_CALIBRATION_ROWS], n_channels)
        calibration = calibrate(own, sample, batch_size, own.prepare(rows, n_channels).jobs.n_forwards, exact)
        calibration = replace(calibration, passes=calibration.passes + 1)
        known[key] = n_channels, calibration
    own.use_batch_sizes(calibration.batch_sizes)
    return PreparedFold(fold.name, own, own.prepare(rows, n_channels), calibration)


def of_all_contrasts(live: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Int64 (2**N,): the coalition of the live contrasts that each coalition of all N contrasts amounts to."""
    weights = np.zeros(len(live), dtype=np.int64)
    weights[live] = 1 << np.arange(int(live.sum()))
    return np.asarray(all_coalitions(len(live)) @ weights, dtype=np.int64)


def _output_channels(evaluator: CoalitionEvaluator, rows: NDArray[np.bool_]) -> int:
    """Channels of the network's output for one window, by a pass of its own."""
    logits = evaluator.passes(evaluator.windows(evaluator.prepare(rows[:1], 1), [0]))
    fits = isinstance(logits, torch.Tensor) and logits.ndim == 5
    n_channels = int(logits.shape[1]) // evaluator.plan.folds if fits else 1
    evaluator.check(logits, 1, n_channels)
    return n_channels


def require_one_output(folds: Sequence[PreparedFold]) -> int:
    """The number of output channels that all networks have.

    Raises:
        ValueError: if it differs.
    """
    counts = {fold.name: fold.plan.n_classes for fold in folds}
    if len(set(counts.values())) != 1:
        raise ValueError(f"the networks have {counts} output channels; expected the same number for every fold.")
    return folds[0].plan.n_classes
