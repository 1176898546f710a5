# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What a coalition of contrasts is worth: scores of sub-regions, against ground truth or the model's own prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.explainers.contrast.sub_regions import SubRegion, predicted_masks
from monai_segshap.games import SCORES, RegionGame
from monai_segshap.heads import SIGNALS, OutputHeads

__all__ = ["ABSENT", "CONTRAST_SCORES", "ContrastGame", "check_contrast_scores"]

#: What the Dice of a sub-region is where there is nothing to find.
ABSENT = ("nan", "one")
#: "dice_truth": Dice against ground truth (paper 003). The others against the prediction with all contrasts.
CONTRAST_SCORES = ("dice_truth", *SCORES)
_EPS = 1e-8


class ContrastGame:
    """Scores of sub-regions over the whole volume, from the fused logits of coalitions.

    With ``P_m`` the voxels predicted as a sub-region under coalition m, ``P_0`` those with every contrast kept, and
    ``G`` the ground truth:

    * ``dice_truth = 2 |P_m and G| / (|P_m| + |G|)``, 0 to 1 (paper 003),
    * ``dice = 2 |P_m and P_0| / (|P_m| + |P_0| + eps)``, 0 to 1 (paper 000, Eq. 5),
    * ``tp``, ``fp``, ``soft_dice`` and ``class_output``: see `monai_segshap.games.RegionGame`; means over all voxels.

    A Dice with nothing to find (``G``, or ``P_0``, is empty) is NaN for every coalition with ``absent="nan"``. With
    "one" it is 1 where nothing is predicted, and 0 where something is. ``tp`` and ``class_output`` of an empty ``P_0``
    are 0 by definition, and NaN with "nan".

    Args:
        sub_regions: the S sub-regions.
        scores: names of the T scores, see `CONTRAST_SCORES`.
        heads: how logits become a prediction.
        signal: what tp, fp and the like sum, see `monai_segshap.heads.SIGNALS`.
        absent: "nan" or "one".
        truth: bool (S, H, W, D); None if no score needs it.

    Attributes:
        predicted_full: int64 (S,), voxels of P_0; 0 before the first coalition.
    """

    def __init__(
        self,
        sub_regions: Sequence[SubRegion],
        scores: Sequence[str],
        heads: OutputHeads,
        signal: str = "logit",
        absent: str = "nan",
        truth: NDArray[np.bool_] | None = None,
    ) -> None:
        check_contrast_scores(scores, sub_regions, signal, absent)
        if "dice_truth" in scores and truth is None:
            raise ValueError("score 'dice_truth' needs a ground truth; give one, or explain other scores.")
        self.sub_regions, self.scores, self.heads = tuple(sub_regions), tuple(scores), heads
        self.signal, self.absent = signal, absent
        self.truth = None if truth is None else torch.from_numpy(np.ascontiguousarray(truth))
        self.truth_voxels = None if truth is None else truth.sum(axis=(1, 2, 3)).astype(np.int64)
        self.predicted_full = np.zeros(len(self.sub_regions), dtype=np.int64)
        self._reference: list[torch.Tensor] = []
        self._games: dict[int, RegionGame] = {}

    def __call__(self, logits: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Scores of one coalition; the first call must keep every contrast, and defines P_0.

        Args:
            logits: (channels, H, W, D), fused.

        Returns:
            float64 (T, S), and the predicted voxels of each sub-region, int64 (S,).

        Raises:
            ValueError: for logits that are not finite, or sub-regions of channels that do not exist.
        """
        if not bool(torch.isfinite(logits).all()):
            raise ValueError(
                "the network returns logits that are not finite (NaN or infinite) for a coalition of contrasts; it "
                "breaks down for such an input. Try another removal."
            )
        if not self._reference:
            self._begin(logits)
        masks = predicted_masks(self.sub_regions, logits, self.heads)
        sizes = np.array([int(mask.sum()) for mask in masks], dtype=np.int64)
        found = np.empty((len(self.scores), len(masks)))
        for s, mask in enumerate(masks):
            composed = self._game_scores(s, logits)
            for t, score in enumerate(self.scores):
                if score == "dice_truth" and self.truth is not None and self.truth_voxels is not None:
                    found[t, s] = self._dice(mask, self.truth[s], int(sizes[s]), int(self.truth_voxels[s]), 0.0)
                elif score == "dice":
                    found[t, s] = self._dice(mask, self._reference[s], int(sizes[s]), int(self.predicted_full[s]), _EPS)
                else:
                    found[t, s] = composed[score]
        return found, sizes

    def reason(self, score: str, number: int) -> str | None:
        """Why a score of a sub-region has no value for any coalition; None if it has one."""
        name = self.sub_regions[number].name
        if self.absent != "nan":
            return None
        if score == "dice_truth" and self.truth_voxels is not None and self.truth_voxels[number] == 0:
            return f"{name} is absent from the ground truth"
        if score in ("dice", "tp", "class_output") and self.predicted_full[number] == 0:
            return f"{name} is not predicted with every contrast kept"
        return None

    def _begin(self, logits: torch.Tensor) -> None:
        used = {c for region in self.sub_regions for c in region.channels + region.without}
        if max(used) >= len(logits):
            raise ValueError(
                f"sub-regions use output channels up to {max(used)}; the network has {len(logits)}: "
                f"{[region.describe() for region in self.sub_regions]}."
            )
        self._reference = predicted_masks(self.sub_regions, logits, self.heads)
        self.predicted_full = np.array([int(mask.sum()) for mask in self._reference], dtype=np.int64)
        if self.truth is not None:
            self.truth = self.truth.to(logits.device)
        names = tuple(score for score in self.scores if score not in ("dice_truth", "dice"))
        if names:
            everywhere = torch.ones_like(self._reference[0])
            for s, region in enumerate(self.sub_regions):
                reference, target = self._reference[s], region.channels[0]
                self._games[s] = RegionGame(everywhere, reference, target, names, self.signal, heads=self.heads)

    def _game_scores(self, number: int, logits: torch.Tensor) -> dict[str, float]:
        game = self._games.get(number)
        if game is None:
            return {}
        found = dict(zip(game.scores, game(logits).tolist(), strict=True))
        return {score: np.nan if self.reason(score, number) else value for score, value in found.items()}

    def _dice(self, mask: torch.Tensor, other: torch.Tensor, size: int, wanted: int, eps: float) -> float:
        if wanted == 0:
            return float("nan") if self.absent == "nan" else float(size == 0)
        return 2.0 * int((mask & other).sum()) / (size + wanted + eps)


def check_contrast_scores(
    scores: Sequence[str], sub_regions: Sequence[SubRegion], signal: str = "logit", absent: str = "nan"
) -> None:
    """Raise for scores that do not exist, repeat or do not fit the sub-regions, and for unknown options.

    Raises:
        ValueError: with what there is.
    """
    unknown = [score for score in scores if score not in CONTRAST_SCORES]
    if unknown or not scores or len(set(scores)) != len(scores):
        raise ValueError(f"scores {list(scores)}; expected some of {', '.join(CONTRAST_SCORES)}, each once.")
    names = [region.name for region in sub_regions]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"sub-regions {names}; expected at least one, each with a name of its own.")
    if signal not in SIGNALS or absent not in ABSENT:
        raise ValueError(
            f"signal {signal!r} and absent {absent!r}; expected one of {', '.join(SIGNALS)} and one of "
            f"{', '.join(ABSENT)}."
        )
    needs_logit = [score for score in scores if score not in ("dice_truth", "dice")]
    composed = [region.name for region in sub_regions if not region.is_one_channel]
    if needs_logit and composed:
        raise ValueError(
            f"scores {needs_logit} sum the logit of one output channel, which {composed} do not have: they are made of "
            "several channels. Explain them by 'dice_truth' or 'dice'."
        )
