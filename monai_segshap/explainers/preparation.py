# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Make a case ready: windows, visible units, coalitions, calibration and passes, before any coalition runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from numpy.typing import NDArray

from monai_segshap.explainers.identity import question_identity
from monai_segshap.explainers.ranks import Ranks
from monai_segshap.explainers.sweep import Sweep
from monai_segshap.games import check_scores
from monai_segshap.heads import OutputHeads
from monai_segshap.inferers import (
    DILATIONS,
    GRIDS,
    Calibration,
    CoalitionEvaluator,
    PerturbedImages,
    calibrate,
    check_batch_size,
    crop_box,
    plan_chunks,
    window_plan_of,
)
from monai_segshap.numerics import NumericMode, autocast_state
from monai_segshap.perturbation import Baseline
from monai_segshap.region import Box, Region, box_slices
from monai_segshap.shapley import (
    METHODS,
    CoalitionPlan,
    Locality,
    ValueStore,
    all_coalitions,
    default_budget,
    digest,
    least_rows,
    plan_coalitions,
    plan_prefix,
    restrict_plan,
    stop_rows,
)
from monai_segshap.units import Partition, region_blocks, typical_unit_size, unit_distances

__all__ = ["PRIORS", "PreparedCase", "RegionView", "SweepSettings"]

#: What the estimators may assume: units far from the region matter less, or nothing.
PRIORS = ("distance", "flat")
#: Up to this many units enumeration is compared with sampling by the number of network passes.
_MAX_COMPARED_UNITS = 12
#: Coalitions whose windows are used to calibrate.
_CALIBRATION_ROWS = 32


@dataclass(frozen=True)
class SweepSettings:
    """What is asked of every case; the fields are the arguments of `KernelSHAPExplainer`."""

    network: Callable[[torch.Tensor], torch.Tensor]
    inferer: Inferer
    scores: tuple[str, ...]
    budget: int | None
    method: str
    seed: int
    baseline: Baseline
    signal: str
    device: torch.device | str | None
    grid: str
    crop_dilation: str
    max_bytes: int
    ranks: Ranks
    store_dir: Path | None
    batch_size: str | int
    numerics: NumericMode
    tolerance: float | None
    prior: str
    second_baseline: Baseline | None
    heads: OutputHeads
    #: calibrations of this process by network and windows
    known: dict[Any, Calibration] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_scores(self.scores, self.signal)
        check_batch_size(self.batch_size)
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; expected one of {', '.join(METHODS)}.")
        if self.grid not in GRIDS or self.crop_dilation not in DILATIONS:
            raise ValueError(
                f"grid {self.grid!r} with crop_dilation {self.crop_dilation!r}; expected one of {', '.join(GRIDS)} and "
                f"one of {', '.join(DILATIONS)}."
            )
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; expected a share of the largest value, above 0, below 1.")
        if self.prior not in PRIORS:
            raise ValueError(f"unknown prior {self.prior!r}; expected one of {', '.join(PRIORS)}.")
        for baseline in (self.baseline, self.second_baseline):
            if baseline is not None and not baseline.is_local:
                raise ValueError(
                    f"baseline {baseline.kind!r} is not local: the replacement of a voxel depends on which units are "
                    "kept, so windows can not be shared between coalitions. Use a constant, blur or local_mean."
                )


@dataclass(frozen=True)
class RegionView:
    """One region's part of a sweep.

    Attributes:
        visible: bool (M,), units that it sees.
        seen: the same among the units that any region sees.
        locality: of the units that it sees.
        blocks: int64 (voxels of the region,), block of each voxel.
    """

    visible: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    locality: Locality
    blocks: NDArray[np.int64]


class PreparedCase:
    """A case with its windows and coalitions; nothing has run yet.

    Args:
        settings: what is asked.
        image: (C, H, W, D), network space.
        partition: the units.
        regions: what is explained.
        logits: (classes, H, W, D), whole-volume prediction.
        perturbed: makes perturbed images, see `CoalitionEvaluator`.

    Attributes:
        evaluator: of the image, or of its crop.
        coalitions: of the visible units.
        order: int64 (K,), order in which they run: the full coalition, which defines P_0, first.
        views: each region's part.

    Raises:
        ValueError: if no unit is visible, or the budget is too small.
    """

    def __init__(
        self,
        settings: SweepSettings,
        image: torch.Tensor,
        partition: Partition,
        regions: Sequence[Region],
        logits: torch.Tensor,
        perturbed: PerturbedImages | None = None,
    ) -> None:
        self.settings, self.partition = settings, partition
        if perturbed is not None and settings.grid == "crop":
            raise ValueError("images that are perturbed as a whole need the deployed grid; use grid='deployed'.")
        self.n_classes = int(logits.shape[0])
        boxes, masks = [region.box for region in regions], [region.mask for region in regions]
        self.predictions = [_inside(logits.as_subclass(torch.Tensor), box) for box in boxes]
        # on the network's device, so that the fusion weights are computed where the deployed inference computes them
        plain = image.as_subclass(torch.Tensor).to(settings.device or image.device)
        fill = settings.baseline.fill(plain, partition.grid.spacing_mm)
        labels = torch.from_numpy(partition.labels)
        if settings.grid == "crop":
            roi = window_plan_of(settings.inferer, plain).roi_size
            box = crop_box(boxes, roi, partition.grid.shape, settings.crop_dilation)
            plain, fill, labels = (_inside(volume, box) for volume in (plain, fill, labels))
            regions = [replace(region, mask=region.mask[box_slices(box)]) for region in regions]
        self.regions, self.image, self.fill = regions, plain, fill
        device = torch.device(settings.device) if settings.device is not None else plain.device
        self.evaluator = CoalitionEvaluator(
            settings.numerics.apply(settings.network, device),
            window_plan_of(settings.inferer, plain),
            plain,
            labels,
            fill,
            [region.box for region in regions],
            device=device,
            max_bytes=settings.max_bytes,
            n_units=partition.n_units,
            whole_grid=settings.grid == "crop",
            perturbed=perturbed,
        )
        self._require_visible_units()
        self.coalitions = self._choose()
        others = np.delete(np.arange(self.coalitions.n_evaluations), self.coalitions.full_row)
        self.order = np.concatenate([[self.coalitions.full_row], others])
        self.views = [self._view(*pair) for pair in zip(regions, masks, strict=True)]
        for view in self.views:
            restrict_plan(self.coalitions, view.seen)  # refuses, before any pass, what could not be solved afterwards

    @cached_property
    def identity(self) -> dict[str, str]:
        """Everything that a score depends on but its coalition; see `question_identity`."""
        settings = self.settings
        return question_identity(
            self.evaluator,
            settings.network,
            self.regions,
            [view.blocks for view in self.views],
            settings.signal,
            self.coalitions,
            self.partition,
            self.fill,
            self.image,
            settings.numerics,
            settings.batch_size,
            settings.heads,
        )

    def open_store(self) -> ValueStore | None:
        """The question's store, if one is wanted; ranks that share a case must have the same question."""
        settings = self.settings
        if settings.store_dir is None and settings.ranks.count == 1:
            return None  # nobody needs the digests of image and weights
        name = digest(json.dumps(self.identity, sort_keys=True))
        settings.ranks.require_one_case(name)
        return ValueStore(settings.store_dir / name[:16], self.identity) if settings.store_dir is not None else None

    def plan(self, store: ValueStore | None) -> tuple[Sweep, Calibration]:
        """Choose batch sizes and list every pass.

        The calibration of an interrupted run is taken from its store, so that it continues with the same batches; of
        several ranks the first one calibrates.
        """
        sweep = self._sweep()
        found = self._calibration(store, sweep.planned.planned)
        self.evaluator.use_batch_sizes(found.batch_sizes)
        return (sweep if all(a == b for a, b in found.batch_sizes.items()) else self._sweep()), found

    def _sweep(self) -> Sweep:
        settings, rows = self.settings, self.coalitions.rows[self.order]
        # chunks end at every stop, so that a store serves all estimators of pairs
        chunks = plan_chunks(self.evaluator, rows, self.n_classes, stop_rows(self.coalitions))
        return Sweep(
            self.evaluator,
            rows,
            chunks,
            self.regions,
            [view.blocks for view in self.views],
            self.predictions,
            settings.scores,
            settings.signal,
            settings.ranks,
            settings.heads,
        )

    def _calibration(self, store: ValueStore | None, planned: int) -> Calibration:
        ranks, text = self.settings.ranks, ""
        if ranks.own == 0:
            kept = _kept_calibration(store)
            found = kept or self._calibrate(planned)
            if store is not None and kept is None:
                store.write_note("calibration", found.to_dict())
            text = json.dumps(found.to_dict())
        return Calibration.from_dict(json.loads(ranks.text_of_first(text)))

    def _calibrate(self, planned: int) -> Calibration:
        """Once for a network and its windows; the next cases of this process need no further passes."""
        settings, plan = self.settings, self.evaluator.plan
        sizes = tuple(sorted({int(s) for s in self.evaluator.library_sizes}))
        device = self.evaluator.device
        windows = (plan.roi_size, sizes, self.image.shape[0], self.image.dtype)
        key = (id(settings.network), windows, str(device), autocast_state(device))
        if key in settings.known:
            return replace(settings.known[key], passes=0)
        rows = self.coalitions.rows[self.order[:_CALIBRATION_ROWS]]
        exact = None if settings.numerics.is_exact else settings.network
        found = calibrate(
            self.evaluator, self.evaluator.prepare(rows, self.n_classes), settings.batch_size, planned, exact
        )
        settings.known[key] = found
        return found

    def _require_visible_units(self) -> None:
        if self.evaluator.n_units == 0:
            raise ValueError(
                f"none of the {self.partition.n_units} units changes a voxel of the "
                f"{len(self.evaluator.incidence.active)} windows that see the region: all are dummies with value 0. "
                "They lie too far away, or already equal the replacement "
                f"({self.settings.baseline.describe()}). Choose other units, another region or another baseline."
            )

    def _choose(self) -> CoalitionPlan:
        settings, m = self.settings, self.evaluator.n_units
        budget = default_budget(m) if settings.budget is None else settings.budget
        if m == 1 and settings.method != "published":
            plan = plan_coalitions(1, 2, "exact", settings.seed)
        else:
            plan = plan_coalitions(m, budget, settings.method, settings.seed)
        if settings.method == "auto" and plan.method != "exact" and m <= _MAX_COMPARED_UNITS:
            reason = f"all 2**{m} coalitions need no more network passes than {plan.n_evaluations} sampled ones"
            complete = CoalitionPlan(all_coalitions(m), "exact", settings.seed, reason=reason)
            exact, sampled = (self.evaluator.prepare(p.rows, self.n_classes).jobs.n_forwards for p in (complete, plan))
            plan = complete if exact <= sampled else plan
        return plan

    @property
    def stops(self) -> list[int]:
        """Numbers of coalitions after which the values can be trusted enough to look at them."""
        least = least_rows(self.coalitions)
        return [n for n in stop_rows(self.coalitions) if n >= least]

    def coalitions_of(self, view: RegionView, n_rows: int) -> tuple[CoalitionPlan, NDArray[np.int64]]:
        """What a region sees of the first coalitions, and their rows in the order of the sweep."""
        plan = self.coalitions
        if n_rows < plan.n_evaluations:
            plan = plan_prefix(plan, n_rows - 2)
        restricted, rows = restrict_plan(plan, view.seen)
        place = np.empty(plan.n_evaluations, dtype=np.int64)
        place[self.order[:n_rows]] = np.arange(n_rows)
        return restricted, place[rows]

    def _view(self, region: Region, mask: NDArray[np.bool_]) -> RegionView:
        """The units that a region sees, and where they lie; ``mask`` is the region on the image's grid."""
        evaluator, partition = self.evaluator, self.partition
        touching = np.isin(evaluator.incidence.active, evaluator.plan.touching([region.box]))
        seen = np.asarray(evaluator.incidence.live[touching].any(axis=0))
        if not seen.any():
            raise ValueError(
                f"no unit changes a voxel of the windows that see the region {region.box}, unlike the other regions: "
                "all its values would be 0. Leave it out, or choose other units."
            )
        visible = np.zeros(len(evaluator.visible), dtype=bool)
        visible[np.flatnonzero(evaluator.visible)[seen]] = True
        unit_size = typical_unit_size(partition, visible)
        blocks = region_blocks(mask, partition.grid, unit_size)
        locality = Locality(unit_size_mm=unit_size)
        if self.settings.prior == "distance":
            to_region, to_blocks = unit_distances(partition, mask, blocks)
            locality = Locality(to_region, unit_size, to_blocks).restricted_to(visible)
        return RegionView(visible, seen, locality, blocks)


def _kept_calibration(store: ValueStore | None) -> Calibration | None:
    """The calibration of an interrupted run; None if there is none that can be read."""
    note = store.read_note("calibration") if store is not None else None
    try:
        return Calibration.from_dict(note) if note is not None else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _inside(volume: torch.Tensor, box: Box) -> torch.Tensor:
    """A volume (..., H, W, D) inside a box."""
    place = (..., *box_slices(box))
    return volume[place]
