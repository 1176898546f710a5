# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Units as transforms: from an image, a label map or a prediction to a label volume that carries its names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends
from numpy.typing import NDArray

from monai_segshap.geometry import current_grid
from monai_segshap.heads import OutputHeads
from monai_segshap.transforms.organs import carried_organ_names
from monai_segshap.units import (
    Partition,
    cube_partition,
    fcc_partition,
    hybrid_partition,
    load_label_names,
    merge_fragments,
    organ_partition,
    predicted_class_partition,
    whole_numbers,
)

__all__ = [
    "UNIT_KINDS",
    "CubeUnits",
    "CubeUnitsd",
    "FCCUnits",
    "FCCUnitsd",
    "HybridUnits",
    "HybridUnitsd",
    "OrganUnits",
    "OrganUnitsd",
    "PredictedClassUnits",
    "PredictedClassUnitsd",
    "UnitsOfKindd",
]

#: Kinds of units that `UnitsOfKindd` makes.
UNIT_KINDS = ("organs", "fcc", "hybrid", "cubes", "predicted")

_Names = str | Path | Mapping[Any, Any] | None


class _UnitsTransform(Transform):
    backend = (TransformBackends.NUMPY,)

    def __call__(self, img: torch.Tensor, within: torch.Tensor | None = None) -> MetaTensor:
        """Make units.

        Args:
            img: (C, H, W, D); what its channels are depends on the transform.
            within: (1, H, W, D), lattice cells are made where it is not 0, for example the receptive field.

        Returns:
            int32 (1, H, W, D) labels with the image's affine; read names and volumes with
            `monai_segshap.units.Partition.from_metatensor`.
        """
        mask = None if within is None else np.asarray(torch.as_tensor(within).cpu())[0] != 0
        return self.partition(img, mask).to_metatensor()

    def partition(self, img: torch.Tensor, within: NDArray[np.bool_] | None) -> Partition:
        raise TypeError(f"{type(self).__name__} does not define partition().")


class OrganUnits(_UnitsTransform):
    """One unit for each organ of a label map (1, H, W, D). Unlabeled voxels are never perturbed.

    Args:
        names: see `monai_segshap.units.load_label_names`. A label map that `LoadOrgans` read from a folder carries the
            names of the files: None takes them, and names given all the same must have each of them.
        select: names of the organs to use; default all present.
    """

    def __init__(self, names: _Names = None, select: Sequence[str] | None = None) -> None:
        self.names, self.select = load_label_names(names), select

    def partition(self, img: torch.Tensor, within: NDArray[np.bool_] | None) -> Partition:
        """See `monai_segshap.units.organ_partition`."""
        return organ_partition(_labels(img), current_grid(img), _organ_names(img, self.names), self.select)


class FCCUnits(_UnitsTransform):
    """Face-centered cubic cells on an image's grid.

    Args:
        scale_mm: distance of neighboring cell centers, mm.
        scale_definition: see `monai_segshap.units.fcc_labels`.
        min_voxels: merge smaller cells into a neighbor; 0: never.
    """

    def __init__(self, scale_mm: float, scale_definition: str = "spacing", min_voxels: int = 0) -> None:
        self.scale_mm, self.scale_definition, self.min_voxels = scale_mm, scale_definition, min_voxels

    def partition(self, img: torch.Tensor, within: NDArray[np.bool_] | None) -> Partition:
        """See `monai_segshap.units.fcc_partition`."""
        return _merged(fcc_partition(current_grid(img), self.scale_mm, within, self.scale_definition), self.min_voxels)


class CubeUnits(_UnitsTransform):
    """Cubes on an image's grid.

    Args:
        scale_mm: edge, mm.
        min_voxels: merge smaller cubes (cut by the border) into a neighbor; 0: never.
    """

    def __init__(self, scale_mm: float, min_voxels: int = 0) -> None:
        self.scale_mm, self.min_voxels = scale_mm, min_voxels

    def partition(self, img: torch.Tensor, within: NDArray[np.bool_] | None) -> Partition:
        """See `monai_segshap.units.cube_partition`."""
        return _merged(cube_partition(current_grid(img), self.scale_mm, within), self.min_voxels)


class HybridUnits(_UnitsTransform):
    """Organ x FCC cell of a label map (1, H, W, D). Unlabeled voxels are never perturbed, organs never mixed.

    Args:
        scale_mm: distance of neighboring cell centers, mm.
        names: see `monai_segshap.units.load_label_names`. A label map that `LoadOrgans` read from a folder carries the
            names of the files: None takes them, and names given all the same must have each of them.
        select: names of the organs to use; default all present.
        scale_definition: see `monai_segshap.units.fcc_labels`.
        min_voxels: merge smaller units into a neighbor of the same organ; 0: never.
    """

    def __init__(
        self,
        scale_mm: float,
        names: _Names = None,
        select: Sequence[str] | None = None,
        scale_definition: str = "spacing",
        min_voxels: int = 0,
    ) -> None:
        self.scale_mm, self.scale_definition, self.min_voxels = scale_mm, scale_definition, min_voxels
        self.names, self.select = load_label_names(names), select

    def partition(self, img: torch.Tensor, within: NDArray[np.bool_] | None) -> Partition:
        """See `monai_segshap.units.hybrid_partition`."""
        names = _organ_names(img, self.names)
        made = hybrid_partition(
            _labels(img), current_grid(img), self.scale_mm, names, within, self.select, self.scale_definition
        )
        return _merged(made, self.min_voxels)


class PredictedClassUnits(_UnitsTransform):
    """The network's own classes, from logits (classes, H, W, D) or a label map (1, H, W, D).

    Args:
        class_names: background first.
        include_background: whether the background is a unit, too.
        heads: see `monai_segshap.heads.OutputHeads`; of "sigmoid" heads, which overlap, the last one gets a voxel, and
            ``class_names`` has no background.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        include_background: bool = False,
        heads: str | OutputHeads = "softmax",
    ) -> None:
        self.kind = OutputHeads.parse(heads).kind
        self.class_names, self.include_background = class_names, include_background

    def partition(self, img: torch.Tensor, within: NDArray[np.bool_] | None) -> Partition:
        """See `monai_segshap.units.predicted_class_partition`."""
        is_map = img.shape[0] == 1 and not img.is_floating_point()
        logits = (self.kind == "sigmoid" and not is_map) or img.shape[0] > 1
        labels = _labels(OutputHeads(self.kind).label_map(img)[None] if logits else img)
        names = self.class_names
        if self.kind == "sigmoid":
            heads = names if names is not None else [f"class {c}" for c in range(max(len(img), int(labels.max())))]
            names = ["background", *heads]
        return predicted_class_partition(labels, current_grid(img), names, self.include_background)


class _UnitsTransformd(MapTransform):
    """Dictionary form: reads one key, writes ``output_key``.

    Args:
        keys: the one key of the image, label map or prediction.
        output_key: key of the label volume.
        within_key: key of a mask in which lattice cells are made, for example "receptive_field"; None: everywhere.
        allow_missing_keys: as in MONAI.
        options: of the array transform.
    """

    backend = _UnitsTransform.backend
    array: Callable[..., _UnitsTransform]

    def __init__(
        self,
        keys: KeysCollection,
        *,
        output_key: str = "units",
        within_key: str | None = None,
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"{type(self).__name__} got keys {self.keys}; expected one.")
        self.output_key, self.within_key = output_key, within_key
        self.transform = type(self).array(**options)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the unit volume to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.output_key] = self.transform(d[key], d[self.within_key] if self.within_key else None)
        return d


class OrganUnitsd(_UnitsTransformd):
    """Dictionary form of `OrganUnits`."""

    array = OrganUnits


class FCCUnitsd(_UnitsTransformd):
    """Dictionary form of `FCCUnits`."""

    array = FCCUnits


class CubeUnitsd(_UnitsTransformd):
    """Dictionary form of `CubeUnits`."""

    array = CubeUnits


class HybridUnitsd(_UnitsTransformd):
    """Dictionary form of `HybridUnits`."""

    array = HybridUnits


class PredictedClassUnitsd(_UnitsTransformd):
    """Dictionary form of `PredictedClassUnits`."""

    array = PredictedClassUnits


FCCUnitsD = FCCUnitsDict = FCCUnitsd
CubeUnitsD = CubeUnitsDict = CubeUnitsd
OrganUnitsD = OrganUnitsDict = OrganUnitsd
HybridUnitsD = HybridUnitsDict = HybridUnitsd
PredictedClassUnitsD = PredictedClassUnitsDict = PredictedClassUnitsd


class UnitsOfKindd(MapTransform):
    """Units of a kind that is chosen by a word, for configurations.

    Args:
        keys: key of the image.
        kind: see `UNIT_KINDS`.
        scale_mm: for fcc, hybrid and cubes.
        organs_key: key of the organ label map, for organs and hybrid.
        pred_key: key of the prediction, for predicted.
        names: names of the organ labels, see `OrganUnits`.
        class_names: names of the classes, for predicted.
        within_key: key of the mask in which lattice cells are made.
        output_key: key of the label volume.
        min_voxels: see `HybridUnits`.
        heads: see `PredictedClassUnits`.
        allow_missing_keys: as in MONAI.
    """

    backend = _UnitsTransform.backend

    def __init__(
        self,
        keys: KeysCollection,
        kind: str,
        scale_mm: float = 40.0,
        organs_key: str = "organs",
        pred_key: str = "pred",
        names: _Names = None,
        class_names: Sequence[str] | None = None,
        within_key: str | None = "receptive_field",
        output_key: str = "units",
        min_voxels: int = 0,
        heads: str | OutputHeads = "softmax",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if kind not in UNIT_KINDS:
            raise ValueError(f"unknown units {kind!r}; expected one of {', '.join(UNIT_KINDS)}.")
        self.kind, self.output_key, self.within_key = kind, output_key, within_key
        self.source_key = {"organs": organs_key, "hybrid": organs_key, "predicted": pred_key}.get(kind, self.keys[0])
        self.transform = {
            "organs": lambda: OrganUnits(names),
            "fcc": lambda: FCCUnits(scale_mm, min_voxels=min_voxels),
            "hybrid": lambda: HybridUnits(scale_mm, names, min_voxels=min_voxels),
            "cubes": lambda: CubeUnits(scale_mm, min_voxels=min_voxels),
            "predicted": lambda: PredictedClassUnits(class_names, heads=heads),
        }[kind]()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the unit volume to the dictionary."""
        d = dict(data)
        if d.get(self.source_key) is None:
            raise ValueError(
                f"units {self.kind!r} are made from {self.source_key!r}, which this case does not have (keys: "
                f"{sorted(str(k) for k in d)}). Give an organ label map or a folder of masks, or choose units 'fcc', "
                "'cubes' or 'predicted'."
            )
        within = d[self.within_key] if self.within_key else None
        d[self.output_key] = self.transform(d[self.source_key], within)
        return d


def _labels(img: torch.Tensor) -> NDArray[np.integer]:
    if img.ndim != 4 or img.shape[0] != 1:
        raise ValueError(f"got a label map of shape {tuple(img.shape)}; expected (1, H, W, D).")
    return whole_numbers(img.detach().cpu().as_subclass(torch.Tensor).numpy()[0])


def _organ_names(img: torch.Tensor, given: Mapping[int, str]) -> Mapping[int, str]:
    """Names that the label map carries from a folder of masks, or else those given."""
    carried = carried_organ_names(img)
    unknown = sorted(set(carried.values()) - set(given.values())) if given else []
    if unknown:
        shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{len(unknown)} of {len(carried)} masks in the folder of organs have names that are not among the organ "
            f"names given ({shown}). The files name the organs themselves: leave the names out (organ_names null), or "
            "give names that have all of them."
        )
    return carried or given


def _merged(partition: Partition, min_voxels: int) -> Partition:
    return merge_fragments(partition, min_voxels) if min_voxels > 0 else partition
