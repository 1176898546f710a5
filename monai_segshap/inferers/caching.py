# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A drop-in `SlidingWindowInferer` that remembers windows whose content it has seen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from numpy.typing import ArrayLike, NDArray

from monai_segshap.numerics import autocast_state

__all__ = ["CacheInfo", "CachingSlidingWindowInferer", "UnitPerturbation"]


#: Settings of the inferer on which the content or the batch of a window depends.
_SETTINGS = ("roi_size", "sw_batch_size", "overlap", "padding_mode", "cval", "sw_device", "device", "with_coord")


class UnitPerturbation:
    """An image whose units can be removed. Immutable: change the image and you need a new one.

    Args:
        image: (B, C, H, W, D), network space.
        labels: integers of shape (H, W, D) or (1, H, W, D) or (1, 1, H, W, D); 0 is never perturbed, 1..M are units.
        fill: replacement of removed voxels: a number, or a tensor that broadcasts to the image.

    Attributes:
        n_units: number of units M.

    Raises:
        ValueError: for mismatched shapes.
    """

    def __init__(self, image: torch.Tensor, labels: torch.Tensor, fill: torch.Tensor | float) -> None:
        spatial = tuple(image.shape[2:])
        if image.ndim != 5 or tuple(labels.shape[-3:]) != spatial or labels.numel() != int(np.prod(spatial)):
            raise ValueError(
                f"image {tuple(image.shape)} and labels {tuple(labels.shape)}; expected (B, C, H, W, D) and one label "
                "for each of its voxels."
            )
        self.image = image.detach().clone()
        self.labels = labels.detach().reshape(spatial).to(image.device, torch.int64).clone().as_subclass(torch.Tensor)
        values = torch.as_tensor(fill, dtype=image.dtype, device=image.device)
        self.fill = values.expand(image.shape) if values.ndim == 0 else torch.broadcast_to(values, image.shape).clone()
        self.n_units = int(self.labels.max())

    def apply(self, coalition: ArrayLike) -> torch.Tensor:
        """The image with the removed units replaced, (B, C, H, W, D).

        Args:
            coalition: (M,), True keeps a unit.
        """
        row = np.asarray(coalition, dtype=bool)
        if row.shape != (self.n_units,):
            raise ValueError(
                f"the coalition has shape {row.shape}; expected ({self.n_units},), one entry for each unit."
            )
        keep = torch.ones(self.n_units + 1, dtype=torch.bool)
        keep[1:] = torch.from_numpy(row.copy())
        # torch.where on the image itself would drop the meta data of a MetaTensor
        masked = self.image.clone()
        removed = ~keep.to(self.labels.device)[self.labels].expand(self.image.shape)
        masked[removed] = self.fill.as_subclass(torch.Tensor)[removed]
        return masked


@dataclass(frozen=True)
class CacheInfo:
    """State of the window cache: ``hits`` and ``misses`` in windows, ``entries``, and ``bytes`` held."""

    hits: int
    misses: int
    entries: int
    bytes: int


class CachingSlidingWindowInferer(SlidingWindowInferer):
    """`SlidingWindowInferer` with a window cache for perturbed images; the same results, bit for bit.

    Called like its parent it behaves like its parent. With ``perturbation`` and ``coalition`` it runs the image with
    the removed units replaced, and reuses the logits of every window that it has run with the same units of that
    window kept. The cache is keyed by the window and the coalition restricted to the units that change a voxel of it.
    Misses are filled up to the batch in which the parent would run them, so that no bit depends on what was cached.

    Args:
        args: as `monai.inferers.SlidingWindowInferer`.
        max_cache_bytes: bound of the cache in bytes; the least recently used windows are dropped first.
        kwargs: as `monai.inferers.SlidingWindowInferer`.

    Example:
        >>> import torch
        >>> inferer = CachingSlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=2, overlap=0.5)
        >>> image, labels = torch.rand(1, 1, 12, 8, 8), torch.ones(12, 8, 8, dtype=torch.int64)
        >>> labels[10:] = 2
        >>> perturbation = UnitPerturbation(image, labels, fill=0.0)
        >>> network = torch.nn.Conv3d(1, 2, 3, padding=1)
        >>> for coalition in ([True, True], [True, False]):
        ...     logits = inferer(image, network, perturbation=perturbation, coalition=coalition)
        >>> inferer.cache_info().misses  # two windows, of which only the second one sees unit 2
        3
    """

    with_coord: bool

    def __init__(self, *args: Any, max_cache_bytes: int = 2 * 1024**3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if max_cache_bytes < 0:
            raise ValueError(f"max_cache_bytes is {max_cache_bytes}; expected 0 (no cache) or more.")
        self.max_cache_bytes = int(max_cache_bytes)
        self._entries: OrderedDict[tuple[Any, ...], torch.Tensor] = OrderedDict()
        self._units_of_window: dict[tuple[tuple[int, int], ...], NDArray[np.int64]] = {}
        self._context: tuple[Any, ...] | None = None
        self._held: tuple[Any, ...] = ()
        self._bytes = self._hits = self._misses = 0

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., Any],
        *args: Any,
        perturbation: UnitPerturbation | None = None,
        coalition: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run sliding-window inference.

        Args:
            inputs: (B, C, H, W, D). With ``perturbation`` the image it was made of.
            network: as in the parent class.
            args: passed to the network.
            perturbation: the image with its units; needs ``coalition``.
            coalition: bool (M,), True keeps a unit.
            kwargs: as in the parent class.

        Returns:
            what the parent class returns for ``perturbation.apply(coalition)``, or for ``inputs`` without one.

        Raises:
            ValueError: if only one of perturbation and coalition is given, inputs is another image, or windows are
                buffered.
            TypeError: if the network returns anything but one tensor while a perturbation is given.
        """
        if perturbation is None and coalition is None:
            return super().__call__(inputs, network, *args, **kwargs)
        if perturbation is None or coalition is None:
            raise ValueError("give both perturbation and coalition, or neither.")
        if kwargs.get("buffer_steps", self.buffer_steps):
            raise ValueError(
                "buffered stitching rewrites window coordinates; use buffer_steps=None with a perturbation."
            )
        if inputs.shape != perturbation.image.shape or not torch.equal(
            torch.as_tensor(inputs), torch.as_tensor(perturbation.image).to(inputs.device)
        ):
            raise ValueError(
                f"inputs {tuple(inputs.shape)} differ from the image of the perturbation "
                f"{tuple(perturbation.image.shape)}; make a new UnitPerturbation for a new image."
            )
        self._enter(network, perturbation, args, kwargs)
        row = np.asarray(coalition, dtype=bool)
        masked = perturbation.apply(row)
        return self._cached_call(masked, network, perturbation, row, args, kwargs)

    def cache_info(self) -> CacheInfo:
        """Hits and misses since the cache was cleared, and what it holds."""
        return CacheInfo(self._hits, self._misses, len(self._entries), self._bytes)

    def clear_cache(self) -> None:
        """Forget every window. Happens by itself when network weights, perturbation or arguments change."""
        self._entries.clear()
        self._units_of_window.clear()
        self._context, self._held = None, ()
        self._bytes = self._hits = self._misses = 0

    def _enter(
        self, network: Any, perturbation: UnitPerturbation, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Clear the cache unless network, weights, perturbation, mode and arguments are those of the last call."""
        state: list[Any] = [id(network), id(perturbation)]
        if isinstance(network, torch.nn.Module):
            tensors = [*network.parameters(), *network.buffers()]
            state += [_fingerprint(t) for t in tensors] + [m.training for m in network.modules()]
        state += [id(a) for a in args] + [(k, id(v), getattr(v, "_version", 0)) for k, v in sorted(kwargs.items())]
        state += [
            autocast_state(perturbation.image.device),
            perturbation.image._version,
            *(repr(getattr(self, s)) for s in _SETTINGS),
        ]
        if tuple(state) != self._context:
            self.clear_cache()
            self._context = tuple(state)
            self._held = (network, perturbation, args, kwargs)  # keeps their ids from being reused

    def _cached_call(
        self,
        masked: torch.Tensor,
        network: Callable[..., Any],
        perturbation: UnitPerturbation,
        row: NDArray[np.bool_],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        user_wants_coordinates: bool = self.with_coord
        padded = _PaddedUnits(perturbation, tuple(masked.shape[2:]), self)

        def predictor(windows: torch.Tensor, coordinates: Sequence[Any], *a: Any, **k: Any) -> torch.Tensor:
            keys = self._keys(coordinates, padded, row)
            found = {i: self._entries[key] for i, key in enumerate(keys) if key in self._entries}
            for key in keys:
                if key in self._entries:
                    self._entries.move_to_end(key)
            missing = [i for i in range(len(keys)) if i not in found]
            self._hits += len(found)
            self._misses += len(missing)
            if missing:
                sent = (coordinates,) if user_wants_coordinates else ()
                outputs = _run_missing(network, windows, missing, sent, a, k)
                for i, logits in zip(missing, outputs, strict=False):
                    found[i] = logits.detach().clone()
                    self._store(keys[i], found[i])
            return torch.stack([found[i] for i in range(len(keys))])  # copies: the parent multiplies in place

        self.with_coord = True
        try:
            return super().__call__(masked, predictor, *args, **kwargs)
        finally:
            self.with_coord = user_wants_coordinates

    def _keys(
        self, coordinates: Sequence[Any], padded: _PaddedUnits, row: NDArray[np.bool_]
    ) -> list[tuple[tuple[tuple[int, int], ...], bytes]]:
        """Place of each window, and the coalition restricted to its units."""
        keys = []
        for slices in coordinates:
            place = tuple((int(s.start), int(s.stop)) for s in (slices[0], *slices[2:]))
            if place not in self._units_of_window:
                self._units_of_window[place] = padded.units(slices)
            keys.append((place, np.packbits(row[self._units_of_window[place]]).tobytes()))
        return keys

    def _store(self, key: tuple[Any, ...], logits: torch.Tensor) -> None:
        size = logits.element_size() * logits.numel()
        if size > self.max_cache_bytes:
            return
        self._entries[key] = logits
        self._bytes += size
        while self._bytes > self.max_cache_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.element_size() * dropped.numel()


def _run_missing(
    network: Callable[..., Any],
    windows: torch.Tensor,
    missing: Sequence[int],
    coordinates: tuple[Sequence[Any], ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Run some windows of a batch, filled up to the size of the batch; a full batch goes through untouched."""
    if len(missing) < len(windows):
        filled = [*missing, *[missing[-1]] * (len(windows) - len(missing))]
        windows = windows[filled]
        coordinates = tuple([c[i] for i in filled] for c in coordinates)
        if "condition" in kwargs:
            kwargs = {**kwargs, "condition": kwargs["condition"][filled]}
    outputs = network(windows, *coordinates, *args, **kwargs)
    if not isinstance(outputs, torch.Tensor):
        raise TypeError(
            f"the network returned a {type(outputs).__name__}; the window cache needs one tensor. Wrap the network so "
            "that it returns the logits alone."
        )
    return outputs


def _fingerprint(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Identity and content of a weight: fused optimizers and ``.data`` change it without a new version number."""
    plain = tensor.detach().reshape(-1).contiguous()
    whole = plain.view(torch.uint8).sum(dtype=torch.int64) if plain.numel() else torch.zeros(())
    moment = torch.linalg.vector_norm(plain.to(torch.float64)) if plain.numel() else torch.zeros(())
    return id(tensor), tensor._version, tuple(tensor.shape), int(whole), float(moment)


class _PaddedUnits:
    """Units that change a voxel of a window; coordinates come in the padded frame."""

    def __init__(self, perturbation: UnitPerturbation, shape: tuple[int, ...], inferer: SlidingWindowInferer) -> None:
        roi = inferer.roi_size if isinstance(inferer.roi_size, Sequence) else [inferer.roi_size] * len(shape)
        self._low = [max((int(r) if r and r > 0 else n) - n, 0) // 2 for r, n in zip(roi, shape, strict=True)]
        self._perturbation = perturbation

    @cached_property
    def _changed(self) -> torch.Tensor:
        """Bool (B, H, W, D); made only when a window is seen for the first time."""
        image, fill = self._perturbation.image, self._perturbation.fill
        return (image.as_subclass(torch.Tensor) != fill.as_subclass(torch.Tensor)).any(1)

    def units(self, slices: Sequence[Any]) -> NDArray[np.int64]:
        part = tuple(slice(max(s.start - p, 0), max(s.stop - p, 0)) for s, p in zip(slices[2:], self._low, strict=True))
        changed = self._changed[int(slices[0].start)][part]
        inside = self._perturbation.labels[part][changed]
        found = torch.unique(inside).cpu().numpy()
        return np.asarray(found[found > 0] - 1)
