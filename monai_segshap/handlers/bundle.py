# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What a bundle says about itself, for handlers that are added to it from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["class_names_of", "preprocessing_of"]


def class_names_of(metadata: Mapping[str, Any] | None) -> list[str] | None:
    """Names of the classes from a bundle's ``metadata.json``.

    Args:
        metadata: its content; reads ``network_data_format``, "outputs", "pred" (or the first output that has one),
            "channel_def".

    Returns:
        a name for each channel, "class N" for those without; None if the metadata names no channel.
    """
    outputs = ((metadata or {}).get("network_data_format") or {}).get("outputs") or {}
    ordered = [outputs.get("pred"), *outputs.values()] if isinstance(outputs, Mapping) else []
    for output in ordered:
        channels = output.get("channel_def") if isinstance(output, Mapping) else None
        if isinstance(channels, Mapping) and channels and all(str(c).isdigit() for c in channels):
            named = {int(channel): str(name) for channel, name in channels.items()}
            return [named.get(channel, f"class {channel}") for channel in range(max(named) + 1)]
    return None


def preprocessing_of(evaluator: Any) -> Callable[..., Any]:
    """The transforms of the data that a MONAI evaluator runs over.

    Args:
        evaluator: with a ``data_loader`` over a MONAI dataset, or over a subset of one.

    Raises:
        ValueError: if its data has no transform of its own.
    """
    data = getattr(evaluator, "data_loader", None)
    while data is not None:
        transform = getattr(data, "transform", None)
        if callable(transform):
            return transform
        data = getattr(data, "dataset", None)
    raise ValueError(
        f"the data of the {type(evaluator).__name__} has no transform to read the intensities of the network from. "
        "Name the preprocessing (explain#preprocessing of the overlay), or give the replacement of removed voxels in "
        "network space (explain#baseline_value)."
    )
