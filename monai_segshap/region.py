# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What is explained: the voxels whose prediction an explanation speaks of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_segshap.geometry import VoxelGrid, resample_nearest

__all__ = ["REGION_MODES", "Box", "Region", "RegionSpec", "bounding_box", "box_slices", "select_region"]

#: Ways to name a region.
REGION_MODES = ("largest", "component", "nearest", "box", "mask")

#: (lowest index, highest index), both inside, for each axis.
Box = tuple[tuple[int, int, int], tuple[int, int, int]]


@dataclass(frozen=True)
class RegionSpec:
    """How a region is named. Indices refer to the voxels of the image *file*, millimeters to RAS.

    Attributes:
        mode: "largest" component of the target class, the n-th largest ("component"), the one "nearest" to a point,
            a "box", or a "mask" of the user.
        rank: for "component": 1 is the largest.
        point_ijk: for "nearest": voxel index in the image file.
        point_mm: for "nearest": RAS mm; either this or ``point_ijk``.
        box_ijk: for "box": ((i0, j0, k0), (i1, j1, k1)), both inside, in the image file.
        mask: for "mask": path of an image, on any grid; voxels above 0 are explained.
        margin_mm: added on each side; default 10 for the box of a component, otherwise 0.
        extent: "box" (default): the bounding box of a component, so that false positives can appear in it;
            "component": the component alone, in which a false positive is impossible by definition. A user's mask
            is always taken as it is.
    """

    mode: str = "largest"
    rank: int = 1
    point_ijk: tuple[float, float, float] | None = None
    point_mm: tuple[float, float, float] | None = None
    box_ijk: Box | None = None
    mask: str | None = None
    margin_mm: float | None = None
    extent: str = "box"

    def __post_init__(self) -> None:
        if self.mode not in REGION_MODES:
            raise ValueError(f"unknown region mode {self.mode!r}; expected one of {', '.join(REGION_MODES)}.")
        if self.extent not in ("box", "component"):
            raise ValueError(f"region extent is {self.extent!r}; expected 'box' or 'component'.")
        if isinstance(self.rank, bool) or int(self.rank) != self.rank or self.rank < 1:
            raise ValueError(f"region rank is {self.rank}; expected 1 (the largest component), 2, ...")
        if self.rank != 1 and self.mode != "component":
            raise ValueError(f"region mode {self.mode!r} takes no rank (got {self.rank}); use mode 'component'.")
        if self.point_ijk is not None and self.point_mm is not None:
            raise ValueError("region has both point_ijk and point_mm; give one of them.")
        if self.margin_mm is not None and not 0 <= self.margin_mm < math.inf:
            raise ValueError(f"region margin_mm is {self.margin_mm}; expected millimeters of 0 or more.")
        needs = {"nearest": self.point_ijk or self.point_mm, "box": self.box_ijk, "mask": self.mask}
        if self.mode in needs and needs[self.mode] is None:
            names = {"nearest": "point_ijk or point_mm", "box": "box_ijk", "mask": "mask (a path)"}
            raise ValueError(f"region mode {self.mode!r} needs {names[self.mode]}.")

    @classmethod
    def parse(cls, spec: str | Mapping[str, Any] | RegionSpec) -> RegionSpec:
        """Read ``"largest"``, ``{"mode": "nearest", "point_ijk": [35, 58, 2]}`` and the like."""
        if isinstance(spec, RegionSpec):
            return spec
        if isinstance(spec, str):
            return cls(mode=spec)
        if not isinstance(spec, Mapping):
            raise ValueError(f"region is {spec!r}; expected a mode such as 'largest' or a dictionary.")
        unknown = set(spec) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"region has unknown keys {sorted(unknown)}; expected some of {sorted(cls.__dataclass_fields__)}."
            )
        fields = dict(spec)
        for key in ("point_ijk", "point_mm"):
            if fields.get(key) is not None:
                fields[key] = _triple(fields[key], key)
        if fields.get("box_ijk") is not None:
            corners = list(fields["box_ijk"])
            if len(corners) != 2:
                raise ValueError(f"box_ijk is {spec['box_ijk']!r}; expected two corners [[i0, j0, k0], [i1, j1, k1]].")
            low, high = (_triple(c, "box_ijk") for c in corners)
            if any(x != int(x) for x in (*low, *high)):
                raise ValueError(f"box_ijk is {spec['box_ijk']!r}; expected whole voxel indices.")
            fields["box_ijk"] = (tuple(int(x) for x in low), tuple(int(x) for x in high))
        return cls(**fields)

    @property
    def margin(self) -> float:
        """Margin in mm after the default of the mode."""
        if self.margin_mm is not None:
            return float(self.margin_mm)
        return 10.0 if self.mode in ("largest", "component", "nearest") and self.extent == "box" else 0.0


@dataclass(frozen=True)
class Region:
    """Voxels whose prediction is explained, on the network's grid.

    Attributes:
        mask: bool (H, W, D), at least one voxel.
        mode: how it was chosen, see `REGION_MODES`.
        target: index of the explained class.
        target_voxels: voxels of the mask predicted as the target.
        component_voxels: how many of them belong to the chosen component; equals target_voxels for boxes and masks.
    """

    mask: NDArray[np.bool_]
    mode: str
    target: int
    target_voxels: int
    component_voxels: int | None = None

    def __post_init__(self) -> None:
        if self.component_voxels is None:
            object.__setattr__(self, "component_voxels", self.target_voxels)

    @property
    def other_voxels(self) -> int:
        """Voxels of the mask that are predicted as the target, but belong to other components than the chosen one."""
        return self.target_voxels - int(self.component_voxels or 0)

    @property
    def box(self) -> Box:
        """Bounding box of the mask, both corners inside."""
        return bounding_box(self.mask)

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(self.mask.sum())


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Lowest and highest index of the voxels of a (H, W, D) mask that holds at least one.

    Raises:
        ValueError: for an empty mask.
    """
    if not mask.any():
        raise ValueError("the mask holds no voxel, so it has no bounding box.")
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return (
        (found[0].start, found[1].start, found[2].start),
        (found[0].stop - 1, found[1].stop - 1, found[2].stop - 1),
    )


def box_slices(box: Box) -> tuple[slice, slice, slice]:
    """Slices of the voxels inside a box."""
    low, high = box
    return slice(low[0], high[0] + 1), slice(low[1], high[1] + 1), slice(low[2], high[2] + 1)


def select_region(
    prediction: NDArray[np.integer],
    target: int,
    spec: str | Mapping[str, Any] | RegionSpec,
    grid: VoxelGrid,
    file_grid: VoxelGrid | None = None,
    user_mask: tuple[NDArray[np.generic], VoxelGrid] | None = None,
    target_name: str | None = None,
) -> Region:
    """Find the region on the network's grid.

    Args:
        prediction: (H, W, D) predicted class of each voxel.
        target: index of the explained class.
        spec: how the region is named.
        grid: grid of ``prediction``.
        file_grid: grid to which voxel indices in ``spec`` refer; default ``grid``.
        user_mask: for mode "mask": the volume and its grid (nearest neighbor brings it to ``grid``).
        target_name: name of the class, for messages.

    Returns:
        the region.

    Raises:
        ValueError: if the class is absent, there are fewer components than the rank asked for, or the box, mask or
            point lies outside the volume.
    """
    spec = RegionSpec.parse(spec)
    file_grid = file_grid or grid
    hit = prediction == target
    if spec.mode == "box":
        core = _box_mask(spec, grid, file_grid)
    elif spec.mode == "mask":
        core = _user_mask(user_mask, grid)
    else:
        core = _component(hit, spec, grid, file_grid, target_name or f"class {target}", prediction)
    mask = _extend(core, spec, grid)
    inside = int((hit & mask).sum())
    return Region(mask, spec.mode, target, inside, inside if spec.mode in ("box", "mask") else int(core.sum()))


def _extend(core: NDArray[np.bool_], spec: RegionSpec, grid: VoxelGrid) -> NDArray[np.bool_]:
    """The core with its margin: a box around it, or (masks and extent "component") all voxels within the margin."""
    if spec.extent == "component" or spec.mode == "mask":
        if spec.margin == 0:
            return core
        return np.asarray(ndimage.distance_transform_edt(~core, sampling=grid.spacing_mm) <= spec.margin)
    low, high = bounding_box(core)
    pad = [math.ceil(spec.margin / s - 1e-6) for s in grid.spacing_mm]
    mask = np.zeros(core.shape, dtype=bool)
    mask[tuple(slice(max(a - p, 0), b + p + 1) for a, b, p in zip(low, high, pad, strict=True))] = True
    return mask


def _component(
    hit: NDArray[np.bool_],
    spec: RegionSpec,
    grid: VoxelGrid,
    file_grid: VoxelGrid,
    name: str,
    prediction: NDArray[np.integer],
) -> NDArray[np.bool_]:
    labels, count = ndimage.label(hit, structure=np.ones((3, 3, 3)))
    if count == 0:
        present = ", ".join(str(c) for c in np.unique(prediction) if c >= 0) or "none"
        raise ValueError(
            f"the prediction holds no voxel of {name}; it holds classes {present}. Choose another target_class, or "
            "explain why it is absent with a region of mode 'box' or 'mask' and the score 'fp'."
        )
    if spec.mode == "nearest":
        return np.asarray(labels == _nearest_label(labels, spec, grid, file_grid))
    rank = 1 if spec.mode == "largest" else spec.rank
    sizes = np.bincount(labels.ravel())[1:]
    if rank > count:
        raise ValueError(
            f"asked for component {rank} of {name}, which has {count} component(s) of "
            f"{', '.join(str(s) for s in np.sort(sizes)[::-1][:10])} voxels."
        )
    return np.asarray(labels == np.argsort(-sizes, kind="stable")[rank - 1] + 1)


def _nearest_label(labels: NDArray[np.integer], spec: RegionSpec, grid: VoxelGrid, file_grid: VoxelGrid) -> int:
    if spec.point_ijk is not None:
        point = np.asarray(spec.point_ijk, dtype=np.float64)
        if (point < 0).any() or (point > np.asarray(file_grid.shape) - 1).any():
            raise ValueError(f"point_ijk {spec.point_ijk} is outside the image of shape {file_grid.shape}.")
        world = file_grid.to_world(point)
    else:
        world = np.asarray(spec.point_mm, dtype=np.float64)
        index = file_grid.to_index(world)
        if (index < -0.5).any() or (index > np.asarray(file_grid.shape) - 0.5).any():
            raise ValueError(
                f"point_mm {spec.point_mm} (RAS) is outside the image: it would be voxel {np.round(index, 1).tolist()} "
                f"of {file_grid.describe()}."
            )
    voxels = np.argwhere(labels > 0)
    distance = np.linalg.norm(grid.to_world(voxels) - world, axis=1)
    return int(labels[tuple(voxels[int(np.argmin(distance))])])


def _box_mask(spec: RegionSpec, grid: VoxelGrid, file_grid: VoxelGrid) -> NDArray[np.bool_]:
    if spec.box_ijk is None:
        raise ValueError("region mode 'box' needs box_ijk.")
    low, high = (np.asarray(c) for c in spec.box_ijk)
    if (high < low).any() or (low < 0).any() or (high >= np.asarray(file_grid.shape)).any():
        raise ValueError(
            f"box_ijk {spec.box_ijk} does not lie inside the image of shape {file_grid.shape} (corners are inside, "
            "the first one lower)."
        )
    volume = np.zeros(file_grid.shape, dtype=np.uint8)
    volume[box_slices(spec.box_ijk)] = 1
    return _require_voxels(resample_nearest(volume, file_grid, grid).astype(bool), "the box")


def _user_mask(user_mask: tuple[NDArray[np.generic], VoxelGrid] | None, grid: VoxelGrid) -> NDArray[np.bool_]:
    if user_mask is None:
        raise ValueError("region mode 'mask' needs the mask volume.")
    volume, mask_grid = user_mask
    binary = (np.asarray(volume, dtype=np.float64) > 0).astype(np.uint8)
    return _require_voxels(resample_nearest(binary, mask_grid, grid).astype(bool), "the mask")


def _require_voxels(mask: NDArray[np.bool_], what: str) -> NDArray[np.bool_]:
    if not mask.any():
        raise ValueError(f"{what} holds no voxel of the image grid (empty, or outside the volume).")
    return mask


def _triple(value: Any, key: str) -> tuple[float, float, float]:
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, str):
        raise ValueError(f"{key} is {value!r}; expected three finite numbers.")
    numbers = tuple(float(x) for x in value)
    if len(numbers) != 3 or not all(math.isfinite(x) for x in numbers):
        raise ValueError(f"{key} is {value!r}; expected three finite numbers.")
    return numbers[0], numbers[1], numbers[2]
