# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""MONAI metrics of explanations by units: perturbation curves and convergence, collected over cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.utils import MetricReduction

from monai_segshap.explainers import Explanation
from monai_segshap.metrics.case_convergence import case_convergence, check_prior
from monai_segshap.metrics.case_table import CaseRow, CaseTableMetric
from monai_segshap.metrics.curves import PerturbationCurves

__all__ = ["CONVERGENCE_FIELDS", "CURVE_FIELDS", "ConvergenceMetric", "PerturbationCurveMetric"]

#: Numbers of `PerturbationCurves`.
CURVE_FIELDS = (
    "aopc",
    "aopc_lerf",
    "abpc",
    "aopc_endpoint_normalized",
    "abpc_endpoint_normalized",
    "naopc",
    "sufficiency",
    "n_evaluations",
    "n_reused",
    "n_tied",
)
#: Numbers of a `ConvergenceReport`, at its largest budget.
CONVERGENCE_FIELDS = (
    "stability",
    "local_accuracy",
    "in_sample_mae",
    "held_out_mae",
    "held_out_r2",
    "condition_number",
    "budget",
    "recommended_budget",
)
#: What a row is: an explanation, or the mean over the explanations of a case.
_PER = ("explanation", "case")


class _ExplanationMetric(CaseTableMetric):
    """Some numbers of each explanation, for one score."""

    def __init__(
        self,
        score: str,
        fields: Sequence[str],
        known: Sequence[str],
        per: str,
        reduction: MetricReduction | str,
        get_not_nans: bool,
        named: bool,
    ) -> None:
        unknown = [name for name in fields if name not in known]
        if unknown or isinstance(fields, str) or per not in _PER:
            raise ValueError(
                f"fields are {fields!r} and per is {per!r}; expected a list with some of {', '.join(known)}, and one "
                f"of {', '.join(_PER)}."
            )
        self.score, self.fields, self.per = score, tuple(fields), per
        super().__init__([f"{score}_{name}" for name in fields], reduction, get_not_nans, named)

    def _per(self, rows: list[CaseRow], name: str) -> list[CaseRow]:
        """The rows, or one row of their means without NaN."""
        if self.per == "explanation":
            return rows
        notes = tuple(note for row in rows for note in row.notes) if rows else ("NaN: the case has no explanation",)
        known = [[row.values[f] for row in rows if not math.isnan(row.values[f])] for f in range(len(self.fields))]
        return [CaseRow(name, [float(np.mean(found)) if found else math.nan for found in known], notes)]


class PerturbationCurveMetric(_ExplanationMetric):
    """Areas of perturbation curves (paper 000, Eq. 7 to 9, and NAOPC), collected over cases.

    ``y_pred`` holds for each case what `monai_segshap.transforms.PerturbationCurvesd` adds: a list with a dictionary of
    score and `PerturbationCurves` for each explanation. ``y`` may hold the explanations, for the names of the rows.
    With Ignite: ``output_transform=from_engine(["curves", "explanations"])``.

    Args:
        score: "tp", "fp", "dice" or "soft_dice".
        fields: some of `CURVE_FIELDS`. Columns are named SCORE_FIELD.
        per: "explanation": a row for each; "case": a row for each case, the mean over its explanations, and NaN for
            none, so that rows match the lines of MONAI's `MetricsSaver`.
        reduction: see `CaseTableMetric`.
        get_not_nans: see `CaseTableMetric`.
        named: see `CaseTableMetric`.

    Raises:
        ValueError: for an unknown field or option, and when called, for curves without the score.
    """

    def __init__(
        self,
        score: str = "tp",
        fields: Sequence[str] = ("abpc", "abpc_endpoint_normalized", "aopc", "aopc_endpoint_normalized", "naopc"),
        per: str = "explanation",
        reduction: MetricReduction | str = MetricReduction.MEAN_BATCH,
        get_not_nans: bool = False,
        named: bool = False,
    ) -> None:
        super().__init__(score, fields, CURVE_FIELDS, per, reduction, get_not_nans, named)

    def case_rows(self, y_pred: Any, y: Any) -> list[CaseRow]:
        """Rows of one case: a list of dictionaries, or one of them."""
        curves = [y_pred] if isinstance(y_pred, Mapping) else list(y_pred)
        explanations = [None] * len(curves) if y is None else _explanations(y)
        if len(explanations) != len(curves):
            raise ValueError(f"a case has {len(curves)} curves and {len(explanations)} explanations; expected equal.")
        rows = [self._row(*pair) for pair in zip(curves, explanations, strict=True)]
        first = explanations[0] if explanations else None
        return self._per(rows, first.case if first is not None else "")

    def _row(self, curves: Mapping[str, PerturbationCurves], explanation: Explanation | None) -> CaseRow:
        if self.score not in curves:
            raise ValueError(f"there are no curves of score {self.score!r}; there are those of {', '.join(curves)}.")
        one = curves[self.score]
        notes = tuple(f"{name}: {one.notes[name]}" for name in self.fields if name in one.notes)
        return CaseRow(_name(explanation), [float(getattr(one, name)) for name in self.fields], notes)


class ConvergenceMetric(_ExplanationMetric):
    """Diagnostics of the budget (paper 000, section IV-B), collected over cases; no network pass.

    ``y_pred`` holds a list of explanations for each case, or one explanation; ``y`` is not used. With Ignite:
    ``output_transform=from_engine(["explanations", "explanations"])``. An explanation without a report, for example of
    three units, whose values are exact, gives a row of NaN with a note.

    Args:
        score: "tp", "fp", "dice" or "soft_dice".
        fields: some of `CONVERGENCE_FIELDS`, at the report's largest budget. Columns are named SCORE_FIELD. A condition
            number can be infinite, and so is then its mean.
        per: see `PerturbationCurveMetric`.
        prior: see `case_convergence`.
        options: of `convergence_report`: method, budgets, held_out, tolerance. Where they do not fit an explanation
            its row is NaN, too.
        reduction: see `CaseTableMetric`.
        get_not_nans: see `CaseTableMetric`.
        named: see `CaseTableMetric`.

    Raises:
        ValueError: for an unknown field or option, and when called, for explanations without the score.
    """

    def __init__(
        self,
        score: str = "tp",
        fields: Sequence[str] = ("stability", "local_accuracy", "held_out_mae", "held_out_r2", "condition_number"),
        per: str = "explanation",
        prior: str = "distance",
        options: Mapping[str, Any] | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN_BATCH,
        get_not_nans: bool = False,
        named: bool = False,
    ) -> None:
        check_prior(prior)
        super().__init__(score, fields, CONVERGENCE_FIELDS, per, reduction, get_not_nans, named)
        self.prior, self.options = prior, dict(options or {})

    def case_rows(self, y_pred: Any, y: Any) -> list[CaseRow]:
        """Rows of one case: a list of explanations, or one of them."""
        explanations = _explanations(y_pred)
        return self._per([self._row(one) for one in explanations], explanations[0].case if explanations else "")

    def _row(self, explanation: Explanation) -> CaseRow:
        column, name = explanation.score_index(self.score), _name(explanation)
        try:
            report = case_convergence(explanation, prior=self.prior, **self.options)
        except ValueError as error:
            return CaseRow(name, [math.nan] * len(self.fields), (f"NaN: {error}",))
        recommended = report.recommended[column]
        found = {
            "condition_number": float(report.condition_number[-1]),
            "budget": float(report.budgets[-1]),
            "recommended_budget": math.nan if recommended is None else float(recommended),
        }
        for field in CONVERGENCE_FIELDS[:5]:
            found[field] = float(getattr(report, field)[-1, column])
        notes = [n for n in report.notes if n.startswith(f"{self.score}: ") or n.startswith("condition_number")]
        return CaseRow(name, [found[field] for field in self.fields], tuple(notes))


def _explanations(found: Any) -> list[Any]:
    return [found] if isinstance(found, Explanation) else list(found)


def _name(explanation: Explanation | None) -> str:
    return "" if explanation is None else f"{explanation.case} {explanation.target_name}"
