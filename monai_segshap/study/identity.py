# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What the numbers of a study depend on, in plain values, so that a changed setting can be named."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_segshap.shapley import digest

__all__ = ["changed_settings", "describe", "file_digest"]

#: Attributes that change no number: where files go, what is printed, how passes are spread and batched.
_WITHOUT_EFFECT = {"store_dir", "output_dir", "progress", "ranks", "device", "max_bytes", "batch_size", "known"}
_WITHOUT_EFFECT |= {"allow_missing_keys", "backend", "log_stats", "lazy", "overrides", "display_key", "case", "R"}
_WITHOUT_EFFECT |= {"sw_batch_size", "sw_device", "cache_roi_weight_map", "cpu_thresh", "buffer_steps"}
#: What inferers remember from one call to the next.
_WITHOUT_EFFECT |= {"buffer_dim", "roi_weight_map", "max_cache_bytes", "entries", "units_of_window", "context", "held"}
_WITHOUT_EFFECT |= {"bytes", "hits", "misses"}
_DEEPEST = 12


def describe(thing: Any, _depth: int = 0) -> Any:
    """An object as numbers, strings, lists and dictionaries that JSON can hold.

    Networks become a digest of their weights, arrays one of their content; functions their name (and, for those without
    one, a digest of their code); other objects their class and attributes, without those that change no number.

    Args:
        thing: anything: transforms, inferers, explainers, settings.
    """
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing if not isinstance(thing, Enum) else str(thing.value)
    if isinstance(thing, np.generic):
        return thing.item()
    if isinstance(thing, Path):
        return str(thing)
    if isinstance(thing, torch.nn.Module):
        return {"class": type(thing).__qualname__, "weights": _weights(thing)}
    if isinstance(thing, (np.ndarray, torch.Tensor)):
        array = thing.detach().cpu().numpy() if isinstance(thing, torch.Tensor) else thing
        return f"{tuple(array.shape)} {digest(array)[:16]}"
    if _depth > _DEEPEST:
        return type(thing).__qualname__
    if isinstance(thing, Mapping):
        return {str(key): describe(value, _depth + 1) for key, value in thing.items()}
    if isinstance(thing, (set, frozenset)):
        return sorted(str(describe(value, _depth + 1)) for value in thing)
    if isinstance(thing, (Sequence, range)) and not isinstance(thing, bytes):
        return [describe(value, _depth + 1) for value in thing]
    return _describe_object(thing, _depth)


def _describe_object(thing: Any, depth: int) -> Any:
    name = getattr(thing, "__qualname__", None)
    if name is not None:
        code = getattr(thing, "__code__", None)
        if code is None or "<lambda>" not in name:
            return str(name)
        return f"{name} {hashlib.sha256(code.co_code + repr(code.co_consts).encode()).hexdigest()[:16]}"
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        found = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    else:
        found = {key.lstrip("_"): value for key, value in getattr(thing, "__dict__", {}).items()}
    kept = {key: value for key, value in found.items() if key not in _WITHOUT_EFFECT and key.lstrip("_") != "R"}
    if not kept:
        return type(thing).__qualname__ if "object at 0x" in repr(thing) else repr(thing)
    return {"class": type(thing).__qualname__} | {key: describe(value, depth + 1) for key, value in kept.items()}


def _weights(network: torch.nn.Module) -> str:
    parts: list[Any] = [str(network)]
    for name, tensor in network.state_dict().items():
        parts += [name, tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()]
    return digest(*parts)[:16]


def changed_settings(before: Any, now: Any) -> list[str]:
    """Sentences such as ``explain.budget was 160, is 200``; none for equal settings.

    Args:
        before: of `describe`, as read from JSON.
        now: of `describe`.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    names = [*old, *[name for name in new if name not in old]]
    absent = "absent"
    return [
        f"{name} was {_short(old.get(name, absent))}, is {_short(new.get(name, absent))}"
        for name in names
        if old.get(name, absent) != new.get(name, absent)
    ]


def _flat(thing: Any, place: str = "") -> list[tuple[str, Any]]:
    if isinstance(thing, Mapping) and thing:
        return [pair for key, value in thing.items() for pair in _flat(value, f"{place}.{key}" if place else str(key))]
    if isinstance(thing, list) and any(isinstance(value, (Mapping, list)) for value in thing):
        return [pair for number, value in enumerate(thing) for pair in _flat(value, f"{place}[{number}]")]
    return [(place, thing)]


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 80 else f"{text[:77]}..."


def file_digest(path: str | Path) -> str:
    """Digest of a file's bytes; of a folder's, all its files by name.

    Raises:
        OSError: if it can not be read.
    """
    place, state = Path(path), hashlib.sha256()
    for file in [place] if not place.is_dir() else sorted(p for p in place.rglob("*") if p.is_file()):
        if place.is_dir():
            state.update(str(file.relative_to(place)).encode())
        with file.open("rb") as source:
            while block := source.read(1 << 20):
                state.update(block)
    return state.hexdigest()[:16]
