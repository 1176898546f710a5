# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""How a network computes: exactly as it is deployed, or in a faster mode that is another model in the last digits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from monai_segshap.networks import is_out_of_memory

__all__ = ["NumericMode", "autocast_state"]

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: Words of `NumericMode.parse`.
_WORDS = ("exact", "fast", *_PRECISIONS, "channels_last", "compile")


@dataclass(frozen=True)
class NumericMode:
    """Numeric mode of the network passes. The default computes exactly as the deployed network.

    Attributes:
        precision: None, or "bf16" or "fp16": the network runs under autocast to that type and returns float32.
        channels_last: a copy of the network runs in the memory layout ``torch.channels_last_3d``.
        compiled: the network runs through ``torch.compile``.
    """

    precision: str | None = None
    channels_last: bool = False
    compiled: bool = False

    @classmethod
    def parse(cls, text: str | NumericMode | None) -> NumericMode:
        """Read a mode.

        Args:
            text: "exact" (or None); "fast" (bf16 and channels_last); or some of "bf16", "fp16", "channels_last" and
                "compile", separated by commas.

        Raises:
            ValueError: for other words, two precisions, or "exact" beside another word.
        """
        if isinstance(text, NumericMode):
            return text
        words = [word.strip() for word in (text or "exact").split(",")]
        unknown = [word for word in words if word not in _WORDS]
        if unknown or ("exact" in words and len(words) > 1) or {"bf16", "fp16"} <= set(words):
            raise ValueError(
                f"numerics {text!r}; expected 'exact' alone, or 'fast', or some of 'bf16' or 'fp16', 'channels_last' "
                "and 'compile', separated by commas."
            )
        if "fast" in words:
            words += ["channels_last"] + ([] if "fp16" in words else ["bf16"])
        precision = next((word for word in words if word in _PRECISIONS), None)
        return cls(precision, "channels_last" in words, "compile" in words)

    @property
    def is_exact(self) -> bool:
        """Whether the network computes as it is deployed."""
        return self == NumericMode()

    def describe(self) -> str:
        """For people and for the value store: "exact", or what was switched on."""
        parts = [f"{self.precision} autocast"] if self.precision else []
        parts += ["channels_last_3d"] if self.channels_last else []
        parts += ["torch.compile"] if self.compiled else []
        return "fast: " + ", ".join(parts) if parts else "exact"

    def apply(
        self, network: Callable[[torch.Tensor], torch.Tensor], device: torch.device
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """The network in this mode; the given one stays as it is.

        Args:
            network: maps (B, C, *roi) to logits.
            device: where it runs.

        Raises:
            ValueError: for channels_last with a callable that is no module.
        """
        if self.is_exact:
            return network
        if not self.channels_last:
            module = network if isinstance(network, torch.nn.Module) else _CalledModule(network)
        elif isinstance(network, torch.nn.Module):
            module = _channels_last(copy.deepcopy(network))
        else:
            raise ValueError(
                f"numerics 'channels_last' needs a torch.nn.Module; the network is a {type(network).__name__}. Leave "
                "the word out."
            )
        return _FastNetwork(module, self, device)


def _channels_last(network: torch.nn.Module) -> torch.nn.Module:
    """Weights in channels-last order, in place; those of 2D convolutions too."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim in formats:
            tensor.data = tensor.data.contiguous(memory_format=formats[tensor.ndim])
    return network


class _CalledModule(torch.nn.Module):
    """A plain callable as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.function(windows)


class _FastNetwork(torch.nn.Module):
    """A network under a numeric mode; logits come back in the type of the windows."""

    def __init__(self, network: torch.nn.Module, mode: NumericMode, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.mode = mode
        self.device_type = device.type
        self._call: Callable[[torch.Tensor], Any] = torch.compile(network) if mode.compiled else network
        self._ran = False

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        if self.mode.channels_last:
            windows = windows.contiguous(memory_format=torch.channels_last_3d)
        dtype = _PRECISIONS.get(self.mode.precision or "")
        # without a precision of its own the mode leaves the caller's autocast as it is
        with torch.autocast(self.device_type, dtype=dtype) if dtype is not None else nullcontext():
            logits = self._first_call(windows) if not self._ran else self._call(windows)
        return logits.to(windows.dtype) if isinstance(logits, torch.Tensor) else logits

    def _first_call(self, windows: torch.Tensor) -> Any:
        """Compiling happens here; an error of the compiler says what to do."""
        try:
            logits = self._call(windows)
        except Exception as error:
            if not self.mode.compiled or is_out_of_memory(error):
                raise
            raise RuntimeError(
                f"the network does not run under torch.compile: {error}. Leave 'compile' out of numerics."
            ) from error
        self._ran = True
        return logits


def autocast_state(device: torch.device) -> str:
    """What autocast does to a network that runs now on a device: "none" for nothing, or the type it casts to."""
    if not torch.is_autocast_enabled(device.type):
        return "none"
    return str(torch.get_autocast_dtype(device.type))
