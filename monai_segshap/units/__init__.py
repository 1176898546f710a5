# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Units: what a person can name and the game can remove."""

from __future__ import annotations

from monai_segshap.units.contrast_cases import read_contrast_cases
from monai_segshap.units.contrasts import (
    CONTRAST_SYNONYMS,
    Contrasts,
    canonical_contrast,
    check_contrast_sources,
    contrast_of_file,
    order_contrast_files,
)
from monai_segshap.units.lattice import SCALE_DEFINITIONS, cube_labels, fcc_labels
from monai_segshap.units.names import load_label_names
from monai_segshap.units.partition import Partition, partition_from_labels, whole_numbers
from monai_segshap.units.partitions import (
    cube_partition,
    fcc_partition,
    hybrid_partition,
    merge_fragments,
    organ_partition,
    predicted_class_partition,
)
from monai_segshap.units.positions import region_blocks, typical_unit_size, unit_distances

__all__ = [
    "CONTRAST_SYNONYMS",
    "SCALE_DEFINITIONS",
    "Contrasts",
    "Partition",
    "canonical_contrast",
    "check_contrast_sources",
    "contrast_of_file",
    "cube_labels",
    "cube_partition",
    "fcc_labels",
    "fcc_partition",
    "hybrid_partition",
    "load_label_names",
    "merge_fragments",
    "order_contrast_files",
    "organ_partition",
    "partition_from_labels",
    "predicted_class_partition",
    "read_contrast_cases",
    "region_blocks",
    "typical_unit_size",
    "unit_distances",
    "whole_numbers",
]
