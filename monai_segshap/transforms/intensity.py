# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What a preprocessing does to intensities, voxel by voxel: the way from HU to network space."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable
from monai.utils import ensure_tuple
from numpy.typing import NDArray

__all__ = ["PointwiseIntensity", "intensity_of"]

#: MONAI's rooms whose transforms change intensities, and names elsewhere that may.
_ROOMS = ("monai.transforms.intensity.", "monai.transforms.post.", "monai.transforms.smooth_field.")
_NAMES = ("Lambdad", "RandLambdad", "MapLabelValued", "ImageFilterd", "RandImageFilterd")
_WAY_OUT = (
    "Give the replacement of removed voxels in network space instead (ConstantBaseline(value); explain#baseline_value "
    "of the overlay)."
)
#: Shape of the images that a transform is tried on.
_PROBE = (1, 8, 8, 8)


@dataclass(frozen=True)
class PointwiseIntensity:
    """Intensity transforms of a preprocessing, in order; each maps a voxel's value whatever the rest of the image is.

    Attributes:
        transforms: dictionary transforms.
        key: of the image.

    Example:
        >>> from monai.transforms import Compose, LoadImaged, ScaleIntensityRanged
        >>> scale = ScaleIntensityRanged("image", a_min=-1000, a_max=1000, b_min=0, b_max=1, clip=True)
        >>> to_network = intensity_of(Compose([LoadImaged("image"), scale]))
        >>> float(to_network(torch.zeros(1, 1, 1, 1)))
        0.5
    """

    transforms: tuple[Callable[[dict[Hashable, Any]], Any], ...]
    key: Hashable = "image"

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Network space of an image (1, H, W, D) in the intensities of the file, float32."""
        for transform in self.transforms:
            image = _applied(transform, torch.as_tensor(image), self.key)
        return torch.as_tensor(image).as_subclass(torch.Tensor)

    @property
    def names(self) -> tuple[str, ...]:
        """Class of each transform."""
        return tuple(type(t).__name__ for t in self.transforms)


def intensity_of(preprocessing: Any, key: Hashable = "image") -> PointwiseIntensity:
    """What a preprocessing does to the intensities of an image with one channel.

    Transforms that may change intensities (MONAI's intensity transforms, `Lambdad`, and those of other libraries) are
    tried on images that share some values: a value must become the same wherever it lies. Loading, orientation,
    resampling, cropping and the like are passed over.

    Args:
        preprocessing: a Compose of dictionary transforms, or one of them.
        key: of the image.

    Returns:
        the way from the intensities of the file (HU for CT) to those of the network; for
        `monai_segshap.perturbation.ConstantBaseline.from_hu`.

    Raises:
        ValueError: naming the transform, for one that is random, looks at the rest of the image (z-scores and
            percentiles of the image itself, smoothing), can not be tried, or makes the image from other entries.
    """
    chosen: list[Callable[[dict[Hashable, Any]], Any]] = []
    hu = _probe_values()
    images = [torch.from_numpy(volume) for volume in hu]
    for transform in _flat(preprocessing):
        _require_own(transform, key)
        if not _may_change(transform, key):
            continue
        name = type(transform).__name__
        if isinstance(transform, Randomizable):
            raise ValueError(f"{name} in the preprocessing is random: {key!r} has no fixed intensities. {_WAY_OUT}")
        try:
            images = [_applied(transform, image, key).as_subclass(torch.Tensor) for image in images]
        except Exception as error:
            raise ValueError(
                f"{name} in the preprocessing can not be tried on a small image of one channel, so that what it does "
                f"to intensities is not known ({type(error).__name__}: {error}). {_WAY_OUT}"
            ) from None
        if any(tuple(image.shape) != _PROBE for image in images):
            raise ValueError(
                f"{name} in the preprocessing changes the shape of an image, from {_PROBE} to "
                f"{tuple(images[0].shape)}; whether it changes intensities, too, is not known. {_WAY_OUT}"
            )
        if not _is_pointwise(hu, images):
            raise ValueError(
                f"{name} in the preprocessing does not map a voxel by its value alone: one HU becomes different "
                f"numbers, depending on the rest of the image. {_WAY_OUT}"
            )
        chosen.append(transform)
    return PointwiseIntensity(tuple(chosen), key)


def _flat(preprocessing: Any) -> list[Any]:
    if type(preprocessing) is Compose:
        return [t for part in preprocessing.transforms for t in _flat(part)]
    if preprocessing is None or not callable(preprocessing):
        raise ValueError(
            f"the preprocessing is {preprocessing!r}; expected a Compose of dictionary transforms, or one. {_WAY_OUT}"
        )
    return [preprocessing]


def _require_own(transform: Any, key: Hashable) -> None:
    """Raise for a transform that makes the image from other entries."""
    keys = ensure_tuple(getattr(transform, "keys", ()))
    made = [name for field in ("name", "names") for name in ensure_tuple(getattr(transform, field, ()))]
    if key in made and (key not in keys or len(keys) > 1):
        raise ValueError(
            f"{type(transform).__name__} in the preprocessing makes {key!r} from {keys}; expected an image that is "
            f"loaded and changed under one key. {_WAY_OUT}"
        )


def _may_change(transform: Any, key: Hashable) -> bool:
    keys = getattr(transform, "keys", None)
    if keys is not None and not callable(keys) and key not in ensure_tuple(keys):
        return False
    kind = type(transform)
    if kind.__module__.startswith("monai.transforms."):
        return kind.__name__ in _NAMES or kind.__module__.startswith(_ROOMS)
    return not kind.__module__.startswith("monai_segshap.")


def _applied(transform: Callable[[dict[Hashable, Any]], Any], image: torch.Tensor, key: Hashable) -> torch.Tensor:
    keys = getattr(transform, "keys", None)
    names = ensure_tuple(keys) if keys is not None and not callable(keys) else (key,)
    return torch.as_tensor(transform({name: image.clone() for name in {*names, key}})[key])


def _probe_values() -> list[NDArray[np.float32]]:
    """Images in HU that share values, among other neighbors and in other ranges."""
    rng = np.random.default_rng(0)
    size = int(np.prod(_PROBE))
    narrow = [rng.integers(low, low + 200, 16) for low in (-850, -20, 400)]  # lung, soft tissue, bone
    shared = np.concatenate([[-1024.0, 0.0], *narrow, rng.integers(-1000, 1500, 30)])
    others = rng.integers(-1024, 3071, size - len(shared))
    images = [np.resize(shared, size), np.concatenate([shared, others]), *(np.resize(part, size) for part in narrow)]
    return [rng.permutation(image).astype(np.float32).reshape(_PROBE) for image in images]


def _is_pointwise(hu: list[NDArray[np.float32]], images: list[torch.Tensor], tolerance: float = 1e-5) -> bool:
    """Whether each HU became one value, in all images together."""
    before = np.concatenate([volume.ravel() for volume in hu])
    after = np.concatenate([image.cpu().numpy().astype(np.float64).ravel() for image in images])
    order = np.argsort(before, kind="stable")
    starts = np.flatnonzero(np.diff(before[order], prepend=-np.inf))
    spread = np.maximum.reduceat(after[order], starts) - np.minimum.reduceat(after[order], starts)
    return bool((spread <= tolerance * max(1.0, float(np.ptp(after)))).all())
