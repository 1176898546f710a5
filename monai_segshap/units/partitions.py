# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Partitions of a case: organs, lattice cells, organ x cell, cubes, and the network's own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_segshap.geometry import VoxelGrid, require_unsheared
from monai_segshap.units.lattice import cube_labels, fcc_labels
from monai_segshap.units.partition import Partition, partition_from_labels

__all__ = [
    "cube_partition",
    "fcc_partition",
    "hybrid_partition",
    "merge_fragments",
    "organ_partition",
    "predicted_class_partition",
]


def organ_partition(
    organs: NDArray[np.generic],
    grid: VoxelGrid,
    names: Mapping[int, str] | None = None,
    select: Sequence[str] | None = None,
) -> Partition:
    """One unit for each organ of a label map (paper 000, "full organs"). Unlabeled voxels are never perturbed.

    Args:
        organs: (H, W, D), label numbers.
        grid: grid of the label map.
        names: label number -> name; labels without a name are called "label NUMBER".
        select: names of the organs to use; default all present.

    Returns:
        the partition; ``skipped`` lists named (or selected) organs without a voxel.

    Raises:
        ValueError: if no organ is present or a selected name is unknown.
    """
    names = dict(names or {})
    present = [int(n) for n in np.unique(organs) if n > 0]
    for number in present:
        names.setdefault(number, f"label {number}")
    names = _distinct(names)
    if select is not None:
        unknown = sorted(set(select) - set(names.values()))
        if unknown:
            raise ValueError(f"organs {unknown} are not among the names of the label map: {sorted(names.values())}.")
        names = {number: name for number, name in names.items() if name in set(select)}
        organs = np.where(np.isin(organs, list(names)), organs, 0)
    skipped = [name for number, name in sorted(names.items()) if number not in present]
    return partition_from_labels(organs, grid, "organs", names, skipped=skipped)


def fcc_partition(
    grid: VoxelGrid,
    scale_mm: float,
    within: NDArray[np.bool_] | None = None,
    scale_definition: str = "spacing",
) -> Partition:
    """Face-centered cubic cells over the volume, or over the mask ``within`` (paper 000, "regular").

    A lattice point lies at the center of the volume, or of the bounding box of ``within``. See `fcc_labels`.

    Raises:
        ValueError: for a sheared affine, a bad scale, or an empty mask.
    """
    require_unsheared(grid.affine)
    origin = _center_mm(within, grid)
    labels = fcc_labels(grid.shape, grid.spacing_mm, scale_mm, origin_mm=origin, scale_definition=scale_definition)
    return _lattice_partition(labels, grid, "fcc", "cell", within)


def cube_partition(grid: VoxelGrid, scale_mm: float, within: NDArray[np.bool_] | None = None) -> Partition:
    """Cubes over the volume, or over the mask ``within`` (paper 001). See `cube_labels`.

    Raises:
        ValueError: for a sheared affine, a bad scale, or an empty mask.
    """
    require_unsheared(grid.affine)
    return _lattice_partition(cube_labels(grid.shape, grid.spacing_mm, scale_mm), grid, "cubes", "cube", within)


def hybrid_partition(
    organs: NDArray[np.generic],
    grid: VoxelGrid,
    scale_mm: float,
    names: Mapping[int, str] | None = None,
    within: NDArray[np.bool_] | None = None,
    select: Sequence[str] | None = None,
    scale_definition: str = "spacing",
) -> Partition:
    """Organ x FCC cell: one unit for each pair that shares a voxel (paper 000, "hybrid"). Never mixes organs.

    Args:
        organs: (H, W, D), label numbers.
        grid: grid of the label map.
        scale_mm: see `fcc_labels`.
        names: label number -> name.
        within: cells are made inside this mask only; default everywhere.
        select: names of the organs to use; default all present.
        scale_definition: see `fcc_labels`.

    Returns:
        the partition; units are called "ORGAN 1", "ORGAN 2", ... and an organ in a single cell keeps its name.

    Raises:
        ValueError: as `organ_partition` and `fcc_partition`.
    """
    whole = organ_partition(organs, grid, names, select)
    cells = fcc_partition(grid, scale_mm, within, scale_definition)
    inside = (whole.labels > 0) & (cells.labels > 0)
    if not inside.any():
        raise ValueError("no labeled organ lies inside the receptive field, so there is no hybrid unit.")
    pair = np.where(inside, (whole.labels.astype(np.int64) - 1) * (cells.n_units + 1) + cells.labels, 0)
    numbers, inverse = np.unique(pair.ravel(), return_inverse=True)
    organ_of = [whole.names[(int(n) - 1) // (cells.n_units + 1)] for n in numbers if n > 0]
    labels = inverse.reshape(pair.shape) + (0 if numbers[0] == 0 else 1)
    unit_names = _numbered(organ_of)
    outside = [name for name in whole.names if name not in set(organ_of)]
    return partition_from_labels(
        labels,
        grid,
        "hybrid",
        dict(enumerate(unit_names, start=1)),
        dict(enumerate(organ_of, start=1)),
        skipped=(*whole.skipped, *outside),
    )


def predicted_class_partition(
    prediction: NDArray[np.integer],
    grid: VoxelGrid,
    class_names: Sequence[str] | None = None,
    include_background: bool = False,
) -> Partition:
    """The network's own predicted classes as units (paper 001, "semantic"; there with the background class).

    Args:
        prediction: (H, W, D), class of each voxel; 0 is the background.
        grid: grid of the prediction.
        class_names: name of each class, background first.
        include_background: whether the background class is a unit, too.

    Raises:
        ValueError: if nothing but background is predicted (and the background is no unit).
    """
    names = {n + 1: name for n, name in enumerate(class_names or [])}
    for n in np.unique(prediction):
        names.setdefault(int(n) + 1, f"class {int(n)}")
    labels = prediction.astype(np.int64) + 1
    if not include_background:
        labels[prediction == 0] = 0
        names.pop(1, None)
    present = set(np.unique(labels).tolist())
    skipped = [name for number, name in sorted(names.items()) if number not in present]
    return partition_from_labels(labels, grid, "predicted", names, skipped=skipped)


def merge_fragments(partition: Partition, min_voxels: int) -> Partition:
    """Merge units below a size into the neighbor of the same organ with the largest contact.

    A small unit without such a neighbor stays as it is. The smallest unit is merged first, until none is left.

    Args:
        partition: hybrid or lattice units.
        min_voxels: units with fewer voxels are merged.

    Returns:
        a partition with at most as many units; those that take others in keep their names.

    Raises:
        ValueError: for organs or classes, which have no part of the same organ to merge with.
    """
    if partition.kind not in ("hybrid", "fcc", "cubes"):
        raise ValueError(f"{partition.kind} units can not be merged without mixing what they name; use min_voxels=0.")
    labels = partition.labels.copy()
    organ = dict(enumerate(partition.organs if partition.kind == "hybrid" else [""] * partition.n_units, start=1))
    sizes = np.bincount(labels.ravel(), minlength=partition.n_units + 1)
    stuck: set[int] = set()
    while True:
        small = [u for u in range(1, len(sizes)) if 0 < sizes[u] < min_voxels and u not in stuck]
        if not small:
            break
        unit = min(small, key=lambda u: (sizes[u], u))
        host = _largest_contact(labels, unit, organ)
        if host is None:
            stuck.add(unit)
            continue
        labels[labels == unit] = host
        sizes[host] += sizes[unit]
        sizes[unit] = 0
    names = dict(enumerate(partition.names, start=1))
    organs = dict(enumerate(partition.organs, start=1)) if partition.kind == "hybrid" else None
    return partition_from_labels(labels, partition.grid, partition.kind, names, organs, partition.skipped)


def _largest_contact(labels: NDArray[np.int32], unit: int, organ: Mapping[int, str]) -> int | None:
    box = ndimage.find_objects((labels == unit).astype(np.uint8))[0]
    wide = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    part = labels[wide]
    mine = part == unit
    touching: list[NDArray[np.int32]] = []
    for axis in range(3):
        for step in (1, -1):
            moved = np.roll(mine, step, axis=axis)
            edge = [slice(None)] * 3
            edge[axis] = slice(0, 1) if step == 1 else slice(-1, None)
            moved[tuple(edge)] = False
            touching.append(part[moved & ~mine])
    counts = np.bincount(np.concatenate(touching)) if touching else np.zeros(1, dtype=np.int64)
    candidates = [u for u in np.flatnonzero(counts) if u > 0 and organ[int(u)] == organ[unit]]
    return int(max(candidates, key=lambda u: (counts[u], -u))) if candidates else None


def _lattice_partition(
    labels: NDArray[np.int32], grid: VoxelGrid, kind: str, word: str, within: NDArray[np.bool_] | None
) -> Partition:
    if within is not None:
        labels = np.where(within, labels, 0)
    partition = partition_from_labels(labels, grid, kind)
    names = tuple(f"{word} {n + 1}" for n in range(partition.n_units))
    return replace(partition, names=names, organs=names)


def _center_mm(within: NDArray[np.bool_] | None, grid: VoxelGrid) -> NDArray[np.float64] | None:
    if within is None:
        return None
    if within.shape != grid.shape or not within.any():
        raise ValueError(
            f"the receptive-field mask has shape {within.shape} with {int(within.sum())} voxels; expected {grid.shape} "
            "and at least one voxel."
        )
    box = ndimage.find_objects(within.astype(np.uint8))[0]
    return np.array([(s.start + s.stop - 1) / 2.0 for s in box]) * np.asarray(grid.spacing_mm)


def _numbered(organs: Sequence[str]) -> list[str]:
    """Names "ORGAN 1", "ORGAN 2", ... for the pieces of an organ, skipping those that another organ already has."""
    total = {name: organs.count(name) for name in organs}
    seen: dict[str, int] = {}
    names = []
    for name in organs:
        seen[name] = seen.get(name, 0) + 1
        while f"{name} {seen[name]}" in total:
            seen[name] += 1
        names.append(name if total[name] == 1 else f"{name} {seen[name]}")
    return names


def _distinct(names: Mapping[int, str]) -> dict[int, str]:
    """Names made distinct by their number where two labels share one."""
    used = list(names.values())
    return {n: name if used.count(name) == 1 else f"{name} ({n})" for n, name in names.items()}
