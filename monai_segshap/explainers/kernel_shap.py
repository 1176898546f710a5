# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""KernelSHAP for patch-based 3D segmentation (paper 000), on the deployed model's own windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from numpy.typing import NDArray

from monai_segshap.explainers.announcement import announce, execution_record, execution_warnings
from monai_segshap.explainers.case_game import CaseGame
from monai_segshap.explainers.explanation import EvaluatedCoalitions, Explanation, software_versions
from monai_segshap.explainers.findings import (
    background,
    convergence_warnings,
    on_all_units,
    organ_groups,
    with_sensitivity,
)
from monai_segshap.explainers.preparation import PreparedCase, SweepSettings
from monai_segshap.explainers.ranks import Ranks
from monai_segshap.explainers.sweep import SweepResult
from monai_segshap.games import score_warnings
from monai_segshap.geometry import current_grid, require_finite, source_grid
from monai_segshap.heads import OutputHeads
from monai_segshap.inferers import Calibration, PerturbedImages
from monai_segshap.numerics import NumericMode
from monai_segshap.perturbation import Baseline, ConstantBaseline
from monai_segshap.region import Region, box_slices
from monai_segshap.shapley import BlockTable, ShapleyEstimate, solve
from monai_segshap.units import Partition

__all__ = ["KernelSHAPExplainer"]


class KernelSHAPExplainer:
    """Shapley values of units for the segmentation of one or several regions, from one sweep of coalitions.

    Args:
        network: maps (B, C, *roi) to logits (B, classes, *roi), or (B, folds * classes, *roi) for a plan with folds.
        inferer: the deployed `SlidingWindowInferer`, or another inferer that `monai_segshap.inferers.PlansWindows`
            describes; its windows, batch size and fusion are used.
        scores: some of "tp", "fp", "dice", "soft_dice", "class_output".
        budget: coalitions to evaluate (the full and the empty one come on top); None: see
            `monai_segshap.shapley.default_budget`. 4 for each visible unit is a small budget, 8 a comfortable one.
        method: "auto" (exact where enumerating needs no more network passes than sampling), or an estimator by name,
            see `monai_segshap.shapley.plan_coalitions`.
        seed: of the coalitions.
        baseline: what removed voxels become; default 0 in network space.
        signal: "logit" (paper 000), "probability" or "margin".
        device: where the network runs; None: where the image is.
        grid: "deployed": the windows of the whole-volume inference, so that the deployed prediction is explained;
            "crop": a fresh grid on the cropped receptive field, as paper 000, whose prediction differs slightly.
        crop_dilation: for the crop: "half" or "full", see `monai_segshap.inferers.crop_box`.
        max_bytes: bound for the logits held during the run.
        progress: print the plan, and show a bar with network passes done, planned and time left.
        ranks: with several processes (torchrun): "alone": each explains its own cases; "share": all have the same case
            and share its coalitions.
        store_dir: folder in which the scores of finished coalitions are kept, in a subfolder for each question; the
            same call continues there after an interruption, and a larger budget extends it. None: nothing is kept.
        batch_size: windows in a network batch. "auto": a short calibration takes the fastest size at which windows
            have the bits of the inferer's own batches; "library": the inferer's; "fastest": whatever the last digits;
            or a number.
        tolerance: the budget grows by steps until the half-width of every 95 % interval is below this share of the
            largest value of its score, or the budget is spent; the result says which. None: the whole budget runs.
        second_baseline: explain once more with it, and say how much the values change; doubles the passes.
        prior: "distance": units far from the region are expected to matter less ("gaussian_process" and "ridge");
            "flat": all alike.
        numerics: "exact": as the network is; "fast" or some of "bf16", "fp16", "channels_last", "compile": another
            model in the last digits, named in the result. See `monai_segshap.numerics.NumericMode`.
        heads: "softmax": classes, argmax decides; "sigmoid": regions that may overlap, each by its own threshold; see
            `monai_segshap.heads.OutputHeads`.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        inferer: Inferer,
        scores: Sequence[str] = ("tp", "fp", "dice", "soft_dice"),
        budget: int | None = None,
        method: str = "auto",
        seed: int = 0,
        baseline: Baseline | None = None,
        signal: str = "logit",
        device: torch.device | str | None = None,
        grid: str = "deployed",
        crop_dilation: str = "half",
        max_bytes: int = 4 * 1024**3,
        progress: bool = True,
        ranks: str = "alone",
        store_dir: str | Path | None = None,
        batch_size: str | int = "auto",
        numerics: str | NumericMode = "exact",
        tolerance: float | None = 0.2,
        prior: str = "distance",
        second_baseline: Baseline | None = None,
        heads: str | OutputHeads = "softmax",
    ) -> None:
        self.settings = SweepSettings(
            network=network,
            inferer=inferer,
            scores=tuple(scores),
            budget=budget,
            method=method,
            seed=seed,
            baseline=baseline or ConstantBaseline(0.0),
            signal=signal,
            device=device,
            grid=grid,
            crop_dilation=crop_dilation,
            max_bytes=max_bytes,
            ranks=Ranks(ranks),
            store_dir=Path(store_dir) if store_dir is not None else None,
            batch_size=batch_size,
            numerics=NumericMode.parse(numerics),
            tolerance=tolerance,
            prior=prior,
            second_baseline=second_baseline,
            heads=OutputHeads.parse(heads),
        )
        self.scores = self.settings.scores
        self.progress = progress

    def __call__(
        self,
        image: torch.Tensor,
        partition: Partition,
        regions: Sequence[Region],
        logits: torch.Tensor,
        class_names: Sequence[str] | None = None,
        case: str = "case",
        display: torch.Tensor | None = None,
        exported: NDArray[np.integer] | None = None,
        perturbed: PerturbedImages | None = None,
    ) -> list[Explanation]:
        """Explain regions of one image.

        Args:
            image: (C, H, W, D), network space; a `MetaTensor` carries its affine and file grid.
            partition: the units, on the image's grid.
            regions: what to explain, on the image's grid; several share their network passes.
            logits: (classes, H, W, D), whole-volume prediction before softmax, argmax or any other post-processing.
            class_names: name of each class.
            case: name of the case.
            display: (1, H, W, D) on the image's grid, shown in pictures, for example the CT in HU; default the image.
            exported: the label map that the deployed model writes, on the grid of the image's file, where that is not
                the prediction by nearest neighbor (nnU-Net resamples logits).
            perturbed: makes perturbed images itself, instead of writing the baseline into the removed voxels.

        Returns:
            one explanation for each region.

        Raises:
            ValueError: for images that are not finite, other grids, post-processed logits, no visible unit, or a
                budget too small.
        """
        started = time.perf_counter()
        logits = logits.as_subclass(torch.Tensor)
        self._check(image, partition, regions, logits, exported)
        if perturbed is not None and self.settings.second_baseline is not None:
            raise ValueError("a second baseline can not be used with images that are perturbed as a whole.")
        question = (image, partition, regions, logits)
        prepared, calibration, result, estimates = self._run(self.settings, *question, perturbed)
        other = self._with_second_baseline(result.n_rows, *question)
        seconds = {
            "network": sum(run[0].evaluator.passes.seconds for run in ((prepared,), other) if run is not None),
            "total": time.perf_counter() - started,
            "window": calibration.seconds_per_window,
        }
        shared: dict[str, Any] = {
            "case": case,
            "partition": partition,
            "image": np.asarray((image if display is None else display)[0].cpu().numpy(), dtype=np.float32),
            "prediction": self.settings.heads.label_map(logits).cpu().numpy(),
            "exported": exported,
            "file_grid": source_grid(image),
            "seconds": seconds,
        }
        found = []
        for number, region in enumerate(regions):
            shared["predicted"] = self.settings.heads.predicted(logits, region.target).cpu().numpy()
            one = self._explanation(
                prepared, calibration, result, estimates[number], number, region, class_names, shared
            )
            if other is not None and self.settings.second_baseline is not None:
                values = on_all_units(other[0].views[number].visible, other[3][number].values)
                one = with_sensitivity(one, self.settings.second_baseline, values, other[2].forwards)
            found.append(one)
        return found

    def game(
        self,
        image: torch.Tensor,
        partition: Partition,
        region: Region,
        logits: torch.Tensor,
        perturbed: PerturbedImages | None = None,
    ) -> CaseGame:
        """The scores of coalitions of one region, evaluated when asked for; for example for perturbation curves.

        Args:
            image: as for the explanation.
            partition: the units.
            region: what is explained.
            logits: whole-volume prediction.
            perturbed: as for the explanation.

        Raises:
            ValueError: as for the explanation.
        """
        logits = logits.as_subclass(torch.Tensor)
        self._check(image, partition, [region], logits, None)
        return CaseGame(PreparedCase(self.settings, image, partition, [region], logits, perturbed), self.progress)

    def _run(
        self,
        settings: SweepSettings,
        image: torch.Tensor,
        partition: Partition,
        regions: Sequence[Region],
        logits: torch.Tensor,
        perturbed: PerturbedImages | None = None,
    ) -> tuple[PreparedCase, Calibration, SweepResult, list[ShapleyEstimate]]:
        """Plan, announce, evaluate, solve."""
        prepared = PreparedCase(settings, image, partition, regions, logits, perturbed)
        store = prepared.open_store()
        sweep, calibration = prepared.plan(store)
        if self.progress and sweep.ranks.own == 0:
            print(announce(prepared, sweep, calibration, store), flush=True)
        result = sweep.run(store, self.progress, prepared.stops, partial(self._is_enough, prepared))
        return prepared, calibration, result, self._estimates(prepared, result)

    def _with_second_baseline(
        self, n_rows: int, *case: Any
    ) -> tuple[PreparedCase, Calibration, SweepResult, list[ShapleyEstimate]] | None:
        """The same question with the second baseline, if there is one, and as many coalitions."""
        second = self.settings.second_baseline
        if second is None:
            return None
        if self.progress and self.settings.ranks.own == 0:
            print("\nonce more with the second baseline:", flush=True)
        settings = replace(
            self.settings, baseline=second, second_baseline=None, budget=max(n_rows - 2, 2), tolerance=None
        )
        return self._run(settings, *case)

    def _estimates(self, prepared: PreparedCase, result: SweepResult, quick: bool = False) -> list[ShapleyEstimate]:
        """Each region's values from the coalitions so far."""
        found = []
        for number, view in enumerate(prepared.views):
            plan, rows = prepared.coalitions_of(view, result.n_rows)
            game = result.games[number]
            blocks = BlockTable(result.channels[number][rows], game.linear, game.compose)
            scores = result.scores(number)[rows]
            found.append(solve(plan, scores, view.locality, blocks, quick, self.scores))
        return found

    def _is_enough(self, prepared: PreparedCase, result: SweepResult) -> bool:
        tolerance = prepared.settings.tolerance
        return tolerance is not None and all(
            bool(e.converged(tolerance).all()) for e in self._estimates(prepared, result, quick=True)
        )

    def _explanation(
        self,
        prepared: PreparedCase,
        calibration: Calibration,
        result: SweepResult,
        estimate: ShapleyEstimate,
        number: int,
        region: Region,
        class_names: Sequence[str] | None,
        shared: dict[str, Any],
    ) -> Explanation:
        """Solve one region; units that its windows do not see get exactly 0."""
        name = _class_name(region.target, class_names)
        view, perturbed = prepared.views[number], prepared.evaluator.perturbed
        warnings = self._warnings(
            estimate, region, result.references[number], shared["predicted"], name, int(view.visible.sum())
        )
        warnings += convergence_warnings(estimate, self.scores, self.settings.tolerance)
        settings, tolerance = self.settings, self.settings.tolerance
        record = execution_record(prepared, calibration, result, number)
        coalitions, rows = prepared.coalitions_of(view, result.n_rows)
        values, errors = (on_all_units(view.visible, v) for v in (estimate.values, estimate.standard_errors))
        return Explanation(
            target=region.target,
            target_name=name,
            region=region,
            visible=view.visible,
            scores=self.scores,
            values=values,
            standard_errors=errors,
            full=estimate.full,
            empty=estimate.empty,
            method=estimate.method,
            evaluations=result.n_rows,
            seed=settings.seed,
            baseline=settings.baseline.describe()
            | ({"space": "network"} if perturbed is None else perturbed.description),
            forwards=replace(result.forwards, calibration=calibration.passes),
            segmentation_forwards=prepared.evaluator.plan.n_windows,
            diagnostics=estimate.diagnostics,
            warnings=tuple(execution_warnings(settings, record) + warnings),
            window_grid="deployed" if settings.grid == "deployed" else f"crop, {settings.crop_dilation} window",
            signal=settings.signal,
            heads=settings.heads.describe(),
            reason=prepared.coalitions.reason,
            versions=software_versions(prepared.evaluator.device),
            execution=record,
            tolerance=settings.tolerance,
            converged=() if tolerance is None else tuple(bool(c) for c in estimate.converged(tolerance)),
            groups=organ_groups(shared["partition"], view.visible, values, estimate),
            background=background(prepared, result, number, class_names),
            evaluated=EvaluatedCoalitions(coalitions.rows, result.scores(number)[rows]),
            **shared,
        )

    def _check(
        self,
        image: torch.Tensor,
        partition: Partition,
        regions: Sequence[Region],
        logits: torch.Tensor,
        exported: NDArray[np.integer] | None,
    ) -> None:
        grid = current_grid(image)
        require_finite(image, "the image")
        if not partition.grid.same_as(grid):
            raise ValueError(
                f"units and image lie on different grids: units {partition.grid.describe()}; image {grid.describe()}."
            )
        if not regions:
            raise ValueError("no region to explain was given.")
        for region in regions:
            if region.mask.shape != grid.shape:
                raise ValueError(f"a region has shape {region.mask.shape}; expected the image's, {grid.shape}.")
            if not 0 <= region.target < logits.shape[0]:
                raise ValueError(f"target class {region.target} is none of the network's {logits.shape[0]} classes.")
        if tuple(logits.shape[1:]) != grid.shape:
            raise ValueError(
                f"the prediction has shape {tuple(logits.shape)}; expected the network's raw output (classes, "
                f"{', '.join(str(n) for n in grid.shape)}), before argmax or other post-processing."
            )
        self.settings.heads.check(len(logits), "the prediction")
        if exported is not None and exported.shape != source_grid(image).shape:
            raise ValueError(
                f"the exported label map has shape {exported.shape}; expected that of the image's file, "
                f"{source_grid(image).shape}."
            )

    def _warnings(
        self,
        estimate: ShapleyEstimate,
        region: Region,
        reference: NDArray[np.bool_],
        predicted: NDArray[np.bool_],
        name: str,
        n_visible: int,
    ) -> list[str]:
        part = box_slices(region.box)
        found = score_warnings(region.mask[part], reference, self.scores, name)
        if region.other_voxels:
            found.append(
                f"the region holds {region.other_voxels} voxels of other components of {name} besides the "
                f"{region.component_voxels} of the chosen one, and the scores speak of all of them. A smaller "
                "margin_mm, or extent 'component', leaves them out."
            )
        differing = int((predicted[part] != reference).sum())
        if differing and self.settings.grid == "deployed":
            found.append(
                f"the prediction given differs from the network's own in {differing} voxels of the region's box; the "
                "scores use the network's own. Was it post-processed, or made with other windows?"
            )
        if n_visible == 1:
            found.append("only one unit is visible to the region: its value is the whole effect, full minus empty.")
        for t, score in enumerate(self.scores):
            full, empty = float(estimate.full[t]), float(estimate.empty[t])
            if score != "fp" and abs(empty) > 0.05 * abs(full) and full != 0:
                found.append(
                    f"with every visible unit removed the score {score!r} is still {empty:.4g} (all kept: {full:.4g}): "
                    "the values explain the difference only."
                )
        return found + list(estimate.diagnostics.get("warnings", []))


def _class_name(index: int, names: Sequence[str] | None) -> str:
    return str(names[index]) if names is not None and index < len(names) else f"class {index}"
