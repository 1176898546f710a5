# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Local importance: how much of a class's attribution lies in each region (paper 001, Eq. 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.cohort.matrix import ImportanceMatrix, check_kind
from monai_segshap.cohort.regions import RegionMasks, check_groups

__all__ = ["join_maps", "local_importance", "measure_importance"]

Maps: TypeAlias = NDArray[Any] | torch.Tensor
Floats = NDArray[np.float64]
_BLOCK = 2**22  # values that are held in double precision at a time


class _Sums(NamedTuple):
    """Sums over regions and the volume of one part of the maps."""

    in_regions: Floats  # (T, R)
    in_volume: Floats  # (T,)
    present: NDArray[np.bool_]  # (T,), whether a class has a map at all
    voxels: NDArray[np.int64]  # (R,)
    size: int  # voxels of the volume

    def variant(self, variant: str) -> Floats:
        """float64 (T, R)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if variant == "mean":
                found = self.in_regions / np.where(self.voxels > 0, self.voxels, np.nan)
            else:
                found = self.in_regions / np.where(self.in_volume > 0, self.in_volume, np.nan)[:, None]
            if variant == "enrichment":
                found = found / np.where(self.voxels > 0, self.voxels / self.size, np.nan)
        return np.where(self.present[:, None], found, np.nan)


def local_importance(
    maps: Maps,
    regions: RegionMasks | NDArray[np.generic] | torch.Tensor,
    *,
    variant: str = "mass",
    part: str = "absolute",
    absent: Sequence[int] = (),
) -> Floats:
    """How much of each explained class's attribution lies in each region.

    With A = |a| (or max(a, 0), max(-a, 0)), summed over channels:

    * "mass": sum of A in the region / sum of A in the volume, in [0, 1] (mass accuracy, paper 001, Eq. 7). A row sums
      to 1 where the regions partition the volume. Large regions collect more mass;
    * "mean": sum of A in the region / voxels of the region, in the unit of the attribution for each voxel;
    * "enrichment": mass / (voxels of the region / voxels of the volume), >= 0; 1 is what an attribution spread evenly
      would have, whatever the size of the region.

    Rows are explained classes, columns are regions. The row of a class that is absent (named in ``absent``, or whose
    map is 0 or NaN everywhere) is NaN, never 0. A class with a map but nothing of the asked part has NaN for mass and
    enrichment (0 / 0) and 0 for mean. An empty region has mass 0, and NaN for mean and enrichment.

    Args:
        maps: (T, H, W, D) or (T, C, H, W, D), signed voxel attributions of T classes; array or tensor of any device and
            floating type. Everything is added up in double precision, a block of slices at a time.
        regions: `RegionMasks`; or a label map (H, W, D) whose numbers 0..max are the regions; or bool masks
            (R, H, W, D), which may overlap.
        variant: "mass", "mean" or "enrichment".
        part: "absolute", "positive" or "negative" attributions.
        absent: indices of explained classes that the prediction does not hold.

    Returns:
        float64 (T, R).

    Raises:
        ValueError: for other shapes or words, or a map with some values that are not finite.

    Example:
        >>> maps = np.array([[[[3.0, -1.0, 0.0]]], [[[0.0, 0.0, 2.0]]]])
        >>> local_importance(maps, np.array([[[0, 1, 1]]])).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    check_kind(variant, part)
    return _region_sums(maps, _as_regions(regions), (part,), absent)[part].variant(variant)


def measure_importance(
    case: str,
    maps: Maps,
    explained: Sequence[str],
    regions: RegionMasks,
    *,
    variants: Sequence[str] = ("mass",),
    parts: Sequence[str] = ("absolute",),
    absent: Sequence[str] = (),
    dice: Mapping[str, float] | None = None,
) -> list[ImportanceMatrix]:
    """Importance matrices of one case, all variants and parts in one pass over the maps.

    Args:
        case: name of the case.
        maps: (T, H, W, D) or (T, C, H, W, D), as for `local_importance`.
        explained: T names of the explained classes.
        regions: where mass is counted.
        variants: any of "mass", "mean", "enrichment".
        parts: any of "absolute", "positive", "negative".
        absent: names of classes that the prediction does not hold.
        dice: class -> Dice of the case against ground truth, where known.

    Returns:
        one `ImportanceMatrix` for each part and variant.

    Raises:
        ValueError: as for `local_importance`, or for names that do not fit the maps.
    """
    for variant in variants:
        for part in parts:
            check_kind(variant, part)
    names = tuple(map(str, explained))
    unknown = sorted(set(absent) - set(names))
    if len(names) != len(maps) or unknown:
        raise ValueError(
            f"got {len(maps)} maps, {len(names)} names of explained classes and absent classes {unknown} that are none "
            "of them; expected one name for each map."
        )
    sums = _region_sums(maps, regions, tuple(parts), [names.index(name) for name in absent])
    return [
        ImportanceMatrix(case, names, regions.names, sums[part].variant(variant), variant, part, dict(dice or {}))
        for part in parts
        for variant in variants
    ]


def join_maps(
    maps: Maps, names: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> tuple[NDArray[np.floating] | torch.Tensor, tuple[str, ...]]:
    """Explain unions of classes: the map of a union is the sum of its members' maps.

    For gradients and every other linear attribution that is the attribution of the sum of the members' outputs, each
    inside its own mask. (Adding rows of an importance matrix would not be: |a + b| is not |a| + |b|.) A member whose
    map is NaN everywhere, because the class is absent, adds nothing; a union without any present member stays NaN.

    Args:
        maps: (T, ...) signed maps.
        names: T names.
        groups: new name -> names of its members; the union takes the place of its first member.

    Returns:
        maps (T', ...) of the type they came in, and their T' names.

    Raises:
        ValueError: for names that do not fit, or an unknown member.
    """
    if len(names) != len(maps):
        raise ValueError(f"got {len(maps)} maps and {len(names)} names; expected one name for each map.")
    check_groups(groups, names, "class")
    owner = {member: name for name, members in groups.items() for member in members}
    merged: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        merged.setdefault(owner.get(name, str(name)), []).append(index)
    sums: list[Any] = [_sum_of_present([maps[index] for index in indices]) for indices in merged.values()]
    stacked = torch.stack(sums) if isinstance(maps, torch.Tensor) else np.stack(sums)
    return stacked, tuple(merged)


def _sum_of_present(members: list[Any]) -> Any:
    if len(members) == 1:
        return members[0]
    there = [member for member in members if not bool((member != member).all())]
    return sum(there[1:], there[0]) if there else members[0]


def _as_regions(regions: RegionMasks | NDArray[np.generic] | torch.Tensor) -> RegionMasks:
    if isinstance(regions, RegionMasks):
        return regions
    if isinstance(regions, torch.Tensor):
        regions = regions.detach().as_subclass(torch.Tensor).cpu().numpy()
    if regions.dtype == bool:
        masks = regions[None] if regions.ndim == 3 else regions
        if masks.ndim != 4 or not len(masks):
            raise ValueError(
                f"got region masks of shape {regions.shape}; expected (R, H, W, D) with at least one region."
            )
        return RegionMasks.from_masks({f"region {n}": mask for n, mask in enumerate(masks)})
    if regions.ndim == 4 and regions.shape[0] != 1:
        raise ValueError(
            f"got regions of shape {regions.shape} and type {regions.dtype}; expected a label map (H, W, D), or masks "
            "(R, H, W, D) of type bool (compare them first: masks > 0)."
        )
    largest = int(regions.max()) if regions.size else 0
    return RegionMasks.from_labels(regions, [f"region {n}" for n in range(largest + 1)])


def _region_sums(maps: Maps, regions: RegionMasks, parts: tuple[str, ...], absent: Sequence[int]) -> dict[str, _Sums]:
    if maps.ndim not in (4, 5) or tuple(maps.shape[-3:]) != regions.shape:
        raise ValueError(
            f"got maps of shape {tuple(maps.shape)} for regions on a volume of {regions.shape}; expected (T, H, W, D) "
            "or (T, C, H, W, D) on that volume."
        )
    n_maps, size = len(maps), int(np.prod(regions.shape))
    if any(not 0 <= index < n_maps for index in absent):
        raise ValueError(f"absent classes are {list(absent)}; expected indices of the {n_maps} maps.")
    sums = {part: np.zeros((n_maps, regions.n_regions)) for part in parts}
    totals = {part: np.zeros(n_maps) for part in parts}
    present = np.ones(n_maps, dtype=bool)
    present[list(absent)] = False
    for t in np.flatnonzero(present):
        present[t] = _has_map(maps[t], int(t))
        for rows, values in _blocks(maps[t]) if present[t] else ():
            for part in parts:
                weights = _part_of(values, part)
                sums[part][t] += regions.sums(weights, rows)
                totals[part][t] += weights.sum()
    voxels = regions.voxels
    return {part: _Sums(sums[part], totals[part], present, voxels, size) for part in parts}


def _has_map(values: Maps, t: int) -> bool:
    """Whether a map says anything: not 0 everywhere, not NaN everywhere.

    Raises:
        ValueError: if some of its values, not all, are not finite, or infinite.
    """
    bad = undefined = 0
    anything = False
    for _, block in _blocks(values):
        finite = np.isfinite(block)
        bad += int((~finite).sum())
        undefined += int(np.isnan(block).sum())
        anything = anything or bool(block[finite].any())
    size = int(np.prod(values.shape))
    if bad and undefined < size:
        raise ValueError(
            f"the map of explained class {t} holds {bad} of {size} values that are not finite; expected finite "
            "attributions, or NaN everywhere for an absent class."
        )
    return anything


def _blocks(values: Maps) -> Iterator[tuple[slice, Floats]]:
    """Rows of the volume, and the values there as float64 (C, h, W, D), a bounded number at a time."""
    volume = values if values.ndim == 4 else values[None]
    channels, height, *rest = volume.shape
    step = max(1, _BLOCK // max(1, channels * int(np.prod(rest))))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        block = volume[:, rows]
        if isinstance(block, torch.Tensor):
            block = block.detach().as_subclass(torch.Tensor).to("cpu", torch.float64).numpy()
        yield rows, np.asarray(block, dtype=np.float64)


def _part_of(values: Floats, part: str) -> Floats:
    """float64 (h, W, D), attribution of the asked sign in each voxel, summed over channels; >= 0."""
    if part == "absolute":
        return np.asarray(np.abs(values).sum(axis=0))
    return np.asarray(np.maximum(values if part == "positive" else -values, 0).sum(axis=0))
