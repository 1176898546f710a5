# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Hyperparameters of the process over coalitions, by marginal likelihood on a few hundred rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import product

import numpy as np
from numpy.typing import NDArray

from monai_segshap.shapley.process import (
    Hyperparameters,
    distance_prior,
    kernel,
    noise_scale,
    similarity,
    size_kernel,
)

__all__ = ["choose_hyperparameters", "pair_order"]

Floats = NDArray[np.float64]

#: Grid of the search. Lengths are shares of the unit size; the last one treats all units alike.
_LENGTHS = (0.2, 0.4, 0.8, 1.6, np.inf)
_INTERACTIONS = (0.5, 1.0, 2.0, 4.0)
_LINEAR = (0.0, 1.0, 4.0)
_SIZE = (0.0, 0.3, 3.0)
_NOISES = tuple(float(t) for t in np.logspace(np.log10(3e-4), np.log10(3.0), 9))
#: Rows that are used, for one output and for several.
_ROWS = (260, 200)
#: Of several outputs, those that vary most.
_OUTPUTS = 12


def choose_hyperparameters(
    masks: NDArray[np.bool_], outputs: Floats, distances_mm: Sequence[Floats | None], unit_size_mm: float
) -> Hyperparameters:
    """The hyperparameters with the largest marginal likelihood, the scale of each output profiled out.

    Lengths and interactions are searched first, then the linear and the size part, then lengths and interactions
    once more.

    Args:
        masks: bool (n, M), evaluated coalitions: the first two keep all units and none, then pairs of complements.
        outputs: (n, O); one set of hyperparameters serves all.
        distances_mm: for each output (M,) distances of the units; None: units have no position.
        unit_size_mm: distance of neighboring units, the unit of the lengths.
    """
    liveliest = np.argsort(-outputs.var(axis=0), kind="stable")[:_OUTPUTS]
    n_pairs = (_ROWS[0] if len(liveliest) == 1 else _ROWS[1]) // 2 - 1
    first = 2 + 2 * pair_order(masks)[:n_pairs]
    rows = np.concatenate([[0, 1], np.stack([first, first + 1], axis=1).ravel()])
    search = _Search(masks[rows], outputs[np.ix_(rows, liveliest)], [distances_mm[o] for o in liveliest])
    lengths = [unit_size_mm * share for share in _LENGTHS]
    if all(distances_mm[o] is None for o in liveliest):
        lengths = [np.inf]
    start = Hyperparameters(lengths[0], 1.0, 1.0, 0.3, _NOISES[0])
    shapes = list(product(lengths, _INTERACTIONS))
    found = search.best([replace(start, length_mm=length, interaction=theta) for length, theta in shapes])
    found = search.best([replace(found, linear=c, size=a) for c, a in product(_LINEAR, _SIZE)])
    return search.best([replace(found, length_mm=length, interaction=theta) for length, theta in shapes])


def pair_order(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Numbers of the pairs in an order that depends on the coalitions alone, not on where they stand.

    Args:
        masks: bool (2 + 2n, M), see `choose_hyperparameters`.
    """
    packed = np.packbits(masks[2:], axis=1)
    keys = [
        blake2b(min(packed[i].tobytes(), packed[i + 1].tobytes()), digest_size=8).digest()
        for i in range(0, len(packed) - 1, 2)
    ]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


class _Search:
    """Marginal likelihoods on a fixed set of rows."""

    def __init__(self, masks: NDArray[np.bool_], outputs: Floats, distances: Sequence[Floats | None]) -> None:
        self.masks, self.distances = masks, distances
        self.root_noise = np.sqrt(noise_scale(masks))
        empty = np.flatnonzero(~masks.any(axis=1))[0]
        self.targets = (outputs - outputs[empty]) / self.root_noise[:, None]
        self.sizes = size_kernel(masks, masks)
        self.similarities: dict[tuple[int, float], Floats] = {}

    def best(self, candidates: Sequence[Hyperparameters]) -> Hyperparameters:
        """The candidate with the largest likelihood, each at its best noise."""
        scored = [self._at_best_noise(candidate) for candidate in candidates]
        return min(scored, key=lambda pair: pair[0])[1]

    def _at_best_noise(self, chosen: Hyperparameters) -> tuple[float, Hyperparameters]:
        """Minus the log likelihood, summed over the outputs, and the candidate with its best noise."""
        total = np.zeros(len(_NOISES))
        for output in range(self.targets.shape[1]):
            k = kernel(self._similarity(output, chosen.length_mm), self.sizes, chosen)
            level = float(np.diag(k).mean())
            values, vectors = np.linalg.eigh(k / np.outer(self.root_noise, self.root_noise))
            squared = (vectors.T @ self.targets[:, output]) ** 2
            spectrum = np.maximum(values, 0.0)[None, :] + level * np.array(_NOISES)[:, None]
            scale = (squared / spectrum).mean(axis=1)
            total += len(squared) * np.log(np.maximum(scale, 1e-300)) + np.log(spectrum).sum(axis=1)
        best = int(total.argmin())
        return float(total[best]), replace(chosen, noise=_NOISES[best])

    def _similarity(self, output: int, length: float) -> Floats:
        distances = self.distances[output]
        key = (output if distances is not None else -1, length)
        if key not in self.similarities:
            prior = distance_prior(distances, self.masks.shape[1], length)
            self.similarities[key] = similarity(self.masks, self.masks, prior)
        return self.similarities[key]
