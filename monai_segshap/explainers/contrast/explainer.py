# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Exact Shapley values of input contrasts (paper 003), on the deployed model's own windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from numpy.typing import NDArray

from monai_segshap.explainers.contrast.explanation import ContrastExplanation
from monai_segshap.explainers.contrast.findings import announce_contrasts, contrast_warnings, unchecked_channels
from monai_segshap.explainers.contrast.game import ContrastGame, check_contrast_scores
from monai_segshap.explainers.contrast.removal import removal_baseline, removal_record
from monai_segshap.explainers.contrast.sub_regions import SubRegion, truth_masks
from monai_segshap.explainers.contrast.sweep import (
    PreparedFold,
    fold_networks,
    of_all_contrasts,
    prepare_fold,
    require_one_output,
)
from monai_segshap.explainers.explanation import software_versions
from monai_segshap.explainers.sweep import passes_bar
from monai_segshap.geometry import current_grid, require_finite
from monai_segshap.heads import OutputHeads
from monai_segshap.inferers import CoalitionEvaluator, ForwardCounts, check_batch_size, window_plan_of
from monai_segshap.numerics import NumericMode
from monai_segshap.shapley import exact_shapley
from monai_segshap.units.contrasts import Contrasts

__all__ = ["ContrastShapleyExplainer"]


@dataclass(frozen=True)
class _Question:
    """What all folds of a case share."""

    name: str
    started: float
    truth: NDArray[np.bool_] | None
    prediction: torch.Tensor | None
    removal: dict[str, Any]
    live: NDArray[np.bool_]
    warnings: list[str]


class ContrastShapleyExplainer:
    """Exact Shapley values of input contrasts for the sub-regions of a segmentation, from one sweep of 2**N coalitions.

    ``phi_i = sum over S without i of |S|! (N-|S|-1)! / N! * (v(S with i) - v(S))`` (paper 003; Shapley 1953), with v a
    score of the whole-volume prediction of the image in which all contrasts but those of S are replaced. All
    sub-regions and scores come from the same network passes. A window in which a removed contrast already equals its
    replacement, such as background that is 0, is not run again.

    Several networks are folds, or any models to compare: each gets values of its own. Networks that were trained on
    the case have seen it, so compare folds on cases that none of them has seen.

    Args:
        network: maps (B, C, *roi) to logits (B, channels, *roi); or several of them: a list, a `torch.nn.ModuleList`,
            or a mapping from name.
        inferer: the deployed `SlidingWindowInferer`, or another one that `monai_segshap.inferers.PlansWindows`
            describes; its windows, batch size and fusion are used.
        contrasts: what can be removed, see `Contrasts.parse`: names in the order of the input channels, or groups.
        sub_regions: of `SubRegion`, or mappings with its fields; see `tumor_sub_regions`.
        scores: some of "dice_truth" (against ground truth), "dice", "tp", "fp", "soft_dice" and "class_output" (against
            the model's own prediction), see `ContrastGame`.
        removal: what removed contrasts become in network space, see `removal_baseline`; default 0 after normalization.
        heads: "sigmoid" or "softmax", see `monai_segshap.heads.OutputHeads`.
        absent: "nan": a Dice with nothing to find has no value; "one": it is 1 where nothing is predicted, else 0.
        signal: "logit", "probability" or "margin", for tp, fp, soft_dice and class_output.
        device: where the network runs; None: where the image is.
        max_bytes: bound for the logits of windows that are kept for later coalitions; those of the coalition in work,
            and its fused logits, come on top.
        progress: print the plan before the first coalition runs, and show a bar.
        batch_size: "auto", "library", "fastest" or a number, as for `KernelSHAPExplainer`.
        numerics: "exact", or a faster mode by name, see `monai_segshap.numerics.NumericMode`.

    Raises:
        ValueError: for unknown or unsuitable options.
    """

    def __init__(
        self,
        network: Any,
        inferer: Inferer,
        contrasts: Any,
        sub_regions: Sequence[SubRegion | Mapping[str, Any]],
        scores: Sequence[str] = ("dice_truth",),
        *,
        removal: Any = "zero",
        heads: str | OutputHeads = "sigmoid",
        absent: str = "nan",
        signal: str = "logit",
        device: torch.device | str | None = None,
        max_bytes: int = 4 * 1024**3,
        progress: bool = True,
        batch_size: str | int = "auto",
        numerics: str | NumericMode = "exact",
    ) -> None:
        self.networks = fold_networks(network)
        self.inferer, self.contrasts = inferer, Contrasts.parse(contrasts)
        self.sub_regions = tuple(SubRegion.parse(region) for region in sub_regions)
        self.scores = tuple(scores)
        self.heads, self.absent, self.signal = OutputHeads.parse(heads), absent, signal
        check_contrast_scores(self.scores, self.sub_regions, signal, absent)
        check_batch_size(batch_size)
        self.removal = removal_baseline(removal, self.contrasts)
        self.device, self.max_bytes, self.progress = device, max_bytes, progress
        self.batch_size, self.numerics = batch_size, NumericMode.parse(numerics)
        self._known: dict[Any, Any] = {}

    def __call__(
        self,
        image: torch.Tensor,
        truth: torch.Tensor | None = None,
        case: str = "case",
        *,
        logits: torch.Tensor | None = None,
        sources: Sequence[str | Path] | Mapping[Any, str] | None = None,
    ) -> list[ContrastExplanation]:
        """Explain one case.

        Args:
            image: (C, H, W, D), network space.
            truth: ground truth on the image's grid, a label map or masks, see `truth_masks`; needed by "dice_truth".
            case: name of the case.
            logits: (channels, H, W, D), whole-volume prediction of the first network, if it is there already; it is
                only compared with the network's own.
            sources: file name or channel name of each input channel, to check their order, see
                `check_contrast_sources`; None: what a `MetaTensor` says of itself.

        Returns:
            one explanation for each network.

        Raises:
            ValueError: for images that are not finite, another number of channels, sources that contradict the
                contrasts, a ground truth that does not fit, or a network whose output does not.
        """
        started = time.perf_counter()
        self._check(image, truth, logits)
        unchecked = unchecked_channels(self.contrasts, image, sources)
        plain = image.as_subclass(torch.Tensor).to(self.device or image.device)
        fill = self.removal.fill(plain, current_grid(image).spacing_mm)
        record = removal_record(self.removal, self.contrasts, plain, fill)
        evaluator = self._evaluator(plain, fill)
        folds = [prepare_fold(n, evaluator, self.batch_size, self.numerics, self._known) for n in self.networks]
        n_channels = require_one_output(folds)
        self.heads.check(n_channels, "the network's output")
        masks = None if truth is None else truth_masks(self.sub_regions, truth, self.heads, n_channels)
        warnings = contrast_warnings(self.contrasts, evaluator.visible, record, unchecked)
        question = _Question(case, started, masks, logits, record, evaluator.visible, warnings)
        if self.progress:
            print(announce_contrasts(self.contrasts, self.sub_regions, self.scores, folds, record), flush=True)
        found = []
        with passes_bar(sum(fold.planned for fold in folds), self.progress, 1) as advance:
            for number, fold in enumerate(folds):
                found.append(self._explanation(fold, question, advance, first=number == 0))
        return found

    def _evaluator(self, image: torch.Tensor, fill: torch.Tensor) -> CoalitionEvaluator:
        """Every window of the volume, with the contrasts as units."""
        last = (image.shape[1] - 1, image.shape[2] - 1, image.shape[3] - 1)
        return CoalitionEvaluator(
            self.networks[0].network,
            window_plan_of(self.inferer, image),
            image,
            self.contrasts.labels(image.shape[1:]),
            fill,
            [((0, 0, 0), last)],
            device=self.device,
            max_bytes=self.max_bytes,
            n_units=self.contrasts.n_contrasts,
        )

    def _explanation(
        self, fold: PreparedFold, question: _Question, advance: Callable[[int], None], first: bool
    ) -> ContrastExplanation:
        """Run one network over all coalitions, and solve."""
        started = time.perf_counter() if not first else question.started
        game = ContrastGame(self.sub_regions, self.scores, self.heads, self.signal, self.absent, truth=question.truth)
        found = fold.run(game, advance, question.prediction if first else None)
        rows = of_all_contrasts(question.live)
        scores, voxels = found.scores[:, rows], found.predicted_voxels[rows]
        n_windows = fold.evaluator.plan.n_windows
        naive = n_windows * len(rows)
        record = {"numerics": self.numerics.describe(), **fold.execution()}
        record["prediction_difference"] = found.prediction_difference
        reasons = _reasons(game)
        values = _values(scores)
        return ContrastExplanation(
            case=question.name,
            contrasts=self.contrasts,
            sub_regions=self.sub_regions,
            scores=self.scores,
            values=values,
            coalition_scores=scores,
            predicted_voxels=voxels,
            truth_voxels=game.truth_voxels,
            reasons=reasons,
            live=question.live,
            removal=question.removal,
            fold=fold.name,
            forwards=ForwardCounts(naive, naive, fold.planned, found.forwards, fold.calibration.passes),
            segmentation_forwards=n_windows,
            seconds={
                "network": fold.evaluator.passes.seconds,
                "total": time.perf_counter() - started,
                "window": fold.calibration.seconds_per_window,
            },
            heads=self.heads.describe(),
            signal=self.signal,
            absent=self.absent,
            execution=record,
            warnings=tuple(question.warnings + _run_warnings(record) + _value_warnings(game, values, reasons)),
            versions=software_versions(fold.evaluator.device),
        )

    def _check(self, image: torch.Tensor, truth: torch.Tensor | None, logits: torch.Tensor | None) -> None:
        grid = current_grid(image)
        self.contrasts.require_channels(int(image.shape[0]))
        require_finite(image, "the image")
        if truth is None:
            if "dice_truth" in self.scores:
                raise ValueError(
                    "score 'dice_truth' needs a ground truth; give one, or explain 'dice', 'tp', 'fp' or 'soft_dice' "
                    "against the model's own prediction."
                )
        elif not _same_grid(truth, image):
            raise ValueError(
                f"ground truth and image lie on different grids: ground truth {current_grid(truth).describe()}; image "
                f"{grid.describe()}."
            )
        if logits is not None and tuple(logits.shape[1:]) != grid.shape:
            raise ValueError(f"the prediction has shape {tuple(logits.shape)}; expected (channels, *{grid.shape}).")


def _same_grid(volume: torch.Tensor, image: torch.Tensor) -> bool:
    """Whether voxels lie in the same places, as far as both say where they lie."""
    if isinstance(volume, MetaTensor) and isinstance(image, MetaTensor):
        return current_grid(volume).same_as(current_grid(image))
    return current_grid(volume).shape == current_grid(image).shape


def _values(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shapley values (T, N, S) of coalition scores (T, 2**N, S); NaN where a coalition has none."""
    n_scores, n_rows, n_regions = scores.shape
    columns = scores.transpose(1, 0, 2).reshape(n_rows, -1)
    defined = np.isfinite(columns).all(axis=0)
    found = np.full((n_rows.bit_length() - 1, columns.shape[1]), np.nan)
    if defined.any():
        found[:, defined] = exact_shapley(columns[:, defined])
    return found.reshape(-1, n_scores, n_regions).transpose(1, 0, 2)


def _reasons(game: ContrastGame) -> dict[str, dict[str, str]]:
    """Why a score of a sub-region has no value."""
    found: dict[str, dict[str, str]] = {}
    for score in game.scores:
        for number, region in enumerate(game.sub_regions):
            reason = game.reason(score, number)
            if reason is not None:
                found.setdefault(score, {})[region.name] = reason
    return found


def _value_warnings(
    game: ContrastGame, values: NDArray[np.float64], reasons: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Sentences on values that are missing, or all 0."""
    found = [
        f"{score} of {region} has no values: {reason}; absent='one' counts an empty prediction as Dice 1."
        for score, regions in reasons.items()
        for region, reason in regions.items()
    ]
    for t, score in enumerate(game.scores):
        idle = [region.name for s, region in enumerate(game.sub_regions) if (values[t, :, s] == 0).all()]
        if idle:
            found.append(
                f"{score} of {', '.join(idle)} is the same for every coalition: all values are 0, and all contrasts "
                "share one rank."
            )
    return found


def _run_warnings(record: Mapping[str, Any]) -> list[str]:
    """Sentences where the network did not run exactly as it is deployed."""
    found = []
    if record["numerics"] != "exact":
        found.append(
            f"the network ran in a fast mode ({record['numerics'].removeprefix('fast: ')}): on the windows tested a "
            f"logit differs from the exact mode by up to {record['largest_difference']:.2g}."
        )
    elif not record["library_bits"]:
        found.append(
            "windows do not have the bits of the library's batches for certain: on those tested a logit differs by up "
            f"to {record['largest_difference']:.2g}."
        )
    if record["lowered_to"] is not None:
        found.append(f"memory ran out, and batches were lowered to {record['lowered_to']} windows.")
    if record["prediction_difference"] and record["numerics"] == "exact":
        found.append(
            f"the prediction given differs from the network's own by up to {record['prediction_difference']:.2g} in a "
            "logit; the scores use the network's own. Was it post-processed, or made with other windows?"
        )
    return found
