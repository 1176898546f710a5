# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Means over cases with bootstrap intervals, alone and paired."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MeanInterval", "mean_interval", "paired_differences"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeanInterval:
    """A mean over cases and its interval.

    Attributes:
        mean: of the cases that have a number; NaN if there is none.
        low: lower end of the 95 % percentile bootstrap interval over cases; NaN for fewer than two cases.
        high: upper end.
        median: of the same cases.
        n: cases that have a number.
        n_nan: cases that have none.
    """

    mean: float
    low: float
    high: float
    median: float
    n: int
    n_nan: int


def mean_interval(
    values: NDArray[np.floating], resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> MeanInterval:
    """Mean with the percentile bootstrap interval over cases.

    With few cases such intervals are somewhat too narrow: of eight normal cases, the 95 % interval holds the true mean
    about nine times in ten.

    Args:
        values: (N,), NaN where a case has no value.
        resamples: samples of N cases drawn with replacement.
        seed: of these draws; equal numbers of cases get equal draws.
        level: of the interval, above 0 and below 1.

    Raises:
        ValueError: for another shape, no resample, or a level that is none.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"got values of shape {found.shape}, {resamples} resamples and a level of {level}; expected (N,), at least "
            "one and a level above 0 and below 1."
        )
    finite = found[np.isfinite(found)]
    n = len(finite)
    if n == 0:
        return MeanInterval(math.nan, math.nan, math.nan, math.nan, 0, len(found))
    low = high = math.nan
    if n > 1:
        drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
        tail = (1 - level) / 2
        low, high = np.quantile(finite[drawn].mean(axis=1), [tail, 1 - tail])
    return MeanInterval(float(finite.mean()), float(low), float(high), float(np.median(finite)), n, int(len(found) - n))


def paired_differences(first: NDArray[np.floating], second: NDArray[np.floating]) -> Floats:
    """``second - first`` of the cases in which both are numbers.

    Args:
        first: (N,), one value a case.
        second: (N,), of the same cases in the same order.

    Returns:
        float64, at most N.

    Raises:
        ValueError: for different shapes.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"got values of shapes {a.shape} and {b.shape}; expected (N,) of the same cases.")
    return np.asarray((b - a)[np.isfinite(a) & np.isfinite(b)])
