# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What removed contrasts become, from a word or numbers, and how it stands in the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from monai_segshap.perturbation import Baseline, ChannelMeanBaseline, ChannelNoiseBaseline, ConstantBaseline
from monai_segshap.units.contrasts import Contrasts, canonical_contrast

__all__ = ["REMOVALS", "removal_baseline", "removal_record", "removal_words"]

#: Removals by name.
REMOVALS: dict[str, Baseline] = {
    "zero": ConstantBaseline(0.0),
    "channel_mean": ChannelMeanBaseline(),
    "channel_mean_all": ChannelMeanBaseline("all"),
    "noise": ChannelNoiseBaseline(),
    "noise_all": ChannelNoiseBaseline("all"),
}


def removal_baseline(removal: Any, contrasts: Contrasts) -> Baseline:
    """What removed contrasts become in network space, after normalization.

    Args:
        removal: a `Baseline`; a number; a mapping from each contrast to a number; or one of

            * "zero": 0, which is background where only the non-zero voxels were normalized, and the mean of the tissue,
            * "channel_mean": the mean of the channel's non-zero voxels in these; the background stays 0,
            * "channel_mean_all": the mean of all voxels of the channel, everywhere,
            * "noise", "noise_all": Gaussian noise with mean and standard deviation of the same voxels, seed 0; for
              another seed give a `ChannelNoiseBaseline`.
        contrasts: the units.

    Raises:
        ValueError: for another word, a mapping that misses a contrast or has a strange one, or a baseline that is not
            local.
    """
    if isinstance(removal, Baseline):
        if not removal.is_local:
            raise ValueError(
                f"removal {removal.kind!r} is not local: the replacement depends on which contrasts are kept, so "
                "windows can not be shared between coalitions. Use a constant, mean or noise."
            )
        return removal
    if isinstance(removal, Mapping):
        given = {canonical_contrast(name): float(value) for name, value in removal.items()}
        wanted = [canonical_contrast(name) for name in contrasts.names]
        if set(given) != set(wanted) or len(given) != len(removal):
            raise ValueError(
                f"the removal has values for {sorted(map(str, removal))}; expected one for each of the contrasts "
                f"{', '.join(contrasts.names)}."
            )
        values = [0.0] * contrasts.n_channels
        for name, group in zip(wanted, contrasts.channels, strict=True):
            for channel in group:
                values[channel] = given[name]
        return ConstantBaseline(tuple(values))
    if isinstance(removal, str):
        if removal not in REMOVALS:
            raise ValueError(f"unknown removal {removal!r}; expected one of {', '.join(REMOVALS)}, or numbers.")
        return REMOVALS[removal]
    if isinstance(removal, (int, float)) and not isinstance(removal, bool):
        return ConstantBaseline(float(removal))
    raise ValueError(f"removal is {removal!r}; expected one of {', '.join(REMOVALS)}, numbers, or a Baseline.")


def removal_words(removal: Mapping[str, Any]) -> str:
    """What removed contrasts became, on one line: "constant 0.0", "channel_noise of nonzero voxels, seed 0"."""
    words = str(removal["kind"])
    if removal.get("network_value") is not None:
        words += f" {removal['network_value']}"
    if "voxels" in removal:
        words += f" of {removal['voxels']} voxels"
    return words + (f", seed {removal['seed']}" if "seed" in removal else "")


def removal_record(baseline: Baseline, contrasts: Contrasts, image: torch.Tensor, fill: torch.Tensor) -> dict[str, Any]:
    """What was done, as plain values.

    Args:
        baseline: the replacement.
        contrasts: the units.
        image: (C, H, W, D).
        fill: (C, H, W, D), the replacement of every voxel.

    Returns:
        `Baseline.describe`, "space", and under "contrasts" by name: "mean" of the replacement, "changed": the share of
        the contrast's voxels that differ from it, "background": the share that is 0.
    """
    found = {}
    for name, group in zip(contrasts.names, contrasts.channels, strict=True):
        own, other = image[list(group)], fill[list(group)]
        found[name] = {
            "mean": float(other.double().mean()),
            "changed": float((own != other).double().mean()),
            "background": float((own == 0).double().mean()),
        }
    return {**baseline.describe(), "space": "network", "contrasts": found}
