# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from monai_segshap import numerics
from monai_segshap.inferers.passes import is_out_of_memory
from monai_segshap.numerics import NumericMode, autocast_state

CPU = torch.device("cpu")
COMPILE = torch.compile


def windows(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))


def three(batch: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.conv3d(batch, torch.linspace(-1, 1, 81).reshape(3, 1, 3, 3, 3), padding=1)


@torch.no_grad()
def run(network: Any, batch: torch.Tensor) -> torch.Tensor:
    return network(batch)


@pytest.mark.parametrize(
    ("text", "precision", "channels_last", "compiled", "described"),
    [
        (None, None, False, False, "exact"),
        ("exact", None, False, False, "exact"),
        (" exact ", None, False, False, "exact"),
        ("bf16", "bf16", False, False, "fast: bf16 autocast"),
        ("fp16", "fp16", False, False, "fast: fp16 autocast"),
        ("channels_last", None, True, False, "fast: channels_last_3d"),
        ("compile", None, False, True, "fast: torch.compile"),
        ("fast", "bf16", True, False, "fast: bf16 autocast, channels_last_3d"),
        ("fast,fp16", "fp16", True, False, "fast: fp16 autocast, channels_last_3d"),
        ("compile, fast", "bf16", True, True, "fast: bf16 autocast, channels_last_3d, torch.compile"),
        ("channels_last , bf16", "bf16", True, False, "fast: bf16 autocast, channels_last_3d"),
    ],
)
def test_words_are_read_and_described(text, precision, channels_last, compiled, described):
    mode = NumericMode.parse(text)
    assert (mode.precision, mode.channels_last, mode.compiled) == (precision, channels_last, compiled)
    assert mode.describe() == described
    assert mode.is_exact == (described == "exact")
    assert NumericMode.parse(mode) is mode


@pytest.mark.parametrize("text", ["fats", "bf16,", "exact,bf16", "exact, fast", "bf16,fp16", "fast,bf16,fp16", "BF16"])
def test_other_words_are_refused_with_those_allowed(text):
    with pytest.raises(ValueError, match=r"'exact' alone.*'fast'.*'bf16' or 'fp16', 'channels_last' and 'compile'"):
        NumericMode.parse(text)


def test_modes_differ_where_their_descriptions_do():
    texts = ["exact", "bf16", "fp16", "channels_last", "compile", "fast", "fast,compile", "bf16,compile"]
    assert len({NumericMode.parse(text).describe() for text in texts}) == len(texts)


def test_exact_is_the_very_network(make_network):
    network = make_network("conv")
    assert NumericMode.parse("exact").apply(network, CPU) is network
    assert NumericMode.parse("exact").apply(three, CPU) is three


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("text", ["bf16", "channels_last", "fast", "compile", "fast,compile"])
def test_the_given_network_stays_as_it_is(make_network, monkeypatch, text, training):
    monkeypatch.setattr(numerics.torch, "compile", lambda module: module)
    network = make_network("unet").train(training)
    parameters = list(network.parameters())
    before = [p.detach().clone() for p in parameters]
    layout = [p.stride() for p in parameters]
    expected = run(network, windows())
    run(NumericMode.parse(text).apply(network, CPU), windows())
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert [p.stride() for p in network.parameters()] == layout
    assert all(torch.equal(p, b) and p.dtype == torch.float32 for p, b in zip(parameters, before, strict=True))
    assert all(module.training == training for module in network.modules())
    assert torch.equal(run(network, windows()), expected)


def test_bf16_is_the_hand_made_autocast_and_no_float32(make_network):
    network = make_network("unet")
    found = run(NumericMode.parse("bf16").apply(network, CPU), windows())
    with torch.autocast("cpu", torch.bfloat16):
        expected = run(network, windows())
    exact = run(network, windows())
    assert (expected.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(found, expected.float())
    assert 0 < float((found - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_bf16_ends_with_the_call(make_network):
    NumericMode.parse("bf16").apply(make_network("conv"), CPU)(windows())
    assert autocast_state(CPU) == "none"


def test_bf16_keeps_the_type_of_the_windows(make_network):
    network = NumericMode.parse("bf16").apply(make_network("conv").double(), CPU)
    assert run(network, windows().double()).dtype == torch.float64


@pytest.mark.parametrize("kind", ["conv", "unet", "segresnet"])
def test_channels_last_copies_the_network_and_nearly_keeps_its_values(make_network, kind):
    network = make_network(kind, in_channels=2)
    batch = torch.rand(3, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    fast = NumericMode.parse("channels_last").apply(network, CPU)
    weights = [p for p in fast.parameters() if p.ndim == 5]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last_3d) for w in weights)
    assert any(not w.is_contiguous() for w in weights)
    assert not {id(p) for p in network.parameters()} & {id(p) for p in fast.parameters()}
    expected = run(network, batch)
    torch.testing.assert_close(run(fast, batch), expected, rtol=1e-4, atol=1e-4)


def test_channels_last_windows_reach_the_network():
    class Layout(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            strides.append(batch.is_contiguous(memory_format=torch.channels_last_3d))
            return batch

    strides: list[bool] = []
    batch = torch.rand(2, 3, 4, 4, 4)
    NumericMode.parse("channels_last").apply(Layout(), CPU)(batch)
    NumericMode.parse("bf16").apply(Layout(), CPU)(batch)
    assert strides == [True, False]


def test_a_plain_function_runs_under_bf16():
    found = run(NumericMode.parse("bf16").apply(three, CPU), windows())
    with torch.autocast("cpu", torch.bfloat16):
        expected = run(three, windows())
    assert torch.equal(found, expected.float())
    assert not torch.equal(found, run(three, windows()))


@pytest.mark.parametrize("text", ["channels_last", "fast"])
def test_a_plain_function_has_no_memory_layout(text):
    with pytest.raises(ValueError, match=r"needs a torch.nn.Module; the network is a function"):
        NumericMode.parse(text).apply(three, CPU)


@pytest.mark.parametrize("text", ["bf16", "fast"])
def test_what_is_no_tensor_is_handed_on(text):
    class Pair(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
            return batch, 1

    assert NumericMode.parse(text).apply(Pair(), CPU)(windows())[1] == 1


@pytest.mark.parametrize("text", ["compile", "fast,compile"])
def test_compile_compiles_the_network_once(make_network, monkeypatch, text):
    compiled: list[torch.nn.Module] = []

    def fake(module: torch.nn.Module) -> Any:
        compiled.append(module)
        return lambda batch: module(batch) * 2

    monkeypatch.setattr(numerics.torch, "compile", fake)
    network = make_network("conv")
    fast = NumericMode.parse(text).apply(network, CPU)
    plain = NumericMode.parse(text.replace("compile", "").strip(",") or "exact").apply(network, CPU)
    for n in (1, 2):
        torch.testing.assert_close(run(fast, windows(n)), 2 * run(plain, windows(n)), rtol=1e-5, atol=1e-5)
    assert len(compiled) == 1
    assert (compiled[0] is network) == (text == "compile")


def test_torch_compile_traces_a_real_network(make_network, monkeypatch):
    # the backend "eager" traces the network and needs no C++ compiler
    monkeypatch.setattr(numerics.torch, "compile", functools.partial(COMPILE, backend="eager"))
    network = make_network("conv")
    fast = NumericMode.parse("compile").apply(network, CPU)
    for n in (2, 1):
        torch.testing.assert_close(run(fast, windows(n)), run(network, windows(n)), rtol=1e-5, atol=1e-5)


def failing(error: Exception) -> Any:
    def call(batch: torch.Tensor) -> torch.Tensor:
        raise error

    return call


def test_a_compiler_that_fails_says_what_to_leave_out(make_network, monkeypatch):
    monkeypatch.setattr(numerics.torch, "compile", lambda module: failing(TypeError("no lowering for this")))
    fast = NumericMode.parse("compile").apply(make_network("conv"), CPU)
    with pytest.raises(RuntimeError, match=r"does not run under torch.compile: no lowering.*Leave 'compile' out"):
        fast(windows())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError("full"),
    ],
    ids=["device", "host", "python"],
)
def test_out_of_memory_while_compiling_stays_out_of_memory(make_network, monkeypatch, error):
    monkeypatch.setattr(numerics.torch, "compile", lambda module: failing(error))
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        NumericMode.parse("compile").apply(make_network("conv"), CPU)(windows())
    assert is_out_of_memory(raised.value)


def test_errors_of_a_network_that_is_not_compiled_are_its_own():
    with pytest.raises(TypeError, match=r"^mine$"):
        NumericMode.parse("bf16").apply(failing(TypeError("mine")), CPU)(windows())


def test_state_of_autocast_is_its_type():
    assert autocast_state(CPU) == "none"
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_state(CPU) == "torch.bfloat16"
        with torch.autocast("cpu", enabled=False):
            assert autocast_state(CPU) == "none"
    with torch.autocast("cpu", torch.float16):
        assert autocast_state(CPU) == "torch.float16"


@pytest.mark.parametrize("text", ["channels_last", "compile"])
def test_modes_without_a_precision_keep_the_autocast_of_the_caller(make_network, monkeypatch, text):
    monkeypatch.setattr(numerics.torch, "compile", lambda module: module)
    network = make_network("conv")
    with torch.autocast("cpu", torch.bfloat16):
        deployed = run(network, windows()).float()
        found = run(NumericMode.parse(text).apply(network, CPU), windows())
    torch.testing.assert_close(found, deployed, rtol=0, atol=1e-6)
