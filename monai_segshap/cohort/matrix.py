# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""An importance matrix, and the names of its columns in a table of cases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["PARTS", "VARIANTS", "ColumnName", "ImportanceMatrix", "check_kind", "column_name"]

#: Share of the attribution's mass; mean for each voxel; share of mass over share of volume.
VARIANTS = ("mass", "mean", "enrichment")

#: |a|, max(a, 0), max(-a, 0); with the endings of their columns.
PARTS = {"absolute": "", "positive": "_pos", "negative": "_neg"}

_IN = "_explanation_in_"
_PATTERN = re.compile(rf"^(?P<explained>.+?){_IN}(?P<region>.+)_(?P<variant>{'|'.join(VARIANTS)})(?P<end>_pos|_neg|)$")
_DICE = re.compile(r"^(?P<name>.+)_dice(?:_pos|_neg)?$")


class ColumnName(NamedTuple):
    """What a column of a table of importances holds."""

    explained: str
    region: str
    variant: str
    part: str

    @classmethod
    def parse(cls, column: str) -> ColumnName | None:
        """Read a column's name; None if it holds no importance."""
        found = _PATTERN.match(str(column))
        if found is None:
            return None
        part = next(name for name, end in PARTS.items() if end == found["end"])
        return cls(found["explained"], found["region"], found["variant"], part)


def column_name(explained: str, region: str, variant: str = "mass", part: str = "absolute") -> str:
    """Name of a column: ``{explained}_explanation_in_{region}_mass``, with ``_pos`` or ``_neg`` for the parts.

    Raises:
        ValueError: for an unknown variant or part, or names from which the column could not be read back.
    """
    check_kind(variant, part)
    name = f"{explained}{_IN}{region}_{variant}{PARTS[part]}"
    if ColumnName.parse(name) != (explained, region, variant, part):
        raise ValueError(
            f"the class {explained!r} and the region {region!r} make the column {name!r}, which reads otherwise; "
            f"expected names without {_IN!r}. Rename one of them."
        )
    return name


def dice_class(column: str) -> str | None:
    """The class whose Dice a column ``{class}_dice`` holds; None for another column."""
    found = _DICE.match(str(column))
    return None if found is None else found["name"]


def check_kind(variant: str, part: str) -> None:
    """Raise for an unknown variant or part."""
    if variant not in VARIANTS or part not in PARTS:
        raise ValueError(
            f"got variant {variant!r} and part {part!r}; expected a variant of {', '.join(VARIANTS)} and a part of "
            f"{', '.join(PARTS)}."
        )


@dataclass(frozen=True, eq=False)
class ImportanceMatrix:
    """Local importances of one case: row = explained class, column = region.

    Attributes:
        case: name of the case (or of what the values summarize).
        explained: T names.
        regions: R names.
        values: float64 (T, R); a row of NaN: the class is absent.
        variant: "mass" in [0, 1], "mean" in the attribution's unit for each voxel, or "enrichment" >= 0, see
            `local_importance`.
        part: "absolute", "positive" or "negative".
        dice: class -> Dice of this case against ground truth, where known.
    """

    case: str
    explained: tuple[str, ...]
    regions: tuple[str, ...]
    values: NDArray[np.float64]
    variant: str = "mass"
    part: str = "absolute"
    dice: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kind(self.variant, self.part)
        object.__setattr__(self, "explained", tuple(map(str, self.explained)))
        object.__setattr__(self, "regions", tuple(map(str, self.regions)))
        values = np.asarray(self.values, dtype=np.float64)
        if values.shape != (len(self.explained), len(self.regions)) or not values.size:
            raise ValueError(
                f"the matrix of {self.case} has shape {values.shape} for {len(self.explained)} explained classes and "
                f"{len(self.regions)} regions; expected a row for each class and a column for each region."
            )
        for what, names in (("explained classes", self.explained), ("regions", self.regions)):
            if len(set(names)) < len(names):
                raise ValueError(f"names of {what} repeat: {sorted({n for n in names if names.count(n) > 1})}.")
        check_values(values, self.variant, self.explained, self.regions, f"case {self.case}")
        object.__setattr__(self, "values", values)

    def to_frame(self) -> pd.DataFrame:
        """Rows explained classes, columns regions."""
        return pd.DataFrame(
            self.values,
            index=pd.Index(self.explained, name="explained"),
            columns=pd.Index(self.regions, name="region"),
        )

    def to_record(self) -> dict[str, Any]:
        """One flat row: "case", a column for each cell (`column_name`), and ``{class}_dice`` where known."""
        cells = {
            column_name(explained, region, self.variant, self.part): float(self.values[t, r])
            for t, explained in enumerate(self.explained)
            for r, region in enumerate(self.regions)
        }
        return {"case": self.case, **cells, **{f"{name}_dice": float(v) for name, v in self.dice.items()}}

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], variant: str = "mass", part: str = "absolute", id_column: str = "case"
    ) -> ImportanceMatrix:
        """Read one flat row.

        Raises:
            ValueError: if it has no column of this variant and part, or cells of the matrix are missing.
        """
        explained, regions = matrix_names(record, variant, part)
        values = [[float(record[column_name(e, r, variant, part)]) for r in regions] for e in explained]
        dice = {n: float(record[c]) for c in record if (n := dice_class(c)) in explained and n is not None}
        return cls(str(record[id_column]), explained, regions, np.array(values), variant, part, dice)


def matrix_names(columns: Any, variant: str, part: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Explained classes and regions of the columns of a table, in the order of their first appearance.

    Raises:
        ValueError: if there is no column of this variant and part, or a pair of class and region has none.
    """
    check_kind(variant, part)
    parsed = [name for name in map(ColumnName.parse, columns) if name is not None]
    wanted = [name for name in parsed if (name.variant, name.part) == (variant, part)]
    if not wanted:
        there = sorted({(name.variant, name.part) for name in parsed})
        other = f"there are columns of variant and part {there}" if there else "no column holds importances"
        raise ValueError(
            f"the table has no column such as '{{explained}}{_IN}{{region}}_{variant}{PARTS[part]}': {other}. Choose "
            "one with variant=... and part=..., or rename the columns."
        )
    explained = tuple(dict.fromkeys(name.explained for name in wanted))
    regions = tuple(dict.fromkeys(name.region for name in wanted))
    found = {(name.explained, name.region) for name in wanted}
    missing = [column_name(e, r, variant, part) for e in explained for r in regions if (e, r) not in found]
    if missing:
        raise ValueError(
            f"the matrix is not whole: {len(missing)} of {len(explained) * len(regions)} columns are missing, "
            f"first {missing[:3]}. Every explained class needs a column for every region; add these, or drop others."
        )
    return explained, regions


def check_values(
    values: NDArray[np.float64], variant: str, explained: tuple[str, ...], regions: tuple[str, ...], where: str
) -> None:
    """Raise for infinite or negative values, and for masses above 1.

    Args:
        values: float64 (T, R).
        variant: as for `local_importance`.
        explained: T names.
        regions: R names.
        where: how the message calls the place.
    """
    limit = 1 + 1e-6 if variant == "mass" else np.finfo(np.float64).max
    with np.errstate(invalid="ignore"):
        bad = np.argwhere((values < -1e-12) | (values > limit))
    if len(bad):
        t, r = bad[0]
        raise ValueError(
            f"{where}: {variant} of {explained[t]} in {regions[r]} is {values[t, r]}; expected "
            f"{'0 to 1' if variant == 'mass' else 'a finite number of 0 or more'}, or NaN for an absent class."
        )
