# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What the network of this bundle leans on, by removal, by exchange, and by gradients: does it find what was planted?

From the repository root: ``python bundles/torso_agg2exp/scripts/planted.py``; it writes ``docs/planted.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from scipy import ndimage

from monai_segshap.cohort import ImportanceTable, OutlierModel, RegionMasks, measure_importance, planted_auc
from monai_segshap.gradients import ClassOutputs, smooth_gradient, vanilla_gradient
from monai_segshap.networks import evaluation_mode, load_weights
from monai_segshap.phantoms import TWINS_CLASS_NAMES, TwinsPhantom, twins_phantom

BUNDLE = Path(__file__).resolve().parents[1]
NAMES = TWINS_CLASS_NAMES
LIVER, TWIN, OTHER = (NAMES.index(name) for name in ("liver", "kidney_liver_side", "kidney_other_side"))


class PlantedNeighbor:
    """The bundle's network, asked about phantoms.

    Args:
        checkpoint: weights; None: those of the bundle.
    """

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        self.parser = ConfigParser(ConfigParser.load_config_file(str(BUNDLE / "configs" / "evaluate.yaml")))
        self.network = self.parser.get_parsed_content("network_def")
        load_weights(self.network, checkpoint or BUNDLE / "models" / "model.pt")
        self.inferer = self.parser.get_parsed_content("inferer")

    def image(self, hu: np.ndarray) -> torch.Tensor:
        """Network input (1, H, W, D) in RAS of CT numbers on the phantom's grid."""
        low, high = self.parser["intensity_range"]
        scaled = (np.clip(hu, low, high) - low) / (high - low)
        return torch.from_numpy(np.ascontiguousarray(scaled[::-1, ::-1], dtype=np.float32))[None]

    def predict(self, hu: np.ndarray) -> np.ndarray:
        """Predicted classes (H, W, D) on the phantom's grid."""
        with torch.no_grad(), evaluation_mode(self.network):
            logits = self.inferer(self.image(hu)[None], self.network)
        return logits.argmax(1)[0].numpy()[::-1, ::-1]

    def importance(self, case: TwinsPhantom, name: str, samples: int, sigma: float) -> dict[str, Any]:
        """Mass and enrichment of each class's gradient in each predicted class; SmoothGrad for samples > 0."""
        image = self.image(case.image)
        with torch.no_grad(), evaluation_mode(self.network):
            logits = self.inferer(image[None], self.network)[0]
        with evaluation_mode(self.network):
            outputs = ClassOutputs(self.network, self.inferer, image, logits, progress=False)
            found = smooth_gradient(outputs, image, samples, sigma) if samples else vanilla_gradient(outputs, image)
        regions = RegionMasks.from_prediction(logits, NAMES)
        both = measure_importance(
            name,
            found.maps,
            NAMES,
            regions,
            variants=("mass", "enrichment"),
            absent=[NAMES[i] for i in found.absent],
        )
        return {matrix.variant: matrix for matrix in both}


def without(case: TwinsPhantom, index: int, hu: float) -> np.ndarray:
    """CT numbers with one organ, and the voxel around it that mixes with it, replaced by a density."""
    mask = ndimage.binary_dilation(case.labels == index, np.ones((3, 3, 3))) & (
        (case.labels == 0) | (case.labels == index)
    )
    return np.where(mask, np.float32(hu), case.image)


def predicted_shares(prediction: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of the voxels of each true class (row) that is predicted as each class (column)."""
    n = len(NAMES)
    table = np.bincount(labels.astype(int).ravel() * n + prediction.ravel(), minlength=n * n).reshape(n, n)
    return table / table.sum(1, keepdims=True)


def interventions(ask: PlantedNeighbor, seeds: Sequence[int]) -> dict[str, Any]:
    """Mean shares over cases: unchanged, each organ removed, and the liver on the other side."""
    found: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
        case = twins_phantom(seed)
        other = "left" if case.liver_side == "right" else "right"
        images = {"unchanged": case.image, "liver_to_other_side": twins_phantom(seed, liver_side=other).image}
        images |= {f"{NAMES[i]}_to_fat": without(case, i, -105.0) for i in range(1, len(NAMES))}
        images |= {"liver_to_air": without(case, LIVER, -1024.0)}
        for name, hu in images.items():
            found.setdefault(name, []).append(predicted_shares(ask.predict(hu), case.labels))
    means = {name: np.mean(tables, axis=0) for name, tables in found.items()}
    flips = {
        "kidney_liver_side as kidney_other_side": (TWIN, OTHER),
        "kidney_other_side as kidney_liver_side": (OTHER, TWIN),
    }
    return {
        name: {n: round(float(table[i, i]), 3) for i, n in enumerate(NAMES)}
        | {text: round(float(table[cell]), 3) for text, cell in flips.items()}
        for name, table in means.items()
    }


def importances(
    ask: PlantedNeighbor, cases: Sequence[tuple[int, bool]], samples: int, sigma: float
) -> dict[str, ImportanceTable]:
    """Tables of the cases: "mass" and "enrichment"."""
    rows = [ask.importance(twins_phantom(s, abnormal=a), f"{s}{'a' * a}", samples, sigma) for s, a in cases]
    return {variant: ImportanceTable.of([row[variant] for row in rows]) for variant in ("mass", "enrichment")}


def means_of(table: ImportanceTable) -> dict[str, dict[str, float]]:
    """Mean over cases: explained class -> region -> value."""
    values = np.nanmean(table.values, axis=0).round(4)
    return {e: {r: float(values[i, j]) for j, r in enumerate(table.regions)} for i, e in enumerate(table.explained)}


def group_auc(table: ImportanceTable, abnormal: Sequence[bool]) -> dict[str, dict[str, float]]:
    """Chance that an abnormal case has more mass than a normal one: explained class -> region -> AUC."""
    flags, result = np.array(abnormal), {}
    for i, explained in enumerate(table.explained):
        result[explained] = {}
        for j, region in enumerate(table.regions):
            high, low = table.values[flags, i, j], table.values[~flags, i, j]
            wins = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
            result[explained][region] = round(float(wins), 3)
    return result


def main() -> None:
    """Ask all, and write the answers."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--checkpoint", default=None)
    words.add_argument("--output", default=str(BUNDLE / "docs" / "planted.json"))
    words.add_argument("--normal", type=int, default=20)
    words.add_argument("--abnormal", type=int, default=10)
    words.add_argument("--reference", type=int, default=20, help="normal cases that the outlier model is fitted on")
    words.add_argument("--samples", type=int, default=0, help="of SmoothGrad; 0 leaves it out")
    words.add_argument("--sigma", type=float, default=0.03, help="of SmoothGrad, share of the range")
    options = words.parse_args()
    torch.set_num_threads(1)
    ask = PlantedNeighbor(options.checkpoint)
    normal = [(1000 + n, False) for n in range(options.normal)]
    cases = normal + [(2000 + n, True) for n in range(options.abnormal)]
    result: dict[str, Any] = {"interventions": interventions(ask, [seed for seed, _ in normal])}
    print(json.dumps(result, indent=1), flush=True)
    methods = {"vanilla_gradient": 0} | ({"smooth_gradient": options.samples} if options.samples else {})
    for method, samples in methods.items():
        tables = importances(ask, cases, samples, options.sigma)
        flags = [abnormal for _, abnormal in cases]
        usual = [name for name, flag in zip(tables["mass"].cases, flags, strict=True) if not flag]
        answers: dict[str, Any] = {v: means_of(table.select(usual)) for v, table in tables.items()}
        answers["auc_of_mass"] = group_auc(tables["mass"], flags)
        if samples == 0:
            reference = importances(ask, [(3000 + n, False) for n in range(options.reference)], 0, 0.0)["mass"]
            scores = OutlierModel.fit(reference).scores(tables["mass"])
            answers["auc_of_outlier_scores"] = planted_auc(scores, flags)["auc"].round(3).to_dict()
        print(method, json.dumps(answers, indent=1), flush=True)
        result[method] = answers
    Path(options.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
