"""`read_image`: whatever the user named becomes a MetaTensor, or is refused in one line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvol.core.errors import InputError, MissingInputError
from medvol.io import dicom, itk_formats, nifti, picture
from medvol.io.dicom_parse import NotDicomError
from medvol.io.door import Scan, shown

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor

_NIFTI = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")


@dataclass(frozen=True)
class ReadOptions:
    """What a user may say about an input that does not speak for itself.

    Attributes:
        spacing_mm: Voxel edge lengths of a folder of numbered pictures.
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
    options: ReadOptions | None = None,
) -> MetaTensor:
    """Read one image through the gate.

    Args:
        path: A NIfTI, NRRD, MHA/MHD, DICOM or picture file, a folder with one DICOM series, or a
            folder of numbered pictures.
        spacing_mm: Required for a folder of pictures, refused to be guessed.
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
    return to_metatensor(read_scan(path, options))


def read_scan(path: str | os.PathLike[str], options: ReadOptions | None = None) -> Scan:
    """The same gate without torch: the scan as a plain array and its affine."""
    options, path = options or ReadOptions(), Path(path)
    if "\0" in os.fspath(path):
        raise InputError(f"{shown(path)}: the name holds a null character")
    if not path.exists():
        raise MissingInputError(f"{shown(path)}: does not exist")
    if path.is_dir():
        return _read_folder(path, options)
    if is_nifti_name(path.name):
        return nifti.read_nifti(path, options.orientation, channels=options.channels)
    suffix = path.suffix.lower()
    if suffix in picture.SUFFIXES:
        return picture.read_picture(path)
    if suffix in itk_formats.SUFFIXES:
        assume_ras = options.orientation == "assume_ras"
        return itk_formats.read_itk_format(path, channels=options.channels, assume_ras=assume_ras)
    try:
        return dicom.read_file(path, options.dicom)
    except NotDicomError as error:
        raise InputError(f"{shown(path)}: is not a DICOM file, and of no other format that medvol "
                         "reads by its name") from error  # fmt: skip


def is_nifti_name(name: str) -> bool:
    """Whether a file name ends like a NIfTI file's."""
    return name.lower().endswith(_NIFTI)


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


def _read_folder(path: Path, options: ReadOptions) -> Scan:
    files = dicom.walk_files(path)
    pictures = [file for file in files if file.suffix.lower() in picture.SUFFIXES]
    if pictures and all(dicom.is_beside(file) for file in files):
        return picture.read_stack(path, options.spacing_mm)
    return dicom.read_folder(path, options.dicom)
