# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Perturbation curves of explanations inside a MONAI `Compose`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_segshap.explainers import CaseGame, Explanation
from monai_segshap.metrics import case_curves
from monai_segshap.transforms.explain import KernelSHAPd

__all__ = ["PerturbationCurvesd"]


class PerturbationCurvesd(MapTransform):
    """Judge explanations by removing their units in order; see `monai_segshap.metrics.case_curves`.

    Args:
        keys: keys of lists of explanations, as `KernelSHAPd` adds them.
        explain: that transform: its network, inferer and settings evaluate what is not known yet. Image and raw logits
            must still stand under its keys.
        output_key: key of the curves: for each explanation a dictionary of score and `PerturbationCurves`.
        allow_missing_keys: as in MONAI.
        options: of `case_curves`: scores, random_orders, bounds, budget, beam_width, seed.
    """

    backend = (TransformBackends.TORCH,)

    def __init__(
        self,
        keys: KeysCollection,
        explain: KernelSHAPd,
        output_key: str = "curves",
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not isinstance(explain, KernelSHAPd):
            raise ValueError(f"explain is a {type(explain).__name__}; expected the KernelSHAPd that explained it.")
        self.explain, self.output_key, self.options = explain, output_key, options

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the curves to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            found: list[Explanation] = d[key]
            d[self.output_key] = [case_curves(one, self._game(one, d), **self.options) for one in found]
        return d

    def _game(self, explanation: Explanation, data: Mapping[Hashable, Any]) -> CaseGame | None:
        """The game; None where the explanation knows every coalition."""
        evaluated = explanation.evaluated
        if evaluated is not None and len(evaluated.rows) == 2 ** evaluated.rows.shape[1]:
            return None
        explain = self.explain
        return explain.explainer.game(
            data[explain.keys[0]],
            explanation.partition,
            explanation.region,
            data[explain.pred_key],
            data.get(explain.perturbed_key),
        )
