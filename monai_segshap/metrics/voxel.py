# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Sensitivity and complexity of voxel attributions, and all numbers of paper 001's comparison in one table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from monai_segshap.metrics.faithfulness import attribution_maps, faithfulness_correlation, voxel_maps
from monai_segshap.shapley.plan import draw_key

__all__ = ["NOISES", "SensitivityResult", "attribution_sensitivity", "effective_complexity", "voxel_metrics"]

Floats = NDArray[np.float64]

#: Image (C, H, W, D) -> maps (T, ...), or an object that has them as ``maps``.
Attribute = Callable[[torch.Tensor], Any]

#: Noise of `attribution_sensitivity`.
NOISES = ("gaussian", "uniform")
#: What `voxel_metrics` can measure besides seconds.
MEASURES = ("faithfulness", "sensitivity", "complexity")


@dataclass(frozen=True)
class SensitivityResult:
    """How much T attribution maps change under noise on the image.

    Attributes:
        values: float64 (T,), mean relative change, 0 or more, smaller is better; NaN where undefined, see ``notes``.
        standard_errors: float64 (T,), over the n draws of noise; NaN for one draw.
        samples: float64 (T, n), of each draw.
        noise: one of `NOISES`.
        spread: standard deviation (gaussian) or half-width (uniform) of the noise, in units of the image.
        seed: of the noise.
        n_attributions: how often the attribution method ran.
        notes: by the number of a map, why it is NaN.
    """

    values: Floats
    standard_errors: Floats
    samples: Floats
    noise: str
    spread: float
    seed: int
    n_attributions: int
    notes: dict[int, str] = field(default_factory=dict)


def attribution_sensitivity(
    attribute: Attribute,
    image: torch.Tensor,
    n: int = 3,
    sigma: float = 0.1,
    *,
    relative: bool = True,
    noise: str = "gaussian",
    seed: int = 0,
    reference: Any = None,
    normalize: bool = False,
    progress: bool = False,
) -> SensitivityResult:
    """Average sensitivity of paper 001, Eq. 9 (Yeh et al. 2019): ``mean over e of |A(x) - A(x + e)| / |A(x)|``.

    Norms are Frobenius norms over all entries of a map. What ``attribute`` does with the noisy image decides what is
    measured: with a `monai_segshap.gradients.ClassOutputs` made once for the image, the function that is explained
    stays the same; made anew for each noisy image, its masks follow that image's prediction, as in the released code.

    Args:
        attribute: image -> maps (T, ...).
        image: (C, H, W, D), network space.
        n: draws of noise, 1 or more; 3 in the released evaluation.
        sigma: size of the noise, above 0; 0.1 in the paper, on images in 0..1.
        relative: ``sigma`` is a share of the image's range, maximum minus minimum; False: in units of the image.
        noise: "gaussian" (the paper), of standard deviation sigma; "uniform" (the released code), in -sigma..sigma.
        seed: draw j depends on (seed, number of voxels, j) alone.
        reference: A(x), where it is known; None: ``attribute`` runs once more.
        normalize: divide each map by its largest absolute value first, as the released evaluation does; Eq. 9 does not.
        progress: show a bar of attributions.

    Returns:
        values with standard errors. NaN with a note: a map that is 0 everywhere, or not finite with or without noise,
        as for a class that is not predicted.

    Raises:
        ValueError: for a bad option, a constant image with ``relative``, or maps that change their shape.
    """
    x = image.detach().as_subclass(torch.Tensor)
    if noise not in NOISES:
        raise ValueError(f"unknown noise {noise!r}; expected one of {', '.join(NOISES)}.")
    if n < 1 or not 0 < sigma < math.inf or seed < 0:
        raise ValueError(f"n is {n}, sigma {sigma} and seed {seed}; expected n >= 1, sigma > 0 and a seed >= 0.")
    width = float(x.max() - x.min()) if relative else 1.0
    if not 0 < width < math.inf:
        raise ValueError(
            f"the range of the image is {width}, so that a share of it is no noise; expected an image that varies and "
            "is finite. Give sigma in units of the image with relative=False."
        )
    spread = sigma * width
    with tqdm(total=n + (reference is None), disable=not progress, unit="attribution", desc="sensitivity") as bar:
        own = _flat(attribute(x) if reference is None else reference, normalize)
        bar.update(int(reference is None))
        size = torch.linalg.vector_norm(own, dim=1, dtype=torch.float64)
        samples = np.empty((len(own), n))
        for number in range(n):
            other = _flat(attribute(x + _noise(x, noise, spread, seed, number)), normalize)
            if other.shape != own.shape:
                raise ValueError(
                    f"the attributions of the image have {tuple(own.shape)} maps and entries, those of a noisy one "
                    f"{tuple(other.shape)}; expected the same classes for both: name them."
                )
            change = torch.linalg.vector_norm(own - other.to(own.device), dim=1, dtype=torch.float64)
            samples[:, number] = (change / size).cpu().numpy()
            bar.update(1)
    notes = _sensitivity_notes(size.cpu().numpy(), samples)
    samples[list(notes)] = np.nan
    errors = samples.std(axis=1, ddof=1) / math.sqrt(n) if n > 1 else np.full(len(own), np.nan)
    return SensitivityResult(samples.mean(axis=1), errors, samples, noise, spread, seed, n + (reference is None), notes)


def effective_complexity(attributions: Any, eps: float = 0.1) -> Floats:
    """Complexity of paper 001, Eq. 10 (Nguyen and Martinez 2020): the share of voxels that matter.

    Args:
        attributions: (A, H, W, D) or (A, C, H, W, D), channels of a voxel added up, or an object that has them as
            ``maps``.
        eps: a voxel counts if its absolute value is above this share of the map's largest one; 0 to below 1.

    Returns:
        float64 (A,), in 0..1, smaller is sparser. NaN for a map that is 0 everywhere, or not finite.

    Raises:
        ValueError: for another shape, or another eps.
    """
    if not 0 <= eps < 1:
        raise ValueError(f"eps is {eps}; expected a share of the largest value, 0 to below 1.")
    maps = attribution_maps(attributions)
    found = []
    for one in voxel_maps(maps, tuple(maps.shape[-3:])):
        size = one.abs()
        largest = size.max()
        known = bool(torch.isfinite(size).all() and largest > 0)
        found.append(float((size > eps * largest).double().mean()) if known else math.nan)
    return np.array(found)


def voxel_metrics(
    attribute: Attribute | Mapping[str, Attribute],
    output: Callable[[torch.Tensor], Any],
    image: torch.Tensor,
    *,
    names: Sequence[str] | None = None,
    measure: Sequence[str] = MEASURES,
    faithfulness: Mapping[str, Any] | None = None,
    sensitivity: Mapping[str, Any] | None = None,
    eps: float = 0.1,
) -> pd.DataFrame:
    """The four columns of paper 001's comparison of attribution methods (Table 1), for one image.

    Each method runs once, and once for each draw of noise. The subsets of the faithfulness run once for all methods.

    Args:
        attribute: image -> maps (T, ...), one for each output; several methods by name.
        output: as for `faithfulness_correlation`.
        image: (C, H, W, D), network space.
        names: of the T classes; None: the ``classes`` of the output, if it has them, or 0, 1, ...
        measure: some of "faithfulness", "sensitivity", "complexity".
        faithfulness: further arguments of `faithfulness_correlation`.
        sensitivity: further arguments of `attribution_sensitivity`.
        eps: of `effective_complexity`.

    Returns:
        a row for each method and class: method, class, faithfulness with the ends of its 95 % interval
        (faithfulness_low, faithfulness_high), sensitivity with its standard error (sensitivity_se), complexity, seconds
        (wall time of one run, which gives all classes, divided by their number) and notes, which say why a number is
        NaN. Numbers that were not asked for are left out.

    Raises:
        ValueError: for an unknown measure, no method, another number of names, or as the functions above.
    """
    unknown = [m for m in measure if m not in MEASURES]
    if unknown:
        raise ValueError(f"unknown measures {', '.join(unknown)}; expected some of {', '.join(MEASURES)}.")
    methods = dict(attribute) if isinstance(attribute, Mapping) else {"attributions": attribute}
    if not methods:
        raise ValueError("no attribution method was given.")
    maps, seconds = {}, {}
    for method, call in methods.items():
        maps[method], seconds[method] = _timed(call, image)
    labels = _labels(names, output, {method: len(found) for method, found in maps.items()})
    parts = [
        pd.DataFrame({"method": method, "class": labels, "seconds": seconds[method] / len(labels)}) for method in maps
    ]
    notes: list[list[str]] = [[] for _ in range(len(labels) * len(maps))]
    columns: dict[str, Floats] = {}
    if "faithfulness" in measure:
        shape = tuple(image.shape[1:])
        stacked = torch.cat([voxel_maps(found, shape) for found in maps.values()])
        of_output = list(range(len(labels))) * len(maps)
        result = faithfulness_correlation(output, image, stacked, of_output=of_output, **(faithfulness or {}))
        columns |= {"faithfulness": result.correlation, "faithfulness_low": result.low}
        columns["faithfulness_high"] = result.high
        _note(notes, "faithfulness", result.notes)
    if "sensitivity" in measure:
        options = dict(sensitivity or {})
        runs = [attribution_sensitivity(methods[m], image, **{**options, "reference": maps[m]}) for m in maps]
        columns["sensitivity"] = np.concatenate([run.values for run in runs])
        columns["sensitivity_se"] = np.concatenate([run.standard_errors for run in runs])
        for place, run in enumerate(runs):
            _note(notes, "sensitivity", {place * len(labels) + t: why for t, why in run.notes.items()})
    if "complexity" in measure:
        columns["complexity"] = np.concatenate([effective_complexity(found, eps) for found in maps.values()])
        missing = {int(a): "NaN: the map is 0, or not finite" for a in np.flatnonzero(np.isnan(columns["complexity"]))}
        _note(notes, "complexity", missing)
    table = pd.concat(parts, ignore_index=True)
    measured = {**columns, "seconds": table.pop("seconds"), "notes": ["; ".join(texts) for texts in notes]}
    return table.assign(**measured)


def _flat(attributions: Any, normalize: bool) -> torch.Tensor:
    """Maps (T, entries)."""
    maps = attribution_maps(attributions)
    if maps.ndim < 2 or not len(maps):
        raise ValueError(f"attributions have shape {tuple(maps.shape)}; expected (T, ...), a map for each class.")
    flat = maps.flatten(1)
    return flat / flat.abs().amax(dim=1, keepdim=True) if normalize else flat


def _noise(x: torch.Tensor, kind: str, spread: float, seed: int, number: int) -> torch.Tensor:
    """Noise on the CPU's bits for every device. The last word of the Philox counter, 4, is no other draw's."""
    key = draw_key(seed, x.numel())
    rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, number, 4]))
    if kind == "gaussian":
        drawn = rng.standard_normal(tuple(x.shape), dtype=np.float32) * np.float32(spread)
    else:
        drawn = (2.0 * rng.random(tuple(x.shape), dtype=np.float32) - 1.0) * np.float32(spread)
    return torch.from_numpy(drawn).to(x)


def _sensitivity_notes(size: Floats, samples: Floats) -> dict[int, str]:
    found = {}
    for t, own in enumerate(size):
        bad = int((~np.isfinite(samples[t])).sum())
        if not np.isfinite(own):
            found[t] = "NaN: the map of the image is not finite; its class is not predicted"
        elif own == 0:
            found[t] = "NaN: the map of the image is 0 everywhere"
        elif bad:
            found[t] = f"NaN: the maps of {bad} of {samples.shape[1]} noisy images are not finite"
    return found


def _timed(run: Attribute, image: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Maps, and seconds of wall time until a GPU has finished."""
    _finish(image)
    started = time.perf_counter()
    found = run(image)
    _finish(image)
    return attribution_maps(found), time.perf_counter() - started


def _finish(image: torch.Tensor) -> None:
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)


def _labels(names: Sequence[str] | None, output: Any, counts: Mapping[str, int]) -> list[str]:
    n_maps = next(iter(counts.values()))
    found = names if names is not None else getattr(output, "classes", range(n_maps))
    if len(set(counts.values())) > 1 or len(found) != n_maps:
        raise ValueError(
            f"the methods gave {', '.join(f'{count} maps ({method})' for method, count in counts.items())}, and there "
            f"are {len(found)} classes; expected a map for each class from every method."
        )
    return [str(name) for name in found]


def _note(notes: list[list[str]], what: str, found: Mapping[int, str]) -> None:
    for place, why in found.items():
        notes[place].append(f"{what} {why}")
