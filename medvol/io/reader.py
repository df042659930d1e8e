"""The readers as a MONAI reader: ``LoadImaged(reader="medvol.io.MedvolReader")``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from numpy.typing import NDArray

from medvol.core.errors import GridMismatchError
from medvol.core.geometry import SAME_GRID_MM, grid_distance_mm
from medvol.io.checks import Scan, shown
from medvol.io.dicom import DicomOptions
from medvol.io.image import ReadOptions, read_scan, scan_meta


@dataclass(frozen=True)
class _Pending:
    """Paths that are read when the data is asked for.

    ``LoadImage`` swallows what a reader's ``read`` raises and tries its other readers, which would
    let another reader take a rejected file; what ``get_data`` raises reaches the user.
    """

    paths: tuple[Path, ...]


class MedvolReader(ImageReader):
    """Reads every format of :func:`medvol.io.read_image` with the same errors.

    A list of files becomes the channels of one image, as in MONAI; they must share a grid.

    Args:
        spacing_mm: Voxel edge lengths for folders of numbered 2D images.
        orientation: Which NIfTI orientation to believe, ``strict`` by default.
        channels: Accept the fourth axis of a NIfTI or NRRD file as channels.
        series: Which series of a DICOM folder that holds several.
        volume: Which time point of a 4D DICOM series, counted from 1.
        resample_tilt: Resample slices of a tilted gantry onto a regular grid.
    """

    def __init__(
        self,
        spacing_mm: Sequence[float] | None = None,
        orientation: str = "strict",
        channels: bool = False,
        series: str | int | None = None,
        volume: int | None = None,
        resample_tilt: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        dicom = DicomOptions(series=series, volume=volume, resample_tilt=resample_tilt)
        self.options = ReadOptions(spacing_mm, orientation, channels, dicom)  # pyright: ignore[reportArgumentType]

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Every file is judged by its content, so none is turned away by its name."""
        return True

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> _Pending:
        """Remember the paths; nothing is opened yet, so nothing is rejected here."""
        paths = (data,) if isinstance(data, (str, os.PathLike)) else tuple(data)
        return _Pending(tuple(Path(p) for p in paths))

    def get_data(self, img: _Pending) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Read and check.

        Returns:
            (X, Y, Z) voxels where there is one channel, else (C, X, Y, Z); and the metadata that
            ``EnsureChannelFirst`` needs.

        Raises:
            InputError: One line naming the file and its fault.
        """
        scans = [read_scan(path, self.options) for path in img.paths]
        for other in scans[1:]:
            _require_same_grid(scans[0], other)
        first = scans[0]
        array = first.array if len(scans) == 1 else np.concatenate([s.array for s in scans])
        meta: dict[str, Any] = scan_meta(first)
        if array.shape[0] == 1:
            array, meta["original_channel_dim"] = array[0], float("nan")
        return array, meta


def _require_same_grid(first: Scan, other: Scan) -> None:
    if first.array.shape[1:] != other.array.shape[1:]:
        raise GridMismatchError(f"{shown(other.path)}: shape {other.array.shape[1:]} differs from "
                                f"{first.array.shape[1:]} of {shown(first.path)}")  # fmt: skip
    if grid_distance_mm(first.array.shape[1:], first.affine, other.affine) > SAME_GRID_MM:
        raise GridMismatchError(f"{shown(other.path)}: its affine differs from that of "
                                f"{shown(first.path)}")  # fmt: skip
