# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Scores of a segmentation inside a region: what a coalition of units is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.heads import SIGNALS, OutputHeads

__all__ = ["CHANNELS", "SCORES", "RegionGame", "ScoreInfo", "check_scores", "score_warnings"]


@dataclass(frozen=True)
class ScoreInfo:
    """What a score means, for tables and pictures.

    Attributes:
        label: short name with the unit.
        equation: where it is defined.
    """

    label: str
    equation: str


#: The scores of papers 000 and 001, all from one evaluation.
SCORES: dict[str, ScoreInfo] = {
    "tp": ScoreInfo("TP score (target logit, mean over the region)", "paper 000, Eq. 3"),
    "fp": ScoreInfo("FP score (minus target logit, mean over the region)", "paper 000, Eq. 4"),
    "dice": ScoreInfo("Dice with the unperturbed prediction", "paper 000, Eq. 5"),
    "soft_dice": ScoreInfo("soft Dice score (signed target logit, mean over the region)", "paper 000, Eq. 6"),
    "class_output": ScoreInfo("class output (target logit on P_0, mean over the region)", "paper 001, Eq. 2"),
}

#: What each block of a region contributes: to the tp and the fp score, voxels in P_m and P_0, voxels in P_m only, and
#: to the class output.
CHANNELS = ("tp", "fp", "hit", "extra", "output")


@dataclass(frozen=True)
class RegionGame:
    """Scores of one target class in one region, from fused logits.

    With ``P_m`` = voxels predicted as the target under coalition m, ``P_0`` the same with all units kept,
    ``z`` the target logit and R the region:

    * ``tp = 1/|R| sum over R of [P_m and P_0] z``; positive where the network holds on to its prediction,
    * ``fp = -1/|R| sum over R of [P_m and not P_0] z``; 0 with all units kept, negative for new positives,
    * ``dice = 2 |P_m and P_0| / (|P_m| + |P_0| + eps)``, counted in R, 0 to 1,
    * ``soft_dice = tp + fp`` (that is Eq. 6: weight +1 on P_0 and -1 elsewhere),
    * ``class_output = 1/|R| sum over R of [P_0] z``: what gradients of paper 001 explain, whether or not the network
      still predicts the target there; where R is P_0 it is the mean, and |R| times it the sum, of Eq. 2.

    Attributes:
        mask: bool (h, w, d), the region inside its box.
        reference: bool (h, w, d), P_0 inside the box.
        target: index of the explained class.
        scores: names, in the order of the result.
        signal: see `monai_segshap.heads.SIGNALS`; a winning logit can be negative, then removal raises tp; probability
            and margin can not.
        eps: the epsilon of Eq. 5.
        blocks: int (voxels of the region, in C order), block 0..B-1 of each; None: the region is one block.
        heads: how logits become a prediction.
    """

    mask: torch.Tensor
    reference: torch.Tensor
    target: int
    scores: tuple[str, ...] = ("tp", "fp", "dice", "soft_dice")
    signal: str = "logit"
    eps: float = 1e-8
    blocks: torch.Tensor | None = None
    heads: OutputHeads = field(default_factory=OutputHeads)

    def __post_init__(self) -> None:
        check_scores(self.scores, self.signal)
        if self.mask.shape != self.reference.shape:
            raise ValueError(f"mask {tuple(self.mask.shape)} and reference {tuple(self.reference.shape)} differ.")
        if not bool(self.mask.any()):
            raise ValueError("the region holds no voxel.")

    def __call__(self, logits: torch.Tensor) -> NDArray[np.float64]:
        """Scores of one coalition.

        Args:
            logits: (classes, h, w, d), fused, inside the region's box.

        Returns:
            float64 (T,), in the order of ``scores``.

        Raises:
            ValueError: for logits that are not finite.
        """
        return self.compose(self.channels(logits).sum(axis=0))

    def channels(self, logits: torch.Tensor) -> NDArray[np.float64]:
        """What each block contributes.

        Args:
            logits: (classes, h, w, d), fused, inside the region's box.

        Returns:
            float64 (B, 5), see `CHANNELS`; their sums give every score, see `compose`.

        Raises:
            ValueError: for logits that are not finite.
        """
        if not bool(torch.isfinite(logits).all()):
            raise ValueError(
                "the network returns logits that are not finite (NaN or infinite) for a coalition of units; it breaks "
                "down for such an input. Try another baseline."
            )
        place = (slice(None), self.mask)
        inside = logits[place]
        reference = self.reference[self.mask]
        predicted = self.heads.predicted(inside, self.target)
        hit, extra = predicted & reference, predicted & ~reference
        signal = self.heads.signal(inside, self.target, self.signal).to(torch.float64)
        volumes = torch.stack([signal * hit, -signal * extra, hit.double(), extra.double(), signal * reference])
        order, sizes = self._order
        parts = torch.split(volumes[:, order], sizes, dim=1) if len(sizes) > 1 else [volumes]
        size = float(inside.shape[1])
        return torch.stack([part.sum(dim=1) for part in parts]).cpu().numpy() / np.array([size, size, 1.0, 1.0, size])

    def class_counts(self, logits: torch.Tensor) -> NDArray[np.int64]:
        """Voxels of the region predicted as each class, int64 (classes,), from logits (classes, h, w, d)."""
        place = (slice(None), self.mask)
        return self.heads.counts(logits[place]).cpu().numpy()

    def compose(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (..., T) from sums over blocks (..., 5)."""
        tp, fp, hit, extra, output = (sums[..., c] for c in range(len(CHANNELS)))
        hit, extra = np.maximum(hit, 0.0), np.maximum(extra, 0.0)  # emulated counts can fall below
        found = {
            "tp": tp,
            "fp": fp + 0.0,
            "dice": 2.0 * hit / (hit + extra + self.n_reference + self.eps),
            "soft_dice": tp + fp,
            "class_output": output,
        }
        return np.stack([found[name] for name in self.scores], axis=-1)

    @property
    def linear(self) -> NDArray[np.float64]:
        """Float64 (T, 5): each score as a weighted sum of the channels' sums; NaN for channels in a ratio."""
        ratio = [0, 0, np.nan, np.nan, 0]
        weights = {"tp": [1, 0, 0, 0, 0], "fp": [0, 1, 0, 0, 0], "soft_dice": [1, 1, 0, 0, 0], "dice": ratio}
        weights["class_output"] = [0, 0, 0, 0, 1]
        return np.array([weights[name] for name in self.scores], dtype=np.float64)

    @cached_property
    def n_reference(self) -> int:
        """Voxels of the region in P_0."""
        return int((self.reference & self.mask).sum())

    @cached_property
    def _order(self) -> tuple[torch.Tensor, list[int]]:
        """Voxels of the region block by block, and the size of each block."""
        if self.blocks is None:
            return torch.arange(0), [int(self.mask.sum())]
        blocks = torch.as_tensor(self.blocks, device=self.mask.device)
        return torch.argsort(blocks, stable=True), torch.bincount(blocks).tolist()


def check_scores(scores: Sequence[str], signal: str) -> None:
    """Raise for unknown, repeated or no scores, or an unknown signal.

    Raises:
        ValueError: with the names that exist.
    """
    unknown = [s for s in scores if s not in SCORES]
    if unknown or not scores:
        raise ValueError(f"unknown scores {unknown}; expected some of {', '.join(SCORES)}.")
    if len(set(scores)) != len(scores):
        raise ValueError(f"scores {list(scores)} repeat.")
    if signal not in SIGNALS:
        raise ValueError(f"unknown signal {signal!r}; expected one of {', '.join(SIGNALS)}.")


def score_warnings(
    mask: NDArray[np.bool_], reference: NDArray[np.bool_], scores: Sequence[str], name: str
) -> list[str]:
    """Sentences on scores that can not vary in a region.

    Args:
        mask: bool, the region.
        reference: bool of the same shape, voxels predicted as the target.
        scores: score names.
        name: name of the target class.
    """
    found = []
    if "fp" in scores and bool(reference[mask].all()):
        found.append(
            f"score 'fp' is 0 for every coalition: the whole region is predicted as {name}, so nothing can be added. "
            "Use a region with a margin (extent 'box') to see false positives."
        )
    idle = [s for s in ("tp", "dice", "class_output") if s in scores]
    if idle and not bool(reference[mask].any()):
        found.append(
            f"scores {', '.join(repr(s) for s in idle)} are 0 for every coalition: the region holds no voxel predicted "
            f"as {name}. Only 'fp' (and 'soft_dice') can vary there."
        )
    return found
