# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Importances of a cohort: cases x explained classes x regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.cohort.matrix import ImportanceMatrix, check_kind, check_values, column_name
from monai_segshap.cohort.regions import check_groups, with_unions

__all__ = ["ImportanceTable"]


@dataclass(frozen=True, eq=False)
class ImportanceTable:
    """Local importances of several cases, all of one variant and part.

    Attributes:
        cases: K names.
        explained: T names of explained classes.
        regions: R names.
        values: float64 (K, T, R); NaN rows for classes that a case does not hold.
        variant: "mass", "mean" or "enrichment", see `local_importance`.
        part: "absolute", "positive" or "negative".
        dice: K rows, a column for each class whose Dice against ground truth is known, NaN where it is not.
        metadata: K rows of anything else that is known of the cases.
    """

    cases: tuple[str, ...]
    explained: tuple[str, ...]
    regions: tuple[str, ...]
    values: NDArray[np.float64]
    variant: str = "mass"
    part: str = "absolute"
    dice: pd.DataFrame = field(default_factory=pd.DataFrame)
    metadata: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        check_kind(self.variant, self.part)
        values = np.asarray(self.values, dtype=np.float64)
        shape = (len(self.cases), len(self.explained), len(self.regions))
        if values.shape != shape or not values.size:
            raise ValueError(
                f"values have shape {values.shape}; expected (cases, explained, regions) = {shape}, none 0."
            )
        twice = sorted(case for case, count in Counter(self.cases).items() if count > 1)
        if twice:
            raise ValueError(f"several rows are of the cases {twice[:5]}; expected one row for each case.")
        for case, matrix in zip(self.cases, values, strict=True):
            check_values(matrix, self.variant, self.explained, self.regions, f"case {case}")
        object.__setattr__(self, "values", values)
        for name in ("dice", "metadata"):
            frame = getattr(self, name)
            frame = pd.DataFrame(index=pd.Index(self.cases)) if frame.empty and not len(frame.columns) else frame
            if list(map(str, frame.index)) != list(self.cases):
                raise ValueError(f"{name} has other rows than the table; expected one for each case, in its order.")
            object.__setattr__(self, name, frame.set_axis(pd.Index(self.cases, name="case"), axis=0))

    @classmethod
    def of(cls, matrices: Sequence[ImportanceMatrix], metadata: pd.DataFrame | None = None) -> ImportanceTable:
        """Put matrices of several cases together.

        Args:
            matrices: one for each case, all of one variant, one part and the same names (their order may differ; the
                first one's counts).
            metadata: what else is known of the cases, indexed by their names.

        Raises:
            ValueError: if a matrix differs from the first one, or there is none.
        """
        if not matrices:
            raise ValueError("got no matrix; expected at least one case.")
        first, values = matrices[0], []
        for matrix in matrices:
            _require_alike(first, matrix)
            rows = [matrix.explained.index(name) for name in first.explained]
            columns = [matrix.regions.index(name) for name in first.regions]
            values.append(matrix.values[np.ix_(rows, columns)])
        cases = tuple(matrix.case for matrix in matrices)
        dice = pd.DataFrame([dict(matrix.dice) for matrix in matrices], index=pd.Index(cases), dtype=np.float64)
        return cls(
            cases,
            first.explained,
            first.regions,
            np.stack(values),
            first.variant,
            first.part,
            dice,
            pd.DataFrame() if metadata is None else _rows_of(metadata, cases),
        )

    @property
    def n_cases(self) -> int:
        """Number of cases K."""
        return len(self.cases)

    def matrix(self, case: str) -> ImportanceMatrix:
        """Matrix of one case.

        Raises:
            ValueError: for a case that is not there.
        """
        index = _position(case, self.cases, "case")
        dice = {str(name): float(v) for name, v in self.dice.iloc[index].items() if np.isfinite(v)}
        return ImportanceMatrix(case, self.explained, self.regions, self.values[index], self.variant, self.part, dice)

    def row(self, explained: str) -> pd.DataFrame:
        """The rows of one explained class: index cases, columns regions.

        Raises:
            ValueError: for a class that is not there.
        """
        index = _position(explained, self.explained, "explained class")
        return pd.DataFrame(self.values[:, index], index=pd.Index(self.cases, name="case"), columns=list(self.regions))

    def select(self, cases: Sequence[str]) -> ImportanceTable:
        """The table of some cases, in the order asked for."""
        rows = [_position(case, self.cases, "case") for case in cases]
        return replace(
            self,
            cases=tuple(cases),
            values=self.values[rows],
            dice=self.dice.iloc[rows],
            metadata=self.metadata.iloc[rows],
        )

    def with_regions(self, other: ImportanceTable) -> ImportanceTable:
        """Further columns of the same cases and classes, for example pathologies published in a file of their own.

        Raises:
            ValueError: if cases or explained classes differ, or a region is in both.
        """
        _require_same_set(self.cases, other.cases, "cases")
        _require_same_set(self.explained, other.explained, "explained classes")
        both = sorted(set(self.regions) & set(other.regions))
        if both or (self.variant, self.part) != (other.variant, other.part):
            raise ValueError(
                f"the tables share the regions {both} and hold ({self.variant}, {self.part}) and ({other.variant}, "
                f"{other.part}); expected other regions of the same variant and part."
            )
        rows = [other.cases.index(case) for case in self.cases]
        classes = [other.explained.index(name) for name in self.explained]
        values = np.concatenate([self.values, other.values[np.ix_(rows, classes)]], axis=2)
        return replace(self, regions=self.regions + other.regions, values=values)

    def join_regions(self, groups: Mapping[str, Sequence[str]], keep: bool = False) -> ImportanceTable:
        """Columns of unions of regions: the sum of the members' masses.

        That is the mass of the union if its members do not overlap, as predicted classes do not. Rows can not be joined
        from a table; see `join_maps`.

        Args:
            groups: new name -> names of its members.
            keep: whether the members stay as well.

        Raises:
            ValueError: for another variant than "mass", or an unknown member.
        """
        if self.variant != "mass":
            raise ValueError(f"the table holds {self.variant}; only masses of separate regions add up.")
        check_groups(groups, self.regions, "region")
        columns = {name: self.values[:, :, n] for n, name in enumerate(self.regions)}
        unions = {n: np.sum([columns[member] for member in members], axis=0) for n, members in groups.items()}
        entries = list(columns.items())
        ordered = entries + list(unions.items()) if keep else with_unions(entries, groups, unions)
        return replace(self, regions=tuple(n for n, _ in ordered), values=np.stack([v for _, v in ordered], axis=2))

    def enrichment(self, means: ImportanceTable) -> ImportanceTable:
        """Enrichments from masses and means, as tables with both of them allow without images.

        A region's share of the volume is in proportion to mass / mean. It is taken, in each case, from the rows that
        have attribution in every region that is not empty; a case without such a row is NaN.

        Args:
            means: the same cases, classes and regions, of variant "mean" and the same part.

        Raises:
            ValueError: for other variants or names, or if the regions do not partition the volume (rows of masses do
                not sum to 1).
        """
        if (self.variant, means.variant, means.part) != ("mass", "mean", self.part):
            raise ValueError(f"got {self.variant} and {means.variant} ({means.part}); expected masses and their means.")
        if (self.explained, self.regions) != (means.explained, means.regions):
            raise ValueError("masses and means have other names, or another order; expected the same columns.")
        sums = self.values.sum(axis=2)
        if np.nanmax(np.abs(sums - 1), initial=0.0) > 1e-3:
            raise ValueError("rows of masses do not sum to 1: the regions do not partition the volume.")
        per_voxel = means.select(self.cases).values
        with np.errstate(invalid="ignore", divide="ignore"):
            sizes = np.where(self.values > 0, self.values / per_voxel, np.where(np.isnan(per_voxel), 0.0, np.nan))
            shares = sizes / sizes.sum(axis=2, keepdims=True)
        usable = np.isfinite(shares).all(axis=2) & np.isfinite(sums)
        found = np.full(self.values.shape, np.nan)
        for k in np.flatnonzero(usable.any(axis=1)):
            share = shares[k, usable[k]].mean(axis=0)
            found[k] = self.values[k] / np.where(share > 0, share, np.nan)
        return replace(self, values=found, variant="enrichment")

    def to_frame(self) -> pd.DataFrame:
        """Flat table as it is written: "case", metadata, a column for each cell, ``{class}_dice``."""
        columns = [column_name(e, r, self.variant, self.part) for e in self.explained for r in self.regions]
        cells = pd.DataFrame(self.values.reshape(self.n_cases, -1), columns=columns, index=self.metadata.index)
        dice = self.dice.rename(columns={name: f"{name}_dice" for name in self.dice.columns})
        flat = pd.concat([self.metadata, cells, dice], axis=1)
        flat.insert(0, "case", list(self.cases))
        return flat.reset_index(drop=True)


def _position(name: str, names: Sequence[str], what: str) -> int:
    if name not in names:
        raise ValueError(f"no {what} is called {name!r}; there are {list(names)[:30]}.")
    return list(names).index(name)


def _rows_of(metadata: pd.DataFrame, cases: Sequence[str]) -> pd.DataFrame:
    """The rows of these cases, by the index of the metadata."""
    named = metadata.set_axis(pd.Index([str(name) for name in metadata.index]), axis=0)
    missing = [case for case in cases if case not in named.index]
    if missing or named.index.duplicated().any():
        raise ValueError(
            f"the metadata has no row for {missing[:5]} or several for one case; expected an index with the name of "
            "each case once."
        )
    return named.loc[list(cases)]


def _require_same_set(first: Sequence[str], second: Sequence[str], what: str) -> None:
    lost, new = sorted(set(first) - set(second)), sorted(set(second) - set(first))
    if lost or new:
        raise ValueError(
            f"the {what} differ: only the first has {lost[:5]}, only the second {new[:5]}; expected the same."
        )


def _require_alike(first: ImportanceMatrix, other: ImportanceMatrix) -> None:
    if (first.variant, first.part) != (other.variant, other.part):
        raise ValueError(
            f"case {first.case} holds ({first.variant}, {first.part}) and case {other.case} ({other.variant}, "
            f"{other.part}); expected one variant and part in a table."
        )
    _require_same_set(first.explained, other.explained, f"explained classes of {first.case} and {other.case}")
    _require_same_set(first.regions, other.regions, f"regions of {first.case} and {other.case}")
