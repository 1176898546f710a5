# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Which network passes a set of coalitions needs: incidence of windows and units, and the list of jobs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.inferers.window_plan import WindowPlan

__all__ = ["ForwardCounts", "Incidence", "JobPlan", "channel_units", "compute_incidence", "count_forwards", "plan_jobs"]


@dataclass(frozen=True)
class Incidence:
    """Which units are in which windows.

    Attributes:
        active: int64 (A,), windows that touch a region, ascending.
        live: bool (A, M), the unit's removal changes a voxel of the active window.
        member: bool (W, M), the unit has a voxel in the window (any window of the grid).
    """

    active: NDArray[np.int64]
    live: NDArray[np.bool_]
    member: NDArray[np.bool_]

    @property
    def visible(self) -> NDArray[np.bool_]:
        """Bool (M,): units that change a voxel of an active window. All others are dummies with Shapley value 0."""
        return np.asarray(self.live.any(axis=0))

    def restricted_to(self, units: NDArray[np.bool_]) -> Incidence:
        """The incidence of some units alone."""
        return Incidence(self.active, self.live[:, units], self.member[:, units])


def channel_units(labels: torch.Tensor) -> NDArray[np.int64] | None:
    """The unit of each channel, int64 (C,), where units own whole channels; None where they own single voxels.

    Args:
        labels: int (H, W, D), or (C, H, W, D), which may be an expanded view.
    """
    if labels.ndim != 4:
        return None
    low, high = labels.amin(dim=(1, 2, 3)), labels.amax(dim=(1, 2, 3))
    return low.cpu().numpy().astype(np.int64) if torch.equal(low, high) else None


def compute_incidence(
    plan: WindowPlan,
    active: NDArray[np.int64],
    labels: torch.Tensor,
    image: torch.Tensor,
    fill: torch.Tensor,
    n_units: int,
) -> Incidence:
    """Find the units of each window, from preprocessed values.

    Args:
        plan: the window plan.
        active: windows that touch a region.
        labels: int (H, W, D), 0..M; or (C, H, W, D), units that own single channels.
        image: (C, H, W, D), network space.
        fill: (C, H, W, D), replacement of removed voxels.
        n_units: M.

    Returns:
        the incidence. A unit that equals its replacement in a window does not count as live there.
    """
    differs = image != fill
    owners = channel_units(labels)
    if owners is not None:
        return _incidence_of_channels(plan, active, owners, differs, n_units)
    if labels.ndim == 3:
        labels, differs = labels[None], differs.any(dim=0, keepdim=True)
    padded = plan.pad(labels.cpu(), as_image=False).numpy()
    changed = plan.pad(differs.cpu().to(torch.uint8), as_image=False).numpy().astype(bool)
    member = np.zeros((plan.n_windows, n_units), dtype=bool)
    live = np.zeros((len(active), n_units), dtype=bool)
    position = {int(w): a for a, w in enumerate(active)}
    for window in range(plan.n_windows):
        part = (slice(None), *plan.window_slices(window))
        inside = padded[part]
        member[window] = np.bincount(inside.ravel(), minlength=n_units + 1)[1:] > 0
        if window in position:
            live[position[window]] = np.bincount(inside[changed[part]], minlength=n_units + 1)[1:] > 0
    return Incidence(active, live, member)


def _incidence_of_channels(
    plan: WindowPlan, active: NDArray[np.int64], owners: NDArray[np.int64], differs: torch.Tensor, n_units: int
) -> Incidence:
    """The same where units own whole channels: every window that holds a voxel of the image has all of them."""
    changed = plan.pad(differs.cpu().to(torch.uint8), as_image=False).numpy()
    inside = plan.pad(torch.ones((1, *plan.image_shape), dtype=torch.uint8), as_image=False).numpy()
    owned = owners > 0
    member = np.zeros((plan.n_windows, n_units), dtype=bool)
    live = np.zeros((len(active), n_units), dtype=bool)
    for window in range(plan.n_windows):
        part = (slice(None), *plan.window_slices(window))
        member[window, owners[owned] - 1] = inside[part].any()
    for position, window in enumerate(active):
        part = (slice(None), *plan.window_slices(int(window)))
        touched = owned & changed[part].any(axis=(1, 2, 3))
        live[position, owners[touched] - 1] = True
    return Incidence(active, live, member)


@dataclass(frozen=True)
class JobPlan:
    """Network passes for a set of coalitions, in the order in which they run.

    A job is one active window with one content. Coalitions that agree on the live units of a window share it.

    Attributes:
        windows: int64 (J,), position of the job's window among the active ones; its twins may use it, too.
        rows: int64 (J,), a coalition whose content the job has.
        uses: int64 (K, A), the job that gives each coalition the logits of each active window.
        last_use: int64 (J,), the last coalition that needs the job; its logits are dropped afterwards.
        batches: job numbers of each network batch.
        batch_sizes: int64 (number of batches,), windows that go through the network in each batch: fillers included.
        ready: int64 (K,), the batch after which each coalition can be fused, in order of the rows.
        peak_bytes: most bytes of logits held at once during the run.
        repeated: jobs that run again because the byte bound was too small to keep their logits.
    """

    windows: NDArray[np.int64]
    rows: NDArray[np.int64]
    uses: NDArray[np.int64]
    last_use: NDArray[np.int64]
    batches: tuple[tuple[int, ...], ...]
    batch_sizes: NDArray[np.int64]
    ready: NDArray[np.int64]
    peak_bytes: int
    repeated: int

    @property
    def n_forwards(self) -> int:
        """Windows that go through the network, fillers included."""
        return int(self.batch_sizes.sum())


def plan_jobs(
    rows: NDArray[np.bool_],
    incidence: Incidence,
    batch_sizes: NDArray[np.int64],
    entry_bytes: NDArray[np.int64],
    max_bytes: int,
    twins: NDArray[np.int64] | None = None,
) -> JobPlan:
    """List the distinct network passes that a set of coalitions needs.

    Args:
        rows: bool (K, M), True keeps a unit.
        incidence: units of each window, for the same M units.
        batch_sizes: int64 (A,), batch size in which each active window runs.
        entry_bytes: int64 (A,), bytes of one window's logits inside the regions.
        max_bytes: bound for the logits kept from one coalition to the next. What does not fit is dropped, the entry
            needed last first (Belady 1966), and run again. The logits of the coalitions in work come on top;
            ``peak_bytes`` has them.
        twins: int64 (A,), windows of one number have the same content and keep the same part where no live unit is
            kept, so that one runs for all; None: no window has a twin.

    Returns:
        the plan. ``n_forwards`` is what the run will need, exactly.
    """
    n_rows, n_active = rows.shape[0], len(incidence.active)
    keys = np.empty((n_rows, n_active), dtype=np.int64)
    for a in range(n_active):
        packed = np.packbits(rows[:, incidence.live[a]], axis=1)
        keys[:, a] = np.unique(packed, axis=0, return_inverse=True)[1].ravel() if packed.shape[1] else 0
    next_use = _next_uses(keys)
    windows, origin, last_use = list[int](), list[int](), list[int]()
    uses = np.empty((n_rows, n_active), dtype=np.int64)
    held: dict[tuple[int, int], int] = {}
    held_bytes = 0
    for row in range(n_rows):
        for a in range(n_active):
            key = (a, int(keys[row, a]))
            if key not in held:
                held[key] = len(windows)
                held_bytes += int(entry_bytes[a])
                windows.append(a)
                origin.append(row)
                last_use.append(row)
            job = held[key]
            uses[row, a] = job
            last_use[job] = row
        for gone in np.flatnonzero(next_use[row] == n_rows).tolist():
            held.pop((gone, int(keys[row, gone])))
            held_bytes -= int(entry_bytes[gone])
        if held_bytes > max_bytes:
            held_bytes -= _evict(held, keys, next_use, last_use, entry_bytes, held_bytes - max_bytes)
    repeated = len(windows) - sum(len(np.unique(keys[:, a])) for a in range(n_active))
    jobs = (np.array(windows), np.array(origin), uses, np.array(last_use))
    if twins is not None:
        jobs = _merge_twins(*jobs, rows, incidence, twins, batch_sizes)
    batches, sizes = _batches(jobs[0], jobs[1], batch_sizes)
    ready = _ready_after(jobs[2], batches)
    peak = _peak_bytes(jobs[3], batches, ready, entry_bytes[jobs[0]])
    return JobPlan(*jobs, batches, sizes, ready, peak, repeated)


def _merge_twins(
    windows: NDArray[np.int64],
    origin: NDArray[np.int64],
    uses: NDArray[np.int64],
    last_use: NDArray[np.int64],
    rows: NDArray[np.bool_],
    incidence: Incidence,
    twins: NDArray[np.int64],
    batch_sizes: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Windows, rows, uses and last uses of the jobs that are left when one of twins runs for those that need it.

    It stands for a twin that is wanted while it is held anyway, so that at no time more bytes are held than before.
    """
    bare = ~(rows[origin] & incidence.live[windows]).any(axis=1)
    leaders: dict[tuple[int, int], int] = {}
    stands, latest = np.arange(len(windows)), last_use.copy()
    for job in np.flatnonzero(bare).tolist():
        a = int(windows[job])
        leader = leaders.setdefault((int(twins[a]), int(batch_sizes[a])), job)
        if origin[job] <= latest[leader]:
            stands[job], latest[leader] = leader, max(latest[leader], latest[job])
        else:
            leaders[int(twins[a]), int(batch_sizes[a])] = job
    left, number = np.unique(stands, return_inverse=True)
    return windows[left], origin[left], number[uses], latest[left]


def _ready_after(uses: NDArray[np.int64], batches: tuple[tuple[int, ...], ...]) -> NDArray[np.int64]:
    """The batch after which each row has all its jobs, and so have all rows before it."""
    batch_of = np.empty(sum(len(batch) for batch in batches), dtype=np.int64)
    for number, batch in enumerate(batches):
        batch_of[list(batch)] = number
    return np.maximum.accumulate(batch_of[uses].max(axis=1))


def _peak_bytes(
    last_use: NDArray[np.int64],
    batches: tuple[tuple[int, ...], ...],
    ready: NDArray[np.int64],
    job_bytes: NDArray[np.int64],
) -> int:
    """Most bytes held while batches run and rows are fused as they become ready."""
    freed = np.bincount(last_use, weights=job_bytes, minlength=len(ready)).astype(np.int64)
    held = peak = row = 0
    for number, batch in enumerate(batches):
        held += int(job_bytes[list(batch)].sum())
        peak = max(peak, held)
        while row < len(ready) and ready[row] <= number:
            held -= int(freed[row])
            row += 1
    return peak


def _next_uses(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each (row, window): the next row with the same key, or K."""
    n_rows, n_active = keys.shape
    found = np.full(keys.shape, n_rows, dtype=np.int64)
    for a in range(n_active):
        order = np.argsort(keys[:, a], kind="stable")
        same = keys[order[:-1], a] == keys[order[1:], a]
        found[order[:-1][same], a] = order[1:][same]
    return found


def _evict(
    held: dict[tuple[int, int], int],
    keys: NDArray[np.int64],
    next_use: NDArray[np.int64],
    last_use: list[int],
    entry_bytes: NDArray[np.int64],
    excess: int,
) -> int:
    """Drop the entries that are needed last until ``excess`` bytes are free; returns the bytes freed."""
    when = {key: int(next_use[last_use[job], key[0]]) for key, job in held.items()}
    freed = 0
    for key in sorted(held, key=lambda k: (-when[k], k)):
        if freed >= excess:
            break
        held.pop(key)
        freed += int(entry_bytes[key[0]])
    return freed


def _batches(
    windows: NDArray[np.int64], origin: NDArray[np.int64], batch_sizes: NDArray[np.int64]
) -> tuple[tuple[tuple[int, ...], ...], NDArray[np.int64]]:
    """Fill batches in job order, windows of one library batch size together.

    A batch that waits for company longer than four batch sizes of coalitions runs with fillers, so that no finished
    coalition is held up for long.
    """
    waiting: dict[int, list[int]] = {}
    batches: list[tuple[int, ...]] = []
    sizes: list[int] = []
    for job, (window, row) in enumerate(zip(windows, origin, strict=True)):
        for size in [s for s, queue in waiting.items() if queue and row - origin[queue[0]] > 4 * s]:
            batches.append(tuple(waiting.pop(size)))
            sizes.append(size)
        size = int(batch_sizes[window])
        queue = waiting.setdefault(size, [])
        queue.append(job)
        if len(queue) == size:
            batches.append(tuple(waiting.pop(size)))
            sizes.append(size)
    for size, queue in waiting.items():
        batches.append(tuple(queue))
        sizes.append(size)
    return tuple(batches), np.array(sizes, dtype=np.int64)


@dataclass(frozen=True)
class ForwardCounts:
    """Network passes (one window each) for the coalitions that were evaluated, all on the grid that was run.

    Attributes:
        naive: every window that sees a removable voxel or touches a region, for every coalition.
        published_cache: of these the windows with at least one removed voxel, plus one unperturbed pass (paper 000,
            section III-E).
        planned: distinct windows that touch a region, fillers of incomplete batches included.
        run: what went through the network for the coalitions.
        calibration: what went through it before, see `monai_segshap.inferers.calibrate`.
    """

    naive: int
    published_cache: int
    planned: int
    run: int = 0
    calibration: int = 0


def count_forwards(
    rows: NDArray[np.bool_], incidence: Incidence, jobs: JobPlan, whole_grid: bool = False
) -> ForwardCounts:
    """Count passes without reuse, with the published cache, and planned. See `ForwardCounts`.

    Args:
        rows: bool (K, M), the coalitions.
        incidence: of the M units.
        jobs: their plan.
        whole_grid: count every window of the grid as naive, as on a crop; otherwise those that see a unit or a region.
    """
    field = np.asarray(incidence.member.any(axis=1)) | whole_grid
    field[incidence.active] = True
    member = incidence.member[field].astype(np.float32)
    masked = 0
    for start in range(0, len(rows), 4096):
        removed = (~rows[start : start + 4096]).astype(np.float32)
        masked += int((removed @ member.T > 0).sum())
    n_field = int(field.sum())
    return ForwardCounts(n_field * len(rows), masked + n_field, jobs.n_forwards)
