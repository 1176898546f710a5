# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Tables of importances on disk: read as others publish them, written whole, continued after a stop."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from monai_segshap.cohort.matrix import PARTS, ColumnName, ImportanceMatrix, column_name, dice_class, matrix_names
from monai_segshap.cohort.table import ImportanceTable, _require_same_set
from monai_segshap.files import write_whole

__all__ = ["ImportanceStore", "read_importances", "write_importances"]

_ID_COLUMNS = ("case", "patient", "case_id", "patient_id", "id", "subject", "image", "name")

Source: TypeAlias = str | Path | pd.DataFrame


def read_importances(
    source: Source | Sequence[Source], *, variant: str = "mass", part: str = "absolute", id_column: str | None = None
) -> ImportanceTable:
    """Read a table of local importances, this package's or one that others publish.

    Needed are columns ``{explained}_explanation_in_{region}_mass`` (or ``_mean``, ``_enrichment``; with ``_pos`` or
    ``_neg`` behind it for the parts), one for every pair of explained class and region. ``{class}_dice`` is read as
    Dice if the class is explained; every other column is metadata. Empty cells are NaN: the class is absent.

    Args:
        source: CSV file or data frame, or several of other cases (for example one for each process).
        variant: "mass", "mean" or "enrichment".
        part: "absolute", "positive" or "negative".
        id_column: names of the cases; None: "case", "patient", "case_id", "patient_id", "id", "subject", "image" or
            "name", in this order; otherwise an unnamed first column; otherwise cases are called "row 1", "row 2", ...

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if columns or whole rows are missing, a cell is no number, a mass is not in [0, 1], two rows are of
            one case, or several files differ in their names.
    """
    sources: Sequence[Any] = [source] if isinstance(source, (str, Path, pd.DataFrame)) else list(source)
    if not sources:
        raise ValueError("got no table to read; expected at least one file or data frame.")
    tables = [_read_one(each, variant, part, id_column) for each in sources]
    return tables[0] if len(tables) == 1 else _stacked(tables)


def _read_one(source: Source, variant: str, part: str, id_column: str | None) -> ImportanceTable:
    where = "the table" if isinstance(source, pd.DataFrame) else str(source)
    try:
        header = list(source.columns) if isinstance(source, pd.DataFrame) else _header(Path(source))
        explained, regions = matrix_names(header, variant, part)
        names = case_column(header, id_column)
        if isinstance(source, pd.DataFrame):
            frame = source.reset_index(drop=True)
        else:
            types = {} if names is None else {names: str}
            frame = pd.read_csv(source, dtype=types, float_precision="round_trip", low_memory=False)
        if not len(frame):
            raise ValueError("the table has no row; expected one for each case.")
        columns = [column_name(e, r, variant, part) for e in explained for r in regions]
        values = _numbers(frame, columns).to_numpy().reshape(len(frame), len(explained), len(regions))
        cases = tuple(f"row {n + 1}" for n in range(len(frame))) if names is None else _cases(frame[names])
        dice = {column: name for column in header if (name := _dice_of(column, part)) in explained}
        rest = [c for c in header if ColumnName.parse(c) is None and c not in dice and c != names]
        scores = _numbers(frame, list(dice)).rename(columns=dice)
        index = pd.Index(cases)
        return ImportanceTable(
            cases, explained, regions, values, variant, part, scores.set_axis(index), frame[rest].set_axis(index)
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _header(path: Path) -> list[str]:
    """Names of the columns as pandas makes them (unnamed ones, repeated ones)."""
    try:
        return list(map(str, pd.read_csv(path, nrows=0).columns))
    except pd.errors.EmptyDataError:
        raise ValueError("the file is empty; expected a table with a header.") from None


def case_column(header: Sequence[str], asked: str | None) -> str | None:
    """The column with the names of the cases, see `read_importances`; None if there is none.

    Raises:
        ValueError: if the one asked for is not there.
    """
    if asked is not None:
        if asked not in header:
            raise ValueError(f"there is no column {asked!r} with names of cases; the first columns are {header[:5]}.")
        return asked
    lower = {str(column).lower(): column for column in reversed(header)}
    named = [lower[name] for name in _ID_COLUMNS if name in lower]
    unnamed = [column for column in header[:1] if str(column).startswith("Unnamed:") or not str(column)]
    return (named + unnamed + [None])[0]


def _cases(column: pd.Series) -> tuple[str, ...]:
    if column.isna().any():
        raise ValueError(f"row {int(np.flatnonzero(column.isna())[0]) + 1} has no name of a case ({column.name}).")
    return tuple(map(str, column))


def _dice_of(column: str, part: str) -> str | None:
    """Class of a column of Dice; tables of parts repeat it with their endings, of which one counts."""
    ending = PARTS[part]
    other = [end for end in PARTS.values() if end and end != ending]
    return None if any(str(column).endswith(f"_dice{end}") for end in other) else dice_class(column)


def _numbers(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """float64 columns, or an error that names the first cell that is no number."""
    try:
        return frame[columns].astype(np.float64)
    except (ValueError, TypeError):
        for column in columns:
            bad = frame[column].notna() & pd.to_numeric(frame[column], errors="coerce").isna()
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                raise ValueError(
                    f"row {row + 1}, column {column} holds {frame[column].iloc[row]!r}; expected a number, or nothing."
                ) from None
        raise


def _stacked(tables: Sequence[ImportanceTable]) -> ImportanceTable:
    """One table of the cases of all; names in the order of the first."""
    first = tables[0]
    for other in tables[1:]:
        _require_same_set(first.explained, other.explained, "explained classes of the tables")
        _require_same_set(first.regions, other.regions, "regions of the tables")
    values = [
        t.values[:, [t.explained.index(n) for n in first.explained]][..., [t.regions.index(n) for n in first.regions]]
        for t in tables
    ]
    return ImportanceTable(
        tuple(case for t in tables for case in t.cases),
        first.explained,
        first.regions,
        np.concatenate(values),
        first.variant,
        first.part,
        pd.concat([t.dice for t in tables]),
        pd.concat([t.metadata for t in tables]),
    )


def write_importances(
    path: str | Path, tables: ImportanceTable | Sequence[ImportanceTable] | Sequence[ImportanceMatrix]
) -> Path:
    """Write a CSV file, whole or not at all; numbers read back to the same bits.

    Args:
        path: where; an earlier file is replaced.
        tables: one table; several of the same cases (other variants or parts), whose columns stand side by side; or
            matrices.

    Returns:
        the path.

    Raises:
        ValueError: if the tables are of other cases, or a column would be in two of them.
        OSError: if the file can not be written.
    """
    listed: list[Any] = [tables] if isinstance(tables, ImportanceTable) else list(tables)
    if listed and all(isinstance(each, ImportanceMatrix) for each in listed):
        kinds = dict.fromkeys((m.variant, m.part) for m in listed)
        listed = [ImportanceTable.of([m for m in listed if (m.variant, m.part) == kind]) for kind in kinds]
    if not listed:
        raise ValueError("got no table to write.")
    flat = listed[0].to_frame()
    for other in listed[1:]:
        _require_same_set(listed[0].cases, other.cases, "cases of the tables")
        more = other.select(listed[0].cases).to_frame()
        cells = [column for column in more.columns if ColumnName.parse(column) is not None]
        both = [column for column in cells if column in flat.columns]
        if both:
            raise ValueError(f"several tables have the column {both[0]}; expected other variants, parts or regions.")
        flat = pd.concat([flat, more[cells]], axis=1)
    text = flat.to_csv(index=False, float_format=None)
    return write_whole(path, text.encode())


class ImportanceStore:
    """A CSV file that grows by one case at a time, so that a cohort can be stopped and continued.

    Each case rewrites the file whole: a process killed at any moment leaves all finished cases and no torn row. Several
    processes need a file each; `read_importances` reads them together.

    Args:
        path: the file; made with the first case. Its folder exists.
        settings: what the importances depend on (attribution method, checkpoint, ...), written into columns. A file
            with other settings is refused.

    Raises:
        ValueError: if the file is no such table, or has other settings.

    Example:
        >>> from pathlib import Path; from tempfile import TemporaryDirectory
        >>> matrix = ImportanceMatrix("a", ("liver",), ("liver", "spleen"), np.array([[0.9, 0.1]]))
        >>> with TemporaryDirectory() as folder:
        ...     store = ImportanceStore(Path(folder) / "importances.csv", {"method": "vanilla"})
        ...     store.append([matrix])
        ...     "a" in store, "b" in store
        (True, False)
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.settings = {str(k): str(v) for k, v in (settings or {}).items()}
        self.cases: list[str] = []
        self._header: list[str] | None = None
        if self.path.exists():
            self._open()

    def __contains__(self, case: object) -> bool:
        return case in self.cases

    def __len__(self) -> int:
        return len(self.cases)

    def append(self, matrices: Sequence[ImportanceMatrix], metadata: Mapping[str, Any] | None = None) -> None:
        """Add one case.

        Args:
            matrices: its matrices, one for each variant and part.
            metadata: further columns.

        Raises:
            ValueError: if the matrices are of several cases, the case is already there, or its matrix has other
                columns than the file. Dice and metadata may be missing or new; cells without a value stay empty.
            OSError: if the file can not be written; what was there stays.
        """
        named = {matrix.case for matrix in matrices}
        if len(named) != 1:
            raise ValueError(f"got matrices of the cases {sorted(named)}; expected one case at a time.")
        case = named.pop()
        if case in self:
            raise ValueError(f"case {case} is already in {self.path}; expected a new one. Test with: case in store.")
        record: dict[str, Any] = {"case": case, **self.settings, **dict(metadata or {})}
        for matrix in matrices:
            record.update(matrix.to_record())
        header = self._joint_header(record, case)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, header, restval="", lineterminator="\n")
        if header == self._header:
            before = self.path.read_bytes()
            before += b"" if before.endswith(b"\n") else b"\n"
        else:
            before = b""
            writer.writeheader()
            writer.writerows(self._rows() if self._header else [])
        writer.writerow({column: _text(value) for column, value in record.items()})
        write_whole(self.path, before + buffer.getvalue().encode())
        self._header = header
        self.cases.append(case)

    def table(self, variant: str = "mass", part: str = "absolute") -> ImportanceTable:
        """All cases so far."""
        return read_importances(self.path, variant=variant, part=part, id_column="case")

    def _joint_header(self, record: Mapping[str, Any], case: str) -> list[str]:
        """The file's columns and what the record adds to them."""
        if self._header is None:
            return list(record)
        here, new = ([c for c in columns if ColumnName.parse(c) is not None] for columns in (self._header, record))
        _require_same_set(here, new, f"columns of {self.path} and of case {case}")
        return [*self._header, *(column for column in record if column not in self._header)]

    def _rows(self) -> list[dict[str, str]]:
        with self.path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def _open(self) -> None:
        rows = self._rows()
        if not rows or "case" not in rows[0] or not any(ColumnName.parse(c) for c in rows[0]):
            raise ValueError(f"{self.path} is no table of importances with a column 'case'; name another file.")
        self._header = list(rows[0])
        for row in rows:
            differing = {k: row.get(k) for k, v in self.settings.items() if row.get(k) != v}
            if differing:
                wanted = {k: self.settings[k] for k in differing}
                raise ValueError(
                    f"{self.path} belongs to another run: case {row['case']} has {differing}, here it is {wanted}. "
                    "Continue with the settings of that run, or name another file."
                )
        self.cases = [row["case"] for row in rows]


def _text(value: Any) -> str:
    """A cell that reads back to the same number; nothing for NaN."""
    if isinstance(value, float):
        return "" if np.isnan(value) else repr(float(value))
    return "" if value is None else str(value)
