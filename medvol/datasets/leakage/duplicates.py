"""The same image twice: byte for byte, pixel for pixel, or re-encoded, cropped, mirrored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.datasets.leakage.features import CaseFeatures
from medvol.datasets.manifest import Case

Floats = NDArray[np.floating]
# On 874 radiographs the one true pair scores 0.91 in detail; the best of 380,000 others 0.79.
_SAME_DETAIL = 0.85
_CANDIDATE = 0.85
_SUSPECT = 0.97
_MOST_CANDIDATES = 1000
_SCALES = (1.0, 0.9, 0.95, 1.05, 1.11)
_BLOCK = 2000


@dataclass(frozen=True)
class Duplicate:
    """Two cases that show one image.

    Attributes:
        first: Case name.
        second: Case name.
        kind: ``file`` (same bytes), ``pixels`` (same pixels), ``near`` (same image,
            re-encoded, resized, cropped or brightened), ``mirrored``, or ``suspect`` (alike
            beyond other pairs: one patient under two names?).
        likeness: Correlation of the detail after alignment; 1 for exact duplicates.
        crosses: What the two are on different sides of: ``class``, ``patient``, ``split``.
    """

    first: str
    second: str
    kind: str
    likeness: float
    crosses: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return {**asdict(self), "crosses": list(self.crosses)}


def find_duplicates(
    features: Sequence[CaseFeatures], cases: Sequence[Case], places: dict[str, Any] | None = None
) -> list[Duplicate]:
    """All pairs of cases that show one image.

    Thumbnails that correlate are candidates; a pair is near when its detail (the image
    without its slow part) correlates after the best shift and scale. Cost grows with the
    square of the number of cases, at about a second per 10,000.

    Args:
        features: From ``read_features``.
        cases: The same cases, for what a pair crosses.
        places: Case name to fold or split, where there is one.

    Returns:
        Exact duplicates first, then by likeness.
    """
    by_name = {case.case: case for case in cases}
    kinds: dict[tuple[int, int], tuple[str, float]] = {}
    for attribute, kind in (("pixel_sha", "pixels"), ("file_sha", "file")):
        for pair in _equal(features, attribute):
            kinds[pair] = (kind, 1.0)
    for pair, found in _alike(features).items():
        kinds.setdefault(pair, found)
    rows = []
    for (i, j), (kind, likeness) in kinds.items():
        first, second = by_name[features[i].case], by_name[features[j].case]
        crosses = _crosses(first, second, places or {})
        if kind == "suspect" and "patient" not in crosses:
            continue  # two images of one patient may look alike
        rows.append(Duplicate(first.case, second.case, kind, round(likeness, 4), crosses))
    order = {"file": 0, "pixels": 1, "near": 2, "mirrored": 2, "suspect": 3}
    return sorted(rows, key=lambda row: (order[row.kind], -row.likeness, row.first))


def _equal(features: Sequence[CaseFeatures], attribute: str) -> list[tuple[int, int]]:
    by_digest: dict[str, list[int]] = defaultdict(list)
    for index, feature in enumerate(features):
        if digest := getattr(feature, attribute):
            by_digest[digest].append(index)
    return [(same[0], other) for same in by_digest.values() for other in same[1:]]


def _alike(features: Sequence[CaseFeatures]) -> dict[tuple[int, int], tuple[str, float]]:
    found: dict[tuple[int, int], tuple[str, float]] = {}
    for dimensions in (2, 3):
        where = [i for i, feature in enumerate(features) if feature.coarse.ndim == dimensions]
        if len(where) < 2:
            continue
        coarse = np.stack([features[i].coarse for i in where])
        for mirrored in (False, True):
            for i, j, likeness in _candidates(coarse, mirrored):
                a, b = features[where[i]].fine, features[where[j]].fine
                detail = _detail_likeness(a, np.flip(b, 0) if mirrored else b)
                pair = (where[i], where[j])
                if detail >= _SAME_DETAIL:
                    found.setdefault(pair, ("mirrored" if mirrored else "near", detail))
                elif likeness >= _SUSPECT and dimensions == 2 and not mirrored:
                    found.setdefault(pair, ("suspect", detail))
    return found


def _candidates(coarse: NDArray[np.float32], mirrored: bool) -> list[tuple[int, int, float]]:
    """The most alike pairs of thumbnails, in blocks so that memory stays small."""
    flat = _standardised(coarse.reshape(len(coarse), -1))
    other = _standardised(np.flip(coarse, 1).reshape(len(coarse), -1)) if mirrored else flat
    rows: list[tuple[int, int, float]] = []
    for start in range(0, len(flat), _BLOCK):
        for beside in range(start, len(flat), _BLOCK):
            likeness = flat[start : start + _BLOCK] @ other[beside : beside + _BLOCK].T
            i, j = np.nonzero(likeness > _CANDIDATE)
            keep = i + start < j + beside
            values = likeness[i[keep], j[keep]]
            rows += list(
                zip(
                    (i[keep] + start).tolist(),
                    (j[keep] + beside).tolist(),
                    values.tolist(),
                    strict=True,
                )
            )
            rows = sorted(rows, key=lambda row: -row[2])[:_MOST_CANDIDATES]
    return rows


def _standardised(flat: Floats) -> Floats:
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length > 1e-6, length, np.inf)


def _detail_likeness(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Best correlation of detail over small shifts, and in 2D over small scales."""
    fixed = _detail(b)
    best = -1.0
    for scale in _SCALES if a.ndim == 2 else (1.0,):
        best = max(best, _best_shift(_detail(_zoomed(a, scale)), fixed))
        if best >= _SAME_DETAIL or best < 0.3:
            break
    return best


def _detail(fine: Floats) -> Floats:
    from scipy.ndimage import gaussian_filter

    return fine - gaussian_filter(fine, fine.shape[0] / 21)


def _zoomed(fine: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Scaled about the centre, same shape; the edge is repeated outside."""
    if scale == 1.0:
        return fine
    from scipy.ndimage import affine_transform

    center = (np.asarray(fine.shape) - 1) / 2
    matrix = np.eye(fine.ndim) / scale
    offset = (center - matrix @ center).tolist()
    moved = affine_transform(fine, matrix, offset, order=1, mode="nearest")  # pyright: ignore[reportArgumentType]
    return np.asarray(moved, np.float32)


def _best_shift(a: Floats, b: Floats) -> float:
    """Largest normalised correlation of the overlap over shifts of up to an eighth."""
    reach = a.shape[0] // 8
    spectrum = np.fft.rfftn(a) * np.conj(np.fft.rfftn(b))
    surface = np.fft.irfftn(spectrum, a.shape, axes=tuple(range(a.ndim)))
    near = _small_shifts(a.shape, reach)
    shift = np.unravel_index(int(np.where(near, surface, -np.inf).argmax()), a.shape)
    moves = [int(s) if s <= n // 2 else int(s) - n for s, n in zip(shift, a.shape, strict=True)]
    here = a[tuple(slice(max(m, 0), n + min(m, 0)) for m, n in zip(moves, a.shape, strict=True))]
    there = b[tuple(slice(max(-m, 0), n + min(-m, 0)) for m, n in zip(moves, b.shape, strict=True))]
    here, there = here - here.mean(), there - there.mean()
    length = float(np.linalg.norm(here) * np.linalg.norm(there))
    return float((here * there).sum()) / length if length > 1e-6 else 0.0


@cache
def _small_shifts(shape: tuple[int, ...], reach: int) -> NDArray[np.bool_]:
    """Which entries of a circular correlation mean a shift of at most ``reach``."""
    index = np.indices(shape).reshape(len(shape), -1).T
    small = (index + reach) % np.asarray(shape) <= 2 * reach
    return np.asarray(small.all(axis=1)).reshape(shape)


def _crosses(first: Case, second: Case, places: dict[str, Any]) -> tuple[str, ...]:
    crossed = []
    if first.category != second.category:
        crossed.append("class")
    if first.group != second.group:
        crossed.append("patient")
    pair = (first, second)
    place = [places.get(c.case) if places else (c.split, c.fold) for c in pair]
    if place[0] != place[1] and None not in place:  # a case beside the split is on no side of it
        crossed.append("split")
    return tuple(crossed)
