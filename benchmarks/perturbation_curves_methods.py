# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The compared attributions of one question, each from n coalitions of its own, and the curves that judge them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.metrics import ScoreMemory, curve_coalitions, perturbation_curves
from monai_segshap.shapley import BlockTable, CoalitionPlan, Locality, plan_coalitions, solve

Floats = NDArray[np.float64]
Rows = NDArray[np.bool_]

#: Attributions in the order of the tables: the package's, captum's, the published sampling, and chance.
METHODS = ("auto", "kernelshap", "captum", "published", "random")
#: What judges them, and what it is called; larger is better for all.
METRICS = {"nabpc": "nABPC", "abpc": "ABPC", "naopc": "NAOPC", "lerf": "1 - sufficiency"}


@dataclass
class Question:
    """A game of V units whose coalitions are evaluated once, whoever asks.

    Attributes:
        case: name of the case.
        kind: of the units.
        n_units: V, units that can matter.
        scores: names of the T scores.
        outputs: bool (K, V), True keeps a unit -> (K, B, C), C channels of B blocks.
        linear: float64 (T, C), see `BlockTable`.
        compose: sums over blocks (..., C) -> scores (..., T).
        locality: where the units lie.
        facts: what else the report tells of it.
    """

    case: str
    kind: str
    n_units: int
    scores: tuple[str, ...]
    outputs: Callable[[Rows], Floats]
    linear: Floats
    compose: Callable[[Floats], Floats]
    locality: Locality = field(default_factory=Locality)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._channels = self.linear.shape[1]
        self.memory = ScoreMemory(lambda rows: self.outputs(rows).reshape(len(rows), -1), self.n_units)

    def table(self, rows: Rows) -> Floats:
        """What each block contributes, (K, B, C)."""
        return self.memory(rows).reshape(len(rows), -1, self._channels)

    def values(self, rows: Rows) -> Floats:
        """Scores (K, T)."""
        return self.compose(self.table(rows).sum(axis=1))


@dataclass(frozen=True)
class Attribution:
    """Attributions (V, T) of one method and one seed.

    Attributes:
        method: one of `METHODS`.
        evaluations: coalitions that it may evaluate, the full and the empty one included.
        seed: of its draw.
        values: float64 (V, T).
        asked: coalitions of one score that it really evaluated, repeated ones included.
        distinct: of these, different ones.
        estimator: what the package chose, or the name of the method.
    """

    method: str
    evaluations: int
    seed: int
    values: Floats
    asked: int
    distinct: int
    estimator: str


def draws(question: Question, method: str, evaluations: int, seed: int) -> CoalitionPlan | Rows:
    """The coalitions of a method, before anything is evaluated: the package's plan, or captum's rows (n, V).

    The package counts the full and the empty coalition beside its budget; here both are among the n.
    """
    if method == "captum":
        return captum_rows(question.n_units, evaluations, seed)
    return plan_coalitions(question.n_units, evaluations - 2, method, seed)


def attributions(question: Question, seeds: dict[str, int], evaluations: int, first_seed: int = 0) -> list[Attribution]:
    """Attributions of all methods with n coalitions each; the union of their coalitions is one call of the game.

    Args:
        question: the game.
        seeds: how many of each method, one of `METHODS`.
        evaluations: n.
        first_seed: of each method. Draws depend on the seed and the number of units alone.

    Returns:
        one for each method and seed; "random" evaluates nothing, has the same order for all scores, and has each order
        in both directions (2s and 2s + 1), so that its ABPC is 0 on average.
    """
    asked = [(m, s) for m, count in seeds.items() if m != "random" for s in range(first_seed, first_seed + count)]
    plans = {(m, s): draws(question, m, evaluations, s) for m, s in asked}
    question.memory(np.concatenate([_rows(plan) for plan in plans.values()]))
    found = []
    for (method, seed), plan in plans.items():
        rows = _rows(plan)
        if isinstance(plan, CoalitionPlan):
            values, estimator, count = *_own(question, plan), len(rows)
        else:
            values, count = _captum(question, evaluations, seed)
            estimator = "captum"
        distinct = len(np.unique(rows, axis=0))
        found.append(Attribution(method, evaluations, seed, values, count, distinct, estimator))
    for seed in range(first_seed, first_seed + seeds.get("random", 0)):
        order = np.random.default_rng([seed, question.n_units]).permutation(question.n_units).astype(np.float64)
        for number, direction in enumerate((1.0, -1.0)):
            values = np.tile(direction * order[:, None], (1, len(question.scores)))
            found.append(Attribution("random", evaluations, 2 * seed + number, values, 0, 0, "random"))
    return found


def _rows(plan: CoalitionPlan | Rows) -> Rows:
    return plan.rows if isinstance(plan, CoalitionPlan) else plan


def _own(question: Question, plan: CoalitionPlan) -> tuple[Floats, str]:
    """What `KernelSHAPExplainer` makes of the plan's coalitions."""
    blocks = BlockTable(question.table(plan.rows), question.linear, question.compose)
    estimate = solve(plan, question.values(plan.rows), question.locality, blocks, names=question.scores)
    return estimate.values, estimate.method


def _captum(question: Question, evaluations: int, seed: int) -> tuple[Floats, int]:
    """captum's values (V, T), one run for each score, and the coalitions that the first run asked for."""
    columns, counts = [], []
    for t in range(len(question.scores)):
        values, rows = captum_kernel_shap(
            lambda rows, t=t: question.values(rows)[:, t], question.n_units, evaluations, seed
        )
        columns.append(values)
        counts.append(len(rows))
    if len(set(counts)) != 1:
        raise RuntimeError(f"captum asked for {counts} coalitions for the scores; expected equal numbers.")
    return np.stack(columns, axis=1), counts[0]


def captum_kernel_shap(
    game: Callable[[Rows], Floats], n_units: int, evaluations: int, seed: int
) -> tuple[Floats, Rows]:
    """captum's `KernelShap`: its sampling and its regression.

    Args:
        game: one score, bool (K, M) -> (K,).
        n_units: M; each is a feature of its own, 1 where it is kept and 0, the baseline, where it is removed.
        evaluations: n, captum's ``n_samples``; its first two are the full and the empty coalition.
        seed: of torch's generator, from which captum draws.

    Returns:
        values (M,), and the coalitions (n, M) that captum asked for.
    """
    from captum.attr import KernelShap

    asked: list[Rows] = []

    def scores(inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.numpy() > 0.5
        asked.append(rows)
        return torch.from_numpy(np.asarray(game(rows), dtype=np.float64))

    kept = torch.ones(1, n_units, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        values = KernelShap(scores).attribute(
            kept,
            baselines=torch.zeros_like(kept),
            feature_mask=torch.arange(n_units)[None],
            n_samples=evaluations,
            perturbations_per_eval=64,
            return_input_shape=True,
        )
    return np.asarray(values.numpy(), dtype=np.float64)[0], np.concatenate(asked)


def captum_rows(n_units: int, evaluations: int, seed: int) -> Rows:
    """The coalitions that captum draws; they do not depend on the scores."""
    return captum_kernel_shap(lambda rows: np.zeros(len(rows)), n_units, evaluations, seed)[1]


def judge(question: Question, found: list[Attribution]) -> list[dict[str, Any]]:
    """Curves of every attribution and score on the true game, the union of their coalitions in one call.

    Returns:
        for each attribution and score a row of plain numbers. NAOPC uses the bounds of `known_bounds`, the same for all
        attributions of the question.
    """
    scores = range(len(question.scores))
    # a random order is the same for all scores
    wanted = [curve_coalitions(a.values[:, t]) for a in found for t in (scores if a.method != "random" else (0,))]
    question.memory(np.unique(np.concatenate(wanted), axis=0))
    rows, _ = question.memory.known
    table = question.values(rows)
    result = []
    for t, score in enumerate(question.scores):
        lower, upper = known_bounds(rows, table[:, t])
        memory = ScoreMemory(None, question.n_units, (rows, table[:, t]))
        for a in found:
            curves = perturbation_curves(memory, a.values[:, t], bounds="none")
            wide = upper - lower > 1e-6 * np.abs(table[:, t]).max()
            naopc, sufficiency = (
                (float(area) - lower) / (upper - lower) if wide else np.nan for area in (curves.aopc, curves.aopc_lerf)
            )
            result.append(
                {
                    "case": question.case,
                    "kind": question.kind,
                    "score": score,
                    "method": a.method,
                    "estimator": a.estimator,
                    "n": a.evaluations,
                    "seed": a.seed,
                    "asked": a.asked,
                    "distinct": a.distinct,
                    "abpc": curves.abpc,
                    "nabpc": curves.abpc_endpoint_normalized,
                    "naopc": naopc,
                    "lerf": 1.0 - sufficiency,
                    "drop": float(curves.morf[0] - curves.morf[-1]),
                }
            )
    return result


def known_bounds(rows: Rows, values: Floats) -> tuple[float, float]:
    """The least and the largest AOPC over all orders whose coalitions are all among those given.

    A longest path from the full to the empty coalition through the known ones. With all 2**M coalitions these are the
    bounds over all orders; with fewer the range is at most as wide, and holds every curve whose coalitions are known.

    Args:
        rows: bool (K, M), distinct.
        values: (K,), one score.

    Raises:
        ValueError: if no order is known from the full to the empty coalition.
    """
    rows, m = np.asarray(rows), rows.shape[1]
    order = np.argsort(-rows.sum(axis=1), kind="stable")
    rows, values = rows[order], np.asarray(values, dtype=np.float64)[order]
    place = {row.tobytes(): n for n, row in enumerate(rows)}
    best = np.full((len(rows), 2), -np.inf)
    if not rows[0].all() or rows[-1].any():
        raise ValueError("the full and the empty coalition are not both known.")
    gains = np.stack([values - values[0], values[0] - values], axis=1)
    best[0] = 0.0
    for number, row in enumerate(rows[1:], start=1):
        for unit in np.flatnonzero(~row):
            parent = row.copy()
            parent[unit] = True
            before = place.get(parent.tobytes())
            if before is not None:
                best[number] = np.maximum(best[number], best[before] + gains[number])
    if not np.isfinite(best[-1]).all():
        raise ValueError("no order of removal is known from the full to the empty coalition.")
    return float(-best[-1, 0] / m), float(best[-1, 1] / m)
