# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The questions of `perturbation_curves.py`: phantoms with the torso bundle's network, and tiny games by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from perturbation_curves_methods import Floats, Question, Rows

from monai_segshap.explainers import KernelSHAPExplainer
from monai_segshap.explainers.preparation import PreparedCase
from monai_segshap.games import RegionGame
from monai_segshap.geometry import current_grid, source_grid
from monai_segshap.networks import evaluation_mode
from monai_segshap.region import select_region
from monai_segshap.units import Partition

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "torso_kernelshap"
SCORES = ("tp", "fp", "dice", "soft_dice")
#: lymph_node
TARGET = 2


def phantom_question(seed: int, units: str, scale_mm: float | None) -> Question:
    """The largest predicted lymph node of a phantom, with the bundle's own windows, units and baseline.

    Args:
        seed: of the phantom.
        units: "organs", "fcc" or "hybrid".
        scale_mm: of lattice cells; None: there are none.
    """
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "inference.yaml")
    with tempfile.TemporaryDirectory() as folder:
        changes = {"phantom_seed": seed, "output_dir": folder, "device": "cpu", "bundle_root": str(BUNDLE)}
        changes |= {"checkpoint": str(BUNDLE / "models" / "model.pt"), "initialize": None, "units": units}
        parser.update(changes if scale_mm is None else {**changes, "unit_scale_mm": scale_mm})
        network, inferer = parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
        baseline, data = parser.get_parsed_content("baseline"), parser.get_parsed_content("dataset")[0]
        select, divide = parser.get_parsed_content("postprocessing").transforms[:2]
    image = data["image"]
    with evaluation_mode(network):
        data["pred"] = logits = inferer(image.as_subclass(torch.Tensor)[None], network)[0]
    data = divide(select(data))
    region = select_region(
        logits.argmax(dim=0).numpy(), TARGET, {"mode": "largest"}, current_grid(image), source_grid(image)
    )
    if not np.array_equal(region.mask, np.asarray(data["region"][0]) > 0):
        raise RuntimeError("the bundle's region is not the largest component; has its configuration changed?")
    explainer = KernelSHAPExplainer(network, inferer, SCORES, baseline=baseline, progress=False, batch_size="library")
    prepared = PreparedCase(
        explainer.settings, image, Partition.from_metatensor(data["units"]), [region], logits.as_subclass(torch.Tensor)
    )
    kind = units if scale_mm is None else f"{units} {scale_mm:g} mm"
    return prepared_question(f"phantom {seed}", kind, prepared)


def prepared_question(case: str, kind: str, prepared: PreparedCase) -> Question:
    """The game of a case with one region."""
    channels = RegionChannels(prepared)
    view = prepared.views[0]
    return Question(
        case,
        kind,
        channels.n_units,
        channels.game.scores,
        channels,
        channels.game.linear,
        channels.game.compose,
        view.locality,
        {"voxels": int(prepared.regions[0].mask.sum()), "windows": len(prepared.evaluator.incidence.active)},
    )


class RegionChannels:
    """What each block of a region contributes under coalitions of the visible units: bool (K, V) -> (K, B, C).

    `monai_segshap.explainers.CaseGame` is the same game without blocks; the package's default estimator uses them.
    """

    def __init__(self, prepared: PreparedCase) -> None:
        self._prepared = prepared
        self._sweep, _ = prepared.plan(None)
        self.n_units = int(prepared.views[0].visible.sum())
        self.game = self._game()

    @property
    def n_forwards(self) -> int:
        """Windows that went through the network so far, those of a calibration included."""
        return self._prepared.evaluator.n_forwards

    def __call__(self, rows: Rows) -> Floats:
        evaluator = self._prepared.evaluator
        # neighbors share windows, and logits that no later coalition needs are dropped early
        order = np.lexsort(rows.T)
        plan = evaluator.prepare(rows[order], self._prepared.n_classes)
        found = {int(order[n]): self.game.channels(logits) for n, (logits,) in evaluator.run(plan)}
        return np.stack([found[number] for number in range(len(rows))])

    def _game(self) -> RegionGame:
        prepared = self._prepared
        plan = prepared.evaluator.prepare(np.ones((1, self.n_units), dtype=bool), prepared.n_classes)
        ((_, (logits,)),) = prepared.evaluator.run(plan)
        target = prepared.regions[0].target
        (game,) = self._sweep.games([prepared.settings.heads.predicted(logits, target).cpu().numpy()])
        return game


def tiny_question(n_units: int, seed: int) -> Question:
    """Weights by hand-made draws: an additive score, and the same with products of neighboring units."""
    rng = np.random.default_rng([seed, n_units])
    weights, pairs = rng.normal(1.0, 1.0, n_units), rng.normal(size=n_units - 1)

    def outputs(rows: NDArray[np.bool_]) -> Floats:
        kept = rows.astype(np.float64)
        additive = kept @ weights
        products = (kept[:, 1:] * kept[:, :-1]) @ pairs
        return np.stack([additive, additive + products], axis=1)[:, None, :]

    return Question(
        f"game {seed}",
        "hand-made",
        n_units,
        ("additive", "interacting"),
        outputs,
        np.eye(2),
        lambda sums: sums,
        facts={"weights": weights, "pairs": pairs},
    )
