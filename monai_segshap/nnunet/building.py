# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Networks of nnU-Net models: the trainer's class that builds them, what plans may name, and weights that fit."""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

__all__ = ["build_network", "check_classes", "find_trainer", "fit_weights"]

#: Packages whose classes plans may name without trust: for the network, and for its building blocks.
_NETWORK_PACKAGES = ("dynamic_network_architectures", "nnunetv2")
_BLOCK_PACKAGES = (*_NETWORK_PACKAGES, "torch.nn")
#: What DataParallel and torch.compile put before the names of weights.
_PREFIXES = ("module.", "_orig_mod.")


def check_classes(config: ConfigurationManager, path: Path) -> None:
    """Check that every class that the plans name for the network is one of known packages.

    Args:
        config: nnU-Net's configuration.
        path: of the plans, for the message.

    Raises:
        ValueError: if one is not.
    """
    _check_class("network class", config.network_arch_class_name, _NETWORK_PACKAGES, path)
    arguments = config.network_arch_init_kwargs
    for key in config.network_arch_init_kwargs_req_import:
        if arguments.get(key) is not None:
            _check_class(key, arguments[key], _BLOCK_PACKAGES, path)


def find_trainer(name: str) -> Any:
    """The trainer class of a name, searched where nnU-Net searches it.

    Raises:
        ImportError: if a module that the search imports cannot be imported.
        ValueError: if there is no such trainer.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return recursive_find_trainer_class_by_name(name)
    except (AssertionError, TypeError) as error:
        raise ValueError(
            f"the trainer {name!r} of the checkpoint is no class derived from nnU-Net's nnUNetTrainer. Give a "
            "checkpoint of nnU-Net v2."
        ) from error
    except Exception as error:  # importing other people's modules fails with anything
        if isinstance(error, RuntimeError) and "Could not find requested nnunet trainer" in str(error):
            raise ValueError(
                f"the trainer {name!r} of the checkpoint is not in the installed nnunetv2. Install the package that "
                "defines it, or name its folder in the environment variable nnUNet_extTrainer."
            ) from error
        raise ImportError(
            f"nnU-Net's search for the trainer {name!r} failed ({type(error).__name__}: {error}).{_torchvision(error)}"
        ) from error


def build_network(
    trainer: Any, plans: PlansManager, config: ConfigurationManager, n_channels: int, n_heads: int
) -> torch.nn.Module:
    """The network with random weights, without deep supervision; the global random state is left as it was.

    Args:
        trainer: nnU-Net's trainer class.
        plans: nnU-Net's plans.
        config: nnU-Net's configuration.
        n_channels: of the input.
        n_heads: of the output.

    Raises:
        ValueError: if the trainer cannot build it.
    """
    build = trainer.build_network_architecture
    arguments: tuple[Any, ...] = (plans, config)
    if "plans_manager" not in inspect.signature(build).parameters:  # trainers written for nnunetv2 < 2.7
        arguments = (
            config.network_arch_class_name,
            config.network_arch_init_kwargs,
            config.network_arch_init_kwargs_req_import,
        )
    try:
        with torch.random.fork_rng(devices=[]):
            network = build(*arguments, n_channels, n_heads, enable_deep_supervision=False)
    except Exception as error:  # any class may be named
        raise ValueError(
            f"{trainer.__name__}.build_network_architecture cannot build the network of plans.json "
            f"({type(error).__name__}: {error}).{_torchvision(error)}"
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise ValueError(f"{trainer.__name__} built a {type(network).__name__}; expected a torch.nn.Module.")
    return network


def fit_weights(network: torch.nn.Module, weights: Mapping[str, Any], path: Path) -> torch.nn.Module:
    """The network with weights, in evaluation mode, without gradients.

    Args:
        network: changed in place.
        weights: by name; what DataParallel and torch.compile put before the names is taken off.
        path: of the checkpoint, for the message.

    Raises:
        ValueError: for weights of other names or shapes.
    """
    names = network.state_dict().keys()
    fitting = {}
    for name, value in weights.items():
        short = str(name)
        while short not in names and short.startswith(_PREFIXES):
            short = short.split(".", 1)[1]
        fitting[short] = value
    try:
        network.load_state_dict(fitting)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"the weights of {str(path)!r} do not fit the network that plans.json and dataset.json describe: "
            f"{said[:600]}{' ...' if len(said) > 600 else ''} Take all three files from the same training."
        ) from error
    return network.eval().requires_grad_(False)


def _check_class(role: str, name: Any, packages: Sequence[str], path: Path) -> None:
    roots = tuple(f"{p}." for p in packages)
    # A path through a known package may end elsewhere (torch.nn.x.os.system): where the class is defined counts. One
    # that is not found is searched by nnU-Net inside dynamic_network_architectures.
    known = isinstance(name, str) and name.startswith(roots)
    if known:
        try:
            found = pydoc.locate(name)
        except pydoc.ErrorDuringImport as error:
            raise ImportError(f"the {role} {name!r} of {str(path)!r} fails: {error}.{_torchvision(error)}") from error
        network = isinstance(found, type) and issubclass(found, torch.nn.Module)
        known = found is None or (network and f"{found.__module__}.".startswith(roots))
    if not known:
        raise ValueError(
            f"the plans {str(path)!r} name {name!r} as {role}; expected a network class of {', '.join(packages)}. "
            "Building another one runs its code: if you trust the model's origin pass trust=True."
        )


def _torchvision(error: Exception) -> str:
    if "torchvision" not in str(error):
        return ""
    return (
        " That imports torchvision, and the one installed was built for another torch. Install the torchvision that "
        "belongs to this torch, from the same index, for example https://download.pytorch.org/whl/cpu."
    )
