# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Removal of units: what their voxels are replaced with, and what -1024 HU means inside a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import ndimage

__all__ = [
    "CHANNEL_VOXELS",
    "Baseline",
    "BlurredBaseline",
    "ChannelMeanBaseline",
    "ChannelNoiseBaseline",
    "ConstantBaseline",
    "LocalMeanBaseline",
    "effective_hu",
    "network_value",
]

#: Which voxels of a channel count, and are replaced, for baselines of whole channels.
CHANNEL_VOXELS = ("nonzero", "all")

#: Lowest and highest HU at which an intensity transform is examined.
_HU_RANGE = (-1024, 3071)


class Baseline:
    """What removed voxels are replaced with.

    A baseline is *local* if the replacement of a voxel does not depend on which units are kept. The window cache
    needs that: only then does the content of a window follow from the units inside it.
    """

    kind: ClassVar[str] = ""
    is_local: ClassVar[bool] = True

    def fill(self, image: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
        """Replacement for every voxel.

        Args:
            image: (C, H, W, D), network space.
            spacing_mm: voxel spacing.

        Returns:
            tensor of the image's shape, dtype and device.
        """
        raise TypeError(f"{type(self).__name__} does not define fill().")

    def describe(self) -> dict[str, Any]:
        """Entries for ``explanation.json``: kind, hu (effective, or None) and network_value (or None)."""
        return {"kind": self.kind, "local": self.is_local, "hu": None, "network_value": None}


@dataclass(frozen=True)
class ConstantBaseline(Baseline):
    """One value for all removed voxels (paper 000, Eq. 1, with -1024 HU).

    Attributes:
        value: network-space value, or one for each channel.
        hu: HU that the value stands for, as far as the network can tell; None if it is no HU.
        requested_hu: HU asked for; differs from ``hu`` where the intensity transform clips.
    """

    kind: ClassVar[str] = "constant"
    value: float | tuple[float, ...]
    hu: float | None = None
    requested_hu: float | None = None

    @classmethod
    def from_hu(cls, hu: float, intensity_transform: Callable[[Any], Any] | None) -> ConstantBaseline:
        """The network-space constant that stands for ``hu``, through the model's own intensity transform.

        Raises:
            ValueError: if the transform is not pointwise (see `network_value`).
        """
        if intensity_transform is None:
            return cls(float(hu), float(hu), float(hu))
        return cls(network_value(hu, intensity_transform), effective_hu(hu, intensity_transform), float(hu))

    def fill(self, image: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
        """See `Baseline.fill`."""
        values = torch.as_tensor(self.value, dtype=image.dtype, device=image.device).reshape(-1)
        if len(values) not in (1, image.shape[0]):
            raise ValueError(
                f"got {len(values)} baseline values for an image of {image.shape[0]} channels; give one or all."
            )
        return values.reshape(-1, 1, 1, 1).expand(image.shape).contiguous()

    def describe(self) -> dict[str, Any]:
        """See `Baseline.describe`; adds ``requested_hu``."""
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        return {
            "kind": self.kind,
            "local": self.is_local,
            "hu": self.hu,
            "requested_hu": self.requested_hu,
            "network_value": value,
        }


@dataclass(frozen=True)
class BlurredBaseline(Baseline):
    """A Gaussian blur of the image: removes detail, keeps the mean. Local: the blur is of the unperturbed image.

    Attributes:
        sigma_mm: standard deviation of the Gaussian, mm.
    """

    kind: ClassVar[str] = "blur"
    sigma_mm: float = 15.0

    def fill(self, image: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
        """See `Baseline.fill`."""
        sigma = [_positive(self.sigma_mm, "sigma_mm") / s for s in spacing_mm]
        return _per_channel(image, lambda channel: ndimage.gaussian_filter(channel, sigma, mode="nearest"))

    def describe(self) -> dict[str, Any]:
        """See `Baseline.describe`; adds ``sigma_mm``."""
        return {**super().describe(), "sigma_mm": self.sigma_mm}


@dataclass(frozen=True)
class LocalMeanBaseline(Baseline):
    """The mean of a box around each voxel. Local: the mean is of the unperturbed image.

    Attributes:
        size_mm: edge of the box, mm; the nearest odd number of voxels is taken.
    """

    kind: ClassVar[str] = "local_mean"
    size_mm: float = 40.0

    def fill(self, image: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
        """See `Baseline.fill`."""
        size = [max(1, 2 * round((_positive(self.size_mm, "size_mm") / s - 1) / 2) + 1) for s in spacing_mm]
        return _per_channel(image, lambda channel: ndimage.uniform_filter(channel, size, mode="nearest"))

    def describe(self) -> dict[str, Any]:
        """See `Baseline.describe`; adds ``size_mm``."""
        return {**super().describe(), "size_mm": self.size_mm}


@dataclass(frozen=True)
class ChannelMeanBaseline(Baseline):
    """The mean of each channel: a contrast without any structure. Local: the mean is of the unperturbed image.

    Attributes:
        voxels: "nonzero": mean of the voxels that are not 0, written into these; the background, 0 after a
            normalization of the non-zero voxels, stays. "all": mean of all voxels, written everywhere.
    """

    kind: ClassVar[str] = "channel_mean"
    voxels: str = "nonzero"

    def __post_init__(self) -> None:
        _check_channel_voxels(self.voxels)

    def fill(self, image: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
        """See `Baseline.fill`."""
        return _where_counted(image, self.voxels, lambda values, channel: np.full(values.shape, values.mean()))

    def describe(self) -> dict[str, Any]:
        """See `Baseline.describe`; adds ``voxels``."""
        return {**super().describe(), "voxels": self.voxels}


@dataclass(frozen=True)
class ChannelNoiseBaseline(Baseline):
    """Gaussian noise with the mean and standard deviation of each channel. Local: every coalition has the same noise.

    Attributes:
        voxels: as for `ChannelMeanBaseline`.
        seed: of the noise; the same on every device.
    """

    kind: ClassVar[str] = "channel_noise"
    voxels: str = "nonzero"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_channel_voxels(self.voxels)

    def fill(self, image: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
        """See `Baseline.fill`."""

        def noise(values: np.ndarray, channel: int) -> np.ndarray:
            drawn = np.random.default_rng([self.seed, channel]).standard_normal(values.shape)
            return values.mean() + values.std() * drawn

        return _where_counted(image, self.voxels, noise)

    def describe(self) -> dict[str, Any]:
        """See `Baseline.describe`; adds ``voxels`` and ``seed``."""
        return {**super().describe(), "voxels": self.voxels, "seed": self.seed}


def network_value(hu: float, intensity_transform: Callable[[Any], Any]) -> float:
    """Network-space value of a HU, through the model's own intensity transform.

    Args:
        hu: Hounsfield units.
        intensity_transform: maps a (1, H, W, D) image in HU to network space, for example
            ``monai.transforms.ScaleIntensityRange(-1024, 1024, 0, 1, clip=True)``.

    Returns:
        the value.

    Raises:
        ValueError: if the transform gives one HU different values depending on the rest of the image (z-scores of the
            image itself, percentiles): such a model has no fixed value for a HU.
    """
    alone = _apply(intensity_transform, np.full(64, hu))
    beside = _apply(intensity_transform, np.concatenate([np.full(32, hu), np.linspace(hu - 3000, hu + 5000, 32)]))
    if not np.array_equal(alone[:32], beside[:32]) or len(np.unique(alone)) != 1:
        raise ValueError(
            f"the intensity transform maps {hu} HU to {alone[0]:.6g} in one image and to {beside[0]:.6g} in another, "
            "so -1024 HU has no fixed value in network space. Give the replacement in network space instead: "
            "ConstantBaseline(value), or baseline={'kind': 'constant', 'network_value': value}."
        )
    return float(alone[0])


def effective_hu(hu: float, intensity_transform: Callable[[Any], Any]) -> float:
    """The HU nearest to soft tissue that the network cannot tell from ``hu``.

    A transform that clips to [-175, 250] makes -1024, fat at -175 and everything between one number; removal by
    -1024 HU then erases less than its name says, and the effective value is -175.
    """
    values = np.arange(_HU_RANGE[0], _HU_RANGE[1] + 1, dtype=np.float64)
    mapped = _apply(intensity_transform, np.concatenate([[hu], values]))
    same = values[mapped[1:] == mapped[0]]
    candidates = np.append(same, hu)
    return float(candidates[np.argmin(np.abs(candidates))])


def _apply(transform: Callable[[Any], Any], hu: np.ndarray) -> np.ndarray:
    image = torch.as_tensor(hu, dtype=torch.float32).reshape(1, -1, 1, 1)
    return np.asarray(torch.as_tensor(transform(image)), dtype=np.float64).ravel()


def _per_channel(image: torch.Tensor, operation: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    channels = [operation(channel.numpy()) for channel in image.detach().cpu().float().as_subclass(torch.Tensor)]
    return torch.as_tensor(np.stack(channels), dtype=image.dtype, device=image.device)


def _check_channel_voxels(voxels: str) -> None:
    if voxels not in CHANNEL_VOXELS:
        raise ValueError(f"voxels is {voxels!r}; expected one of {', '.join(CHANNEL_VOXELS)}.")


def _where_counted(image: torch.Tensor, voxels: str, make: Callable[[np.ndarray, int], np.ndarray]) -> torch.Tensor:
    """Each channel with its counted voxels, float64 (n,), replaced by what ``make`` makes of them and its number."""
    found = np.array(image.detach().cpu().as_subclass(torch.Tensor).double().numpy())
    for number, channel in enumerate(found):
        counted = channel != 0 if voxels == "nonzero" else np.ones(channel.shape, dtype=bool)
        if counted.any():
            channel[counted] = make(channel[counted], number)
    return torch.as_tensor(found, dtype=image.dtype, device=image.device)


def _positive(value: float, name: str) -> float:
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected a positive length in mm.")
    return value
