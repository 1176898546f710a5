# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""MONAI metrics of voxel attributions: faithfulness, sensitivity and complexity, collected over cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.utils import MetricReduction
from numpy.typing import NDArray

from monai_segshap.gradients import MASKS, ClassOutputs, vanilla_gradient
from monai_segshap.metrics.case_table import CaseRow, CaseTableMetric, name_of_image
from monai_segshap.metrics.faithfulness import attribution_maps, faithfulness_correlation
from monai_segshap.metrics.voxel import attribution_sensitivity, effective_complexity

__all__ = ["ComplexityMetric", "FaithfulnessMetric", "SensitivityMetric"]


class _AttributionMetric(CaseTableMetric):
    """A number for each of T classes."""

    def __init__(
        self,
        what: str,
        classes: Sequence[int | str],
        class_names: Sequence[str] | None,
        reduction: MetricReduction | str,
        get_not_nans: bool,
        named: bool,
    ) -> None:
        names = [str(c) for c in (classes if class_names is None else class_names)]
        if len(names) != len(classes):
            raise ValueError(f"got {len(names)} class_names for {len(classes)} classes; expected a name for each.")
        self.classes = tuple(classes)
        super().__init__([f"{what}_{name}" for name in names], reduction, get_not_nans, named)

    def _row(self, values: NDArray[Any], notes: Mapping[int, str], image: Any) -> list[CaseRow]:
        texts = tuple(f"{self.columns[t]}: {why}" for t, why in notes.items())
        return [CaseRow(name_of_image(image), [float(v) for v in values], texts)]

    def _checked(self, y_pred: Any) -> torch.Tensor:
        """The case's maps, one for each class."""
        maps, own = attribution_maps(y_pred), getattr(y_pred, "classes", self.classes)
        if len(maps) != len(self.classes) or tuple(own) != self.classes:
            raise ValueError(
                f"a case has {len(maps)} maps of the classes {tuple(own)}; expected one for each of {self.classes}, in "
                "this order."
            )
        return maps


class _NetworkMetric(_AttributionMetric):
    """One that asks the network."""

    def __init__(
        self,
        what: str,
        network: Callable[[torch.Tensor], torch.Tensor],
        inferer: Any,
        classes: Sequence[int],
        class_names: Sequence[str] | None,
        mask: str,
        outputs: Mapping[str, Any] | None,
        options: Mapping[str, Any] | None,
        reduction: MetricReduction | str,
        get_not_nans: bool,
        named: bool,
    ) -> None:
        if mask not in MASKS:
            raise ValueError(f"unknown mask {mask!r}; expected one of {', '.join(MASKS)}.")
        super().__init__(what, [int(c) for c in classes], class_names, reduction, get_not_nans, named)
        self.network, self.inferer, self.mask = network, inferer, mask
        self.outputs, self.options = ({"progress": False, **(given or {})} for given in (outputs, options))

    def _class_outputs(self, image: torch.Tensor, mask: str) -> ClassOutputs:
        classes = [int(c) for c in self.classes]
        return ClassOutputs(self.network, self.inferer, image, classes=classes, mask=mask, **self.outputs)


class FaithfulnessMetric(_NetworkMetric):
    """Faithfulness correlation of voxel attributions (paper 001, Eq. 8), a column for each class.

    ``y_pred`` holds maps (T, H, W, D) or (T, C, H, W, D) for each case, or `monai_segshap.gradients.VoxelAttributions`;
    ``y`` the images (C, H, W, D) as the network saw them. With Ignite:
    ``output_transform=from_engine([KEY_OF_THE_MAPS, "image"])``.

    Args:
        network: see `monai_segshap.gradients.ClassOutputs`.
        inferer: the deployed one.
        classes: the T classes of the maps, in their order.
        class_names: for the names of the columns, faithfulness_NAME; None: the numbers.
        mask: "fixed": of the image's own prediction, the function that was explained; "recomputed": of each perturbed
            image's prediction, as the released code of paper 001.
        outputs: further arguments of `ClassOutputs`.
        options: further arguments of `faithfulness_correlation`.
        reduction: see `CaseTableMetric`.
        get_not_nans: see `CaseTableMetric`.
        named: see `CaseTableMetric`.

    Raises:
        ValueError: for a bad option; when called, for maps of other classes, and as the functions.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        inferer: Any,
        classes: Sequence[int],
        class_names: Sequence[str] | None = None,
        mask: str = "fixed",
        outputs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN_BATCH,
        get_not_nans: bool = False,
        named: bool = False,
    ) -> None:
        shared = (outputs, options, reduction, get_not_nans, named)
        super().__init__("faithfulness", network, inferer, classes, class_names, mask, *shared)

    def case_rows(self, y_pred: Any, y: Any) -> list[CaseRow]:
        """The row of one case, from its maps and its image."""
        maps, image = self._checked(y_pred), _image(y)
        found = faithfulness_correlation(self._class_outputs(image, self.mask), image, maps, **self.options)
        return self._row(found.correlation, found.notes, y)


class SensitivityMetric(_NetworkMetric):
    """Average sensitivity of a gradient attribution to noise (paper 001, Eq. 9), a column for each class.

    ``y_pred`` holds the maps A(x) for each case, or `monai_segshap.gradients.VoxelAttributions`; ``y`` the images as
    the network saw them. With Ignite: ``output_transform=from_engine([KEY_OF_THE_MAPS, "image"])``.

    Args:
        network: see `monai_segshap.gradients.ClassOutputs`.
        inferer: the deployed one.
        classes: the T classes of the maps, in their order.
        attribute: the method that made the maps: (class outputs, image) -> maps (T, ...), for example
            `monai_segshap.gradients.smooth_gradient`; with arguments of its own: ``functools.partial``. Default
            `vanilla_gradient`.
        class_names: for the names of the columns, sensitivity_NAME; None: the numbers.
        mask: "fixed": the function that is explained stays that of the image, and the noise enters the image alone;
            "recomputed": each noisy image has masks of its own prediction, as the released code of paper 001, so that a
            changed prediction counts, too.
        outputs: further arguments of `ClassOutputs`.
        options: further arguments of `attribution_sensitivity`.
        reduction: see `CaseTableMetric`.
        get_not_nans: see `CaseTableMetric`.
        named: see `CaseTableMetric`.

    Raises:
        ValueError: for a bad option; when called, for maps of other classes, and as the functions.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        inferer: Any,
        classes: Sequence[int],
        attribute: Callable[[ClassOutputs, torch.Tensor], Any] = vanilla_gradient,
        class_names: Sequence[str] | None = None,
        mask: str = "fixed",
        outputs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN_BATCH,
        get_not_nans: bool = False,
        named: bool = False,
    ) -> None:
        shared = (outputs, options, reduction, get_not_nans, named)
        super().__init__("sensitivity", network, inferer, classes, class_names, mask, *shared)
        self.attribute = attribute

    def case_rows(self, y_pred: Any, y: Any) -> list[CaseRow]:
        """The row of one case, from its maps and its image."""
        maps, image = self._checked(y_pred), _image(y)
        own = self._class_outputs(image, "fixed") if self.mask == "fixed" else None

        def attribute(noisy: torch.Tensor) -> Any:
            return self.attribute(own if own is not None else self._class_outputs(noisy, "fixed"), noisy)

        found = attribution_sensitivity(attribute, image, **{**self.options, "reference": maps})
        return self._row(found.values, found.notes, y)


class ComplexityMetric(_AttributionMetric):
    """Effective complexity of voxel attributions (paper 001, Eq. 10), a column for each class; no network pass.

    ``y_pred`` holds maps (T, H, W, D) or (T, C, H, W, D) for each case, or `monai_segshap.gradients.VoxelAttributions`;
    ``y`` may hold the images, for the names of the rows.

    Args:
        classes: the T classes of the maps, in their order: numbers, or names.
        class_names: for the names of the columns, complexity_NAME; None: the classes.
        eps: see `effective_complexity`.
        reduction: see `CaseTableMetric`.
        get_not_nans: see `CaseTableMetric`.
        named: see `CaseTableMetric`.

    Raises:
        ValueError: for a bad option; when called, for maps of other classes.
    """

    def __init__(
        self,
        classes: Sequence[int | str],
        class_names: Sequence[str] | None = None,
        eps: float = 0.1,
        reduction: MetricReduction | str = MetricReduction.MEAN_BATCH,
        get_not_nans: bool = False,
        named: bool = False,
    ) -> None:
        super().__init__("complexity", classes, class_names, reduction, get_not_nans, named)
        self.eps = eps

    def case_rows(self, y_pred: Any, y: Any) -> list[CaseRow]:
        """The row of one case, from its maps."""
        values = effective_complexity(self._checked(y_pred), self.eps)
        missing = {t: "NaN: the map is 0, or not finite" for t, v in enumerate(values) if v != v}
        return self._row(values, missing, y)


def _image(y: Any) -> torch.Tensor:
    if not isinstance(y, torch.Tensor) or y.ndim != 4:
        shape = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(
            f"y is {shape} for a case; expected its image (C, H, W, D), as the network saw it: with Ignite, "
            "output_transform=from_engine([KEY_OF_THE_MAPS, 'image'])."
        )
    return y
