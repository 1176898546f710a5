# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Regions of interest: where attribution mass is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.heads import OutputHeads

__all__ = ["RegionMasks", "check_groups", "with_unions"]

Volume: TypeAlias = NDArray[np.generic] | torch.Tensor
Place: TypeAlias = tuple[int, tuple[int, ...]]


Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class RegionMasks:
    """Named regions of one volume, which may overlap and need not cover it.

    Regions of one label map share its volume, so that 17 classes cost as much memory as one. Build them with
    `from_labels`, `from_prediction`, `from_masks`; add and join with `with_masks`, `with_regions` and `joined`.

    Attributes:
        names: R names, the columns of an importance matrix.
        places: for each region the index of its volume and the label numbers that belong to it there.
        volumes: label maps (H, W, D) of one shape, with numbers of 0 or more.
    """

    names: tuple[str, ...]
    places: tuple[Place, ...]
    volumes: tuple[NDArray[np.integer], ...]

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.places):
            raise ValueError(
                f"got {len(self.names)} names for {len(self.places)} regions; expected one each, at least one."
            )
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise ValueError(f"several regions are called {twice}; give each region a name of its own.")
        shapes = {volume.shape for volume in self.volumes}
        if len(shapes) != 1:
            raise ValueError(f"regions lie on volumes of the shapes {sorted(shapes)}; bring them to one grid first.")

    @classmethod
    def from_labels(
        cls, labels: Volume, names: Sequence[str] | Mapping[int, str], rest: str | None = None
    ) -> RegionMasks:
        """Regions of a label map: the model's own prediction, another model's organs, an annotation.

        Args:
            labels: (H, W, D) or (1, H, W, D), whole numbers of 0 or more.
            names: a list, entry n names number n (0 is the background), and every number that occurs must have one; or
                number -> name, and numbers without a name belong to no region.
            rest: name of the region of all voxels whose number has no name; None: there is no such region. With it,
                the regions partition the volume.

        Raises:
            ValueError: for another shape, fractions, negative numbers, or a number beyond the list.
        """
        volume = _label_volume(labels)
        known = dict(enumerate(names)) if not isinstance(names, Mapping) else {int(n): str(t) for n, t in names.items()}
        largest = int(volume.max()) if volume.size else 0
        if not isinstance(names, Mapping) and largest >= len(names):
            raise ValueError(
                f"the label map holds number {largest}; expected less than {len(names)}, the number of names. Name "
                "every class, background first, or give a dictionary of the numbers you mean and a name for the rest."
            )
        found = [str(name) for name in known.values()]
        places: list[Place] = [(0, (number,)) for number in known]
        if rest is not None:
            found.append(rest)
            places.append((0, tuple(n for n in range(largest + 1) if n not in known)))
        return cls(tuple(found), tuple(places), (volume,))

    @classmethod
    def from_masks(cls, masks: Mapping[str, Volume]) -> RegionMasks:
        """Regions of masks (H, W, D) or (1, H, W, D) of type bool or with values 0 and 1; they may overlap."""
        if not masks:
            raise ValueError("got no mask; expected at least one name and its mask.")
        volumes = tuple(_mask_volume(mask, name) for name, mask in masks.items())
        return cls(tuple(map(str, masks)), tuple((n, (1,)) for n in range(len(volumes))), volumes)

    @classmethod
    def from_prediction(
        cls,
        logits: torch.Tensor,
        names: Sequence[str],
        heads: str | OutputHeads = "softmax",
        background: str = "background",
    ) -> RegionMasks:
        """Regions of the model's own prediction (paper 001: every predicted class, the background among them).

        Args:
            logits: (C, H, W, D) before argmax.
            names: C names, one for each channel.
            heads: "softmax": the largest logit decides, regions partition the volume; "sigmoid": each channel decides
                for itself, so regions may overlap, and a further region holds the voxels that none claims.
            background: name of that further region.

        Raises:
            ValueError: if names and channels differ in number.
        """
        if logits.ndim != 4 or len(names) != logits.shape[0]:
            raise ValueError(
                f"got logits of shape {tuple(logits.shape)} and {len(names)} names; expected (C, H, W, D) and C names."
            )
        rule = OutputHeads.parse(heads)
        rule.check(logits.shape[0], "the prediction")
        plain = logits.detach().as_subclass(torch.Tensor)
        if rule.kind == "softmax":
            return cls.from_labels(plain.argmax(dim=0), list(names))
        claimed = {str(name): rule.predicted(plain, channel) for channel, name in enumerate(names)}
        nowhere = ~torch.stack(list(claimed.values())).any(dim=0)
        return cls.from_masks({**claimed, background: nowhere})

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, D)."""
        return tuple(self.volumes[0].shape)

    @property
    def n_regions(self) -> int:
        """Number of regions R."""
        return len(self.names)

    @property
    def voxels(self) -> NDArray[np.int64]:
        """int64 (R,), voxels of each region."""
        return np.round(self.sums(None, slice(None))).astype(np.int64)

    @property
    def is_partition(self) -> bool:
        """Whether every voxel lies in exactly one region; then the masses of a row sum to 1."""
        cover = np.zeros(self.shape, dtype=np.int32)
        for name in self.names:
            cover += self.mask(name)
        return bool((cover == 1).all())

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Bool (H, W, D), the voxels of one region.

        Raises:
            ValueError: for a name that no region has.
        """
        if name not in self.names:
            raise ValueError(f"no region is called {name!r}; the regions are {list(self.names)}.")
        volume, numbers = self.places[self.names.index(name)]
        return np.isin(self.volumes[volume], numbers)

    def with_masks(self, masks: Mapping[str, Volume]) -> RegionMasks:
        """These regions and further ones from masks, such as annotated pathologies; rows then sum to more than 1."""
        return self.with_regions(RegionMasks.from_masks(masks))

    def with_regions(self, other: RegionMasks) -> RegionMasks:
        """These regions and those of another set on the same grid."""
        shift = len(self.volumes)
        places = tuple((volume + shift, numbers) for volume, numbers in other.places)
        return RegionMasks(self.names + other.names, self.places + places, self.volumes + other.volumes)

    def joined(self, groups: Mapping[str, Sequence[str]], keep: bool = False) -> RegionMasks:
        """Unions of regions, such as ``{"lung": ["lung_left", "lung_right"]}``.

        A voxel that lies in several members counts once.

        Args:
            groups: new name -> names of its members.
            keep: whether the members stay regions of their own; otherwise the union takes the place of its first one.

        Raises:
            ValueError: for an unknown or missing member, or one that two groups would swallow.
        """
        check_groups(groups, self.names, "region")
        volumes = list(self.volumes)
        unions: dict[str, Place] = {}
        for name, members in groups.items():
            places = [self.places[self.names.index(member)] for member in members]
            if len({volume for volume, _ in places}) == 1:
                unions[name] = (places[0][0], tuple(sorted({n for _, numbers in places for n in numbers})))
            else:
                union = np.any([self.mask(member) for member in members], axis=0)
                unions[name] = (len(volumes), (1,))
                volumes.append(union.astype(np.uint8))
        entries = list(zip(self.names, self.places, strict=True))
        ordered = entries + list(unions.items()) if keep else with_unions(entries, groups, unions)
        return RegionMasks(tuple(n for n, _ in ordered), tuple(p for _, p in ordered), tuple(volumes))

    def sums(self, weights: NDArray[np.float64] | None, rows: slice) -> NDArray[np.float64]:
        """float64 (R,), sum of the weights in each region.

        Args:
            weights: float64 (h, W, D) for these rows of the volume; None counts voxels.
            rows: along the first axis.
        """
        flat = None if weights is None else weights.ravel()
        tables = [np.bincount(v[rows].ravel(), weights=flat).astype(np.float64) for v in self.volumes]
        found = np.zeros(self.n_regions)
        for region, (volume, numbers) in enumerate(self.places):
            table = tables[volume]
            found[region] = sum(table[n] for n in numbers if n < len(table))
        return found


def with_unions(
    entries: Sequence[tuple[str, Item]], groups: Mapping[str, Sequence[str]], unions: Mapping[str, Item]
) -> list[tuple[str, Item]]:
    """Entries in which each union stands where its first member stood."""
    owner = {member: name for name, members in groups.items() for member in members}
    ordered: dict[str, Item] = {}
    for name, item in entries:
        if name not in owner:
            ordered[name] = item
        elif owner[name] not in ordered:
            ordered[owner[name]] = unions[owner[name]]
    return list(ordered.items())


def check_groups(groups: Mapping[str, Sequence[str]], names: Sequence[str], what: str) -> None:
    """Raise unless every group has members, all known, each in one group, and new names clash with nothing kept."""
    members = [member for group in groups.values() for member in group]
    unknown = sorted(set(members) - set(names))
    repeated = sorted(m for m, count in Counter(members).items() if count > 1)
    if unknown or repeated or not all(groups.values()) or any(isinstance(g, str) for g in groups.values()):
        raise ValueError(
            f"cannot join {dict(groups)}: unknown {unknown}, in several groups {repeated}; expected for each new name "
            f"a list of one or more of the {what}s {list(names)}."
        )


def _plain(volume: Volume) -> NDArray[np.generic]:
    """A volume (H, W, D) as an array, without its channel axis."""
    if isinstance(volume, torch.Tensor):
        volume = volume.detach().as_subclass(torch.Tensor).cpu().numpy()
    array = np.asarray(volume)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3:
        raise ValueError(f"got a volume of shape {array.shape}; expected (H, W, D) or (1, H, W, D).")
    return array


def _label_volume(labels: Volume) -> NDArray[np.integer]:
    array = _plain(labels)
    if not np.issubdtype(array.dtype, np.integer):
        whole = np.round(array.astype(np.float64))
        if not np.array_equal(whole, array):
            raise ValueError(
                "the label map holds fractions; expected whole numbers. Resample labels with mode='nearest'."
            )
        array = whole.astype(np.int64)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0:
        raise ValueError(f"the label map holds {low}; expected numbers of 0 or more.")
    return array.astype(np.uint8 if high < 256 else np.uint16 if high < 65536 else np.int64)


def _mask_volume(mask: Volume, name: str) -> NDArray[np.integer]:
    array = _plain(mask)
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"the mask {name!r} holds values other than 0 and 1; expected a mask. Compare it first (labels == number), "
            "or use RegionMasks.from_labels for a label map."
        )
    return array.astype(np.uint8)
