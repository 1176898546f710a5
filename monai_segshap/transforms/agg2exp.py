# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Voxel attributions and local importances inside a MONAI `Compose` (paper 001, Agg2Exp)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform
from monai.utils import TransformBackends
from numpy.typing import NDArray

from monai_segshap.cohort import RegionMasks, join_maps, measure_importance
from monai_segshap.explainers import Agg2ExpExplainer
from monai_segshap.gradients import VoxelAttributions
from monai_segshap.heads import OutputHeads
from monai_segshap.transforms.cases import name_of_case
from monai_segshap.transforms.explain import on_grid_of

__all__ = ["LocalImportanced", "VoxelAttributionsd"]


class VoxelAttributionsd(MapTransform):
    """Attribution maps of every class with `monai_segshap.explainers.Agg2ExpExplainer`.

    Args:
        keys: the one key of the image (C, H, W, D), network space.
        network: the explained network.
        inferer: the deployed sliding-window inferer.
        method: one of `monai_segshap.explainers.ATTRIBUTION_METHODS`.
        pred_key: key of the raw logits (channels, H, W, D); missing: the network runs.
        output_key: key of the `monai_segshap.gradients.VoxelAttributions`.
        map_key: key of the maps, float32 (T, H, W, D), summed over channels, on the image's grid, for `Invertd` and
            `SaveImaged`; None: they are not added.
        allow_missing_keys: as in MONAI.
        options: of the explainer: classes, aggregate, heads, device, numerics, batch_size, checkpoint, progress,
            options.
    """

    backend = (TransformBackends.TORCH,)

    def __init__(
        self,
        keys: KeysCollection,
        network: Callable[[torch.Tensor], torch.Tensor],
        inferer: Inferer,
        method: str = "smooth_gradient",
        *,
        pred_key: str = "pred",
        output_key: str = "voxel_attributions",
        map_key: str | None = "attribution_maps",
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.explainer = Agg2ExpExplainer(network, inferer, method, **options)
        self.pred_key, self.output_key, self.map_key = pred_key, output_key, map_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the attributions to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            found = self.explainer(d[key], d.get(self.pred_key))
            d[self.output_key] = found
            if self.map_key is not None:
                d[self.map_key] = on_grid_of(found.maps.sum(dim=1).float().cpu(), d[key])
        return d


class LocalImportanced(MapTransform):
    """How much of each class's attribution lies in each region; see `monai_segshap.cohort.measure_importance`.

    Regions are the classes of the model's own prediction, and further label maps or masks of the case.

    Args:
        keys: the one key of the `VoxelAttributions`.
        class_names: one for each output channel (of "softmax" heads the background first).
        pred_key: key of the raw logits (channels, H, W, D).
        label_key: key of the ground truth: a label map (1, H, W, D), or (channels, H, W, D) masks of one for each
            channel. If the case has it, ``{class}_dice`` is added.
        extra_regions: key of a further volume (1, H, W, D) -> name of the region of its voxels above 0, for example
            {"pathology": "effusion"}, or number -> name of its labels. Absent keys make empty regions.
        joined: name -> classes that are explained, and counted as a region, together.
        variants: some of "mass", "mean", "enrichment".
        parts: some of "absolute", "positive", "negative".
        heads: "softmax" or "sigmoid".
        image_key: image that names the case where "case" does not.
        output_key: key of the list of `monai_segshap.cohort.ImportanceMatrix`, one for each part and variant.
        allow_missing_keys: as in MONAI.
    """

    backend = (TransformBackends.TORCH,)

    def __init__(
        self,
        keys: KeysCollection,
        class_names: Sequence[str],
        *,
        pred_key: str = "pred",
        label_key: str = "label",
        extra_regions: Mapping[str, str | Mapping[int, str]] | None = None,
        joined: Mapping[str, Sequence[str]] | None = None,
        variants: Sequence[str] = ("mass", "mean", "enrichment"),
        parts: Sequence[str] = ("absolute",),
        heads: str | OutputHeads = "softmax",
        image_key: str = "image",
        output_key: str = "importances",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.class_names, self.heads = [str(name) for name in class_names], OutputHeads.parse(heads)
        self.pred_key, self.label_key, self.image_key = pred_key, label_key, image_key
        self.extra_regions, self.joined = dict(extra_regions or {}), dict(joined or {})
        self.variants, self.parts, self.output_key = tuple(variants), tuple(parts), output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the matrices to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            found: VoxelAttributions = d[key]
            logits = d[self.pred_key].as_subclass(torch.Tensor)
            names = [self.class_names[c] for c in found.classes]
            maps, absent = found.maps.clone(), {self.class_names[c] for c in found.absent}
            maps[[name in absent for name in names]] = float("nan")
            joined_maps, joined_names = join_maps(maps, names, self.joined)
            gone = [n for n, one in zip(joined_names, joined_maps, strict=True) if bool(one.isnan().all())]
            d[self.output_key] = measure_importance(
                name_of_case(d, self.image_key),
                joined_maps,
                joined_names,
                self._regions(logits, d),
                variants=self.variants,
                parts=self.parts,
                absent=gone,
                dice=self._dice(logits, d),
            )
        return d

    def _regions(self, logits: torch.Tensor, data: Mapping[Hashable, Any]) -> RegionMasks:
        regions = RegionMasks.from_prediction(logits, self.class_names, self.heads).joined(self.joined)
        for key, names in self.extra_regions.items():
            volume = data.get(key)
            labels = np.zeros(regions.shape, dtype=np.int64) if volume is None else _volume(volume, regions.shape, key)
            if isinstance(names, str):
                regions = regions.with_masks({names: labels > 0})
            else:
                regions = regions.with_regions(RegionMasks.from_labels(labels, {int(n): t for n, t in names.items()}))
        return regions

    def _dice(self, logits: torch.Tensor, data: Mapping[Hashable, Any]) -> dict[str, float]:
        """Dice of each class against the label, where the case has one; NaN for a class in neither."""
        label = data.get(self.label_key)
        if label is None:
            return {}
        found = {}
        for c, name in enumerate(self.class_names):
            own = self.heads.truth(label, c, logits.shape[1:]).cpu()
            predicted = self.heads.predicted(logits, c).cpu()
            voxels = int(own.sum() + predicted.sum())
            found[name] = 2.0 * int((own & predicted).sum()) / voxels if voxels else float("nan")
        return found


def _volume(volume: torch.Tensor, shape: tuple[int, ...], key: str) -> NDArray[np.int64]:
    plain: NDArray[np.int64] = volume.as_subclass(torch.Tensor).detach().cpu().numpy().round().astype(np.int64)
    if plain.shape != (1, *shape):
        raise ValueError(f"{key!r} has shape {plain.shape}; expected (1, H, W, D) on the image's grid, {(1, *shape)}.")
    return plain[0]
