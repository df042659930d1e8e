"""Distances between the surfaces of two masks, by the voxel convention.

The surface of a mask is its voxels that have a background voxel, or the outside of the image, as
a face neighbour; distances run between voxel centres. All metrics here read the same two lists of
distances, which are measured once per pair of masks. The marching-cubes convention of DeepMind is
in ``surfel.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import ConfigError
from medvol.metrics.masks import Mask, MaskPair
from medvol.metrics.registry import DISTANCE, OVERLAP, mask_metric

Norm = Literal["euclidean", "taxicab", "chessboard"]
Distances = NDArray[np.float64]

#: Distances that equal the tolerance but for rounding count as within it (3 x 1.1 mm is 3.3 mm).
ROUNDING = 1e-9
_MINKOWSKI_P = {"euclidean": 2.0, "taxicab": 1.0, "chessboard": np.inf}


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """From each surface voxel of one mask to the nearest surface voxel of the other, in mm."""

    pred_to_ref: Distances
    ref_to_pred: Distances

    def pooled(self) -> Distances:
        """Both directions in one list."""
        return np.concatenate([self.pred_to_ref, self.ref_to_pred])


@mask_metric(unit="mm", direction="lower", empty=DISTANCE)
def hausdorff(
    pair: MaskPair,
    *,
    percentile: float = 95.0,
    directed: bool = False,
    norm: Norm = "euclidean",
) -> float:
    """Robust Hausdorff distance between two mask surfaces.

    The larger of the two directed percentiles; pooling both directions first gives smaller
    numbers and is a different metric (``hd95_pooled``).

    Args:
        pred: Predicted mask, shape (X, Y, Z) or (X, Y).
        ref: Reference mask on the same grid as ``pred``.
        spacing_mm: Voxel edge lengths along the array axes.
        percentile: 100 gives the classic Hausdorff distance, 0 the smallest distance; between
            two distances it is interpolated linearly.
        directed: Only from the prediction to the reference.
        norm: How the steps along the axes, in mm, make a distance.

    Returns:
        Millimetres; ``inf`` if exactly one mask is empty, ``nan`` if both are. Neither is ever
        dropped or scored as 0.

    Raises:
        GridMismatchError: If the masks differ in shape.
        GeometryError: If the spacing is missing.

    Source:
        Taha & Hanbury 2015, BMC Med Imaging 15:29, doi:10.1186/s12880-015-0068-x.

    >>> a = np.zeros((8, 4, 4), bool)
    >>> a[1, 2, 2] = True
    >>> hausdorff(a, np.roll(a, 3, axis=0), (2.0, 1.0, 1.0))
    6.0
    """
    if not 0 <= percentile <= 100:
        raise ConfigError(f"percentile must lie in 0 to 100, not {percentile}")
    distances = surface_distances(pair, norm)
    there = np.percentile(distances.pred_to_ref, percentile)
    if directed:
        return float(there)
    return float(max(there, np.percentile(distances.ref_to_pred, percentile)))


@mask_metric(unit="mm", direction="lower", empty=DISTANCE)
def hd95(pair: MaskPair) -> float:
    """The 95th-percentile Hausdorff distance: ``hausdorff`` with its defaults."""
    distances = surface_distances(pair)
    return float(max(np.percentile(distances.pred_to_ref, 95),
                     np.percentile(distances.ref_to_pred, 95)))  # fmt: skip


@mask_metric(unit="mm", direction="lower", empty=DISTANCE)
def hd95_pooled(pair: MaskPair) -> float:
    """The 95th percentile of both directions pooled, as panoptica and medpy report "HD95"."""
    return float(np.percentile(surface_distances(pair).pooled(), 95))


@mask_metric(unit="mm", direction="lower", empty=DISTANCE)
def asd(pair: MaskPair, *, norm: Norm = "euclidean") -> float:
    """Average distance from the prediction's surface to the reference's: one direction only."""
    return float(surface_distances(pair, norm).pred_to_ref.mean())


@mask_metric(unit="mm", direction="lower", empty=DISTANCE)
def assd(pair: MaskPair, *, norm: Norm = "euclidean") -> float:
    """Average symmetric surface distance: the mean over both surfaces' voxels, pooled."""
    return float(surface_distances(pair, norm).pooled().mean())


@mask_metric(unit="mm", direction="lower", empty=DISTANCE)
def masd(pair: MaskPair, *, norm: Norm = "euclidean") -> float:
    """Mean average surface distance: the mean of the two directed averages."""
    distances = surface_distances(pair, norm)
    return float((distances.pred_to_ref.mean() + distances.ref_to_pred.mean()) / 2)


@mask_metric(unit="", direction="higher", empty=OVERLAP)
def nsd_voxel(pair: MaskPair, *, tau: float, norm: Norm = "euclidean") -> float:
    """Normalised surface Dice: the share of both surfaces' voxels within ``tau`` of the other.

    Args:
        pred: Predicted mask, shape (X, Y, Z) or (X, Y).
        ref: Reference mask on the same grid as ``pred``.
        spacing_mm: Voxel edge lengths along the array axes.
        tau: Tolerance in millimetres, inclusive; choose it from what raters disagree by.
        norm: How the steps along the axes, in mm, make a distance.

    Returns:
        0 to 1; ``nan`` if both masks are empty, 0 if exactly one is.

    Source:
        Nikolov et al. 2021, J Med Internet Res 23:e26151, doi:10.2196/26151, on voxels as in
        MONAI's ``SurfaceDiceMetric``.
    """
    limit = check_tau(tau) * (1 + ROUNDING)
    return float(np.mean(surface_distances(pair, norm).pooled() <= limit))


def surface_distances(pair: MaskPair, norm: Norm = "euclidean") -> SurfaceDistances:
    """Both directed lists of surface distances, measured once per pair and norm.

    A single slice is measured as the image that it is (``MaskPair.in_plane``).

    Raises:
        ConfigError: If the norm is unknown.
    """
    if norm not in _MINKOWSKI_P:
        raise ConfigError(f"norm {norm!r} is unknown; known: {', '.join(_MINKOWSKI_P)}")
    pair = pair.in_plane
    if norm not in pair.shared:
        pred, ref = boundary(pair.pred), boundary(pair.ref)
        p = _MINKOWSKI_P[norm]
        pair.shared[norm] = SurfaceDistances(*nearest(pred, ref, pair.spacing_mm, p))
    return pair.shared[norm]


def boundary(mask: Mask) -> Mask:
    """Voxels of the mask with a face neighbour outside it; the image's outside is background."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        along, core = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        core[1:] &= along[:-1]
        core[:-1] &= along[1:]
        core[0] = core[-1] = False
    return mask & ~inner


def nearest(
    pred: Mask, ref: Mask, spacing_mm: tuple[float, ...], p: float = 2.0
) -> tuple[Distances, Distances]:
    """Distance from each point of one set to the nearest of the other, in array order.

    Points that both sets hold are 0 apart and are not searched for, which on usual predictions
    is most of them; what remains asks a KD-tree of the other set's points.

    Args:
        pred: Where the first set has a point.
        ref: Where the second set has one, same shape.
        spacing_mm: Voxel edge lengths.
        p: Order of the Minkowski norm.

    Returns:
        From ``pred`` to ``ref`` and from ``ref`` to ``pred``, in mm.
    """
    from scipy.spatial import KDTree

    index = [np.argwhere(mask) for mask in (pred, ref)]
    points = [rows * np.asarray(spacing_mm) for rows in index]
    found = []
    for rows, here, other, there in (
        (index[0], points[0], ref, points[1]),
        (index[1], points[1], pred, points[0]),
    ):
        distance = np.zeros(len(rows))
        apart = ~other[tuple(rows.T)]
        if apart.any():
            tree = KDTree(there, balanced_tree=False, compact_nodes=False)
            distance[apart] = tree.query(here[apart], p=p)[0]
        found.append(distance)
    return found[0], found[1]


def check_tau(tau: float) -> float:
    """A tolerance in mm, rejected unless it is a number that is not negative.

    Raises:
        ConfigError: If it is negative or not finite.
    """
    if not (np.isfinite(tau) and tau >= 0):
        raise ConfigError(f"tau must be a finite tolerance in mm, not {tau}")
    return float(tau)
