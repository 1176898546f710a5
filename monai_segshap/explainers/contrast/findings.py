# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What a run on contrasts says of itself before it starts, and what its readers must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from monai_segshap.explainers.contrast.removal import removal_words
from monai_segshap.explainers.contrast.sub_regions import SubRegion
from monai_segshap.explainers.contrast.sweep import PreparedFold
from monai_segshap.units.contrasts import Contrasts, check_contrast_sources

__all__ = ["announce_contrasts", "contrast_warnings", "run_warnings", "unchecked_channels"]

#: Metadata under which channels carry names, as in nnU-Net's ``dataset.json``.
_NAMES_META = "channel_names"


def announce_contrasts(
    contrasts: Contrasts,
    sub_regions: Sequence[SubRegion],
    scores: Sequence[str],
    folds: Sequence[PreparedFold],
    removal: Mapping[str, Any],
) -> str:
    """The plan: contrasts, coalitions, passes, batches, memory and expected time.

    Args:
        contrasts: the units.
        sub_regions: what is scored.
        scores: how.
        folds: every network with its plan.
        removal: see `removal_record`.
    """
    first, n_windows = folds[0], folds[0].evaluator.plan.n_windows
    naive, planned = n_windows * 2**contrasts.n_contrasts, sum(fold.planned for fold in folds)
    seconds = sum(fold.planned * fold.calibration.seconds_per_window for fold in folds)
    batches = {f"{used} (library: {size})" for fold in folds for size, used in fold.calibration.batch_sizes.items()}
    same = all(fold.calibration.same_bits for fold in folds)
    window = max(fold.plan.jobs.peak_bytes for fold in folds)
    voxels = int(np.prod(first.evaluator.plan.image_shape)) * first.plan.n_classes
    fused = voxels * first.evaluator.plan.folds * first.evaluator.plan.weight.element_size()
    lines = [
        f"{contrasts.n_contrasts} contrasts: {contrasts.describe()}",
        f"removed: {removal_words(removal)}",
        f"all {2**contrasts.n_contrasts} coalitions, exact; {', '.join(scores)} of "
        f"{', '.join(region.name for region in sub_regions)}",
        f"{len(folds)} network(s): {n_windows} windows, naive {naive * len(folds)} passes, planned {planned}; "
        f"{sum(fold.calibration.passes for fold in folds)} to calibrate",
        f"batches of {', '.join(sorted(batches))}: "
        + ("the library's bits, tested on this device" if same else "other bits"),
        f"up to {window / 2**20:.1f} MB of logits of windows, {fused / 2**20:.1f} MB fused, "
        f"{first.evaluator.image_bytes / 2**20:.1f} MB for image and contrasts",
        f"about {seconds:.0f} s for the passes" if seconds < 120 else f"about {seconds / 60:.0f} min for the passes",
    ]
    return "\n".join(lines)


def unchecked_channels(
    contrasts: Contrasts, image: torch.Tensor, sources: Sequence[str | Path] | Mapping[Any, str] | None
) -> list[int]:
    """Check the order of the contrasts, and list the channels of which no name says what they are.

    Args:
        contrasts: what the channels are said to be.
        image: (C, H, W, D); if no sources are given its metadata is read: "channel_names", or the names of its files
            (MONAI keeps the first one of several).
        sources: see `check_contrast_sources`.

    Raises:
        ValueError: see there.
    """
    if sources is None and isinstance(image, MetaTensor):
        sources = image.meta.get(_NAMES_META)
        files = image.meta.get("filename_or_obj")
        if sources is None and files:
            known = [files] if isinstance(files, (str, Path)) else list(files)
            sources = [str(file) for file in known] + [""] * (contrasts.n_channels - len(known))
    if not sources:
        return list(range(contrasts.n_channels))
    return [c for c, name in enumerate(check_contrast_sources(contrasts, sources)) if name is None]


def contrast_warnings(
    contrasts: Contrasts, live: NDArray[np.bool_], removal: Mapping[str, Any], unchecked: Sequence[int]
) -> list[str]:
    """Sentences that hold for every network of a case.

    Args:
        contrasts: the units.
        live: bool (N,), contrasts that differ from their replacement somewhere.
        removal: see `removal_record`.
        unchecked: see `unchecked_channels`.
    """
    found = []
    dead = [name for name, changed in zip(contrasts.names, live, strict=True) if not changed]
    if dead:
        found.append(
            f"{', '.join(dead)}: every voxel already equals the replacement, so that removal changes nothing and the "
            "value is exactly 0. Is the contrast missing?"
        )
    if unchecked:
        found.append(
            f"no file name or metadata says what channel(s) {', '.join(map(str, unchecked))} are; their order is taken "
            f"as given: {contrasts.describe()}."
        )
    shares = [entry["background"] for entry in removal["contrasts"].values()]
    if removal["kind"] == "constant" and removal.get("network_value") == 0 and max(shares) < 0.01:
        found.append(
            "contrasts are removed by 0, but hardly a voxel of the image is 0: the background is another number, and "
            "what the network sees is no missing contrast that it knows. Consider removal='channel_mean_all', or the "
            "background's number."
        )
    return found


def run_warnings(record: Mapping[str, Any]) -> list[str]:
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
