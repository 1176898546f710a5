# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Checks that fail early and say what to do: finite voxels, channels, matching grids."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_segshap.geometry import current_grid, require_finite, resample_nearest, source_grid
from monai_segshap.transforms.organs import ORGAN_NAMES_META

__all__ = ["CheckImaged", "MatchGridd"]


class CheckImaged(MapTransform):
    """Raise for voxels that are not finite, or another number of channels than the network takes.

    Args:
        keys: images (C, H, W, D).
        channels: expected C; None: any.
        allow_missing_keys: as in MONAI.
    """

    backend = (TransformBackends.TORCH,)

    def __init__(self, keys: KeysCollection, channels: int | None = None, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check each key; the dictionary is returned unchanged."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key].as_subclass(torch.Tensor)
            if image.ndim != 4 or (self.channels is not None and image.shape[0] != self.channels):
                wanted = f"{self.channels} channel(s)" if self.channels is not None else "channels first"
                raise ValueError(f"{key!r} has shape {tuple(image.shape)}; expected (C, H, W, D) with {wanted}.")
            require_finite(image, repr(key))
        return d


class MatchGridd(MapTransform):
    """Bring a label map to the image's grid; raise if it is another one than expected and none was asked for.

    Args:
        keys: label maps (C, H, W, D).
        reference_key: the image.
        resample: False: raise with both grids; True: bring the labels to the image's grid by nearest neighbor.
        tolerance_mm: distance up to which voxels count as the same.
        of_file: the labels are expected on the grid of the image's file, and brought from there to the grid on which
            preprocessing has put the image (cropped, resampled, transposed); False: on the image's grid as it is.
        allow_missing_keys: as in MONAI.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(
        self,
        keys: KeysCollection,
        reference_key: str = "image",
        resample: bool = False,
        tolerance_mm: float = 0.1,
        of_file: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key, self.resample, self.tolerance_mm = reference_key, resample, tolerance_mm
        self.of_file = of_file

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check or resample each key."""
        d = dict(data)
        target = current_grid(d[self.reference_key])
        expected = source_grid(d[self.reference_key]) if self.of_file else target
        for key in self.key_iterator(d):
            source = current_grid(d[key])
            if not self.resample and not source.same_as(expected, self.tolerance_mm):
                raise ValueError(
                    f"{key!r} and {self.reference_key!r} lie on different grids: {key!r} has {source.describe()}; "
                    f"{self.reference_key!r} has {expected.describe()}. If they show the same body in the same "
                    "coordinates, ask for resampling (nearest neighbor): MatchGridd(..., resample=True), in a bundle "
                    "--resample_organs True."
                )
            if source.same_as(target, self.tolerance_mm):
                continue
            volume = np.stack(
                [resample_nearest(c.numpy(), source, target) for c in d[key].cpu().as_subclass(torch.Tensor)]
            )
            names = {k: v for k, v in getattr(d[key], "meta", {}).items() if k == ORGAN_NAMES_META}
            d[key] = MetaTensor(torch.from_numpy(volume), affine=torch.as_tensor(target.affine), meta=names)
        return d
