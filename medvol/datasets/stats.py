"""What one case looks like in numbers: the ground of checking, profile and planning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import GridMismatchError, InputError
from medvol.core.geometry import Geometry
from medvol.datasets.manifest import Case, Manifest

_SAMPLE = 64
_MOST_EDGES = 200_000
_ANY_LABEL = range(1, 1 << 16)


@dataclass(frozen=True)
class CaseStats:
    """Numbers of one readable case.

    Attributes:
        case: Case name.
        shape: Voxels along each axis; two entries for a 2D image.
        spacing_mm: Voxel edges; empty for a 2D image, which has none.
        axis_codes: For example ``LPI``; empty for a 2D image.
        channels: Number of channels over all files.
        percentiles: Intensity at 0, 1, 50, 99 and 100 percent, of the first channel.
        is_whole: Whether all intensities are whole numbers.
        volumes_ml: Volume by label value; square pixels for a 2D image.
        centers_mm: Centre of each label in RAS mm relative to the middle of the body (the
            bright region); empty for 2D images.
        body_mm: Extent of the body along x, y, z in RAS.
        mirror_fit: See :func:`mirror_fit`; empty without a label volume.
        notes: What the input checks accepted with a warning.
        flat_channels: Channels, from 0, of which every voxel has one value.
    """

    case: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    axis_codes: str
    channels: int
    percentiles: tuple[float, float, float, float, float]
    is_whole: bool
    volumes_ml: dict[int, float] = field(default_factory=dict)
    centers_mm: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    body_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mirror_fit: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    flat_channels: tuple[int, ...] = ()


def read_stats(case: Case, manifest: Manifest) -> CaseStats:
    """Check one case and measure it.

    Every channel must lie on one grid, the label map on the same, and its values must be in the
    data set's class list (any whole number where the data set names no classes).

    Raises:
        InputError: One line naming the file and its fault.
    """
    from medvol.io import ReadOptions, read_label, read_scan

    options = ReadOptions(channels=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = read_scan(case.images[0], options)
        flat = [channel.min() == channel.max() for channel in first.array]
        for path in case.images[1:]:
            other = read_scan(path, options)
            flat += [channel.min() == channel.max() for channel in other.array]
            _require_same(first, other)
        legal = manifest.legal_labels or _ANY_LABEL
        label = read_label(case.label, legal, reference=first) if case.label else None
    array = first.array[0]
    is_volume = array.ndim == 3
    geometry = Geometry(array.shape, first.affine) if is_volume else None
    values = np.asarray(np.percentile(array, (0, 1, 50, 99, 100)), float)
    sampled = array[tuple(slice(None, None, max(1, n // _SAMPLE)) for n in array.shape)]
    stats: dict[str, Any] = {}
    middle = np.zeros(3)
    if geometry:
        middle, extent = _body(sampled, geometry, array.shape, values)
        stats["body_mm"] = extent
    if label is not None:
        volumes, centers = _labels(label.array[0], geometry, middle)
        stats |= {"volumes_ml": volumes, "centers_mm": centers if geometry else {}}
        if geometry:
            stats["mirror_fit"] = mirror_fit(array, label.array[0], geometry)
    return CaseStats(
        case=case.case,
        shape=tuple(int(n) for n in array.shape),
        spacing_mm=tuple(round(v, 6) for v in geometry.spacing_mm) if geometry else (),
        axis_codes=geometry.axis_codes if geometry else "",
        channels=len(flat),
        percentiles=tuple(float(v) for v in values),  # pyright: ignore[reportArgumentType]
        is_whole=bool(np.array_equal(sampled, np.round(sampled))),
        notes=tuple(str(warning.message) for warning in caught),
        flat_channels=tuple(k for k, is_flat in enumerate(flat) if is_flat),
        **stats,
    )


def read_all_stats(
    manifest: Manifest,
    cases: Iterable[Case] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[CaseStats], list[tuple[Case, InputError]]]:
    """Stats of every case that passes the input checks, and the errors of the others."""
    found, rejected = [], []
    for number, case in enumerate(cases or manifest.cases, start=1):
        try:
            found.append(read_stats(case, manifest))
        except InputError as error:
            rejected.append((case, error))
        if progress:
            progress(number)
    return found, rejected


def mirror_fit(
    image: NDArray[np.floating], label: NDArray[np.integer], geometry: Geometry
) -> tuple[float, float, float]:
    """Log ratio of edge strength under the label's surface to that under its mirror image.

    Args:
        image: (X, Y, Z).
        label: Its label map; every non-zero value counts as one structure.
        geometry: Of both.

    Returns:
        For mirrors left-right, front-back and head-foot of the field of view; above 0 where the
        label fits better as it is, nan where it has no surface.
    """
    surface = _surface(label != 0)
    if not len(surface):
        return (np.nan, np.nan, np.nan)
    surface = surface[:: max(1, len(surface) // _MOST_EDGES)]
    direct = _edge_strength(image, surface)
    fits = [np.nan] * 3
    for axis, direction in enumerate(np.abs(geometry.affine[:3, :3]).argmax(axis=0)):
        mirrored = surface.copy()
        mirrored[:, axis] = label.shape[axis] - 1 - mirrored[:, axis]
        other = _edge_strength(image, mirrored)
        if direct > 0 and other > 0:
            fits[int(direction)] = float(np.log(direct / other))
    return (fits[0], fits[1], fits[2])


def _require_same(first: Any, other: Any) -> None:
    what = f"{first.path} and {other.path.name}"
    if first.array.ndim == 4 and other.array.ndim == 4:
        grids = [Geometry(scan.array.shape[1:], scan.affine) for scan in (first, other)]
        grids[0].require_same(grids[1], what)
    elif first.array.shape[1:] != other.array.shape[1:]:
        raise GridMismatchError(
            f"{what}: shapes differ, {first.array.shape[1:]} and {other.array.shape[1:]}"
        )


def _body(
    sampled: NDArray[Any], geometry: Geometry, shape: tuple[int, ...], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], tuple[float, float, float]]:
    """Middle and extent of what is brighter than a third of the way from dark to bright."""
    bright = sampled > values[1] + (values[3] - values[1]) / 3
    index = np.argwhere(bright) if bright.any() else np.argwhere(np.ones_like(bright))
    steps = np.asarray([max(1, n // _SAMPLE) for n in shape])
    world = index * steps @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    low, high = np.percentile(world, (1, 99), axis=0)
    extent = high - low
    return (low + high) / 2, (float(extent[0]), float(extent[1]), float(extent[2]))


def _labels(
    label: NDArray[Any], geometry: Geometry | None, middle: NDArray[np.float64]
) -> tuple[dict[int, float], dict[int, tuple[float, float, float]]]:
    where = np.flatnonzero(label)
    values = label.ravel()[where].astype(np.int64)
    voxel_ml = abs(float(np.linalg.det(geometry.affine[:3, :3]))) / 1000 if geometry else 1.0
    counts = np.bincount(values) if len(values) else np.zeros(1, int)
    present = [int(v) for v in np.flatnonzero(counts)]
    volumes = {value: float(counts[value] * voxel_ml) for value in present}
    centers: dict[int, tuple[float, float, float]] = {}
    if geometry and present:
        axes = np.unravel_index(where, label.shape)
        sums = np.stack([np.bincount(values, axis) for axis in axes], axis=1)
        for value in present:
            index = sums[value] / counts[value]
            world = geometry.affine[:3, :3] @ index + geometry.affine[:3, 3] - middle
            centers[value] = (float(world[0]), float(world[1]), float(world[2]))
    return volumes, centers


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices of voxels beside a voxel on the other side of the surface."""
    boxes = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
             for axis in range(3)]  # fmt: skip
    if not all(len(box) for box in boxes):
        return np.empty((0, 3), np.intp)
    low = np.array([max(box[0] - 1, 0) for box in boxes])
    box = mask[tuple(slice(a, b[-1] + 2) for a, b in zip(low, boxes, strict=True))]
    edge = np.zeros(box.shape, np.bool_)
    for axis in range(3):
        changes = np.diff(box, axis=axis)
        first, second = ([slice(None)] * 3 for _ in range(2))
        first[axis], second[axis] = slice(0, -1), slice(1, None)
        edge[tuple(first)] |= changes
        edge[tuple(second)] |= changes
    return np.argwhere(edge) + low


def _edge_strength(image: NDArray[np.floating], places: NDArray[np.intp]) -> float:
    """Mean length of the image's gradient at voxels."""
    squares = np.zeros(len(places))
    for axis, size in enumerate(image.shape):
        ahead, behind = places.copy(), places.copy()
        ahead[:, axis] = np.minimum(ahead[:, axis] + 1, size - 1)
        behind[:, axis] = np.maximum(behind[:, axis] - 1, 0)
        steps = image[tuple(ahead.T)].astype(np.float64) - image[tuple(behind.T)]
        squares += steps**2
    return float(np.sqrt(squares).mean())
