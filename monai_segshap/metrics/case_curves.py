# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Perturbation curves of an explanation: every score from one evaluation, what is known never evaluated again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_segshap.explainers import CaseGame, Explanation
from monai_segshap.metrics.curves import PerturbationCurves, curve_coalitions, perturbation_curves
from monai_segshap.metrics.memory import ScoreMemory

__all__ = ["case_curves"]


def case_curves(
    explanation: Explanation,
    game: CaseGame | None = None,
    *,
    scores: Sequence[str] | None = None,
    random_orders: int = 0,
    bounds: str = "auto",
    budget: int = 2048,
    beam_width: int = 5,
    seed: int = 0,
) -> dict[str, PerturbationCurves]:
    """MoRF and LeRF curves of the scores of an explanation, over the V units that its region's windows see.

    Units that they do not see have a value of exactly 0 and change no score; they are not removed, so that the share
    of removed units means the same for all partitions. Coalitions that the explanation has evaluated are taken from it.
    All others of the curves, of all scores, are asked in one call, so that they share their windows; bounds of NAOPC
    are searched score by score, and what one score has asked for is there for the next.

    Args:
        explanation: with ``evaluated`` coalitions.
        game: `monai_segshap.explainers.KernelSHAPExplainer.game` of the same case, region and settings; None: every
            coalition is known, as after ``method="exact"``.
        scores: some of the explanation's; None: all of them.
        random_orders: of the control, see `perturbation_curves`.
        bounds: of NAOPC, see `perturbation_curves`.
        budget: coalitions for the bounds of one score.
        beam_width: see `perturbation_curves`.
        seed: of the random orders.

    Returns:
        curves by the name of the score. Each one's ``n_evaluations`` counts what neither the explanation nor the scores
        before it had asked for.

    Raises:
        ValueError: for a game of other units or scores, for coalitions that are unknown without a game, or as
            `perturbation_curves`.
    """
    names = tuple(explanation.scores if scores is None else scores)
    columns = [explanation.score_index(name) for name in names]
    values = explanation.values[explanation.visible][:, columns]
    volumes = explanation.partition.volumes_ml[explanation.visible]
    network, memory = _memories(explanation, game)
    network(np.concatenate([curve_coalitions(values[:, t], random_orders, seed) for t in range(len(names))]))
    found = {}
    for t, (name, column) in enumerate(zip(names, columns, strict=True)):
        rows, table = memory.known
        found[name] = perturbation_curves(
            memory.score(column),
            values[:, t],
            volumes=volumes,
            known=(rows, table[:, column]) if len(rows) else None,
            bounds=bounds,
            budget=budget,
            beam_width=beam_width,
            random_orders=random_orders,
            seed=seed,
        )
    return found


def _memories(explanation: Explanation, game: CaseGame | None) -> tuple[ScoreMemory, ScoreMemory]:
    """One that evaluates all curves at once, and one before it that tells the scores what each had to ask for."""
    n_visible, evaluated = int(explanation.visible.sum()), explanation.evaluated
    if evaluated is None and game is None:
        raise ValueError(
            f"the explanation of {explanation.case} has no evaluated coalitions, and game is None; give "
            "KernelSHAPExplainer.game of this case."
        )
    if game is not None and (
        game.scores != explanation.scores or not np.array_equal(game.visible, explanation.visible)
    ):
        raise ValueError(
            f"the game has the scores {', '.join(game.scores)} and {int(game.visible.sum())} visible units of "
            f"{game.n_units}; expected {', '.join(explanation.scores)} and the {n_visible} of "
            f"{len(explanation.visible)} that the explanation has. Make it with the same explainer, units and region."
        )
    known = (evaluated.rows, evaluated.scores) if evaluated is not None else None
    network = ScoreMemory(game.of_visible if game is not None else None, n_visible, known, len(explanation.scores))
    return network, ScoreMemory(network, n_visible, known, len(explanation.scores))
