# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Vanilla gradient, SmoothGrad and integrated gradients of class outputs (paper 001, Eq. 3 to 5)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.gradients.attributions import VoxelAttributions
from monai_segshap.gradients.outputs import ClassOutputs

__all__ = ["gradient_noise", "integrated_gradients", "smooth_gradient", "vanilla_gradient"]


def vanilla_gradient(outputs: ClassOutputs, image: torch.Tensor) -> VoxelAttributions:
    """Gradient of the class outputs (paper 001, Eq. 3): ``d fhat_c(x) / dx``.

    Args:
        outputs: what is explained; its masks stay fixed.
        image: x, (C, H, W, D); the unperturbed image, or another one of its shape.

    Returns:
        maps in logits for each unit of network input. Needs the passes of
        ``outputs.planned_passes(gradients=1)``.

    Raises:
        ValueError, MemoryError: see `ClassOutputs.gradients`.
    """
    timer = _Timer(outputs)
    return timer.done("vanilla_gradient", outputs.gradients(image), {})


def smooth_gradient(
    outputs: ClassOutputs, image: torch.Tensor, n: int = 20, sigma: float = 0.1, seed: int = 0
) -> VoxelAttributions:
    """SmoothGrad (paper 001, Eq. 4): signed mean of the gradients at n noisy images.

    Noise is normal and independent in every voxel and channel, with a standard deviation of ``sigma`` times the range
    of the image over all its channels. Masks stay those of the unperturbed image.

    Args:
        outputs: what is explained.
        image: x, (C, H, W, D).
        n: noisy images, 1 or more.
        sigma: share of the range, 0 or more.
        seed: sample j depends on it and on j alone, see `gradient_noise`.

    Returns:
        maps in logits for each unit of network input. Needs the passes of
        ``outputs.planned_passes(gradients=n)``.

    Raises:
        ValueError: for other numbers; see also `ClassOutputs.gradients`.
        MemoryError: see there.
    """
    _check_count("n", n)
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma is {sigma}; expected a share of the image's range, 0 or more.")
    plain = image.detach().as_subclass(torch.Tensor)
    deviation = sigma * float(plain.max() - plain.min())

    def noisy() -> Iterator[torch.Tensor]:
        for sample in range(n):
            yield gradient_noise(plain, seed, sample).mul_(deviation).add_(plain)

    timer = _Timer(outputs)
    maps = outputs.weighted_gradients(noisy(), [1 / n] * n)
    settings = {"n": int(n), "sigma": float(sigma), "noise_deviation": deviation, "seed": int(seed)}
    return timer.done("smooth_gradient", maps, settings)


def integrated_gradients(
    outputs: ClassOutputs,
    image: torch.Tensor,
    baseline: float | torch.Tensor = 0.0,
    steps: int = 20,
    exponent: float = 1.0,
) -> VoxelAttributions:
    """Integrated gradients (paper 001, Eq. 5) by the midpoint rule.

    ``(x - x') * 1/n sum_j d fhat_c / dx at x' + (j + 0.5) / n (x - x')``. The sum of a map tends to
    ``fhat_c(x) - fhat_c(x')``, for a smooth network as 1/n^2; how far it is off is reported as completeness gap.

    Instance norm does not see the scale of its input. Beside a constant baseline such a network changes most of its
    output within the first hundredth of the path, where 20 equal steps have no point, and the gap stays large. With
    ``exponent`` about 4 some steps are that short. Look at the relative gap before you trust a map.

    Args:
        outputs: what is explained; its masks stay fixed.
        image: x, (C, H, W, D).
        baseline: x', in network space: a number, or a tensor that broadcasts to the image.
        steps: n, 1 or more.
        exponent: p, 1 or more: the midpoints are those of ``u = alpha ** (1 / p)``, so that steps are shorter near the
            baseline; the integral is the same. 1: equal steps, as in the paper.

    Returns:
        maps in logits. Needs the passes of ``outputs.planned_passes(gradients=steps, values=v)`` for fixed masks,
        with v = 1 for the unperturbed image and 2 for another one.

    Raises:
        ValueError: for no step, another exponent, or a baseline of another shape or not finite; see also
            `ClassOutputs.gradients`.
        MemoryError: see there.
    """
    _check_count("steps", steps)
    if not (math.isfinite(exponent) and exponent >= 1):
        raise ValueError(f"exponent is {exponent}; expected 1 (equal steps) or more.")
    plain = image.detach().as_subclass(torch.Tensor)
    start = _baseline(baseline, plain)
    difference = plain - start
    midpoints = [(step + 0.5) / steps for step in range(steps)]
    weights = [exponent * u ** (exponent - 1) / steps for u in midpoints]

    def path() -> Iterator[torch.Tensor]:
        for u in midpoints:
            yield torch.add(start, difference, alpha=u**exponent)

    timer = _Timer(outputs)
    if outputs.is_unperturbed(plain):
        change = outputs.values - outputs([start], mask="fixed")[0]
    else:
        change = -np.diff(outputs([plain, start], mask="fixed"), axis=0)[0]
    maps = outputs.weighted_gradients(path(), weights)
    maps *= difference.to(maps)
    gap = np.abs(np.array([float(m.sum(dtype=torch.float64)) for m in maps], dtype=np.float64) - change)
    relative = np.divide(gap, np.abs(change), out=np.full_like(gap, np.nan), where=change != 0)
    name = float(baseline) if not isinstance(baseline, torch.Tensor) or baseline.ndim == 0 else "tensor"
    settings = {"steps": int(steps), "rule": "midpoint", "exponent": float(exponent), "baseline": name}
    return timer.done("integrated_gradients", maps, settings, gap, relative)


def gradient_noise(image: torch.Tensor, seed: int, sample: int) -> torch.Tensor:
    """Standard normal noise of the shape, type and device of an image.

    Args:
        image: any shape.
        seed: 0 or more.
        sample: 0 or more; the noise depends on seed, sample and shape, and on nothing that ran before.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, sample))))
    kind = np.float64 if image.dtype == torch.float64 else np.float32
    noise = generator.standard_normal(tuple(image.shape), dtype=kind)
    return torch.from_numpy(noise).to(device=image.device, dtype=image.dtype)


class _Timer:
    """Time and passes of a method."""

    def __init__(self, outputs: ClassOutputs) -> None:
        self.outputs = outputs
        self.started = time.perf_counter()
        self.forwards, self.backwards = outputs.n_forwards, outputs.n_backwards

    def done(
        self,
        method: str,
        maps: torch.Tensor,
        settings: dict[str, Any],
        gap: NDArray[np.float64] | None = None,
        relative: NDArray[np.float64] | None = None,
    ) -> VoxelAttributions:
        outputs = self.outputs
        return VoxelAttributions(
            maps=maps,
            classes=outputs.classes,
            method=method,
            values=outputs.values.copy(),
            absent=outputs.absent,
            seconds=time.perf_counter() - self.started,
            n_forwards=outputs.n_forwards - self.forwards,
            n_backwards=outputs.n_backwards - self.backwards,
            completeness_gap=gap,
            relative_gap=relative,
            settings={**outputs.settings(), "mask": "fixed", **settings},
        )


def _baseline(baseline: float | torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    values = torch.as_tensor(baseline, dtype=image.dtype, device=image.device).detach().as_subclass(torch.Tensor)
    try:
        values = values.expand(image.shape)
    except RuntimeError as error:
        raise ValueError(
            f"the baseline has shape {tuple(values.shape)}; expected a number, or a tensor of the image's shape "
            f"{tuple(image.shape)}."
        ) from error
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the baseline holds values that are not finite (NaN or infinite).")
    return values


def _check_count(name: str, count: int) -> None:
    if type(count) is not int or count < 1:
        raise ValueError(f"{name} is {count!r}; expected a whole number, 1 or more.")
