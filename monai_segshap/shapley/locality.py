# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Where units lie, and scores of the parts of a region: what an estimator may use beyond coalitions and scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockTable", "Locality"]


@dataclass(frozen=True)
class Locality:
    """Distances of M units.

    Attributes:
        distances_mm: float64 (M,), mean distance of a unit's voxels to the region; None: units have no position.
        unit_size_mm: distance of neighboring units.
        block_distances_mm: float64 (B, M), mean distance of a unit's voxels to the center of each block; None: there
            are no blocks, or units have no position.
    """

    distances_mm: NDArray[np.float64] | None = None
    unit_size_mm: float = 1.0
    block_distances_mm: NDArray[np.float64] | None = None

    def restricted_to(self, units: NDArray[np.bool_]) -> Locality:
        """The distances of some units alone; ``units`` is bool (M,)."""
        return replace(
            self,
            distances_mm=None if self.distances_mm is None else self.distances_mm[units],
            block_distances_mm=None if self.block_distances_mm is None else self.block_distances_mm[:, units],
        )


@dataclass(frozen=True)
class BlockTable:
    """What each block of a region contributes to the scores.

    Attributes:
        outputs: float64 (K, B, C), C channels of B blocks for the coalitions of a plan.
        linear: float64 (T, C), each score as a weighted sum of the channels' sums over blocks, 0 for channels that it
            does not use; NaN for those that it uses in another way.
        compose: sums over blocks (n, C) -> scores (n, T).
    """

    outputs: NDArray[np.float64]
    linear: NDArray[np.float64]
    compose: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def rows(self, kept: NDArray[np.int64]) -> BlockTable:
        """The table of some coalitions."""
        return replace(self, outputs=self.outputs[kept])
