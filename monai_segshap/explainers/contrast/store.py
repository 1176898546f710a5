# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Finished values on disk, and what they depend on, so that they are never mistaken for another question's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from monai_segshap.explainers.contrast.explanation import ContrastExplanation
from monai_segshap.explainers.contrast.files import read_contrasts, write_contrasts
from monai_segshap.explainers.contrast.sub_regions import SubRegion
from monai_segshap.explainers.identity import run_identity
from monai_segshap.heads import OutputHeads
from monai_segshap.inferers import CoalitionEvaluator
from monai_segshap.numerics import NumericMode
from monai_segshap.shapley import digest
from monai_segshap.units.contrasts import Contrasts

__all__ = ["ContrastStore", "contrast_identity"]


class ContrastStore:
    """Finished values, one subfolder for each network and question.

    Args:
        folder: made when something is kept; None: nothing is ever kept or found.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def find(self, identity: Mapping[str, str]) -> ContrastExplanation | None:
        """Values of an earlier run; None: there are none, or their file is damaged (then they are found again)."""
        place = self._place(identity)
        if place is None or not place.is_dir():
            return None
        try:
            (found,) = read_contrasts(place)
        except (OSError, ValueError):
            return None
        return found if found.identity == identity else None

    def keep(self, explanation: ContrastExplanation) -> None:
        """Keep the values of one network, under its identity.

        Raises:
            OSError: if the folder can not be written; nothing half-written stays.
        """
        place = self._place(explanation.identity)
        if place is not None:
            write_contrasts([explanation], place)

    def _place(self, identity: Mapping[str, str]) -> Path | None:
        name = digest(json.dumps(identity, sort_keys=True))
        return None if self.folder is None else self.folder / name[:16]


def contrast_identity(
    evaluator: CoalitionEvaluator,
    image: torch.Tensor,
    fill: torch.Tensor,
    truth: torch.Tensor | None,
    contrasts: Contrasts,
    sub_regions: Sequence[SubRegion],
    scores: Sequence[str],
    heads: OutputHeads,
    signal: str,
    absent: str,
    numerics: NumericMode,
    batch_size: str | int,
    unchecked: Sequence[int] = (),
) -> dict[str, str]:
    """Everything that the values depend on but the network, as names and digests.

    Args:
        evaluator: holds the window plan.
        image: (C, H, W, D), network space.
        fill: (C, H, W, D), what removed contrasts become.
        truth: ground truth as given, or None.
        contrasts: the units.
        sub_regions: what is scored.
        scores: how.
        heads: how logits become a prediction.
        signal: what tp, fp and the like sum.
        absent: what a Dice is with nothing to find.
        numerics: how the network computes.
        batch_size: "auto" and "library" give the same bits; others are known by their name.
        unchecked: channels of which no name says what they are; readers are warned of them.
    """
    plain = None if truth is None else truth.as_subclass(torch.Tensor).cpu().numpy()
    return {
        **run_identity(evaluator, image, numerics, batch_size),
        "replacement": digest(fill.cpu().numpy()),
        "truth": "none" if plain is None else digest(plain),
        "contrasts": f"{contrasts.describe()}; {', '.join(contrasts.channel_names)}; unchecked {list(unchecked)}",
        "sub_regions": str([region.describe() for region in sub_regions]),
        "scores": f"{', '.join(scores)}; {signal} of {heads.describe()}; nothing to find: {absent}",
    }
