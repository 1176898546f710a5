# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Perturbed images that are made as a whole, where removing a unit changes voxels beyond its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.inferers.jobs import Incidence

__all__ = ["PerturbedImages"]

#: Images that are kept: windows of one batch may come from a few coalitions.
_KEPT = 4


@dataclass(frozen=True)
class PerturbedImages:
    """Images of coalitions, for perturbations before resampling or any other preprocessing that mixes voxels.

    No window of one coalition has the content of another one's, so every coalition costs all of its windows.

    Attributes:
        make: maps bool (M,), True keeps a unit, to the image (C, H, W, D) in network space. All kept: the image itself.
        visible: bool (M,), units that can change a voxel of a window that touches a region; all others are dummies.
        name: what the perturbation depends on beside units, image and replacement, to tell stored scores apart.
        description: what removed voxels become, for ``explanation.json``; see
            `monai_segshap.perturbation.Baseline.describe`.
    """

    make: Callable[[NDArray[np.bool_]], torch.Tensor]
    visible: NDArray[np.bool_]
    name: str
    description: dict[str, Any] = field(default_factory=dict)
    _made: OrderedDict[bytes, torch.Tensor] = field(default_factory=OrderedDict, repr=False)

    def __call__(self, kept: NDArray[np.bool_]) -> torch.Tensor:
        """The image of a coalition, bool (M,) to (C, H, W, D)."""
        key = np.packbits(kept).tobytes()
        if key not in self._made:
            while len(self._made) >= _KEPT:
                self._made.popitem(last=False)
            self._made[key] = self.make(kept).as_subclass(torch.Tensor)
        self._made.move_to_end(key)
        return self._made[key]

    def incidence(self, found: Incidence) -> Incidence:
        """An incidence of the same windows in which every visible unit changes every window."""
        shape = found.live.shape[1]
        if len(self.visible) != shape:
            raise ValueError(f"the perturbation knows {len(self.visible)} units; expected {shape}.")
        live, member = (np.broadcast_to(self.visible, table.shape).copy() for table in (found.live, found.member))
        return Incidence(found.active, live, member)
