# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""MONAI metrics of contrast explanations: agreement with a reference ranking, and rank variance over folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.utils import MetricReduction

from monai_segshap.explainers import ContrastExplanation, contrast_values
from monai_segshap.metrics.case_table import CaseRow, CaseTableMetric
from monai_segshap.metrics.ranks import rank_agreement_report, rank_variance_report, ranks_of
from monai_segshap.metrics.reference_ranking import ReferenceRanking

__all__ = ["RankAgreementMetric", "RankVarianceMetric"]


class RankAgreementMetric(CaseTableMetric):
    """Agreement of contrast rankings with a reference (paper 003), a row for each case and fold.

    ``y_pred`` holds for each case its contrast explanations, one for each fold, or one of them; ``y`` is not used. With
    the handlers: ``ExplanationMetricHandler(metric, "agreement", "contrast_explanations")`` beside an
    `ExplanationHandler` with `ContrastShapleyd`; or with `ContrastShapleyd` in the post-processing of an evaluator
    ``IgniteMetricHandler(metric_fn=metric, output_transform=from_engine(["contrast_explanations"] * 2))``.

    Numbers are in [0, 1], 1 for identical ranks; random rankings reach 0.375 for four contrasts. NaN, with a note,
    where a sub-region has no value or all values are equal.

    Args:
        reference: the ranking, or its YAML file.
        score: whose values are ranked.
        sub_regions: names; None: all of the reference. Columns are named agreement_NAME.
        reduction: see `CaseTableMetric`.
        get_not_nans: see `CaseTableMetric`.
        named: see `CaseTableMetric`.

    Raises:
        ValueError: for no sub-region, or one that the reference does not rank; and when called, for explanations
            without the score or a sub-region, or of other contrasts.

    Example:
        >>> from monai_segshap.metrics import ReferenceRanking
        >>> RankAgreementMetric(ReferenceRanking({"ET": ["t1c", "t2f"]}, "an example")).columns
        ('agreement_ET',)
    """

    def __init__(
        self,
        reference: ReferenceRanking | str | Path,
        score: str = "dice_truth",
        sub_regions: Sequence[str] | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN_BATCH,
        get_not_nans: bool = False,
        named: bool = False,
    ) -> None:
        self.reference = ReferenceRanking.read(reference) if isinstance(reference, (str, Path)) else reference
        self.score = score
        self.sub_regions = _names(list(self.reference.orders) if sub_regions is None else sub_regions)
        unknown = [name for name in self.sub_regions if name not in self.reference.orders]
        if unknown:
            raise ValueError(
                f"the reference does not rank {', '.join(unknown)}; it ranks {', '.join(self.reference.orders)}."
            )
        super().__init__([f"agreement_{name}" for name in self.sub_regions], reduction, get_not_nans, named)

    def case_rows(self, y_pred: Any, y: Any) -> list[CaseRow]:
        """A row for each fold of one case; none where the case has no explanation."""
        return [self._row(one) for one in _explanations(y_pred)]

    def _row(self, one: ContrastExplanation) -> CaseRow:
        found, notes = [], []
        for name in self.sub_regions:
            expected = self.reference.ranks(name, one.contrasts.names)
            report = rank_agreement_report(one.of(self.score, name), expected)
            found.append(report.agreement)
            if math.isnan(report.agreement):
                why = one.reasons.get(self.score, {}).get(name)
                notes.append(f"{name}: NaN: {why}" if why else f"{name}: {report.notes['agreement']}")
        return CaseRow(one.case if one.fold is None else f"{one.case} fold {one.fold}", found, tuple(notes))


class RankVarianceMetric(CaseTableMetric):
    """Instability of contrast rankings over folds (paper 003), a row for each case.

    ``y_pred`` is that of `RankAgreementMetric`: the explanations of a case by all folds, so that `ContrastShapleyd`
    needs two networks or more. Numbers are at least 0, which is where all folds agree; random rankings reach 1.25 for
    four contrasts. NaN, with a note, for fewer than two folds, and where a fold has no value or equal ones. Evaluate
    cases that none of the networks was trained on.

    Args:
        sub_regions: names. Columns are named rank_variance_NAME.
        score: whose values are ranked.
        reduction: see `CaseTableMetric`.
        get_not_nans: see `CaseTableMetric`.
        named: see `CaseTableMetric`.

    Raises:
        ValueError: for no sub-region; and when called, for explanations without the score or a sub-region, of several
            cases or several lists of contrasts, or two of one fold.

    Example:
        >>> RankVarianceMetric(["TC", "ET"]).columns
        ('rank_variance_TC', 'rank_variance_ET')
    """

    def __init__(
        self,
        sub_regions: Sequence[str],
        score: str = "dice_truth",
        reduction: MetricReduction | str = MetricReduction.MEAN_BATCH,
        get_not_nans: bool = False,
        named: bool = False,
    ) -> None:
        self.score, self.sub_regions = score, _names(sub_regions)
        super().__init__([f"rank_variance_{name}" for name in self.sub_regions], reduction, get_not_nans, named)

    def case_rows(self, y_pred: Any, y: Any) -> list[CaseRow]:
        """The row of one case."""
        explanations = _explanations(y_pred)
        pairs = [(one.case, one.fold) for one in explanations]
        if len({case for case, _ in pairs}) > 1 or len(set(pairs)) < len(pairs):
            raise ValueError(
                f"got the explanations {pairs} as one case; expected one case, and each of its folds once."
            )
        name = explanations[0].case if explanations else ""
        tables = {r: contrast_values(explanations, self.score, r) for r in self.sub_regions if explanations}
        if len(explanations) < 2:
            note = f"NaN: {len(explanations)} fold(s); a variance over folds needs two"
            return [CaseRow(name, [math.nan] * len(self.sub_regions), (note,))]
        found, notes = [], []
        for region, values in tables.items():
            report = rank_variance_report(ranks_of(values))
            found.append(report.variance)
            if math.isnan(report.variance):
                whys = [one.reasons.get(self.score, {}).get(region) for one in explanations]
                why = next((f"NaN: {text}" for text in whys if text), report.notes["variance"])
                notes.append(f"{region}: {why}")
        return [CaseRow(name, found, tuple(notes))]


def _names(sub_regions: Sequence[str]) -> tuple[str, ...]:
    if isinstance(sub_regions, str) or not len(sub_regions):
        raise ValueError(f"sub_regions are {sub_regions!r}; expected a list of one or more names.")
    return tuple(str(name) for name in sub_regions)


def _explanations(found: Any) -> list[ContrastExplanation]:
    return [found] if isinstance(found, ContrastExplanation) else list(found)
