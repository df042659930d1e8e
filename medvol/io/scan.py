"""`scan_folder`: what lies in a folder, one row per series, usable or why not; nothing decoded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from medvol.core.errors import GeometryError, InputError, MedvolError, MissingInputError
from medvol.core.geometry import Geometry
from medvol.io import dicom, formats, image_2d, nifti
from medvol.io.checks import shown
from medvol.io.dicom_header import DicomImage, read_header
from medvol.io.dicom_parse import NotDicomError
from medvol.io.dicom_pixels import SYNTAX_NAMES
from medvol.io.dicom_series import group_series
from medvol.io.image import ReadOptions
from medvol.io.inspect import inspect_image, inspect_series

_WORKERS = 4


@dataclass
class ScanRow:
    """One series or file.

    Attributes:
        path: Folder or file, as found below the scanned folder.
        kind: DICOM, NIfTI, NRRD, MetaImage, image or stack.
        modality: DICOM modality, empty where a format has none.
        shape: Voxels along X, Y, Z (or X, Y).
        spacing_mm: Along the same axes, empty where unknown.
        axes: Closest patient direction of each axis, for example ``LPS``.
        tilt_deg: Gantry tilt.
        problem: Why it cannot be used, one line; empty if it can.
        notes: What its user should know although it is usable.
        files: How many files it has.
    """

    path: str
    kind: str
    modality: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    axes: str = ""
    tilt_deg: float = 0.0
    compression: str = ""
    files: int = 1
    problem: str = ""
    notes: list[str] = field(default_factory=list)
    members: list[Path] = field(default_factory=list, repr=False)

    @property
    def is_usable(self) -> bool:
        """Whether medvol would load it."""
        return not self.problem


def scan_folder(
    folder: str | os.PathLike[str], *, on_file: Callable[[int, int], None] | None = None
) -> list[ScanRow]:
    """List every image below a folder without decoding a voxel.

    Args:
        folder: Any folder, or one file.
        on_file: Called with (done, total) after each file.

    Returns:
        One row per DICOM series, volume file, 2D image, or folder of numbered 2D images; files that
        are not images have none.

    Raises:
        MissingInputError: If the folder does not exist.
    """
    root = Path(folder)
    if not root.exists():
        raise MissingInputError(f"{shown(root)}: does not exist")
    files = [root] if root.is_file() else dicom.walk_files(root)
    images: list[DicomImage] = []
    rows: list[ScanRow] = []
    flat: dict[Path, list[Path]] = {}
    for done, (path, found) in enumerate(_headers(files), 1):
        if isinstance(found, DicomImage):
            images.append(found)
        elif isinstance(found, ScanRow):
            rows.append(found)
        elif found == "image":
            flat.setdefault(path.parent, []).append(path)
        if on_file is not None:
            on_file(done, len(files))
    rows = _merged(rows) + [_series_row(group) for group in group_series(images)]
    for where, group in flat.items():
        rows += _image_rows(where, group)
    for row in rows:
        row.path = _relative(row.path, root)
    return sorted(rows, key=lambda row: row.path)


def _headers(files: list[Path]) -> Iterator[tuple[Path, DicomImage | ScanRow | str | None]]:
    # Threads overlap the waiting for disks and network shares; parsing itself holds the lock.
    with ThreadPoolExecutor(_WORKERS) as pool:
        yield from zip(files, pool.map(_inspect, files, chunksize=16), strict=True)


def _inspect(path: Path) -> DicomImage | ScanRow | str | None:
    kind = formats.format_of(path.name)
    if kind == "image":
        return "image"
    if kind not in (None, "DICOM"):
        return None if nifti.is_second_half(path) else _volume_row(path, kind)
    try:
        return read_header(path)
    except NotDicomError:
        return ScanRow(str(path), "DICOM", problem=f"{shown(path)}: is not a DICOM file") if (
            kind == "DICOM"
        ) else None  # fmt: skip
    except InputError as error:
        named = kind == "DICOM" or not path.suffix
        return ScanRow(str(path), "DICOM", problem=str(error)) if named else None


def _merged(rows: list[ScanRow]) -> list[ScanRow]:
    """One row for all DICOM files of a folder that are rejected for the same reason."""
    kept: dict[tuple[str, str], ScanRow] = {}
    for row in rows:
        path = Path(row.path)
        fault = row.problem.replace(shown(path), "")
        broken_slice = row.kind == "DICOM" and row.problem
        key = (str(path.parent), fault) if broken_slice else (row.path, "")
        first = kept.setdefault(key, row)
        if first is not row:
            first.files += 1
            first.path = str(path.parent)
    return list(kept.values())


def _volume_row(path: Path, kind: str) -> ScanRow:
    row = ScanRow(str(path), kind, members=[path])
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            header = inspect_image(path, ReadOptions(channels=True), is_whole=True)
        row.notes += [str(w.message).split(": ", 1)[-1] for w in heard]
        row.shape = (*header.shape, header.channels) if header.channels > 1 else header.shape
        if header.channels > 1:
            row.notes.append("more than three axes: read it with channels=True")
        _describe(row, header.geometry)
    except MedvolError as error:
        row.problem = str(error)
    return row


def _describe(row: ScanRow, geometry: Geometry | None) -> None:
    if geometry is None:
        return
    row.spacing_mm = tuple(round(v, 4) for v in geometry.spacing_mm)
    row.axes = geometry.axis_codes


def _series_row(group: list[DicomImage]) -> ScanRow:
    first = group[0]
    parents = {image.path.parent for image in group}
    where = parents.pop() if len(parents) == 1 else Path(os.path.commonpath(parents))
    if len(group) == 1:
        where = first.path
    row = ScanRow(
        str(where), "DICOM", modality=first.modality, files=len(group),
        compression=SYNTAX_NAMES.get(first.parsed.syntax, "unknown"),
        shape=(first.columns, first.rows, sum(i.n_frames for i in group)),
        members=[image.path for image in group],
    )  # fmt: skip
    if any(image.is_burned_in for image in group):
        row.notes.append("burned-in annotation")
    try:
        if first.is_segmentation:
            row.notes.append("a segmentation")
        elif not dicom.is_projection(group) and (volumes := dicom.count_volumes(group)) > 1:
            row.notes.append(f"4D: {volumes} volumes at the same positions: choose one with "
                             f"--volume 1 to {volumes}")  # fmt: skip
        options = dicom.DicomOptions(resample_tilt=True, volume=1)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            header = inspect_series(where, group, options)
        row.notes += [str(w.message).split(": ", 1)[-1] for w in heard]
        row.shape = header.shape
        _describe(row, header.geometry)
        if header.tilt_deg:
            row.tilt_deg = round(header.tilt_deg, 2)
            row.notes.append(f"gantry tilt {row.tilt_deg:g} degrees: read it with --resample-tilt")
    except MedvolError as error:
        row.problem = str(error)
    return row


def _image_rows(where: Path, group: list[Path]) -> Iterable[ScanRow]:
    if len(group) > 1:
        try:
            numbered = image_2d.numbered(where)
        except GeometryError as error:  # a slice of a stack is missing
            yield ScanRow(str(where), "stack", files=len(group), problem=str(error), members=group)
            return
        except MedvolError:
            numbered = []
        sizes = {_size(path) for path in numbered}
        if len(sizes) == 1 and None not in sizes:
            size = sizes.pop()
            yield ScanRow(str(where), "stack", shape=(*size, len(numbered)), files=len(numbered),  # pyright: ignore[reportOptionalIterable]
                          notes=["a stack of 2D images needs spacing_mm"],
                          members=numbered)  # fmt: skip
            return
    for path in group:
        row = ScanRow(str(path), "image", members=[path])
        try:
            row.shape = inspect_image(path).shape
        except MedvolError as error:
            row.problem = str(error)
        yield row


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return image_2d.read_size(path)
    except MedvolError:
        return None


def _relative(path: str, root: Path) -> str:
    try:
        return str(Path(path).relative_to(root)) if Path(path) != root else root.name
    except ValueError:
        return path
