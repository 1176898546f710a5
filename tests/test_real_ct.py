# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The main job on a real CT with a trained network: files, exactness, and the prediction of the plain script."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from brute_force import shapley_over_all_orders
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_segshap.explainers import KernelSHAPExplainer
from monai_segshap.geometry import current_grid
from monai_segshap.inferers import CachingSlidingWindowInferer
from monai_segshap.region import select_region
from monai_segshap.transforms import OrganUnits
from monai_segshap.units import Partition

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SEGSHAP_CT", ROOT.parent / "shared" / "ct"))
FILES = ("example_ct_sm.nii.gz", "example_seg.nii.gz", "unet.pt", "unet.json", "segment.py")
CONFIG = ROOT / "bundles" / "torso_kernelshap" / "configs"
FALSE_POSITIVE = {"mode": "nearest", "point_ijk": [35, 58, 2], "margin_mm": 5.0}

pytestmark = [
    pytest.mark.real_ct,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real CT at {DATA}; name its folder in SEGSHAP_CT"),
]


@pytest.fixture(scope="module")
def script():
    missing = [name for name in FILES if not (DATA / name).is_file()]
    assert missing == [], f"{DATA} is there, but incomplete"
    spec = importlib.util.spec_from_file_location("segment_script", DATA / "segment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def settings(script):
    return json.loads((DATA / "unet.json").read_text())


@pytest.fixture(scope="module")
def network(script, settings):
    return script.load_network(settings, DATA / "unet.pt")


@pytest.fixture(scope="module")
def script_logits(script, settings, network):
    image = script.load_image(settings, DATA / "example_ct_sm.nii.gz")
    inferer = SlidingWindowInferer(settings["roi_size"], 4, settings["overlap"], mode=settings["mode"])
    with torch.no_grad():
        return image, inferer(image, network)


def explain(tmp_path, settings, **override):
    """The bundle, with the overrides that a user would type."""
    files = {"image": str(DATA / "example_ct_sm.nii.gz"), "organs": str(DATA / "example_seg.nii.gz")}
    network = {"network_def": settings["network_def"], "checkpoint": str(DATA / "unet.pt")}
    window = {"roi_size": settings["roi_size"], "overlap": settings["overlap"]}
    names = {"class_names": settings["class_names"], "organ_names": "totalsegmentator"}
    job = ConfigWorkflow(
        str(CONFIG / "inference.yaml"),
        str(CONFIG / "metadata.json"),
        logging_file=False,
        workflow_type="inference",
        output_dir=str(tmp_path),
        device="cpu",
        **{**files, **network, **window, **names, **override},
    )
    job.initialize()
    job.run()
    job.finalize()
    return tmp_path / "example_ct_sm"


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("units", "budget"), [("organs", 120), ("fcc", 350), ("hybrid", 450)])
def test_spleen_and_a_false_positive_region(units, budget, tmp_path, settings, script_logits):
    out = explain(
        tmp_path,
        settings,
        units=units,
        unit_scale_mm=40.0,
        budget=budget,
        target_class=["spleen", "stomach"],
        region=["largest", FALSE_POSITIVE],
        scores=["tp", "fp", "dice", "soft_dice"],
    )
    source = nib.load(DATA / "example_ct_sm.nii.gz")
    expected = script_logits[1].argmax(1)[0].numpy()
    for folder, target in ((out / "1_spleen", 1), (out / "2_stomach", 4)):
        record = json.loads((folder / "explanation.json").read_text())
        assert record["target_class"] == {"index": target, "name": settings["class_names"][target]}
        assert record["units"]["kind"] == units
        assert record["units"]["count"] == record["units"]["visible"] + record["units"]["dummies"]
        assert record["baseline"]["hu"] == -1024
        assert record["baseline"]["network_value"] == 0.0
        assert record["forwards"]["run"] == record["forwards"]["planned"] < record["forwards"]["published_cache"]
        _check_values(record, pd.read_csv(folder / "attributions.csv"))
        assert np.array_equal(np.asarray(nib.load(folder / "prediction.nii.gz").dataobj), expected)
        for path in folder.glob("*.nii.gz"):
            written = nib.load(path)
            assert written.shape == source.shape, path.name
            assert np.array_equal(written.affine, source.affine), path.name
        assert (folder / "overview.png").stat().st_size > 50_000
    inside = np.asarray(nib.load(out / "2_stomach" / "region.nii.gz").dataobj) > 0
    assert (expected[inside] == 4).sum() >= 403


def _check_values(record, table):
    for score, found in record["scores"].items():
        span = max(abs(found["full"] - found["empty"]), table[score].abs().max())
        assert abs(found["efficiency_gap"]) < 1e-6 * span
        assert table[score].sum() == pytest.approx(found["full"] - found["empty"], abs=1e-6 * span)
        assert (table.loc[~table["visible"], score] == 0).all()
    np.testing.assert_allclose(table["tp"] + table["fp"], table["soft_dice"], atol=1e-9)


def test_spleen_rests_mostly_on_the_spleen(tmp_path, settings):
    out = explain(tmp_path, settings, units="predicted", target_class="spleen", scores=["dice"], budget=30)
    table = pd.read_csv(out / "attributions.csv").sort_values("dice", ascending=False)
    assert table["name"].iloc[0] == "spleen"
    assert table["dice"].iloc[0] > 0.5


@pytest.mark.slow
def test_values_equal_brute_force_through_the_plain_inferer(settings, network, script_logits):
    """Five organs: all 32 coalitions over the whole volume, no reuse, no pruning, scores and Shapley values by hand."""
    image, logits = script_logits
    source = nib.load(DATA / "example_seg.nii.gz")
    affine = torch.as_tensor(source.affine)
    organs = MetaTensor(torch.from_numpy(np.asarray(source.dataobj).astype(np.int32))[None], affine=affine)
    names = ["small_bowel", "colon", "stomach", "kidney_left", "spleen"]
    partition = Partition.from_metatensor(OrganUnits("totalsegmentator", select=names)(organs))
    volume = MetaTensor(image[0], affine=affine)
    region = select_region(logits.argmax(1)[0].numpy(), 4, FALSE_POSITIVE, current_grid(volume))
    inferer = CachingSlidingWindowInferer(settings["roi_size"], 4, settings["overlap"], mode=settings["mode"])
    explainer = KernelSHAPExplainer(network, inferer, progress=False)
    (found,) = explainer(volume, partition, [region], logits[0])
    assert found.method == "exact"
    plain = SlidingWindowInferer(settings["roi_size"], 4, settings["overlap"], mode=settings["mode"])
    reference = logits.argmax(1)[0].numpy() == 4
    game = {}
    for kept in itertools.product((False, True), repeat=5):
        masked = image.clone()
        for label, keep in enumerate(kept, start=1):
            if not keep:
                masked[0, 0][torch.from_numpy(partition.labels == label)] = 0.0
        with torch.no_grad():
            out = plain(masked, network)[0]
        predicted, z = out.argmax(0).numpy() == 4, out[4].double().numpy()
        r = region.mask
        tp = z[r & predicted & reference].sum() / r.sum()
        fp = -z[r & predicted & ~reference].sum() / r.sum()
        dice = 2 * (r & predicted & reference).sum() / ((r & predicted).sum() + (r & reference).sum())
        game[kept] = np.array([tp, fp, dice, tp + fp])
    values = shapley_over_all_orders(game, 5)
    np.testing.assert_allclose(found.values, values, atol=1e-6)
    assert np.abs(values).max() > 0.01
