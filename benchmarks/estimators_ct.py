# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Coalition tables of real networks, for `estimators.py`: what each block of a region is worth under each coalition."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from end_to_end_cases import bundle_parts
from estimators_methods import Sample
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray

from monai_segshap.games import RegionGame
from monai_segshap.geometry import VoxelGrid, current_grid, source_grid
from monai_segshap.inferers import CoalitionEvaluator, monai_window_plan
from monai_segshap.networks import evaluation_mode
from monai_segshap.region import Region, box_slices, select_region
from monai_segshap.shapley import BlockTable, Locality, plan_coalitions, restrict_plan
from monai_segshap.units import (
    Partition,
    fcc_partition,
    hybrid_partition,
    load_label_names,
    merge_fragments,
    region_blocks,
    typical_unit_size,
    unit_distances,
)

Floats = NDArray[np.float64]
Table = dict[str, NDArray[Any]]

CT_FILES = ("example_ct_sm.nii.gz", "example_seg.nii.gz", "unet.pt", "unet.json", "segment.py")
#: Regions of the CT; the stomach's is a false positive component.
CT_REGIONS = ("spleen", "stomach, false positive", "aorta")
CT_SPECS = (
    ("spleen", {"mode": "largest"}),
    ("stomach", {"mode": "nearest", "point_ijk": [35, 58, 2]}),
    ("aorta", {"mode": "largest"}),
)
DEMO_REGIONS = ("spleen",)
_AROUND = {"extent": "component", "margin_mm": 6.0}
_CHUNK = 128
SCORES = ("tp", "fp", "dice", "tp count", "mass", "count")


@dataclass(frozen=True)
class Subject:
    """A network, an image, the regions to explain, and units."""

    network: torch.nn.Module
    image: torch.Tensor
    inferer: SlidingWindowInferer
    n_classes: int
    grid: VoxelGrid
    regions: tuple[Region, ...]
    units: Partition


def ct_subject(folder: Path, kind: str) -> Subject:
    """The CT of the folder and its network; ``kind`` is "fcc50" or "hybrid50"."""
    spec = importlib.util.spec_from_file_location("segment_script", folder / "segment.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{folder / 'segment.py'} can not be imported.")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    settings = json.loads((folder / "unet.json").read_text(encoding="utf-8"))
    network = script.load_network(settings, folder / "unet.pt")
    image = torch.as_tensor(script.load_image(settings, folder / "example_ct_sm.nii.gz")[0]).as_subclass(torch.Tensor)
    names = settings["class_names"]
    grid = VoxelGrid(tuple(image.shape[1:]), nib.load(folder / "example_ct_sm.nii.gz").affine)
    inferer = SlidingWindowInferer(settings["roi_size"], 4, settings["overlap"], mode=settings["mode"])
    prediction, n_classes = _predict(network, image, inferer)
    regions = tuple(select_region(prediction, names.index(name), {**spec, **_AROUND}, grid) for name, spec in CT_SPECS)
    if kind == "fcc50":
        units = merge_fragments(fcc_partition(grid, 50.0), 1000)
    else:
        organs = np.asarray(nib.load(folder / "example_seg.nii.gz").dataobj).astype(int)
        units = merge_fragments(hybrid_partition(organs, grid, 50.0, load_label_names("totalsegmentator")), 200)
    return Subject(network, image, inferer, n_classes, grid, regions, units)


def demo_subject(scale_mm: float) -> Subject:
    """The demo network on its phantom, with FCC cells."""
    windows = ("roi_size", "sw_batch_size", "overlap")
    parts = bundle_parts("cpu", "network", "dataset", *windows)
    data, network = parts["data"], parts["network"]
    image = data["image"].as_subclass(torch.Tensor)
    inferer = SlidingWindowInferer(**{name: parts[name] for name in windows}, mode="gaussian")
    prediction, n_classes = _predict(network, image, inferer)
    grid, file_grid = current_grid(data["image"]), source_grid(data["image"])
    asked = ((1, {"mode": "largest"}),)
    regions = tuple(select_region(prediction, target, {**spec, **_AROUND}, grid, file_grid) for target, spec in asked)
    return Subject(network, image, inferer, n_classes, grid, regions, fcc_partition(grid, scale_mm))


def _predict(network: torch.nn.Module, image: torch.Tensor, inferer: SlidingWindowInferer) -> tuple[Any, int]:
    with evaluation_mode(network):
        logits = inferer(image[None], network)[0]
    return logits.argmax(dim=0).numpy(), len(logits)


def coalition_table(path: Path, n_coalitions: int, make_subject: Callable[[], Subject]) -> Table:
    """The table of a file, computed or continued where it has fewer rows than asked for.

    Arrays: ``rows`` bool (K, M), full, empty, then pairs of complements; ``nref``; ``size``; for each region r
    ``blocks{r}`` (K, B, 4), the first of `RegionGame.channels`, ``seen{r}`` (M,), distances ``d{r}`` (M,) and
    ``D{r}`` (B, M).
    """
    if path.exists():
        with np.load(path) as stored:
            found = dict(stored)
        if len(found["rows"]) >= n_coalitions + 2:
            return found
    else:
        found = {}
    subject = make_subject()
    evaluator = CoalitionEvaluator(
        subject.network,
        monai_window_plan(subject.inferer, subject.image),
        subject.image,
        torch.from_numpy(subject.units.labels),
        torch.zeros_like(subject.image),
        [region.box for region in subject.regions],
        n_units=subject.units.n_units,
    )
    rows = plan_coalitions(evaluator.n_units, n_coalitions, "kernelshap", 0).rows
    places = _places(subject, evaluator)
    if not found:
        found = places
    elif not _same_places(found, places) or not np.array_equal(found["rows"], rows[: len(found["rows"])]):
        raise ValueError(f"{path.name} holds other units or coalitions; delete it or name another folder.")
    _fill(path, found, rows, subject, evaluator)
    return found


def _places(subject: Subject, evaluator: CoalitionEvaluator) -> Table:
    size = typical_unit_size(subject.units, evaluator.visible)
    found: Table = {"size": np.array(size), "rows": np.empty((0, evaluator.n_units), dtype=bool)}
    incidence = evaluator.incidence
    for number, region in enumerate(subject.regions):
        blocks = region_blocks(region.mask, subject.grid, size)
        near, to_blocks = unit_distances(subject.units, region.mask, blocks)
        touching = np.isin(incidence.active, evaluator.plan.touching([region.box]))
        found[f"d{number}"], found[f"D{number}"] = near[evaluator.visible], to_blocks[:, evaluator.visible]
        found[f"seen{number}"] = incidence.live[touching].any(axis=0)
        found[f"blocks{number}"] = np.empty((0, int(blocks.max()) + 1, 4))
    return found


def _same_places(found: Table, places: Table) -> bool:
    names = [name for name in places if name[0] in "dD"]
    return all(found[n].shape == places[n].shape and np.allclose(found[n], places[n]) for n in names)


def _fill(path: Path, found: Table, rows: NDArray[np.bool_], subject: Subject, evaluator: CoalitionEvaluator) -> None:
    """Evaluate the missing rows and keep them after every chunk."""
    started, games = time.perf_counter(), _games(subject, float(found["size"]))
    found["nref"] = np.array([game.n_reference for game in games])
    for first in range(len(found["rows"]), len(rows), _CHUNK):
        chunk = rows[first : first + _CHUNK]
        values: list[list[Floats]] = [[] for _ in games]
        for _, fused in evaluator.run(evaluator.prepare(chunk, subject.n_classes)):
            for number, game in enumerate(games):
                values[number].append(game.channels(fused[number])[:, :4])
        for number in range(len(games)):
            found[f"blocks{number}"] = np.concatenate([found[f"blocks{number}"], np.array(values[number])])
        found["rows"] = rows[: first + len(chunk)]
        partial = path.with_suffix(".part.npz")
        np.savez(partial, **found)
        partial.replace(path)
        done = time.perf_counter() - started
        print(f"{path.stem}: {len(found['rows'])} of {len(rows)} rows, {done:.0f} s", flush=True)


def _games(subject: Subject, size: float) -> list[RegionGame]:
    with evaluation_mode(subject.network):
        prediction = subject.inferer(subject.image[None], subject.network)[0].argmax(dim=0)
    found = []
    for region in subject.regions:
        place = box_slices(region.box)
        blocks = torch.from_numpy(region_blocks(region.mask, subject.grid, size))
        mask = torch.from_numpy(np.ascontiguousarray(region.mask[place]))
        found.append(RegionGame(mask, prediction[place] == region.target, region.target, blocks=blocks))
    return found


def scores_of(sums: Floats, n_reference: int) -> Floats:
    """`SCORES` (n, 6) from sums over blocks (n, 4)."""
    tp, fp, hit, extra = (sums[:, c] for c in range(4))
    hit, extra = np.maximum(hit, 0.0), np.maximum(extra, 0.0)
    dice = 2.0 * hit / (hit + extra + n_reference + 1e-8)
    return np.stack([tp, fp, dice, hit / n_reference, tp - fp, (hit + extra) / n_reference], axis=1)


def region_sample(table: Table, number: int, names: tuple[str, ...] = SCORES) -> Sample:
    """What the estimators get of one region: the units that it sees, and the coalitions that are none of the two."""
    rows, seen, n_reference = table["rows"], table[f"seen{number}"], int(table["nref"][number])
    whole = plan_coalitions(rows.shape[1], len(rows) - 2, "gaussian_process", 0)
    if not np.array_equal(whole.rows, rows):
        raise ValueError("the table does not hold the coalitions of the plan.")
    plan, kept = restrict_plan(whole, seen)
    channels = table[f"blocks{number}"][kept]
    chosen = [SCORES.index(name) for name in names]
    one = 1.0 / n_reference
    linear = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [np.nan] * 4, [0, 0, one, 0], [1, -1, 0, 0], [0, 0, one, one]])

    def compose(sums: Floats) -> Floats:
        return scores_of(sums, n_reference)[:, chosen]

    return Sample(
        plan.rows,
        compose(channels.sum(axis=1)),
        plan.weights,
        Locality(table[f"d{number}"][seen], float(table["size"]), table[f"D{number}"][:, seen]),
        BlockTable(channels, linear[chosen], compose),
    )
