# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Activations computed again in the backward pass instead of kept: less memory for more time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed_blocks", "find_blocks"]


def find_blocks(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The smallest modules that hold a layer with weights beside others, such as convolution, norm and activation.

    Args:
        network: any module.

    Returns:
        modules none of which lies inside another one; each has a child without children whose weight has two axes
        or more. Empty for a network that is one layer.
    """
    found: list[torch.nn.Module] = []

    def visit(module: torch.nn.Module) -> bool:
        """Whether a block was found in a module, itself included."""
        children = _children(module)
        if any([visit(child) for child in children]):
            return True
        if any(not list(child.children()) and _has_weights(child) for child in children):
            found.append(module)
            return True
        return False

    visit(network)
    return list(dict.fromkeys(found))


@contextmanager
def checkpointed_blocks(network: torch.nn.Module) -> Iterator[None]:
    """Run a network so that its blocks keep their inputs only.

    A checkpoint around the whole network would save nothing: all activations come back at once when its backward pass
    starts. So each of `find_blocks` gets one (`torch.utils.checkpoint`, non-reentrant). Every backward pass computes
    the blocks once more. Afterwards the network is as it was.

    Args:
        network: its modules must give the same result when they run again.
    """
    blocks = find_blocks(network)
    own: list[dict[str, Any]] = [{k: v for k, v in vars(block).items() if k == "forward"} for block in blocks]
    try:
        for block in blocks:
            vars(block)["forward"] = partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            vars(block).pop("forward", None)
            vars(block).update(before)


def _children(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Direct children; those of a list or a dictionary of modules, which never runs itself, in its place."""
    found = []
    for child in module.children():
        held = isinstance(child, (torch.nn.ModuleList, torch.nn.ModuleDict))
        found += _children(child) if held else [child]
    return found


def _has_weights(layer: torch.nn.Module) -> bool:
    return any(parameter.ndim >= 2 for parameter in layer.parameters(recurse=False))
