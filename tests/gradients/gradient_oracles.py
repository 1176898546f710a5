# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Whole-volume inference in differentiable operations, written without the package."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from monai.data.utils import compute_importance_map

#: torch names of the aggregations that keep their gradients; the median as the order statistic that it is.
AGGREGATIONS = {
    "sum": torch.sum,
    "mean": torch.mean,
    "median": lambda values: values.sort().values[(len(values) - 1) // 2],
}


def starts_of(size: int, roi: int, overlap: float) -> list[int]:
    """First voxels of MONAI's windows along one axis."""
    interval = roi if roi == size else max(int(roi * (1 - overlap)), 1)
    found = [0]
    while found[-1] + roi < size:
        found.append(min(found[-1] + interval, size - roi))
    return found


def fuse(
    network: Any,
    image: torch.Tensor,
    roi: Sequence[int],
    overlap: float,
    mode: str,
    padding_mode: str = "constant",
    cval: float = 0.0,
) -> torch.Tensor:
    """Fused logits (channels, H, W, D) of an image (C, H, W, D); gradients of the whole volume at once."""
    shape = image.shape[1:]
    low = [max(r - n, 0) // 2 for n, r in zip(shape, roi, strict=True)]
    high = [max(r - n, 0) - b for n, r, b in zip(shape, roi, low, strict=True)]
    amounts = [low[2], high[2], low[1], high[1], low[0], high[0]]
    constant = {"value": cval} if padding_mode == "constant" else {}
    padded = torch.nn.functional.pad(image[None], amounts, mode=padding_mode, **constant)
    weight = compute_importance_map(tuple(roi), mode=mode, dtype=image.dtype)
    size = padded.shape[2:]
    axes = [starts_of(n, r, overlap) for n, r in zip(size, roi, strict=True)]
    total, count = 0, 0
    for start in product(*axes):
        place = (..., *(slice(s, s + r) for s, r in zip(start, roi, strict=True)))
        around = [v for s, r, n in zip(start[::-1], roi[::-1], size[::-1], strict=True) for v in (s, n - s - r)]
        total = total + torch.nn.functional.pad(network(padded[place])[0] * weight, around)
        count = count + torch.nn.functional.pad(weight, around)
    inside = (..., *(slice(b, b + n) for b, n in zip(low, shape, strict=True)))
    return (total / count)[inside]


def class_gradients(
    logits: torch.Tensor, image: torch.Tensor, masks: torch.Tensor, classes: Sequence[int], aggregate: str
) -> torch.Tensor:
    """(T, C, H, W, D), gradients of the aggregated logits; 0 for an empty mask."""
    found = []
    for c, mask in zip(classes, masks, strict=True):
        if not mask.any():
            found.append(torch.zeros_like(image))
            continue
        output = AGGREGATIONS[aggregate](logits[c][mask])
        found.append(torch.autograd.grad(output, image, retain_graph=True)[0])
    return torch.stack(found)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    if not expected.norm() > 0:
        raise ValueError("nothing to compare with: the expected tensor is 0.")
    return float((found - expected).norm() / expected.norm())
