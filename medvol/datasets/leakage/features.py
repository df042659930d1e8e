"""What a lazy classifier could look at: file facts, thumbnails, frames, corners."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import InputError
from medvol.core.files import sha256_file
from medvol.core.geometry import Geometry
from medvol.datasets.listing import is_dicom_file
from medvol.datasets.manifest import Case
from medvol.io import formats

#: Cells of the thumbnail and of the finer image along each axis, by number of axes.
COARSE = {2: 16, 3: 8}
FINE = {2: 64, 3: 24}
#: Columns of a datalist that tell the size the image had at its source.
_DIMENSION = re.compile(r"(width|height|depth|rows|columns|cols|pixels)", re.IGNORECASE)
_PERCENTILES = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99)
# Acquisition facts of DICOM; none of them names a person.
_TAGS = (
    "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "BodyPartExamined", "KVP",
    "ViewPosition", "PhotometricInterpretation", "BitsStored", "ConvolutionKernel",
    "SliceThickness", "PatientPosition", "MagneticFieldStrength", "SequenceName", "Modality",
)  # fmt: skip


@dataclass
class CaseFeatures:
    """Everything about one case that the probes look at.

    Attributes:
        case: Case name.
        group: What belongs together (patient, or the case itself).
        numbers: Numeric facts by ``family:name``.
        words: Categorical facts by ``family:name``.
        coarse: Thumbnail, 16x16 or 8x8x8, in the image's own intensities.
        fine: 64x64 or 24x24x24.
        spread: Percentiles of the intensities and the share at either end.
        file_sha: Digest of the file's bytes, and of the data file that a header names.
        pixel_sha: Digest of the decoded pixels.
    """

    case: str
    group: str
    numbers: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    coarse: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    fine: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    spread: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    file_sha: str = ""
    pixel_sha: str = ""


def read_features(
    cases: Sequence[Case], progress: Callable[[int], None] | None = None
) -> tuple[list[CaseFeatures], list[tuple[str, str]]]:
    """Read each case's first image once.

    Args:
        cases: The cases.
        progress: Called with the number of cases done.

    Returns:
        Features of the readable cases, and (case, reason) of those that were rejected.
    """
    found, unreadable = [], []
    for number, case in enumerate(cases, start=1):
        try:
            found.append(_read(case))
        except InputError as error:
            unreadable.append((case.case, str(error)))
        if progress:
            progress(number)
    return found, unreadable


def shrink(array: NDArray[np.floating], cells: int) -> NDArray[np.float32]:
    """Area average of every axis to ``cells`` cells; a cell is the mean of what it covers.

    >>> shrink(np.arange(8.0), 4).tolist()
    [0.5, 2.5, 4.5, 6.5]
    """
    small = np.asarray(array, np.float32)
    for axis in range(small.ndim):
        small = np.moveaxis(
            np.tensordot(_averaging(small.shape[axis], cells), small, (1, axis)), 0, axis
        )
    return small


def _averaging(n: int, cells: int) -> NDArray[np.float32]:
    edges = np.linspace(0, n, cells + 1)
    low, high = edges[:-1, None], edges[1:, None]
    voxel = np.arange(n)[None]
    overlap = np.clip(np.minimum(high, voxel + 1) - np.maximum(low, voxel), 0, None)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)


def _read(case: Case) -> CaseFeatures:
    from medvol.io import ReadOptions, read_scan

    features = CaseFeatures(case.case, case.group)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is merely odd is checked on reading
        scan = read_scan(case.image, ReadOptions(channels=True))
    pixels = np.asarray(scan.array, np.float32)
    grey = pixels.mean(axis=0) if len(pixels) > 1 else pixels[0]
    flat = 3 if grey.ndim == 3 and min(grey.shape) > 1 else 2
    grey = grey if flat == grey.ndim else np.squeeze(grey, axis=int(np.argmin(grey.shape)))
    features.coarse = shrink(grey, COARSE[flat])
    features.fine = shrink(grey, FINE[flat])
    low, high = float(grey.min()), float(grey.max())
    ends = [float((grey == low).mean()), float((grey == high).mean())]
    features.spread = np.asarray([low, *np.percentile(grey, _PERCENTILES), high, *ends], np.float32)
    content = np.ascontiguousarray(pixels)
    features.pixel_sha = hashlib.sha256(str(content.shape).encode() + content.tobytes()).hexdigest()
    _file_facts(features, case, pixels)
    if pixels.ndim == 4:
        geometry = Geometry(pixels.shape[1:], scan.affine)
        for axis, mm in zip("xyz", geometry.spacing_mm, strict=True):
            features.numbers[f"spacing:{axis}"] = round(mm, 5)
        features.words["spacing:axes"] = geometry.axis_codes
        features.numbers["spacing:oblique"] = round(geometry.obliqueness_deg, 2)
    return features


def _file_facts(features: CaseFeatures, case: Case, pixels: NDArray[np.float32]) -> None:
    from medvol.io import with_data

    path = case.image
    files = with_data(path) if path.is_file() else sorted(f for f in path.iterdir() if f.is_file())
    size = sum(file.stat().st_size for file in files)
    voxels = int(np.prod(pixels.shape[1:]))
    numbers, words = features.numbers, features.words
    for axis, n in zip("xyz", pixels.shape[1:], strict=False):
        numbers[f"size:{axis}"] = n
    plane = pixels.shape[1:3]
    numbers |= {
        "size:voxels": voxels,
        "size:shape": min(plane) / max(plane),
        "bytes:bytes": size,
        "compressibility:bytes_per_voxel": size / voxels,
        "format:channels": pixels.shape[0],
    }
    words["format:suffix"] = "".join(path.suffixes[-2:]).lower() if path.is_file() else "folder"
    if path.is_file():
        features.file_sha = " ".join(sha256_file(file) for file in files)
    if formats.ends_like(path.name, formats.FLAT):
        _image_facts(features, path)
    elif formats.ends_like(path.name, formats.NIFTI_FILES):
        _nifti_facts(features, path)
    elif is_dicom_file(files[0]):
        _dicom_facts(features, files[0])
        if pixels.ndim == 3:
            _radiograph_spacing(features, files[0])
    for name, value in {**case.extra, "site": case.site, "sex": case.sex}.items():
        if isinstance(value, bool | str):
            words[f"column {name}:value"] = str(value)
        elif isinstance(value, int | float):
            family = "size" if _DIMENSION.search(name) else f"column {name}"
            numbers[f"{family}:{name}"] = float(value)


def _image_facts(features: CaseFeatures, path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        features.words["format:mode"] = f"{image.format} {image.mode}"
        features.words["format:resolution"] = str(image.info.get("dpi"))
        tables = getattr(image, "quantization", None)
        if tables:
            features.numbers["format:quantisation"] = float(sum(sum(t) for t in tables.values()))


def _nifti_facts(features: CaseFeatures, path: Path) -> None:
    import nibabel

    header: Any = nibabel.load(path).header
    features.words["format:datatype"] = str(header.get_data_dtype())
    features.words["format:codes"] = f"{int(header['qform_code'])} {int(header['sform_code'])}"
    features.words["format:description"] = header["descrip"].item().decode("latin-1").strip()


def _dicom_facts(features: CaseFeatures, path: Path) -> None:
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
    for tag in _TAGS:
        if (value := header.get(tag)) not in (None, ""):
            features.words[f"tag {tag}:value"] = str(value)
    features.words["format:transfer"] = str(header.file_meta.get("TransferSyntaxUID", ""))


def _radiograph_spacing(features: CaseFeatures, path: Path) -> None:
    """A radiograph has no place in the patient, so its pixels' size is read from the header."""
    import pydicom

    names = ["PixelSpacing", "ImagerPixelSpacing"]
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=names, force=True)
    for name in names:
        if value := header.get(name):
            features.words[f"spacing:{name}"] = str(value)
            with suppress(ValueError):  # a slip of the header: the text tells enough
                features.numbers[f"spacing:{name}_mm"] = float(np.ravel(value)[0])
