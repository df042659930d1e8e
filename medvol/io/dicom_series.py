"""The checks of a DICOM series: which frames form one volume, in which order, on which grid."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import GeometryError, GridMismatchError, InputError
from medvol.core.geometry import Geometry, affine_from_lps
from medvol.io.checks import check_claim, check_spacing, number, shown
from medvol.io.dicom_header import DicomImage, Frame

#: Steps between slices may differ by this much or by 1%, whichever is larger.
STEP_TOLERANCE_MM = 0.01
STEP_TOLERANCE = 0.01
_SAME_POSITION_MM = 1e-3
_COSINE_TOLERANCE = 1e-3
#: Modalities whose voxels have a place in the patient; others may be plain 2D images.
VOLUMETRIC = frozenset({"CT", "MR", "PT", "NM"})


@dataclass(frozen=True)
class Stack:
    """Frames in order along the slice normal, and the grid that they form.

    Attributes:
        affine: (X, Y, Z) voxel index to RAS millimetres; X along columns, Y along rows.
        slots: The Z index of each frame; without gaps 0, 1, 2 and so on.
        tilt_deg: Angle by which the slices are sheared (a tilted gantry); 0 for a regular grid.
    """

    frames: tuple[Frame, ...]
    affine: NDArray[np.float64]
    slots: tuple[int, ...]
    tilt_deg: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(columns, rows, slices)."""
        first = self.frames[0].image
        return first.columns, first.rows, self.slots[-1] + 1


def stack_frames(
    where: Path, frames: Sequence[Frame], *, allow_tilt: bool = False, allow_gaps: bool = False
) -> Stack:
    """Order the frames of one series and prove that they lie on one even grid.

    Args:
        where: What to name in an error.
        frames: All frames of one series at one time point.
        allow_tilt: Return a sheared grid instead of rejecting it.
        allow_gaps: Accept whole missing slices (a SEG leaves empty ones out).

    Raises:
        GeometryError: For missing, uneven, tilted or contradicting geometry.
        InputError: If frames of different kinds or patients are mixed.
    """
    _one_of_each(where, frames)
    row, column, pixel = _in_plane(where, frames)
    positions = _positions(where, frames)
    normal = np.cross(row, column)
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    frames, positions, depth = [frames[i] for i in order], positions[order], depth[order]
    first = frames[0].image
    slots = _slots(depth, frames[0].apart_mm) if allow_gaps else tuple(range(len(frames)))
    shape = (first.columns, first.rows, slots[-1] + 1)
    check_claim(where, shape)
    step, tilt = _step(where, frames, positions, slots, normal)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = row * pixel[1], column * pixel[0], step
    lps[:3, 3] = positions[0]
    check_spacing(where, np.linalg.norm(lps[:3, :3], axis=0))
    if tilt and not allow_tilt:
        raise GeometryError(f"{shown(where)}: gantry tilt of {tilt:.1f} degrees: the slices are "
                            "sheared; read it with resample_tilt (--resample-tilt)")  # fmt: skip
    return Stack(tuple(frames), Geometry(shape, affine_from_lps(lps)).affine, slots, tilt)


def split_times(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Split a series that visits each position several times into its volumes.

    The tag that tells them apart is the first of time position, stack, echo, b-value, trigger
    and acquisition whose values divide the frames into volumes of equal positions. Returns one
    list if the positions are distinct, or if no tag explains the repetition.
    """
    places = Counter(_place(f) for f in frames)
    if len(frames) < 2 or max(places.values()) == 1:
        return [list(frames)]
    n_tags = len(frames[0].time)
    for tag in range(n_tags):
        groups: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[frame.time[tag]].append(frame)
        volumes = list(groups.values())
        if len(volumes) > 1 and all(
            len({_place(f) for f in v}) == len(v) == len(places) for v in volumes
        ):
            return sorted(volumes, key=lambda v: _time_order(v[0].time[tag]))
    return [list(frames)]


def _place(frame: Frame) -> tuple[float, ...]:
    return tuple(round(v, 3) for v in frame.position or ())


def _time_order(text: str) -> tuple[float, str]:
    try:
        return number(text), text
    except ValueError:
        return 0.0, text


def _one_of_each(where: Path, frames: Sequence[Frame]) -> None:
    images = list({id(f.image): f.image for f in frames}.values())
    name = shown(where)
    if len({i.patient for i in images}) > 1:
        raise InputError(f"{name}: one series holds images of different patients")
    if len({i.texts.get("FrameOfReferenceUID", "") for i in images}) > 1:
        raise GeometryError(f"{name}: one series holds several frames of reference, so positions "
                            "cannot be compared")  # fmt: skip
    localizers = [i for i in images if i.is_localizer]
    if localizers and len(localizers) < len(images):
        raise GeometryError(f"{shown(localizers[0].path)}: is a localizer of another orientation "
                            "than its series; remove it")  # fmt: skip
    for field in ("modality", "samples"):
        if len({getattr(i, field) for i in images}) > 1:
            raise InputError(f"{name}: one series holds images of different {field}")


def _in_plane(
    where: Path, frames: Sequence[Frame]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    first = _required(frames, "orientation", "ImageOrientationPatient (orientation)")
    for frame, got in zip(frames, first, strict=True):
        row, column = got[:3], got[3:]
        lengths = np.linalg.norm([row, column], axis=1)
        if np.abs(lengths - 1).max() > _COSINE_TOLERANCE or abs(row @ column) > _COSINE_TOLERANCE:
            raise GeometryError(f"{shown(frame.image.path)}: ImageOrientationPatient holds no "
                                "orientation: its directions are not perpendicular unit "
                                "vectors")  # fmt: skip
    middle = np.median(first, axis=0)
    off = np.abs(first - middle).max(axis=1)
    if off.max() > _COSINE_TOLERANCE:
        odd = frames[int(off.argmax())]
        what = (
            "a localizer or " if len(frames) - np.count_nonzero(off > _COSINE_TOLERANCE) > 1 else ""
        )
        raise GeometryError(f"{shown(odd.image.path)}: its orientation differs from the rest of "
                            f"{shown(where)}; {what}a mixed series is not a volume")  # fmt: skip
    spacing = _required(frames, "pixel_spacing_mm", "PixelSpacing (pixel spacing)")
    for frame, got in zip(frames, spacing, strict=True):
        if got.min() <= 0:
            raise GeometryError(f"{shown(frame.image.path)}: PixelSpacing is zero or negative; "
                                "that is not a pixel spacing")  # fmt: skip
    if (np.abs(spacing / spacing[0] - 1) > 1e-3).any():
        odd = frames[int(np.abs(spacing - np.median(spacing, axis=0)).max(axis=1).argmax())]
        raise GeometryError(f"{shown(odd.image.path)}: its pixel spacing differs from the rest of "
                            f"{shown(where)}")  # fmt: skip
    sizes = Counter((f.image.rows, f.image.columns) for f in frames)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        odd = next(f for f in frames if (f.image.rows, f.image.columns) != usual)
        raise GridMismatchError(f"{shown(odd.image.path)}: has {odd.image.columns}x"
                                f"{odd.image.rows} pixels, the rest of the series "
                                f"{usual[1]}x{usual[0]}")  # fmt: skip
    row = first[0, :3] / np.linalg.norm(first[0, :3])
    column = first[0, 3:] - row * (row @ first[0, 3:])
    return row, column / np.linalg.norm(column), spacing[0]


def _positions(where: Path, frames: Sequence[Frame]) -> NDArray[np.float64]:
    return _required(frames, "position", "ImagePositionPatient (position)")


def _required(frames: Sequence[Frame], field: str, what: str) -> NDArray[np.float64]:
    values = [getattr(f, field) for f in frames]
    if None in values:
        missing = frames[values.index(None)]
        n = sum(v is None for v in values)
        raise GeometryError(f"{shown(missing.image.path)}: {what} is missing in {n} of "
                            f"{len(frames)} slices")  # fmt: skip
    return np.asarray(values, dtype=np.float64)


def _step(
    where: Path,
    frames: Sequence[Frame],
    positions: NDArray[np.float64],
    slots: tuple[int, ...],
    normal: NDArray[np.float64],
) -> tuple[NDArray[np.float64], float]:
    """The vector from one slice to the next, and the tilt in degrees where it is not normal."""
    name = shown(where)
    if len(frames) == 1:
        thickness = frames[0].thickness_mm
        if not thickness:
            raise GeometryError(f"{name}: a single slice without SliceThickness has no spacing "
                                "along its normal")  # fmt: skip
        return normal * thickness, 0.0
    gaps = np.diff(positions @ normal) / np.maximum(np.diff(slots), 1)
    typical = float(np.median(gaps))
    tolerance = max(STEP_TOLERANCE_MM, STEP_TOLERANCE * typical)
    if gaps.min() < max(_SAME_POSITION_MM, 0.02 * typical):
        at = int(gaps.argmin())
        raise GeometryError(f"{name}: duplicate slices: {shown(frames[at].image.path.name)} and "
                            f"{shown(frames[at + 1].image.path.name)} have the same position but "
                            "nothing tells which one is meant")  # fmt: skip
    off = np.abs(gaps - typical)
    if off.max() > tolerance:
        _reject_uneven(where, frames, gaps, typical, int(off.argmax()))
    mean = (positions[-1] - positions[0]) / slots[-1]
    drift = positions - positions[0] - np.outer(slots, mean)
    if np.abs(drift).max() > max(tolerance, 0.05 * typical):
        raise GeometryError(f"{name}: slice positions do not lie on one line: not uniform")
    sideways = mean - normal * (mean @ normal)
    if np.linalg.norm(sideways) * slots[-1] <= STEP_TOLERANCE_MM:
        return normal * (mean @ normal), 0.0
    if np.linalg.norm(sideways) <= tolerance:
        return mean, 0.0
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(sideways), mean @ normal)))
    return mean, tilt


def _slots(depth: NDArray[np.float64], apart_mm: float | None) -> tuple[int, ...]:
    """Places of slices of which some are left out, perhaps every second one.

    The step is the file's own where all gaps are multiples of it, else the smallest gap.
    """
    gaps = np.diff(depth)
    if not gaps.size or gaps.min() < _SAME_POSITION_MM:
        return tuple(range(len(depth)))
    unit = float(gaps.min())
    if apart_mm and apart_mm > _SAME_POSITION_MM:
        times = np.maximum(np.rint(gaps / apart_mm), 1)
        tolerance = max(STEP_TOLERANCE_MM, STEP_TOLERANCE * apart_mm)
        unit = apart_mm if np.abs(gaps / times - apart_mm).max() <= tolerance else unit
    return (0, *np.cumsum(np.rint(gaps / unit)).astype(int).tolist())


def _reject_uneven(where: Path, frames: Sequence[Frame], gaps: NDArray[np.float64],
                   typical: float, at: int) -> None:  # fmt: skip
    before, after = (shown(frames[i].image.path.name) for i in (at, at + 1))
    ratio = gaps[at] / typical
    if ratio > 1.5 and abs(ratio - round(ratio)) < 0.05:
        raise GeometryError(f"{shown(where)}: a gap: {round(ratio) - 1} slice(s) missing between "
                            f"{before} and {after} (spacing {gaps[at]:.4g} mm where {typical:.4g} "
                            "mm is usual)")  # fmt: skip
    raise GeometryError(f"{shown(where)}: slice spacing is not uniform: from {gaps.min():.4g} to "
                        f"{gaps.max():.4g} mm (at {before} and {after})")  # fmt: skip


def group_series(images: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """Group images by series, in order of first appearance."""
    groups: dict[tuple[str, str], list[DicomImage]] = defaultdict(list)
    for image in images:
        groups[image.texts.get("StudyInstanceUID", ""), image.series].append(image)
    return list(groups.values())
