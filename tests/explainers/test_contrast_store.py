# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Values of contrasts on disk: read back as they were, found by the same question only, kept at an interruption."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from contrast_cases import INFERER, NAMES, make_image, make_label
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet

from monai_segshap.explainers import ContrastShapleyExplainer, read_contrasts, tumor_sub_regions, write_contrasts

REGIONS = tumor_sub_regions(("TC", "WT", "ET", "NCR"))


def make_network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return UNet(3, 4, 3, (4, 8), (2,), norm="INSTANCE").eval()


class Counted(torch.nn.Module):
    """Counts windows, and stops at one of them."""

    def __init__(self, network: torch.nn.Module, stop_after: float = np.inf) -> None:
        super().__init__()
        self.network, self.passes, self.stop_after = network, 0, stop_after

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.passes += len(windows)
        if self.passes > self.stop_after:
            raise KeyboardInterrupt
        return self.network(windows)


def explainer(networks: Any, folder: Any, **options: Any) -> ContrastShapleyExplainer:
    settings = {"scores": ("dice_truth", "dice"), "progress": False, "store_dir": folder, **options}
    inferer = settings.pop("inferer", SlidingWindowInferer(**INFERER))
    return ContrastShapleyExplainer(networks, inferer, NAMES, REGIONS, **settings)


def assert_equal(one: Any, other: Any, but: tuple[str, ...] = ()) -> None:
    for field in fields(one):
        if field.name in but:
            continue
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "seconds":
            assert a == pytest.approx(b, abs=1e-6)
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            assert a == b, field.name


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    return {"first": make_network(0), "second": make_network(1)}


def test_explanations_are_read_back_as_they_were(networks, tmp_path):
    label = make_label(values=(0, 1, 2))  # no ET: not every score has a value
    found = explainer(networks, None)(make_image(), label, "case 7")
    assert found[0].reasons["dice_truth"]["ET"]
    write_contrasts(found, tmp_path / "case")
    for one, other in zip(found, read_contrasts(tmp_path / "case"), strict=True):
        assert_equal(one, other)


def test_explanations_without_ground_truth_and_of_groups_are_read_back(networks, tmp_path):
    options = {"scores": ("dice", "tp"), "progress": False, "removal": {"a": 0.5, "b": -1}}
    groups = {"b": [2, 3], "a": [0]}
    regions = tumor_sub_regions(("TC", "ET"))
    ask = ContrastShapleyExplainer(networks["first"], SlidingWindowInferer(**INFERER), groups, regions, **options)
    found = ask(make_image(), case="c")
    write_contrasts(found, tmp_path)
    assert_equal(found[0], read_contrasts(tmp_path)[0])


@pytest.mark.parametrize("text", ["", "[]", '{"folds": [{}]}', '{"folds": 3}'])
def test_other_files_are_no_records(text, tmp_path):
    (tmp_path / "contrasts.json").write_text(text)
    with pytest.raises(ValueError, match=r"contrasts\.json is no record of contrast values"):
        read_contrasts(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_contrasts(tmp_path / "nowhere")


def test_the_same_question_runs_nothing_again_under_any_name(networks, tmp_path, capsys):
    first = explainer(networks, tmp_path)(make_image(), make_label(), "one name")
    assert len(list(tmp_path.iterdir())) == 2
    batches = []  # a hook, since a network in a wrapper would be another network
    hooks = [
        n.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0]))) for n in networks.values()
    ]
    again = explainer(networks, tmp_path, progress=True)(make_image(), make_label(), "another name")
    for hook in hooks:
        hook.remove()
    assert batches == []
    for one, other in zip(first, again, strict=True):
        assert_equal(one, other, but=("case",))
        assert other.case == "another name"
    assert "2 network(s) are there from an earlier run" in capsys.readouterr().out


def test_a_network_more_runs_alone(networks, tmp_path):
    explainer({"first": networks["first"]}, tmp_path)(make_image(), make_label())
    counted = Counted(networks["second"])
    found = explainer({"first": networks["first"], "second": counted}, tmp_path)(make_image(), make_label())
    assert [one.fold for one in found] == ["first", "second"]
    assert counted.passes == found[1].forwards.run + found[1].forwards.calibration
    alone = explainer(networks["second"], None)(make_image(), make_label())[0]
    np.testing.assert_array_equal(found[1].values, alone.values)


@pytest.mark.parametrize(
    "change",
    [
        {"removal": "channel_mean"},
        {"scores": ("dice_truth",)},
        {"absent": "one"},
        {"inferer": SlidingWindowInferer(**{**INFERER, "overlap": 0.25})},
        {"image": make_image(5)},
        {"label": make_label(6)},
        {"network": make_network(3)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_question_has_values_of_its_own(change, networks, tmp_path):
    explainer(networks["first"], tmp_path)(make_image(), make_label())
    change = dict(change)
    image, label = change.pop("image", make_image()), change.pop("label", make_label())
    network = change.pop("network", networks["first"])
    found = explainer(network, tmp_path, **change)(image, label)[0]
    assert len(list(tmp_path.iterdir())) == 2
    direct = explainer(network, None, **change)(image, label)[0]
    np.testing.assert_array_equal(found.values, direct.values)


def test_an_interruption_keeps_the_networks_that_are_finished(networks, tmp_path, capsys):
    stopping = Counted(networks["second"], stop_after=40)
    with pytest.raises(KeyboardInterrupt):
        explainer({"first": networks["first"], "second": stopping}, tmp_path)(make_image(), make_label())
    assert "values of finished networks are kept" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 1
    first = explainer({"first": networks["first"]}, tmp_path)(make_image(), make_label())[0]
    assert len(list(tmp_path.iterdir())) == 1
    assert_equal(first, explainer(networks["first"], None)(make_image(), make_label())[0], but=_OF_A_RUN)


#: What differs between runs with equal values.
_OF_A_RUN = ("seconds", "fold", "identity", "execution", "warnings", "forwards")


def test_a_damaged_file_is_run_again(networks, tmp_path):
    first = explainer(networks["first"], tmp_path)(make_image(), make_label())[0]
    (place,) = tmp_path.iterdir()
    (place / "contrasts.json").write_text("{")
    again = explainer(networks["first"], tmp_path)(make_image(), make_label())[0]
    assert_equal(first, again, but=("seconds",))
    assert len(read_contrasts(place)) == 1
