# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A partition: the units of an explanation, with everything a person needs to recognize them."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from monai_segshap.geometry import VoxelGrid, current_grid

__all__ = ["Partition", "partition_from_labels", "whole_numbers"]

_NOUNS = {"organs": "organ", "fcc": "FCC", "cubes": "cube", "predicted": "predicted-class"}
_META_KEY = "segshap_partition"


@dataclass(frozen=True)
class Partition:
    """Units as a label volume.

    Attributes:
        labels: int32 (H, W, D); 0 is never perturbed, 1..M are the units, each with at least one voxel.
        names: M names, in the order of the labels.
        grid: shape and affine of the volume.
        kind: "organs", "fcc", "hybrid", "cubes", "predicted" or a word of the user's.
        organs: for hybrid units the organ of each unit; otherwise the names.
        skipped: names asked for that have no voxel here.
    """

    labels: NDArray[np.int32]
    names: tuple[str, ...]
    grid: VoxelGrid
    kind: str
    organs: tuple[str, ...] = ()
    skipped: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.labels.shape != self.grid.shape:
            raise ValueError(f"labels have shape {self.labels.shape}; the grid says {self.grid.shape}.")
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names) + 1)
        if len(counts) != len(self.names) + 1 or (counts[1:] == 0).any():
            raise ValueError(
                f"labels run to {len(counts) - 1} with {int((counts[1:] > 0).sum())} of them present; expected each of "
                f"1..{len(self.names)} (one for each name). Build partitions with partition_from_labels."
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"unit names repeat: {sorted({n for n in self.names if self.names.count(n) > 1})}.")
        if not self.organs:
            object.__setattr__(self, "organs", self.names)

    @property
    def n_units(self) -> int:
        """Number of units M."""
        return len(self.names)

    @property
    def noun(self) -> str:
        """The kind as it stands before "units"."""
        return _NOUNS.get(self.kind, self.kind)

    def mask(self, *names: str) -> NDArray[np.bool_]:
        """Bool (H, W, D): the voxels of some units.

        Raises:
            ValueError: for a name that no unit has.
        """
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise ValueError(f"no unit is called {unknown}; the units are {list(self.names)}.")
        return np.isin(self.labels, [self.names.index(name) + 1 for name in names])

    @property
    def voxels(self) -> NDArray[np.int64]:
        """int64 (M,): voxels of each unit."""
        return np.bincount(self.labels.ravel(), minlength=self.n_units + 1)[1:]

    @property
    def volumes_ml(self) -> NDArray[np.float64]:
        """float64 (M,): volume of each unit in ml."""
        return np.asarray(self.voxels * self.grid.voxel_ml, dtype=np.float64)

    @property
    def centroids_mm(self) -> NDArray[np.float64]:
        """float64 (M, 3): center of mass of each unit, RAS mm."""
        flat = self.labels.ravel()
        sums = []
        for axis, size in enumerate(self.labels.shape):
            shape = [1, 1, 1]
            shape[axis] = size
            weight = np.broadcast_to(np.arange(size, dtype=np.float64).reshape(shape), self.labels.shape).ravel()
            sums.append(np.bincount(flat, weights=weight, minlength=self.n_units + 1)[1:])
        return self.grid.to_world(np.stack(sums, axis=1) / self.voxels[:, None])

    @property
    def colors(self) -> NDArray[np.uint8]:
        """uint8 (M, 3): a distinct RGB color for each unit, the same in every run."""
        hues = [(i * 0.61803398875) % 1.0 for i in range(self.n_units)]
        rgb = [
            colorsys.hsv_to_rgb(h, (0.55, 0.75, 0.95)[i % 3], (0.95, 0.85, 0.7)[i // 3 % 3]) for i, h in enumerate(hues)
        ]
        return np.round(np.array(rgb).reshape(-1, 3) * 255).astype(np.uint8)

    def to_metatensor(self) -> MetaTensor:
        """Labels as an int32 `MetaTensor` (1, H, W, D) that carries names and kind in its meta data."""
        record = {"names": self.names, "kind": self.kind, "organs": self.organs, "skipped": self.skipped}
        meta = {_META_KEY: json.dumps(record)}
        return MetaTensor(torch.from_numpy(self.labels.copy())[None], affine=torch.tensor(self.grid.affine), meta=meta)

    @classmethod
    def from_metatensor(cls, volume: torch.Tensor) -> Partition:
        """Read `to_metatensor`'s result, or any integer label volume (1, H, W, D); then units are "unit 1", ...

        Raises:
            ValueError: for another shape, or labels that are no integers.
        """
        grid = current_grid(volume)
        if volume.shape[0] != 1:
            raise ValueError(f"the unit volume has {volume.shape[0]} channels; expected 1 channel of labels.")
        labels = np.asarray(torch.as_tensor(volume).detach().cpu().numpy()[0])
        record = volume.meta.get(_META_KEY) if isinstance(volume, MetaTensor) else None
        if record is None:
            return partition_from_labels(labels, grid, kind="labels")
        read = json.loads(record)
        return cls(
            labels.astype(np.int32),
            tuple(read["names"]),
            grid,
            read["kind"],
            tuple(read["organs"]),
            tuple(read["skipped"]),
        )


def whole_numbers(labels: NDArray[np.generic]) -> NDArray[np.integer]:
    """A label volume as integers, whatever type it was stored in.

    Raises:
        ValueError: if a label is no whole number.
    """
    if np.issubdtype(labels.dtype, np.integer):
        return labels.astype(labels.dtype, copy=False)
    rounded = np.round(labels.astype(np.float64))
    if not np.array_equal(rounded, labels):
        raise ValueError(
            "the label map holds fractions: labels are no whole numbers; was the label map resampled by interpolation? "
            "Use mode='nearest'."
        )
    return rounded.astype(np.int64)


def partition_from_labels(
    labels: NDArray[np.generic],
    grid: VoxelGrid,
    kind: str,
    names: dict[int, str] | None = None,
    organs: dict[int, str] | None = None,
    skipped: Sequence[str] = (),
) -> Partition:
    """Make a partition from any label volume: numbers are closed up to 1..M in ascending order.

    Args:
        labels: (H, W, D), integers of 0 or more; 0 is never perturbed.
        grid: grid of the labels.
        kind: what the units are.
        names: label number -> name; default "unit NUMBER".
        organs: label number -> organ, for hybrid units.
        skipped: names that were asked for and have no voxel.

    Returns:
        the partition.

    Raises:
        ValueError: if no voxel carries a label, or labels are negative or no integers.
    """
    labels = whole_numbers(labels)
    numbers = np.unique(labels)
    if numbers[0] < 0:
        raise ValueError(f"labels hold {int(numbers[0])}; expected 0 (never perturbed) and positive numbers.")
    numbers = numbers[numbers > 0]
    if len(numbers) == 0:
        raise ValueError(
            f"the {kind} partition has no unit: every voxel is 0. Check the label map and the receptive field."
        )
    table = np.zeros(int(numbers[-1]) + 1, dtype=np.int32)
    table[numbers] = np.arange(1, len(numbers) + 1)
    names = names or {}
    found = tuple(names.get(int(n), f"unit {int(n)}") for n in numbers)
    parents = tuple(organs.get(int(n), f"unit {int(n)}") for n in numbers) if organs else ()
    return Partition(table[labels], found, grid, kind, parents, tuple(skipped))
