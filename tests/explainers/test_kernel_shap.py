# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The oracle: every coalition through MONAI's plain inferer, scores as voxel loops, Shapley values over all orders."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import shapley_over_all_orders
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_segshap.explainers import Explanation, KernelSHAPExplainer
from monai_segshap.geometry import VoxelGrid
from monai_segshap.perturbation import Baseline, BlurredBaseline, ConstantBaseline
from monai_segshap.region import Region
from monai_segshap.units import Partition, partition_from_labels

SHAPE = (24, 9, 10)
SCORES = ("tp", "fp", "dice", "soft_dice")
INFERER = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
NEAR = ((1, 1, 1), (5, 6, 6))  # its windows see voxels 0 to 11 of the first axis
NEXT = ((6, 1, 1), (10, 6, 6))  # its windows see voxels 0 to 15
FAR = ((18, 2, 2), (22, 7, 8))  # its windows see voxels 12 to 23
FILL = -0.3


@dataclass(frozen=True)
class Setting:
    image: torch.Tensor
    labels: np.ndarray
    network: torch.nn.Module
    inferer: dict[str, Any]

    @property
    def partition(self) -> Partition:
        return partition_from_labels(self.labels, VoxelGrid(self.labels.shape, np.eye(4)), "blocks")

    @property
    def logits(self) -> torch.Tensor:
        return self.whole_volume(self.image)

    def whole_volume(self, image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return SlidingWindowInferer(**self.inferer)(image[None], self.network)[0]

    def explain(self, regions: Any, **options: Any) -> list[Explanation]:
        logits = options.pop("logits", None)
        explainer = KernelSHAPExplainer(
            self.network,
            SlidingWindowInferer(**self.inferer),
            baseline=options.pop("baseline", ConstantBaseline(FILL)),
            progress=options.pop("progress", False),
            **options,
        )
        return explainer(self.image, self.partition, regions, self.logits if logits is None else logits)


def blocks() -> np.ndarray:
    """Labels 1 to 12: six slabs of four voxels along the first axis, each cut in two; some voxels belong to none."""
    i, j, _ = np.indices(SHAPE)
    labels = 1 + 2 * (i // 4) + (j >= 5)
    labels[np.random.default_rng(1).random(SHAPE) < 0.1] = 0
    return labels


@pytest.fixture(scope="module")
def make_setting(make_network: Callable[..., torch.nn.Module]) -> Callable[..., Setting]:
    def build(
        labels: np.ndarray | None = None, kind: str = "conv", image: torch.Tensor | None = None, **inferer: Any
    ) -> Setting:
        labels = blocks() if labels is None else labels
        noise = np.random.default_rng(0).normal(size=(1, *labels.shape)).astype(np.float32)
        return Setting(
            torch.from_numpy(noise) if image is None else image, labels, make_network(kind), {**INFERER, **inferer}
        )

    return build


def region_of(box: Any, target: int = 1, shape: Any = SHAPE, ragged: bool = False) -> Region:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(*box, strict=True))] = True
    if ragged:
        mask &= np.random.default_rng(2).random(shape) < 0.7
    return Region(mask, "box", target, 0)


# --- the oracle ---


def paper_scores(logits: np.ndarray, full: np.ndarray, region: Region) -> list[float]:
    """Equations 3 to 6 of paper 000, voxel by voxel."""
    tp = fp = soft = 0.0
    both = predicted = reference = 0
    for voxel in zip(*np.nonzero(region.mask), strict=True):
        now = int(np.argmax(logits[(slice(None), *voxel)])) == region.target
        before = int(np.argmax(full[(slice(None), *voxel)])) == region.target
        z = float(logits[(region.target, *voxel)])
        if now and before:
            tp += z
        if now and not before:
            fp -= z
        if now:
            soft += (1 if before else -1) * z
        both, predicted, reference = both + (now and before), predicted + now, reference + before
    size = np.count_nonzero(region.mask)
    return [tp / size, fp / size, 2 * both / (predicted + reference + 1e-8), soft / size]


def brute_force(setting: Setting, region: Region) -> tuple[np.ndarray, dict[tuple[bool, ...], np.ndarray]]:
    n_units = int(setting.labels.max())
    labels, full, game = torch.from_numpy(setting.labels), setting.logits.numpy(), {}
    for coalition in itertools.product([False, True], repeat=n_units):
        removed = [unit for unit, kept in enumerate(coalition, start=1) if not kept]
        masked = torch.where(torch.isin(labels, torch.tensor(removed)), FILL, setting.image)
        game[coalition] = np.array(paper_scores(setting.whole_volume(masked).numpy(), full, region))
    return shapley_over_all_orders(game, n_units), game


def seven_units() -> np.ndarray:
    """The first three slabs' blocks are units 1 to 6, all that lies beyond is unit 7."""
    return np.minimum(blocks(), 7)


def seven_units_of_a_small_image() -> np.ndarray:
    i, j, k = np.indices((12, 7, 6))
    labels = 1 + i // 4 + 3 * (j >= 4)
    labels[k == 0], labels[k == 5] = 0, 7
    return labels


@pytest.fixture(scope="module", params=["windows", "one-window", "unet"])
def brute(
    request: Any, make_setting: Callable[..., Setting]
) -> tuple[Explanation, np.ndarray, dict[tuple[bool, ...], np.ndarray]]:
    """An explanation of seven units, of which number 4 equals its replacement, next to its brute force."""
    shape = (12, 7, 6) if request.param == "one-window" else SHAPE
    labels = seven_units() if shape == SHAPE else seven_units_of_a_small_image()
    options = {"one-window": {"roi_size": (16, 16, 8)}, "unet": {"sw_batch_size": 3}}.get(request.param, {})
    plain = make_setting(labels, kind="unet" if request.param == "unet" else "conv", **options)
    plain.image[:, torch.from_numpy(labels == 4)] = FILL
    region = region_of(NEAR if shape == SHAPE else ((1, 1, 1), (8, 5, 4)), shape=shape, ragged=True)
    (explanation,) = plain.explain([region])
    return explanation, *brute_force(plain, region)


@pytest.mark.parametrize("score", SCORES)
def test_values_equal_brute_force_over_all_coalitions(brute, score):
    explanation, values, _ = brute
    column = explanation.score_index(score)
    assert explanation.method == "exact"
    assert np.ptp(values[:, SCORES.index(score)]) > 1e-4
    np.testing.assert_allclose(explanation.values[:, column], values[:, SCORES.index(score)], rtol=0, atol=1e-6)


def test_full_and_empty_scores_equal_the_plain_inferer(brute):
    explanation, _, game = brute
    np.testing.assert_allclose(explanation.full, game[(True,) * 7], rtol=0, atol=1e-6)
    np.testing.assert_allclose(explanation.empty, game[(False,) * 7], rtol=0, atol=1e-6)


def test_dummies_have_exactly_zero(brute):
    explanation, _, game = brute
    idle = [
        all(
            np.array_equal(scores, game[(*coalition[:unit], not coalition[unit], *coalition[unit + 1 :])])
            for coalition, scores in game.items()
        )
        for unit in range(7)
    ]
    assert explanation.visible.tolist() == [not dummy for dummy in idle]
    assert not explanation.visible[3]
    assert np.all(explanation.values[idle] == 0)
    assert np.all(explanation.standard_errors == 0)


def test_soft_dice_is_tp_plus_fp_and_values_are_efficient(brute):
    explanation, _, _ = brute
    tp, fp, _, soft = explanation.values.T
    np.testing.assert_allclose(soft, tp + fp, rtol=0, atol=1e-12)
    np.testing.assert_allclose(explanation.values.sum(axis=0), explanation.full - explanation.empty, rtol=0, atol=1e-12)
    np.testing.assert_allclose(explanation.efficiency_gap, 0, atol=1e-12)
    assert explanation.full[1] == 0  # no false positive with all units kept


@pytest.mark.parametrize("signal", ["probability", "margin"])
def test_other_signals_replace_the_logit_in_the_same_scores(make_setting, signal):
    setting, region = make_setting(), region_of(NEAR, target=2, ragged=True)
    (explanation,) = setting.explain([region], signal=signal)
    logits = setting.logits.double()
    others = logits[[0, 1]].amax(dim=0)
    value = logits.softmax(dim=0)[2] if signal == "probability" else logits[2] - others
    hit = torch.from_numpy(region.mask) & (logits.argmax(dim=0) == 2)
    assert explanation.full[0] == pytest.approx(float(value[hit].sum()) / region.voxels, abs=1e-6)
    assert explanation.signal == signal


# --- one sweep for several regions ---


def test_several_regions_and_classes_in_one_call_equal_separate_calls(make_setting):
    setting = make_setting()
    regions = [region_of(NEAR, 1), region_of(NEXT, 2), region_of(NEAR, 0, ragged=True)]
    joint = setting.explain(regions, method="exact", budget=256)
    alone = [setting.explain([region], method="exact", budget=256)[0] for region in regions]
    for together, single in zip(joint, alone, strict=True):
        np.testing.assert_allclose(together.values, single.values, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(together.visible, single.visible)
        np.testing.assert_array_equal([together.full, together.empty], [single.full, single.empty])
        assert together.target == single.target
    assert [int(e.visible.sum()) for e in joint] == [6, 8, 6]
    assert joint[0].forwards.run < sum(e.forwards.run for e in alone)
    assert joint[0].forwards.run == max(e.forwards.run for e in alone)  # windows of NEXT include those of NEAR


def test_regions_with_no_unit_in_common_equal_separate_calls(make_setting):
    setting, regions = make_setting(), [region_of(NEAR, 1), region_of(FAR, 2)]
    joint = setting.explain(regions, scores=("tp", "fp"), method="exact", budget=4096)
    for together, region in zip(joint, regions, strict=True):
        (single,) = setting.explain([region], scores=("tp", "fp"))
        np.testing.assert_allclose(together.values, single.values, rtol=0, atol=1e-12)
    assert not (joint[0].visible & joint[1].visible).any()


def test_forwards_are_the_passes_of_the_network(make_setting, counting):
    setting = make_setting()
    network = counting(setting.network)
    setting = Setting(setting.image, setting.labels, network, setting.inferer)
    logits = setting.logits
    assert network.n_windows == 5 * 2 * 2
    (explanation,) = setting.explain([region_of(NEAR)], logits=logits)
    assert explanation.segmentation_forwards == 20
    forwards = explanation.forwards
    assert forwards.run == forwards.planned == network.n_windows - 20 - forwards.calibration
    assert forwards.calibration > 0
    assert explanation.forwards.run < explanation.forwards.published_cache < explanation.forwards.naive
    assert explanation.evaluations == 2**6


# --- estimators ---


def test_sampled_values_are_efficient_with_errors_and_exact_zeros_for_dummies(make_setting):
    (explanation,) = make_setting().explain([region_of(NEXT)], method="kernelshap", budget=60, seed=3)
    dummies = ~explanation.visible
    assert (explanation.method, explanation.evaluations, explanation.seed) == ("kernelshap", 62, 3)
    assert dummies.sum() == 4
    assert np.all(explanation.values[dummies] == 0)
    assert np.all(explanation.standard_errors[dummies] == 0)
    assert np.all(explanation.standard_errors[explanation.visible] > 0)
    assert np.abs(explanation.efficiency_gap).max() < 1e-12


def test_sampled_values_lie_within_their_errors_of_the_exact_ones(make_setting):
    setting = make_setting()
    (exact,) = setting.explain([region_of(NEXT)], method="exact")
    deviations = []
    for seed in range(6):
        (sampled,) = setting.explain([region_of(NEXT)], method="kernelshap", budget=80, seed=seed)
        seen = sampled.visible
        deviations.append((sampled.values[seen] - exact.values[seen]) / sampled.standard_errors[seen])
    assert 0.4 < np.sqrt(np.mean(np.square(deviations))) < 1.6


def test_all_pairs_of_coalitions_give_the_exact_values(make_setting):
    setting = make_setting()
    (exact,) = setting.explain([region_of(NEAR)], method="exact")
    (paired,) = setting.explain([region_of(NEAR)], method="kernelshap", budget=62)
    assert paired.method == "kernelshap"
    np.testing.assert_allclose(paired.values, exact.values, rtol=0, atol=1e-10)


def test_same_seed_same_values_and_another_seed_others(make_setting):
    setting = make_setting()
    first, again, other = (
        setting.explain([region_of(NEAR)], method="kernelshap", budget=30, seed=seed)[0].values for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize(("box", "n_visible", "budget"), [(NEAR, 6, 56), (NEXT, 8, 200)], ids=["six", "eight"])
def test_auto_enumerates_where_that_needs_no_more_passes(make_setting, box, n_visible, budget):
    # each window sees four units, whose 16 contents all turn up among the sampled coalitions
    setting, region = make_setting(), region_of(box)
    (auto,) = setting.explain([region], budget=budget)
    (exact,) = setting.explain([region], method="exact", budget=2**n_visible)
    (sampled,) = setting.explain([region], method="kernelshap", budget=budget)
    assert budget + 2 < 2**n_visible
    assert (auto.method, auto.evaluations) == ("exact", 2**n_visible)
    assert auto.forwards.run == exact.forwards.run <= sampled.forwards.run
    assert "passes" in auto.reason
    np.testing.assert_array_equal(auto.values, exact.values)


def test_auto_samples_where_enumeration_is_dearer(make_setting):
    setting = make_setting(roi_size=SHAPE)  # one window, 12 units in it
    (auto,) = setting.explain([region_of(NEAR)], budget=100)
    assert (auto.method, auto.evaluations) == ("kernelshap", 102)
    assert auto.forwards.run <= 102


def test_exact_beyond_the_budget_is_refused(make_setting):
    with pytest.raises(ValueError, match="method 'exact' needs"):
        make_setting(roi_size=SHAPE).explain([region_of(NEAR)], budget=100, method="exact")


def test_the_published_scheme_runs(make_setting):
    setting = make_setting()
    (exact,) = setting.explain([region_of(NEAR)], method="exact")
    (published,) = setting.explain([region_of(NEAR)], method="published", budget=600)
    assert (published.method, published.evaluations) == ("published", 602)
    assert np.abs(published.efficiency_gap).max() < 1e-12
    assert np.all(published.values[~published.visible] == 0)
    scale = np.abs(exact.values).max(axis=0)
    assert np.all(np.abs(published.values - exact.values).max(axis=0) < 0.5 * scale)


# --- invariances ---


def test_values_do_not_depend_on_the_numbers_of_the_units(make_setting):
    order = np.random.default_rng(5).permutation(12)
    renumbered = np.concatenate([[0], order + 1])[blocks()]
    (before,) = make_setting().explain([region_of(NEAR)])
    (after,) = make_setting(renumbered).explain([region_of(NEAR)])
    np.testing.assert_allclose(after.values[order], before.values, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(after.visible[order], before.visible)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_values_barely_depend_on_the_batch_size_and_not_on_the_memory(make_setting, batch_size):
    region = region_of(NEAR, ragged=True)
    (two,) = make_setting().explain([region], scores=("tp",))
    (other,) = make_setting(sw_batch_size=batch_size).explain([region], scores=("tp",))
    (small,) = make_setting(sw_batch_size=batch_size).explain([region], scores=("tp",), max_bytes=1)
    np.testing.assert_allclose(other.values, two.values, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(small.values, other.values)
    assert small.forwards.run > other.forwards.run


def test_training_mode_and_dropout_change_nothing_and_are_put_back(make_setting):
    setting = make_setting()
    (reference,) = setting.explain([region_of(NEAR)])
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.BatchNorm3d(1), setting.network)
    torch.nn.init.constant_(network[1].running_var, 1 - network[1].eps)  # the identity in eval mode
    network.train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    (found,) = Setting(setting.image, setting.labels, network, setting.inferer).explain(
        [region_of(NEAR)], logits=setting.logits
    )
    np.testing.assert_allclose(found.values, reference.values, rtol=0, atol=1e-6)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_inputs_are_left_alone(make_setting):
    setting = make_setting()
    logits, image, region = setting.logits, setting.image.clone(), region_of(NEAR, ragged=True)
    mask, before = region.mask.copy(), logits.clone()
    setting.explain([region], logits=logits)
    assert torch.equal(setting.image, image)
    assert torch.equal(logits, before)
    assert np.array_equal(region.mask, mask)


def test_a_larger_window_than_the_image_works(make_setting):
    setting = make_setting(roi_size=(32, 16, 16))
    (explanation,) = setting.explain([region_of(NEAR)], budget=100)
    assert explanation.segmentation_forwards == 1
    assert explanation.visible.all()
    assert np.abs(explanation.efficiency_gap).max() < 1e-12


def test_a_baseline_that_varies_over_the_image_is_used(make_setting):
    setting = make_setting()
    baseline = BlurredBaseline(sigma_mm=2.0)
    (explanation,) = setting.explain([region_of(NEAR)], baseline=baseline)
    fill = baseline.fill(setting.image, (1.0, 1.0, 1.0))
    removed = torch.where(torch.from_numpy(setting.labels > 0), fill, setting.image)
    empty = paper_scores(setting.whole_volume(removed).numpy(), setting.logits.numpy(), region_of(NEAR))
    np.testing.assert_allclose(explanation.empty, empty, rtol=0, atol=1e-6)
    assert explanation.baseline["kind"] == "blur"


def test_progress_prints_the_plan_that_is_run(make_setting, capsys):
    (explanation,) = make_setting().explain([region_of(NEAR)], progress=True)
    printed = capsys.readouterr().out
    counts = explanation.forwards
    assert f"naive {counts.naive}, published cache {counts.published_cache}, planned {counts.run}" in printed
    assert "12 blocks units: 6 visible to the region, 6 dummies" in printed


def test_without_progress_nothing_is_printed(make_setting, capsys):
    make_setting().explain([region_of(NEAR)])
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_picture_shows_the_display_volume_if_there_is_one(make_setting):
    setting = make_setting()
    explainer = KernelSHAPExplainer(setting.network, SlidingWindowInferer(**INFERER), progress=False)
    shown = [
        explainer(setting.image, setting.partition, [region_of(NEAR)], setting.logits, display=display)[0].image
        for display in (None, setting.image * 1000)
    ]
    np.testing.assert_array_equal(shown[0], setting.image[0].numpy())
    np.testing.assert_array_equal(shown[1], 1000 * setting.image[0].numpy())


# --- bad input ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused(make_setting, value):
    setting = make_setting()
    logits = setting.logits
    setting.image[0, 3, 4, 5] = value
    with pytest.raises(ValueError, match=r"1 values that are not finite.*\[0, 3, 4, 5\]"):
        setting.explain([region_of(NEAR)], logits=logits)


@pytest.mark.parametrize("change", ["affine", "shape"])
def test_units_on_another_grid_are_refused_with_both_grids(make_setting, change):
    setting = make_setting()
    labels = blocks() if change == "affine" else blocks()[:23]
    affine = np.diag([1, 1, 2.5 if change == "affine" else 1, 1.0])
    partition = partition_from_labels(labels, VoxelGrid(labels.shape, affine), "blocks")
    explainer = KernelSHAPExplainer(setting.network, SlidingWindowInferer(**INFERER), progress=False)
    with pytest.raises(ValueError, match=r"different grids: units shape .* affine .* image shape .* affine"):
        explainer(setting.image, partition, [region_of(NEAR)], setting.logits)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(1, *SHAPE), r"the prediction has 1 channel\(s\); expected logits of at least two classes"),
        (torch.zeros(3, 23, 9, 10), "the prediction has shape .* expected the network's raw output"),
        (torch.zeros(*SHAPE), "the prediction has shape .* expected the network's raw output"),
    ],
    ids=["label map", "another grid", "no channels"],
)
def test_postprocessed_logits_are_refused(make_setting, logits, message):
    with pytest.raises(ValueError, match=message):
        make_setting().explain([region_of(NEAR, target=0)], logits=logits)


def test_logits_of_another_network_are_refused(make_setting):
    # four classes in the prediction, three from the network
    with pytest.raises(ValueError, match="classes"):
        make_setting().explain([region_of(NEAR, target=3)], logits=torch.rand(4, *SHAPE))


def test_a_network_for_other_channels_says_so(make_setting):
    setting = make_setting()
    two = Setting(setting.image.repeat(2, 1, 1, 1), setting.labels, setting.network, setting.inferer)
    with pytest.raises((ValueError, RuntimeError), match=r"1 channels.*2 channels|2 channels.*1 channels"):
        two.explain([region_of(NEAR)], logits=setting.logits)


@pytest.mark.parametrize("target", [-1, 3])
def test_a_class_that_the_network_lacks_is_refused(make_setting, target):
    with pytest.raises(ValueError, match=f"target class {target} is none of the network's 3 classes"):
        make_setting().explain([region_of(NEAR, target=target)])


@pytest.mark.parametrize("which", ["far", "equal"])
def test_units_that_are_all_dummies_are_refused(make_setting, which):
    setting = make_setting(np.where(blocks() > 6, blocks(), 0) if which == "far" else None)
    if which == "equal":
        setting.image[:, torch.from_numpy(setting.labels > 0)] = FILL
    with pytest.raises(ValueError, match="all are dummies"):
        setting.explain([region_of(NEAR)])


def test_no_region_an_empty_one_and_one_of_another_shape_are_refused(make_setting):
    setting = make_setting()
    with pytest.raises(ValueError, match="no region"):
        setting.explain([])
    with pytest.raises(ValueError, match="no voxel"):
        setting.explain([Region(np.zeros(SHAPE, bool), "mask", 1, 0)])
    with pytest.raises(ValueError, match="a region has shape"):
        setting.explain([region_of(NEAR, shape=(24, 9, 9))])


def test_a_baseline_that_is_not_local_is_refused(make_setting):
    class Inpainted(Baseline):
        kind = "inpainted"
        is_local = False

    with pytest.raises(ValueError, match="'inpainted' is not local"):
        make_setting().explain([region_of(NEAR)], baseline=Inpainted())


@pytest.mark.parametrize(
    "options",
    [{"scores": ("tp", "iou")}, {"scores": ("tp", "tp")}, {"scores": ()}, {"method": "lime"}, {"signal": "loss"}],
    ids=str,
)
def test_unknown_scores_methods_and_signals_are_refused_before_any_pass(make_setting, counting, options):
    setting = make_setting()
    network = counting(setting.network)
    with pytest.raises(ValueError, match=r"unknown|repeat"):
        Setting(setting.image, setting.labels, network, setting.inferer).explain(
            [region_of(NEAR)], logits=setting.logits, **options
        )
    assert network.n_windows == 0


def test_one_visible_unit_gets_the_whole_effect_and_a_warning(make_setting):
    (explanation,) = make_setting(np.where(np.isin(blocks(), [1, 9]), blocks(), 0)).explain([region_of(NEAR)])
    assert explanation.visible.tolist() == [True, False]
    np.testing.assert_allclose(explanation.values[0], explanation.full - explanation.empty, rtol=0, atol=1e-12)
    assert np.all(explanation.values[1] == 0)
    assert any("only one unit is visible" in warning for warning in explanation.warnings)


def test_a_region_where_no_false_positive_can_appear_warns(make_setting):
    setting = make_setting()
    region = region_of(NEAR)
    mask = region.mask & (setting.logits.argmax(dim=0) == 1).numpy()
    (explanation,) = setting.explain([Region(mask, "component", 1, int(mask.sum()))])
    assert any("'fp' is 0 for every coalition" in warning for warning in explanation.warnings)
    assert np.all(explanation.values[:, 1] == 0)


def test_a_region_without_the_class_warns(make_setting):
    setting = make_setting()
    mask = region_of(NEAR).mask & (setting.logits.argmax(dim=0) != 1).numpy()
    (explanation,) = setting.explain([Region(mask, "mask", 1, 0)])
    assert any("the region holds no voxel predicted as" in warning for warning in explanation.warnings)
    assert np.all(explanation.values[:, [0, 2]] == 0)
    assert np.any(explanation.values[:, 1] != 0)


def test_a_region_with_room_for_every_score_does_not_warn_of_idle_scores(make_setting):
    (explanation,) = make_setting().explain([region_of(NEAR)])
    assert not any("for every coalition" in w or "differs" in w or "only one" in w for w in explanation.warnings)


def test_a_prediction_that_was_changed_afterwards_warns(make_setting):
    setting = make_setting()
    logits = setting.logits
    logits[:, 2, 3, 4] = torch.where(logits[:, 2, 3, 4].argmax() == 1, -1.0, 1.0) * torch.tensor([0.0, 100.0, 0.0])
    (explanation,) = setting.explain([region_of(NEAR)], logits=logits)
    (reference,) = setting.explain([region_of(NEAR)])
    assert any("differs from the network's own in 1 voxels" in warning for warning in explanation.warnings)
    np.testing.assert_array_equal(explanation.values, reference.values)


def test_network_that_breaks_down_is_refused(make_setting):
    setting = make_setting()
    broken = torch.nn.Sequential(setting.network, torch.nn.Threshold(1e9, float("nan")))
    with pytest.raises(ValueError, match="not finite"):
        Setting(setting.image, setting.labels, broken, setting.inferer).explain(
            [region_of(NEAR)], logits=setting.logits
        )


def test_a_network_that_breaks_down_for_a_perturbed_image_is_refused(make_setting):
    # not a number is no largest logit: it would count as "not predicted" and give values without a warning
    setting = make_setting()

    def network(windows: torch.Tensor) -> torch.Tensor:
        removed = (windows == FILL).flatten(1).sum(dim=1).reshape(-1, 1, 1, 1, 1)
        return torch.where(removed > 200, torch.nan, setting.network(windows))

    with pytest.raises(ValueError, match="not finite"):
        Setting(setting.image, setting.labels, network, setting.inferer).explain(
            [region_of(NEAR)], logits=setting.logits
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_baseline_that_is_not_finite_is_refused(make_setting, value):
    with pytest.raises(ValueError, match="not finite"):
        make_setting().explain([region_of(NEAR)], baseline=ConstantBaseline(value))


def test_a_region_without_visible_units_among_others_is_refused_before_any_pass(make_setting, counting):
    setting = make_setting(np.where(blocks() <= 6, blocks(), 0))
    network = counting(setting.network)
    with pytest.raises(ValueError, match="no unit changes a voxel"):
        Setting(setting.image, setting.labels, network, setting.inferer).explain(
            [region_of(NEAR), region_of(FAR)], logits=setting.logits
        )
    assert network.n_windows == 0


def test_metatensors_are_explained_on_their_own_grid(make_setting):
    setting, region = make_setting(), region_of(NEAR)
    affine = np.array([[-2.0, 0, 0, 30], [0, -3, 0, 40], [0, 0, 5, -50], [0, 0, 0, 1]])
    image = MetaTensor(setting.image, affine=torch.from_numpy(affine))
    partition = partition_from_labels(setting.labels, VoxelGrid(SHAPE, affine), "blocks")
    explainer = KernelSHAPExplainer(
        setting.network, SlidingWindowInferer(**INFERER), baseline=ConstantBaseline(FILL), progress=False
    )
    (found,) = explainer(image, partition, [region], MetaTensor(setting.logits, affine=torch.from_numpy(affine)))
    (plain,) = setting.explain([region])
    np.testing.assert_allclose(found.values, plain.values, rtol=0, atol=1e-12)  # other blocks, sums in another order
    np.testing.assert_array_equal(found.file_grid.affine, affine)
    assert type(found.image) is type(found.prediction) is np.ndarray
