# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The game that an explanation is about, for checks that choose coalitions of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from monai_segshap.explainers.preparation import PreparedCase
from monai_segshap.explainers.sweep import passes_bar
from monai_segshap.games import RegionGame

__all__ = ["CaseGame"]


class CaseGame:
    """Scores of coalitions of one region: bool (K, M) -> float64 (K, T), for all M units of the partition.

    Made by `KernelSHAPExplainer.game`. Units that the region's windows do not see change nothing. Of one call, equal
    windows run once; of several calls, only the coalition with all units, which defines P_0.

    Args:
        prepared: a case with one region.
        progress: show a bar of network passes.

    Attributes:
        n_units: M.
        scores: names of the T scores.
        visible: bool (M,), units that can matter.
    """

    def __init__(self, prepared: PreparedCase, progress: bool = False) -> None:
        self._prepared, self._progress = prepared, progress
        self._sweep, self.calibration = prepared.plan(None)
        self._game: RegionGame | None = None
        self.n_units, self.scores = prepared.partition.n_units, prepared.settings.scores
        self.visible: NDArray[np.bool_] = prepared.views[0].visible

    @property
    def n_forwards(self) -> int:
        """Windows that went through the network so far, without those of the calibration."""
        return self._prepared.evaluator.n_forwards

    def __call__(self, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Scores (K, T) of coalitions (K, M), True keeps a unit.

        Raises:
            ValueError: for coalitions of another shape or type.
        """
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.shape[1] != self.n_units or rows.dtype != np.bool_:
            raise ValueError(
                f"coalitions have shape {rows.shape} and type {rows.dtype}; expected bool (K, {self.n_units})."
            )
        return self.of_visible(rows[:, self.visible])

    def of_visible(self, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Scores (K, T) of coalitions (K, V) of the visible units alone.

        Raises:
            ValueError: for coalitions of another shape or type.
        """
        rows = np.asarray(rows)
        n_visible = int(self.visible.sum())
        if rows.ndim != 2 or rows.shape[1] != n_visible or rows.dtype != np.bool_:
            raise ValueError(
                f"coalitions have shape {rows.shape} and type {rows.dtype}; expected bool (K, {n_visible}), a column "
                "for each visible unit."
            )
        if len(rows) == 0:
            return np.zeros((0, len(self.scores)))
        distinct, place = np.unique(rows, axis=0, return_inverse=True)
        if self._game is None:
            distinct = np.concatenate([np.ones((1, distinct.shape[1]), dtype=bool), distinct])
            place = place + 1
        return self._evaluate(distinct)[place.ravel()]

    def score(self, name: str) -> Callable[[NDArray[np.bool_]], NDArray[np.float64]]:
        """The game of one score, bool (K, M) -> float64 (K,).

        Raises:
            ValueError: if it is not among ``scores``.
        """
        if name not in self.scores:
            raise ValueError(f"the game has no score {name!r}; it has {', '.join(self.scores)}.")
        column = self.scores.index(name)
        return lambda rows: self(rows)[:, column]

    def _evaluate(self, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Scores of coalitions of the visible units; the first one keeps all of them in the first call."""
        prepared = self._prepared
        plan = prepared.evaluator.prepare(rows, prepared.n_classes)
        found = np.empty((len(rows), len(self.scores)))
        with passes_bar(plan.jobs.n_forwards, self._progress, 1) as advance:
            for row, (logits,) in prepared.evaluator.run(plan, advance):
                if self._game is None:
                    reference = prepared.settings.heads.predicted(logits, prepared.regions[0].target)
                    (self._game,) = self._sweep.games([reference.cpu().numpy()])
                found[row] = self._game(logits.to(self._game.mask.device))
        return found
