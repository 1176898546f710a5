# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Contrasts: sub-regions by rule and by label convention, what is absent, what is refused, and the files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from contrast_cases import INFERER, NAMES, SHAPE, make_image, make_label
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import ConvertToMultiChannelBasedOnBratsClasses
from scipy.stats import rankdata

from monai_segshap.explainers import (
    ContrastGame,
    ContrastShapleyExplainer,
    SubRegion,
    contrast_table,
    contrast_values,
    format_contrast_table,
    tumor_sub_regions,
    write_contrasts,
)
from monai_segshap.explainers.contrast.sub_regions import predicted_masks, truth_masks
from monai_segshap.heads import OutputHeads
from monai_segshap.metrics import rank_agreement, rank_variance

SIGMOID = OutputHeads("sigmoid")
PARTS = ("TC", "WT", "ET", "NCR", "ED")


def explainer_of(network, **options):
    options = {"contrasts": NAMES, "sub_regions": tumor_sub_regions(), "progress": False, **options}
    return ContrastShapleyExplainer(network, SlidingWindowInferer(**INFERER), **options)


@pytest.fixture(scope="module")
def network(make_network):
    return make_network("conv", in_channels=4)


@pytest.fixture(scope="module")
def found(network):
    """Of two networks; ET is absent from the ground truth."""
    label = make_label(values=(0, 1, 2))
    scores = ("dice_truth", "dice", "tp")
    return explainer_of([network, network], scores=scores)(make_image(), label, "case 7")


@pytest.mark.parametrize("scheme", ["2021", "2023"])
def test_label_maps_of_both_conventions_and_masks_are_one(scheme):
    enhancing = {"2021": 4, "2023": 3}[scheme]
    label = make_label(values=(0, 1, 2, enhancing))
    masks = ConvertToMultiChannelBasedOnBratsClasses(et_label=enhancing)(label)
    regions = tumor_sub_regions(PARTS, label_values=scheme)
    by_map, by_mask = truth_masks(regions, label, SIGMOID, 3), truth_masks(regions, masks.float(), SIGMOID, 3)
    assert np.array_equal(by_map, by_mask)
    assert np.array_equal(by_map[:3], masks.numpy())
    assert all(by_map.any(axis=(1, 2, 3)))
    assert not (by_map[3:].sum(axis=0) + by_map[2] > 1).any()  # NCR, ED and ET are disjoint
    assert np.array_equal(by_map[2:].any(axis=0), by_map[1])


@pytest.mark.parametrize(("value", "scheme"), [(4, "2023"), (3, "2021")])
def test_a_label_map_of_the_other_convention_is_refused(value, scheme):
    label = make_label(values=(0, 1, 2, value))
    with pytest.raises(ValueError, match=rf"the label map holds \[{value}\].*4 until 2021 and as 3 since 2023"):
        truth_masks(tumor_sub_regions(label_values=scheme), label, SIGMOID, 3)
    known = {"NCR": 1, "ED": 2, "ET": 3, "RC": 4}  # resection cavity
    assert truth_masks(tumor_sub_regions(("ET",), label_values=known), label, SIGMOID, 3).any() == (value == 3)


def test_disjoint_parts_of_overlapping_heads_are_those_that_nnunet_paints():
    logits = torch.as_tensor(np.random.default_rng(3).normal(size=(3, *SHAPE)), dtype=torch.float32)
    regions = tumor_sub_regions(("NCR", "ED", "ET"), ("WT", "TC", "ET"))
    painted = OutputHeads("sigmoid", paint=(2, 1, 3)).label_map(logits)
    for mask, value in zip(predicted_masks(regions, logits, SIGMOID), (1, 2, 3), strict=True):
        assert mask.any()
        assert torch.equal(mask, painted == value)


def test_softmax_classes_make_overlapping_parts():
    logits = torch.as_tensor(np.random.default_rng(4).normal(size=(4, *SHAPE)), dtype=torch.float32)
    regions = tumor_sub_regions(PARTS, ("background", "NCR", "ED", "ET"))
    tc, wt, et, ncr, ed = predicted_masks(regions, logits, OutputHeads("softmax"))
    winner = logits.argmax(dim=0)
    assert torch.equal(wt, winner > 0)
    assert torch.equal(tc, (winner == 1) | (winner == 3))
    assert torch.equal(torch.stack([ncr, ed, et]), torch.stack([winner == c for c in (1, 2, 3)]))
    assert [region.is_one_channel for region in regions] == [False, False, True, True, True]


def test_labels_without_numbers_are_the_classes_of_softmax_and_refused_for_overlapping_heads():
    label = make_label()
    plain = [SubRegion("a", (1,)), SubRegion("b", (2, 3))]
    masks = truth_masks(plain, label, OutputHeads("softmax"), 4)
    assert np.array_equal(masks[1], label[0].numpy() >= 2)
    with pytest.raises(ValueError, match="sub-region 'a' has no label values"):
        truth_masks(plain, label, SIGMOID, 3)
    with pytest.raises(ValueError, match=r"ground truth has 2 channels; expected one with a label map, or 3 masks"):
        truth_masks(plain, torch.zeros(2, *SHAPE), SIGMOID, 3)
    with pytest.raises(ValueError, match="no whole numbers"):
        truth_masks(tumor_sub_regions(), label + 0.5, SIGMOID, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("XY",),), "'XY' does not follow"),
        ((("NCR",), ("WT", "ET")), "'NCR' does not follow"),
        ((("ET",), ("TC", "WT", "ET"), "2019"), "label values '2019'; expected '2021' or '2023'"),
        ((("ET",), ("ET",), {"ET": 3}), "the values of NCR, ED and ET"),
    ],
)
def test_sub_regions_that_do_not_follow_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tumor_sub_regions(*arguments)


@pytest.mark.parametrize("fields", [{"channels": ()}, {"channels": 1, "without": 1}, {"channels": -1}])
def test_sub_regions_without_channels_are_refused(fields):
    with pytest.raises(ValueError, match="at least one channel, numbered from 0"):
        SubRegion("a", **fields)


def logits_of(*masks: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(np.stack(masks), 1.0, -1.0).astype(np.float32))


def test_dice_with_nothing_to_find_has_no_value_or_is_1():
    empty, some, other = np.zeros((3, 2, 4, 4), dtype=bool)
    some[:, :2], other[:, 1:3] = True, True
    regions = [SubRegion(name, c, labels=(c + 1,)) for c, name in enumerate(("absent", "present"))]
    truth = np.stack([empty, other])
    for absent, undefined, none in (("nan", np.nan, np.nan), ("one", 0.0, 1.0)):
        game = ContrastGame(regions, ("dice_truth", "dice", "tp", "fp"), SIGMOID, absent=absent, truth=truth)
        full, sizes = game(logits_of(empty, some))
        # P_0 of the first is empty; the second has 16 voxels, 8 of them true
        np.testing.assert_allclose(full, [[none, 0.5], [none, 1.0], [np.nan if absent == "nan" else 0.0, 0.5], [0, 0]])
        assert sizes.tolist() == [0, 16]
        changed, _ = game(logits_of(some, empty))
        np.testing.assert_allclose(changed[:2], [[undefined, 0.0], [undefined, 0.0]], atol=1e-9)
        np.testing.assert_allclose(changed[3], [-0.5, 0.0])
        assert (game.reason("dice_truth", 0) == "absent is absent from the ground truth") == (absent == "nan")
        assert (game.reason("tp", 0) == "absent is not predicted with every contrast kept") == (absent == "nan")
        assert game.reason("fp", 0) is game.reason("dice_truth", 1) is None


def test_an_absent_sub_region_has_no_values_and_says_why(found):
    one = found[0]
    assert one.truth_voxels[2] == 0
    assert np.isnan(one.of("dice_truth", "ET")).all()
    assert np.isnan(one.coalition_scores[0, :, 2]).all()
    assert not np.isnan(one.of("dice_truth")[:, :2]).any()
    assert not np.isnan(one.of("dice")).any()
    assert one.reasons == {"dice_truth": {"ET": "ET is absent from the ground truth"}}
    assert any("dice_truth of ET has no values: ET is absent" in w for w in one.warnings)


def test_absent_one_gives_values_where_the_prediction_comes_and_goes(network):
    label = make_label(values=(0, 1, 2))
    (one,) = explainer_of(network, absent="one")(make_image(), label)
    predicted = one.predicted_voxels[:, 2]
    assert np.array_equal(one.coalition_scores[0, :, 2], (predicted == 0).astype(float))
    assert one.reasons == {}
    assert np.isfinite(one.values).all()


def test_a_score_that_never_changes_is_said_to_be_a_tie(make_network):
    network = make_network("conv", in_channels=4)
    with torch.no_grad():
        network[3].bias.copy_(torch.tensor([0.0, -100.0, 0.0]))  # WT is never predicted, and there is some
    (one,) = explainer_of(network)(make_image(), make_label())
    assert (one.of("dice_truth", "WT") == 0).all()
    assert any("dice_truth of WT is the same for every coalition" in w for w in one.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ()}, "expected some of dice_truth, tp"),
        ({"scores": ("dice", "dice")}, "each once"),
        ({"scores": ("iou",)}, r"scores \['iou'\]"),
        ({"sub_regions": []}, "at least one, each with a name"),
        ({"sub_regions": [SubRegion("a", 0), SubRegion("a", 1)]}, "a name of its own"),
        ({"sub_regions": tumor_sub_regions(("NCR",)), "scores": ("tp",)}, r"\['tp'\] sum the logit of one output"),
        ({"absent": "zero"}, "expected one of logit.* one of nan, one"),
        ({"signal": "odds"}, "signal 'odds'"),
        ({"removal": "blank"}, "unknown removal 'blank'; expected one of zero"),
        ({"removal": {"t1c": 0.0}}, "expected one for each of the contrasts t1c, t1n, t2w, t2f"),
        ({"removal": None}, "removal is None"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"heads": "tanh"}, "unknown heads 'tanh'"),
        ({"contrasts": ["t1", "t1n"]}, "name the same contrast"),
    ],
)
def test_options_that_make_no_sense_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        explainer_of(network, **options)


@pytest.mark.parametrize("networks", [[], [torch.nn.Identity(), 3]])
def test_no_network_is_refused(networks):
    with pytest.raises(ValueError, match="can not be called; expected at least one"):
        explainer_of(networks)


def test_inputs_that_do_not_fit_are_refused_before_any_pass(network, counting):
    counted = counting(network)
    explain, image, label = explainer_of(counted), make_image(), make_label()
    broken = image.clone()
    broken[1, 2, 3, 4] = torch.nan
    moved = MetaTensor(label, affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])))
    for arguments, message in (
        ((image[:3], label), "the image has 3 channels; the contrasts describe 4"),
        ((broken, label), "not finite"),
        ((image, None), "score 'dice_truth' needs a ground truth"),
        ((image, label[:, 1:]), "lie on different grids"),
        ((MetaTensor(image, affine=torch.eye(4)), moved), "lie on different grids"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(*arguments)
    with pytest.raises(ValueError, match=r"the prediction has shape \(3, 4, 5\)"):
        explain(image, label, logits=torch.zeros(3, 4, 5))
    assert counted.n_windows == 0


def test_networks_that_do_not_fit_are_refused(network, make_network):
    image, label = make_image(), make_label()
    with pytest.raises(ValueError, match=r"sub-regions use output channels up to 5; the network has 3"):
        explainer_of(network, sub_regions=[SubRegion("a", 5, labels=1)])(image, label)
    with pytest.raises(ValueError, match=r"\{'0': 3, '1': 2\} output channels"):
        explainer_of([network, make_network("conv", in_channels=4, classes=2)])(image, label)
    with pytest.raises(ValueError, match="returned tuple"):
        explainer_of(lambda windows: (windows, windows))(image, label)

    def unstable(windows: torch.Tensor) -> torch.Tensor:
        return network(windows) / (windows[:, :1] != 0).any()

    with pytest.raises(ValueError, match=r"not finite.*for a coalition of contrasts"):
        explainer_of(unstable)(image, label)


def test_file_names_and_metadata_must_agree_with_the_contrasts(network):
    explain, image, label = explainer_of(network, scores=("dice",)), make_image(), make_label()
    right = [f"BraTS2021_00000_{name}.nii.gz" for name in ("t1ce", "t1", "t2", "flair")]

    def unchecked(volume, **options):
        (one,) = explain(volume, label, **options)
        return [w for w in one.warnings if "no file name or metadata" in w]

    assert unchecked(image, sources=right) == []
    assert "channel(s) 0, 1, 2, 3 are" in unchecked(image)[0]
    assert unchecked(MetaTensor(image, meta={"channel_names": {"0": "T1gd", "1": "T1", "2": "T2", "3": "FLAIR"}})) == []
    assert "channel(s) 1, 2, 3 are" in unchecked(MetaTensor(image, meta={"filename_or_obj": right[0]}))[0]
    for volume, options in (
        (image, {"sources": right[::-1]}),
        (MetaTensor(image, meta={"channel_names": ["t1n", "t1c", "t2w", "t2f"]}), {}),
        (MetaTensor(image, meta={"filename_or_obj": right[3]}), {}),
    ):
        with pytest.raises(ValueError, match="channel 0 should be t1c"):
            explain(volume, label, **options)


def test_a_prediction_that_is_not_the_networks_own_is_noted(network, plain_logits):
    explain, image, label = explainer_of(network), make_image(), make_label()
    logits = plain_logits(image, network, **INFERER)
    (same,) = explain(image, label, logits=logits)
    assert same.execution["prediction_difference"] == 0.0
    (other,) = explain(image, label, logits=logits + 0.5)
    assert other.execution["prediction_difference"] == pytest.approx(0.5, abs=1e-5)
    assert any("differs from the network's own by up to 0.5" in w for w in other.warnings)
    assert not any("differs" in w for w in same.warnings)
    assert np.array_equal(other.values, same.values)


def test_an_image_without_zeros_gets_a_warning_about_removal_by_zero(network):
    image = make_image()
    image[image == 0] = -3.0
    words = "hardly a voxel of the image is 0"
    assert any(words in w for w in explainer_of(network)(image, make_label())[0].warnings)
    assert not any(words in w for w in explainer_of(network, removal=-3.0)(image, make_label())[0].warnings)


def test_files_hold_every_fold_and_nothing_for_what_is_undefined(found, tmp_path):
    written = write_contrasts(found, tmp_path / "case 7")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case 7"]
    assert (
        sorted(p.name for p in (tmp_path / "case 7").iterdir())
        == sorted(written)
        == [
            "contrasts.csv",
            "contrasts.json",
        ]
    )
    record = json.loads(written["contrasts.json"].read_text())
    assert record["removal"]["network_value"] == 0.0
    assert record["contrasts"][3] == {"name": "t2f", "channels": [3], "live": True}
    assert record["truth_voxels"] == dict(zip(("TC", "WT", "ET"), found[0].truth_voxels.tolist(), strict=True))
    assert [fold["fold"] for fold in record["folds"]] == ["0", "1"]
    dice = record["folds"][1]["scores"]["dice_truth"]
    assert dice["ET"]["values"] == dict.fromkeys(NAMES)
    assert dice["ET"]["reason"] == "ET is absent from the ground truth"
    assert list(dice["WT"]["values"].values()) == found[1].of("dice_truth", "WT").tolist()
    assert dice["WT"]["coalition_scores"] == found[1].coalition_scores[0, :, 1].tolist()
    assert record["folds"][0]["coalitions"][6]["kept"] == ["t1n", "t2w"]
    assert record["folds"][0]["forwards"]["run"] == found[0].forwards.run
    table = pd.read_csv(written["contrasts.csv"])
    assert len(table) == 2 * 3 * 3 * 4
    row = table[(table.fold == 1) & (table.score == "dice") & (table.sub_region == "TC") & (table.contrast == "t2w")]
    assert row["value"].item() == pytest.approx(found[1].of("dice", "TC")[2], abs=1e-15)
    absent = table[(table.score == "dice_truth") & (table.sub_region == "ET")]
    assert absent["value"].isna().all()
    assert (absent["reason"] == "ET is absent from the ground truth").all()
    write_contrasts(found[:1], tmp_path / "case 7")  # replaces
    assert len(json.loads(written["contrasts.json"].read_text())["folds"]) == 1


def test_files_appear_whole_or_not_at_all(found, tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="taken"):
        write_contrasts(found, tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(ValueError, match=r"the cases \[\]"):
        write_contrasts([], tmp_path)


def test_values_of_folds_come_as_rows_for_rank_metrics(found):
    rows = contrast_values(found, "dice", "TC")
    assert rows.shape == (2, 4)
    assert np.array_equal(rows[1], found[1].of("dice", "TC"))
    assert len(contrast_table(found)) == 72
    with pytest.raises(ValueError, match="no values of score 'fp'"):
        contrast_values(found, "fp", "TC")
    with pytest.raises(ValueError, match="got no contrast explanation"):
        contrast_table([])
    with pytest.raises(ValueError, match="expected one list of them"):
        contrast_values([], "dice", "TC")


def test_rank_metrics_take_the_values_as_they_are(found):
    values = found[0].of("dice", "TC")
    assert rank_agreement(values, rankdata(-values)) == 1.0
    assert rank_agreement(values, rankdata(values)) == 0.0
    assert rank_variance(rankdata(-contrast_values(found, "dice", "TC"), axis=1)) == 0.0  # twice the same network
    assert np.isnan(rank_agreement(found[0].of("dice_truth", "ET"), [1, 2, 3, 4]))


def test_the_table_for_the_screen_shows_values_and_notes(found):
    text = format_contrast_table(found)
    value = found[1].of("dice", "WT")[2]
    (block,) = [part for part in text.split("case 7, ") if part.startswith("fold 1: dice\n")]
    (line,) = [row for row in block.splitlines() if row.startswith("t2w")]
    assert line.split()[2] == f"{value:+.4f}"
    assert text.count("note: dice_truth of ET has no values") == 1
