# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Weights of networks, loaded without running code from the file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_weights"]

_NESTED = ("model", "state_dict", "network_weights")


def load_weights(network: torch.nn.Module, path: str | Path) -> torch.nn.Module:
    """Load a checkpoint into a network and put it into eval mode.

    Args:
        network: the module.
        path: a state dictionary, or a dictionary that holds one as "model", "state_dict" or "network_weights". Read
            with ``weights_only=True``: no code of the file runs.

    Returns:
        the network.

    Raises:
        ValueError: if the file is missing, is no such checkpoint, or belongs to another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"cannot read network weights from {path}: {error}") from error
    weights = _state_dict(content, path)
    own = network.state_dict()
    missing, unexpected = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    other = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if missing or unexpected or other:
        shapes = [
            f"{k}: {tuple(weights[k].shape)} in the file, {tuple(own[k].shape)} in the network" for k in other[:3]
        ]
        raise ValueError(
            f"{path} belongs to another network than {type(network).__name__}: missing {missing[:3]} ({len(missing)}), "
            f"unexpected {unexpected[:3]} ({len(unexpected)}), other shapes {shapes} ({len(other)}). "
            "Give network_def and checkpoint of the same model."
        )
    network.load_state_dict(weights)
    return network.eval()


def _state_dict(content: Any, path: str | Path) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping):
        for key in _NESTED:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        if content and all(isinstance(v, torch.Tensor) for v in content.values()):
            return dict(content)
    raise ValueError(
        f"{path} holds no state dictionary; expected tensors by name, alone or under {', '.join(_NESTED)}."
    )
