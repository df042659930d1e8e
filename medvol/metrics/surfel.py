"""Distances between mask surfaces by the surfel convention of DeepMind's surface-distance.

The surface runs through the voxel corners whose 2x2x2 (2x2 in images) neighbourhood is mixed;
each such corner carries the area (length) of the marching-cubes piece inside it. Outside the image
is background. Areas come from the table that MONAI ships.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import ConfigError, GeometryError
from medvol.metrics.masks import Mask, MaskPair
from medvol.metrics.registry import DISTANCE, OVERLAP, EmptyRule, mask_metric
from medvol.metrics.surface import ROUNDING, Distances, check_tau, nearest

_NAN, _INF = float("nan"), float("inf")


@dataclass(frozen=True, eq=False)
class SurfelDistances:
    """Distances in mm from each surface element to the other surface, and the elements' areas."""

    pred_to_ref: Distances
    ref_to_pred: Distances
    pred_area: Distances
    ref_area: Distances


@mask_metric(unit="mm", direction="lower", empty=DISTANCE)
def hausdorff_surfel(pair: MaskPair, *, percentile: float = 95.0) -> float:
    """Robust Hausdorff distance over surface area: the larger of the two directed ones.

    Args:
        pred: Predicted mask, shape (X, Y, Z) or (X, Y).
        ref: Reference mask on the same grid as ``pred``.
        spacing_mm: Voxel edge lengths along the array axes.
        percentile: The smallest distance within which this share of the surface lies, in
            per cent; nothing is interpolated.

    Returns:
        Millimetres; ``inf`` if exactly one mask is empty, ``nan`` if both are.

    Source:
        ``compute_robust_hausdorff`` of github.com/google-deepmind/surface-distance.
    """
    if not 0 <= percentile <= 100:
        raise ConfigError(f"percentile must lie in 0 to 100, not {percentile}")
    d = surfel_distances(pair)
    return max(
        _percentile(d.pred_to_ref, d.pred_area, percentile),
        _percentile(d.ref_to_pred, d.ref_area, percentile),
    )


@mask_metric(
    unit="mm",
    direction="lower",
    empty=EmptyRule(both=(_NAN, _NAN), pred=(_INF, _NAN), ref=(_NAN, _INF)),
)
def asd_surfel(pair: MaskPair) -> tuple[float, float]:
    """Average surface distances weighted by area: (reference to prediction, the reverse).

    A direction that starts at an empty mask is ``nan``, one that ends there ``inf``.
    """
    d = surfel_distances(pair)
    return (
        float(np.average(d.ref_to_pred, weights=d.ref_area)),
        float(np.average(d.pred_to_ref, weights=d.pred_area)),
    )


@mask_metric(unit="", direction="higher", empty=OVERLAP)
def nsd_surfel(pair: MaskPair, *, tau: float) -> float:
    """Normalised surface Dice: the share of both surfaces' area within ``tau`` of the other.

    Args:
        pred: Predicted mask, shape (X, Y, Z) or (X, Y).
        ref: Reference mask on the same grid as ``pred``.
        spacing_mm: Voxel edge lengths along the array axes.
        tau: Tolerance in millimetres, inclusive.

    Returns:
        0 to 1; ``nan`` if both masks are empty, 0 if exactly one is.

    Source:
        Nikolov et al. 2021, J Med Internet Res 23:e26151, doi:10.2196/26151.
    """
    limit = check_tau(tau) * (1 + ROUNDING)
    d = surfel_distances(pair)
    within = d.pred_area[d.pred_to_ref <= limit].sum() + d.ref_area[d.ref_to_pred <= limit].sum()
    return float(within / (d.pred_area.sum() + d.ref_area.sum()))


def surfel_distances(pair: MaskPair) -> SurfelDistances:
    """Both directed lists of distances with their areas, measured once per pair.

    A single slice is measured as the image that it is (``MaskPair.in_plane``).
    """
    pair = pair.in_plane
    if "surfel" not in pair.shared:
        area = _areas(pair.spacing_mm)
        codes = [_neighbour_codes(mask) for mask in (pair.pred, pair.ref)]
        mixed = [(code != 0) & (code != code.dtype.type(len(area) - 1)) for code in codes]
        weights = [area[code[mask]] for code, mask in zip(codes, mixed, strict=True)]
        distances = nearest(mixed[0], mixed[1], pair.spacing_mm)
        pair.shared["surfel"] = SurfelDistances(*distances, *weights)
    return pair.shared["surfel"]


def _neighbour_codes(mask: Mask) -> NDArray[np.uint8]:
    """Per corner of the padded grid, the bits of its neighbourhood; last axis is the lowest bit."""
    padded = np.pad(mask, 1).view(np.uint8)
    corners = tuple(n - 1 for n in padded.shape)
    code = np.zeros(corners, np.uint8)
    for bit, offset in enumerate(np.ndindex(*(2,) * mask.ndim)):
        window = tuple(slice(o, o + n) for o, n in zip(offset, corners, strict=True))
        code |= padded[window] << np.uint8(2**mask.ndim - 1 - bit)
    return code


@lru_cache(maxsize=64)
def _areas(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Area in mm^2 (length in mm) of the surface piece for each neighbourhood code."""
    from monai.metrics.utils import get_code_to_measure_table

    if len(spacing_mm) not in (2, 3):
        raise GeometryError(f"surfels exist for 2 or 3 axes, not {len(spacing_mm)}")
    return np.asarray(get_code_to_measure_table(spacing_mm)[0], np.float64)


def _percentile(distances: Distances, area: Distances, percentile: float) -> float:
    order = np.argsort(distances)
    share = np.cumsum(area[order]) / area.sum()
    first = np.searchsorted(share, percentile / 100 * (1 - ROUNDING))
    return float(distances[order][min(int(first), len(order) - 1)])
