# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The cases of `end_to_end.py`: the demo nodule with organs and cells, and a phantom for patches of usual size."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from end_to_end_methods import Case, make_sweep
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray

from monai_segshap.geometry import current_grid, source_grid
from monai_segshap.inferers import crop_box, monai_window_plan
from monai_segshap.networks import evaluation_mode
from monai_segshap.phantoms import torso_phantom
from monai_segshap.region import bounding_box, box_slices, select_region
from monai_segshap.shapley import plan_coalitions
from monai_segshap.units import Partition, fcc_partition, organ_partition

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "torso_kernelshap"
#: The explained nodule: seed of the phantom, voxel in its file, class, margin of the region.
SEED, POINT, TARGET, MARGIN_MM = 1010, (103, 67, 16), 2, 3.0


def bundle_parts(device: str, *names: str) -> dict[str, Any]:
    """Entries of the bundle's own configuration, for the phantom of this benchmark."""
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "inference.yaml")
    with tempfile.TemporaryDirectory() as folder:
        changes = {"phantom_seed": SEED, "output_dir": folder, "device": device, "bundle_root": str(BUNDLE)}
        parser.update({**changes, "checkpoint": str(BUNDLE / "models" / "model.pt"), "initialize": None})
        found = {name: parser.get_parsed_content(name) for name in names}
        if "dataset" in found:
            found["data"] = found["dataset"][0]
    return found


def _parts(device: str) -> dict[str, Any]:
    windows = ("roi_size", "sw_batch_size", "overlap")
    found = bundle_parts(device, "network", "baseline", "intensity_transform", "dataset", *windows)
    found["windows"] = {**{name: found[name] for name in windows}, "mode": "gaussian"}
    found["fill"] = float(found["baseline"].value)
    return found


def demo_cases(device: str, coalitions: int) -> list[Case]:
    """The nodule with organs and FCC 110 mm on the deployed grid, and with organs on the half-window crop.

    The last two are organs and FCC 110 mm with three overlapping regions.
    """
    parts = _parts(device)
    data, network = parts["data"], parts["network"]
    image = data["image"].as_subclass(torch.Tensor)
    with evaluation_mode(network):
        logits = SlidingWindowInferer(**parts["windows"])(image[None].to(device), network)[0].cpu()
    grid, spec = current_grid(data["image"]), {"mode": "nearest", "point_ijk": POINT, "margin_mm": MARGIN_MM}
    region = select_region(logits.argmax(dim=0).numpy(), TARGET, spec, grid, source_grid(data["image"]))
    plan = monai_window_plan(SlidingWindowInferer(**parts["windows"]), image)
    organs = organ_partition(data["organs"][0].numpy().astype(np.int64), grid)
    cells = fcc_partition(grid, 110.0, within=plan.receptive_field([region.box]))
    rest = (parts, len(logits), coalitions)
    crop = box_slices(crop_box([region.box], plan.roi_size, grid.shape, "half"))
    whole = (slice(None),) * 3
    three = three_regions(region.mask)
    wider = fcc_partition(grid, 110.0, within=plan.receptive_field([bounding_box(mask) for mask in three]))
    return [
        _case("organs", image, organs, whole, [region.mask], *rest),
        _case("FCC 110 mm", image, cells, whole, [region.mask], *rest),
        _case("organs, half-window crop", image, organs, crop, [region.mask], *rest),
        _case("organs", image, organs, whole, three, *rest),
        _case("FCC 110 mm", image, wider, whole, three, *rest),
    ]


def _case(
    name: str,
    image: torch.Tensor,
    units: Partition,
    crop: tuple[slice, ...],
    masks: Sequence[NDArray[np.bool_]],
    parts: dict[str, Any],
    n_classes: int,
    coalitions: int,
) -> Case:
    """Keep the units that the regions' windows see, and the first rows of the plan for them."""
    inside = np.ascontiguousarray(image.numpy()[(slice(None), *crop)])
    labels = units.labels[crop].astype(np.int64)
    regions = tuple(np.ascontiguousarray(mask[crop]) for mask in masks)
    every = np.ones((1, units.n_units), dtype=bool)
    case = Case(name, inside, labels, parts["fill"], regions, TARGET, n_classes, every, parts["windows"])
    visible = make_sweep(torch.nn.Identity(), case).evaluator.visible
    number = np.concatenate([[0], np.cumsum(visible) * visible])
    rows = first_rows(int(visible.sum()), coalitions)
    return replace(case, labels=number[labels].astype(np.int64), rows=rows)


def first_rows(n_units: int, coalitions: int) -> NDArray[np.bool_]:
    """The first rows of the plan that an explanation would use: full, empty, then pairs of complements."""
    return plan_coalitions(n_units, max(coalitions, 3 * n_units), "kernelshap").rows[:coalitions]


def slow_case(device: str, quick: bool) -> Case:
    """A phantom large enough for one patch of usual size (192 x 192 x 48), the region around the spleen."""
    shape, roi = ((96, 96, 24), (64, 64, 16)) if quick else ((256, 192, 64), (192, 192, 48))
    parts = _parts(device)
    phantom = torso_phantom(SEED, shape, (1.0, 1.0, 3.0))
    image = torch.as_tensor(parts["intensity_transform"](torch.from_numpy(phantom.image)[None])).as_subclass(
        torch.Tensor
    )
    found = np.argwhere(phantom.targets == 1)
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(found.min(axis=0), found.max(axis=0), strict=True))] = True
    parts["windows"] = {**parts["windows"], "roi_size": roi, "sw_batch_size": 2}
    grid = replace(current_grid(parts["data"]["image"]), shape=shape, affine=phantom.affine)
    units = organ_partition(phantom.organs.astype(np.int64), grid)
    case = _case("one second", image, units, (slice(None),) * 3, [mask], parts, 3, 4 if quick else 8)
    return replace(case, target=1)


def three_regions(mask: NDArray[np.bool_], margin: int = 7) -> list[NDArray[np.bool_]]:
    """A box region, the same wider in the plane, and its box moved by half its size: all overlap."""
    low, high = bounding_box(mask)
    wide, moved = np.zeros_like(mask), np.zeros_like(mask)
    around = [slice(max(a - margin, 0), b + margin + 1) for a, b in zip(low[:2], high[:2], strict=True)]
    wide[(*around, slice(low[2], high[2] + 1))] = True
    moved[tuple(slice(a + (b - a) // 2, b + (b - a) // 2 + 1) for a, b in zip(low, high, strict=True))] = True
    return [mask, wide, moved]


def first_region(case: Case) -> Case:
    """The same coalitions for the first region alone; `make_sweep` leaves out the units that it does not see."""
    return replace(case, regions=case.regions[:1], predictions=case.predictions[:1])
