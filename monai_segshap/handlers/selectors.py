# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Which cases of an evaluation are worth an explanation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from monai_segshap.heads import OutputHeads

__all__ = ["DiceBelow", "HasFalsePositive"]


@dataclass(frozen=True)
class _Compared:
    """Compares the prediction of a class with the label.

    Attributes:
        target: output channel of the class.
        label_value: its number in a label map (1, H, W, D), or its channel in a label of several channels; None: the
            target for classes, the target plus 1 in the label map of sigmoid heads.
        heads: see `monai_segshap.heads.OutputHeads`.
        pred_key: key of the raw logits (channels, H, W, D).
        label_key: key of the label.
    """

    target: int
    label_value: int | None = None
    heads: str | OutputHeads = "softmax"
    pred_key: str = "pred"
    label_key: str = "label"

    def masks(self, case: Mapping[str, Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Bool (H, W, D), predicted and true.

        Raises:
            ValueError: without a label, or for one of another shape or without the class' channel.
        """
        logits, label, heads = case[self.pred_key], case.get(self.label_key), OutputHeads.parse(self.heads)
        if not isinstance(label, torch.Tensor):
            raise ValueError(
                f"the case has no label under {self.label_key!r}; selection by {type(self).__name__} needs one."
            )
        truth = heads.truth(label, self.target, logits.shape[1:], self.label_value).cpu().numpy()
        predicted = heads.predicted(logits.detach().as_subclass(torch.Tensor), self.target)
        return predicted.cpu().numpy(), truth


@dataclass(frozen=True)
class DiceBelow(_Compared):
    """Cases whose Dice of a class is below a threshold; a class in neither prediction nor label has no Dice.

    Attributes:
        threshold: 0 to 1.

    Example:
        >>> import torch
        >>> logits, label = torch.zeros(2, 1, 1, 4), torch.tensor([0, 1, 1, 1]).reshape(1, 1, 1, 4)
        >>> logits[1, 0, 0, :2] = 1.0
        >>> DiceBelow(target=1, threshold=0.5)({"pred": logits, "label": label})  # 2 * 1 / (2 + 3) = 0.4
        True
    """

    threshold: float = 0.7

    def __call__(self, case: Mapping[str, Any]) -> bool:
        """Whether the case is selected."""
        predicted, truth = self.masks(case)
        voxels = int(predicted.sum() + truth.sum())
        return voxels > 0 and 2.0 * int((predicted & truth).sum()) / voxels < self.threshold


@dataclass(frozen=True)
class HasFalsePositive(_Compared):
    """Cases with a predicted component that touches no voxel of the class.

    Attributes:
        min_voxels: of the component; smaller ones do not count.
    """

    min_voxels: int = 1

    def __call__(self, case: Mapping[str, Any]) -> bool:
        """Whether the case is selected."""
        predicted, truth = self.masks(case)
        labels, count = ndimage.label(predicted, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        touched = np.bincount(labels[truth], minlength=count + 1)[1:] > 0
        return bool(((sizes >= self.min_voxels) & ~touched).any())
