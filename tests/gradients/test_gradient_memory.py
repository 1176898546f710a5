# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Gradients need the memory of one batch of windows and of their results; checkpoints need less."""

from __future__ import annotations

import weakref

import pytest
import torch
from gradient_oracles import relative_difference
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SwinUNETR, UNet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_segshap.gradients import ClassOutputs, integrated_gradients, smooth_gradient, vanilla_gradient
from monai_segshap.gradients.checkpointing import checkpointed_blocks, find_blocks

ROI = (8, 8, 8)


def storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class PeakBytes(TorchDispatchMode):
    """Most bytes of tensors that were alive at once, of those that were made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        given = {s._cdata for s in storages((args, kwargs))}
        for storage in storages(found):
            if storage._cdata not in given:  # no view of what was there before
                self.note(storage)
        return found

    def note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.drop, key, storage.nbytes())

    def drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def test_the_meter_sees_what_lives():
    before = torch.ones(500)
    with PeakBytes() as meter:
        before[:10].add_(1)
        first = torch.zeros(1000)
        second = first + 1
        assert meter.peak == meter.alive == 8000
        del second
        assert meter.alive == 4000
        first.view(10, 100)
        assert (meter.alive, meter.peak) == (4000, 8000)
        del first
    assert meter.alive == 0


@pytest.mark.parametrize("aggregate", ["sum", "median"])
def test_peak_memory_grows_by_a_few_volumes_only(make_network, noise_image, aggregate):
    network, peaks, sizes = make_network("unet"), {}, (3, 9)
    for length in sizes:
        image = noise_image((8 * length, 8, 8))
        outputs = ClassOutputs(
            network, SlidingWindowInferer(ROI, 2, 0.5), image, aggregate=aggregate, batch_size=2, progress=False
        )
        for method, options in (
            (vanilla_gradient, {}),
            (smooth_gradient, {"n": 2}),
            (integrated_gradients, {"baseline": 0.1, "steps": 2}),
        ):
            with PeakBytes() as meter:
                maps = method(outputs, image, **options).maps
            assert maps.numel() == 3 * image.numel()
            peaks.setdefault(length, []).append(meter.peak)
    volume = 4 * 8 * 8 * 8 * (sizes[1] - sizes[0])
    growth = [(large - small) / volume for small, large in zip(peaks[sizes[0]], peaks[sizes[1]], strict=True)]
    # three result volumes, and a few of the size of the image (steps of the path, the place of the median)
    assert min(growth) > 2
    assert max(growth) < 7


def test_whole_volume_autograd_keeps_every_window(make_network, noise_image):
    network, peaks = make_network("unet").requires_grad_(False), []
    for length in (3, 9):
        leaf = noise_image((8 * length, 8, 8)).requires_grad_()
        with PeakBytes() as meter:
            SlidingWindowInferer(ROI, 2, 0.5)(leaf[None], network)[0, 1].sum().backward()
        peaks.append(meter.peak)
    assert (peaks[1] - peaks[0]) / (4 * 8 * 8 * 8 * 6) > 30


def saved_bytes(run) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    assert kept.requires_grad
    return sum(seen.values())


def test_checkpoints_keep_less_and_change_nothing(noise_image):
    torch.manual_seed(0)
    network = UNet(3, 1, 3, (8, 16), (2,), num_res_units=2, norm="instance").requires_grad_(False).eval()
    image, inferer = noise_image((12, 12, 8)), SlidingWindowInferer(ROI, 2, 0.5)
    plain = ClassOutputs(network, inferer, image, batch_size=4, progress=False)
    sparing = ClassOutputs(network, inferer, image, batch_size=4, checkpoint=True, progress=False)
    assert sparing.settings()["checkpoint"]
    expected = plain.gradients(image)
    with PeakBytes() as usual:
        plain.gradients(image)
    with PeakBytes() as less:
        found = sparing.gradients(image)
    assert relative_difference(found, expected) < 1e-6
    assert less.peak < 0.75 * usual.peak
    assert not any("forward" in vars(module) for module in network.modules())
    window = noise_image(ROI)[None].requires_grad_()
    whole = saved_bytes(lambda: network(window))
    with checkpointed_blocks(network):
        assert saved_bytes(lambda: network(window)) < 0.6 * whole


def test_blocks_are_the_smallest_modules_with_weights():
    conv, bare = torch.nn.Conv3d(1, 1, 1), torch.nn.ReLU()
    inner = torch.nn.Sequential(conv, bare)
    assert find_blocks(torch.nn.Sequential(inner, torch.nn.Sequential(bare))) == [inner]
    assert find_blocks(inner) == [inner]
    assert find_blocks(conv) == []

    class Listed(torch.nn.Module):
        """Runs the layers of a list, which never runs itself."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])

    listed = Listed()
    assert find_blocks(torch.nn.ModuleList([listed])) == [listed]
    swin = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    blocks = find_blocks(swin)
    assert not any(a is not b and any(a is m for m in b.modules()) for a in blocks for b in blocks)
    assert {"WindowAttention", "MLPBlock"} <= {type(block).__name__ for block in blocks}


def test_an_error_leaves_the_network_as_it_was():
    inner = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1), torch.nn.ReLU())
    inner.forward = inner.forward  # someone's own
    own = vars(inner)["forward"]
    seen = []

    def fail():
        with checkpointed_blocks(inner):
            seen.append(vars(inner)["forward"])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen[0] is not own
    assert vars(inner)["forward"] is own


def test_out_of_memory_says_what_to_do(make_network, noise_image, limited):
    network, image = limited(make_network("unet"), 1), noise_image((12, 8, 8))
    logits = network.network(image[None]).detach()[0]
    outputs = ClassOutputs(network, SlidingWindowInferer(ROI, 2, 0.5), image, logits, progress=False)
    with pytest.raises(MemoryError, match=r"gradient of 2 windows .*batch_size, checkpoint=True or numerics='bf16'"):
        outputs.gradients(image)
    assert outputs([image]).shape == (1, 3)  # values run in smaller batches
