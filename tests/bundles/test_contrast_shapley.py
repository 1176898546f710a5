# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The contrast bundle: its files, its five networks, their training, and that they rest on the planted contrasts."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contrast_oracle as oracle
import numpy as np
import pytest
import torch
from bundle_checks import BundleUnderTest
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export
from monai.inferers import SlidingWindowInferer

from monai_segshap.metrics import ReferenceRanking
from monai_segshap.phantoms import CONTRASTS, VISIBILITY, brain_phantom, planted_order
from monai_segshap.shapley import exact_shapley

FOLDS = range(5)
EVALUATED = range(5000, 5020)
COLUMNS = ("WT", "TC", "ET", "ED", "NCR")
FILES = ("LICENSE", "configs/metadata.json", "configs/train.yaml", "configs/evaluate.yaml", "docs/README.md")


@dataclass(frozen=True)
class FoldUnderTest(BundleUnderTest):
    """One network of the bundle; its main job here is the evaluation."""

    name: str = "contrast_shapley"
    fold: int = 0

    @property
    def weights(self) -> Path:
        return self.folder / "models" / f"fold_{self.fold}.pt"

    @property
    def config(self) -> str:
        return str(self.folder / "configs" / "evaluate.yaml")


CONTRAST = FoldUnderTest()
WEIGHTS = [FoldUnderTest(fold=fold).weights for fold in FOLDS]
README = CONTRAST.folder / "docs" / "README.md"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads((CONTRAST.folder / "docs" / "evaluation.json").read_text(encoding="utf-8"))


def table_rows(first: str) -> list[list[str]]:
    """Cells of the rows of the documentation, up to the explanations, whose first cell begins with a pattern."""
    text = README.read_text(encoding="utf-8").split("## Which contrast")[0]
    rows = re.findall(rf"^\| ({first}[^|]*) \|(.*)\|$", text, flags=re.M)
    return [[name, *(cell.strip() for cell in rest.split("|"))] for name, rest in rows]


@pytest.mark.parametrize("fold", FOLDS)
def test_required_files_exist_and_weights_are_plain(fold):
    FoldUnderTest(fold=fold).check_files(FILES, largest_bytes=600_000)
    state = torch.load(WEIGHTS[fold], weights_only=True)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())
    count = sum(value.numel() for value in state.values())
    assert f"| {count:,} (float32" in README.read_text(encoding="utf-8")


def test_the_folds_are_five_networks():
    first = [next(iter(torch.load(path, weights_only=True).values())) for path in WEIGHTS]
    assert len({value.numpy().tobytes() for value in first}) == 5


def test_metadata_is_valid_and_names_the_channels_in_order():
    CONTRAST.check_metadata(("TC", "WT", "ET"))
    found = json.loads(Path(CONTRAST.meta).read_text(encoding="utf-8"))["network_data_format"]
    assert tuple(found["inputs"]["image"]["channel_def"].values()) == CONTRASTS


def test_network_input_and_output_are_as_the_metadata_says():
    CONTRAST.check_network(inputs=4, outputs=3)


def test_network_exports_to_torchscript(tmp_path):
    file = tmp_path / "model.ts"
    parts = {"ckpt_file": str(WEIGHTS[1]), "meta_file": CONTRAST.meta, "config_file": CONTRAST.config}
    ckpt_export(net_id="network_def", filepath=str(file), **parts)
    x = torch.randn(2, 4, 40, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(str(file))(x), oracle.fold_network(WEIGHTS[1])(x))


def test_training_and_evaluation_have_one_network_and_one_sliding_window():
    train, evaluate = (
        ConfigParser.load_config_file(str(CONTRAST.folder / "configs" / f"{name}.yaml"))
        for name in ("train", "evaluate")
    )
    for key in ("network_def", "roi_size", "overlap", "folds"):
        wanted = list(range(train[key])) if key == "folds" else train[key]
        assert evaluate[key] == wanted, key
    assert {**train["validate"]["inferer"]} == evaluate["inferer"]
    network = ConfigParser({"network_def": train["network_def"]}).get_parsed_content("network_def")
    network.load_state_dict(torch.load(WEIGHTS[0], weights_only=True))
    x = torch.randn(1, 4, *train["roi_size"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), oracle.fold_network(WEIGHTS[0])(x))


def test_folds_split_the_cases_and_none_has_seen_the_evaluated_ones():
    config = ConfigParser.load_config_file(str(CONTRAST.folder / "configs" / "train.yaml"))
    trained, watched = [], []
    for fold in FOLDS:
        parser = ConfigParser({key: config[key] for key in ("folds", "cases", "train_seeds", "val_seeds")})
        parser["fold"] = fold
        trained.append(set(parser.get_parsed_content("train_seeds")))
        watched.append(set(parser.get_parsed_content("val_seeds")))
        assert not trained[-1] & watched[-1]
        assert len(trained[-1]) == 48
    assert set.union(*watched) == set(range(60))
    assert sum(map(len, watched)) == 60
    evaluate = ConfigParser.load_config_file(CONTRAST.config)
    evaluated = ConfigParser({"seeds": evaluate["seeds"]}).get_parsed_content("seeds")
    assert evaluated == EVALUATED
    looked_at = set(range(1000, 1020))  # while the phantom was tuned
    assert not set(evaluated) & (set.union(*trained) | looked_at)


def test_a_short_training_writes_plain_weights(tmp_path):
    """One epoch of two cases: the file is what `evaluate.yaml` reads, and the same seed gives the same weights."""
    config = str(CONTRAST.folder / "configs" / "train.yaml")
    short = {"epochs": 1, "val_interval": 1, "train_seeds": [60, 61], "val_seeds": [62], "device": "cpu", "fold": 3}
    found = []
    for name in ("first", "second"):
        file = tmp_path / name / "fold.pt"
        job = ConfigWorkflow(
            config, CONTRAST.meta, logging_file=False, workflow_type="train", checkpoint=str(file), **short
        )
        job.initialize()
        job.run()
        job.finalize()
        assert [path.name for path in file.parent.iterdir()] == ["fold.pt"]
        assert job.parser.get_parsed_content("train::trainer").state.iteration == 1
        assert set(job.parser.get_parsed_content("validate::evaluator").state.metrics) == {"val_dice"}
        found.append(torch.load(file, weights_only=True))
    shipped = torch.load(WEIGHTS[3], weights_only=True)
    assert {key: value.shape for key, value in found[0].items()} == {key: v.shape for key, v in shipped.items()}
    for key in shipped:
        torch.testing.assert_close(found[0][key], found[1][key])


# The lowest mean of a fold in docs/evaluation.json, less 0.03.
@pytest.mark.parametrize(
    ("region", "least"), [("WT", 0.85), ("TC", 0.815), ("ET", 0.745), ("ED", 0.795), ("NCR", 0.605)]
)
def test_recorded_dice_is_good_enough_to_be_explained(region, least, recorded):
    assert sorted(recorded["folds"]) == [str(fold) for fold in FOLDS]
    assert [(row["fold"], row["case"]) for row in recorded["cases"]] == [(f, case) for f in FOLDS for case in EVALUATED]
    for fold, found in recorded["folds"].items():
        rows = [row[region] for row in recorded["cases"] if row["fold"] == int(fold) and row[region] is not None]
        assert found[region]["cases"] == len(rows) >= 13
        assert found[region]["mean"] == pytest.approx(np.mean(rows), abs=6e-5)
        assert found[region]["min"] == min(rows)
        assert found[region]["mean"] > least


def test_the_docs_print_the_recorded_dice(recorded):
    folds = table_rows("[0-4]$|[0-4]")
    assert [row[0] for row in folds] == sorted(recorded["folds"])
    for name, *cells in folds:
        assert cells == [f"{recorded['folds'][name][region]['mean']:.3f}" for region in COLUMNS]
    ((_, *mean),) = table_rows("mean of the folds")
    assert mean == [f"{np.mean([v[r]['mean'] for v in recorded['folds'].values()]):.3f}" for r in COLUMNS]
    ((_, *lowest),) = table_rows("lowest case of any fold")
    assert lowest == [f"{min(v[r]['min'] for v in recorded['folds'].values()):.2f}" for r in COLUMNS]
    ((_, *cases),) = table_rows("cases with it")
    assert cases == [str(recorded["folds"]["0"][region]["cases"]) for region in COLUMNS]


def test_the_docs_print_the_planted_steps():
    for region, steps in VISIBILITY.items():
        ((_, *cells, order),) = table_rows(region)
        assert [float(cell) for cell in cells] == [steps[name] for name in CONTRASTS]
        assert tuple(order.split(", ")) == planted_order(region)


def test_the_evaluation_gives_the_recorded_dice(tmp_path, recorded):
    """`evaluate.yaml` itself, two folds and two cases, of which one has edema alone."""
    CONTRAST.run(tmp_path / "out", folds=[1, 3], seeds=[5001, 5002])
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    known = {(row["fold"], row["case"]): row for row in recorded["cases"]}
    assert [(row["fold"], row["case"]) for row in written["cases"]] == [(1, 5001), (1, 5002), (3, 5001), (3, 5002)]
    for row in written["cases"]:
        for region in COLUMNS:
            expected = known[row["fold"], row["case"]][region]
            assert row[region] == (None if expected is None else pytest.approx(expected, abs=0.01))
    assert {region for region in COLUMNS if written["cases"][0][region] is None} == {"TC", "ET", "NCR"}
    assert written["folds"]["1"]["NCR"] == {"mean": written["cases"][1]["NCR"], "min": written["cases"][1]["NCR"]} | {
        "cases": 1
    }


@pytest.mark.parametrize("fold", [0, 2, 4])
def test_shipped_weights_reach_the_recorded_dice_without_the_bundle(fold, recorded):
    """Network, normalization, orientation and sub-regions written down again."""
    case = next(row for row in recorded["cases"] if row["fold"] == fold)
    phantom = brain_phantom(case["case"])
    inferer = SlidingWindowInferer((40, 40, 40), 4, 0.5, mode="gaussian")
    with torch.no_grad():
        logits = inferer(oracle.network_input(phantom.image)[None], oracle.fold_network(WEIGHTS[fold]))[0]
    predicted, truth = oracle.predicted_masks(logits), oracle.truth_masks(phantom.targets)
    for name in oracle.REGIONS:
        if truth[name].any():
            assert oracle.dice(predicted[name], truth[name]) == pytest.approx(case[name], abs=0.01)
        else:
            assert case[name] is None


def test_networks_rest_on_the_planted_contrast():
    """One unseen case with all sub-regions: the most visible contrast has the largest value where it must."""
    phantom = brain_phantom(5002)
    assert phantom.tumor.sub_regions == ("NCR", "ED", "ET")
    table = oracle.coalition_dice(oracle.fold_network(WEIGHTS[0]), phantom.image, phantom.targets)
    values = oracle.contrast_shapley(table)
    keep_all, keep_none = (True,) * 4, (False,) * 4
    for name, found in values.items():
        assert sum(found) == pytest.approx(table[keep_all][name] - table[keep_none][name], abs=1e-12)
        rows = np.array([table[tuple(bool(mask >> i & 1) for i in range(4))][name] for mask in range(16)])
        np.testing.assert_allclose(found, exact_shapley(rows), atol=1e-12)
    for name in ("ED", "WT", "ET"):
        assert CONTRASTS[int(np.argmax(values[name]))] == planted_order(name)[0], name


def test_dice_of_an_absent_sub_region_is_undefined():
    nothing = np.zeros((2, 2, 2), bool)
    assert math.isnan(oracle.dice(nothing, nothing))
    assert oracle.dice(~nothing, nothing) == 0.0


def test_reference_ranking_is_the_planted_one():
    found = ReferenceRanking.read(CONTRAST.folder / "configs" / "reference_ranking.yaml")
    assert "VISIBILITY" in found.source
    for region in ("NCR", "ED", "ET", "TC", "WT"):
        order = np.array(CONTRASTS)[np.argsort(found.ranks(region, CONTRASTS))]
        assert tuple(order) == planted_order(region)
