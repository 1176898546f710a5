# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Contrast Shapley values inside a MONAI `Compose`: check the files, explain, save."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_segshap.explainers.contrast import (
    ContrastExplanation,
    ContrastShapleyExplainer,
    format_contrast_table,
    write_contrasts,
)
from monai_segshap.transforms.cases import name_of_case
from monai_segshap.units.contrasts import Contrasts, check_contrast_sources

__all__ = ["CheckContrastFilesd", "ContrastShapleyd", "SaveContrastsd"]

_FILES_KEY = "contrast_files"
_EXPLANATIONS_KEY = "contrast_explanations"


class CheckContrastFilesd(MapTransform):
    """Raise if the files of a case are not in the order of the contrasts; goes before `LoadImaged`.

    MONAI remembers only the first one of several files, so that their order can not be checked afterwards.

    Args:
        keys: the one key of the file names, one for each input channel; a single file with all channels has none that
            could be checked, and passes.
        contrasts: see `monai_segshap.units.Contrasts.parse`.
        output_key: key under which the file names stay, for `ContrastShapleyd`.
        allow_missing_keys: as in MONAI.

    Raises:
        ValueError: when called, see `monai_segshap.units.check_contrast_sources`.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(
        self,
        keys: KeysCollection,
        contrasts: Any,
        output_key: str = _FILES_KEY,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.contrasts, self.output_key = Contrasts.parse(contrasts), output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the list, and keep it."""
        d = dict(data)
        for key in self.key_iterator(d):
            files = [d[key]] if isinstance(d[key], (str, Path)) else list(d[key])
            if len(files) > 1 or self.contrasts.n_channels == 1:
                check_contrast_sources(self.contrasts, files)
                d[self.output_key] = [str(file) for file in files]
        return d


class ContrastShapleyd(MapTransform):
    """Exact Shapley values of input contrasts, by `monai_segshap.explainers.ContrastShapleyExplainer`.

    Args:
        keys: the one key of the image (C, H, W, D), network space.
        network: one network, or several of which each gets values of its own.
        inferer: the deployed sliding-window inferer.
        contrasts: see `monai_segshap.units.Contrasts.parse`.
        sub_regions: see `monai_segshap.explainers.SubRegion` and `tumor_sub_regions`.
        label_key: key of the ground truth; may be missing if no score needs it.
        files_key: key of the file name or channel name of each input channel; may be missing.
        case: name of the case; default what stands under ``case_key``, or else the name of the image file.
        case_key: see ``case``.
        output_key: key of the list of `ContrastExplanation`, one for each network.
        allow_missing_keys: as in MONAI.
        options: of the explainer: scores, removal, heads, absent, signal, device, max_bytes, progress, batch_size,
            numerics.
    """

    backend = (TransformBackends.TORCH,)

    def __init__(
        self,
        keys: KeysCollection,
        network: Any,
        inferer: Inferer,
        contrasts: Any,
        sub_regions: Sequence[Any],
        *,
        label_key: str = "label",
        files_key: str = _FILES_KEY,
        case: str | None = None,
        case_key: str = "case",
        output_key: str = _EXPLANATIONS_KEY,
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.explainer = ContrastShapleyExplainer(network, inferer, contrasts, sub_regions, **options)
        self.label_key, self.files_key = label_key, files_key
        self.case, self.case_key, self.output_key = case, case_key, output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the explanations to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.output_key] = self.explainer(
                d[key],
                d.get(self.label_key),
                self.case or name_of_case(d, key, self.case_key),
                sources=d.get(self.files_key),
            )
        return d


class SaveContrastsd(MapTransform):
    """Write contrast explanations to ``output_dir/CASE``, and print their values.

    Args:
        keys: keys of lists of `ContrastExplanation`.
        output_dir: see `monai_segshap.explainers.write_contrasts` for the files.
        print_table: whether to print the values.
        files_key: key under which the written files are added: a list with one dictionary of name and path.
        allow_missing_keys: as in MONAI.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(
        self,
        keys: KeysCollection = _EXPLANATIONS_KEY,
        output_dir: str | Path = "contrasts",
        print_table: bool = True,
        files_key: str = "explanation_files",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir, self.print_table, self.files_key = Path(output_dir), print_table, files_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files, and add their paths to the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            found: list[ContrastExplanation] = d[key]
            d[self.files_key] = [write_contrasts(found, self.output_dir / found[0].case)]
            if self.print_table:
                print(format_contrast_table(found), flush=True)
        return d
