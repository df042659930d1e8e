"""What planning asks of a data set: grids, structures and intensities, measured once and kept."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.anatomy import PATIENT_AXES
from medvol.core.errors import InputError, MissingInputError
from medvol.core.files import write_json
from medvol.core.geometry import Geometry
from medvol.datasets import Case, Manifest

_VERSION = 1
_PATIENT_AXIS = {code: axis for axis, pair in enumerate(("LR", "PA", "IS")) for code in pair}
_SAMPLES = 50_000


@dataclass(frozen=True)
class CasePrint:
    """Numbers of one case, axes in patient order (x, y, z).

    Attributes:
        case: Case name.
        shape: Voxels per axis; two for a 2D image.
        spacing_mm: Voxel edges; 1 for a 2D image, which has none.
        channels: Channels over all files.
        voxels: Voxels per label value, background and ignored ones left out.
        zero_share: Share of voxels that are 0 in every channel.
        least: Smallest intensity of the first channel.
        is_whole: Whether the first channel holds whole numbers only.
        inside: Per channel, inside the structures: 0.5%, 50% and 99.5% percentile, mean, standard
            deviation; empty where there is no structure.
    """

    case: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    channels: int
    voxels: dict[int, int]
    zero_share: float
    least: float
    is_whole: bool
    inside: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Fingerprint:
    """A data set as planning sees it.

    Attributes:
        cases: One row per labelled case that is not set aside for testing.
        labels: Label value to name.
        slice_axis: Patient axis (0 to 2) along which every case is a single slice; None for volumes
            and for 2D images without a place in the patient.
    """

    cases: tuple[CasePrint, ...]
    labels: dict[int, str]
    slice_axis: int | None = None

    @property
    def dims(self) -> int:
        """2 for single slices and 2D images, 3 for volumes."""
        return len(self.cases[0].shape)

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.cases[0].channels

    def spacing_mm(self, percent: float = 50) -> NDArray[np.float64]:
        """Percentile of the voxel edges, per axis."""
        return np.percentile([case.spacing_mm for case in self.cases], percent, axis=0)

    def shape(self, spacing_mm: ArrayLike, percent: float = 50) -> NDArray[np.float64]:
        """Percentile of the shapes once resampled, per axis."""
        sizes = [np.multiply(case.shape, case.spacing_mm) for case in self.cases]
        return np.percentile(sizes, percent, axis=0) / np.asarray(spacing_mm)

    @property
    def anisotropy(self) -> float:
        """Longest over shortest median voxel edge."""
        spacing = self.spacing_mm()
        return float(spacing.max() / spacing.min())

    def prevalence(self, value: int) -> float:
        """Share of cases that hold a label."""
        return sum(value in case.voxels for case in self.cases) / len(self.cases)

    def volume_mm(self, value: int, percent: float = 50) -> float:
        """Percentile of a label's volume (cubic or square mm) over the cases that hold it."""
        found = [
            case.voxels[value] * float(np.prod(case.spacing_mm))
            for case in self.cases
            if value in case.voxels
        ]
        return float(np.percentile(found, percent)) if found else float("nan")

    @property
    def smallest_share(self) -> float:
        """Share of voxels of the smallest structure: the median of the cases that hold it."""
        shares = [
            np.median([c.voxels[value] / np.prod(c.shape) for c in self.cases if value in c.voxels])
            for value in self.labels
            if self.prevalence(value)
        ]
        return float(min(shares))

    @property
    def zero_share(self) -> float:
        """Median share of voxels that are 0 in every channel."""
        return float(np.median([case.zero_share for case in self.cases]))

    def inside(self, channel: int) -> NDArray[np.float64]:
        """Median over cases of what :class:`CasePrint` calls ``inside``."""
        rows = [case.inside[channel] for case in self.cases if case.inside]
        return np.median(np.asarray(rows, np.float64), axis=0)


def measure(
    manifest: Manifest,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fingerprint:
    """Send every labelled case through the input checks and measure it.

    Args:
        manifest: The data set.
        cache: JSON file; rows of files that have not changed since are taken from it.
        progress: Called with the number of cases done and their total.

    Raises:
        MissingInputError: If no case has a label map, or none of them a structure.
        InputError: If a case is rejected, or cases differ in channels or dimensions.
    """
    cases = [case for case in manifest.training if case.label is not None]
    if not cases:
        raise MissingInputError(f"{manifest.root}: holds no case with a label map")
    known = _read_cache(cache)
    rows: dict[str, dict[str, Any]] = {}
    found: list[CasePrint] = []
    for number, case in enumerate(cases, start=1):
        stamp = _stamp(case, manifest)
        row = known.get(case.case)
        if row is None or row["stamp"] != stamp:
            row = {"stamp": stamp, "print": _plain(measure_case(case, manifest))}
        rows[case.case] = row
        found.append(_restored(row["print"]))
        if progress:
            progress(number, len(cases))
    if cache is not None:
        write_json(cache, {"medvol_fingerprint": _VERSION, "cases": rows})
    return _whole(manifest, found)


def measure_case(case: Case, manifest: Manifest) -> CasePrint:
    """Read one case and measure it.

    Raises:
        InputError: One line naming the file and its fault.
    """
    from medvol.io import ReadOptions, read_label, read_scan

    options = ReadOptions(channels=True)
    legal = manifest.legal_labels or range(1, 1 << 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scans = [read_scan(path, options) for path in case.images]
        label = read_label(str(case.label), legal, reference=scans[0]).array[0].astype(np.int64)
    image = np.concatenate([scan.array for scan in scans])
    if image.shape[1:] != label.shape:
        raise InputError(f"{case.image}: its channels have other shapes than its label map")
    shape, spacing = _patient_axes(label.shape, scans[0].affine)
    if manifest.ignore_label is not None:
        label[label == manifest.ignore_label] = 0
    where = np.flatnonzero(label)
    values, counts = np.unique(label.ravel()[where], return_counts=True)
    first = image[0]
    return CasePrint(
        case=case.case,
        shape=shape,
        spacing_mm=spacing,
        channels=len(image),
        voxels={int(v): int(n) for v, n in zip(values, counts, strict=True)},
        zero_share=float((image == 0).all(axis=0).mean()),
        least=float(first.min()),
        is_whole=bool(np.array_equal(first, np.round(first))),
        inside=tuple(_inside(channel.ravel()[where]) for channel in image) if len(where) else (),
    )


def _inside(values: NDArray[Any]) -> tuple[float, ...]:
    thinned = values[:: max(1, len(values) // _SAMPLES)].astype(np.float64)
    numbers = (*np.percentile(thinned, (0.5, 50, 99.5)), thinned.mean(), thinned.std())
    return tuple(round(float(number), 4) for number in numbers)


def _patient_axes(
    shape: Sequence[int], affine: NDArray[np.float64]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing in the order of the patient's axes, as orientation to RAS gives them."""
    if len(shape) == 2:
        return tuple(int(n) for n in shape), (1.0, 1.0)
    geometry = Geometry(tuple(shape), affine)  # pyright: ignore[reportArgumentType]
    order = np.argsort([_PATIENT_AXIS[code] for code in geometry.axis_codes])
    spacing = tuple(round(geometry.spacing_mm[axis], 5) for axis in order)
    return tuple(int(shape[axis]) for axis in order), spacing


def _whole(manifest: Manifest, found: list[CasePrint]) -> Fingerprint:
    for what in ("channels", "dimensions"):
        kinds = {row.channels if what == "channels" else len(row.shape): row.case for row in found}
        if len(kinds) > 1:
            named = ", ".join(f"{count} in {case!r}" for count, case in sorted(kinds.items()))
            raise InputError(f"{manifest.root}: cases differ in {what}: {named}; leave some out")
    axis = _slice_axis(manifest, found)
    if axis is not None:
        found = [_in_plane(row, axis) for row in found]
    present = sorted({value for row in found for value in row.voxels})
    if not present:
        raise MissingInputError(f"{manifest.root}: no label map holds a structure")
    labels = manifest.labels or {value: f"label_{value}" for value in present}
    names = {int(v): str(n) for v, n in sorted(labels.items())}
    return Fingerprint(tuple(found), names, axis)


def _slice_axis(manifest: Manifest, found: Sequence[CasePrint]) -> int | None:
    """The axis along which every case has one voxel; None where a case is a volume."""
    axes = {row.case: row.shape.index(1) for row in found if len(row.shape) == 3 and 1 in row.shape}
    if len(axes) < len(found):
        return None
    if len(set(axes.values())) > 1:
        examples = sorted({axis: case for case, axis in axes.items()}.items())
        named = ", ".join(f"{PATIENT_AXES[axis]} in {case!r}" for axis, case in examples)
        raise InputError(f"{manifest.root}: cases are single slices along different axes: "
                         f"{named}; plan for each direction by itself")  # fmt: skip
    return next(iter(axes.values()))


def _in_plane(row: CasePrint, axis: int) -> CasePrint:
    shape, spacing = list(row.shape), list(row.spacing_mm)
    del shape[axis], spacing[axis]
    return replace(row, shape=tuple(shape), spacing_mm=tuple(spacing))


def _stamp(case: Case, manifest: Manifest) -> list[Any]:
    """What tells that a case's files, or what its labels mean, have changed."""
    paths = [*case.images, *([case.label] if case.label else [])]
    stats = [path.stat() for path in paths]
    files = [[p.name, s.st_size, s.st_mtime_ns] for p, s in zip(paths, stats, strict=True)]
    return [files, sorted(manifest.legal_labels), manifest.ignore_label]


def _read_cache(cache: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Rows of an earlier measurement; a file that is none of ours is measured over."""
    if cache is None or not Path(cache).is_file():
        return {}
    try:
        content = json.loads(Path(cache).read_text("utf-8"))
    except ValueError:
        return {}
    is_ours = isinstance(content, dict) and content.get("medvol_fingerprint") == _VERSION
    return content["cases"] if is_ours else {}


def _plain(row: CasePrint) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(row)))


def _restored(row: dict[str, Any]) -> CasePrint:
    return CasePrint(
        **{
            **row,
            "shape": tuple(row["shape"]),
            "spacing_mm": tuple(row["spacing_mm"]),
            "voxels": {int(value): int(count) for value, count in row["voxels"].items()},
            "inside": tuple(tuple(numbers) for numbers in row["inside"]),
        }
    )
