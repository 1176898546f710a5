# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Faithfulness of voxel attributions: do they add up to what the output loses when voxels are removed?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from monai_segshap.shapley.plan import draw_key

__all__ = ["CORRELATIONS", "FaithfulnessResult", "attribution_maps", "faithfulness_correlation", "voxel_maps"]

Floats = NDArray[np.float64]

#: What `faithfulness_correlation` can compute.
CORRELATIONS = ("pearson", "spearman")

#: Voxels of a subset in the published evaluation of paper 001, 224 x 224.
_PUBLISHED_SUBSET = 224 * 224
#: Drops that differ by less than this share of the largest output are rounding of a network in single precision.
_ROUNDING = 1e-7
#: The same for sums of attributions, which are added in double precision.
_ROUNDING_OF_SUMS = 1e-12


@dataclass(frozen=True)
class FaithfulnessResult:
    """Faithfulness of A attribution maps, from L subsets of voxels that all maps share.

    Attributes:
        correlation: float64 (A,), in -1..1, larger is better; NaN where undefined, see ``notes``.
        low: float64 (A,), lower end of the 95 % interval.
        high: float64 (A,), upper end.
        p_value: float64 (A,), two-sided, of no correlation.
        sums: float64 (A, L), attributions added over each subset.
        drops: float64 (A, L), what the map's output loses without the subset, ``fhat(x) - fhat(x without S)``.
        outputs: float64 (A,), ``fhat(x)``.
        of_output: int64 (A,), column of the output that each map belongs to.
        subset_size: voxels in a subset.
        kind: one of `CORRELATIONS`.
        seed: of the subsets.
        n_images: images given to the output, L and the image itself, however many maps there are.
        notes: by the number of a map, why its correlation is NaN.
    """

    correlation: Floats
    low: Floats
    high: Floats
    p_value: Floats
    sums: Floats
    drops: Floats
    outputs: Floats
    of_output: NDArray[np.int64]
    subset_size: int
    kind: str
    seed: int
    n_images: int
    notes: dict[int, str] = field(default_factory=dict)

    def table(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """One row for each map: name, output, correlation, interval, p value and note."""
        labels = list(names) if names is not None else [f"map {a + 1}" for a in range(len(self.correlation))]
        return pd.DataFrame(
            {
                "map": labels,
                "output": self.of_output,
                "faithfulness": self.correlation,
                "faithfulness_low": self.low,
                "faithfulness_high": self.high,
                "p_value": self.p_value,
                "note": [self.notes.get(a, "") for a in range(len(self.correlation))],
            }
        )


def faithfulness_correlation(
    output: Callable[[torch.Tensor], Any],
    image: torch.Tensor,
    attributions: Any,
    *,
    of_output: Sequence[int] | None = None,
    subset_size: int | None = None,
    n_subsets: int = 100,
    fill: float | torch.Tensor = 0.0,
    correlation: str = "pearson",
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
) -> FaithfulnessResult:
    """Faithfulness correlation of paper 001, Eq. 8 (Bhatt et al. 2020, Eq. 1), over random subsets S of one size.

    ``corr over S of (sum of A_i over i in S, fhat(x) - fhat(x with the voxels of S replaced))``

    The L subsets run once, L + 1 images in all, and serve every map of every class and method; maps of several methods
    are stacked and told apart by ``of_output``. What is removed is a voxel with all its channels, so maps of several
    channels are added up over them.

    The interval is Fisher's, ``tanh(atanh r -+ 1.96 / sqrt(L - 3))``: subsets are independent draws, and sums over many
    voxels are close to normal. For Spearman's correlation its variance is that of Bonett and Wright (2000). It speaks
    of the choice of subsets for this image, not of other images.

    Args:
        output: images (N, C, H, W, D) -> float64 (N, T), for example `monai_segshap.gradients.ClassOutputs`. Its
            ``mask="fixed"`` measures the function that was explained; the released code of paper 001 recomputes the
            mask on each perturbed image, ``mask="recomputed"``.
        image: (C, H, W, D), network space.
        attributions: (A, H, W, D) or (A, C, H, W, D), tensor or array, or an object that has them as ``maps``.
        of_output: column 0..T-1 of each map; None: map a belongs to output a.
        subset_size: voxels in a subset, 1..V-1. None: 50,176 (224 x 224, the released evaluation), but at most a
            quarter of the V voxels.
        n_subsets: L >= 4.
        fill: what removed voxels become, in network space: a number, (C,) or (C, H, W, D).
        correlation: "pearson" (the paper) or "spearman".
        seed: subset j depends on (seed, V, j) alone, so the batches do not matter.
        batch: images in one call of the output, all in memory at once.
        progress: show a bar of images.

    Returns:
        the correlations with both series. NaN with a note: an output that is not finite (an absent class), a map that
        is not finite, and sums or drops that do not vary (a constant map; an output that no subset changes).

    Raises:
        ValueError: for shapes that do not fit, or a bad option.
    """
    x = image.detach().as_subclass(torch.Tensor)
    if x.ndim != 4:
        raise ValueError(f"the image has shape {tuple(image.shape)}; expected (C, H, W, D), without a batch axis.")
    maps = voxel_maps(attributions, tuple(x.shape[1:])).flatten(1)
    n_voxels = maps.shape[1]
    size = max(1, min(_PUBLISHED_SUBSET, n_voxels // 4)) if subset_size is None else int(subset_size)
    _check_options(size, n_voxels, n_subsets, correlation, seed, batch)
    gone = _filling(fill, x)
    sums, found = np.empty((len(maps), n_subsets)), []
    columns: NDArray[np.int64] | None = None
    with tqdm(total=n_subsets + 1, disable=not progress, unit="image", desc="faithfulness") as bar:
        for start in range(-1, n_subsets, batch):
            numbers = range(start, min(start + batch, n_subsets))
            images = x.flatten(1).repeat(len(numbers), 1, 1)
            for place, number in enumerate(numbers):
                if number < 0:
                    continue  # the image itself
                chosen = torch.from_numpy(_subset(seed, number, n_voxels, size))
                sums[:, number] = maps[:, chosen.to(maps.device)].sum(dim=1, dtype=torch.float64).cpu().numpy()
                chosen = chosen.to(x.device)
                images[place][:, chosen] = gone[:, chosen]
            found.append(_asked(output, images.reshape(len(numbers), *x.shape)))
            if columns is None:
                columns = _columns(of_output, len(maps), found[0].shape[1])
            bar.update(len(numbers))
    scores = np.concatenate(found)[:, columns].T
    return _result(sums, scores, np.asarray(columns), size, correlation, seed)


def voxel_maps(attributions: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """Attributions as a tensor (A, H, W, D), channels of a voxel added up.

    Args:
        attributions: (A, H, W, D) or (A, C, H, W, D), tensor or array, or an object that has them as ``maps``.
        shape: (H, W, D) that they must have.

    Raises:
        ValueError: for another shape.
    """
    found = attribution_maps(attributions)
    if found.ndim not in (4, 5) or tuple(found.shape[-3:]) != tuple(shape) or not len(found):
        grid = ", ".join(str(n) for n in shape)
        raise ValueError(
            f"attributions have shape {tuple(found.shape)}; expected (A, {grid}) or (A, C, {grid}), one map for each "
            "class and method, on the grid of the image. Give a single map a first axis: maps[None]."
        )
    if found.ndim == 4:
        return found
    return found[:, 0] if found.shape[1] == 1 else found.sum(dim=1)


def attribution_maps(attributions: Any) -> torch.Tensor:
    """The maps of attributions, or the tensor or array itself, as a plain floating tensor without gradients."""
    found = getattr(attributions, "maps", attributions)
    found = torch.as_tensor(found).detach().as_subclass(torch.Tensor)
    return found if found.is_floating_point() else found.double()


def _check_options(size: int, n_voxels: int, n_subsets: int, correlation: str, seed: int, batch: int) -> None:
    if correlation not in CORRELATIONS:
        raise ValueError(f"unknown correlation {correlation!r}; expected one of {', '.join(CORRELATIONS)}.")
    if not 1 <= size < n_voxels:
        raise ValueError(
            f"subset_size is {size} of {n_voxels} voxels; expected 1 to {n_voxels - 1}, so that subsets differ."
        )
    if n_subsets < 4 or batch < 1 or seed < 0:
        raise ValueError(
            f"n_subsets is {n_subsets}, batch {batch} and seed {seed}; expected at least 4 subsets (an interval needs "
            "them; the paper has 100), at least 1 image in a batch, and an integer seed >= 0."
        )


def _filling(fill: float | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What every voxel would become, (C, V)."""
    value = torch.as_tensor(fill, dtype=x.dtype, device=x.device).as_subclass(torch.Tensor)
    if value.ndim == 1 and len(value) == len(x):
        value = value[:, None, None, None]
    if value.ndim not in (0, 4) or any(a not in (1, b) for a, b in zip(value.shape, x.shape, strict=False)):
        raise ValueError(
            f"fill has shape {tuple(value.shape)}; expected a number, ({len(x)},), a number for each channel, or "
            f"{tuple(x.shape)}."
        )
    return value.expand(x.shape).flatten(1)


def _subset(seed: int, number: int, n_voxels: int, size: int) -> NDArray[np.int64]:
    """Voxels of a subset. The last word of the Philox counter is 3: no draw of coalitions or orders."""
    rng = np.random.Generator(np.random.Philox(key=draw_key(seed, n_voxels), counter=[0, 0, number, 3]))
    return np.asarray(rng.choice(n_voxels, size, replace=False, shuffle=False), dtype=np.int64)


def _asked(output: Callable[[torch.Tensor], Any], images: torch.Tensor) -> Floats:
    answer = output(images)
    if isinstance(answer, torch.Tensor):
        answer = answer.detach().cpu().numpy()
    found = np.asarray(answer, dtype=np.float64)
    if found.ndim != 2 or len(found) != len(images) or not found.shape[1]:
        raise ValueError(
            f"the output has shape {found.shape} for {len(images)} images; expected ({len(images)}, T), a row for each "
            "image and a column for each class."
        )
    return found


def _columns(of_output: Sequence[int] | None, n_maps: int, n_outputs: int) -> NDArray[np.int64]:
    if of_output is None:
        if n_maps != n_outputs:
            raise ValueError(
                f"got {n_maps} maps and {n_outputs} outputs; name the output of each map, for example "
                f"of_output=[{', '.join(str(a % n_outputs) for a in range(min(n_maps, 6)))}, ...]."
            )
        return np.arange(n_maps)
    found = np.asarray(of_output)
    if found.shape != (n_maps,) or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= n_outputs:
        raise ValueError(
            f"of_output is {list(of_output)[:10]}; expected {n_maps} integers in 0..{n_outputs - 1}, one for each map."
        )
    return found.astype(np.int64)


def _result(
    sums: Floats, scores: Floats, columns: NDArray[np.int64], size: int, kind: str, seed: int
) -> FaithfulnessResult:
    """Correlations of sums (A, L) with the drops of scores (A, 1 + L), the image's own first."""
    drops = scores[:, :1] - scores[:, 1:]
    numbers, notes = np.full((4, len(sums)), np.nan), {}
    for a in range(len(sums)):
        why = _undefined(sums[a], scores[a], drops[a])
        if why:
            notes[a] = f"NaN: {why}"
        else:
            numbers[:, a] = _correlate(sums[a], drops[a], kind)
    return FaithfulnessResult(
        correlation=numbers[0],
        low=numbers[1],
        high=numbers[2],
        p_value=numbers[3],
        sums=sums,
        drops=drops,
        outputs=scores[:, 0],
        of_output=columns,
        subset_size=size,
        kind=kind,
        seed=seed,
        n_images=sums.shape[1] + 1,
        notes=notes,
    )


def _undefined(sums: Floats, scores: Floats, drops: Floats) -> str:
    """Why there is no correlation; empty if there is one."""
    if not np.isfinite(scores[0]):
        return f"the output of the image itself is {scores[0]}; its class is not predicted, or the image not finite"
    if not np.isfinite(drops).all():
        bad = int((~np.isfinite(drops)).sum())
        return f"the output is not finite for {bad} of {len(drops)} perturbed images"
    if not np.isfinite(sums).all():
        return "the map holds values that are not finite"
    if np.ptp(sums) <= _ROUNDING_OF_SUMS * np.abs(sums).max():
        return f"every subset has the same sum of attributions, {sums[0]:.4g}: the map is constant"
    if np.ptp(drops) <= _ROUNDING * np.abs(scores).max():
        return f"every subset changes the output by the same {drops[0]:.4g} of {scores[0]:.4g}"
    return ""


def _correlate(first: Floats, second: Floats, kind: str) -> tuple[float, float, float, float]:
    """Correlation, ends of the 95 % interval, and p value of two series that vary."""
    if kind == "spearman":
        first, second = stats.rankdata(first), stats.rankdata(second)
    a, b = first - first.mean(), second - second.mean()
    r = float(np.clip(a @ b / math.sqrt(float(a @ a) * float(b @ b)), -1.0, 1.0))
    n = len(a)
    variance = (1.0 + r * r / 2.0 if kind == "spearman" else 1.0) / (n - 3)
    if abs(r) == 1.0:
        return r, r, r, 0.0
    z, half = math.atanh(r), float(stats.norm.ppf(0.975)) * math.sqrt(variance)
    p = 2.0 * float(stats.t.sf(abs(r) * math.sqrt((n - 2) / (1.0 - r * r)), n - 2))
    return r, math.tanh(z - half), math.tanh(z + half), p
