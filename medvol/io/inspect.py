"""What one image is, from its headers: the check that every reader and every verb shares."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvol.core.geometry import Geometry
from medvol.io import dicom, image_2d, itk_formats, nifti
from medvol.io.dicom_header import DicomImage
from medvol.io.image import ReadOptions, kind_of


@dataclass(frozen=True)
class ImageHeader:
    """An image that is usable as far as its headers can tell.

    Attributes:
        path: What the user named.
        kind: ``NIfTI``, ``NRRD``, ``MetaImage``, ``DICOM``, ``segmentation``, ``projection``,
            ``image`` (a photograph's format) or ``stack`` (a folder of numbered images).
        shape: Voxels along X, Y, Z, or X, Y of an image without depth.
        affine: Voxel index to RAS millimetres; None where the format has none.
        channels: Channels of each voxel.
        tilt_deg: Gantry tilt of a DICOM series.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    affine: NDArray[np.float64] | None = None
    channels: int = 1
    tilt_deg: float = 0.0

    @property
    def geometry(self) -> Geometry | None:
        """The grid in the patient; None where the format has none."""
        if self.affine is None or len(self.shape) != 3:
            return None
        x, y, z = self.shape
        return Geometry((x, y, z), self.affine)


def inspect_image(
    path: str | os.PathLike[str], options: ReadOptions | None = None, *, is_whole: bool = False
) -> ImageHeader:
    """Check everything about an image that takes no decoding of voxels.

    ``data scan``, ``--dry-run`` and the memory plan ask this, and readers make the same checks by
    the same functions: what is rejected here is rejected there, in the same words. What only
    voxels show is left to reading: NaN, integers that float32 cannot hold, damage inside an
    image codec's stream.

    Args:
        path: A file, a folder with one DICOM series, or a folder of numbered images.
        options: What the user states about the input.
        is_whole: Decompress a gzipped NIfTI file to its end too, keeping nothing, so that one that
            was cut or damaged shows.

    Raises:
        InputError: One line naming the file and its fault.
    """
    options, path = options or ReadOptions(), Path(path)
    match kind := kind_of(path):
        case "NIfTI":
            shape, affine = nifti.read_grid(path, options.orientation, channels=options.channels,
                                            is_whole=is_whole)  # fmt: skip
        case "NRRD" | "MetaImage":
            shape, affine = itk_formats.read_grid(
                path, channels=options.channels, assume_ras=options.orientation == "assume_ras"
            )
        case "image":
            return ImageHeader(path, kind, image_2d.read_size(path))
        case "stack":
            spacing, files = (
                image_2d.stack_spacing(path, options.spacing_mm),
                image_2d.numbered(path),
            )
            shape = (*image_2d.read_size(files[0]), len(files))
            affine = np.diag([*spacing, 1.0])
        case "series":
            series = dicom.choose_series(path, dicom.find_images(path), options.dicom)
            return inspect_series(path, series, options.dicom)
        case _:
            return inspect_series(path, [dicom.image_header(path)], options.dicom)
    return ImageHeader(path, kind, shape[:3], affine, shape[3] if len(shape) > 3 else 1)


def inspect_series(
    where: Path, images: list[DicomImage], options: dicom.DicomOptions
) -> ImageHeader:
    """The same for the DICOM images of one series, whose headers are read already."""
    first = images[0]
    if first.is_segmentation:
        shape = (first.columns, first.rows, len(first.frames))
        return ImageHeader(where, "segmentation", shape)
    if dicom.is_projection(images):
        dicom.check_projection(where, first)
        return ImageHeader(where, "projection", (first.columns, first.rows))
    stack = dicom.check_series(where, images, options)
    return ImageHeader(where, "DICOM", stack.shape, stack.affine, tilt_deg=stack.tilt_deg or 0.0)
