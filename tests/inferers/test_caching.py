# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_segshap.inferers import CacheInfo, CachingSlidingWindowInferer, UnitPerturbation

ROI = (8, 8, 8)


def perturbation_of(case: Any) -> UnitPerturbation:
    return UnitPerturbation(case.image[None], case.labels, case.fill[None])


def random_rows(n_units: int, n_rows: int = 8, seed: int = 0) -> np.ndarray:
    """Every other one removes a single unit, so that most of its windows are known from earlier ones."""
    rows = np.random.default_rng(seed).random((n_rows, n_units)) < 0.7
    rows[::2] = ~np.eye(n_units, dtype=bool)[np.arange(len(rows[::2])) % n_units]
    return rows


@torch.no_grad()
def assert_same_as_parent(
    perturbation: UnitPerturbation, network: Any, rows: np.ndarray, bound: int = 2**30, **inferer: Any
) -> CacheInfo:
    """Cached calls equal the parent's on the masked image; returns the state of the cache."""
    parent, caching = SlidingWindowInferer(**inferer), CachingSlidingWindowInferer(**inferer, max_cache_bytes=bound)
    for row in rows:
        found = caching(perturbation.image, network, perturbation=perturbation, coalition=row)
        assert torch.equal(found, parent(perturbation.apply(row), network))
        assert caching.cache_info().bytes <= bound
        found.zero_()  # the caller's copy: the cache must not see it
    return caching.cache_info()


# --- the perturbed image ---


@pytest.mark.parametrize("label_axes", [0, 1, 2])
def test_applied_coalition_replaces_removed_units_only(make_case, label_axes):
    case = make_case((13, 9, 7), 5, channels=2)
    case.fill.copy_(torch.rand(case.fill.shape))
    labels = case.labels[(None,) * label_axes]
    perturbation = UnitPerturbation(case.image[None], labels, case.fill[None])
    assert perturbation.n_units == 5
    for row in random_rows(5):
        assert torch.equal(perturbation.apply(row)[0], case.masked(row))


def test_fill_may_be_a_number_or_one_value_a_channel(make_case):
    case = make_case((9, 9, 7), 3, channels=2)
    nothing = UnitPerturbation(case.image[None], case.labels, -2.0).apply([False] * 3)[0]
    assert torch.equal(nothing, torch.where(case.labels > 0, -2.0, case.image))
    per_channel = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1, 1)
    nothing = UnitPerturbation(case.image[None], case.labels, per_channel).apply([False] * 3)[0]
    assert torch.equal(nothing[1], torch.where(case.labels > 0, 2.0, case.image[1]))


def test_perturbation_does_not_follow_later_changes(make_case):
    case = make_case((9, 9, 7), 3)
    image, labels, fill = case.image[None].clone(), case.labels.clone(), case.fill[None].clone()
    perturbation = UnitPerturbation(image, labels, fill)
    before = perturbation.apply([True, False, True])
    image.zero_(), labels.zero_(), fill.zero_()
    perturbation.apply([True, True, True]).zero_()
    assert torch.equal(perturbation.apply([True, False, True]), before)


@pytest.mark.parametrize("length", [2, 4])
def test_coalition_of_another_length_is_refused(make_case, make_network, length):
    perturbation = perturbation_of(make_case((9, 9, 7), 3))
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        perturbation.apply([True] * length)
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        CachingSlidingWindowInferer(ROI)(
            perturbation.image, make_network("conv"), perturbation=perturbation, coalition=[True] * length
        )


@pytest.mark.parametrize(
    "shapes", [((1, 9, 9, 7), (9, 9, 7)), ((1, 1, 9, 9, 7), (9, 9, 8)), ((1, 1, 9, 9, 7), (2, 9, 9, 7))], ids=str
)
def test_image_and_labels_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="one label"):
        UnitPerturbation(torch.rand(shapes[0]), torch.ones(shapes[1], dtype=torch.int64), 0.0)


# --- called like the parent ---


def test_it_is_a_sliding_window_inferer_with_the_same_constructor():
    assert issubclass(CachingSlidingWindowInferer, SlidingWindowInferer)
    values = {
        "roi_size": (4, 5, 6),
        "sw_batch_size": 3,
        "overlap": 0.3,
        "mode": "gaussian",
        "sigma_scale": 0.2,
        "padding_mode": "reflect",
        "cval": 1.5,
        "sw_device": "cpu",
        "device": "cpu",
        "progress": True,
        "cache_roi_weight_map": True,
        "cpu_thresh": 9,
        "buffer_steps": 2,
        "buffer_dim": 0,
        "with_coord": True,
    }
    assert list(values) == list(inspect.signature(SlidingWindowInferer).parameters)
    parent = vars(SlidingWindowInferer(*values.values()))
    for child in (CachingSlidingWindowInferer(*values.values()), CachingSlidingWindowInferer(**values)):
        for name, value in parent.items():
            same = (
                torch.equal(getattr(child, name), value)
                if isinstance(value, torch.Tensor)
                else getattr(child, name) == value
            )
            assert same, name


ANSWERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda w: 2 * w,
    "tuple": lambda w: (w, w[:, :, ::2, ::2, ::2]),
    "dict": lambda w: {"b": w, "a": -w},
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("buffer_steps", [None, 2])
def test_plain_calls_equal_the_parent(answer, buffer_steps):
    if answer != "tensor" and buffer_steps:
        pytest.skip("the parent keeps only the first output of a buffered call")
    image, network = torch.rand(2, 1, 16, 12, 8), ANSWERS[answer]
    inferer = {"roi_size": ROI, "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian", "buffer_steps": buffer_steps}
    expected, found = (
        SlidingWindowInferer(**inferer)(image, network),
        CachingSlidingWindowInferer(**inferer)(image, network),
    )
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        expected, found = tuple(expected.values()), tuple(found.values())
    if isinstance(expected, torch.Tensor):
        expected, found = (expected,), (found,)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_plain_calls_leave_the_cache_alone(make_case, make_network):
    perturbation, network = perturbation_of(make_case((13, 9, 7), 3)), make_network("conv")
    inferer = CachingSlidingWindowInferer(ROI)
    inferer(perturbation.image, network, perturbation=perturbation, coalition=[True] * 3)
    before = inferer.cache_info()
    inferer(torch.rand(1, 1, 20, 9, 9), network)
    assert inferer.cache_info() == before


# --- cached calls ---


@pytest.mark.parametrize("kind", ["unet", "wide_unet", "segresnet", "dynunet"])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_cached_calls_are_bit_identical_for_every_network_and_batch_size(make_case, make_network, kind, batch_size):
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5, "mode": "gaussian"}
    perturbation = perturbation_of(make_case((27, 9, 7), 6))
    info = assert_same_as_parent(perturbation, make_network(kind), random_rows(6, 6), **inferer)
    assert info.hits > 0


@pytest.mark.parametrize("shape", [(21, 13, 9), (17, 8, 11), (11, 7, 6), (5, 5, 5)], ids=str)
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.625])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_cached_calls_are_bit_identical_for_every_geometry(make_case, make_network, shape, overlap, mode):
    inferer = {"roi_size": ROI, "sw_batch_size": 4, "overlap": overlap, "mode": mode}
    assert_same_as_parent(perturbation_of(make_case(shape, 5, seed=1)), make_network("conv"), random_rows(5), **inferer)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_cached_calls_pad_as_the_parent(make_case, make_network, mode, batch_size):
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5, "padding_mode": mode}
    inferer["cval"] = -0.7 if mode == "constant" else 0.0
    assert_same_as_parent(perturbation_of(make_case((27, 7, 6), 5)), make_network("unet"), random_rows(5), **inferer)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("roi", [ROI, 8, (8, -1, 8)], ids=str)
def test_cached_calls_with_two_images_in_the_batch_equal_the_parent(make_case, make_network, batch_size, roi):
    case = make_case((17, 9, 7), 5, channels=2)
    images = torch.stack([case.image, torch.roll(case.image, 3, dims=1)])
    images[1, :, case.labels == 2] = -0.5  # unit 2 is a dummy of the second image alone
    perturbation = UnitPerturbation(images, case.labels, -0.5)
    inferer = {"roi_size": roi, "sw_batch_size": batch_size, "overlap": 0.5}
    assert_same_as_parent(perturbation, make_network("conv", in_channels=2), random_rows(5), **inferer)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_network_that_normalizes_its_own_input_gives_the_same_bits(make_case, batch_size):
    def network(windows: torch.Tensor) -> torch.Tensor:
        return windows - windows.mean(dim=(2, 3, 4), keepdim=True)

    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5}
    assert_same_as_parent(perturbation_of(make_case((27, 9, 7), 5)), network, random_rows(5), **inferer)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_networks_with_coordinates_get_those_of_their_windows(make_case, batch_size):
    def network(windows: torch.Tensor, coordinates: Any) -> torch.Tensor:
        place = torch.tensor([[float(s.start) for s in slices[2:]] for slices in coordinates])
        return windows + place.sum(dim=1).reshape(-1, 1, 1, 1, 1)

    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5, "with_coord": True}
    assert_same_as_parent(perturbation_of(make_case((40, 9, 11), 9)), network, random_rows(9), **inferer)


@pytest.mark.parametrize("batch_size", [1, 5])
@torch.no_grad()
def test_a_condition_is_sent_with_its_own_windows(make_case, batch_size):
    perturbation, condition = perturbation_of(make_case((40, 9, 11), 9)), torch.rand(1, 1, 40, 9, 11)
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5}
    parent, caching = SlidingWindowInferer(**inferer), CachingSlidingWindowInferer(**inferer)

    def network(windows: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return windows * condition

    for row in random_rows(9):
        found = caching(perturbation.image, network, perturbation=perturbation, coalition=row, condition=condition)
        assert torch.equal(found, parent(perturbation.apply(row), network, condition=condition))


@pytest.mark.parametrize("training", [True, False])
def test_output_of_another_resolution_is_fused_as_by_the_parent(make_case, training):
    network = torch.nn.AvgPool3d(2).train(training)
    inferer = {"roi_size": ROI, "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}
    assert_same_as_parent(perturbation_of(make_case((16, 12, 8), 5)), network, random_rows(5), **inferer)


def test_extra_arguments_reach_the_network_and_a_new_one_clears_the_cache(make_case):
    perturbation, inferer = perturbation_of(make_case((18, 9, 11), 5)), CachingSlidingWindowInferer(ROI)
    for factor in (torch.tensor(2.0), torch.tensor(3.0)):
        found = inferer(perturbation.image, torch.mul, factor, perturbation=perturbation, coalition=[True] * 5)
        assert torch.allclose(found, perturbation.image * factor)


# --- what is run, and what is kept ---


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("shape", [(21, 13, 9), (11, 7, 6)], ids=str)
def test_hits_and_misses_are_those_counted_by_content(
    make_case, make_network, library_windows, counting, shape, batch_size
):
    case, network = make_case(shape, 6, seed=2), counting(make_network("conv"))
    case.image[:, case.labels == 3] = case.fill[:, case.labels == 3]
    perturbation, rows = perturbation_of(case), random_rows(6, 12)
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5}
    caching = CachingSlidingWindowInferer(**inferer)
    contents: set[tuple[Any, bytes]] = set()
    total = 0
    for row in rows:
        caching(perturbation.image, network, perturbation=perturbation, coalition=row)
        windows = library_windows(case.masked(row), **inferer)
        total += len(windows)
        contents |= {(window.start, window.content) for window in windows}
        info = caching.cache_info()
        assert (info.hits, info.misses, info.entries) == (total - len(contents), len(contents), len(contents))
    assert {content for batch in network.batches for content in batch} == {content for _, content in contents}
    assert info.bytes == len(contents) * 3 * 8**3 * 4
    if batch_size == 1:
        assert network.n_windows == len(contents)


def test_a_repeated_coalition_runs_nothing(make_case, make_network, counting):
    perturbation, network = perturbation_of(make_case((18, 9, 11), 5)), counting(make_network("conv"))
    inferer = CachingSlidingWindowInferer(ROI, 3, 0.5)
    first = inferer(perturbation.image, network, perturbation=perturbation, coalition=[True, False] * 2 + [True])
    passes = network.n_windows
    second = inferer(perturbation.image, network, perturbation=perturbation, coalition=[True, False] * 2 + [True])
    assert network.n_windows == passes > 0
    assert torch.equal(first, second)


@pytest.mark.parametrize("windows", [0, 1, 7, 20])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_bounded_cache_changes_no_bit(make_case, make_network, windows, batch_size):
    inferer = {"roi_size": ROI, "sw_batch_size": batch_size, "overlap": 0.5}
    entry = 3 * 8**3 * 4
    bound = windows * entry + entry // 2
    info = assert_same_as_parent(
        perturbation_of(make_case((27, 9, 7), 5)), make_network("unet"), random_rows(5), bound, **inferer
    )
    assert info.entries <= windows


def test_least_recently_used_window_is_dropped_first(make_network):
    # one window, three contents, room for two: keeping both, A, B, A, C drops B
    image, labels = torch.rand(1, 1, 8, 8, 8), torch.ones(8, 8, 8, dtype=torch.int64)
    labels[4:] = 2
    perturbation, network = UnitPerturbation(image, labels, 0.0), make_network("conv")
    inferer = CachingSlidingWindowInferer(ROI, max_cache_bytes=2 * 3 * 8**3 * 4)
    a, b, c = [True, True], [True, False], [False, True]
    misses = []
    for row in (a, b, a, c, a, c, b):
        inferer(image, network, perturbation=perturbation, coalition=row)
        misses.append(inferer.cache_info().misses)
    assert misses == [1, 2, 2, 3, 3, 3, 4]


def test_negative_bound_is_refused():
    with pytest.raises(ValueError, match="max_cache_bytes is -1"):
        CachingSlidingWindowInferer(ROI, max_cache_bytes=-1)


def step(network: torch.nn.Module, fused: bool) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(network.parameters(), lr=0.5, fused=fused).step()


@torch.no_grad()
def scale(network: torch.nn.Module) -> None:
    for parameter in network.parameters():
        parameter.mul_(-2)


def scale_data(network: torch.nn.Module) -> None:
    for parameter in network.parameters():
        parameter.data.mul_(-2)


def replace_data(network: torch.nn.Module) -> None:
    for parameter in network.parameters():
        parameter.data = -2 * parameter.data


CHANGES: dict[str, Callable[[torch.nn.Module], Any]] = {
    "in-place": scale,
    "load_state_dict": lambda n: n.load_state_dict({k: 3 * v for k, v in n.state_dict().items()}),
    "optimizer": lambda n: step(n, fused=False),
    "fused-optimizer": lambda n: step(n, fused=True),
    "data-in-place": scale_data,
    "data-replaced": replace_data,
    "train-mode": lambda n: n.train(),
    "new-parameter": lambda n: setattr(n[3], "weight", torch.nn.Parameter(-2 * n[3].weight)),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_changed_network_clears_the_cache(make_case, make_network, change):
    perturbation, network = perturbation_of(make_case((13, 9, 7), 3)), make_network("conv")
    network.insert(0, torch.nn.BatchNorm3d(1).eval())
    network = network if change != "new-parameter" else make_network("conv")
    inferer, row = CachingSlidingWindowInferer(ROI), [True, False, True]
    before = inferer(perturbation.image, network, perturbation=perturbation, coalition=row)
    CHANGES[change](network)
    found = inferer(perturbation.image, network, perturbation=perturbation, coalition=row)
    if change == "train-mode":
        assert not torch.equal(found, before)
        return
    expected = SlidingWindowInferer(ROI)(perturbation.apply(row), network)
    assert not torch.equal(expected, before)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_another_network_or_perturbation_clears_the_cache(make_case, make_network):
    inferer = CachingSlidingWindowInferer(ROI)
    for seed in range(3):
        perturbation = perturbation_of(make_case((13, 9, 7), 3, seed=seed // 2))
        network = make_network("conv", seed=seed)
        found = inferer(perturbation.image, network, perturbation=perturbation, coalition=[True, False, True])
        assert torch.equal(found, SlidingWindowInferer(ROI)(perturbation.apply([True, False, True]), network))
        assert inferer.cache_info().hits == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("roi_size", (4, 8, 8)), ("cval", 2.0), ("padding_mode", "replicate"), ("overlap", 0.0), ("sw_batch_size", 4)],
)
@torch.no_grad()
def test_a_changed_setting_of_the_inferer_is_followed(make_case, make_network, name, value):
    perturbation, network = perturbation_of(make_case((18, 7, 6), 3)), make_network("wide_unet")
    settings = {"roi_size": ROI, "overlap": 0.5}
    inferer, row = CachingSlidingWindowInferer(**settings), [True, False, True]
    inferer(perturbation.image, network, perturbation=perturbation, coalition=row)
    setattr(inferer, name, value)
    found = inferer(perturbation.image, network, perturbation=perturbation, coalition=row)
    assert torch.equal(found, SlidingWindowInferer(**{**settings, name: value})(perturbation.apply(row), network))


@pytest.mark.parametrize("first", ["exact", "bf16"])
@torch.no_grad()
def test_entries_made_under_autocast_are_never_mixed_with_exact_ones(make_case, make_network, first):
    network, perturbation = make_network("conv"), perturbation_of(make_case((13, 9, 9), 4))
    caching, parent = (kind(ROI, overlap=0.5) for kind in (CachingSlidingWindowInferer, SlidingWindowInferer))
    row = [True, False, True, True]

    def found(mode: str) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
            logits = caching(perturbation.image, network, perturbation=perturbation, coalition=row)
            assert torch.equal(logits, parent(perturbation.apply(row), network))
        return logits

    second = "bf16" if first == "exact" else "exact"
    before = found(first)
    known = caching.cache_info()
    assert known.entries == known.misses > 0
    other = found(second)
    assert not torch.equal(before, other)
    assert caching.cache_info().hits == 0
    assert torch.equal(found(second), other)
    assert caching.cache_info().hits == known.misses
    assert torch.equal(found(first), before)
    assert caching.cache_info().hits == 0


def test_clear_cache_forgets_everything(make_case, make_network):
    perturbation, inferer = perturbation_of(make_case((13, 9, 7), 3)), CachingSlidingWindowInferer(ROI)
    inferer(perturbation.image, make_network("conv"), perturbation=perturbation, coalition=[True] * 3)
    assert inferer.cache_info().entries > 0
    inferer.clear_cache()
    assert inferer.cache_info() == CacheInfo(0, 0, 0, 0)


# --- errors ---


@pytest.mark.parametrize("given", ["perturbation", "coalition"])
def test_one_argument_alone_is_refused(make_case, make_network, given):
    perturbation = perturbation_of(make_case((13, 9, 7), 3))
    arguments = {"perturbation": perturbation, "coalition": [True] * 3}
    with pytest.raises(ValueError, match="both perturbation and coalition"):
        CachingSlidingWindowInferer(ROI)(perturbation.image, make_network("conv"), **{given: arguments[given]})


@pytest.mark.parametrize("when", ["constructor", "call"])
def test_buffered_windows_are_refused(make_case, make_network, when):
    perturbation = perturbation_of(make_case((13, 9, 7), 3))
    inferer = CachingSlidingWindowInferer(ROI, buffer_steps=2 if when == "constructor" else None)
    extra = {"buffer_steps": 2} if when == "call" else {}
    with pytest.raises(ValueError, match="buffer_steps=None"):
        inferer(perturbation.image, make_network("conv"), perturbation=perturbation, coalition=[True] * 3, **extra)


@pytest.mark.parametrize("other", [torch.rand(1, 1, 13, 9, 7), torch.rand(1, 1, 13, 9, 8)], ids=["values", "shape"])
def test_another_image_is_refused(make_case, make_network, other):
    perturbation = perturbation_of(make_case((13, 9, 7), 3))
    with pytest.raises(ValueError, match="make a new UnitPerturbation"):
        CachingSlidingWindowInferer(ROI)(other, make_network("conv"), perturbation=perturbation, coalition=[True] * 3)


@pytest.mark.parametrize("answer", ["tuple", "dict"])
def test_networks_with_several_outputs_are_refused(make_case, answer):
    perturbation = perturbation_of(make_case((13, 9, 7), 3))
    with pytest.raises(TypeError, match=f"returned a {answer}.*one tensor"):
        CachingSlidingWindowInferer(ROI)(
            perturbation.image, ANSWERS[answer], perturbation=perturbation, coalition=[True] * 3
        )


def test_an_error_in_the_network_leaves_the_inferer_usable(make_case, make_network):
    perturbation, inferer = perturbation_of(make_case((13, 9, 7), 3)), CachingSlidingWindowInferer(ROI)
    with pytest.raises(TypeError):
        inferer(perturbation.image, ANSWERS["tuple"], perturbation=perturbation, coalition=[True] * 3)
    assert not inferer.with_coord
    assert inferer(perturbation.image, make_network("conv")).shape == (1, 3, 13, 9, 7)


# --- meta data ---


@pytest.mark.parametrize("batch_size", [1, 4])
@torch.no_grad()
def test_metatensor_comes_back_as_from_the_parent(make_case, make_network, batch_size):
    case = make_case((13, 9, 7), 3)
    image = MetaTensor(case.image[None], affine=torch.diag(torch.tensor([2.0, 3.0, 5.0, 1.0])), meta={"note": "kept"})
    perturbation, network = UnitPerturbation(image, case.labels, case.fill[None]), make_network("conv")
    parent, caching = SlidingWindowInferer(ROI, batch_size, 0.5), CachingSlidingWindowInferer(ROI, batch_size, 0.5)
    for row in random_rows(3, 4):
        expected = parent(perturbation.apply(row), network)
        found = caching(image, network, perturbation=perturbation, coalition=row)
        assert type(found) is type(expected) is MetaTensor
        assert torch.equal(found.affine, expected.affine)
        assert torch.equal(found.affine, image.affine)
        assert found.meta["note"] == expected.meta["note"] == "kept"
        assert torch.equal(found.as_tensor(), expected.as_tensor())
        assert torch.equal(found.as_tensor(), parent(case.masked(row)[None], network))
