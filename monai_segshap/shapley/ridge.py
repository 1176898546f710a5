# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Paired regression with a prior that distant units matter less: the soft ridge, with size columns.

Model: ``phi_j ~ N(0, tau^2 p_j)`` independently, conditioned on ``sum phi = total``, with p from `distance_prior`. That
makes ``phi = p total + S theta``, ``S = diag(sqrt(p))``, ``theta ~ N(0, tau^2 P)``, ``P = I - sqrt(p) sqrt(p)'``: the
total is shared out by the prior, and what is estimated sums to zero exactly. Differences of pairs are
``d = X phi + H gamma + noise``, X = +-1, H the size columns (flat prior), noise variance ``sigma^2 / weight``. With
``Z = sqrt(W) X S P``, projected off ``sqrt(W) H``, and ``lambda = sigma^2 / tau^2`` this is ridge regression (Hoerl and
Kennard 1970) with ``theta = (Z'Z + lambda I)^-1 Z' y``.

The pairs enter through one triangular factor (QR, no squared condition number): each length and strength then costs a
decomposition of M x M numbers, however many pairs there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_segshap.shapley.process import distance_prior
from monai_segshap.shapley.regression import size_columns

__all__ = ["LENGTHS", "STRENGTHS", "ridge_values"]

Floats = NDArray[np.float64]

#: Lengths of the prior as shares of the unit size; the last one treats all units alike.
LENGTHS = (0.2, 0.4, 0.8, 1.6, np.inf)
#: Share of the rows that a fit has to leave as degrees of freedom, if any strength does.
_LEAST_FREE = 0.2
#: Ratio of the variances of noise and prior that are tried, for a mean weight of 1.
STRENGTHS = tuple(float(s) for s in np.logspace(-8.0, 4.0, 37))


@dataclass(frozen=True)
class _Reduced:
    """Pair differences with the size columns projected out, reduced to a triangular factor.

    ``regressors`` (r, M) and ``target`` (r, T) have the same inner products as the n weighted rows; ``rows`` is the
    number of rows less the columns, ``columns`` the number of columns.
    """

    regressors: Floats
    target: Floats
    rows: int
    columns: int


@dataclass(frozen=True)
class _Spectrum:
    """The ridge problem of one length, in its singular directions.

    Attributes:
        prior: (M,).
        singular: (r,), those above rounding.
        right: (r, M).
        target: (r, T), the target in the left directions.
        outside: (T,), squares of the target that no strength can explain.
    """

    prior: Floats
    singular: Floats
    right: Floats
    target: Floats
    outside: Floats

    def scores(self, strengths: Floats, n_rows: int) -> tuple[Floats, Floats]:
        """Generalized cross validation and noise variance, each (number of strengths, T)."""
        left_over = strengths[:, None] / (self.singular**2 + strengths[:, None])
        squares = left_over**2 @ self.target**2 + self.outside
        # a fit with no degree of freedom left can not be judged
        free = np.maximum(n_rows - len(self.singular) + left_over.sum(axis=1), 1e-12 * n_rows)[:, None]
        judged = n_rows * squares / free**2
        # near interpolation the criterion is a ratio of two small numbers, and can be small by accident
        bold = free[:, 0] < _LEAST_FREE * n_rows
        if not bold.all():
            judged[bold] = np.inf
        return judged, squares / free

    def values(self, strength: float, total: Floats, output: int) -> Floats:
        """Shapley values (M,) of one output."""
        theta = self.right.T @ (self.singular / (self.singular**2 + strength) * self.target[:, output])
        part = np.sqrt(self.prior) * theta
        return np.asarray(self.prior * total[output] + part - self.prior * part.sum())

    def covariance(self, strength: float) -> Floats:
        """Posterior covariance (M, M) of the values for unit noise variance."""
        root = np.sqrt(self.prior)
        free = (self.right.T / (self.singular**2 + strength)) @ self.right
        if len(self.singular) < len(root) - 1:  # directions that no pair sees keep the variance of the prior
            free += (np.eye(len(root)) - np.outer(root, root) - self.right.T @ self.right) / strength
        return np.asarray(root[:, None] * free * root)


def ridge_values(
    masks: NDArray[np.bool_],
    outputs: Floats,
    distances_mm: Floats | None,
    unit_size_mm: float,
    weights: Floats,
    strengths: tuple[float, ...] = STRENGTHS,
) -> tuple[Floats, Floats, dict[str, Any]]:
    """Shapley values by ridge regression of pair differences under the distance prior.

    Length and strength are chosen for each output by generalized cross validation (Golub, Heath and Wahba 1979),
    ``n' RSS / (n' - df)^2`` with ``df = sum s^2 / (s^2 + lambda)``, s the singular values of Z, and n' the pairs less
    the size columns. Covariances are those of the posterior,

        ``sigma^2 S (Z'Z + lambda I)^-1 P S``,  ``sigma^2 = RSS / (n' - df)``,

    for the length and strength chosen. The noise is what the line does not explain, so they hold interactions, but not
    the doubt about length and strength; they do not vanish where every pair is there.

    Args:
        masks: bool (2 + 2n, M): all units kept, none, then n pairs of complements.
        outputs: float64 (2 + 2n, O), finite.
        distances_mm: (M,), mean distance of each unit's voxels to the region in mm; None: units have no position.
        unit_size_mm: distance of neighboring units in mm, the unit of the lengths.
        weights: (n,), regression weights > 0; their scale does not matter.
        strengths: ratios of noise to prior variance to choose from, for a mean weight of 1.

    Returns:
        values (M, O), which sum to the first minus the second row of outputs; their covariances (O, M, M); and
        diagnostics: ``length_mm``, ``strength`` and ``degrees_of_freedom`` (lists, one number an output),
        ``size_columns``, ``residual_dof`` (of the output with the least) and ``warnings``.

    Raises:
        ValueError: for arrays that do not fit each other, rows that are no pairs, or weights that are not positive.
    """
    _check(masks, outputs, distances_mm, weights)
    n_units, total = masks.shape[1], outputs[0] - outputs[1]
    reduced = _reduce(masks[2::2], outputs[2::2] - outputs[3::2], weights)
    lengths = [np.inf] if distances_mm is None else [unit_size_mm * share for share in LENGTHS]
    spectra = [_decompose(reduced, distance_prior(distances_mm, n_units, length), total) for length in lengths]
    grid = np.asarray(strengths, dtype=np.float64)
    scored = [spectrum.scores(grid, reduced.rows) for spectrum in spectra]
    judged = np.stack([gcv for gcv, _ in scored])
    values, covariances = np.empty((n_units, outputs.shape[1])), np.empty((outputs.shape[1], n_units, n_units))
    chosen: list[tuple[float, float, float]] = []
    for output in range(outputs.shape[1]):
        best, at = np.unravel_index(int(judged[:, :, output].argmin()), judged.shape[:2])
        spectrum, strength = spectra[best], float(grid[at])
        values[:, output] = spectrum.values(strength, total, output)
        covariances[output] = scored[best][1][at, output] * spectrum.covariance(strength)
        explained = float((spectrum.singular**2 / (spectrum.singular**2 + strength)).sum())
        chosen.append((float(lengths[best]), strength, explained))
    return values, covariances, _diagnostics(chosen, reduced, n_units)


def _check(masks: NDArray[np.bool_], outputs: Floats, distances_mm: Floats | None, weights: Floats) -> None:
    n_rows, n_units = masks.shape
    if n_rows < 4 or n_rows % 2 or not masks[0].all() or masks[1].any() or (masks[2::2] == masks[3::2]).any():
        raise ValueError("masks must hold the full coalition, the empty one, and then pairs of complements.")
    if outputs.ndim != 2 or len(outputs) != n_rows or not np.isfinite(outputs).all():
        raise ValueError(f"outputs have shape {outputs.shape}; expected finite numbers of shape ({n_rows}, O).")
    if distances_mm is not None and distances_mm.shape != (n_units,):
        raise ValueError(f"distances have shape {distances_mm.shape}; expected ({n_units},).")
    if weights.shape != (n_rows // 2 - 1,) or not (weights > 0).all():
        raise ValueError(f"weights have shape {weights.shape}; expected positive numbers, one for each pair.")


def _reduce(first_members: NDArray[np.bool_], differences: Floats, weights: Floats) -> _Reduced:
    """Project the size columns out and keep the triangular factor."""
    n_pairs, n_units = first_members.shape
    root = np.sqrt(weights / weights.mean())[:, None]
    columns = root * size_columns(first_members.sum(axis=1), n_units)
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    basis = left[:, singular > 1e-7 * max(float(singular.max(initial=0.0)), 1e-300)]
    # more columns than half the pairs would leave nothing to judge the ridge by
    basis = basis[:, : n_pairs // 2]
    table = np.hstack([np.where(first_members, root, -root), root * differences])
    for _ in range(2):  # twice, for orthogonality to rounding
        table -= basis @ (basis.T @ table)
    if n_pairs > table.shape[1]:
        table = np.asarray(np.linalg.qr(table, mode="r"))
    return _Reduced(table[:, :n_units], table[:, n_units:], n_pairs - basis.shape[1], basis.shape[1])


def _decompose(reduced: _Reduced, prior: Floats, total: Floats) -> _Spectrum:
    root = np.sqrt(prior)
    rest = reduced.target - np.outer(reduced.regressors @ prior, total)
    scaled = reduced.regressors * root
    scaled -= np.outer(scaled @ root, root)
    left, singular, right = np.linalg.svd(scaled, full_matrices=False)
    rank = int((singular > singular[0] * max(scaled.shape) * np.finfo(np.float64).eps).sum())
    # the direction sqrt(p) is not free; a target of rounding size in it must not count
    target = left[:, :rank].T @ rest
    outside = ((rest - left[:, :rank] @ target) ** 2).sum(axis=0)
    return _Spectrum(prior, singular[:rank], right[:rank], target, outside)


def _diagnostics(chosen: list[tuple[float, float, float]], reduced: _Reduced, n_units: int) -> dict[str, Any]:
    found: list[str] = []
    if reduced.rows < n_units:
        found.append(
            f"{reduced.rows + reduced.columns} pairs for {n_units} units: the prior decides part of the values, which "
            "come out too small along their main direction."
        )
    return {
        "length_mm": [length if np.isfinite(length) else None for length, _, _ in chosen],
        "strength": [strength for _, strength, _ in chosen],
        "degrees_of_freedom": [explained for _, _, explained in chosen],
        "size_columns": reduced.columns,
        "residual_dof": reduced.rows - max(explained for _, _, explained in chosen),
        "warnings": found,
    }
