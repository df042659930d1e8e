"""`read_image`: whatever the user named becomes a MetaTensor, or is rejected in one line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medvol.core.errors import InputError, MissingInputError
from medvol.io import dicom, formats, image_2d, itk_formats, nifti
from medvol.io.checks import Scan, shown

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor

#: Formats; a stack is a folder of numbered images, a series one of DICOM files.
Kind = Literal["NIfTI", "NRRD", "MetaImage", "image", "stack", "series", "DICOM"]


@dataclass(frozen=True)
class ReadOptions:
    """What a user may state about an input that does not describe itself.

    Attributes:
        spacing_mm: Voxel edge lengths of a folder of numbered 2D images.
        orientation: Which NIfTI orientation to believe; see :func:`medvol.io.nifti.read_nifti`.
        channels: Accept a fourth axis of a NIfTI, NRRD or MetaImage file as channels.
        dicom: Which series or time point of a DICOM folder, and how its values are read.
    """

    spacing_mm: Sequence[float] | None = None
    orientation: nifti.Orientation = "strict"
    channels: bool = False
    dicom: dicom.DicomOptions = field(default_factory=dicom.DicomOptions)


def read_image(
    path: str | os.PathLike[str],
    *,
    spacing_mm: Sequence[float] | None = None,
    series: str | int | None = None,
    volume: int | None = None,
    options: ReadOptions | None = None,
) -> MetaTensor:
    """Read one image, or reject it in one line.

    Args:
        path: A NIfTI, NRRD, MHA/MHD, DICOM or 2D image file, a folder with one DICOM series, or a
            folder of numbered 2D images.
        spacing_mm: Required for a folder of 2D images, never guessed.
        series: Which series of a DICOM folder, by number from 1 or by UID.
        volume: Which volume of a 4D DICOM series, from 1.
        options: Further answers to what a file leaves open.

    Returns:
        float32 voxels, channel first, (C, X, Y, Z) or (C, X, Y); ``affine`` maps voxel indices to
        RAS millimetres; ``meta["filename_or_obj"]`` is ``path``.

    Raises:
        InputError: One line naming the file and its fault.
    """
    options = options or ReadOptions()
    if spacing_mm is not None:
        options = replace(options, spacing_mm=spacing_mm)
    chosen = {k: v for k, v in (("series", series), ("volume", volume)) if v is not None}
    options = replace(options, dicom=replace(options.dicom, **chosen))
    return to_metatensor(read_scan(path, options))


def read_scan(path: str | os.PathLike[str], options: ReadOptions | None = None) -> Scan:
    """The same without torch: the scan as a plain array and its affine."""
    options, path = options or ReadOptions(), Path(path)
    match kind_of(path):
        case "NIfTI":
            return nifti.read_nifti(path, options.orientation, channels=options.channels)
        case "NRRD" | "MetaImage":
            return itk_formats.read_itk_format(
                path, channels=options.channels, assume_ras=options.orientation == "assume_ras"
            )
        case "image":
            return image_2d.read_image_2d(path)
        case "stack":
            return image_2d.read_stack(path, options.spacing_mm)
        case "series":
            return dicom.read_folder(path, options.dicom)
        case _:
            return dicom.read_file(path, options.dicom)


def kind_of(path: Path) -> Kind:
    """What reads a path: by its name, or for a folder by what lies in it.

    Raises:
        InputError: If the path does not exist or cannot.
    """
    if "\0" in os.fspath(path):
        raise InputError(f"{shown(path)}: the name holds a null character")
    if not path.exists():
        raise MissingInputError(f"{shown(path)}: does not exist")
    if path.is_dir():
        files = dicom.walk_files(path)
        has_images = any(formats.ends_like(file.name, formats.FLAT) for file in files)
        return "stack" if has_images and all(map(dicom.is_beside, files)) else "series"
    return formats.format_of(path.name) or "DICOM"


def to_metatensor(scan: Scan) -> MetaTensor:
    """Wrap a scan as MONAI does after ``LoadImaged(ensure_channel_first=True)``."""
    import torch
    from monai.data.meta_tensor import MetaTensor

    voxels = torch.from_numpy(np.ascontiguousarray(scan.array))
    return MetaTensor(voxels, affine=torch.from_numpy(scan.affine.copy()), meta=scan_meta(scan))


def scan_meta(scan: Scan) -> dict[str, object]:
    """The metadata that MONAI's own readers set, and nothing from the header besides."""
    return {
        "affine": scan.affine.copy(),
        "original_affine": scan.affine.copy(),
        "spatial_shape": np.asarray(scan.array.shape[1:]),
        "space": "RAS",
        "original_channel_dim": 0,
        "filename_or_obj": os.fspath(scan.path),
    }
