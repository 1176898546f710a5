# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The compared estimators, and an unbiased measure of their errors where the values are not known."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from monai_segshap.shapley import BlockTable, Locality, estimate_shapley
from monai_segshap.shapley.process_estimate import process_estimate
from monai_segshap.shapley.regression import constrained_regression, one_step, size_columns
from monai_segshap.shapley.ridge import ridge_values

Floats = NDArray[np.float64]
Game = Callable[[NDArray[np.bool_]], Floats]

#: Estimators that share the coalitions of the paired plan, then those that draw their own.
PAIRED = ("leverage", "kernelshap", "ridge", "gaussian process", "gaussian process, blocks")
OWN = ("walks", "published", "captum", "shap")
_SPLITS = 8


@dataclass(frozen=True)
class Sample:
    """Coalitions and their scores: full, empty, then pairs of complements.

    Attributes:
        rows: bool (2 + 2n, M).
        scores: float64 (2 + 2n, T).
        weights: (n,), of the pairs in a regression.
        locality: where the units lie.
        blocks: what the blocks contribute; None: there are none.
        inclusion: (n,), probability with which each pair came in; None: of some pairs among very many.
    """

    rows: NDArray[np.bool_]
    scores: Floats
    weights: Floats
    locality: Locality
    blocks: BlockTable | None = None
    inclusion: Floats | None = None

    @property
    def n_pairs(self) -> int:
        """Pairs of complements."""
        return len(self.weights)

    @property
    def n_units(self) -> int:
        """Units M."""
        return int(self.rows.shape[1])

    @property
    def total(self) -> Floats:
        """Full minus empty."""
        return np.asarray(self.scores[0] - self.scores[1])

    def pairs(self, numbers: NDArray[np.int64]) -> Sample:
        """Some of the pairs."""
        chosen = np.sort(numbers)
        kept = np.concatenate([[0, 1], np.stack([2 + 2 * chosen, 3 + 2 * chosen], axis=1).ravel()])
        weights = self.weights[chosen] / self.weights[chosen].mean()
        blocks = None if self.blocks is None else self.blocks.rows(kept)
        return replace(
            self, rows=self.rows[kept], scores=self.scores[kept], weights=weights, blocks=blocks, inclusion=None
        )


@dataclass(frozen=True)
class Found:
    """Values (M, T) and standard errors (M, T); None: the method states none."""

    values: Floats
    errors: Floats | None = None


def paired_estimates(sample: Sample) -> dict[str, Found]:
    """All estimators of `PAIRED` that the pairs determine; where every pair is there, all are the regression."""
    found: dict[str, Found] = {}
    columns = size_columns(sample.rows[2::2].sum(axis=1), sample.n_units)
    for name, along in (("leverage", None), ("kernelshap", columns)):
        try:
            found[name] = _regression(sample, along)
        except ValueError:  # too few pairs
            continue
    if len(sample.rows) == 2**sample.n_units:
        return dict.fromkeys(PAIRED if sample.blocks is not None else PAIRED[:-1], found["kernelshap"])
    locality = sample.locality
    values, covariances, _ = ridge_values(
        sample.rows, sample.scores, locality.distances_mm, locality.unit_size_mm, sample.weights
    )
    found["ridge"] = Found(values, _spread(covariances))
    for name, blocks in (("gaussian process", None), ("gaussian process, blocks", sample.blocks)):
        if blocks is not None or name == "gaussian process":
            fitted = process_estimate(sample.rows, sample.scores, locality, blocks)
            found[name] = Found(fitted.values, _spread(fitted.covariances))
    return found


def _regression(sample: Sample, columns: Floats | None) -> Found:
    regressors = np.where(sample.rows[2::2], 1.0, -1.0)
    target = sample.scores[2::2] - sample.scores[3::2]
    inclusion = np.zeros(sample.n_pairs) if sample.inclusion is None else sample.inclusion
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        values, covariances, _ = constrained_regression(
            regressors, target, sample.total, sample.weights, inclusion, columns
        )
    return Found(values, _spread(covariances))


def _spread(covariances: Floats) -> Floats:
    return np.sqrt(np.maximum(np.diagonal(covariances, axis1=1, axis2=2), 0.0)).T


def own_estimates(game: Game, n_units: int, budget: int, seed: int) -> dict[str, Found]:
    """All estimators of `OWN` that are installed and for which the budget is enough."""
    found: dict[str, Found] = {}
    for name in ("walks", "published"):
        try:
            made = estimate_shapley(game, n_units, budget, name, seed)
            found[name] = Found(made.values, made.standard_errors)
        except ValueError:  # a budget too small
            continue
    for name, method in (("captum", _captum), ("shap", _shap)):
        try:
            found[name] = Found(method(game, n_units, budget, seed))
        except ImportError:
            continue
    return found


def _captum(game: Game, n_units: int, budget: int, seed: int) -> Floats:
    import torch
    from captum.attr import KernelShap

    def scores(inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(game(inputs.numpy() > 0.5)[:, 0])

    torch.manual_seed(seed)
    ones = torch.ones(1, n_units)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = KernelShap(scores).attribute(
            ones, torch.zeros_like(ones), n_samples=budget, perturbations_per_eval=128, return_input_shape=True
        )
    return np.asarray(values.numpy(), dtype=np.float64).reshape(n_units, 1)


def _shap(game: Game, n_units: int, budget: int, seed: int) -> Floats:
    import logging

    import shap

    logging.getLogger("shap").setLevel(logging.ERROR)
    np.random.seed(seed)  # noqa: NPY002  # shap draws from NumPy's global generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explainer = shap.KernelExplainer(lambda rows: game(np.asarray(rows) > 0.5)[:, 0], np.zeros((1, n_units)))
        values = explainer.shap_values(np.ones((1, n_units)), nsamples=budget, l1_reg=False, silent=True)
    return np.asarray(values, dtype=np.float64).reshape(n_units, 1)


def relative_error(values: Floats, truth: Floats) -> Floats:
    """L2 error over the norm of the truth, (T,)."""
    return np.asarray(np.linalg.norm(values - truth, axis=0) / np.linalg.norm(truth, axis=0))


@dataclass(frozen=True)
class Reference:
    """Independent unbiased estimates of the values in pairs (A, B), from pairs of coalitions that no estimator used.

    Attributes:
        halves: A and B (M, T) for each split.
    """

    halves: tuple[tuple[Floats, Floats], ...]

    @property
    def squared_norm(self) -> Floats:
        """Of the values, (T,), unbiased."""
        return np.mean([(a * b).sum(axis=0) for a, b in self.halves], axis=0)

    @property
    def error(self) -> Floats:
        """Relative error of A and B together, (T,)."""
        spread = np.mean([((a - b) ** 2).sum(axis=0) / 4.0 for a, b in self.halves], axis=0)
        return np.asarray(np.sqrt(spread / np.abs(self.squared_norm)))

    def squared_error(self, values: Floats) -> Floats:
        """Relative squared error of values that owe nothing to A and B, (T,), unbiased up to the norm's error."""
        found = np.mean([((values - a) * (values - b)).sum(axis=0) for a, b in self.halves], axis=0)
        return np.asarray(found / self.squared_norm)


def make_reference(sample: Sample, control: Sample, splits: int = _SPLITS, seed: int = 0) -> Reference:
    """One-step estimates from disjoint halves of the pairs, corrected by a process fitted on other pairs.

    The control only takes variance out; the one-step estimate is unbiased whatever it is.

    Args:
        sample: pairs for A and B.
        control: pairs for the process; none of them in ``sample``.
        splits: into A and B, over which errors are averaged.
        seed: of the splits.
    """
    known, predicted = np.zeros((sample.n_units, sample.scores.shape[1])), np.zeros_like(sample.scores)
    fitted = process_estimate(control.rows, control.scores, control.locality)
    for t, surrogate in enumerate(fitted.surrogates):
        if surrogate is not None:
            known[:, t], predicted[:, t] = surrogate.values()[:, 0], surrogate.predict(sample.rows)[:, 0]
    rest, rng = sample.scores - predicted, np.random.default_rng(seed)

    def half(numbers: NDArray[np.int64]) -> Floats:
        first = 2 + 2 * numbers
        return known + one_step(sample.rows[first], rest[first] - rest[first + 1], rest[0] - rest[1])[0]

    halves = []
    for _ in range(splits):
        shuffled = rng.permutation(sample.n_pairs)
        halves.append((half(shuffled[: sample.n_pairs // 2]), half(shuffled[sample.n_pairs // 2 :])))
    return Reference(tuple(halves))


def overlap(one: Floats, other: Floats, count: int = 10) -> list[int]:
    """For each score, units among the largest values of both."""
    largest = [np.argsort(-np.abs(v), axis=0, kind="stable")[:count] for v in (one, other)]
    return [len(np.intersect1d(largest[0][:, t], largest[1][:, t])) for t in range(one.shape[1])]
