# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Contrast values of a cohort, read from tables alone: an array over cases, folds, sub-regions and contrasts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.metrics.ranks import ranks_of
from monai_segshap.units import canonical_contrast

__all__ = ["ContrastCohort", "read_contrast_table"]

Floats = NDArray[np.float64]
Source: TypeAlias = str | Path | pd.DataFrame

_TRUTH = "dice_truth"
_NAMES = ("case", "score", "sub_region", "contrast")
_NEEDED = ("case", "fold", "score", "sub_region", "contrast", "value", "full")
_NOT_THERE = "the table has no row of this case, fold and sub-region"
_WAY_OUT = "ContrastTableHandler, SaveContrastsd and ContrastExplanation.table() make such tables"


@dataclass(frozen=True, eq=False)
class ContrastCohort:
    """Shapley values of N contrasts for S sub-regions, over C cases and K folds, of one score.

    Attributes:
        cases: C names.
        folds: K names, numbers in their order; ("",) for one network without a name.
        sub_regions: S names.
        contrasts: N names.
        values: float64 (C, K, S, N), in the unit of the score; NaN where there is none.
        dice: float64 (C, K, S), Dice against ground truth with every contrast, 0 to 1; NaN where the table does not
            hold it (the "full" of score "dice_truth").
        present: bool (C, K, S), whether the table has rows of this case, fold and sub-region.
        reasons: (case, fold, sub-region) -> why it has no values, as far as the table says.
        score: whose values these are.
        scores: all scores of the table.
        removals: what removed contrasts became -> in how many cases; empty where the table does not say.
    """

    cases: tuple[str, ...]
    folds: tuple[str, ...]
    sub_regions: tuple[str, ...]
    contrasts: tuple[str, ...]
    values: Floats
    dice: Floats
    present: NDArray[np.bool_]
    reasons: dict[tuple[str, str, str], str]
    score: str
    scores: tuple[str, ...]
    removals: dict[str, int]

    @cached_property
    def ranks(self) -> Floats:
        """Float64 (C, K, S, N), 1 = largest value, ties by their mean rank; NaN where a value is missing."""
        return ranks_of(self.values)

    @cached_property
    def tied(self) -> NDArray[np.bool_]:
        """Bool (C, K, S), where values are there but all equal, so that no contrast comes before another."""
        return np.asarray(np.isfinite(self.values).all(axis=-1) & (np.ptp(self.ranks, axis=-1) == 0))

    def reason(self, case: int, fold: int, sub_region: int) -> str:
        """Why values are missing; "" where none is."""
        if not self.present[case, fold, sub_region]:
            return _NOT_THERE
        if np.isfinite(self.values[case, fold, sub_region]).all():
            return ""
        key = self.cases[case], self.folds[fold], self.sub_regions[sub_region]
        return self.reasons.get(key, "the table has no value and gives no reason")

    def missing_pairs(self) -> list[tuple[str, str]]:
        """Cases and folds that have no row at all."""
        absent = np.argwhere(~self.present.any(axis=2))
        return [(self.cases[c], self.folds[k]) for c, k in absent]


def read_contrast_table(table: Source | Sequence[Source], score: str | None = None) -> ContrastCohort:
    """Read tables of contrast values as `monai_segshap.explainers.ContrastExplanation.table` makes them.

    Needed are the columns case, fold (may be empty: one network), score, sub_region, contrast, value and full;
    "removal" and "reason" are read if there. Names of contrasts may follow any BraTS year ("t1ce" is "t1c"); the first
    spelling is kept.

    Args:
        table: CSV file or data frame, or several, for example one for each case or fold.
        score: whose values are read; None: the only one, or "dice_truth" if it is there.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if columns or rows are missing or repeat, a cell is no number or infinite, a Dice is not in [0, 1],
            or the score is not there or not clear.
    """
    sources: Sequence[Any] = [table] if isinstance(table, (str, Path, pd.DataFrame)) else list(table)
    if not sources:
        raise ValueError("got no table to read; expected at least one file or data frame.")
    frame = pd.concat([_read(source) for source in sources], ignore_index=True)
    if frame.empty:
        raise ValueError("the table has no row; expected one for each case, fold, score, sub-region and contrast.")
    scores = tuple(dict.fromkeys(frame["score"]))
    score = _chosen(score, scores)
    named = frame["fold"] != ""
    if named.any() and not named.all():
        raise ValueError(
            f"{int((~named).sum())} of {len(frame)} rows have no fold and the others have one; name the fold in all "
            "rows, or in none if there is one network."
        )
    return _arranged(frame, score, scores)


def _arranged(frame: pd.DataFrame, score: str, scores: tuple[str, ...]) -> ContrastCohort:
    """The rows of one score as arrays, and the Dice beside them."""
    rows = frame[frame["score"] == score].reset_index(drop=True)
    contrast = rows["contrast"].map(canonical_contrast)
    spelled = dict(zip(reversed(list(contrast)), reversed(list(rows["contrast"])), strict=True))
    keys = list(dict.fromkeys(contrast))
    cases, sub_regions = (tuple(dict.fromkeys(rows[name])) for name in ("case", "sub_region"))
    folds = _in_order(rows["fold"])
    shape = len(cases), len(folds), len(sub_regions), len(keys)
    axes = [(rows["case"], cases), (rows["fold"], folds), (rows["sub_region"], sub_regions), (contrast, keys)]
    place = np.ravel_multi_index([_numbers_of(*axis) for axis in axes], shape)
    found = np.bincount(place, minlength=math.prod(shape))
    if found.max() > 1:
        raise ValueError(f"{_place(rows, place, found > 1)} stands {found.max()} times; expected once.")
    there = found.reshape(shape).astype(bool)
    present = np.asarray(there.any(axis=3))
    partial = present & ~there.all(axis=3)
    if partial.any():
        c, k, s = np.argwhere(partial)[0]
        lacking = [keys[n] for n in np.flatnonzero(~there[c, k, s])]
        raise ValueError(
            f"{_words(cases[c], folds[k], score, sub_regions[s])} has no row of {', '.join(lacking)}; expected one for "
            f"each of {', '.join(keys)}, with an empty value where there is none."
        )
    values = np.full(math.prod(shape), np.nan)
    values[place] = rows["value"].to_numpy()
    reasons = {
        (row.case, row.fold, row.sub_region): row.reason
        for row in rows.itertuples()
        if row.reason and math.isnan(row.value)
    }
    dice = _dice(frame[frame["score"] == _TRUTH], cases, folds, sub_regions)
    names = tuple(spelled[key] for key in keys)
    said = rows[rows["removal"] != ""].groupby("removal", sort=False)["case"].nunique()
    removals = {str(words): int(n) for words, n in said.items()}
    return ContrastCohort(
        cases, folds, sub_regions, names, values.reshape(shape), dice, present, reasons, score, scores, removals
    )


def _dice(rows: pd.DataFrame, cases: Sequence[str], folds: Sequence[str], sub_regions: Sequence[str]) -> Floats:
    """Dice with every contrast, (C, K, S).

    Raises:
        ValueError: if it is not in [0, 1], or the rows of a sub-region give two.
    """
    found = np.full((len(cases), len(folds), len(sub_regions)), np.nan)
    where = [{name: n for n, name in enumerate(names)} for names in (cases, folds, sub_regions)]
    for (case, fold, region), part in rows.groupby(["case", "fold", "sub_region"], sort=False)["full"]:
        given = part.to_numpy()
        if np.isnan(given).all():
            continue
        low, high = float(np.min(given)), float(np.max(given))
        if low != high or not 0 <= low <= 1:
            raise ValueError(
                f"{_words(case, fold, _TRUTH, region)} has full = {low:g} to {high:g}; expected one Dice from 0 to 1, "
                "the same in the rows of all contrasts."
            )
        if case in where[0] and fold in where[1] and region in where[2]:
            found[where[0][case], where[1][fold], where[2][region]] = low
    return found


def _read(source: Source) -> pd.DataFrame:
    """The needed columns of one table: names as text, numbers as float64.

    Raises:
        ValueError: see `read_contrast_table`.
    """
    where = "the table" if isinstance(source, pd.DataFrame) else str(source)
    if isinstance(source, pd.DataFrame):
        frame = source.reset_index(drop=True)
    else:
        try:
            frame = pd.read_csv(source, dtype=str, keep_default_na=False)
        except pd.errors.EmptyDataError:
            raise ValueError(f"{where} is empty; expected the columns {', '.join(_NEEDED)}; {_WAY_OUT}.") from None
    missing = [name for name in _NEEDED if name not in frame.columns]
    if missing:
        came = ", ".join(map(str, frame.columns)) or "none"
        raise ValueError(f"{where} has no column {', '.join(missing)}; its columns are {came}. {_WAY_OUT}.")
    read = pd.DataFrame({name: [_text(cell) for cell in frame[name]] for name in _NAMES}, dtype=object)
    for name in _NAMES:
        empty = np.flatnonzero(read[name] == "")
        if len(empty):
            raise ValueError(f"{where}: row {empty[0] + 1} has no {name}; expected a name in each row.")
    read["fold"] = [_fold(cell) for cell in frame["fold"]]
    for name in ("removal", "reason"):
        cells = frame[name] if name in frame.columns else [""] * len(frame)
        read[name] = [_text(cell) for cell in cells]
    for name in ("value", "full"):
        read[name] = np.array([_number(cell, name, n, where) for n, cell in enumerate(frame[name])], dtype=np.float64)
    return read


def _chosen(score: str | None, scores: Sequence[str]) -> str:
    if score is None:
        if len(scores) > 1 and _TRUTH not in scores:
            raise ValueError(f"the table has the scores {', '.join(scores)}; say which one to analyze: score=...")
        return scores[0] if len(scores) == 1 else _TRUTH
    if score not in scores:
        raise ValueError(f"the table has no score {score!r}; it has {', '.join(scores)}.")
    return score


def _text(cell: Any) -> str:
    return "" if cell is None or cell is pd.NA or (isinstance(cell, float) and math.isnan(cell)) else str(cell).strip()


def _fold(cell: Any) -> str:
    """Name of a fold; 3.0, which pandas makes of 3 beside empty cells, is 3."""
    text = _text(cell)
    return text[: text.index(".")] if re.fullmatch(r"\d+\.0+", text) else text


def _number(cell: Any, column: str, row: int, where: str) -> float:
    text = _text(cell)
    try:
        number = float(text) if text else math.nan
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"{where}: row {row + 1} has {column} {text!r}; expected a finite number or an empty cell.")
    return number


def _in_order(folds: Iterable[str]) -> tuple[str, ...]:
    """Numbers by size, otherwise as they come."""
    names = tuple(dict.fromkeys(folds))
    return tuple(sorted(names, key=int)) if all(re.fullmatch(r"\d+", name) for name in names) else names


def _numbers_of(column: pd.Series, names: Sequence[str]) -> NDArray[np.int64]:
    number = {name: n for n, name in enumerate(names)}
    return np.array([number[name] for name in column], dtype=np.int64)


def _place(rows: pd.DataFrame, place: NDArray[np.int64], wrong: NDArray[np.bool_]) -> str:
    first = rows.iloc[int(np.flatnonzero(wrong[place])[0])]
    return f"{_words(first['case'], first['fold'], first['score'], first['sub_region'])}, contrast {first['contrast']}"


def _words(case: str, fold: str, score: str, sub_region: str) -> str:
    return f"case {case}, {f'fold {fold}, ' if fold else ''}score {score}, sub-region {sub_region}"
