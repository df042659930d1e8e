"""Target spacing and patch: what is resampled to, and what a network sees at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medvol.planning.fingerprint import Fingerprint

#: Ratio of voxel edges from which slices are thick (nnU-Net's threshold).
THICK = 3.0
#: Share of a case that the smallest structure has, below which a short run learns more from small
#: patches on structures ...
_SPARSE = 0.005
#: ... and what they cost of what it affords.
_SPARSE_PATCH = 0.3
_COVER = 0.5
_WHOLE_AT = 2.0
_LEAST_VOXELS = 500


@dataclass(frozen=True)
class Sampling:
    """Spacing and patch with their reasons.

    Attributes:
        spacing_mm: Target spacing per axis.
        patch: Patch before it is rounded to what a network takes.
        cover: Share of the median case that a patch covers.
        why_spacing: Reason of the spacing.
        why_patch: Reason of the patch.
    """

    spacing_mm: tuple[float, ...]
    patch: tuple[int, ...]
    cover: float
    why_spacing: str
    why_patch: str


def choose_sampling(fingerprint: Fingerprint, most_voxels: float, may_coarsen: bool) -> Sampling:
    """Median spacing, or coarser where a patch would see too little of a case.

    Args:
        fingerprint: The data set.
        most_voxels: Voxels that a patch may have.
        may_coarsen: Whether time is short enough to give detail up for context.
    """
    spacing, why = _native_spacing(fingerprint)
    patch = fit_patch(fingerprint, spacing, most_voxels)
    if may_coarsen and fingerprint.dims == 3 and _cover(fingerprint, spacing, patch) < _COVER:
        spacing, why = _coarser(fingerprint, spacing, most_voxels, why)
        patch = fit_patch(fingerprint, spacing, most_voxels)
    is_sparse = may_coarsen and fingerprint.smallest_share < _SPARSE
    if is_sparse:  # on 4-channel tumour phantoms, equal time: Dice 0.91 against 0.57
        patch = fit_patch(fingerprint, spacing, _SPARSE_PATCH * most_voxels, whole_at=1.0)
    cover = _cover(fingerprint, spacing, patch)
    if all(p >= n for p, n in zip(patch, fingerprint.shape(spacing, 90), strict=True)):
        why_patch = "a whole case, by the 90% percentile of their sizes"
    elif is_sparse:
        why_patch = f"{cover:.0%} of the median case: small, for many steps on small structures"
    else:
        why_patch = f"{cover:.0%} of the median case, as even in mm as the cases allow"
    return Sampling(tuple(spacing), patch, cover, why, why_patch)


def fit_patch(
    fingerprint: Fingerprint,
    spacing_mm: Sequence[float],
    most_voxels: float,
    whole_at: float = _WHOLE_AT,
) -> tuple[int, ...]:
    """The largest patch within the cases that is as even in millimetres as they allow.

    An edge length in millimetres is found by bisection; no axis is longer than in 90% of cases.
    A whole case may cost ``whole_at`` times as much: nothing then depends on where a patch lies.
    """
    limit = np.ceil(fingerprint.shape(spacing_mm, 90) - 1e-6)
    spacing = np.asarray(spacing_mm)

    def patch(edge_mm: float) -> np.ndarray:
        return np.maximum(1, np.minimum(limit, np.round(edge_mm / spacing)))

    low, high = 0.0, float((limit * spacing).max())
    if patch(high).prod() > whole_at * most_voxels:
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if patch(middle).prod() <= most_voxels else (low, middle)
    else:
        low = high
    return tuple(int(n) for n in patch(low))


def _native_spacing(fingerprint: Fingerprint) -> tuple[list[float], str]:
    spacing = [float(v) for v in fingerprint.spacing_mm()]
    if fingerprint.dims == 2 and fingerprint.slice_axis is None:
        return spacing, "2D images have no millimetres: one pixel"
    if np.ptp([case.spacing_mm for case in fingerprint.cases], axis=0).max() < 1e-3:
        return [_short(v) for v in spacing], "every case has it"
    why = f"median of {len(fingerprint.cases)} cases"
    if fingerprint.anisotropy >= THICK:
        axis = int(np.argmax(spacing))
        spacing[axis] = float(fingerprint.spacing_mm(10)[axis])
        why += f"; the {fingerprint.anisotropy:.1f} times thicker axis at its 10% percentile"
    return [_short(v) for v in spacing], why


def _coarser(
    fingerprint: Fingerprint, spacing: list[float], most_voxels: float, why: str
) -> tuple[list[float], str]:
    """Coarsen the finest axes first until half of a case fits into a patch.

    Stops where the smallest structure would keep under 500 voxels.
    """
    smallest = min(
        volume
        for volume in (fingerprint.volume_mm(value) for value in fingerprint.labels)
        if not math.isnan(volume)
    )
    chosen = spacing
    for edge in np.linspace(min(spacing), 8 * max(spacing), 120):
        trial = [_short(max(float(v), float(edge))) for v in spacing]
        if smallest / math.prod(trial) < _LEAST_VOXELS:
            break
        chosen = trial
        if _cover(fingerprint, trial, fit_patch(fingerprint, trial, most_voxels)) >= _COVER:
            break
    if chosen == spacing:
        return spacing, f"{why}; not coarser, or the smallest structure would be lost"
    cover = _cover(fingerprint, chosen, fit_patch(fingerprint, chosen, most_voxels))
    return chosen, (
        f"coarser than the median {[_short(v) for v in spacing]}, so that a patch that this "
        f"budget can train sees {cover:.0%} of a case"
    )


def _cover(fingerprint: Fingerprint, spacing_mm: Sequence[float], patch: Sequence[int]) -> float:
    shape = fingerprint.shape(spacing_mm, 50)
    return float(np.prod(np.minimum(patch, shape) / shape))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
