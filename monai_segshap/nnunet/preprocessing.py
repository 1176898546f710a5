# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""From files or a loaded image to the network's grid, by nnU-Net's own preprocessing."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends
from numpy.typing import NDArray

from monai_segshap.nnunet.reading import RawCase, channel_files, raw_case_from_files, raw_case_from_image
from monai_segshap.nnunet.requirements import require_nnunet
from monai_segshap.perturbation import ConstantBaseline

if TYPE_CHECKING:
    from monai_segshap.nnunet.model import NNUNetModel

__all__ = [
    "NNUNetPreprocessd",
    "baseline_of",
    "channel_files",
    "nnunet_properties",
    "preprocess_array",
    "preprocess_files",
    "preprocess_image",
]

#: Key of the meta data under which nnU-Net's properties travel, as JSON text: collating leaves text as it is.
_META_KEY = "nnunet_properties"

_Box = Sequence[Sequence[int]]


def preprocess_files(
    model: NNUNetModel, files: str | Path | Sequence[str | Path], crop_box: _Box | None = None
) -> MetaTensor:
    """What nnU-Net's predictor hands to its network for these files, bit for bit.

    Args:
        model: the model.
        files: see `channel_files`.
        crop_box: see `preprocess_array`.

    Returns:
        float32 (C, a, b, c) on the network's grid. ``affine`` leads from voxel indices (a, b, c) to RAS mm; the meta
        data hold ``original_affine``, ``spatial_shape`` and ``filename_or_obj`` of the (first) file, as MONAI's
        ``LoadImage`` sets them, and nnU-Net's properties, see `nnunet_properties`.

    Raises:
        ValueError: if a file can not be read or does not suit the model.
        FileNotFoundError: if a file is missing.
        ImportError: without nnunetv2.
    """
    require_nnunet()
    return _on_network_grid(model, raw_case_from_files(model, channel_files(files, model.n_channels)), crop_box)


def preprocess_image(model: NNUNetModel, image: torch.Tensor, crop_box: _Box | None = None) -> MetaTensor:
    """The same as `preprocess_files`, for an image that was loaded already.

    Args:
        model: the model.
        image: (C, x, y, z) in raw intensities (HU) and the orientation of the file, as ``LoadImage`` and
            ``EnsureChannelFirst`` make it.
        crop_box: see `preprocess_array`.

    Returns:
        see `preprocess_files`.

    Raises:
        ValueError: for another number of channels, values that are not finite, or an image that was reoriented or
            resampled after it was loaded.
        ImportError: without nnunetv2.
    """
    require_nnunet()
    return _on_network_grid(model, raw_case_from_image(model, image), crop_box)


def preprocess_array(
    model: NNUNetModel, array: NDArray[Any], properties: Mapping[str, Any], crop_box: _Box | None = None
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """nnU-Net's ``run_case_npy``, with a crop box of its own or a given one.

    nnU-Net crops to the voxels that are not 0. Replacing voxels of the raw image by 0, or a border of zeros by -1024,
    moves that box, and with it every window. Give the box of the unchanged image
    (``nnunet_properties(image)["bbox_used_for_cropping"]``) to hold it still.

    Args:
        model: the model.
        array: (C, a, b, c), raw intensities in the order of axes of nnU-Net's reader (z, y, x of a NIfTI file).
        properties: with "spacing", mm along a, b, c.
        crop_box: [first, last + 1] for each axis after the plans' ``transpose_forward``; None: nnU-Net's own box.

    Returns:
        float32 (C, a, b, c) on the network's grid, and nnU-Net's properties.

    Raises:
        ValueError: for another number of channels, a box outside the image, an image that nnU-Net can not preprocess,
            or a box and a model with a preprocessing of its own.
    """
    if array.ndim != 4 or len(array) != model.n_channels:
        raise ValueError(
            f"got an array of shape {array.shape}; expected (C, a, b, c) with {model.n_channels} channels."
        )
    box = None if crop_box is None else _checked_box(model, array, crop_box)
    what = f"an image of shape {array.shape}, spacing {np.round(properties['spacing'], 4).tolist()} mm"
    try:
        if box is None:
            preprocessor = model.config.preprocessor_class(verbose=False)
            data, _, found = preprocessor.run_case_npy(
                array, None, dict(properties), model.plans, model.config, model.dataset
            )
        else:
            data, found = _preprocess_in_box(model, array, dict(properties), box)
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"nnU-Net can not preprocess {what}, for the configuration {model.configuration!r} with spacing "
            f"{model.config.spacing} (is it too thin?): {error!r}"
        ) from error
    if min(data.shape) < 1:
        raise ValueError(
            f"{what}, becomes {data.shape[1:]} voxels at the network's spacing {model.config.spacing}: it is too thin."
        )
    return np.ascontiguousarray(data, dtype=np.float32), found


def nnunet_properties(image: torch.Tensor) -> dict[str, Any]:
    """nnU-Net's properties of a preprocessed image, as its export needs them.

    Besides nnU-Net's own entries ("spacing", "shape_before_cropping", "bbox_used_for_cropping",
    "shape_after_cropping_and_before_resampling", what its reader noted): "network_shape", "files", and
    "reader_to_file", the (4, 4) matrix from voxel indices of the reader's array to those of the file.

    Args:
        image: a result of `preprocess_files`, `preprocess_image` or `NNUNetPreprocessd`, collated or not.

    Raises:
        ValueError: for an image that carries none.
    """
    text = image.meta.get(_META_KEY) if isinstance(image, MetaTensor) else None
    if isinstance(text, list) and len(text) == 1:
        text = text[0]
    if not isinstance(text, str):
        raise ValueError(
            "the image carries no properties of nnU-Net; expected the result of NNUNetPreprocessd, preprocess_files or "
            "preprocess_image, one image, with its meta data."
        )
    found: dict[str, Any] = json.loads(text)
    return found


def baseline_of(model: NNUNetModel, hu: float = -1024, other: float = 0.0) -> ConstantBaseline:
    """The constants that nnU-Net's preprocessing writes for voxels of a HU.

    A CT channel is clipped to the percentiles 0.5 and 99.5 of the training set's foreground, so the network can not
    tell -1024 HU from the lower one: the baseline's ``hu`` is the clipped value.

    Args:
        model: the model.
        hu: for channels with CT normalization.
        other: network-space value for all other channels, which have no fixed value for a raw intensity.

    Returns:
        a value for each channel; ``hu`` is None without CT channels, or if they clip differently.

    Raises:
        ImportError: without nnunetv2.
    """
    require_nnunet()
    channels = range(model.n_channels)
    intensities = model.plans.foreground_intensity_properties_per_channel
    is_ct = [_normalization(model, channel).__name__ == "CTNormalization" for channel in channels]
    values, clipped = [float(other)] * model.n_channels, set()
    for channel in (c for c in channels if is_ct[c]):
        measured = intensities[str(channel)]
        scheme = _normalization(model, channel)(use_mask_for_norm=False, intensityproperties=measured)
        values[channel] = float(scheme.run(np.full((1, 1, 1), hu, dtype=np.float32))[0, 0, 0])
        clipped.add(float(np.clip(hu, measured["percentile_00_5"], measured["percentile_99_5"])))
    return ConstantBaseline(
        values[0] if len(values) == 1 else tuple(values),
        hu=clipped.pop() if len(clipped) == 1 else None,
        requested_hu=float(hu) if any(is_ct) else None,
    )


class NNUNetPreprocessd(MapTransform):
    """Replace an image by what nnU-Net's network gets, see `preprocess_files` and `preprocess_image`.

    Args:
        keys: the one key of the image: a file, a list of files (one for each channel), or a loaded image (C, x, y, z).
        model: the model.
        display_key: key under which the raw first channel (HU) is put, (1, a, b, c), linearly interpolated on the
            network's grid; None: nowhere.
        allow_missing_keys: as in MONAI.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(
        self,
        keys: KeysCollection,
        model: NNUNetModel,
        display_key: str | None = "ct",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1 or self.keys[0] == display_key:
            raise ValueError(
                f"got keys {self.keys} and display_key {display_key!r}; expected one key, and another one."
            )
        require_nnunet()
        self.model, self.display_key = model, display_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Preprocess the image of a case."""
        d = dict(data)
        for key in self.key_iterator(d):
            if isinstance(d[key], torch.Tensor):
                raw = raw_case_from_image(self.model, d[key])
            else:
                raw = raw_case_from_files(self.model, channel_files(d[key], self.model.n_channels))
            d[key] = _on_network_grid(self.model, raw)
            if self.display_key is not None:
                d[self.display_key] = _display(self.model, raw, d[key])
        return d


NNUNetPreprocessD = NNUNetPreprocessDict = NNUNetPreprocessd


def _on_network_grid(model: NNUNetModel, raw: RawCase, crop_box: _Box | None = None) -> MetaTensor:
    data, properties = preprocess_array(model, raw.voxels, raw.properties, crop_box)
    properties["network_shape"] = data.shape[1:]
    properties["reader_to_file"] = raw.to_file
    properties["files"] = list(raw.files)
    affine = raw.grid.affine @ raw.to_file @ _to_reader(model, properties)
    meta = {
        "original_affine": raw.grid.affine.copy(),
        "spatial_shape": np.array(raw.grid.shape),
        "space": "RAS",
        _META_KEY: json.dumps(properties, default=_plain),
    }
    if raw.files:
        meta["filename_or_obj"] = raw.files[0]
    return MetaTensor(torch.from_numpy(data), affine=torch.from_numpy(affine), meta=meta)


def _to_reader(model: NNUNetModel, properties: Mapping[str, Any]) -> NDArray[np.float64]:
    """Voxel index of the network's grid -> voxel index of the reader's array.

    Axis by axis, resampling puts the outer faces of both grids onto each other, then comes the corner of the crop box;
    then the axes go back to where the reader had them.
    """
    scale = np.divide(properties["shape_after_cropping_and_before_resampling"], properties["network_shape"])
    corner = np.array([low for low, _ in properties["bbox_used_for_cropping"]])
    to_reader = np.zeros((4, 4))
    to_reader[3, 3] = 1
    for axis, reader_axis in enumerate(model.plans.transpose_forward):
        to_reader[reader_axis, axis] = scale[axis]
        to_reader[reader_axis, 3] = corner[axis] + 0.5 * scale[axis] - 0.5
    return to_reader


def _display(model: NNUNetModel, raw: RawCase, image: MetaTensor) -> MetaTensor:
    properties = nnunet_properties(image)
    inside = tuple(slice(low, high) for low, high in properties["bbox_used_for_cropping"])
    cropped = torch.from_numpy(np.ascontiguousarray(raw.voxels[0].transpose(model.plans.transpose_forward)[inside]))
    if cropped.shape != image.shape[1:]:
        size = tuple(int(n) for n in image.shape[1:])
        cropped = torch.nn.functional.interpolate(cropped[None, None], size, mode="trilinear", align_corners=False)[
            0, 0
        ]
    meta = {key: value for key, value in image.meta.items() if key != "affine"}
    return MetaTensor(cropped[None], affine=image.affine.clone(), meta=meta)


def _normalization(model: NNUNetModel, channel: int) -> Any:
    """Class of a channel's normalization, found as nnU-Net's preprocessing finds it."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    scheme = model.config.normalization_schemes[channel]
    folder = str(Path(nnunetv2.__path__[0]) / "preprocessing" / "normalization")
    found = recursive_find_python_class(folder, scheme, "nnunetv2.preprocessing.normalization")
    if found is None:
        raise ValueError(f"channel {channel} is normalized by {scheme!r}, which the installed nnunetv2 does not have.")
    return found


def _checked_box(model: NNUNetModel, array: NDArray[Any], box: _Box) -> list[list[int]]:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    preprocessor = model.config.preprocessor_class
    if preprocessor.run_case_npy is not DefaultPreprocessor.run_case_npy:
        raise ValueError(
            f"the model has a preprocessing of its own, {preprocessor.__name__}, whose crop box can not be given; "
            "leave crop_box out."
        )
    shape = [array.shape[1 + axis] for axis in model.plans.transpose_forward]
    found = [[int(end) for end in ends] for ends in box]
    if [len(ends) for ends in found] != [2, 2, 2] or not all(
        0 <= ends[0] < ends[1] <= n for ends, n in zip(found, shape, strict=True)
    ):
        raise ValueError(
            f"the crop box is {found}; expected [first, last + 1] for three axes, inside the image, which has shape "
            f"{tuple(shape)} after the plans' transpose_forward."
        )
    return found


def _preprocess_in_box(
    model: NNUNetModel, array: NDArray[Any], properties: dict[str, Any], box: list[list[int]]
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """nnU-Net's steps, called one by one: transpose, the given crop, normalize, resample."""
    from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    preprocessor = model.config.preprocessor_class(verbose=False)
    order = model.plans.transpose_forward
    whole = array.astype(np.float32).transpose([0, *(axis + 1 for axis in order)])
    inside = tuple(slice(low, high) for low, high in box)
    outside = np.where(create_nonzero_mask(whole)[inside][None], np.int8(0), np.int8(-1))
    place = (slice(None), *inside)
    data = whole[place]
    properties["shape_before_cropping"] = whole.shape[1:]
    properties["bbox_used_for_cropping"] = box
    properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
    spacing = [properties["spacing"][axis] for axis in order]
    target = list(model.config.spacing)
    target = [spacing[0], *target] if len(target) == 2 else target
    measured = model.plans.foreground_intensity_properties_per_channel
    data = preprocessor._normalize(data, outside, model.config, measured)
    shape = compute_new_shape(data.shape[1:], spacing, target)
    return model.config.resampling_fn_data(data, shape, spacing, target), properties


def _plain(value: Any) -> Any:
    """Arrays and numbers of numpy, for JSON."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"nnU-Net's properties hold a {type(value).__name__}; expected numbers, text, lists and arrays.")
