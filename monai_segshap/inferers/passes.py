# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Network passes: run, counted and timed; batches get smaller where memory runs out."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from monai_segshap.networks import evaluation_mode, is_out_of_memory

__all__ = ["NetworkPasses", "largest_divisor", "peak_memory"]


class NetworkPasses:
    """Sends batches of windows through a network.

    A batch that does not fit into memory runs in equal parts, the largest that fit; later batches start there.

    Args:
        network: maps (B, C, *roi) to logits (B, classes, *roi).
        device: where it runs.

    Attributes:
        n_windows: windows that have gone through the network.
        seconds: wall time spent there.
        lowered_to: largest part that memory allowed; None: no batch was too large.
    """

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> None:
        self.network = network
        self.device = device
        self.n_windows = 0
        self.seconds = 0.0
        self.lowered_to: int | None = None

    def __call__(self, windows: torch.Tensor, whole: bool = False) -> Any:
        """Logits (B, classes, *roi) of windows (B, C, *roi).

        Args:
            windows: a batch.
            whole: raise where memory runs out, instead of running in parts.

        Raises:
            MemoryError: if not even a single window fits, or with ``whole`` if the batch does not.
        """
        size = len(windows)
        part = size if self.lowered_to is None else largest_divisor(size, self.lowered_to)
        while True:
            logits, failure = self._in_parts(windows, part)
            if failure is None:
                self.n_windows += size
                return logits
            _release(self.device)
            if part == 1 or whole:
                raise MemoryError(
                    f"out of memory on {self.device} for {part} windows of {tuple(windows.shape[1:])}: {failure} Use a "
                    "device with more memory, numerics='bf16', or a smaller max_bytes."
                )
            part = self.lowered_to = largest_divisor(size, part - 1)

    def _in_parts(self, windows: torch.Tensor, part: int) -> tuple[Any, str | None]:
        """What the network returned, and what the allocator said; no traceback is kept, it would keep the memory."""
        started = time.perf_counter()
        try:
            with evaluation_mode(self.network):
                outputs = [self.network(windows[i : i + part]) for i in range(0, len(windows), part)]
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            tensors = all(isinstance(part_of, torch.Tensor) for part_of in outputs)
            return (torch.cat(outputs) if tensors and len(outputs) > 1 else outputs[0]), None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None, str(error).split("\n")[0]
        finally:
            self.seconds += time.perf_counter() - started


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that this process has held: on the GPU by tensors, otherwise by everything in it.

    Returns:
        bytes; None where the system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def largest_divisor(size: int, most: int) -> int:
    """The largest divisor of a batch size that is at most ``most``: parts of one size need no fillers."""
    return max(d for d in range(1, max(min(most, size), 1) + 1) if size % d == 0)


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
