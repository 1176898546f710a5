# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Budgets that grow until the values are known, sums over organs, and the game with few units or none."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from ranks_job import EARLY, Fragile, job, record
from test_sweep import _launch

from monai_segshap.explainers import KernelSHAPExplainer
from monai_segshap.geometry import VoxelGrid
from monai_segshap.perturbation import ConstantBaseline
from monai_segshap.region import Region
from monai_segshap.shapley import plan_coalitions, solve
from monai_segshap.units import Partition

INFERER = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
SCORES = ("tp", "fp", "dice", "soft_dice")


@pytest.fixture(scope="module")
def early():
    return job(**EARLY)


# --- early stopping ---


def test_a_run_stops_where_every_interval_is_narrow_enough(early):
    for found in early:
        assert found.evaluations == 98  # two for each of the 48 units, and the full and the empty coalition
        assert found.converged == (True, True)
        widest = 1.96 * found.standard_errors.max(axis=0)
        assert (widest <= 0.4 * np.abs(found.values).max(axis=0)).all()
        assert found.forwards.planned == found.forwards.run > 0
        assert not any("not converged" in w for w in found.warnings)


@pytest.mark.parametrize("method", ["gaussian_process", "kernelshap", "ridge", "walks"])
def test_it_equals_a_run_with_that_budget(method):
    stopped = job(**{**EARLY, "method": method, "tolerance": 0.5})
    evaluations = stopped[0].evaluations
    assert evaluations < 602 - 30
    whole = job(**{**EARLY, "method": method, "tolerance": None, "budget": evaluations - 2})
    for found, expected in zip(stopped, whole, strict=True):
        assert found.evaluations == expected.evaluations
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.standard_errors, expected.standard_errors)
        np.testing.assert_array_equal(found.full, expected.full)
        assert found.background == expected.background


def test_a_smaller_tolerance_needs_more_coalitions(early):
    found = job(**{**EARLY, "tolerance": 0.12})
    assert early[0].evaluations < found[0].evaluations < 602
    assert all(all(e.converged) for e in found)


def test_without_a_tolerance_the_whole_budget_runs():
    for found in job(**{**EARLY, "tolerance": None}):
        assert found.evaluations == 602
        assert found.converged == ()
        assert found.to_dict()["convergence"] == {"tolerance": None}
        assert not any("not converged" in w for w in found.warnings)


def test_a_run_that_does_not_converge_says_so():
    found = job(**{**EARLY, "budget": 96, "tolerance": 0.01})[0]
    assert found.evaluations == 98
    assert found.converged == (False, False)
    (warning,) = [w for w in found.warnings if w.startswith("not converged")]
    assert "tp, soft_dice is wider than +-1% of the largest value after 98 coalitions" in warning
    assert found.to_dict()["convergence"] == {"tolerance": 0.01, "tp": False, "soft_dice": False}


def test_an_early_stop_that_is_announced_happens(capsys):
    found = job(**{**EARLY, "roi": 8}, progress=True)
    promised = "fewer once intervals are within" in capsys.readouterr().out
    assert all(all(e.converged) for e in found)
    assert (found[0].evaluations < 602) == promised


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -0.1])
def test_other_tolerances_are_refused(tolerance):
    with pytest.raises(ValueError, match="expected a share of the largest value, above 0, below 1"):
        job(**{**EARLY, "tolerance": tolerance})


def test_an_interrupted_run_stops_at_the_same_place(early, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, network=Fragile(100), **EARLY)
    network = Fragile(10**9)
    assert record(job(tmp_path, network=network, **EARLY)) == record(early)
    again = Fragile(10**9)
    assert record(job(tmp_path, network=again, **EARLY)) == record(early)
    assert again.seen == early[0].segmentation_forwards < network.seen


def test_a_run_that_stopped_early_goes_on_with_a_smaller_tolerance(early, tmp_path):
    job(tmp_path, **EARLY)
    network, fresh = Fragile(10**9), Fragile(10**9)
    found = job(tmp_path, network=network, **{**EARLY, "tolerance": 0.12})
    assert record(found) == record(job(network=fresh, **{**EARLY, "tolerance": 0.12}))
    assert network.seen < fresh.seen


@pytest.mark.xdist_group("ranks")
def test_two_ranks_stop_at_the_same_place(early, tmp_path):
    expected = json.loads(json.dumps(record(early)))
    assert _launch(2, tmp_path / "two", "store", "early") == expected


# --- sums over organs, and the background, against the plain inferer ---


@pytest.fixture(scope="module")
def direct(make_network, make_case):
    """Twelve units of five organs; every coalition of a plan through MONAI's plain inferer."""
    case, network = make_case((16, 12, 10), 12), make_network("conv")
    case = replace(case, image=case.image + torch.linspace(-1, 1, 16)[None, :, None, None])
    organs = ("liver", "liver", "spleen", "liver", "aorta", "spleen", "rib", "rib", "rib", "skin", "skin", "skin")
    grid = VoxelGrid((16, 12, 10), np.eye(4))
    labels = case.labels.numpy().astype(np.int32)
    partition = Partition(labels, tuple(f"{o} {i}" for i, o in enumerate(organs)), grid, "hybrid", organs)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[5:12, 3:9, 2:8] = np.random.default_rng(2).random((7, 6, 6)) < 0.8
    region = Region(mask, "box", 1, 0)
    plan = plan_coalitions(12, 80, "kernelshap")

    def infer(image):
        with torch.no_grad():
            return SlidingWindowInferer(**INFERER)(image[None], network)[0]

    logits = infer(case.image)
    reference = (logits.argmax(0).numpy() == 1)[mask]
    scores = []
    for row in plan.rows:
        changed = infer(case.masked(row)).numpy()[:, mask]
        now, z = changed.argmax(axis=0) == 1, changed[1].astype(np.float64)
        tp, fp = (z * (now & reference)).mean(), -(z * (now & ~reference)).mean()
        dice = 2 * (now & reference).sum() / (now.sum() + reference.sum() + 1e-8)
        scores.append([tp, fp, dice, tp + fp])
    nothing = infer(case.masked([False] * 12)).argmax(0).numpy()[mask]

    def explain(**options):
        options = {
            "budget": 80,
            "method": "kernelshap",
            "tolerance": None,
            "baseline": ConstantBaseline(-0.5),
            **options,
        }
        explainer = KernelSHAPExplainer(network, SlidingWindowInferer(**INFERER), progress=False, **options)
        return explainer(case.image, partition, [region], logits, class_names=["air", "organ"])[0]

    return {"explain": explain, "plan": plan, "scores": np.array(scores), "nothing": nothing, "organs": organs}


@pytest.fixture(scope="module")
def explanation(direct):
    found = direct["explain"]()
    assert found.visible.all()
    assert found.evaluations == 82
    return found


def test_classes_without_units_are_those_of_the_plain_inferer(direct, explanation):
    classes, counts = np.unique(direct["nothing"], return_counts=True)
    names = {0: "air", 1: "organ", 2: "class 2"}
    assert explanation.background["empty_classes"] == {
        names[int(c)]: int(n) for c, n in zip(classes, counts, strict=True)
    }


def test_scores_by_kept_share_are_direct_means(direct, explanation):
    share, found = direct["plan"].rows.mean(axis=1), explanation.background["by_kept_share"]
    expected = [level for level in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95) if (np.abs(share - level) <= 0.025).any()]
    assert [entry["kept"] for entry in found] == expected
    assert len(found) >= 3
    for entry in found:
        near = np.abs(share - entry["kept"]) <= 0.025
        assert entry["coalitions"] == near.sum()
        means = direct["scores"][near].mean(axis=0)
        np.testing.assert_allclose([entry[s] for s in SCORES], means, atol=1e-5)


def test_background_is_that_of_each_region_among_several(early):
    for found in early:
        assert sum(found.background["empty_classes"].values()) == found.region.voxels


def test_organs_of_several_units_are_summed_with_errors(direct, explanation):
    groups = explanation.groups
    assert groups.names == ("liver", "spleen", "aorta", "rib", "skin")
    member = np.array([[organ == name for organ in direct["organs"]] for name in groups.names], dtype=float)
    np.testing.assert_allclose(groups.values, member @ explanation.values, atol=1e-12)
    expected = solve(direct["plan"], direct["scores"]).group_errors(member)
    np.testing.assert_allclose(groups.standard_errors, expected, rtol=2e-3, atol=1e-6)
    single = direct["organs"].index("aorta")
    np.testing.assert_allclose(groups.standard_errors[2], explanation.standard_errors[single], rtol=1e-9)
    np.testing.assert_allclose(groups.values.sum(axis=0), explanation.full - explanation.empty, atol=1e-9)


def test_group_table_and_record_have_a_row_for_each_organ(explanation):
    frame = explanation.group_table(sort_by="tp")
    assert sorted(frame["name"]) == sorted(explanation.groups.names)
    assert (np.diff(np.abs(frame["tp"])) <= 0).all()
    rows = explanation.to_dict()["groups"]
    assert [row["name"] for row in rows] == list(explanation.groups.names)
    assert rows[1]["dice_se"] == explanation.groups.standard_errors[1, 2]


def test_units_that_are_organs_have_no_groups(early):
    for found in early:
        assert found.groups is None
        assert found.to_dict()["groups"] == []
        assert found.group_table().empty


def test_exact_values_are_converged_and_their_sums_have_no_errors(direct):
    found = direct["explain"](method="exact", budget=4096, tolerance=0.05)
    assert found.converged == (True,) * 4
    assert not found.groups.standard_errors.any()


# --- the record ---


@pytest.mark.parametrize("prior", ["distance", "flat"])
@pytest.mark.parametrize("method", ["kernelshap", "gaussian_process", "ridge", "walks", "published"])
def test_the_record_is_plain_json(direct, method, prior):
    found = direct["explain"](method=method, prior=prior, tolerance=0.3)
    content = found.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(content["convergence"]) == {"tolerance", *SCORES}


def test_a_flat_prior_gives_other_values_than_distances():
    near, flat = (job(**{**EARLY, "prior": prior, "budget": 96})[0].values for prior in ("distance", "flat"))
    assert not np.array_equal(near, flat)


@pytest.mark.parametrize(
    "method",
    ["ridge", "kernelshap"],
)
def test_the_store_of_pairs_serves_every_estimator_of_pairs(tmp_path, method):
    options = {**EARLY, "tolerance": None, "budget": 200}
    job(tmp_path, **options)
    network = Fragile(10**9)
    found = job(tmp_path, network=network, **{**options, "method": method})
    assert len(list(tmp_path.iterdir())) == 1
    assert network.seen == found[0].segmentation_forwards
