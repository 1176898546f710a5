# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""From the network's logits back to the grid of the file, by nnU-Net's own export."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import TransformBackends
from numpy.typing import NDArray

from monai_segshap.nnunet.preprocessing import nnunet_properties
from monai_segshap.nnunet.requirements import require_nnunet

if TYPE_CHECKING:
    from monai_segshap.nnunet.model import NNUNetModel

__all__ = ["NNUNetExportd", "export_labels"]


def export_labels(model: NNUNetModel, logits: torch.Tensor, properties: Mapping[str, Any]) -> NDArray[np.integer]:
    """The label map that nnU-Net writes for these logits: resampled, argmax or regions, un-cropped, un-transposed.

    nnU-Net resamples in the type of the logits: the half-precision logits of its predictor give its file's bits,
    float32 logits may decide near-ties the other way. Memory: about 12 bytes for each head and voxel of the file.

    Args:
        model: the model.
        logits: (heads, a, b, c) on the network's grid, a floating type, any device.
        properties: of the preprocessed image, see `monai_segshap.nnunet.preprocessing.nnunet_properties`.

    Returns:
        uint8 or uint16 (x, y, z) on the grid of the file; of a region model, the values of its
        ``regions_class_order``.

    Raises:
        ValueError: for logits of another shape, with values that are not finite, or properties without the entries
            of nnU-Net.
        ImportError: without nnunetv2.
    """
    require_nnunet()
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    _check(model, logits, properties)
    plain = logits.detach().cpu().as_subclass(torch.Tensor)
    threads = torch.get_num_threads()
    try:
        labels = convert_predicted_logits_to_segmentation_with_correct_shape(
            plain, model.plans, model.config, model.labels, dict(properties), num_threads_torch=threads
        )
    finally:
        torch.set_num_threads(threads)
    return _to_file_order(labels, np.asarray(properties["reader_to_file"]))


class NNUNetExportd(MapTransform):
    """Add the label map that nnU-Net writes for the logits of a case, on the grid of its file, see `export_labels`.

    Args:
        keys: the one key of the logits (heads, a, b, c).
        model: the model.
        image_key: key of the image, as `monai_segshap.nnunet.NNUNetPreprocessd` made it.
        output_key: key of the label map, an array (x, y, z).
        allow_missing_keys: as in MONAI.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(
        self,
        keys: KeysCollection,
        model: NNUNetModel,
        image_key: str = "image",
        output_key: str = "exported",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.model, self.image_key, self.output_key = model, image_key, output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the label map to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.output_key] = export_labels(self.model, d[key], nnunet_properties(d[self.image_key]))
        return d


NNUNetExportD = NNUNetExportDict = NNUNetExportd


def _check(model: NNUNetModel, logits: torch.Tensor, properties: Mapping[str, Any]) -> None:
    wanted = ("spacing", "shape_before_cropping", "bbox_used_for_cropping", "network_shape", "reader_to_file")
    missing = [name for name in (*wanted, "shape_after_cropping_and_before_resampling") if name not in properties]
    if missing:
        raise ValueError(
            f"the properties lack {', '.join(missing)}; give nnunet_properties(image) of the preprocessed image."
        )
    expected = (model.n_heads, *properties["network_shape"])
    if tuple(logits.shape) != expected or not logits.is_floating_point():
        raise ValueError(
            f"got logits of shape {tuple(logits.shape)} and {logits.dtype}; expected floating-point logits "
            f"(heads, a, b, c) = {expected} on the network's grid, without a batch axis."
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the logits hold values that are not finite; nnU-Net would write arbitrary labels for them.")


def _to_file_order(labels: NDArray[np.integer], to_file: NDArray[np.float64]) -> NDArray[np.integer]:
    """Turn an array in the reader's order of axes into the file's order (x, y, z)."""
    axes = [int(np.argmax(np.abs(row[:3]))) for row in to_file[:3]]
    flipped = tuple(axis for axis in range(3) if to_file[axis, axes[axis]] < 0)
    return np.ascontiguousarray(np.flip(labels.transpose(axes), flipped))
