# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""KernelSHAP for patch-based 3D segmentation (paper 000), on the deployed model's own windows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray

from monai_segshap.explainers.explanation import Explanation, software_versions
from monai_segshap.explainers.identity import question_identity
from monai_segshap.explainers.sweep import RANKS, Sweep, SweepResult
from monai_segshap.games import check_scores, score_warnings
from monai_segshap.geometry import current_grid, require_finite, source_grid
from monai_segshap.inferers import (
    DILATIONS,
    GRIDS,
    CoalitionEvaluator,
    crop_box,
    monai_window_plan,
    plan_chunks,
)
from monai_segshap.perturbation import Baseline, ConstantBaseline
from monai_segshap.region import Region, box_slices
from monai_segshap.shapley import (
    METHODS,
    CoalitionPlan,
    ShapleyEstimate,
    ValueStore,
    all_coalitions,
    default_budget,
    digest,
    plan_coalitions,
    restrict_plan,
    solve,
)
from monai_segshap.units import Partition

__all__ = ["KernelSHAPExplainer"]

#: Up to this many units enumeration is compared with sampling by the number of network passes.
_MAX_COMPARED_UNITS = 12


@dataclass(frozen=True)
class _RegionView:
    """One region's part of a sweep: the units that it sees, their coalitions, and the rows these come from."""

    visible: NDArray[np.bool_]
    coalitions: CoalitionPlan
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class _Prepared:
    """A case made ready: what will run, before any of it has."""

    evaluator: CoalitionEvaluator
    coalitions: CoalitionPlan
    order: NDArray[np.int64]
    sweep: Sweep
    views: list[_RegionView]
    identity: Callable[[], dict[str, str]]


class KernelSHAPExplainer:
    """Shapley values of units for the segmentation of one or several regions, from one sweep of coalitions.

    Args:
        network: maps (B, C, *roi) to logits (B, classes, *roi), at least two classes (argmax decides).
        inferer: the deployed `SlidingWindowInferer`; its windows, batch size and fusion are used.
        scores: some of "tp", "fp", "dice", "soft_dice".
        budget: coalitions to evaluate (the full and the empty one come on top); None: see
            `monai_segshap.shapley.default_budget`. Sampling needs about 2.5 for each visible unit, warns below 4, and
            is comfortable at 8.
        method: "auto" (exact where enumerating needs no more network passes than sampling, otherwise "kernelshap"),
            "exact", "kernelshap" or "published".
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
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        inferer: SlidingWindowInferer,
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
    ) -> None:
        self.network = network
        self.inferer = inferer
        self.scores = tuple(scores)
        self.budget = budget
        self.method = method
        self.seed = seed
        self.baseline = baseline or ConstantBaseline(0.0)
        self.signal = signal
        self.device = device
        self.grid, self.crop_dilation = grid, crop_dilation
        self.max_bytes = max_bytes
        self.progress = progress
        self.ranks = ranks
        self.store_dir = Path(store_dir) if store_dir is not None else None
        check_scores(self.scores, signal)
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}.")
        if ranks not in RANKS:
            raise ValueError(f"unknown ranks {ranks!r}; expected one of {', '.join(RANKS)}.")
        if grid not in GRIDS or crop_dilation not in DILATIONS:
            raise ValueError(
                f"grid {grid!r} with crop_dilation {crop_dilation!r}; expected one of {', '.join(GRIDS)} and one of "
                f"{', '.join(DILATIONS)}."
            )
        if not self.baseline.is_local:
            raise ValueError(
                f"baseline {self.baseline.kind!r} is not local: the replacement of a voxel depends on which units are "
                "kept, so windows can not be shared between coalitions. Use a constant, blur or local_mean."
            )

    def __call__(
        self,
        image: torch.Tensor,
        partition: Partition,
        regions: Sequence[Region],
        logits: torch.Tensor,
        class_names: Sequence[str] | None = None,
        case: str = "case",
        display: torch.Tensor | None = None,
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

        Returns:
            one explanation for each region.

        Raises:
            ValueError: for images that are not finite, other grids, post-processed logits, no visible unit, or a
                budget too small.
        """
        started = time.perf_counter()
        self._check(image, partition, regions, logits)
        prepared = self._prepare(image, partition, regions, int(logits.shape[0]))
        store = self._store(prepared)
        if self.progress and prepared.sweep.rank == 0:
            print(self._announce(prepared, partition, store), flush=True)
        result = prepared.sweep.run(store, self.progress)
        seconds = {"network": prepared.evaluator.network_seconds, "total": time.perf_counter() - started}
        shared: dict[str, Any] = {
            "case": case,
            "partition": partition,
            "image": np.asarray((image if display is None else display)[0].cpu().numpy(), dtype=np.float32),
            "prediction": logits.argmax(dim=0).cpu().numpy().astype(np.int32),
            "file_grid": source_grid(image),
            "seconds": seconds,
        }
        return [
            self._explanation(prepared, result, number, region, class_names, shared)
            for number, region in enumerate(regions)
        ]

    def _explanation(
        self,
        prepared: _Prepared,
        result: SweepResult,
        number: int,
        region: Region,
        class_names: Sequence[str] | None,
        shared: dict[str, Any],
    ) -> Explanation:
        """Solve one region; units that its windows do not see get exactly 0."""
        name = _class_name(region.target, class_names)
        view = prepared.views[number]
        scores = np.empty_like(result.scores[:, number])
        scores[prepared.order] = result.scores[:, number]
        estimate = solve(view.coalitions, scores[view.rows])
        warnings = self._warnings(
            estimate, region, result.references[number], shared["prediction"], name, int(view.visible.sum())
        )
        values = np.zeros((len(view.visible), len(self.scores)))
        errors = np.zeros_like(values)
        values[view.visible], errors[view.visible] = estimate.values, estimate.standard_errors
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
            evaluations=prepared.coalitions.n_evaluations,
            seed=self.seed,
            baseline=self.baseline.describe(),
            forwards=result.forwards,
            segmentation_forwards=prepared.evaluator.plan.n_windows,
            diagnostics=estimate.diagnostics,
            warnings=tuple(warnings),
            window_grid="deployed" if self.grid == "deployed" else f"crop, {self.crop_dilation} window",
            signal=self.signal,
            reason=prepared.coalitions.reason,
            versions=software_versions(prepared.evaluator.device),
            **shared,
        )

    def _check(
        self, image: torch.Tensor, partition: Partition, regions: Sequence[Region], logits: torch.Tensor
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
        if tuple(logits.shape[1:]) != grid.shape or logits.shape[0] < 2:
            raise ValueError(
                f"the prediction has shape {tuple(logits.shape)}; expected the network's raw output (classes, "
                f"{', '.join(str(n) for n in grid.shape)}) with at least two classes, before argmax or other "
                "post-processing."
            )

    def _prepare(
        self, image: torch.Tensor, partition: Partition, regions: Sequence[Region], n_classes: int
    ) -> _Prepared:
        # on the network's device, so that the fusion weights are computed where the deployed inference computes them
        plain = image.as_subclass(torch.Tensor).to(self.device or image.device)
        fill = self.baseline.fill(plain, partition.grid.spacing_mm)
        labels = torch.from_numpy(partition.labels)
        if self.grid == "crop":
            roi = monai_window_plan(self.inferer, plain).roi_size
            box = crop_box([r.box for r in regions], roi, partition.grid.shape, self.crop_dilation)
            part = box_slices(box)
            inside = (slice(None), *part)
            plain, fill, labels = plain[inside], fill[inside], labels[part]
            regions = [replace(region, mask=region.mask[part]) for region in regions]
        evaluator = CoalitionEvaluator(
            self.network,
            monai_window_plan(self.inferer, plain),
            plain,
            labels,
            fill,
            [region.box for region in regions],
            device=self.device,
            max_bytes=self.max_bytes,
            n_units=partition.n_units,
            whole_grid=self.grid == "crop",
        )
        if evaluator.n_units == 0:
            raise ValueError(
                f"none of the {partition.n_units} units changes a voxel of the {len(evaluator.incidence.active)} "
                "windows that see the region: all are dummies with value 0. They lie too far away, or already equal "
                f"the replacement ({self.baseline.describe()}). Choose other units, another region or another baseline."
            )
        coalitions, order = self._choose(evaluator, n_classes)
        rows = coalitions.rows[order]
        chunks = plan_chunks(evaluator, rows, n_classes)
        sweep = Sweep(evaluator, rows, chunks, regions, self.scores, self.signal, self.ranks)
        views = [self._view(evaluator, coalitions, region) for region in regions]
        identity = partial(question_identity, evaluator, sweep, coalitions, partition, fill, plain)
        return _Prepared(evaluator, coalitions, order, sweep, views, identity)

    def _choose(self, evaluator: CoalitionEvaluator, n_classes: int) -> tuple[CoalitionPlan, NDArray[np.int64]]:
        """Coalitions, and the order in which they run: the full coalition, which defines P_0, first."""
        m = evaluator.n_units
        budget = default_budget(m) if self.budget is None else self.budget
        if m == 1 and self.method != "published":
            plan = plan_coalitions(1, 2, "exact", self.seed)
        else:
            plan = plan_coalitions(m, budget, self.method, self.seed)
        if self.method == "auto" and plan.method != "exact" and m <= _MAX_COMPARED_UNITS:
            reason = f"all 2**{m} coalitions need no more network passes than {plan.n_evaluations} sampled ones"
            complete = CoalitionPlan(all_coalitions(m), "exact", self.seed, reason=reason)
            exact, sampled = (evaluator.prepare(p.rows, n_classes).jobs.n_forwards for p in (complete, plan))
            plan = complete if exact <= sampled else plan
        others = np.delete(np.arange(plan.n_evaluations), plan.full_row)
        return plan, np.concatenate([[plan.full_row], others])

    def _announce(self, prepared: _Prepared, partition: Partition, store: ValueStore | None) -> str:
        counts, m = prepared.sweep.planned, prepared.evaluator.n_units
        return (
            f"{partition.n_units} {partition.noun} units: {m} visible to the region, {partition.n_units - m} dummies "
            "with value 0\n"
            f"{prepared.coalitions.n_evaluations} coalitions, method {prepared.coalitions.method}: "
            f"{prepared.coalitions.reason}\n"
            f"network passes (windows): naive {counts.naive}, published cache {counts.published_cache}, "
            f"planned {counts.planned} (1/{counts.naive / max(counts.planned, 1):.1f} of naive)"
            + (f"\nfinished coalitions are kept in {store.folder}; the same call continues there" if store else "")
        )

    def _store(self, prepared: _Prepared) -> ValueStore | None:
        """The question's store, if one is wanted; ranks that share a sweep must have the same question."""
        if self.store_dir is None and prepared.sweep.world_size == 1:
            return None  # nobody needs the digests of image and weights
        identity = prepared.identity()
        name = digest(json.dumps(identity, sort_keys=True))
        prepared.sweep.require_one_case(name)
        return ValueStore(self.store_dir / name[:16], identity) if self.store_dir is not None else None

    def _view(self, evaluator: CoalitionEvaluator, coalitions: CoalitionPlan, region: Region) -> _RegionView:
        """The coalitions as one region sees them; refuses, before any pass, what could not be solved afterwards."""
        touching = np.isin(evaluator.incidence.active, evaluator.plan.touching([region.box]))
        seen = np.asarray(evaluator.incidence.live[touching].any(axis=0))
        if not seen.any():
            raise ValueError(
                f"no unit changes a voxel of the windows that see the region {region.box}, unlike the other regions: "
                "all its values would be 0. Leave it out, or choose other units."
            )
        visible = np.zeros(len(evaluator.visible), dtype=bool)
        visible[np.flatnonzero(evaluator.visible)[seen]] = True
        restricted, rows = restrict_plan(coalitions, seen)
        return _RegionView(visible, restricted, rows)

    def _warnings(
        self,
        estimate: ShapleyEstimate,
        region: Region,
        reference: NDArray[np.bool_],
        prediction: NDArray[np.integer],
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
        differing = int(((prediction[part] == region.target) != reference).sum())
        if differing and self.grid == "deployed":
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
