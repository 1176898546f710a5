# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Exact Shapley values of input contrasts (paper 003), on the deployed model's own windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from numpy.typing import NDArray

from monai_segshap.explainers.contrast.explanation import ContrastExplanation
from monai_segshap.explainers.contrast.findings import (
    announce_contrasts,
    contrast_warnings,
    run_warnings,
    unchecked_channels,
)
from monai_segshap.explainers.contrast.game import ContrastGame, check_contrast_scores
from monai_segshap.explainers.contrast.removal import removal_baseline, removal_record
from monai_segshap.explainers.contrast.store import ContrastStore, contrast_identity
from monai_segshap.explainers.contrast.sub_regions import SubRegion, truth_masks
from monai_segshap.explainers.contrast.sweep import (
    PreparedFold,
    fold_networks,
    of_all_contrasts,
    prepare_fold,
    require_one_output,
)
from monai_segshap.explainers.explanation import software_versions
from monai_segshap.explainers.sweep import kept_when_interrupted, passes_bar
from monai_segshap.geometry import current_grid, require_finite
from monai_segshap.heads import OutputHeads
from monai_segshap.inferers import CoalitionEvaluator, ForwardCounts, check_batch_size, window_plan_of
from monai_segshap.networks import weights_digest
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
        store_dir: folder in which the finished values of each network are kept, in a subfolder for each question; the
            same question finds them there, and only networks without any run. None: kept nowhere.

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
        store_dir: str | Path | None = None,
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
        self.store = ContrastStore(store_dir)
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
        evaluator = self._evaluator(plain, fill)
        identities = self._identities(evaluator, plain, fill, truth, unchecked)
        stored = [self.store.find(identity) for identity in identities]
        folds = {
            number: prepare_fold(fold, evaluator, self.batch_size, self.numerics, self._known)
            for number, fold in enumerate(self.networks)
            if stored[number] is None
        }
        question = self._question(case, started, plain, fill, evaluator.visible, unchecked)
        if folds:
            n_channels = require_one_output(list(folds.values()))
            self.heads.check(n_channels, "the network's output")
            masks = None if truth is None else truth_masks(self.sub_regions, truth, self.heads, n_channels)
            question = replace(question, truth=masks, prediction=logits)
        if self.progress:
            self._announce(case, list(folds.values()), question.removal)
        found, planned = [], sum(fold.planned for fold in folds.values())
        resumable = kept_when_interrupted(self.store.folder, "values of finished networks")
        with passes_bar(planned, self.progress and bool(folds), 1) as advance, resumable:
            for number, network in enumerate(self.networks):
                one = stored[number]
                if one is None:
                    made = self._explanation(folds[number], question, advance, number)
                    one = replace(made, identity=identities[number])
                    self.store.keep(one)
                found.append(replace(one, case=case, fold=network.name))
        return found

    def _question(
        self,
        case: str,
        started: float,
        image: torch.Tensor,
        fill: torch.Tensor,
        live: NDArray[np.bool_],
        unchecked: Sequence[int],
    ) -> _Question:
        """What all networks of the case share."""
        record = removal_record(self.removal, self.contrasts, image, fill)
        warnings = contrast_warnings(self.contrasts, live, record, unchecked)
        return _Question(case, started, None, None, record, live, warnings)

    def _announce(self, case: str, folds: Sequence[PreparedFold], removal: Mapping[str, Any]) -> None:
        print(f"case {case}", flush=True)
        if folds:
            print(announce_contrasts(self.contrasts, self.sub_regions, self.scores, folds, removal), flush=True)
        known = len(self.networks) - len(folds)
        if known:
            print(f"the values of {known} network(s) are there from an earlier run ({self.store.folder})", flush=True)

    def _identities(
        self,
        evaluator: CoalitionEvaluator,
        image: torch.Tensor,
        fill: torch.Tensor,
        truth: torch.Tensor | None,
        unchecked: Sequence[int],
    ) -> list[dict[str, str]]:
        """Of each network; nobody needs the digests where nothing is stored."""
        if self.store.folder is None:
            return [{} for _ in self.networks]
        shared = contrast_identity(
            evaluator, image, fill, truth, self.contrasts, self.sub_regions, self.scores, self.heads, self.signal,
            self.absent, self.numerics, self.batch_size, unchecked,
        )  # fmt: skip
        return [{**shared, "network": weights_digest(fold.network)} for fold in self.networks]

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
        self, fold: PreparedFold, question: _Question, advance: Callable[[int], None], number: int
    ) -> ContrastExplanation:
        """Run one network over all coalitions, and solve."""
        first = number == 0
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
            warnings=tuple(question.warnings + run_warnings(record) + _value_warnings(game, values, reasons)),
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
