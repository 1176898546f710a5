# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Run coalitions through a network: fewest windows, same bits as the whole-volume inference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.inferers.contents import WindowContents
from monai_segshap.inferers.images import PerturbedImages
from monai_segshap.inferers.jobs import ForwardCounts, Incidence, JobPlan, compute_incidence, count_forwards, plan_jobs
from monai_segshap.inferers.passes import NetworkPasses
from monai_segshap.inferers.window_plan import WindowPlan
from monai_segshap.region import Box
from monai_segshap.shapley import digest

__all__ = ["CoalitionEvaluator", "EvaluationPlan", "infer_volume", "mean_of_folds"]

#: Slices of a window (or None where it misses the region), and of the region, for one region.
_Cut = tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]


@dataclass(frozen=True)
class EvaluationPlan:
    """Coalitions with their jobs.

    Attributes:
        rows: bool (K, M).
        n_classes: channels of the network's output.
        jobs: the network passes.
        forwards: their number, with and without reuse.
    """

    rows: NDArray[np.bool_]
    n_classes: int
    jobs: JobPlan
    forwards: ForwardCounts


class CoalitionEvaluator:
    """Fused logits inside regions for any set of coalitions of units.

    Only windows that touch a region run, each distinct content once, in the batch size in which the library runs that
    window; logits are kept inside the regions, for all classes, until no later coalition needs them; they are
    added up in the library's order with its weights. In the regions the result equals the whole-volume inference of
    the perturbed image bit for bit, if the network gives a window the same bits at any place of such a batch
    (`monai_segshap.inferers.calibrate` tests that). Units that change no voxel of these windows are left out: see
    ``visible``. Where units own channels, windows that are alike once all their units are removed, such as those of
    nothing but 0, run once for all of them.

    Args:
        network: maps (B, C, *roi) to logits (B, classes, *roi), or (B, folds * classes, *roi), see `WindowPlan`.
        plan: windows of the deployed inference.
        image: (C, H, W, D), network space, finite.
        labels: int (H, W, D), units 1..M, 0 is never perturbed; or (C, H, W, D), units that own single channels.
        fill: (C, H, W, D), replacement of removed voxels.
        boxes: the regions' boxes, image indices, both corners inside.
        device: where the network runs; default the image's.
        max_bytes: bound for the logits kept from one coalition to the next.
        n_units: M; default the largest label.
        whole_grid: see `count_forwards`.
        perturbed: makes the images of coalitions where a removed unit changes voxels beyond its own; then ``fill`` is
            not used, and no window is shared.

    Attributes:
        visible: bool (M,), units that change a voxel of a window that touches a region. Coalitions are of these.
        n_units: their number.
        incidence: of these units.
        library_sizes: int64 (A,), batch size in which the library runs each active window.
        run_sizes: int64 (A,), batch size in which each runs here; see `use_batch_sizes`.
        stitch_device: where windows are added up, and logits of regions come out.
        passes: runs and counts the network passes.
        peak_held_bytes: most bytes of logits held at once so far.

    Raises:
        ValueError: for mismatched shapes, or a box outside the image.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        plan: WindowPlan,
        image: torch.Tensor,
        labels: torch.Tensor,
        fill: torch.Tensor,
        boxes: Sequence[Box],
        device: torch.device | str | None = None,
        max_bytes: int = 4 * 1024**3,
        n_units: int | None = None,
        whole_grid: bool = False,
        perturbed: PerturbedImages | None = None,
    ) -> None:
        if tuple(image.shape[1:]) != plan.image_shape or tuple(labels.shape) not in (plan.image_shape, image.shape):
            raise ValueError(
                f"image {tuple(image.shape)} and labels {tuple(labels.shape)} do not fit a plan for {plan.image_shape}."
            )
        for low, high in boxes:
            if min(low) < 0 or any(b < a or b >= n for a, b, n in zip(low, high, plan.image_shape, strict=True)):
                raise ValueError(f"the region's box {(low, high)} does not lie inside the image {plan.image_shape}.")
        if fill.shape != image.shape:
            raise ValueError(f"the fill has shape {tuple(fill.shape)}; expected the image's, {tuple(image.shape)}.")
        if not bool(torch.isfinite(fill).all()):
            raise ValueError(
                "the baseline holds values that are not finite: a removed voxel would become NaN or infinite."
            )
        self.plan = plan
        self.device = torch.device(device) if device is not None else image.device
        self.max_bytes = max_bytes
        self.whole_grid = whole_grid
        self.passes = NetworkPasses(network, self.device)
        self.peak_held_bytes = self._held_bytes = 0
        active = plan.touching(boxes)
        incidence = compute_incidence(plan, active, labels, image, fill, n_units or int(labels.max()))
        self.perturbed = perturbed
        if perturbed is not None:
            incidence = perturbed.incidence(incidence)
        self.visible = incidence.visible
        self.n_units = int(self.visible.sum())
        self.incidence: Incidence = incidence.restricted_to(self.visible)
        self.library_sizes = plan.batch_sizes[active]
        self.run_sizes = self.library_sizes
        self._contents = WindowContents(plan, image, labels, fill, self.visible, self.device, perturbed)
        self._scratch: torch.Tensor | None = None
        self._cuts = [[_cut(plan, int(w), box) for box in boxes] for w in active]
        self._box_shapes = [tuple(h - lo + 1 for lo, h in zip(*box, strict=True)) for box in boxes]
        self.stitch_device = plan.stitch_device or self.device
        self._weight = plan.weight.to(self.device)
        self._counts = [self._count(b) for b in range(len(boxes))]
        self._twins = self._find_twins() if labels.ndim == 4 and perturbed is None else None
        self._entry_voxels = np.array(
            [sum(_volume(c[0]) for c in cuts if c is not None) for cuts in self._cuts], dtype=np.int64
        )

    @property
    def network(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The network that runs."""
        return self.passes.network

    def with_network(self, network: Callable[[torch.Tensor], torch.Tensor]) -> CoalitionEvaluator:
        """The same windows and units for another network, such as the next fold's; image and units are shared."""
        other = copy.copy(self)
        other.passes = NetworkPasses(network, self.device)
        other.run_sizes, other._scratch = self.library_sizes, None
        other.peak_held_bytes = other._held_bytes = 0
        return other

    @property
    def n_forwards(self) -> int:
        """Windows that have gone through the network."""
        return self.passes.n_windows

    @property
    def image_bytes(self) -> int:
        """Bytes of image, replacement, units and weights on the device."""
        # one more image for batches of one
        return self._contents.n_bytes + _bytes([self._contents.image, self._weight])

    def use_batch_sizes(self, sizes: Mapping[int, int]) -> None:
        """Run windows in other batches than the library.

        Args:
            sizes: library batch size -> batch size to use.
        """
        self.run_sizes = np.array([sizes.get(int(s), int(s)) for s in self.library_sizes], dtype=np.int64)

    def prepare(self, rows: NDArray[np.bool_], n_classes: int) -> EvaluationPlan:
        """Plan the passes for coalitions before any of them runs.

        Args:
            rows: bool (K, ``n_units``), True keeps a visible unit.
            n_classes: channels of the prediction.
        """
        if rows.ndim != 2 or rows.shape[1] != self.n_units:
            raise ValueError(f"coalitions have shape {rows.shape}; expected (K, {self.n_units}).")
        itemsize = self._contents.image.element_size()
        jobs = plan_jobs(
            rows,
            self.incidence,
            self.run_sizes,
            self._entry_voxels * n_classes * self.plan.folds * itemsize,
            self.max_bytes,
            self._twins,
        )
        return EvaluationPlan(rows, n_classes, jobs, count_forwards(rows, self.incidence, jobs, self.whole_grid))

    def run(
        self, evaluation: EvaluationPlan, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """Yield (row, logits of each region) for every coalition, in order of the rows.

        Args:
            evaluation: what `prepare` returned.
            progress: called with the number of windows after each network batch.

        Yields:
            row number, and for each region a tensor (classes, *box) on the stitching device.
        """
        jobs = evaluation.jobs
        held: dict[int, list[torch.Tensor]] = {}
        self._held_bytes = 0
        expiry: dict[int, list[int]] = {}
        for job, last in enumerate(jobs.last_use):
            expiry.setdefault(int(last), []).append(job)
        row = 0
        for number, (batch, size) in enumerate(zip(jobs.batches, jobs.batch_sizes, strict=True)):
            self._run_batch(evaluation, batch, int(size), held)
            if progress is not None:
                progress(int(size))
            while row < len(jobs.ready) and jobs.ready[row] <= number:
                yield row, self._fuse([held[int(job)] for job in jobs.uses[row]])
                for job in expiry.get(row, []):
                    self._held_bytes -= _bytes(held.pop(job))
                row += 1

    def _run_batch(
        self, evaluation: EvaluationPlan, batch: tuple[int, ...], size: int, held: dict[int, list[torch.Tensor]]
    ) -> None:
        jobs = evaluation.jobs
        windows = self.windows(evaluation, [*batch, *[batch[-1]] * (size - len(batch))])
        logits = self.passes(windows)
        self.check(logits, size, evaluation.n_classes)
        for position, job in enumerate(batch):
            held[job] = self._weighted_cuts(int(jobs.windows[job]), logits[position])
            self._held_bytes += _bytes(held[job])
        self.peak_held_bytes = max(self.peak_held_bytes, self._held_bytes)

    def windows(self, evaluation: EvaluationPlan, jobs: Sequence[int]) -> torch.Tensor:
        """Input windows (B, C, *roi) of some jobs, in the memory layout in which the library sends them."""
        windows, rows = evaluation.jobs.windows, evaluation.jobs.rows
        if len(jobs) > 1 or self.plan.contiguous:
            made = self._empty(len(jobs))
            for position, job in enumerate(jobs):
                self._write(made[position], int(windows[job]), evaluation.rows[rows[job]])
            return made
        # a batch of one is a view of the image there, and reductions round by the strides
        if self._scratch is None:
            self._scratch = torch.empty_like(self._contents.image)
        (job,) = jobs
        place = (slice(None), *self.plan.window_slices(int(self.incidence.active[int(windows[job])])))
        part = self._scratch[place]
        self._write(part, int(windows[job]), evaluation.rows[rows[job]])
        return part[None]

    def _empty(self, n: int) -> torch.Tensor:
        image = self._contents.image
        return torch.empty((n, len(image), *self.plan.roi_size), dtype=image.dtype, device=image.device)

    def _write(self, out: torch.Tensor, active: int, row: NDArray[np.bool_]) -> None:
        self._contents.write(out, int(self.incidence.active[active]), row)

    def _find_twins(self) -> NDArray[np.int64]:
        """For each active window the first one with the same content, all units removed, and the same part to keep."""
        none = np.zeros(self.n_units, dtype=bool)
        known: dict[Any, int] = {}
        found, (window,) = [], self._empty(1)
        for a, cuts in enumerate(self._cuts):
            inside = str([None if cut is None else cut[0] for cut in cuts])
            self._write(window, a, none)
            key = (digest(window.cpu().numpy()), inside)
            found.append(known.setdefault(key, a))
        return np.array(found, dtype=np.int64)

    def check(self, logits: Any, size: int, n_classes: int) -> None:
        """Raise unless a network's answer to a batch is one tensor of logits at full resolution."""
        folds = self.plan.folds
        expected = (size, folds * n_classes, *self.plan.roi_size)
        came = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if came != expected:
            raise ValueError(
                f"the network returned {came} for a batch of windows; expected one tensor of shape {expected}: "
                f"full-resolution logits of the {n_classes} classes of the whole-volume prediction"
                + (f", for each of {folds} folds." if folds > 1 else ".")
            )

    def _weighted_cuts(self, active: int, logits: torch.Tensor) -> list[torch.Tensor]:
        cuts = []
        for cut in self._cuts[active]:
            if cut is None:
                cuts.append(logits.new_empty(0))
                continue
            place = (slice(None), *cut[0])
            inside = logits[place].clone()
            inside *= self._weight[cut[0]]  # in the dtype of the logits, as the library does
            cuts.append(inside.to(self.stitch_device))
        return cuts

    def _fuse(self, entries: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        fused = []
        for b, shape in enumerate(self._box_shapes):
            total: torch.Tensor | None = None
            for a, entry in enumerate(entries):
                cut = self._cuts[a][b]
                if cut is None:
                    continue
                if total is None:
                    total = torch.zeros(
                        (entry[b].shape[0], *shape), dtype=self.plan.weight.dtype, device=self.stitch_device
                    )
                place = (slice(None), *cut[1])
                total[place] += entry[b]
            if total is None:
                raise ValueError("no window touches a region; is its box inside the image?")
            total /= self._counts[b]
            fused.append(mean_of_folds(total, self.plan.folds))
        return fused

    def _count(self, b: int) -> torch.Tensor:
        count = torch.zeros(self._box_shapes[b], dtype=self.plan.weight.dtype, device=self.stitch_device)
        weight = self._weight.to(self.stitch_device)
        for cuts in self._cuts:
            cut = cuts[b]
            if cut is not None:
                count[cut[1]] += weight[cut[0]]
        return count


def infer_volume(
    network: Callable[[torch.Tensor], torch.Tensor],
    plan: WindowPlan,
    image: torch.Tensor,
    progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Whole-volume inference by a plan, window by window: the same bits as `CoalitionEvaluator` finds in any region.

    Args:
        network: as there; where the image is.
        plan: of windows that the library sends one at a time (batch size 1).
        image: (C, H, W, D).
        progress: called with 1 after each window.

    Returns:
        fused logits (classes, H, W, D) in the dtype of the plan's weight, on the plan's stitching device.
    """
    padded = plan.pad(image.as_subclass(torch.Tensor), as_image=True)
    device = plan.stitch_device or image.device
    weight = plan.weight.to(image.device)
    total: torch.Tensor | None = None
    count = torch.zeros(plan.padded_shape, dtype=weight.dtype, device=device)
    for number in range(plan.n_windows):
        place = plan.window_slices(number)
        inside = (slice(None), *place)
        logits = network(padded[inside][None].contiguous())[0].clone()
        if total is None:
            total = torch.zeros((logits.shape[0], *plan.padded_shape), dtype=weight.dtype, device=device)
        logits *= weight
        total[inside] += logits.to(device)
        count[place] += weight.to(device)
        if progress is not None:
            progress(1)
    if total is None:
        raise ValueError("the plan holds no window.")
    total /= count
    h, w, d = (slice(p, p + n) for p, n in zip(plan.low_padding, plan.image_shape, strict=True))
    return mean_of_folds(total[:, h, w, d], plan.folds)


def mean_of_folds(logits: torch.Tensor, folds: int) -> torch.Tensor:
    """Mean over folds, added up one after the other: (folds * classes, ...) to (classes, ...)."""
    if folds == 1:
        return logits
    first, *others = logits.reshape(folds, -1, *logits.shape[1:])
    mean = first.clone()
    for other in others:
        mean += other
    mean /= folds
    return mean


def _cut(plan: WindowPlan, window: int, box: Box) -> _Cut | None:
    """Where a window and a box overlap: slices of the window and of the box."""
    inside, target = [], []
    for axis in range(3):
        start = int(plan.starts[window, axis]) - plan.low_padding[axis]
        low, high = max(start, box[0][axis]), min(start + plan.roi_size[axis] - 1, box[1][axis])
        if high < low:
            return None
        inside.append(slice(low - start, high - start + 1))
        target.append(slice(low - box[0][axis], high - box[0][axis] + 1))
    return (inside[0], inside[1], inside[2]), (target[0], target[1], target[2])


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.element_size() * t.numel() for t in tensors)


def _volume(slices: tuple[slice, slice, slice]) -> int:
    return int(np.prod([s.stop - s.start for s in slices]))
