"""The series that a result belongs to: its grid, and headers that name no patient.

A SEG or SR is written from these headers only. They carry the identifiers that tie the result to
its images (study, series, frame of reference, instances) and nothing that tells who was imaged;
what must be present is left empty, as DICOM allows for these attributes (type 2).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import InputError, MissingPackageError
from medvol.io.checks import Scan, shown
from medvol.io.dicom import DicomOptions, check_series, choose_series, find_images
from medvol.io.dicom_header import read_header
from medvol.io.dicom_series import Stack

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_KEPT = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "StudyDate", "StudyTime",
         "Modality", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient",
         "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "NumberOfFrames",
         "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
         "PixelRepresentation", "InstanceNumber", "LossyImageCompression")  # fmt: skip
_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber",
          "StudyID", "ReferringPhysicianName", "PositionReferenceIndicator")  # fmt: skip
_IDENTITY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber",
             "StudyID")  # fmt: skip
_GROUPS = ("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence",
           "FrameContentSequence")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One image series as the source of a result.

    Attributes:
        headers: One pydicom data set per file, in slice order, without pixels and identity.
        order: Slice index along Z of each frame, in the order of ``headers`` and their frames.
        grid: The series' shape and affine; its array is empty.
    """

    headers: list[Dataset]
    order: tuple[int, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    path: Path

    @property
    def grid(self) -> Scan:
        """The grid as a scan without memory behind its voxels."""
        voxels = np.broadcast_to(np.float32(0), (1, *self.shape))
        return Scan(voxels, self.affine, self.path)


def read_source(
    path: str | os.PathLike[str],
    options: DicomOptions | None = None,
    *,
    keep_identity: bool = False,
) -> Source:
    """Read the headers of the series that a result will refer to.

    Args:
        path: What the image was read from: a folder or a multi-frame file.
        options: The same that the image was read with.
        keep_identity: Copy patient and study identifiers, for sending to the archive that the
            images came from. Off by default.

    Raises:
        InputError: If the series does not pass the checks.
    """
    path, options = Path(path), options or DicomOptions()
    if path.is_dir():
        images = choose_series(path, find_images(path), options)
    else:
        image = read_header(path)
        if image is None:
            raise InputError(f"{shown(path)}: is a DICOM object without pixel data, not an image")
        images = [image]
    stack = check_series(path, images, options)
    headers, order = _headers(stack, keep_identity)
    return Source(headers, order, stack.shape, stack.affine, path)


def import_highdicom() -> None:
    """Explain how to install highdicom where it is missing.

    Raises:
        MissingPackageError: If it is missing.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "writing DICOM SEG and SR needs highdicom; pip install 'medvol[dicom]'"
        ) from error


def _headers(stack: Stack, keep_identity: bool) -> tuple[list[Dataset], tuple[int, ...]]:
    files: dict[Path, list[tuple[int, int]]] = {}
    for z, frame in zip(stack.slots, stack.frames, strict=True):
        files.setdefault(frame.image.path, []).append((frame.index, z))
    headers = [_clean_header(path, keep_identity) for path in files]
    uids: dict[str, str] = {}
    for header in headers:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            if not header.get(keyword):
                setattr(header, keyword, uids.setdefault(keyword, _new_uid()))
    return headers, tuple(z for found in files.values() for _, z in sorted(found))


def _clean_header(path: Path, keep_identity: bool) -> Dataset:
    import warnings

    import pydicom
    from pydicom.dataset import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes the values that it finds odd
        full = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        clean = Dataset()
        _copy(full, clean, _KEPT)
        for keyword in _EMPTY:
            setattr(clean, keyword, "")
        if keep_identity:
            _copy(full, clean, _IDENTITY)
        meta = full.file_meta
        clean.SOPClassUID = full.get("SOPClassUID") or meta.MediaStorageSOPClassUID
        clean.SOPInstanceUID = full.get("SOPInstanceUID") or meta.MediaStorageSOPInstanceUID
        clean.setdefault("StudyDate", "")
        clean.setdefault("StudyTime", "")
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            if keyword in full:
                setattr(clean, keyword, [_clean_groups(item) for item in full[keyword].value])
        clean.file_meta = meta
    return clean


def _clean_groups(item: Dataset) -> Dataset:
    from pydicom.dataset import Dataset

    clean = Dataset()
    _copy(item, clean, _GROUPS)
    return clean


def _copy(source: Dataset, target: Dataset, keywords: Sequence[str]) -> None:
    for keyword in keywords:
        if keyword in source and source[keyword].value not in (None, ""):
            target[keyword] = source[keyword]


def _new_uid() -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None))
