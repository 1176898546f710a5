# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Networks: weights loaded without running code from the file, eval mode, and running out of memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from monai_segshap.shapley import digest

__all__ = ["evaluation_mode", "is_out_of_memory", "load_folds", "load_weights", "weights_digest"]

_NESTED = ("model", "state_dict", "network_weights")


@contextmanager
def evaluation_mode(network: Any) -> Iterator[None]:
    """Run a network in eval mode without gradients; afterwards every submodule is in the mode that it was in.

    Args:
        network: a module, or any callable (then only gradients are switched off).
    """
    modules = list(network.modules()) if isinstance(network, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, of a GPU or of the host, had no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


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


def load_folds(
    network: torch.nn.Module, checkpoints: str | Path | Sequence[str | Path] | Mapping[str, str | Path]
) -> dict[str, torch.nn.Module]:
    """Networks of one architecture and several checkpoints, such as the folds of a cross-validation.

    Args:
        network: the architecture; it is copied, and stays as it is.
        checkpoints: one file, a list of files, or a mapping from name to file, see `load_weights`. Files are named by
            themselves ("fold_0" for ``models/fold_0.pt``), with the folder's name where that is not enough.

    Returns:
        name -> network in eval mode.

    Raises:
        ValueError: for no checkpoint, two of one name, or a file that does not fit.
    """
    if isinstance(checkpoints, Mapping):
        paths = {str(name): Path(path) for name, path in checkpoints.items()}
    else:
        listed = [Path(p) for p in ([checkpoints] if isinstance(checkpoints, (str, Path)) else checkpoints)]
        names = [path.stem for path in listed]
        if len(set(names)) < len(names):
            names = [f"{path.parent.name}/{path.stem}" for path in listed]
        if len(set(names)) < len(names):
            raise ValueError(
                f"several checkpoints are named alike: {', '.join(names)}; give a mapping from name to file."
            )
        paths = dict(zip(names, listed, strict=True))
    if not paths:
        raise ValueError("got no checkpoint; expected at least one file.")
    return {name: load_weights(copy.deepcopy(network), path) for name, path in paths.items()}


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


def weights_digest(network: Any) -> str:
    """Digest of the weights and the class; a plain callable is known by its name only."""
    if not isinstance(network, torch.nn.Module):
        return f"{getattr(network, '__module__', '')}.{getattr(network, '__qualname__', type(network).__qualname__)}"
    parts: list[Any] = [str(network)]
    for name, tensor in network.state_dict().items():
        parts += [name, tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()]
    return digest(*parts)
