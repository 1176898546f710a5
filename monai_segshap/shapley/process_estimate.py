# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Shapley values by Gaussian processes over coalitions: scalar, per block of the region, and for ratios of blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve

from monai_segshap.shapley.locality import BlockTable, Locality
from monai_segshap.shapley.process import Surrogate, distance_prior, fit_surrogate, predict_walks, size_kernel
from monai_segshap.shapley.tuning import choose_hyperparameters, pair_order

__all__ = ["ProcessEstimate", "process_estimate"]

Floats = NDArray[np.float64]

#: Pairs whose prediction without them sets the scale of the standard errors.
_CHECKED_PAIRS = 200
#: Standard errors are not narrowed below this share of the posterior's.
_LEAST_INFLATION = 0.8
#: Antithetic walks on the difference of the two emulators of a ratio; fewer where they would need more kernel entries.
_EMULATED_WALKS = 48
_FEWEST_WALKS = 8
_KERNEL_ENTRIES = 4e9


@dataclass(frozen=True)
class ProcessEstimate:
    """Values and how well they are known.

    Attributes:
        values: float64 (M, T).
        covariances: float64 (T, M, M), posterior, widened as ``diagnostics`` says.
        surrogates: for each score the scalar process, or None where the score does not vary.
        diagnostics: for each score its hyperparameters and the inflation of its standard errors.
    """

    values: Floats
    covariances: Floats
    surrogates: list[Surrogate | None]
    diagnostics: dict[str, Any]


def process_estimate(
    rows: NDArray[np.bool_], scores: Floats, locality: Locality, blocks: BlockTable | None = None
) -> ProcessEstimate:
    """Values of all scores, each with a process of its own.

    With blocks, a score that is a sum over them is the sum of processes for the blocks (scores that are sums of others
    keep that property exactly); any other score is the scalar process plus antithetic walks on the difference between
    the score composed of the blocks' processes and the scalar process.

    Standard errors are posterior ones (of sums of blocks as if the blocks were independent, of ratios those of the
    scalar process), times the root mean square of the errors on the odd differences of pairs that the processes have
    not seen, in units of their stated spread (at least 0.8), which brings in the correlation of the blocks.

    Args:
        rows: bool (K, M), row 0 keeps all units, row 1 none, the others in pairs of complements.
        scores: float64 (K, T).
        locality: distances of the units.
        blocks: of the region; None: scalar processes only.
    """
    n_units, n_scores = rows.shape[1], scores.shape[1]
    values = np.zeros((n_units, n_scores))
    covariances = np.zeros((n_scores, n_units, n_units))
    checked = pair_order(rows)[:_CHECKED_PAIRS]
    surrogates: list[Surrogate | None] = []
    details: list[dict[str, Any]] = []
    for t in range(n_scores):
        surrogate = _scalar(rows, scores[:, [t]], locality)
        surrogates.append(surrogate)
        if surrogate is None:
            details.append({"hyperparameters": None, "inflation": 1.0})
            continue
        values[:, t] = surrogate.values()[:, 0]
        errors, spreads = _left_out(surrogate, checked)
        inflation = _inflation(errors, spreads)
        covariances[t] = inflation**2 * surrogate.covariance()[0]
        details.append({"hyperparameters": _plain(surrogate), "inflation": round(inflation, 3)})
    if blocks is not None and blocks.outputs.shape[1] > 0:
        found = _use_blocks(values, covariances, rows, locality, blocks, surrogates, checked)
        for detail, widened in zip(details, found, strict=True):
            detail["block_inflation"] = None if widened is None else round(widened, 3)
    total = scores[0] - scores[1]
    values += (total - values.sum(axis=0)) / n_units
    return ProcessEstimate(values, covariances, surrogates, {"processes": details})


def _scalar(rows: NDArray[np.bool_], output: Floats, locality: Locality) -> Surrogate | None:
    if np.ptp(output) == 0.0:
        return None
    chosen = choose_hyperparameters(rows, output, [locality.distances_mm], locality.unit_size_mm)
    prior = distance_prior(locality.distances_mm, rows.shape[1], chosen.length_mm)
    return fit_surrogate(rows, output, prior, chosen, keep_factor=True)


def _left_out(surrogate: Surrogate, pairs: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Odd differences of pairs that are left out, predicted from all other rows: errors (n,) and their stated spread.

    Both follow from the inverse of the noisy kernel (Rasmussen and Williams 2006, section 5.4.2, for blocks of two).
    """
    columns = (2 + 2 * pairs[:, None] + np.arange(2)).ravel()
    unit = np.zeros((len(surrogate.masks), len(columns)))
    unit[columns, np.arange(len(columns))] = 1.0
    inverse = cho_solve(surrogate.factor, unit, check_finite=False)
    errors, spreads = np.empty(len(pairs)), np.empty(len(pairs))
    for number in range(len(pairs)):
        pair = columns[2 * number : 2 * number + 2]
        covariance = np.linalg.inv(inverse[pair][:, 2 * number : 2 * number + 2])
        error = covariance @ surrogate.weights[pair, 0]
        errors[number] = error[0] - error[1]
        variance = covariance[0, 0] + covariance[1, 1] - covariance[0, 1] - covariance[1, 0]
        spreads[number] = np.sqrt(variance * surrogate.variance[0])
    return errors, spreads


def _inflation(errors: Floats, spreads: Floats) -> float:
    """Root mean square of errors in units of their stated spread, at least `_LEAST_INFLATION`."""
    if len(errors) == 0 or not (spreads > 0).all():
        return 1.0
    return max(_LEAST_INFLATION, float(np.sqrt(np.mean((errors / spreads) ** 2))))


@dataclass(frozen=True)
class _Channel:
    """Processes of the blocks in which one channel varies, with shared hyperparameters.

    Errors and covariance are found only for channels whose sum is part of a score; others have no pairs (n = 0).

    Attributes:
        surrogates: the processes.
        errors: (n,), by how much their sum misses the odd differences of left-out pairs.
        variances: (n,), the stated variance of these errors, were the blocks independent.
        covariance: (M, M) of the sum's Shapley values, likewise.
    """

    surrogates: list[Surrogate]
    errors: Floats
    variances: Floats
    covariance: Floats


def _use_blocks(
    values: Floats,
    covariances: Floats,
    rows: NDArray[np.bool_],
    locality: Locality,
    blocks: BlockTable,
    surrogates: list[Surrogate | None],
    checked: NDArray[np.int64],
) -> list[float | None]:
    """Replace the scalar values and covariances by those of the blocks' processes, in place.

    Returns:
        for each score the inflation of its standard errors; None for ratios, which keep the scalar process' errors.
    """
    summed = (np.nan_to_num(blocks.linear) != 0).any(axis=0)
    used = summed | np.isnan(blocks.linear).any(axis=0)
    channels = [
        _channel(rows, blocks.outputs[:, :, c] if used[c] else None, locality, checked if summed[c] else None)
        for c in range(len(used))
    ]
    by_channel = np.stack([_values_of(channel, rows.shape[1]) for channel in channels], axis=1)
    inflations: list[float | None] = [None] * len(blocks.linear)
    ratios = []
    for t, coefficients in enumerate(blocks.linear):
        if not np.isnan(coefficients).any():
            values[:, t] = by_channel @ coefficients
            parts = [
                (k, channel) for k, channel in zip(coefficients, channels, strict=True) if k and channel.surrogates
            ]
            if parts:
                errors = sum(k * channel.errors for k, channel in parts)
                variances = sum(k**2 * channel.variances for k, channel in parts)
                found = _inflation(np.asarray(errors), np.sqrt(variances))
                covariances[t] = found**2 * sum(k**2 * channel.covariance for k, channel in parts)
                inflations[t] = found
        elif surrogates[t] is not None:
            ratios.append(t)
    if ratios:
        _emulate(values, rows, blocks, [channel.surrogates for channel in channels], surrogates, ratios)
    return inflations


def _emulate(
    values: Floats,
    rows: NDArray[np.bool_],
    blocks: BlockTable,
    fits: list[list[Surrogate]],
    surrogates: list[Surrogate | None],
    ratios: list[int],
) -> None:
    """Add to the scalar values of ratios those of the difference to the score composed of the blocks, in place."""
    n_units = rows.shape[1]
    entries = 2.0 * (n_units + 1) * len(rows) * (sum(map(len, fits)) + len(ratios))
    order = _orders(n_units, int(np.clip(_KERNEL_ENTRIES / entries, _FEWEST_WALKS, _EMULATED_WALKS)))
    # blocks in which a channel does not vary keep the value that they have without units
    empty = [blocks.outputs[1, :, c].sum() - sum(float(s.offset[0]) for s in fit) for c, fit in enumerate(fits)]
    none = np.zeros((len(order), n_units + 1))
    sums = [(predict_walks(fit, order) if fit else none) + rest for fit, rest in zip(fits, empty, strict=True)]
    composed = blocks.compose(np.stack([part.ravel() for part in sums], axis=1)).reshape(*none.shape, -1)
    for t in ratios:
        surrogate = surrogates[t]
        if surrogate is not None:
            values[:, t] += _walk_values(order, composed[..., t] - predict_walks([surrogate], order))


def _channel(
    rows: NDArray[np.bool_], outputs: Floats | None, locality: Locality, checked: NDArray[np.int64] | None
) -> _Channel:
    """Processes of the blocks (n, B) of one channel, judged by the pairs ``checked``; none without outputs."""
    n_units = rows.shape[1]
    errors, variances = np.zeros((2, 0 if checked is None else len(checked)))
    found: list[Surrogate] = []
    covariance = np.zeros((n_units, n_units))
    if outputs is None or len(lively := np.flatnonzero(np.ptp(outputs, axis=0) > 0)) == 0:
        return _Channel(found, errors, variances, covariance)
    placed = locality.block_distances_mm
    distances = [None if placed is None else placed[b] for b in lively]
    chosen = choose_hyperparameters(rows, outputs[:, lively], distances, locality.unit_size_mm)
    if placed is None or not np.isfinite(chosen.length_mm):  # one kernel for all blocks, so their sum is enough
        parts = [(outputs.sum(axis=1, keepdims=True), distance_prior(None, n_units, np.inf))]
    else:
        parts = [(outputs[:, [b]], distance_prior(placed[b], n_units, chosen.length_mm)) for b in lively]
    sizes = size_kernel(rows, rows)
    for output, prior in parts:
        surrogate = fit_surrogate(rows, output, prior, chosen, keep_factor=True, sizes=sizes)
        if checked is not None:
            missed, spreads = _left_out(surrogate, checked)
            errors += missed
            variances += spreads**2
            covariance += surrogate.covariance()[0]
        found.append(replace(surrogate, factor=None))  # n^2 numbers that nobody needs any more
    return _Channel(found, errors, variances, covariance)


def _values_of(channel: _Channel, n_units: int) -> Floats:
    return np.asarray(sum((s.values()[:, 0] for s in channel.surrogates), np.zeros(n_units)))


def _orders(n_units: int, n_pairs: int) -> NDArray[np.int64]:
    """Antithetic orders in which walks add the units, int64 (2 n_pairs, M)."""
    rng = np.random.Generator(np.random.Philox(n_units))
    order = rng.random((n_pairs, n_units)).argsort(axis=1)
    return np.concatenate([order, order[:, ::-1]])


def _walk_values(order: NDArray[np.int64], scores: Floats) -> Floats:
    """Shapley values (M,) of a game along walks, from its scores (W, M + 1) along `_orders`."""
    found = np.zeros(order.shape[1])
    np.add.at(found, order, np.diff(scores, axis=1))
    return found / len(order)


def _plain(surrogate: Surrogate) -> dict[str, float | None]:
    chosen = surrogate.chosen
    length = chosen.length_mm if np.isfinite(chosen.length_mm) else None
    return {
        "length_mm": length,
        "interaction": chosen.interaction,
        "linear": chosen.linear,
        "size": chosen.size,
        "noise": chosen.noise,
    }
