# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Shapley values of contrasts equal a direct loop over all coalitions with MONAI's plain inferer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contrast_cases import (
    INFERER,
    NAMES,
    all_logits,
    by_bit_mask,
    dice_truth,
    make_image,
    make_label,
    shapley,
    sigmoid_masks,
)
from monai.inferers import SlidingWindowInferer

from monai_segshap.explainers import ContrastShapleyExplainer, SubRegion, tumor_sub_regions
from monai_segshap.perturbation import ChannelNoiseBaseline
from monai_segshap.shapley import exact_shapley

SINGLE = [[0], [1], [2], [3]]
LABELS = {"TC": (1, 3), "WT": (1, 2, 3), "ET": (3,), "NCR": (1,), "ED": (2,)}


def explain(network, image=None, label=None, contrasts=NAMES, sub_regions=None, **options):
    explainer = ContrastShapleyExplainer(
        network,
        SlidingWindowInferer(**INFERER),
        contrasts,
        tumor_sub_regions() if sub_regions is None else sub_regions,
        progress=False,
        **options,
    )
    image = make_image() if image is None else image
    return explainer(image, make_label() if label is None else label)


def truth_of(names, label):
    return [np.isin(label[0].numpy(), LABELS[name]) for name in names]


def replacement_of(removal: str, image: torch.Tensor) -> torch.Tensor:
    """What the removals say, without the package."""
    found = torch.zeros_like(image)
    for channel, (own, target) in enumerate(zip(image, found, strict=True)):
        if removal == "channel_mean":
            target[own != 0] = float(own[own != 0].double().mean())
        elif removal == "channel_mean_all":
            target[:] = float(own.double().mean())
        elif removal == "noise":
            values = own[own != 0].double()
            drawn = np.random.default_rng([0, channel]).standard_normal(len(values))
            target[own != 0] = (values.mean() + values.std(correction=0) * torch.from_numpy(drawn)).float()
        elif removal == "numbers":
            target[:] = [0.3, -0.2, 0.1, 0.0][channel]
    return found


@pytest.mark.parametrize("kind", ["unet", "segresnet"])
def test_values_and_the_table_equal_a_direct_loop(make_network, kind):
    network, image, label = make_network(kind, in_channels=4), make_image(), make_label()
    (found,) = explain(network)
    table = dice_truth(
        all_logits(network, image, torch.zeros_like(image), SINGLE), sigmoid_masks, truth_of(("TC", "WT", "ET"), label)
    )
    assert np.array_equal(found.coalition_scores[0], by_bit_mask(table))
    expected = shapley(table)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found.of("dice_truth"), expected, atol=1e-12)
    np.testing.assert_allclose(found.of("dice_truth"), exact_shapley(by_bit_mask(table)), atol=1e-14)
    np.testing.assert_allclose(found.efficiency_gap, 0.0, atol=1e-14)
    np.testing.assert_allclose(found.full[0] - found.empty[0], found.of("dice_truth").sum(axis=0), atol=1e-14)
    assert found.forwards.run == found.forwards.planned < found.forwards.naive


@pytest.mark.parametrize("padding", ["constant", "reflect"])
def test_an_image_smaller_than_the_window_is_padded_as_the_library_pads(make_network, padding):
    network, image, label = make_network("conv", in_channels=4), make_image()[:, :6], make_label()[:, :6]
    inferer = SlidingWindowInferer(**INFERER, padding_mode=padding, cval=0.5 if padding == "constant" else 0.0)
    removal = dict(zip(NAMES, (0.3, -0.2, 0.1, 0.4), strict=True))
    found = ContrastShapleyExplainer(
        network, inferer, NAMES, tumor_sub_regions(), ("dice_truth", "class_output"), removal=removal, progress=False
    )(image, label)[0]
    for mask in (0, 5, 10, 15):
        changed = image.clone()
        for channel in range(4):
            if not mask >> channel & 1:
                changed[channel] = removal[NAMES[channel]]
        with torch.no_grad():
            logits = inferer(changed[None], network)[0]
        if mask == 0:
            with torch.no_grad():
                reference = inferer(image[None], network)[0] > 0
        for s in range(3):
            expected = logits[s][reference[s]].double().sum() / logits[s].numel() if reference[s].any() else np.nan
            assert found.coalition_scores[1, mask, s] == pytest.approx(float(expected), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "removal"),
    [
        ("channel_mean", "channel_mean"),
        ("channel_mean_all", "channel_mean_all"),
        ("noise", "noise"),
        ("noise", ChannelNoiseBaseline()),
        ("numbers", {"T1-Gd": 0.3, "T1": -0.2, "T2": 0.1, "FLAIR": 0.0}),
    ],
)
def test_every_removal_is_what_it_says(make_network, name, removal):
    network, image, label = make_network("conv", in_channels=4), make_image(), make_label()
    (found,) = explain(network, removal=removal)
    logits = all_logits(network, image, replacement_of(name, image), SINGLE)
    table = dice_truth(logits, sigmoid_masks, truth_of(("TC", "WT", "ET"), label))
    np.testing.assert_allclose(found.coalition_scores[0], by_bit_mask(table), atol=1e-12)
    np.testing.assert_allclose(found.of("dice_truth"), shapley(table), atol=1e-12)
    assert found.removal["kind"] == {"noise": "channel_noise", "numbers": "constant"}.get(name, "channel_mean")
    words = {
        "channel_mean": "channel_mean of nonzero voxels",
        "channel_mean_all": "channel_mean of all voxels",
        "noise": "channel_noise of nonzero voxels, seed 0",
        "numbers": "constant [0.3, -0.2, 0.1, 0.0]",
    }
    assert set(found.table()["removal"]) == {words[name]}
    assert found.removal["contrasts"]["t1c"]["mean"] == pytest.approx(
        float(replacement_of(name, image)[0].mean()), abs=1e-6
    )


def test_removals_differ(make_network):
    network = make_network("conv", in_channels=4)
    values = [explain(network, removal=r)[0].values for r in ("zero", "channel_mean_all", "noise", 0.5)]
    assert all(not np.allclose(a, b, atol=1e-4) for i, a in enumerate(values) for b in values[:i])


def test_softmax_classes_and_sub_regions_made_of_several(make_network):
    network, image, label = make_network("unet", in_channels=4, classes=4), make_image(), make_label()
    names = ("WT", "TC", "NCR", "ET")
    regions = tumor_sub_regions(names, ("background", "NCR", "ED", "ET"))
    (found,) = explain(network, sub_regions=regions, heads="softmax", scores=("dice_truth", "dice"))
    logits = all_logits(network, image, torch.zeros_like(image), SINGLE)

    def masks(x):
        winner = x.argmax(axis=0)
        return [np.isin(winner, classes) for classes in ((1, 2, 3), (1, 3), (1,), (3,))]

    table = dice_truth(logits, masks, truth_of(names, label))
    own = dice_truth(logits, masks, masks(logits[True, True, True, True]))
    np.testing.assert_allclose(found.coalition_scores[0], by_bit_mask(table), atol=1e-12)
    np.testing.assert_allclose(found.of("dice_truth"), shapley(table), atol=1e-12)
    np.testing.assert_allclose(found.of("dice"), shapley(own), atol=1e-9)
    np.testing.assert_allclose(found.full[1], 1.0, atol=1e-9)
    assert found.full[0].max() < 1.0


def test_scores_against_the_own_prediction_follow_their_equations(make_network):
    network, image = make_network("unet", in_channels=4), make_image()
    scores = ("tp", "fp", "dice", "soft_dice", "class_output", "dice_truth")
    (found,) = explain(network, scores=scores)
    logits = all_logits(network, image, torch.zeros_like(image), SINGLE)
    p_0 = logits[True, True, True, True] > 0

    def scored(x):
        z, p = x.astype(np.float64), x > 0
        tp, fp = (z * (p & p_0)).mean(axis=(1, 2, 3)), -(z * (p & ~p_0)).mean(axis=(1, 2, 3))
        return {"tp": tp, "fp": fp, "soft_dice": tp + fp, "class_output": (z * p_0).mean(axis=(1, 2, 3))}

    for score in ("tp", "fp", "soft_dice", "class_output"):
        table = {kept: scored(x)[score] for kept, x in logits.items()}
        np.testing.assert_allclose(found.of(score), shapley(table), atol=1e-10)
        assert np.abs(found.of(score)).max() > 1e-4
    np.testing.assert_allclose(found.of("soft_dice"), found.of("tp") + found.of("fp"), atol=1e-12)
    assert not np.allclose(found.of("dice"), found.of("dice_truth"), atol=1e-3)
    assert np.array_equal(found.of("tp", "WT"), found.of("tp")[:, 1])
    counts = {kept: (x > 0).sum(axis=(1, 2, 3)) for kept, x in logits.items()}
    assert np.array_equal(found.predicted_voxels, by_bit_mask(counts))


def test_a_contrast_that_the_network_ignores_gets_exactly_0(make_network):
    network = make_network("conv", in_channels=4)
    with torch.no_grad():
        network[0].weight[:, 2] = 0.0
    (found,) = explain(network, scores=("dice_truth", "tp", "fp"))
    assert (found.values[:, 2] == 0).all()
    assert (np.abs(np.delete(found.values, 2, axis=1)).max(axis=(1, 2)) > 1e-4).all()
    assert found.live.all()  # it is there, and its windows were run


def test_an_absent_contrast_gets_exactly_0_and_is_never_run(make_network, counting):
    network, image, label = counting(make_network("unet", in_channels=4)), make_image(), make_label()
    image[1] = 0.0
    (found,) = explain(network, image)
    assert found.live.tolist() == [True, False, True, True]
    assert (found.values[0, 1] == 0).all()
    assert any("t1n: every voxel already equals the replacement" in w for w in found.warnings)
    plain = network.network
    table = dice_truth(
        all_logits(plain, image, torch.zeros_like(image), SINGLE), sigmoid_masks, truth_of(("TC", "WT", "ET"), label)
    )
    assert np.array_equal(found.coalition_scores[0], by_bit_mask(table))
    np.testing.assert_allclose(found.of("dice_truth"), shapley(table), atol=1e-12)
    assert network.n_windows == found.forwards.run + found.forwards.calibration
    assert found.forwards.run < found.forwards.naive / 2


def test_an_image_of_zeros_has_values_of_0(make_network, counting):
    network = counting(make_network("unet", in_channels=4))
    (found,) = explain(network, torch.zeros_like(make_image()))
    assert not found.live.any()
    assert (found.values == 0).all()
    assert (found.coalition_scores == found.coalition_scores[:, :1]).all()
    assert found.forwards.run == found.forwards.planned == 2  # one window, in the library's batch of two
    assert found.forwards.naive == 16 * found.segmentation_forwards


@pytest.mark.parametrize(
    ("contrasts", "groups"),
    [({"T1": [0, 1], "T2": [2, 3]}, [[0, 1], [2, 3]]), ({"b": 3, "a": [0, 2]}, [[3], [0, 2]])],
    ids=["pairs", "one-channel-is-never-removed"],
)
def test_groups_of_channels_are_removed_together(make_network, contrasts, groups):
    network, image, label = make_network("unet", in_channels=4), make_image(), make_label()
    (found,) = explain(network, contrasts=contrasts)
    logits = all_logits(network, image, torch.zeros_like(image), groups)
    table = dice_truth(logits, sigmoid_masks, truth_of(("TC", "WT", "ET"), label))
    assert found.values.shape == (1, 2, 3)
    assert np.array_equal(found.coalition_scores[0], by_bit_mask(table))
    np.testing.assert_allclose(found.of("dice_truth"), shapley(table), atol=1e-12)
    assert found.contrasts.names == tuple(contrasts)


def test_another_order_of_contrasts_changes_no_value(make_network):
    network = make_network("unet", in_channels=4)
    (found,) = explain(network)
    (other,) = explain(network, contrasts={"t2f": 3, "t1n": 1, "t1c": 0, "t2w": 2})
    order = [found.contrasts.names.index(name) for name in other.contrasts.names]
    np.testing.assert_allclose(other.values, found.values[:, order], atol=1e-14)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_passes_are_planned_and_distinct(make_network, counting, library_windows, batch_size):
    network, image = counting(make_network("conv", in_channels=4)), make_image()
    inferer = {**INFERER, "sw_batch_size": batch_size}
    explainer = ContrastShapleyExplainer(
        network, SlidingWindowInferer(**inferer), NAMES, tumor_sub_regions(), progress=False, batch_size="library"
    )
    (found,) = explainer(image, make_label())
    counts = found.forwards
    assert counts.run == counts.planned
    assert network.n_windows == counts.run + counts.calibration
    windows = library_windows(image, **inferer)
    assert counts.naive == 16 * len(windows) == 16 * found.segmentation_forwards
    distinct = set()
    for removed in range(16):
        changed = image.clone()
        changed[[c for c in range(4) if removed >> c & 1]] = 0.0
        for window in library_windows(changed, **inferer):  # windows of nothing but 0 are one
            distinct.add((window.start if any(window.content) else window.batch_size, window.content))
    assert len(distinct) < 0.75 * counts.naive
    assert len(distinct) <= counts.planned < len(distinct) + 2 * batch_size * batch_size
    before = network.n_windows
    (again,) = explainer(make_image(5), make_label())  # the next case needs no calibration
    assert again.forwards.calibration == 0
    assert network.n_windows - before == again.forwards.run


def test_a_memory_bound_and_other_batches_change_no_value(make_network):
    network = make_network("unet", in_channels=4)
    (found,) = explain(network)
    (small,) = explain(network, max_bytes=1)
    assert np.array_equal(small.coalition_scores, found.coalition_scores)
    assert small.forwards.run == small.forwards.planned > found.forwards.run
    (single,) = explain(network, batch_size=4)
    np.testing.assert_allclose(single.values, found.values, atol=2e-3)  # a voxel may change sides


def test_every_fold_is_the_network_alone(make_network, counting):
    networks = [make_network("unet", in_channels=4, seed=s) for s in range(2)]
    folds = explain([counting(n) for n in networks], scores=("dice_truth", "dice"))
    assert [fold.fold for fold in folds] == ["0", "1"]
    for fold, network in zip(folds, networks, strict=True):
        (alone,) = explain(network, scores=("dice_truth", "dice"))
        assert alone.fold is None
        assert np.array_equal(fold.coalition_scores, alone.coalition_scores)
        assert np.array_equal(fold.values, alone.values)
        assert fold.forwards.run == fold.forwards.planned == alone.forwards.run
    assert not np.allclose(folds[0].values, folds[1].values, atol=1e-3)


@pytest.mark.parametrize(
    ("networks", "names"),
    [
        (torch.nn.Identity(), [None]),
        ([torch.nn.Identity()], ["0"]),
        (torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()]), ["0", "1"]),
        ({"b": torch.nn.Identity(), "a": abs}, ["b", "a"]),
        (torch.nn.ModuleDict({"x": torch.nn.Identity()}), ["x"]),
        (torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity()), [None]),
    ],
)
def test_folds_have_the_names_they_are_given(networks, names):
    explainer = ContrastShapleyExplainer(networks, SlidingWindowInferer(**INFERER), NAMES, tumor_sub_regions())
    assert [fold.name for fold in explainer.networks] == names


def test_the_plan_is_announced_before_the_first_coalition(make_network, capsys):
    printed: list[str] = []
    network = make_network("conv", in_channels=4)
    calls = 0

    def spy(windows: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        printed.append(capsys.readouterr().out)
        return network(windows)

    explainer = ContrastShapleyExplainer(spy, SlidingWindowInferer(**INFERER), NAMES, tumor_sub_regions())
    (found,) = explainer(make_image(), make_label())
    spoken = [number for number, text in enumerate(printed) if text]
    assert len(spoken) == 1
    text = printed[spoken[0]]
    assert f"naive {found.forwards.naive} passes, planned {found.forwards.planned};" in text
    assert f"{found.forwards.calibration} to calibrate" in text
    assert "removed: constant 0.0" in text
    size = int(next(iter(found.execution["batch_sizes"].values())))
    assert (calls - spoken[0]) * size == found.forwards.run


def test_a_fast_mode_is_named(make_network):
    (found,) = explain(make_network("unet", in_channels=4), numerics="bf16")
    assert found.execution["numerics"] == "fast: bf16 autocast"
    assert any("ran in a fast mode (bf16 autocast)" in w for w in found.warnings)
    assert found.forwards.run == found.forwards.planned


def test_a_single_sigmoid_head_and_a_label_of_ones(make_network):
    label = (make_label() == 2).long()
    (found,) = explain(
        make_network("unet", in_channels=4, classes=1), label=label, sub_regions=[SubRegion("lesion", 0)]
    )
    assert found.truth_voxels.tolist() == [int(label.sum())]
    assert found.values.shape == (1, 4, 1)
