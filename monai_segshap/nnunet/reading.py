# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""A case as nnU-Net's own reader gives it, from files or from a loaded image, with its place in patient space."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import correct_nifti_header_if_necessary
from numpy.typing import NDArray

from monai_segshap.geometry import VoxelGrid, current_grid, require_finite, source_grid

if TYPE_CHECKING:
    from monai_segshap.nnunet.model import NNUNetModel

__all__ = ["RawCase", "channel_files", "raw_case_from_files", "raw_case_from_image"]

#: Index of a reader's array (a, b, c) to index (c, b, a): nnU-Net's readers turn the axes of a file around.
_REVERSED = np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NUMBERED = re.compile(r"(?P<stem>.+)_(?P<number>\d{4})(?P<ending>\.[^/\\]+)")


@dataclass(frozen=True, eq=False)
class RawCase:
    """What nnU-Net's reader hands to its preprocessing.

    Attributes:
        voxels: float32 (C, a, b, c) in the reader's order of axes, intensities of the file.
        properties: the reader's properties; "spacing" belongs to a, b, c.
        to_file: float64 (4, 4), voxel index (a, b, c) -> voxel index (x, y, z) of the file; permutes and flips.
        grid: of the file (x, y, z).
        files: one for each channel; of a loaded image its first one, or none.
    """

    voxels: NDArray[np.float32]
    properties: Mapping[str, Any]
    to_file: NDArray[np.float64]
    grid: VoxelGrid
    files: tuple[str, ...]

    @property
    def reader_grid(self) -> VoxelGrid:
        """Grid of ``voxels`` (a, b, c)."""
        a, b, c = self.voxels.shape[1:]
        return VoxelGrid((a, b, c), self.grid.affine @ self.to_file)


def channel_files(image: str | Path | Sequence[str | Path], n_channels: int) -> list[Path]:
    """Files of a case, one for each channel, in the order of the channels.

    Args:
        image: a file, or a list of files. Of a case NAME_0000.nii.gz, NAME_0001.nii.gz, ... the first file is enough.
        n_channels: of the model.

    Returns:
        existing files, ``n_channels`` of them.

    Raises:
        ValueError: for another number of files, another order, or a name that does not tell its siblings.
        FileNotFoundError: if a file is missing.
    """
    files = [Path(image)] if isinstance(image, (str, Path)) else [Path(file) for file in image]
    if len(files) == 1 and n_channels > 1:
        files = _siblings(files[0], n_channels)
    if len(files) != n_channels:
        raise ValueError(
            f"got {len(files)} files ({', '.join(f.name for f in files)}); the model takes {n_channels} channel(s), "
            "each a file of its own, in the order of the model's channel names."
        )
    for file in files:
        if not file.is_file():
            kind = "a folder; give its files" if file.is_dir() else "missing"
            raise FileNotFoundError(f"{file} is {kind}. The model takes {n_channels} channel(s), each a file.")
    found = [_NUMBERED.fullmatch(file.name) for file in files]
    numbers = [int(match["number"]) for match in found if match]
    if n_channels > 1 and numbers != sorted(numbers) and sorted(numbers) == list(range(n_channels)):
        raise ValueError(
            f"the files {', '.join(f.name for f in files)} are not in the order of their numbers; expected _0000 first."
        )
    return files


def raw_case_from_files(model: NNUNetModel, files: Sequence[Path]) -> RawCase:
    """Read a case with the reader of the model's plans.

    Args:
        model: the model.
        files: one for each channel, see `channel_files`.

    Returns:
        the case.

    Raises:
        ValueError: if a file can not be read, holds values that are not finite, no patient space or several images, or
            if the files have different shapes or spacings; for a 2D image and a 3D model.
    """
    headers = [_header(file) for file in files]
    for file, (grid, dimensions) in zip(files, headers, strict=True):
        if grid.shape != headers[0][0].shape or not np.allclose(grid.spacing_mm, headers[0][0].spacing_mm, rtol=1e-3):
            raise ValueError(
                f"the channels lie on different grids: {files[0].name} has {headers[0][0].describe()}; {file.name} has "
                f"{grid.describe()}. Resample them to one grid first."
            )
        if dimensions == 2 and not model.is_2d:
            raise ValueError(f"{file} holds a 2D image of {grid.shape[:2]} pixels; the model takes 3D images.")
    reader = _reader(model)
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            voxels, properties = reader().read_images([str(file) for file in files])
    except Exception as error:
        reason = str(error) or said.getvalue()
        raise ValueError(f"nnU-Net's {reader.__name__} can not read {_names(files)}: {reason}") from error
    if said.getvalue():
        warnings.warn(f"nnU-Net's {reader.__name__} says: {said.getvalue().strip()}", stacklevel=2)
    grid = headers[0][0]
    to_file = _to_file(reader, properties, files[0])
    expected = np.abs(to_file[:3, :3]).T @ grid.shape
    if voxels.ndim != 4 or len(voxels) != model.n_channels or not np.array_equal(voxels.shape[1:], expected):
        raise ValueError(
            f"nnU-Net's {reader.__name__} made an array of shape {voxels.shape} of {_names(files)}; expected "
            f"{(model.n_channels, *(int(n) for n in expected))}: {model.n_channels} channel(s), one for each file."
        )
    require_finite(torch.from_numpy(voxels), f"{_names(files)}, in nnU-Net's order of axes,")
    return RawCase(voxels, properties, to_file, grid, tuple(str(file) for file in files))


def raw_case_from_image(model: NNUNetModel, image: torch.Tensor) -> RawCase:
    """Bring a loaded image into the order of axes of the reader of the model's plans.

    Args:
        model: the model.
        image: (C, x, y, z) as ``LoadImage`` and ``EnsureChannelFirst`` make it, in the orientation of its file.

    Returns:
        the case; it shares no memory with the image.

    Raises:
        ValueError: for another shape, values that are not finite, or an image that was reoriented, cropped or
            resampled after it was loaded.
    """
    if image.ndim != 4 or image.shape[0] != model.n_channels:
        names = ", ".join(model.channel_names)
        raise ValueError(
            f"got an image of shape {tuple(image.shape)}; expected (C, x, y, z) with {model.n_channels} channel(s) "
            f"({names}), as LoadImage and EnsureChannelFirst make it."
        )
    grid, source = current_grid(image), source_grid(image)
    if not grid.same_as(source):
        raise ValueError(
            f"the image was reoriented, cropped or resampled after it was loaded: it has {grid.describe()}; its file "
            f"has {source.describe()}. nnU-Net must see it as the file has it: leave out Orientation and Spacing, or "
            "give the file instead."
        )
    require_finite(image, "the image")
    reader = _reader(model)
    plain = image.detach().cpu().float().as_subclass(torch.Tensor).numpy()
    turn = np.array([[axis, 1] for axis in range(3)])
    if "Reorient" in reader.__name__:
        turn = nib.orientations.io_orientation(grid.affine)
    turned = [nib.orientations.apply_orientation(np.array(channel, order="F"), turn) for channel in plain]
    # Means of float32 depend on the order in memory: these are the strides that nnU-Net's readers leave behind.
    voxels = np.vstack([channel.transpose(2, 1, 0)[None] for channel in turned])
    if "SimpleITK" in reader.__name__:
        voxels = np.ascontiguousarray(voxels)
    to_file = nib.orientations.inv_ornt_aff(turn, grid.shape) @ _REVERSED
    spacing = _spacing(image, grid)
    ordered = [spacing[int(np.argmax(np.abs(to_file[:3, axis])))] for axis in range(3)]
    meta = image.meta if isinstance(image, MetaTensor) else {}
    source_file = str(meta.get("filename_or_obj") or "")
    return RawCase(voxels, {"spacing": ordered}, to_file, grid, (source_file,) if source_file else ())


def _siblings(first: Path, n_channels: int) -> list[Path]:
    match = _NUMBERED.fullmatch(first.name)
    if match is None or int(match["number"]) != 0:
        raise ValueError(
            f"got one file, {first.name}; the model takes {n_channels} channels. Give a list of {n_channels} files, or "
            "the first of files named NAME_0000, NAME_0001, ..."
        )
    files = [first.with_name(f"{match['stem']}_{k:04d}{match['ending']}") for k in range(n_channels)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"missing in {first.parent}: {', '.join(missing)}; the model takes {n_channels} files.")
    return files


def _reader(model: NNUNetModel) -> Any:
    """Class of the reader; its results must have a place in patient space."""
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    reader = model.plans.image_reader_writer_class
    if not issubclass(reader, (SimpleITKIO, NibabelIO, NibabelIOWithReorient)):
        raise ValueError(
            f"the model reads its images with nnU-Net's {reader.__name__}, which knows no patient space; expected "
            "SimpleITKIO, NibabelIO or one of their reorienting forms (NIfTI, NRRD, MHA)."
        )
    return reader


def _header(file: Path) -> tuple[VoxelGrid, int]:
    """Grid of a file as MONAI's LoadImage finds it, and its dimensions: 2 or 3.

    SimpleITK reads what is missing of a truncated NIfTI file, and what is no number, as 0; nibabel tells.
    """
    try:
        if file.name.lower().endswith((".nii", ".nii.gz")):
            opened = correct_nifti_header_if_necessary(nib.load(file))
            shape, affine = tuple(opened.shape), np.asarray(opened.affine, dtype=np.float64)
            values = opened.dataobj.get_unscaled()
        else:
            (shape, affine), values = _sitk_header(file), None
    except Exception as error:
        raise ValueError(f"{file} can not be read as an image: {error}") from error
    if len(shape) < 2 or int(np.prod(shape[3:])) != 1:
        raise ValueError(f"{file} holds an array of shape {shape}; expected one 3D image. Save each channel by itself.")
    if values is not None and np.issubdtype(values.dtype, np.floating):
        require_finite(torch.from_numpy(np.array(values, dtype=np.float32))[None], str(file))
    sizes = (*(int(n) for n in shape[:3]), 1)
    return VoxelGrid((sizes[0], sizes[1], sizes[2]), affine), min(len(shape), 3)


def _sitk_header(file: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    affine = _sitk_affine(reader.GetDirection(), reader.GetSpacing(), reader.GetOrigin())
    return tuple(reader.GetSize()), _LPS_TO_RAS @ affine


def _sitk_affine(direction: Sequence[float], spacing: Sequence[float], origin: Sequence[float]) -> NDArray[np.float64]:
    """Voxel index (x, y, z) -> mm in SimpleITK's frame (LPS), for images of 2 dimensions or more."""
    n, used = len(spacing), min(len(spacing), 3)
    affine = np.eye(4)
    affine[:used, :used] = (np.reshape(direction, (n, n)) * np.asarray(spacing))[:used, :used]
    affine[:used, 3] = origin[:used]
    return affine


def _to_file(reader: Any, properties: Mapping[str, Any], file: Path) -> NDArray[np.float64]:
    """See `RawCase.to_file`."""
    if "Reorient" not in reader.__name__:
        return _REVERSED
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        turned, original = stuff["reoriented_affine"], stuff["original_affine"]
    else:
        stuff = properties["sitk_stuff"]
        turned = _LPS_TO_RAS @ _sitk_affine(stuff["direction"], stuff["spacing"], stuff["origin"])
        original = _sitk_header(file)[1]
    found: NDArray[np.float64] = np.round(np.linalg.inv(original) @ turned) @ _REVERSED
    return found


def _spacing(image: torch.Tensor, grid: VoxelGrid) -> tuple[float, float, float]:
    """Spacing as readers find it in the header: lengths of the affine's columns carry rounding."""
    pixdim = image.meta.get("pixdim") if isinstance(image, MetaTensor) else None
    listed = [] if pixdim is None else [float(n) for n in np.asarray(pixdim).ravel()[1:4]]
    if len(listed) == 3 and np.allclose(listed, grid.spacing_mm, rtol=1e-4, atol=0):
        return listed[0], listed[1], listed[2]
    return grid.spacing_mm


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)
