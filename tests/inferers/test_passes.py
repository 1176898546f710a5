# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Networks that claim to be out of memory; the oracle is the same network with memory for everything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from monai_segshap.inferers import passes as passes_module
from monai_segshap.inferers.passes import NetworkPasses, is_out_of_memory, peak_memory

pytestmark = pytest.mark.usefixtures("quick_collection")
CPU = torch.device("cpu")
ERRORS = pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])


class Numbers(torch.nn.Module):
    """Every window gets the same bits in any batch."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([windows * 3, windows**2], dim=1)


def batch(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 2, 2, 2, generator=torch.Generator().manual_seed(seed))


def failing(error: BaseException) -> Any:
    def network(windows: torch.Tensor) -> torch.Tensor:
        raise error

    return network


def test_windows_are_counted_and_go_through_whole(limited):
    network = limited(Numbers(), 100)
    passes = NetworkPasses(network, CPU)
    for n in (1, 5, 3):
        assert torch.equal(passes(batch(n)), Numbers()(batch(n)))
    assert network.sizes == [1, 5, 3]
    assert (passes.n_windows, passes.lowered_to) == (9, None)


@ERRORS
@pytest.mark.parametrize("size", [2, 3, 6, 7, 8, 12])
@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_a_batch_runs_in_the_largest_equal_parts_that_fit(limited, size, limit, error):
    network = limited(Numbers(), limit, error=error)
    passes = NetworkPasses(network, CPU)
    found = passes(batch(size))
    part = max(n for n in range(1, size + 1) if size % n == 0 and n <= limit)
    assert torch.equal(found, Numbers()(batch(size)))
    assert network.sizes == [part] * (size // part)
    assert passes.lowered_to == (part if part < size else None)
    assert passes.n_windows == network.n_windows == size


def test_later_batches_start_at_the_lowered_size(limited):
    network = limited(Numbers(), 5)
    passes = NetworkPasses(network, CPU)
    passes(batch(8))
    failed = list(network.failed)
    assert (failed, passes.lowered_to) == ([8], 4)
    for n, parts in ((8, [4, 4]), (6, [3, 3]), (3, [3]), (7, [1] * 7), (12, [4, 4, 4])):
        network.sizes.clear()
        assert torch.equal(passes(batch(n, seed=n)), Numbers()(batch(n, seed=n)))
        assert network.sizes == parts
    assert network.failed == failed
    assert (passes.n_windows, passes.lowered_to) == (8 + 8 + 6 + 3 + 7 + 12, 4)


def test_memory_that_runs_out_between_parts_loses_no_window_and_counts_none_twice(limited):
    network = limited(Numbers(), 4)
    passes = NetworkPasses(network, CPU)
    passes(batch(8))
    network.after, network.limit = len(network.sizes) + len(network.failed) + 1, 2  # one part of four is run, one not
    found = passes(batch(8, seed=1))
    assert network.failed == [8, 4]
    assert network.sizes == [4, 4, 4, 2, 2, 2, 2]
    assert torch.equal(found, Numbers()(batch(8, seed=1)))
    assert (passes.n_windows, passes.lowered_to) == (16, 2)


@ERRORS
def test_a_single_window_that_does_not_fit_is_an_error_with_a_way_out(limited, error):
    passes = NetworkPasses(limited(Numbers(), 0, error=error), CPU)
    with pytest.raises(MemoryError, match=r"on cpu for 1 windows of \(1, 2, 2, 2\): .*numerics='bf16'") as raised:
        passes(batch(4))
    assert "and more" not in str(raised.value)
    assert passes.n_windows == 0


@ERRORS
def test_a_batch_that_must_stay_whole_raises_and_lowers_nothing(limited, error):
    network = limited(Numbers(), 2, error=error)
    passes = NetworkPasses(network, CPU)
    with pytest.raises(MemoryError, match="for 4 windows"):
        passes(batch(4), whole=True)
    assert (passes.n_windows, passes.lowered_to, network.sizes) == (0, None, [])
    passes(batch(2), whole=True)
    assert (passes.n_windows, passes.lowered_to) == (2, None)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("device-side assert triggered"), ValueError("mine"), KeyboardInterrupt()],
    ids=lambda e: type(e).__name__,
)
def test_other_errors_come_through_untouched(error):
    passes = NetworkPasses(failing(error), CPU)
    with pytest.raises(type(error)) as raised:
        passes(batch(4))
    assert raised.value is error
    assert (passes.n_windows, passes.lowered_to) == (0, None)


@pytest.mark.parametrize("answer", [("a", "b"), {"logits": 1}, None, 3], ids=str)
def test_what_is_no_tensor_comes_through_untouched(answer):
    assert NetworkPasses(lambda windows: answer, CPU)(batch(4)) is answer


def test_what_is_no_tensor_comes_through_parts_without_an_error_of_its_own(limited):
    class Pair(torch.nn.Module):
        def forward(self, windows: torch.Tensor) -> Any:
            return windows, windows

    assert not isinstance(NetworkPasses(limited(Pair(), 2), CPU)(batch(4)), torch.Tensor)


def test_no_gradient_and_eval_mode_during_a_pass_only():
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.Dropout(0.9)).train()
    passes = NetworkPasses(network, CPU)
    first, second = passes(batch(2)), passes(batch(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert all(module.training for module in network.modules())


def test_seconds_are_those_of_the_clock_failed_attempts_included(limited, monkeypatch):
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr(passes_module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    passes = NetworkPasses(limited(Numbers(), 2), CPU)
    passes(batch(4))
    assert passes.seconds == 20


def test_the_allocators_own_error_is_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)  # more than an address can name
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    assert is_out_of_memory(MemoryError())
    for other in (RuntimeError("memory format option is not supported"), ValueError("can't allocate memory")):
        assert not is_out_of_memory(other)


def test_peak_memory_of_the_process_holds_what_was_held():
    before = peak_memory(CPU)
    if before is None:
        pytest.skip("this system does not tell the memory of a process")
    held = torch.ones(2**26, dtype=torch.uint8)
    with_it = peak_memory(CPU)
    assert with_it >= before
    assert with_it > held.numel()
    del held
    assert peak_memory(CPU) >= with_it
