# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""From an image to an explanation inside a MONAI `Compose`: predict, choose regions, explain, save."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import LoadImage, MapTransform
from monai.utils import TransformBackends
from numpy.typing import NDArray

from monai_segshap.explainers import Explanation, KernelSHAPExplainer, Ranks
from monai_segshap.geometry import current_grid, source_grid
from monai_segshap.heads import OutputHeads
from monai_segshap.inferers import crop_box, window_plan_of
from monai_segshap.networks import evaluation_mode
from monai_segshap.region import Box, Region, RegionSpec, box_slices, select_region
from monai_segshap.transforms.cases import name_of_case
from monai_segshap.units import Partition
from monai_segshap.writers import explanation_folders, format_report, write_explanation

__all__ = ["KernelSHAPd", "PredictLogitsd", "SaveExplanationd", "SelectRegiond"]

_REGION_META = "segshap_regions"


class PredictLogitsd(MapTransform):
    """Run the network over the whole image and keep its raw logits.

    Args:
        keys: the one key of the image (C, H, W, D), network space.
        network: maps (B, C, *roi) to (B, classes, *roi).
        inferer: for example a `SlidingWindowInferer`.
        output_key: key of the logits (classes, H, W, D).
        device: where the network runs; None: where the image is.
        allow_missing_keys: as in MONAI.
    """

    backend = (TransformBackends.TORCH,)

    def __init__(
        self,
        keys: KeysCollection,
        network: torch.nn.Module,
        inferer: Inferer,
        output_key: str = "pred",
        device: torch.device | str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.network, self.inferer, self.output_key, self.device = network, inferer, output_key, device

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the logits to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            batch = image.as_subclass(torch.Tensor)[None].to(self.device or image.device)
            with evaluation_mode(self.network):
                logits = self.inferer(batch, self.network)[0]
            d[self.output_key] = on_grid_of(logits, image)
        return d


class SelectRegiond(MapTransform):
    """Choose what is explained, from the prediction.

    Args:
        keys: the one key of the prediction: logits (classes, H, W, D) before any post-processing.
        target_class: index or name of the explained class, or a list of them.
        region: see `monai_segshap.region.RegionSpec`, or a list; one of target_class and region may be a single value
            for several of the other.
        class_names: names of the classes, background first.
        inferer: if given, the receptive field of the regions is added: the voxels that its windows see there.
        image_key: image whose file grid voxel indices in ``region`` refer to.
        output_key: key of the uint8 masks (regions, H, W, D).
        field_key: key of the uint8 receptive field (1, H, W, D).
        grid: "deployed" or "crop"; with "crop" the receptive field is the cropped box of paper 000.
        crop_dilation: "half" or "full", see `monai_segshap.inferers.crop_box`.
        heads: "softmax" or "sigmoid", see `monai_segshap.heads.OutputHeads`.
        allow_missing_keys: as in MONAI.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(
        self,
        keys: KeysCollection,
        target_class: int | str | Sequence[int | str],
        region: Any = "largest",
        class_names: Sequence[str] | None = None,
        inferer: Inferer | None = None,
        image_key: str = "image",
        output_key: str = "region",
        field_key: str = "receptive_field",
        grid: str = "deployed",
        crop_dilation: str = "half",
        heads: str | OutputHeads = "softmax",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.heads = OutputHeads.parse(heads)
        targets: list[int | str] = [target_class] if isinstance(target_class, (int, str)) else list(target_class)
        specs = [RegionSpec.parse(r) for r in (region if isinstance(region, (list, tuple)) else [region])]
        count = max(len(targets), len(specs))
        if len(targets) not in (1, count) or len(specs) not in (1, count):
            raise ValueError(
                f"got {len(targets)} target classes and {len(specs)} regions; expected equal numbers, or one."
            )
        self.targets = targets * count if len(targets) == 1 else targets
        self.specs = specs * count if len(specs) == 1 else specs
        self.class_names = list(class_names) if class_names is not None else None
        self.inferer, self.image_key, self.output_key, self.field_key = inferer, image_key, output_key, field_key
        self.grid, self.crop_dilation = grid, crop_dilation

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the region masks (and the receptive field) to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            logits, image = d[key], d[self.image_key]
            if logits.ndim != 4 or logits.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"{key!r} has shape {tuple(logits.shape)}; expected logits (classes, H, W, D) of one case on the "
                    f"grid of the image, {tuple(image.shape)} (in an evaluator: decollate=True)."
                )
            grid = current_grid(image)
            self.heads.check(logits.shape[0], repr(key))
            regions = [
                self._region(logits.as_subclass(torch.Tensor), target, spec, image)
                for target, spec in zip(self.targets, self.specs, strict=True)
            ]
            d[self.output_key] = _pack(regions, torch.as_tensor(grid.affine))
            if self.inferer is not None:
                field = self._field(image, [r.box for r in regions])
                d[self.field_key] = MetaTensor(
                    torch.from_numpy(field[None].astype(np.uint8)), affine=torch.as_tensor(grid.affine)
                )
        return d

    def _field(self, image: torch.Tensor, boxes: Sequence[Box]) -> NDArray[np.bool_]:
        plan = window_plan_of(self.inferer, image.as_subclass(torch.Tensor))
        if self.grid == "deployed":
            return plan.receptive_field(boxes)
        box = crop_box(boxes, plan.roi_size, plan.image_shape, self.crop_dilation)
        field = np.zeros(plan.image_shape, dtype=bool)
        field[box_slices(box)] = True
        return field

    def _region(self, logits: torch.Tensor, target: int | str, spec: RegionSpec, image: torch.Tensor) -> Region:
        index = _class_index(target, self.class_names, int(logits.shape[0]))
        prediction = self.heads.seen_from(logits, index).cpu().numpy()
        name = self.class_names[index] if self.class_names and index < len(self.class_names) else None
        mask = None
        if spec.mask is not None:
            loaded = LoadImage(image_only=True, ensure_channel_first=True)(spec.mask)
            mask = (loaded.numpy()[0], current_grid(loaded))
        return select_region(prediction, index, spec, current_grid(image), source_grid(image), mask, name)


class KernelSHAPd(MapTransform):
    """Explain the regions of a case with `monai_segshap.explainers.KernelSHAPExplainer`.

    Args:
        keys: the one key of the image, network space.
        network: the explained network.
        inferer: the deployed sliding-window inferer.
        units_key: key of the units.
        region_key: key of what `SelectRegiond` wrote.
        pred_key: key of the raw logits.
        class_names: names of the classes.
        display_key: image for pictures, for example the CT in HU; default the image.
        case: name of the case; default what stands under ``case_key``, or else the name of the image file.
        case_key: see ``case``.
        perturbed_key: key of a `monai_segshap.inferers.PerturbedImages`, if there is one.
        exported_key: key of the label map that the deployed model writes, int on the file's grid, if there is one.
        output_key: key of the list of explanations, one for each region.
        map_prefix: maps are added as "PREFIX_SCORE", float32 (regions, H, W, D).
        allow_missing_keys: as in MONAI.
        options: of the explainer: scores, budget, method, seed, baseline, signal, device, grid,
            crop_dilation, max_bytes, progress, ranks, store_dir, batch_size, numerics, tolerance,
            prior, second_baseline, heads.
    """

    backend = (TransformBackends.TORCH,)

    def __init__(
        self,
        keys: KeysCollection,
        network: Callable[[torch.Tensor], torch.Tensor],
        inferer: Inferer,
        *,
        units_key: str = "units",
        region_key: str = "region",
        pred_key: str = "pred",
        class_names: Sequence[str] | None = None,
        display_key: str | None = None,
        case: str | None = None,
        case_key: str = "case",
        exported_key: str = "exported",
        perturbed_key: str = "perturbed",
        output_key: str = "explanations",
        map_prefix: str = "attribution",
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.explainer = KernelSHAPExplainer(network, inferer, **options)
        self.units_key, self.region_key, self.pred_key = units_key, region_key, pred_key
        self.class_names, self.display_key = class_names, display_key
        self.case, self.case_key = case, case_key
        self.exported_key, self.perturbed_key = exported_key, perturbed_key
        self.output_key, self.map_prefix = output_key, map_prefix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add explanations and attribution maps to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            found = self.explainer(
                image,
                Partition.from_metatensor(d[self.units_key]),
                _unpack(d[self.region_key]),
                d[self.pred_key],
                self.class_names,
                case=self.case or name_of_case(d, key, self.case_key),
                display=d[self.display_key] if self.display_key else None,
                exported=d.get(self.exported_key),
                perturbed=d.get(self.perturbed_key),
            )
            d[self.output_key] = found
            for score in self.explainer.scores:
                maps = torch.from_numpy(np.stack([e.attribution_map(score) for e in found]))
                d[f"{self.map_prefix}_{score}"] = on_grid_of(maps, image)
        return d


class SaveExplanationd(MapTransform):
    """Write explanations to folders and print their tables.

    One explanation goes to ``output_dir/CASE``; several of one case go to ``output_dir/CASE/NUMBER_CLASS``.

    Args:
        keys: keys of lists of explanations.
        output_dir: see `monai_segshap.writers.write_explanation` for the files.
        overview: whether to draw pictures.
        print_table: whether to print the most important units.
        ranks: "alone": every process writes; "share": all have the same explanations, and one writes them.
        files_key: key under which the written files are added: for each explanation a dictionary of name and path.
        allow_missing_keys: as in MONAI.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        overview: bool = True,
        print_table: bool = True,
        ranks: str = "alone",
        files_key: str = "explanation_files",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir, self.overview, self.print_table = Path(output_dir), overview, print_table
        self.ranks, self.files_key = Ranks(ranks), files_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write each explanation, and add the paths to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            found: list[Explanation] = d[key]
            d[self.files_key] = []
            if self.ranks.own > 0:
                continue
            folders = explanation_folders(found, self.output_dir / found[0].case) if found else []
            for explanation, folder in zip(found, folders, strict=True):
                d[self.files_key].append(write_explanation(explanation, folder, self.overview))
                if self.print_table:
                    print(format_report(explanation, folder), flush=True)
        return d


def _class_index(target: int | str, names: Sequence[str] | None, n_classes: int) -> int:
    if isinstance(target, str) and not target.lstrip("-").isdigit():
        known = list(names or [])
        if target not in known[:n_classes]:
            raise ValueError(
                f"target class {target!r} is not among the class names {known[:n_classes]} of the {n_classes} classes; "
                "give its number, or class_names that fit the network."
            )
        return known.index(target)
    index = int(target)
    if not 0 <= index < n_classes:
        raise ValueError(f"target class {index} is none of the network's {n_classes} classes (0 to {n_classes - 1}).")
    return index


def on_grid_of(volume: torch.Tensor, image: torch.Tensor) -> MetaTensor:
    """A volume on an image's grid, with its file information, so that `Invertd` and `SaveImaged` find the way back."""
    if isinstance(image, MetaTensor):
        return MetaTensor(volume, meta=dict(image.meta), applied_operations=list(image.applied_operations))
    return MetaTensor(volume, affine=torch.as_tensor(current_grid(image).affine))


def _pack(regions: Sequence[Region], affine: torch.Tensor) -> MetaTensor:
    masks = torch.from_numpy(np.stack([r.mask for r in regions]).astype(np.uint8))
    fields = ("mode", "target", "target_voxels", "component_voxels")
    record = [{name: getattr(r, name) for name in fields} for r in regions]
    return MetaTensor(masks, affine=affine, meta={_REGION_META: json.dumps(record)})


def _unpack(volume: torch.Tensor) -> list[Region]:
    record = volume.meta.get(_REGION_META) if isinstance(volume, MetaTensor) else None
    if record is None:
        raise ValueError("the region carries no target class; make it with SelectRegiond.")
    masks = volume.cpu().as_subclass(torch.Tensor).numpy() > 0
    return [Region(mask, **fields) for mask, fields in zip(masks, json.loads(record), strict=True)]
