# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Removal of units in the file's own intensities, before nnU-Net crops, normalizes and resamples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import TransformBackends
from numpy.typing import NDArray
from scipy import ndimage

from monai_segshap.geometry import current_grid, resample_nearest
from monai_segshap.inferers import PerturbedImages
from monai_segshap.nnunet.preprocessing import nnunet_properties, preprocess_array
from monai_segshap.nnunet.reading import RawCase, channel_files, raw_case_from_files
from monai_segshap.region import Box, bounding_box
from monai_segshap.units import Partition

if TYPE_CHECKING:
    from monai_segshap.nnunet.model import NNUNetModel

__all__ = ["PERTURBATION_SPACES", "NNUNetRawPerturbationd", "raw_equals_network_space", "raw_perturbation"]

#: Where units are removed: in the network's input, or in the file's intensities.
PERTURBATION_SPACES = ("network", "raw")
#: Voxels of the file over which cubic spline resampling passes a change on: 0.268**28 is below double precision.
_REACH = 28


def raw_equals_network_space(model: NNUNetModel, image: torch.Tensor) -> list[str]:
    """Why removal in the file's intensities differs from removal in network space; empty: both are equal bit for bit.

    Args:
        model: the model.
        image: as `monai_segshap.nnunet.preprocess_files` made it.

    Returns:
        the reasons. Equal means: to the removal with `monai_segshap.nnunet.baseline_of` of the same HU.
    """
    properties, reasons = nnunet_properties(image), []
    others = sorted({s for s in model.config.normalization_schemes if s != "CTNormalization"})
    if others:
        reasons.append(f"{', '.join(others)} has no fixed value for the intensity of a removed voxel")
    before, after = properties["shape_after_cropping_and_before_resampling"], properties["network_shape"]
    if list(before) != list(after):
        reasons.append(f"the image is resampled from {tuple(before)} to {tuple(after)} voxels")
    return reasons


def raw_perturbation(
    model: NNUNetModel, raw: RawCase, image: torch.Tensor, partition: Partition, box: Box, hu: float = -1024
) -> PerturbedImages | None:
    """Images whose units are replaced in the file's intensities, inside nnU-Net's crop box of the unchanged image.

    Args:
        model: the model.
        raw: the case as nnU-Net's reader gives it.
        image: the same, preprocessed.
        partition: units on the network's grid; a voxel of the file belongs to the unit of the nearest network voxel.
        box: network voxels that windows of the region see; units that can not change any of them are dummies.
        hu: what removed voxels become, in every channel.

    Returns:
        the perturbation; None where it equals removal in network space bit for bit, which needs fewer passes.
    """
    if not raw_equals_network_space(model, image):
        return None
    labels = resample_nearest(partition.labels, current_grid(image), raw.reader_grid).astype(np.int64)
    crop_box = nnunet_properties(image)["bbox_used_for_cropping"]

    def make(kept: NDArray[np.bool_]) -> torch.Tensor:
        keep = np.concatenate([[True], kept])
        voxels = np.where(keep[labels], raw.voxels, np.float32(hu))
        data, _ = preprocess_array(model, voxels, raw.properties, crop_box)
        return torch.from_numpy(data)

    description = {"kind": "constant", "local": False, "hu": float(hu), "requested_hu": float(hu)}
    description |= {"network_value": None, "space": "file"}
    changed = (raw.voxels != np.float32(hu)).any(axis=0)
    present = np.bincount(labels[changed], minlength=partition.n_units + 1)[1 : partition.n_units + 1] > 0
    if _keeps_range(model, labels, raw, crop_box, hu):
        present &= _within_reach(labels, image, raw, box, partition.n_units)
    return PerturbedImages(make, present, f"file intensities {hu:g}, box {crop_box}", description)


def _keeps_range(model: NNUNetModel, labels: NDArray[np.integer], raw: RawCase, crop_box: Any, hu: float) -> bool:
    """Whether no removal moves the lowest or highest value, to which nnU-Net's resampling clips the whole image.

    So it is where voxels of no unit hold both, and the replacement lies between. CT normalization alone keeps order.
    """
    if set(model.config.normalization_schemes) != {"CTNormalization"}:
        return False
    order = model.plans.transpose_forward
    h, w, d = (slice(low, high) for low, high in crop_box)
    free = labels.transpose(order)[h, w, d] == 0
    for channel, voxels in enumerate(raw.voxels):
        measured = model.plans.foreground_intensity_properties_per_channel[str(channel)]
        low, high = measured["percentile_00_5"], measured["percentile_99_5"]
        values = np.clip(voxels.transpose(order)[h, w, d], low, high)
        kept = values[free]
        if len(kept) == 0 or (kept.min(), kept.max()) != (values.min(), values.max()):
            return False
        if not kept.min() <= np.clip(np.float32(hu), low, high) <= kept.max():
            return False
    return True


def _within_reach(
    labels: NDArray[np.integer], image: torch.Tensor, raw: RawCase, box: Box, n_units: int
) -> NDArray[np.bool_]:
    """Bool (M,), units with a voxel so near the box that resampling passes its change on to it."""
    corners = np.array(np.meshgrid(*zip(*box, strict=True), indexing="ij")).reshape(3, -1).T
    seen = raw.reader_grid.to_index(current_grid(image).to_world(corners))
    low, high = np.floor(seen.min(axis=0)) - _REACH, np.ceil(seen.max(axis=0)) + _REACH
    found = np.zeros(n_units, dtype=bool)
    for unit, place in enumerate(ndimage.find_objects(labels, max_label=n_units)):
        if place is not None:
            found[unit] = all(s.start <= h and s.stop - 1 >= lo for s, lo, h in zip(place, low, high, strict=True))
    return found


class NNUNetRawPerturbationd(MapTransform):
    """Add the perturbation for `monai_segshap.transforms.KernelSHAPd` that removes units in the file's intensities.

    Nothing is added, and that is printed, where it equals removal in network space bit for bit, by the baseline
    `monai_segshap.nnunet.baseline_of` of the same HU, which is what the explainer then needs.

    Args:
        keys: the one key of the image, as `NNUNetPreprocessd` made it from files.
        model: the model.
        perturb: "raw", or "network": add nothing.
        hu: what removed voxels become.
        units_key: key of the units.
        field_key: key of the receptive field (1, a, b, c), see `monai_segshap.transforms.SelectRegiond`.
        output_key: key of the perturbation.
        allow_missing_keys: as in MONAI.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(
        self,
        keys: KeysCollection,
        model: NNUNetModel,
        perturb: str = "raw",
        hu: float = -1024,
        units_key: str = "units",
        field_key: str = "receptive_field",
        output_key: str = "perturbed",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if perturb not in PERTURBATION_SPACES:
            raise ValueError(f"unknown perturb {perturb!r}; expected one of {', '.join(PERTURBATION_SPACES)}.")
        self.model, self.perturb, self.hu = model, perturb, hu
        self.units_key, self.field_key, self.output_key = units_key, field_key, output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the perturbation to the dictionary."""
        d = dict(data)
        if self.perturb == "network":
            return d
        for key in self.key_iterator(d):
            image = d[key]
            reasons = raw_equals_network_space(self.model, image)
            if not reasons:
                print("removal in the file's intensities equals removal in network space here, bit for bit", flush=True)
                continue
            print(f"removal in the file's intensities shares no window: {'; '.join(reasons)}", flush=True)
            if self.field_key not in d:
                raise ValueError(
                    f"the case has no receptive field under {self.field_key!r}; SelectRegiond adds it if it gets the "
                    "inferer."
                )
            box = bounding_box(np.asarray(torch.as_tensor(d[self.field_key])[0].cpu()) > 0)
            raw = raw_case_from_files(self.model, channel_files(_files(image), self.model.n_channels))
            partition = Partition.from_metatensor(d[self.units_key])
            d[self.output_key] = raw_perturbation(self.model, raw, image, partition, box, self.hu)
        return d


NNUNetRawPerturbationD = NNUNetRawPerturbationDict = NNUNetRawPerturbationd


def _files(image: torch.Tensor) -> list[str]:
    files = nnunet_properties(image).get("files")
    if not files:
        raise ValueError(
            "the image does not know its files, so its intensities can not be read again; preprocess it from files "
            "(NNUNetPreprocessd on paths)."
        )
    return [str(file) for file in files]
