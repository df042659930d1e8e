"""An asymmetric phantom whose every voxel tells its world position, and files made from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

SHAPE = (7, 6, 5)
Change = Callable[[Any, int], Any]


@pytest.fixture
def phantom() -> NDArray[np.float32]:
    """Voxel (x, y, z) holds x + 10 y + 100 z: no flip or permutation leaves it unchanged."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    return (x + 10 * y + 100 * z).astype(np.float32)


@pytest.fixture
def at_mm() -> Callable[[Any, NDArray[np.float64]], NDArray[np.float64]]:
    """Values of a scan at world positions (n, 3) that lie on its voxels."""

    def sample(scan: Any, points: NDArray[np.float64]) -> NDArray[np.float64]:
        index = np.c_[points, np.ones(len(points))] @ np.linalg.inv(scan.affine).T
        nearest = np.rint(index[:, :3]).astype(int)
        assert np.abs(index[:, :3] - nearest).max() < 0.02
        return scan.array[0][tuple(nearest.T)]

    return sample


@pytest.fixture
def dicom_series(tmp_path: Path, phantom: NDArray[np.float32]) -> Callable[..., Path]:
    """Build a CT series of the phantom below the test's folder; see :func:`write_series`."""

    def build(
        change: Change = lambda ds, z: None,
        *,
        name: str = "series",
        voxels: NDArray[Any] | None = None,
        **options: Any,
    ) -> Path:
        volume = phantom if voxels is None else voxels
        return write_series(tmp_path / name, volume, change, **options)

    return build


def write_series(
    folder: Path,
    voxels: NDArray[Any],
    change: Change = lambda ds, z: None,
    *,
    syntax: str = "1.2.840.10008.1.2.1",
    spacing_mm: tuple[float, float, float] = (1.5, 2.0, 3.0),
    row: tuple[float, ...] = (1, 0, 0),
    column: tuple[float, ...] = (0, 1, 0),
    suffix: str = ".dcm",
) -> Path:
    """Write a CT series; ``change(data_set, z)`` edits a slice and may return False to drop it."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    volume = voxels.astype(np.int16)
    folder.mkdir(exist_ok=True)
    normal = np.cross(row, column)
    for z in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{z + 1}"
        meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"1.2.3.{z + 1}"
        ds.PatientName, ds.PatientID = "Planted^Name", "PLANTED-ID-77"
        ds.PatientBirthDate = "19610203"
        ds.Modality, ds.StudyInstanceUID, ds.SeriesInstanceUID = "CT", "1.2.8", "1.2.9"
        ds.FrameOfReferenceUID, ds.InstanceNumber = "1.2.7", z + 1
        ds.Rows, ds.Columns, ds.SamplesPerPixel = volume.shape[1], volume.shape[0], 1
        ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME2", 1
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.RescaleSlope, ds.RescaleIntercept = 15, 1, 0
        ds.PixelSpacing = [spacing_mm[1], spacing_mm[0]]
        ds.SliceThickness = spacing_mm[2]
        ds.ImageOrientationPatient = [float(f"{v:.10f}") for v in (*row, *column)]
        place = np.array([-20.0, 30.0, 40.0]) + normal * spacing_mm[2] * z
        ds.ImagePositionPatient = [float(f"{v:.8f}") for v in place]
        ds.PixelData = np.ascontiguousarray(volume[:, :, z].T).tobytes()
        if change(ds, z) is not False:
            ds.save_as(folder / f"s{z:03d}{suffix}", enforce_file_format=True)
    return folder
