"""Whether the skin surface of a face lies in a head scan, judged by its voxels in the patient.

No atlas and no network: the body's surface is followed from the front, and a face is where it
does not recede below the forehead, or where a nose stands out of it. A scan whose face was cut
away recedes by centimetres there; one that ends before the skin has no surface to render.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvol.privacy.audit import FACE_BY_TAG, Residual

#: Modalities whose voxels show skin well enough to be judged.
FACE_MODALITIES = frozenset({"CT", "MR"})
_STEP_MM = 3.0
_SKIN_HU = -400.0
_HEAD_WIDTH_MM, _HEAD_DEPTH_MM = (95.0, 205.0), (110.0, 270.0)
#: Below the top of an adult head of 190 mm depth: the forehead, and the face from eyes to mouth.
_FOREHEAD_MM, _FACE_MM, _ADULT_DEPTH_MM = (50.0, 75.0), (105.0, 165.0), 190.0
#: A face whose middle recedes by more behind the forehead is cut; a nose stands out by more, and
#: lies no further back than a chin on the chest would put it.
_RECESS_MM, _NOSE_MM, _NOSE_BEHIND_MM = 6.0, 10.0, 15.0
_NOSE_SIDE_MM, _NOSE_HEIGHT_MM = 24.0, 12.0
_SHARE_PRESENT, _LEAST_ZONE_MM = 0.6, 24.0


class Face(Enum):
    """What the voxels show."""

    PRESENT = "present"
    CUT = "cut"
    NO_HEAD = "no head"


@dataclass(frozen=True)
class _Outline:
    """A body seen from the front, row by row from foot to head, in steps of ``_STEP_MM``.

    Attributes:
        front_mm: (X, Z) position of the foremost tissue towards anterior; nan where there is none.
        is_skin: (X, Z) whether air was scanned in front of it.
        width_mm, depth_mm, middle: By row; the middle is an index along X.
        top: Highest row with tissue.
    """

    front_mm: NDArray[np.float64]
    is_skin: NDArray[np.bool_]
    width_mm: NDArray[np.float64]
    depth_mm: NDArray[np.float64]
    middle: NDArray[np.intp]
    top: int


def find_face(array: NDArray[np.generic], affine: NDArray[np.float64], modality: str) -> Face:
    """Judge one volume.

    Args:
        array: (X, Y, Z), in HU for a CT.
        affine: Voxel index to RAS millimetres; any orientation and spacing.
        modality: DICOM modality.

    Returns:
        ``NO_HEAD`` also where nothing in the volume has the size and the dome of a head.
    """
    values, is_scanned = _upright(np.asarray(array, np.float32), affine)
    body = _body(values, is_scanned, _SKIN_HU if modality == "CT" else _air_limit(values))
    outline = _outline(body, is_scanned)
    if outline is None:
        return Face.NO_HEAD
    has_size = _is_within(outline.width_mm, _HEAD_WIDTH_MM) & _is_within(
        outline.depth_mm, _HEAD_DEPTH_MM
    )
    if _has_nose(outline, has_size):
        return Face.PRESENT
    if not _has_dome(outline, has_size):
        return Face.NO_HEAD
    return Face.PRESENT if _keeps_its_face(outline) else Face.CUT


def judged(by_tags: Iterable[Residual], folder: Path, modality: str) -> list[Residual]:
    """Residuals of one series with its voxels' verdict on a face in place of its tags'.

    Tags keep the last word where the series makes no volume, and where they speak of a head that
    the voxels do not show.

    Args:
        by_tags: From :func:`medvol.privacy.audit.audit_dataset`.
        folder: The de-identified series.
        modality: DICOM modality.
    """
    rows = list(by_tags)
    others = [row for row in rows if row.kind != "face"]
    verdict = _verdict(folder, modality)
    if verdict is Face.PRESENT:
        return [*others, Residual("face", "PixelData",
                                  "the skin surface of a face lies in the voxels: deface it before "
                                  "it is shared")]  # fmt: skip
    is_tagged_head = any(row.kind == "face" and row.why == FACE_BY_TAG for row in rows)
    is_believed = verdict is None or (verdict is Face.NO_HEAD and is_tagged_head)
    return rows if is_believed else others


def _verdict(folder: Path, modality: str) -> Face | None:
    from medvol.core.errors import MedvolError
    from medvol.io import DicomOptions, ReadOptions, read_scan

    options = DicomOptions(resample_tilt=True, volume=1, pet_suv=False)
    try:
        with warnings.catch_warnings():  # its warnings were given for the source
            warnings.simplefilter("ignore")
            scan = read_scan(folder, ReadOptions(dicom=options))
    except MedvolError:
        return None
    if min(scan.array.shape[1:]) < 2:
        return None
    return find_face(scan.array[0], scan.affine, modality)


def _upright(
    array: NDArray[np.float32], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The volume on a coarse grid along the patient's axes, and where that was scanned."""
    from scipy.ndimage import affine_transform

    array, affine = _thinned(np.nan_to_num(array), affine)
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in array.shape]), -1).reshape(-1, 3)
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    low, high = world.min(0) - _STEP_MM, world.max(0) + _STEP_MM
    shape = tuple(np.maximum(np.ceil((high - low) / _STEP_MM).astype(int) + 1, 4))
    back = np.linalg.inv(affine)
    found = affine_transform(array, back[:3, :3] * _STEP_MM, back[:3, :3] @ low + back[:3, 3],
                             output_shape=shape, order=1, cval=np.nan)  # fmt: skip
    is_scanned = ~np.isnan(found)
    return np.where(is_scanned, found, np.nanmin(found)), is_scanned


def _thinned(
    array: NDArray[np.float32], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Means of whole blocks of voxels that are much finer than the coarse grid."""
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    steps = np.maximum((_STEP_MM / spacing_mm).astype(int), 1)
    steps = np.minimum(steps, array.shape)
    counts = [n // s for n, s in zip(array.shape, steps, strict=True)]
    cut = array[tuple(slice(0, n * s) for n, s in zip(counts, steps, strict=True))]
    blocks = cut.reshape([v for pair in zip(counts, steps, strict=True) for v in pair])
    moved = affine.copy()
    moved[:3, :3] = affine[:3, :3] * steps
    moved[:3, 3] += affine[:3, :3] @ ((steps - 1) / 2)
    return blocks.mean((1, 3, 5)), moved


def _air_limit(values: NDArray[np.float32]) -> float:
    """Otsu's threshold of clipped values, lowered: skin and bone marrow are darker than brain."""
    low, high = np.percentile(values, (1, 99))
    if high <= low:
        return float(high)
    counts, edges = np.histogram(np.clip(values, low, high), 128)
    centers = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), np.cumsum(counts * centers)
    share = below / below[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (total[-1] * share - total) ** 2 / (share * (1 - share))
    return float(low + 0.5 * (centers[int(np.nanargmax(between[:-1]))] - low))


def _body(
    values: NDArray[np.float32], is_scanned: NDArray[np.bool_], limit: float
) -> NDArray[np.bool_]:
    """The largest piece of tissue without its holes; thin things like a table are opened away."""
    from scipy import ndimage

    opened = ndimage.binary_opening((values > limit) & is_scanned)
    pieces = np.empty(opened.shape, np.int32)
    if ndimage.label(opened, output=pieces) == 0:
        return np.zeros(opened.shape, np.bool_)
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    closed = ndimage.binary_closing(np.pad(pieces == largest, 3), iterations=2)
    body = np.array(closed[3:-3, 3:-3, 3:-3], np.bool_)
    for z in range(body.shape[2]):
        body[:, :, z] = ndimage.binary_fill_holes(body[:, :, z])
    return body & is_scanned


def _outline(body: NDArray[np.bool_], is_scanned: NDArray[np.bool_]) -> _Outline | None:
    rows = np.flatnonzero(body.sum((0, 1)) * _STEP_MM**2 > 400.0)
    if rows.size == 0:
        return None
    y = np.arange(body.shape[1])
    foremost = np.where(body, y[None, :, None], -1).max(1)
    scanned_to = np.where(is_scanned, y[None, :, None], -1).max(1)
    columns, lines = body.any(1).sum(0) * _STEP_MM, body.any(0).sum(0) * _STEP_MM
    places = np.where(body.any(1), np.arange(body.shape[0])[:, None], np.nan)
    with np.errstate(all="ignore"):
        middle = np.array([np.nanmedian(c) if np.isfinite(c).any() else 0 for c in places.T])
    front_mm = np.where(foremost >= 0, foremost * _STEP_MM, np.nan)
    return _Outline(front_mm, scanned_to > foremost, columns, lines,
                    np.rint(middle).astype(int), int(rows[-1]))  # fmt: skip


def _is_within(values: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.bool_]:
    return (values >= limits[0]) & (values <= limits[1])


def _rows(outline: _Outline, below_top_mm: tuple[float, float], scale: float = 1.0) -> range:
    """Rows at a distance below the top, as far as they were scanned."""
    first, last = (outline.top - round(v * scale / _STEP_MM) for v in below_top_mm)
    return range(max(last, 0), max(first, 0))


def _has_nose(outline: _Outline, has_size: NDArray[np.bool_]) -> bool:
    """A ridge in the middle of the front that no ellipse of a head's size would have.

    It must not lie behind the forehead: a cut through airways leaves ridges, too.
    """
    side = round(_NOSE_SIDE_MM / _STEP_MM)
    stands_out = np.zeros(len(has_size), bool)
    forehead = -np.inf
    for z in np.flatnonzero(has_size)[::-1]:
        x = outline.middle[z] + np.arange(-4, 5)
        x = x[(x >= side) & (x < outline.front_mm.shape[0] - side)]
        if not x.size:
            continue
        cheeks = np.maximum(outline.front_mm[x - side, z], outline.front_mm[x + side, z])
        has_skin = outline.is_skin[x - side, z] & outline.is_skin[x + side, z]
        bow = outline.depth_mm[z] / 2 * (1 - np.sqrt(
            max(0.0, 1 - (2 * _NOSE_SIDE_MM / outline.width_mm[z]) ** 2)))  # fmt: skip
        front = outline.front_mm[x, z]
        is_ridge = has_skin & (front - cheeks - bow > _NOSE_MM)
        stands_out[z] = bool((is_ridge & (front > forehead - _NOSE_BEHIND_MM)).any())
        forehead = np.nanmax([forehead, *front])
    runs = np.convolve(stands_out, np.ones(round(_NOSE_HEIGHT_MM / _STEP_MM)), "valid")
    return bool(runs.size and runs.max() >= round(_NOSE_HEIGHT_MM / _STEP_MM))


def _has_dome(outline: _Outline, has_size: NDArray[np.bool_]) -> bool:
    """Whether a narrow top widens to the size of a head."""
    crown, skull = _rows(outline, (6.0, 15.0)), _rows(outline, (50.0, 80.0))
    if not len(crown) or not len(skull):
        return False
    areas = outline.width_mm * outline.depth_mm
    return bool(has_size[skull].all() and areas[crown].max() < 0.75 * areas[skull].mean())


def _keeps_its_face(outline: _Outline) -> bool:
    """Whether most of the scanned rows from eyes to mouth do not recede behind the forehead."""
    depth = float(np.median(outline.depth_mm[_rows(outline, _FOREHEAD_MM)]))
    scale = min(depth / _ADULT_DEPTH_MM, 1.1)
    zone = _rows(outline, _FACE_MM, scale)
    forehead = _middle_front(outline, _rows(outline, _FOREHEAD_MM, scale))
    if len(zone) * _STEP_MM < _LEAST_ZONE_MM * scale or not np.isfinite(forehead).any():
        return False
    recess = np.nanmedian(forehead) - _middle_front(outline, zone)
    return float(np.mean(recess < _RECESS_MM * scale)) >= _SHARE_PRESENT


def _middle_front(outline: _Outline, rows: range) -> NDArray[np.float64]:
    """Position of the skin in the middle of each row; nan where no skin was scanned."""
    side = round(_NOSE_SIDE_MM / _STEP_MM)
    found = np.full(len(rows), np.nan)
    for index, z in enumerate(rows):
        x = np.clip(outline.middle[z] + np.arange(-side, side + 1), 0, len(outline.front_mm) - 1)
        skin = outline.front_mm[x, z][outline.is_skin[x, z]]
        if np.isfinite(skin).any():
            found[index] = np.nanmax(skin)
    return found
