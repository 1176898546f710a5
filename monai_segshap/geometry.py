# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Voxel grids in patient space: spacing, comparison, and nearest-neighbor transfer between grids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

__all__ = ["VoxelGrid", "current_grid", "require_finite", "require_unsheared", "resample_nearest", "source_grid"]


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """A regular grid: shape in voxels and the affine from voxel indices to RAS mm.

    Attributes:
        shape: (H, W, D).
        affine: float64 (4, 4).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        if np.shape(self.affine) != (4, 4) or abs(np.linalg.det(np.asarray(self.affine)[:3, :3])) < 1e-12:
            raise ValueError(f"the affine is {np.asarray(self.affine).tolist()}; expected an invertible (4, 4) matrix.")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighboring voxels along each axis, mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)

    def same_as(self, other: VoxelGrid, tolerance_mm: float = 1e-2) -> bool:
        """Whether both grids have one shape and no voxel lies further apart than the tolerance."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1)
        corners = np.vstack([corners, np.ones(corners.shape[1])])
        return bool(np.abs((self.affine - other.affine) @ corners).max() <= tolerance_mm)

    def to_world(self, index: ArrayLike) -> NDArray[np.float64]:
        """RAS mm of voxel indices of shape (..., 3)."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, world_mm: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices (not rounded) of RAS mm of shape (..., 3)."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(world_mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def describe(self) -> str:
        """Shape and affine on one line, for messages."""
        return f"shape {self.shape}, affine {np.round(self.affine, 4).tolist()}"


def current_grid(image: torch.Tensor) -> VoxelGrid:
    """Grid of a channel-first image (C, H, W, D) as it is now; identity affine for a plain tensor."""
    if image.ndim != 4:
        raise ValueError(f"got a tensor of shape {tuple(image.shape)}; expected a channel-first image (C, H, W, D).")
    affine = np.asarray(image.affine, dtype=np.float64) if isinstance(image, MetaTensor) else np.eye(4)
    return VoxelGrid((int(image.shape[1]), int(image.shape[2]), int(image.shape[3])), affine)


def source_grid(image: torch.Tensor) -> VoxelGrid:
    """Grid of the file an image was loaded from; the current grid where the image carries no file information."""
    meta = image.meta if isinstance(image, MetaTensor) else {}
    shape, affine = meta.get("spatial_shape"), meta.get("original_affine")
    if shape is None or affine is None:
        return current_grid(image)
    sizes = [int(n) for n in np.asarray(shape).ravel()[:3]]
    return VoxelGrid((sizes[0], sizes[1], sizes[2]), np.asarray(affine, dtype=np.float64).reshape(4, 4))


def require_finite(image: torch.Tensor, what: str) -> None:
    """Raise unless every voxel of a (C, H, W, D) image is finite.

    Args:
        image: the image.
        what: how the message calls it.

    Raises:
        ValueError: with the number of bad voxels and the first one.
    """
    bad = ~torch.isfinite(image.as_subclass(torch.Tensor))
    if bool(bad.any()):
        raise ValueError(
            f"{what} holds {int(bad.sum())} values that are not finite (NaN or infinite), the first at channel, voxel "
            f"{torch.nonzero(bad)[0].tolist()}. Replace them in the file, for example by -1024 HU."
        )


def require_unsheared(affine: NDArray[np.float64]) -> None:
    """Raise unless the voxel axes stand at right angles, which lattices in mm need.

    Raises:
        ValueError: for a sheared affine.
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    worst = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if worst > 1e-3:
        raise ValueError(
            f"the affine is sheared: two voxel axes meet with a cosine of {worst:.3f}, expected 0 (right angles). "
            "Resample the image to an orthogonal grid first, for example with monai.transforms.Spacingd."
        )


def resample_nearest(
    volume: NDArray[np.generic], source: VoxelGrid, target: VoxelGrid, fill: float = 0
) -> NDArray[np.generic]:
    """Bring a volume to another grid by nearest neighbor; flips, permutations and crops are exact.

    Args:
        volume: (H, W, D) on ``source``.
        source: grid of the volume.
        target: grid wanted.
        fill: value outside the source grid.

    Returns:
        array of ``target.shape`` and the volume's dtype.
    """
    if source.same_as(target, tolerance_mm=1e-6):
        return volume.copy()
    matrix = np.linalg.inv(source.affine) @ target.affine
    nearest = np.round(matrix, 9)
    return ndimage.affine_transform(
        volume, nearest[:3, :3], nearest[:3, 3], target.shape, order=0, mode="grid-constant", cval=fill, prefilter=False
    )
