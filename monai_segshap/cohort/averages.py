# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Global importance: what a model relies on over a cohort, with intervals, and how much of it is context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.cohort.matrix import ImportanceMatrix
from monai_segshap.cohort.table import ImportanceTable

__all__ = ["GlobalImportance", "as_table", "classes_without_region", "context_use", "global_importance"]

Floats = NDArray[np.float64]
Cohort: TypeAlias = ImportanceTable | Sequence[ImportanceMatrix]


@dataclass(frozen=True, eq=False)
class GlobalImportance:
    """Importances over the cases of a cohort: row = explained class, column = region.

    All arrays are (T, R) and in the unit of the variant; NaN where no case has a value.

    Attributes:
        explained: T names.
        regions: R names.
        mean: mean over the cases that have a value.
        median: their median.
        low: lower end of the bootstrap interval of the mean; NaN with fewer than two cases.
        high: upper end.
        counts: int64, cases that have a value.
        n_cases: cases of the cohort.
        variant: "mass", "mean" or "enrichment".
        part: "absolute", "positive" or "negative".
        level: of the intervals.
        n_resamples: bootstrap resamples.
        seed: of the bootstrap.
    """

    explained: tuple[str, ...]
    regions: tuple[str, ...]
    mean: Floats
    median: Floats
    low: Floats
    high: Floats
    counts: NDArray[np.int64]
    n_cases: int
    variant: str
    part: str
    level: float
    n_resamples: int
    seed: int

    def matrix(self, statistic: str = "mean") -> ImportanceMatrix:
        """The "mean", "median", "low" or "high" as a matrix, for pictures.

        Raises:
            ValueError: for another word.
        """
        if statistic not in ("mean", "median", "low", "high"):
            raise ValueError(f"got {statistic!r}; expected mean, median, low or high.")
        title = f"{statistic.capitalize()} of {self.n_cases} case{'s' if self.n_cases != 1 else ''}"
        return ImportanceMatrix(title, self.explained, self.regions, getattr(self, statistic), self.variant, self.part)

    def to_frame(self) -> pd.DataFrame:
        """Long table: explained, region, n, mean, low, high, median; a row for each cell."""
        t, r = np.meshgrid(np.arange(len(self.explained)), np.arange(len(self.regions)), indexing="ij")
        numbers = {"n": self.counts, "mean": self.mean, "low": self.low, "high": self.high, "median": self.median}
        return pd.DataFrame(
            {
                "explained": np.array(self.explained)[t.ravel()],
                "region": np.array(self.regions)[r.ravel()],
                **{name: values.ravel() for name, values in numbers.items()},
            }
        )


def as_table(cohort: Cohort) -> ImportanceTable:
    """A table, from a table or from matrices."""
    return cohort if isinstance(cohort, ImportanceTable) else ImportanceTable.of(list(cohort))


def global_importance(
    cohort: Cohort, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> GlobalImportance:
    """Mean importance over cases (paper 001, section 3.2), ignoring cases in which the class is absent.

    Intervals are percentile bootstrap intervals of that mean: whole cases are drawn with replacement, so that cells of
    one case stay together. They say how far the mean would move with other cases of the same kind; with few cases they
    are too narrow.

    Args:
        cohort: a table, or a matrix for each case.
        level: of the intervals, between 0 and 1.
        n_resamples: how often cases are drawn.
        seed: of the draws.

    Raises:
        ValueError: for a level outside (0, 1) or no resample.
    """
    if not 0 < level < 1 or n_resamples < 1:
        raise ValueError(f"got level {level} and {n_resamples} resamples; expected a level in (0, 1) and at least 1.")
    table = as_table(cohort)
    flat = table.values.reshape(table.n_cases, -1)
    known = np.isfinite(flat)
    filled = np.where(known, flat, 0.0)
    counts = known.sum(axis=0)
    ordered = [np.sort(column[there]) for column, there in zip(flat.T, known.T, strict=True)]
    median = np.array([np.median(column) if len(column) else np.nan for column in ordered])
    low, high = _interval(filled, known, counts, level, n_resamples, seed)
    shape = table.values.shape[1:]
    return GlobalImportance(
        table.explained,
        table.regions,
        _ratio(filled.sum(axis=0), counts).reshape(shape),
        median.reshape(shape),
        low.reshape(shape),
        high.reshape(shape),
        counts.astype(np.int64).reshape(shape),
        table.n_cases,
        table.variant,
        table.part,
        level,
        n_resamples,
        seed,
    )


def _ratio(sums: Floats, counts: NDArray[Any]) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan)


def _interval(
    filled: Floats, known: NDArray[np.bool_], counts: NDArray[np.integer], level: float, n_resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Percentiles over resamples of the mean of each column of (K, N); resamples without a value are left out."""
    n_cases = len(filled)
    draws = np.random.default_rng(seed).integers(n_cases, size=(n_resamples, n_cases))
    weights = np.stack([np.bincount(draw, minlength=n_cases) for draw in draws]).astype(np.float64)
    means = _ratio(weights @ filled, weights @ known)
    low, high = np.full(filled.shape[1], np.nan), np.full(filled.shape[1], np.nan)
    tails = [(1 - level) / 2, (1 + level) / 2]
    wide = np.flatnonzero(counts >= 2)
    if len(wide):
        low[wide], high[wide] = np.nanquantile(means[:, wide], tails, axis=0)
    return low, high


def context_use(cohort: Cohort, own: Mapping[str, str] | None = None) -> pd.DataFrame:
    """How much of each class's attribution lies outside the class: 1 - its mass inside (paper 001, Fig. 6, turned).

    Large classes have less room outside, small ones more: compare a class with itself over cases or models before
    comparing classes.

    Args:
        cohort: masses; a table, or a matrix for each case.
        own: explained class -> the region that is the class itself; None: the region of the same name.

    Returns:
        float64, index cases, columns explained classes; in [0, 1], NaN where the class is absent.

    Raises:
        ValueError: if the cohort holds no masses, or a class has no such region.
    """
    table = as_table(cohort)
    if table.variant != "mass":
        raise ValueError(f"the table holds {table.variant}; expected masses: read it with variant='mass'.")
    wanted = dict(own) if own is not None else {name: name for name in table.explained}
    missing = {
        name: region for name, region in wanted.items() if name not in table.explained or region not in table.regions
    }
    if missing or not wanted:
        raise ValueError(
            f"there is no explained class or no region for {missing or 'any class'}; expected for each class the "
            f"region that is the class itself, of {list(table.regions)}. Say which with own={{class: region}}."
        )
    inside = {
        name: table.values[:, table.explained.index(name), table.regions.index(region)]
        for name, region in wanted.items()
    }
    return 1.0 - pd.DataFrame(inside, index=pd.Index(table.cases, name="case"))


def classes_without_region(table: ImportanceTable) -> list[str]:
    """Explained classes that have no region of their name, for which `context_use` needs ``own``."""
    return [name for name in table.explained if name not in table.regions]
