# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The base of our MONAI metrics: every case gives rows of named numbers, which are collected over cases and ranks."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from monai.metrics import CumulativeIterationMetric
from monai.utils import ImageMetaKey, MetricReduction, evenly_divisible_all_gather, string_list_all_gather

from monai_segshap.files import write_whole
from monai_segshap.running import case_name

__all__ = ["CaseRow", "CaseTableMetric", "name_of_image"]


@dataclass(frozen=True)
class CaseRow:
    """Numbers of one case, or of one explanation of it.

    Attributes:
        name: of the case; empty: it gets its number.
        values: in the order of the metric's columns; NaN where undefined.
        notes: why something is NaN, or what to mind.
    """

    name: str
    values: Sequence[float]
    notes: tuple[str, ...] = field(default_factory=tuple)


class CaseTableMetric(CumulativeIterationMetric):
    """A table with a row for each case and named columns; a MONAI metric that knows NaN.

    Unlike MONAI's own reductions, a mean over nothing is NaN, never 0. Rows are gathered over ranks, which may have
    different numbers of them, or none.

    With Ignite: ``IgniteMetricHandler(metric_fn=metric, output_transform=from_engine([...]))``. A metric of one column
    can be the key metric of an evaluator. With several columns the entry of ``engine.state.metrics`` is a tensor, or
    with ``named=True`` there is an entry for each column, and `MetricsSaver` writes them by name into ``metrics.csv``.
    Its ``NAME_raw.csv`` has a line for each row, with the columns of ``columns`` in order as class0, class1, ...: MONAI
    has no names for them, and its "mean" runs over columns, which means nothing where these are different things.
    `save_table` writes the same rows with names. Where a case can have several rows or none, give
    ``MetricsSaver(batch_transform=metric.file_names)``, so that names and rows belong together.

    Args:
        columns: names of the numbers.
        reduction: of `aggregate`, as in MONAI: "mean_batch" (default) and "sum_batch" over rows, "mean_channel" and
            "sum_channel" over columns, "mean" over columns and then rows, "sum" over both, or "none".
        get_not_nans: whether `aggregate` also returns how many numbers were not NaN.
        named: whether `aggregate` returns a dictionary of column and number. Attach such a metric under a name that
            is no column's.

    Attributes:
        columns: names of the numbers.

    Raises:
        ValueError: for no columns, two of one name, another reduction, or ``named`` where there is no number for each
            column.
    """

    def __init__(
        self,
        columns: Sequence[str],
        reduction: MetricReduction | str = MetricReduction.MEAN_BATCH,
        get_not_nans: bool = False,
        named: bool = False,
    ) -> None:
        self.columns = tuple(str(column) for column in columns)
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"the columns are {list(columns)}; expected one or more different names.")
        self.reduction, self.get_not_nans, self.named = _reduction(reduction), get_not_nans, named
        over_rows = self.reduction in (MetricReduction.MEAN_BATCH, MetricReduction.SUM_BATCH)
        if named and (get_not_nans or not over_rows):
            raise ValueError(
                f"named with reduction {self.reduction.value!r} and get_not_nans {get_not_nans}; expected 'mean_batch' "
                "or 'sum_batch', and no counts: one number for each column."
            )
        super().__init__()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._local: list[CaseRow] = []
        self._told = 0
        self._gathered: list[tuple[str, list[str]]] = []

    @abstractmethod
    def case_rows(self, y_pred: Any, y: Any) -> list[CaseRow]:
        """The rows of one case.

        Args:
            y_pred: its entry of ``y_pred``.
            y: its entry of ``y``, or None.
        """

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        """Take in a batch.

        Args:
            y_pred: list with an entry for each case, or a tensor with a batch axis; the metric says of what.
            y: likewise, or None.
            kwargs: there are none.

        Returns:
            float64 (rows, columns) of this batch.

        Raises:
            ValueError: for other lengths of ``y_pred`` and ``y``.
        """
        rows = self._rows_of(y_pred, y)
        self._local += rows
        self._synced = False
        return self._as_tensor(rows)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        return self._as_tensor(self._rows_of(y_pred, y))

    def extend(self, *data: Any) -> None:
        """Take in rows that are numbers already, float (rows, columns), without names or notes."""
        self._local += [CaseRow("", [float(v) for v in row]) for row in data[0]]
        self._synced = False

    def append(self, *data: Any) -> None:
        """Take in one row of numbers, (columns,)."""
        self.extend([data[0]])

    def aggregate(self, reduction: MetricReduction | str | None = None) -> Any:
        """Reduce the rows of all cases and ranks, without those that are NaN.

        Args:
            reduction: another one than that of the metric.

        Returns:
            float64, (columns,) for "mean_batch" and "sum_batch"; NaN where nothing is left. With ``get_not_nans`` a
            pair of this and the counts; with ``named`` a dictionary.
        """
        rows = self._all_rows()
        found, counts = _reduced(rows, self.reduction if reduction is None else _reduction(reduction))
        if self.named and reduction is None:
            return dict(zip(self.columns, found.tolist(), strict=True))
        return (found, counts) if self.get_not_nans else found

    def get_buffer(self) -> torch.Tensor:
        """Rows of all cases and ranks, float32 (rows, columns).

        Float32 as MONAI's own metrics have it: `MetricsSaver` cuts float64 to four decimals, which many scores do not
        survive. `table` and `aggregate` have all digits.
        """
        return self._all_rows().float()

    def table(self) -> pd.DataFrame:
        """Rows of all cases and ranks: case, the columns, and notes."""
        rows = self._all_rows()
        frame = pd.DataFrame(rows.numpy(), columns=list(self.columns))
        frame.insert(0, "case", [name or str(number) for number, (name, _) in enumerate(self._gathered)])
        return frame.assign(notes=["; ".join(notes) for _, notes in self._gathered])

    def save_table(self, path: str | Path) -> Path:
        """Write `table` as CSV, with all digits; NaN is an empty field.

        With several ranks all of them must call it, and the first one writes.
        """
        frame, place = self.table(), Path(path)
        if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(place, frame.to_csv(index=False))

    def file_names(self, batch: Any = None) -> list[dict[str, str]]:
        """Names of the rows since the last call, as meta data: for ``MetricsSaver(batch_transform=metric.file_names)``.

        One `MetricsSaver` for each metric that is read in this way: a name is given once. Ignite hands a batch of
        tensors to a metric case by case, so that "the latest call" would be one case of it.
        """
        start, self._told = self._told, len(self._local)
        return [{ImageMetaKey.FILENAME_OR_OBJ: row.name or str(start + n)} for n, row in enumerate(self._local[start:])]

    def _rows_of(self, y_pred: Any, y: Any) -> list[CaseRow]:
        cases = list(y_pred)
        others = [None] * len(cases) if y is None else list(y)
        if len(others) != len(cases):
            raise ValueError(f"y_pred has {len(cases)} cases and y {len(others)}; expected an entry in both for each.")
        rows = [row for case, other in zip(cases, others, strict=True) for row in self.case_rows(case, other)]
        for row in rows:
            if len(row.values) != len(self.columns):
                raise ValueError(f"a row has {len(row.values)} numbers; expected {len(self.columns)}: {self.columns}.")
        return rows

    def _as_tensor(self, rows: Sequence[CaseRow]) -> torch.Tensor:
        return torch.tensor([list(row.values) for row in rows], dtype=torch.float64).reshape(-1, len(self.columns))

    def _sync(self) -> None:
        """Gather rows, names and notes over ranks; a rank without rows takes part, or the others would wait forever."""
        if self._synced:
            return
        own = self._as_tensor(self._local)
        self._synced_tensors = [evenly_divisible_all_gather(own, concat=True)]
        texts = string_list_all_gather([json.dumps([[row.name, list(row.notes)] for row in self._local])])
        self._gathered = [(name, notes) for text in texts for name, notes in json.loads(text)]
        self._synced = True

    def _all_rows(self) -> torch.Tensor:
        self._sync()
        tensors = self._synced_tensors
        return self._as_tensor([]) if not tensors or tensors[0] is None else tensors[0].cpu().clone()


def name_of_image(image: Any) -> str:
    """Name of the case that a `MetaTensor` was loaded as; empty if it does not know."""
    meta = getattr(image, "meta", None)
    path = meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(meta, Mapping) else None
    path = path[0] if isinstance(path, (list, tuple)) and path else path
    return case_name(path) if isinstance(path, (str, Path)) and str(path) else ""


def _reduction(reduction: MetricReduction | str) -> MetricReduction:
    known = [r.value for r in MetricReduction]
    name = reduction.value if isinstance(reduction, MetricReduction) else str(reduction)
    if name not in known:
        raise ValueError(f"unknown reduction {reduction!r}; expected one of {', '.join(known)}.")
    return MetricReduction(name)


def _reduced(rows: torch.Tensor, reduction: MetricReduction) -> tuple[torch.Tensor, torch.Tensor]:
    """What is left without NaN, and how many numbers that rests on."""
    known = ~torch.isnan(rows)
    if reduction == MetricReduction.NONE:
        return rows, known.double()
    if reduction == MetricReduction.MEAN:
        rows = torch.nanmean(rows, dim=1)
        return torch.nanmean(rows, dim=0), (~torch.isnan(rows)).sum().double()
    if reduction == MetricReduction.SUM:
        rows, known = rows.flatten(), known.flatten()
    over = 1 if reduction in (MetricReduction.MEAN_CHANNEL, MetricReduction.SUM_CHANNEL) else 0
    counts = known.sum(dim=over).double()
    total = torch.where(known, rows, 0.0).sum(dim=over)
    if reduction in (MetricReduction.MEAN_BATCH, MetricReduction.MEAN_CHANNEL):
        return total / counts, counts  # 0 / 0 is NaN
    return torch.where(counts > 0, total, torch.nan), counts
