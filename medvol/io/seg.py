"""DICOM SEG out: a label map on the grid of its series, coded, verified, atomic."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import InputError, LabelError, OutputError
from medvol.core.files import atomic_path
from medvol.core.geometry import SAME_GRID_MM, grid_distance_mm
from medvol.core.labels import Code, Label, find_label
from medvol.io.checks import Scan, shown
from medvol.io.dicom import DicomOptions, read_file
from medvol.io.dicom_source import Source, import_highdicom, read_source
from medvol.io.pair import onto_grid

if TYPE_CHECKING:
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

SIDES: dict[str, Code] = {
    "left": ("7771000", "SCT", "Left"),
    "right": ("24028007", "SCT", "Right"),
}
_SERIES_NUMBER = 300
#: Beyond this many stored bytes empty frames are left out of a SEG.
_MAX_FULL_BYTES = 256 << 20


@dataclass(frozen=True)
class Algorithm:
    """What made a result, as it is named in DICOM: a bundle and its version."""

    name: str
    version: str
    manufacturer: str = "medvol"
    serial_number: str = "0"


def write_dicom_seg(
    path: str | os.PathLike[str],
    label_map: ArrayLike,
    affine: ArrayLike,
    *,
    source: Source | str | os.PathLike[str],
    labels: Mapping[int, str],
    algorithm: Algorithm,
    options: DicomOptions | None = None,
) -> Path:
    """Write a label map as a DICOM Segmentation of the series it was predicted from.

    One segment per label, numbered in the order of the label values, coded through
    :func:`medvol.core.find_label`, with a tracking id that stays the same for the same series,
    label and algorithm. Every slice is stored, empty ones too, so that every reader sees the
    grid of the series. The file is read back and compared before its name appears.

    Args:
        path: Target file, usually ending in .dcm.
        label_map: (X, Y, Z) or (1, X, Y, Z) whole numbers; any voxel order of the series' grid.
        affine: Voxel index to RAS millimetres of ``label_map``.
        source: The DICOM folder or file that the image was read from.
        labels: Value to name; values of the map must be among them, 0 is background.
        algorithm: What made it.
        options: The same that the image was read with.

    Raises:
        GridMismatchError: If the label map does not lie on the series' grid.
        LabelError: If it holds a value without a name.
        OutputError: If the file cannot be written whole or reads back differently.
    """
    import_highdicom()
    path = Path(path)
    series = source if isinstance(source, Source) else read_source(source, options)
    names = {int(v): find_label(name) for v, name in sorted(labels.items()) if int(v) != 0}
    numbered = _segment_numbers(path, label_map, affine, series, list(names))
    segmentation = _build(series, numbered, list(names.values()), algorithm)
    segmentation.ContentCreatorName = ""  # type 2: present, but nobody drew this
    _ascend(segmentation, series.affine)

    def same(written: Path) -> None:
        _verify(written, path, numbered, series)

    with atomic_path(path, verify=same) as scratch, quiet():
        segmentation.save_as(scratch)
    return path


def tracking_uid(series_uid: str, label: str, algorithm: Algorithm) -> str:
    """A UID that is the same whenever the same label of the same series is tracked again."""
    name = "|".join((series_uid, label, algorithm.name))
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def coded(code: Code) -> CodedConcept:
    """A (value, scheme, meaning) triple as highdicom expects it."""
    from highdicom.sr.coding import CodedConcept

    return CodedConcept(value=code[0], scheme_designator=code[1], meaning=code[2])


def _segment_numbers(path: Path, label_map: ArrayLike, affine: ArrayLike, series: Source,
                     values: Sequence[int]) -> NDArray[np.uint8]:  # fmt: skip
    array = np.asarray(label_map)
    array = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
    if array.ndim != 3:
        raise LabelError(f"{shown(path)}: a label map is (X, Y, Z), not {array.shape}")
    if not values or len(values) > 255:
        raise LabelError(f"{shown(path)}: a SEG holds 1 to 255 labels, not {len(values)}")
    scan = Scan(array[None], np.asarray(affine, dtype=np.float64), path)
    placed = onto_grid(series.grid, scan).array[0]
    out = np.zeros(placed.shape, dtype=np.uint8)
    for number, value in enumerate(values, 1):
        out[placed == value] = number
    if (strange := (placed != 0) & (out == 0)).any():
        raise LabelError(f"{shown(path)}: label value {placed[strange][0]:g} has no name in "
                         f"{sorted(values)}")  # fmt: skip
    return out


def _build(
    series: Source, numbered: NDArray[np.uint8], labels: Sequence[Label], algorithm: Algorithm
) -> hd.seg.Segmentation:
    import highdicom as hd

    frames = np.ascontiguousarray(numbered.transpose(2, 1, 0)[list(series.order)])
    planes = numbered.size * len(labels) // 8
    first = series.headers[0]
    with quiet():
        return hd.seg.Segmentation(
            source_images=series.headers,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _description(number, label, str(first.SeriesInstanceUID), algorithm)
                for number, label in enumerate(labels, 1)
            ],
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=algorithm.manufacturer,
            manufacturer_model_name=algorithm.name[:64],
            software_versions=algorithm.version[:64],
            device_serial_number=algorithm.serial_number,
            content_label="SEGMENTATION",
            content_description=f"{algorithm.name} {algorithm.version}"[:64],
            pixel_measures=_pixel_measures(series),
            omit_empty_frames=planes > _MAX_FULL_BYTES and bool(numbered.any()),
        )


def _ascend(segmentation: hd.seg.Segmentation, affine: NDArray[np.float64]) -> None:
    """Order the frames of each segment along +Z of the series.

    highdicom stores them against it; GDCM, and so every ITK viewer, takes the frames as they come
    and would show a segmentation of several labels upside down.
    """
    items = list(segmentation.PerFrameFunctionalGroupsSequence)
    normal = np.diag([-1.0, -1.0, 1.0]) @ np.cross(affine[:3, 0], affine[:3, 1])
    normal *= np.sign(normal @ (np.diag([-1.0, -1.0, 1.0]) @ affine[:3, 2]))
    places = [item.PlanePositionSequence[0].ImagePositionPatient for item in items]
    depth = np.round(np.asarray(places, dtype=np.float64) @ normal, 4)
    segment = np.array([_segment_of(item) for item in items])
    order = np.lexsort((depth, segment))
    rank = np.unique(depth, return_inverse=True)[1] + 1
    for item, number in zip(items, rank.tolist(), strict=True):
        item.FrameContentSequence[0].DimensionIndexValues[-1] = number
    n_pixels = segmentation.Rows * segmentation.Columns
    stored = np.frombuffer(segmentation.PixelData, np.uint8)
    bits = np.unpackbits(stored, bitorder="little")[: len(items) * n_pixels]
    packed = np.packbits(bits.reshape(len(items), n_pixels)[order], bitorder="little").tobytes()
    segmentation.PixelData = packed + b"\0" * (len(packed) % 2)
    segmentation.PerFrameFunctionalGroupsSequence = [items[i] for i in order]


def _segment_of(item: Any) -> int:
    if "SegmentIdentificationSequence" not in item:  # a single segment is named once for all
        return 1
    return int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _pixel_measures(series: Source) -> Any:
    import highdicom as hd

    lengths = np.linalg.norm(series.affine[:3, :3], axis=0)
    normal = np.cross(series.affine[:3, 0], series.affine[:3, 1])
    step = abs(float(series.affine[:3, 2] @ normal / np.linalg.norm(normal)))
    thickness = series.headers[0].get("SliceThickness") or step
    return hd.PixelMeasuresSequence(
        pixel_spacing=[float(lengths[1]), float(lengths[0])],
        slice_thickness=float(thickness),
        spacing_between_slices=step,
    )


def _description(
    number: int, label: Label, series_uid: str, algorithm: Algorithm
) -> hd.seg.SegmentDescription:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name[:64],
        segmented_property_category=coded(label.category),
        segmented_property_type=coded(label.code),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name[:64],
            family=codes.cid7162.ArtificialIntelligence,
            version=algorithm.version[:64],
        ),
        tracking_uid=tracking_uid(series_uid, label.name, algorithm),
        tracking_id=label.name[:64],
        display_color=hd.color.CIELabColor.from_rgb(*label.colour),
    )
    if label.laterality in SIDES:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [coded(SIDES[label.laterality])]
    return description


def _verify(written: Path, path: Path, numbered: NDArray[np.uint8], series: Source) -> None:
    try:
        back = read_file(written, DicomOptions())
    except InputError as error:
        raise OutputError(f"{shown(path)}: cannot be read back: {error}") from error
    if back.array.shape[1:] != numbered.shape:
        back = onto_larger(back, series.grid)
    if grid_distance_mm(back.array.shape[1:], back.affine, series.affine) > SAME_GRID_MM:
        raise OutputError(f"{shown(path)}: reads back on another grid")
    if not np.array_equal(back.array[0], numbered):
        raise OutputError(f"{shown(path)}: what was read back differs from what was written")


def onto_larger(scan: Scan, grid: Scan) -> Scan:
    """Place a label map that lacks its empty outer slices onto the full grid.

    Raises:
        GridMismatchError: If it does not lie on whole voxels of ``grid``.
    """
    shift = (np.linalg.inv(grid.affine) @ scan.affine)[:3, 3]
    start = np.rint(shift).astype(int)
    full = np.zeros(grid.array.shape, dtype=np.float32)
    size = np.asarray(scan.array.shape[1:])
    if np.abs(shift - start).max() > 0.01 or (start < 0).any() or (
        start + size > full.shape[1:]
    ).any():  # fmt: skip
        return scan
    x, y, z = (slice(a, a + n) for a, n in zip(start, size, strict=True))
    full[0, x, y, z] = scan.array[0]
    return Scan(full, grid.affine, scan.path)


@contextmanager
def quiet() -> Iterator[None]:
    """highdicom and pydicom quote header values in warnings; ours are checked by reading back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
