# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The result for contrasts: exact Shapley values by sub-region and score, with the table that they follow from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_segshap.explainers.contrast.removal import removal_words
from monai_segshap.explainers.contrast.sub_regions import SubRegion
from monai_segshap.inferers import ForwardCounts
from monai_segshap.shapley import all_coalitions
from monai_segshap.units.contrasts import Contrasts

__all__ = ["CONTRAST_COLUMNS", "ContrastExplanation", "contrast_table", "contrast_values"]

#: Columns of `ContrastExplanation.table`.
CONTRAST_COLUMNS = (
    "case",
    "fold",
    "score",
    "sub_region",
    "contrast",
    "value",
    "full",
    "empty",
    "truth_voxels",
    "predicted_voxels",
    "removal",
    "reason",
)


@dataclass(frozen=True)
class ContrastExplanation:
    """What each contrast is worth for each sub-region, for one case and one network.

    Attributes:
        case: name of the case.
        contrasts: the N contrasts.
        sub_regions: the S sub-regions.
        scores: names of the T scores, see `monai_segshap.explainers.contrast.game.CONTRAST_SCORES`.
        values: float64 (T, N, S), exact Shapley values in the unit of the score; positive: the contrast raises it. NaN
            where a score has no value, never 0; see ``reasons``. A contrast that changes nothing has exactly 0.
        coalition_scores: float64 (T, 2**N, S), scores of all coalitions; the row number is a bit mask, contrast 0 the
            lowest bit, so that row 0 keeps none.
        predicted_voxels: int64 (2**N, S), voxels predicted as each sub-region.
        truth_voxels: int64 (S,), voxels of each sub-region in the ground truth; None: there was none.
        reasons: score -> sub-region -> why it has no value.
        live: bool (N,), contrasts that differ from their replacement somewhere; the others have the value 0.
        removal: what removed contrasts become: `monai_segshap.perturbation.Baseline.describe`, "space", and by contrast
            "mean" of the replacement and "changed", the share of voxels that it changes.
        fold: name of the network among several; None: there is one.
        forwards: network passes (windows); ``naive`` is every window for each of the 2**N coalitions.
        segmentation_forwards: network passes of the whole-volume prediction.
        seconds: wall time: "network", "total", and that of one "window" found by the calibration.
        heads: how logits become a prediction.
        signal: what tp, fp and the like sum.
        absent: what a Dice is with nothing to find: "nan" or "one".
        execution: how the network ran.
        warnings: sentences that a reader must know.
        versions: of the software.
        identity: what the values depend on, as names and digests; empty where nothing was stored.
    """

    case: str
    contrasts: Contrasts
    sub_regions: tuple[SubRegion, ...]
    scores: tuple[str, ...]
    values: NDArray[np.float64]
    coalition_scores: NDArray[np.float64]
    predicted_voxels: NDArray[np.int64]
    truth_voxels: NDArray[np.int64] | None
    reasons: dict[str, dict[str, str]]
    live: NDArray[np.bool_]
    removal: dict[str, Any]
    fold: str | None
    forwards: ForwardCounts
    segmentation_forwards: int
    seconds: dict[str, float]
    heads: dict[str, Any] = field(default_factory=dict)
    signal: str = "logit"
    absent: str = "nan"
    execution: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)

    @property
    def full(self) -> NDArray[np.float64]:
        """Float64 (T, S), scores with every contrast kept."""
        return self.coalition_scores[:, -1]

    @property
    def empty(self) -> NDArray[np.float64]:
        """Float64 (T, S), scores with every contrast removed."""
        return self.coalition_scores[:, 0]

    @property
    def efficiency_gap(self) -> NDArray[np.float64]:
        """Float64 (T, S): sum of the values minus (full - empty); rounding error, NaN where there is no value."""
        return self.values.sum(axis=1) - (self.full - self.empty)

    @property
    def removed(self) -> str:
        """What removed contrasts became, in words."""
        return removal_words(self.removal)

    @property
    def sub_region_names(self) -> tuple[str, ...]:
        """Names of the S sub-regions."""
        return tuple(region.name for region in self.sub_regions)

    def of(self, score: str, sub_region: str | None = None) -> NDArray[np.float64]:
        """Values of one score.

        Args:
            score: its name.
            sub_region: name of one sub-region; None: all of them.

        Returns:
            float64 (N, S), or (N,) for one sub-region.

        Raises:
            ValueError: for an unknown score or sub-region.
        """
        if score not in self.scores or (sub_region is not None and sub_region not in self.sub_region_names):
            raise ValueError(
                f"no values of score {score!r} for sub-region {sub_region!r}; this explanation has the scores "
                f"{', '.join(self.scores)} of {', '.join(self.sub_region_names)}."
            )
        table = self.values[self.scores.index(score)]
        return table if sub_region is None else table[:, self.sub_region_names.index(sub_region)]

    def table(self) -> pd.DataFrame:
        """One row for each score, sub-region and contrast.

        Columns: see `CONTRAST_COLUMNS`. "full" and "empty" are the score with every contrast and with none,
        "predicted_voxels" are with every contrast, "removal" is what removed contrasts became, and "reason" says why
        there is no value.
        """
        rows = []
        for t, score in enumerate(self.scores):
            for s, region in enumerate(self.sub_region_names):
                shared = {
                    "full": self.full[t, s],
                    "empty": self.empty[t, s],
                    "truth_voxels": None if self.truth_voxels is None else int(self.truth_voxels[s]),
                    "predicted_voxels": int(self.predicted_voxels[-1, s]),
                    "removal": self.removed,
                    "reason": self.reasons.get(score, {}).get(region, ""),
                }
                for n, contrast in enumerate(self.contrasts.names):
                    head = {"case": self.case, "fold": self.fold, "score": score, "sub_region": region}
                    rows.append({**head, "contrast": contrast, "value": self.values[t, n, s], **shared})
        return pd.DataFrame(rows, columns=list(CONTRAST_COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """Content of one fold in ``contrasts.json``: plain values, None for NaN."""
        kept = all_coalitions(self.contrasts.n_contrasts)
        return {
            "fold": self.fold,
            "scores": {score: self._score_dict(t) for t, score in enumerate(self.scores)},
            "coalitions": [
                {
                    "kept": [n for n, keep in zip(self.contrasts.names, row, strict=True) if keep],
                    "predicted_voxels": dict(zip(self.sub_region_names, counts.tolist(), strict=True)),
                }
                for row, counts in zip(kept, self.predicted_voxels, strict=True)
            ],
            "forwards": {
                "naive": self.forwards.naive,
                "planned": self.forwards.planned,
                "run": self.forwards.run,
                "segmentation": self.segmentation_forwards,
                "calibration": self.forwards.calibration,
            },
            "execution": self.execution,
            "seconds": {key: round(value, 6) for key, value in self.seconds.items()},
            "warnings": list(self.warnings),
            "versions": self.versions,
            "identity": self.identity,
        }

    def case_dict(self) -> dict[str, Any]:
        """What all folds of a case share in ``contrasts.json``."""
        truth = None
        if self.truth_voxels is not None:
            truth = dict(zip(self.sub_region_names, self.truth_voxels.tolist(), strict=True))
        return {
            "case": self.case,
            "contrasts": [
                {"name": name, "channels": list(group), "live": bool(live)}
                for name, group, live in zip(self.contrasts.names, self.contrasts.channels, self.live, strict=True)
            ],
            "channel_names": list(self.contrasts.channel_names),
            "sub_regions": [region.describe() for region in self.sub_regions],
            "truth_voxels": truth,
            "removal": self.removal,
            "method": "exact",
            "evaluations": 2**self.contrasts.n_contrasts,
            "heads": self.heads,
            "signal": self.signal,
            "absent": self.absent,
        }

    def _score_dict(self, t: int) -> dict[str, Any]:
        found = {}
        for s, region in enumerate(self.sub_region_names):
            found[region] = {
                "values": dict(zip(self.contrasts.names, map(_plain, self.values[t, :, s]), strict=True)),
                "full": _plain(self.full[t, s]),
                "empty": _plain(self.empty[t, s]),
                "efficiency_gap": _plain(self.efficiency_gap[t, s]),
                "reason": self.reasons.get(self.scores[t], {}).get(region),
                "coalition_scores": [_plain(v) for v in self.coalition_scores[t, :, s]],
            }
        return found


def contrast_table(explanations: Sequence[ContrastExplanation]) -> pd.DataFrame:
    """The tables of several cases and folds below each other, see `ContrastExplanation.table`.

    Raises:
        ValueError: for no explanation.
    """
    if not explanations:
        raise ValueError("got no contrast explanation to tabulate.")
    return pd.concat([one.table() for one in explanations], ignore_index=True)


def contrast_values(explanations: Sequence[ContrastExplanation], score: str, sub_region: str) -> NDArray[np.float64]:
    """Values of one score and sub-region, one row for each case or fold, for rank metrics.

    Args:
        explanations: of the same contrasts in the same order.
        score: its name.
        sub_region: its name.

    Returns:
        float64 (K, N); rows without a value are NaN.

    Raises:
        ValueError: for no explanation, or other contrasts.
    """
    names = {one.contrasts.names for one in explanations}
    if len(names) != 1:
        raise ValueError(
            f"the explanations have the contrasts {sorted(names)}; expected one list of them, in one order."
        )
    return np.stack([one.of(score, sub_region) for one in explanations])


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
