# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Sub-regions of a segmentation: which output channels make one, and where the ground truth has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_segshap.heads import OutputHeads
from monai_segshap.units import whole_numbers

__all__ = ["TUMOR_LABELS", "SubRegion", "predicted_masks", "truth_masks", "tumor_sub_regions"]

#: Values of BraTS' label maps: enhancing tumor was 4 until 2021 and is 3 since 2023.
TUMOR_LABELS: dict[str, dict[str, int]] = {
    "2021": {"NCR": 1, "ED": 2, "ET": 4},
    "2023": {"NCR": 1, "ED": 2, "ET": 3},
}
#: Each sub-region of a tumor from channels of other names: first choice, then (channels, channels to leave out).
_RULES: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "ET": ((("ET",), ()),),
    "TC": ((("TC",), ()), (("NCR", "ET"), ())),
    "WT": ((("WT",), ()), (("NCR", "ED", "ET"), ())),
    "NCR": ((("NCR",), ()), (("TC",), ("ET",))),
    "ED": ((("ED",), ()), (("WT",), ("TC", "ET"))),
}
_PARTS = {"ET": ("ET",), "TC": ("NCR", "ET"), "WT": ("NCR", "ED", "ET"), "NCR": ("NCR",), "ED": ("ED",)}


@dataclass(frozen=True)
class SubRegion:
    """A part of the segmentation whose score is explained.

    A voxel is predicted as the sub-region if one of ``channels`` claims it and none of ``without`` does. Softmax heads:
    the channel of the largest logit claims a voxel. Sigmoid heads: each channel with a probability above 0.5.

    Attributes:
        name: of the sub-region.
        channels: output channels of the network.
        without: output channels whose voxels are left out, for a disjoint part of overlapping heads (necrosis is tumor
            core without enhancing tumor).
        labels: its values in a label map; None: the numbers of the channels (softmax heads only).
        known_labels: all values beside 0 that a label map may hold; another one is an error, because then the map
            follows another convention. Empty: any.
    """

    name: str
    channels: tuple[int, ...]
    without: tuple[int, ...] = ()
    labels: tuple[int, ...] | None = None
    known_labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("channels", "without", "known_labels"):
            object.__setattr__(self, field, _numbers(getattr(self, field)))
        if self.labels is not None:
            object.__setattr__(self, "labels", _numbers(self.labels))
        if not self.channels or set(self.channels) & set(self.without) or min(self.channels + self.without) < 0:
            raise ValueError(
                f"sub-region {self.name!r} has channels {self.channels} without {self.without}; expected at least one "
                "channel, numbered from 0, and none on both sides."
            )

    @classmethod
    def parse(cls, value: Any) -> SubRegion:
        """A sub-region, or a mapping with its fields as in a configuration."""
        return value if isinstance(value, SubRegion) else cls(**dict(value))

    @property
    def is_one_channel(self) -> bool:
        """Whether it is one output channel, so that it has a logit."""
        return len(self.channels) == 1 and not self.without

    def describe(self) -> dict[str, Any]:
        """Its fields as plain values, for ``contrasts.json`` and `parse`."""
        return {
            "name": self.name,
            "channels": list(self.channels),
            "without": list(self.without),
            "labels": None if self.labels is None else list(self.labels),
            "known_labels": list(self.known_labels),
        }


def tumor_sub_regions(
    names: Sequence[str] = ("TC", "WT", "ET"),
    output_channels: Sequence[str] = ("TC", "WT", "ET"),
    label_values: str | int | Mapping[str, int] = "2023",
) -> tuple[SubRegion, ...]:
    """Sub-regions of a glioma from the names of a network's output channels.

    A name that is an output channel is that channel. Otherwise whole tumor (WT) is NCR, ED or ET; tumor core (TC) is
    NCR or ET; and the disjoint parts of overlapping heads follow the order of painting in which nnU-Net exports them:
    NCR is TC without ET, ED is WT without TC and ET.

    Args:
        names: some of "TC", "WT", "ET", "NCR" (necrosis and, before 2023, non-enhancing tumor), "ED" (edema).
        output_channels: names of the network's output channels in their order, for example ("TC", "WT", "ET") for the
            sigmoid heads of MONAI's bundles, or ("background", "NCR", "ED", "ET") for softmax.
        label_values: values of the ground truth's label map: "2021" (ET is 4, BraTS 2012 to 2021), "2023" (ET is 3),
            also as numbers, or a mapping of NCR, ED and ET (and others that may occur) to values.

    Raises:
        ValueError: for an unknown name, or one that does not follow from the output channels.

    Example:
        >>> [(region.channels, region.without) for region in tumor_sub_regions(("NCR", "ED", "ET"))]
        [((0,), (2,)), ((1,), (0, 2)), ((2,), ())]
    """
    if isinstance(label_values, Mapping):
        values: Mapping[str, int] | None = dict(label_values)
    else:
        values = TUMOR_LABELS.get(str(label_values))  # a command line makes numbers of years
    if values is None or not {"NCR", "ED", "ET"} <= set(values):
        raise ValueError(
            f"label values {label_values!r}; expected {' or '.join(map(repr, TUMOR_LABELS))}, or the values of NCR, ED "
            "and ET."
        )
    outputs = [str(name).upper() for name in output_channels]
    found = []
    for name in (str(n).upper() for n in names):
        rule = next((r for r in _RULES.get(name, ()) if set(r[0] + r[1]) <= set(outputs)), None)
        if rule is None:
            raise ValueError(
                f"sub-region {name!r} does not follow from the output channels {list(output_channels)}; expected some "
                f"of {', '.join(_RULES)}, and the channels that they are made of."
            )
        channels, without = (tuple(outputs.index(part) for part in side) for side in rule)
        labels = tuple(int(values[part]) for part in _PARTS[name])
        found.append(SubRegion(name, channels, without, labels, tuple(sorted(int(v) for v in values.values()))))
    return tuple(found)


def predicted_masks(sub_regions: Sequence[SubRegion], logits: torch.Tensor, heads: OutputHeads) -> list[torch.Tensor]:
    """Voxels predicted as each sub-region, bool (H, W, D), from logits (channels, H, W, D)."""
    used = sorted({c for region in sub_regions for c in region.channels + region.without})
    if heads.kind == "softmax":
        winner = logits.argmax(dim=0)
        claims = {c: winner == c for c in used}
    else:
        claims = {c: heads.predicted(logits, c) for c in used}
    return _composed(sub_regions, claims)


def truth_masks(
    sub_regions: Sequence[SubRegion], label: torch.Tensor, heads: OutputHeads, n_channels: int
) -> NDArray[np.bool_]:
    """Voxels of each sub-region in the ground truth.

    Args:
        sub_regions: the S sub-regions.
        label: (1, H, W, D), a label map with the values of `SubRegion.labels`; or (channels, H, W, D), a mask above 0.5
            for each output channel, in their order, from which sub-regions are made as from the prediction.
        heads: how output channels relate.
        n_channels: of the network's output.

    Returns:
        bool (S, H, W, D).

    Raises:
        ValueError: for another number of channels, unknown values in a label map, or no values to look for.
    """
    plain = label.detach().cpu().as_subclass(torch.Tensor)
    if len(plain) == 1:
        values = whole_numbers(plain[0].numpy())
        return np.stack([_labeled(region, values, heads, n_channels) for region in sub_regions])
    if len(plain) != n_channels:
        raise ValueError(
            f"the ground truth has {len(plain)} channels; expected one with a label map, or {n_channels} masks, one "
            "for each output channel of the network in their order."
        )
    claims = dict(enumerate(plain > 0.5))
    return np.stack([mask.numpy() for mask in _composed(sub_regions, claims)])


def _composed(sub_regions: Sequence[SubRegion], claims: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
    found = []
    for region in sub_regions:
        mask = claims[region.channels[0]].clone()
        for channel in region.channels[1:]:
            mask |= claims[channel]
        for channel in region.without:
            mask &= ~claims[channel]
        found.append(mask)
    return found


def _labeled(region: SubRegion, values: NDArray[np.integer], heads: OutputHeads, n_channels: int) -> NDArray[np.bool_]:
    labels = region.labels
    if labels is None:
        if heads.kind == "sigmoid" and n_channels > 1:
            raise ValueError(
                f"sub-region {region.name!r} has no label values, and overlapping heads have no numbers of their own "
                "in a label map: give labels, or a ground truth with one mask for each output channel."
            )
        labels = (1,) if heads.kind == "sigmoid" else region.channels
    if region.known_labels:
        strange = sorted(set(np.unique(values).tolist()) - {0, *region.known_labels})
        if strange:
            raise ValueError(
                f"the label map holds {strange}; expected 0 and {list(region.known_labels)}. BraTS wrote enhancing "
                "tumor as 4 until 2021 and as 3 since 2023: choose label_values, or add the other values to it."
            )
    return np.isin(values, labels)


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in values) if isinstance(values, Iterable) else (int(values),)
