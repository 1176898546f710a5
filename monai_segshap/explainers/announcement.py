# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What a run says of itself: the plan before it starts, and how the network ran afterwards."""

from __future__ import annotations

from typing import Any

from monai_segshap.explainers.preparation import PreparedCase, SweepSettings
from monai_segshap.explainers.sweep import Sweep, SweepResult
from monai_segshap.inferers import Calibration
from monai_segshap.shapley import ValueStore

__all__ = ["announce", "execution_record", "execution_warnings"]


def announce(prepared: PreparedCase, sweep: Sweep, calibration: Calibration, store: ValueStore | None) -> str:
    """The plan: units, coalitions, passes, numbers, memory and expected time."""
    partition, evaluator, counts = prepared.partition, prepared.evaluator, sweep.planned
    tolerance, runs = prepared.settings.tolerance, runs_per_pass(prepared.settings)
    early = (
        ""
        if tolerance is None or not sweep.looks(prepared.stops)
        else f"; fewer once intervals are within +-{tolerance:.0%}"
    )
    lines = [
        f"{partition.n_units} {partition.noun} units: {evaluator.n_units} visible to the region, "
        f"{partition.n_units - evaluator.n_units} dummies with value 0",
        f"{prepared.coalitions.n_evaluations} coalitions, method {prepared.coalitions.method}: "
        f"{prepared.coalitions.reason}{early}",
        f"network passes (windows): naive {counts.naive}, published cache {counts.published_cache}, planned "
        f"{counts.planned} (1/{counts.naive / max(counts.planned, 1):.1f} of naive); {calibration.passes} to calibrate"
        + (f"; each of {runs} network runs (folds, mirror images)" if runs > 1 else ""),
        f"numbers: {prepared.settings.numerics.describe()}; {_batches(calibration)}",
    ]
    lines += [f"hint: {calibration.note}"] if calibration.note else []
    lines.append(f"memory: {_memory(prepared, sweep, calibration)}")
    remaining = sweep.remaining(store)
    seconds = remaining * calibration.seconds_per_window / sweep.ranks.count
    already = f", {counts.planned - remaining} passes are already there" if remaining < counts.planned else ""
    lines.append(f"expected time: {_duration(seconds)} ({calibration.seconds_per_window:.3g} s a window){already}")
    if store is not None:
        lines.append(f"finished coalitions are kept in {store.folder}; the same call continues there")
    return "\n".join(lines)


def runs_per_pass(settings: SweepSettings) -> int:
    """Times that a network runs for one window: more than once for an ensemble or mirror images."""
    return int(getattr(settings.network, "runs_per_window", 1))


def execution_record(
    prepared: PreparedCase, calibration: Calibration, result: SweepResult, number: int
) -> dict[str, Any]:
    """How the network ran, as plain values.

    Args:
        prepared: the case.
        calibration: of its batches.
        result: of its sweep.
        number: of the region.

    Returns:
        "numerics"; "accumulator" type in which windows are added up; "folds" and "mirror_axes" of an ensemble;
        "runs_per_pass" of a network, see `runs_per_pass`; "batch_sizes" (library -> used); "lowered_to"
        (where memory ran out); "library_bits": whether every window was tested to have the bits of the library's
        batches; "largest_difference" of a logit found by that test; "prediction_difference": largest difference of a
        logit in the region's box, with all units kept, from the whole-volume prediction (0: the same bits).
    """
    lowered, settings, plan = result.lowered_to, prepared.settings, prepared.evaluator.plan
    return {
        "numerics": settings.numerics.describe(),
        "accumulator": str(plan.weight.dtype).removeprefix("torch."),
        "folds": plan.folds,
        "mirror_axes": list(getattr(settings.network, "mirror_axes", ())),
        "runs_per_pass": runs_per_pass(settings),
        "batch_sizes": {str(k): v for k, v in calibration.batch_sizes.items()},
        "lowered_to": lowered,
        "library_bits": calibration.keeps_bits(lowered),
        "largest_difference": calibration.largest_difference,
        "prediction_difference": float(result.prediction_differences[number]),
    }


def execution_warnings(settings: SweepSettings, record: dict[str, Any]) -> list[str]:
    """Sentences for a reader, where the network did not run exactly as it is deployed."""
    found = []
    difference = record["largest_difference"]
    if not settings.numerics.is_exact:
        found.append(
            f"the network ran in a fast mode ({record['numerics'].removeprefix('fast: ')}): on the windows tested a "
            f"logit differs from the exact mode by up to {difference:.2g}."
        )
    if record["lowered_to"] is not None:
        claim = "have the same bits" if record["library_bits"] else "may differ in the last digits"
        found.append(f"memory ran out, and batches were lowered to {record['lowered_to']} windows: values {claim}.")
    elif settings.numerics.is_exact and not record["library_bits"]:
        found.append(
            "windows do not have the bits of the library's batches"
            + (f": on those tested a logit differs by up to {difference:.2g}." if difference else " for certain.")
        )
    return found


def _batches(calibration: Calibration) -> str:
    sizes = ", ".join(
        f"batches of {used}" + (f" (library: {library})" if used != library else "")
        for library, used in calibration.batch_sizes.items()
    )
    if calibration.same_bits:
        return f"{sizes}: the library's bits, tested on this device"
    return f"{sizes}: a logit differs from the library's batches by up to {calibration.largest_difference:.2g}"


def _memory(prepared: PreparedCase, sweep: Sweep, calibration: Calibration) -> str:
    evaluator = prepared.evaluator
    logits = max(plan.jobs.peak_bytes for _, plan in sweep.chunks)
    where = "GPU" if evaluator.device.type == "cuda" else "process"
    peak = f"; {where} so far {_size(calibration.peak_bytes)} at most" if calibration.peak_bytes is not None else ""
    return (
        f"up to {_size(logits)} of logits (to be kept at most {_size(evaluator.max_bytes)}), "
        f"{_size(evaluator.image_bytes)} for image and units{peak}"
    )


def _size(count: int) -> str:
    for factor, unit in ((1024**3, "GB"), (1024**2, "MB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1024:.1f} kB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(seconds, 0.0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
