# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A Gaussian process over coalitions whose Shapley values follow exactly from one quadrature.

The kernel is a product over units, so the multilinear extension of the posterior mean (Owen 1972), and with it every
Shapley value, is an integral over one variable. Units near the explained region may interact more than distant ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

__all__ = ["Hyperparameters", "Surrogate", "distance_prior", "fit_surrogate", "predict_walks"]

Floats = NDArray[np.float64]

#: Length of the size term, as a share of the units.
SIZE_LENGTH = 0.15
#: Least prior weight of a distant unit, before normalization.
FLOOR = 0.02
#: Noise of the rows that keep all units or none, as a share of that of the others.
PINNED = 1e-4
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_NODES, _WEIGHTS = (_NODES + 1.0) / 2.0, _WEIGHTS / 2.0


@dataclass(frozen=True)
class Hyperparameters:
    """Of the kernel ``1 + exp(theta u) + c u + a exp(-(k - k')^2 / (2 s^2))``.

    Here ``u = 4 sum_j p_j z_j z'_j`` with ``z = +1/2`` for kept and ``-1/2`` for removed units; k is the kept share.

    Attributes:
        length_mm: length of the distance prior; infinite: all units alike.
        interaction: theta, how fast interactions of units grow.
        linear: c, weight of the part that is additive in the units.
        size: a, weight of the part that depends on the size of the coalition alone.
        noise: tau, noise variance as a share of the kernel's mean diagonal.
    """

    length_mm: float
    interaction: float
    linear: float
    size: float
    noise: float


def distance_prior(distances_mm: Floats | None, n_units: int, length_mm: float) -> Floats:
    """Prior weights (M,) that sum to one: ``s^2 / sum s^2`` with ``s = exp(-(d - d_min) / length) + 0.02``.

    Args:
        distances_mm: (M,), mean distance of each unit's voxels to the region; None: units have no position.
        n_units: M.
        length_mm: infinite: all units alike.
    """
    if distances_mm is None or not np.isfinite(length_mm):
        return np.full(n_units, 1.0 / n_units)
    strength = np.exp(-(distances_mm - distances_mm.min()) / length_mm) + FLOOR
    return np.asarray(strength**2 / (strength**2).sum())


def similarity(masks: NDArray[np.bool_], others: NDArray[np.bool_], prior: Floats) -> Floats:
    """``u`` of each pair of coalitions, (n, n'), from -1 (complements) to 1 (equal)."""
    left, right = np.where(masks, 1.0, -1.0), np.where(others, 1.0, -1.0)
    return np.asarray((left * prior) @ right.T)


def size_kernel(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> Floats:
    """Kernel of the kept shares, (n, n')."""
    difference = masks.mean(axis=1)[:, None] - others.mean(axis=1)[None, :]
    return np.asarray(np.exp(-(difference**2) / (2.0 * SIZE_LENGTH**2)))


def kernel(u: Floats, sizes: Floats, chosen: Hyperparameters) -> Floats:
    """The kernel of `Hyperparameters`, from `similarity` and `size_kernel`."""
    found = np.exp(chosen.interaction * u)
    found += 1.0
    if chosen.linear:
        found += chosen.linear * u
    if chosen.size:
        found += chosen.size * sizes
    return found


def noise_scale(masks: NDArray[np.bool_]) -> Floats:
    """Noise variance of each row (n,), 1 except for the full and the empty coalition."""
    pinned = masks.all(axis=1) | ~masks.any(axis=1)
    return np.where(pinned, PINNED, 1.0)


@dataclass(frozen=True)
class Surrogate:
    """A fitted process for one or several outputs that share prior and hyperparameters.

    Attributes:
        masks: bool (n, M), evaluated coalitions.
        prior: float64 (M,).
        chosen: its hyperparameters.
        weights: float64 (n, O), the posterior mean is ``kernel @ weights``, plus the offset.
        offset: float64 (O,), value of the empty coalition.
        variance: float64 (O,), scale of the process.
        factor: Cholesky factor of the noisy kernel, for standard errors.
    """

    masks: NDArray[np.bool_]
    prior: Floats
    chosen: Hyperparameters
    weights: Floats
    offset: Floats
    variance: Floats
    factor: tuple[Floats, bool] | None = None

    def predict(self, masks: NDArray[np.bool_]) -> Floats:
        """Posterior mean (K, O) of other coalitions."""
        found = np.empty((len(masks), self.weights.shape[1]))
        for start in range(0, len(masks), 2048):
            part = masks[start : start + 2048]
            k = kernel(similarity(part, self.masks, self.prior), size_kernel(part, self.masks), self.chosen)
            found[start : start + 2048] = k @ self.weights
        return found + self.offset

    def values(self) -> Floats:
        """Shapley values (M, O) of the posterior mean, exact up to the quadrature."""
        return self._functionals().T @ self.weights

    def covariance(self) -> Floats:
        """Posterior covariances (O, M, M) of the Shapley values.

        Raises:
            ValueError: if the process was fitted without its factor.
        """
        if self.factor is None:
            raise ValueError("the process was fitted without its factor; fit it with keep_factor=True.")
        functional = self._functionals()
        left = self._prior_covariance() - functional.T @ cho_solve(self.factor, functional, check_finite=False)
        diagonal = np.diag_indices_from(left)
        left[diagonal] = np.maximum(left[diagonal], 0.0)
        return np.asarray(self.variance[:, None, None] * left)

    def _factors(self) -> tuple[Floats, Floats, Floats]:
        """Mean factor (Q, M) of a row that keeps a unit, of one that removes it, and difference of the factors (M,)."""
        quarter = self.chosen.interaction * self.prior
        same, other = np.exp(quarter), np.exp(-quarter)
        q = _NODES[:, None]
        return q * same + (1 - q) * other, q * other + (1 - q) * same, same - other

    def _products(self, kept: Floats, up: Floats, down: Floats) -> Floats:
        """Product over units of the mean factors, (n, Q)."""
        log_up, log_down = np.log(up), np.log(down)
        return np.asarray(np.exp(kept @ (log_up - log_down).T + log_down.sum(axis=1)))

    def _functionals(self) -> Floats:
        """Shapley value of each unit (n, M) of the kernel function of each row."""
        kept = self.masks.astype(np.float64)
        up, down, spread = self._factors()
        products = self._products(kept, up, down) * _WEIGHTS
        found = kept * (products @ (spread / up)) - (1.0 - kept) * (products @ (spread / down))
        found += 4.0 * self.chosen.linear * self.prior * (kept - 0.5)
        return found + (self.chosen.size / kept.shape[1] * _size_step(kept.mean(axis=1)))[:, None]

    def _prior_covariance(self) -> Floats:
        """Prior covariance (M, M) of the Shapley values, for unit variance."""
        quarter = self.chosen.interaction * self.prior
        same, other = np.exp(quarter), np.exp(-quarter)
        q, r = np.meshgrid(_NODES, _NODES, indexing="ij")
        agree = (q * r + (1 - q) * (1 - r)).ravel()[:, None]
        factors = agree * same + (1.0 - agree) * other
        weights = np.outer(_WEIGHTS, _WEIGHTS).ravel() * np.exp(np.log(factors).sum(axis=1))
        spread = same - other
        # unit i is switched in the first argument with the second at r, unit j the other way round
        first = spread * (2 * r.ravel()[:, None] - 1) / factors
        second = spread * (2 * q.ravel()[:, None] - 1) / factors
        found = first.T @ (weights[:, None] * second)
        np.fill_diagonal(found, (weights[:, None] * (2.0 * spread) / factors).sum(axis=0))
        found[np.diag_indices_from(found)] += 4.0 * self.chosen.linear * self.prior
        return np.asarray(found + self._size_variance())

    def _size_variance(self) -> float:
        n_units = len(self.prior)
        return 2.0 * self.chosen.size / n_units**2 * (1.0 - float(np.exp(-1.0 / (2.0 * SIZE_LENGTH**2))))


def predict_walks(surrogates: Sequence[Surrogate], order: NDArray[np.int64]) -> Floats:
    """Sum of the posterior means along walks from the empty to the full coalition.

    Adding a unit multiplies the product kernel of each row by one number, so a walk needs no new kernel.

    Args:
        surrogates: processes of one output each, fitted to the same coalitions.
        order: int64 (W, M), the unit that each step of each walk adds.

    Returns:
        float64 (W, M + 1).
    """
    masks = surrogates[0].masks
    n_units = masks.shape[1]
    columns, signs = np.ascontiguousarray(masks.T), np.where(masks, 1.0, -1.0)
    steps = np.arange(n_units + 1)[:, None] >= np.arange(1, n_units + 1)[None, :]
    sizes = size_kernel(steps, masks)
    found = np.zeros((len(order), n_units + 1))
    products, rates = [], []
    for surrogate in surrogates:
        weights, chosen = surrogate.weights[:, 0], surrogate.chosen
        start = -(signs @ surrogate.prior)
        gains = 2.0 * surrogate.prior * (signs.T @ weights)
        additive = np.concatenate([np.zeros((len(order), 1)), np.cumsum(gains[order], axis=1)], axis=1)
        found += chosen.linear * (start @ weights + additive) + chosen.size * (sizes @ weights)
        found += weights.sum() + surrogate.offset[0]
        products.append(np.tile(np.exp(chosen.interaction * start), (len(order), 1)))
        rates.append(np.exp(2.0 * chosen.interaction * surrogate.prior))
        found[:, 0] += products[-1] @ weights
    for step in range(n_units):
        kept = columns[order[:, step]]
        for surrogate, product, rate in zip(surrogates, products, rates, strict=True):
            factor = rate[order[:, step]][:, None]
            product *= np.where(kept, factor, 1.0 / factor)
            found[:, step + 1] += product @ surrogate.weights[:, 0]
    return found


def fit_surrogate(
    masks: NDArray[np.bool_],
    outputs: Floats,
    prior: Floats,
    chosen: Hyperparameters,
    keep_factor: bool = False,
    sizes: Floats | None = None,
) -> Surrogate:
    """Fit the process.

    Args:
        masks: bool (n, M), evaluated coalitions, the full and the empty one among them.
        outputs: (n, O).
        prior: (M,), see `distance_prior`.
        chosen: hyperparameters.
        keep_factor: keep what standard errors need, n^2 numbers.
        sizes: `size_kernel` of the masks with themselves, where it is known.

    Raises:
        ValueError: if the empty coalition is missing.
    """
    empty = np.flatnonzero(~masks.any(axis=1))
    if len(empty) == 0:
        raise ValueError("the empty coalition is not among the rows; the process starts from its value.")
    offset = outputs[empty[0]]
    target = outputs - offset
    k = kernel(similarity(masks, masks, prior), size_kernel(masks, masks) if sizes is None else sizes, chosen)
    level = chosen.noise * float(np.diag(k).mean())
    factor = _factor(k, level * noise_scale(masks))
    weights = cho_solve(factor, target, check_finite=False)
    variance = np.maximum(np.einsum("io,io->o", target, weights) / len(masks), 0.0)
    return Surrogate(masks, prior, chosen, weights, offset, variance, factor if keep_factor else None)


def _factor(k: Floats, noise: Floats) -> tuple[Floats, bool]:
    jitter = 0.0
    while True:
        noisy = k.copy()
        noisy[np.diag_indices_from(noisy)] += noise + jitter
        try:
            found = cho_factor(noisy, lower=True, overwrite_a=True, check_finite=False)
            return found[0], bool(found[1])
        except LinAlgError:
            jitter = max(10.0 * jitter, 1e-10 * float(np.diag(k).mean()))


def _size_step(share: Floats) -> Floats:
    """Size kernel at the full coalition minus that at the empty one, for each row."""
    width = 2.0 * SIZE_LENGTH**2
    return np.asarray(np.exp(-((1.0 - share) ** 2) / width) - np.exp(-(share**2) / width))
