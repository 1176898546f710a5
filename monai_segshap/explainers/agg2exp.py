# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Voxel attributions of every class of a segmentation, by gradients or by KernelSHAP (paper 001, Agg2Exp)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer

from monai_segshap.explainers.kernel_shap import KernelSHAPExplainer
from monai_segshap.geometry import VoxelGrid, current_grid
from monai_segshap.gradients import (
    ClassOutputs,
    VoxelAttributions,
    integrated_gradients,
    smooth_gradient,
    vanilla_gradient,
)
from monai_segshap.perturbation import Baseline, ConstantBaseline
from monai_segshap.region import Region
from monai_segshap.units import Partition, cube_partition, predicted_class_partition

__all__ = ["ATTRIBUTION_METHODS", "Agg2ExpExplainer"]

_GRADIENTS: Mapping[str, Callable[..., VoxelAttributions]] = {
    "vanilla_gradient": vanilla_gradient,
    "smooth_gradient": smooth_gradient,
    "integrated_gradients": integrated_gradients,
}

#: The five methods of paper 001, with what may be set.
ATTRIBUTION_METHODS: Mapping[str, tuple[str, ...]] = {
    "vanilla_gradient": (),
    "smooth_gradient": ("n", "sigma", "seed"),
    "integrated_gradients": ("baseline", "steps", "exponent"),
    "kernelshap_cubes": ("cubes", "scale_mm", "baseline", "budget", "estimator", "seed", "store_dir", "tolerance"),
    "kernelshap_semantic": ("baseline", "budget", "estimator", "seed", "store_dir", "tolerance"),
}


@dataclass(frozen=True)
class Agg2ExpExplainer:
    """Attribution maps of the class outputs of a segmentation: where in the image each class comes from.

    A class output is the target logit, added up over the voxels that the unperturbed image is predicted as
    (`monai_segshap.gradients.ClassOutputs`; paper 001, Eq. 1 and 2). All classes share their network passes.

    * "vanilla_gradient", "smooth_gradient" (n, sigma, seed), "integrated_gradients" (baseline, steps, exponent): see
      `monai_segshap.gradients`.
    * "kernelshap_cubes": Shapley values of about ``cubes`` (512) equal cubes, or cubes of ``scale_mm``; each voxel gets
      the value of its cube (Eq. 6).
    * "kernelshap_semantic": the units are the predicted classes, the background included.

    Shapley values come from `KernelSHAPExplainer` with the score ``class_output``: ``estimator``, ``budget``, ``seed``,
    ``store_dir`` and ``tolerance`` (default None: the whole budget) are its method, budget and so on; ``baseline``,
    a number of network space or a `monai_segshap.perturbation.Baseline`, is 0 by default, as in the paper.

    Attributes:
        network: maps (B, C, *roi) to logits (B, channels, *roi).
        inferer: the deployed one.
        method: one of `ATTRIBUTION_METHODS`.
        classes: output channels; None: all of them, the background included.
        aggregate: "sum", "mean" or (gradients only) "median" over the class's voxels.
        heads: "softmax" or "sigmoid".
        device: where the network runs; None: where the image is.
        numerics: see `monai_segshap.numerics.NumericMode`.
        batch_size: windows in a batch; None: the inferer's.
        checkpoint: of gradients, see `ClassOutputs`.
        progress: show bars.
        options: of the method.

    Raises:
        ValueError: for an unknown method or option.
    """

    network: Callable[[torch.Tensor], torch.Tensor]
    inferer: Inferer
    method: str = "smooth_gradient"
    classes: Sequence[int] | None = None
    aggregate: str = "sum"
    heads: str = "softmax"
    device: torch.device | str | None = None
    numerics: str = "exact"
    batch_size: int | None = None
    checkpoint: bool = False
    progress: bool = True
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.method not in ATTRIBUTION_METHODS:
            raise ValueError(f"unknown method {self.method!r}; expected one of {', '.join(ATTRIBUTION_METHODS)}.")
        unknown = sorted(set(self.options or {}) - set(ATTRIBUTION_METHODS[self.method]))
        if unknown:
            known = ", ".join(ATTRIBUTION_METHODS[self.method]) or "none"
            raise ValueError(f"{self.method} has no options {', '.join(unknown)}; it has {known}.")
        if self.aggregate == "median" and self.method not in _GRADIENTS:
            raise ValueError(f"{self.method} explains a sum or a mean of logits; got aggregate='median'.")

    def outputs(self, image: torch.Tensor, logits: torch.Tensor | None = None) -> ClassOutputs:
        """The function that is explained; one object serves several methods and checks.

        Args:
            image: (C, H, W, D), network space.
            logits: (channels, H, W, D), its whole-volume prediction; None: the network runs.

        Raises:
            ValueError: see `ClassOutputs`.
        """
        return ClassOutputs(
            self.network,
            self.inferer,
            image,
            logits,
            classes=self.classes,
            aggregate=self.aggregate,
            heads=self.heads,
            device=self.device,
            numerics=self.numerics,
            batch_size=self.batch_size,
            checkpoint=self.checkpoint,
            progress=self.progress,
        )

    def __call__(
        self, image: torch.Tensor, logits: torch.Tensor | None = None, outputs: ClassOutputs | None = None
    ) -> VoxelAttributions:
        """Maps of all classes of one image.

        Args:
            image: (C, H, W, D), network space; the unperturbed image, or (gradients only) another one with ``outputs``.
            logits: (channels, H, W, D), its whole-volume prediction; KernelSHAP needs it.
            outputs: the function that is explained, if it exists already.

        Returns:
            maps (T, C, H, W, D); of KernelSHAP (T, 1, H, W, D), in logits, since a unit is removed in all channels.

        Raises:
            ValueError: for missing logits, and see `ClassOutputs` and `KernelSHAPExplainer`.
        """
        outputs = self.outputs(image, logits) if outputs is None else outputs
        if self.method in _GRADIENTS:
            return _GRADIENTS[self.method](outputs, image, **(self.options or {}))
        if logits is None:
            raise ValueError(f"{self.method} needs the logits of the whole volume.")
        return self._kernel_shap(image, logits.as_subclass(torch.Tensor), outputs)

    def _kernel_shap(self, image: torch.Tensor, logits: torch.Tensor, outputs: ClassOutputs) -> VoxelAttributions:
        started = time.perf_counter()
        partition = self._units(outputs, logits, current_grid(image))
        masks = outputs.masks.cpu().numpy()
        present = [t for t, c in enumerate(outputs.classes) if c not in outputs.absent]
        if not present:
            raise ValueError(f"none of the classes {outputs.classes} is predicted; there is nothing to explain.")
        regions = [Region(masks[t], "mask", outputs.classes[t], int(masks[t].sum())) for t in present]
        explain = self._explainer()
        found = explain(image, partition, regions, logits)
        maps = torch.zeros((len(outputs.classes), 1, *partition.grid.shape), dtype=outputs.image.dtype)
        for t, region, one in zip(present, regions, found, strict=True):
            voxels = region.voxels if self.aggregate == "sum" else 1
            maps[t, 0] = torch.from_numpy(voxels * one.attribution_map("class_output"))
        first = found[0]
        settings = {
            **outputs.settings(),
            "mask": "fixed",
            "units": partition.kind,
            "n_units": partition.n_units,
            "baseline": dict(first.baseline),
            "estimator": first.method,
            "evaluations": first.evaluations,
            "seed": first.seed,
        }
        return VoxelAttributions(
            maps=maps.to(outputs.image.device),
            classes=outputs.classes,
            method=self.method,
            values=outputs.values.copy(),
            absent=outputs.absent,
            seconds=time.perf_counter() - started,
            n_forwards=first.forwards.run + first.forwards.calibration,
            n_backwards=0,
            settings=settings,
        )

    def _units(self, outputs: ClassOutputs, logits: torch.Tensor, grid: VoxelGrid) -> Partition:
        options = dict(self.options or {})
        if self.method == "kernelshap_semantic":
            labels = outputs.heads.label_map(logits).cpu().numpy()
            return predicted_class_partition(labels, grid, include_background=True)
        scale = options.get("scale_mm")
        if scale is None:
            volume = float(np.prod(grid.shape)) * float(np.prod(grid.spacing_mm))
            scale = (volume / int(options.get("cubes", 512))) ** (1 / 3)
        return cube_partition(grid, float(scale))

    def _explainer(self) -> KernelSHAPExplainer:
        options = dict(self.options or {})
        baseline = options.get("baseline", 0.0)
        return KernelSHAPExplainer(
            self.network,
            self.inferer,
            scores=("class_output",),
            budget=options.get("budget"),
            method=options.get("estimator", "auto"),
            seed=options.get("seed", 0),
            baseline=baseline if isinstance(baseline, Baseline) else ConstantBaseline(float(baseline)),
            device=self.device,
            store_dir=options.get("store_dir"),
            batch_size=self.batch_size or "auto",
            numerics=self.numerics,
            tolerance=options.get("tolerance"),
            heads=self.heads,
            progress=self.progress,
        )
