"""Metrics of shared volume, and of shared boundary bands and centrelines."""

from __future__ import annotations

import math

import numpy as np

from medvol.core.errors import ConfigError, GeometryError, MissingPackageError
from medvol.metrics.masks import Mask, MaskPair
from medvol.metrics.registry import OVERLAP, EmptyRule, mask_metric

_NAN = float("nan")
_MM3_PER_ML = 1000.0


@mask_metric(unit="", direction="higher", empty=OVERLAP)
def dice(pair: MaskPair) -> float:
    """Dice similarity coefficient, 2 |P and R| / (|P| + |R|).

    Args:
        pred: Predicted mask, shape (X, Y, Z) or (X, Y).
        ref: Reference mask on the same grid.
        spacing_mm: Not used.

    Returns:
        0 to 1; ``nan`` if both masks are empty, 0 if one is.

    Source:
        Dice 1945, Ecology 26:297, doi:10.2307/1932409.

    >>> dice([1, 1, 0], [0, 1, 1])
    0.5
    """
    return 2 * pair.n_both / (pair.n_pred + pair.n_ref)


@mask_metric(unit="", direction="higher", empty=OVERLAP)
def iou(pair: MaskPair) -> float:
    """Intersection over union (Jaccard index); 0 to 1, ``nan`` if both masks are empty."""
    return pair.n_both / (pair.n_pred + pair.n_ref - pair.n_both)


@mask_metric(unit="", direction="higher", empty=OVERLAP)
def volume_similarity(pair: MaskPair) -> float:
    """1 - ||P| - |R|| / (|P| + |R|): agreement of volumes wherever they lie, 0 to 1.

    Source:
        Taha & Hanbury 2015, BMC Med Imaging 15:29, doi:10.1186/s12880-015-0068-x.
    """
    return 1 - abs(pair.n_pred - pair.n_ref) / (pair.n_pred + pair.n_ref)


@mask_metric(unit="", direction="zero", empty=EmptyRule(both=_NAN, pred=-1.0, ref=_NAN))
def relative_volume_difference(pair: MaskPair) -> float:
    """(|P| - |R|) / |R|: negative where the prediction is too small; ``nan`` without reference."""
    return (pair.n_pred - pair.n_ref) / pair.n_ref


@mask_metric(unit="ml", direction="lower", empty=None)
def absolute_volume_difference(pair: MaskPair) -> float:
    """Absolute difference of the two volumes in millilitres; 0 if both masks are empty.

    Raises:
        GeometryError: If the masks are two-dimensional or the spacing is missing.
    """
    if len(pair.spacing_mm) != 3:
        raise GeometryError(f"a volume needs 3 axes, the masks have {len(pair.spacing_mm)}")
    return abs(pair.n_pred - pair.n_ref) * float(np.prod(pair.spacing_mm)) / _MM3_PER_ML


@mask_metric(unit="", direction="higher", empty=EmptyRule(both=_NAN, pred=0.0, ref=_NAN))
def sensitivity_voxel(pair: MaskPair) -> float:
    """Share of the reference's voxels that were predicted; ``nan`` without reference."""
    return pair.n_both / pair.n_ref


@mask_metric(unit="", direction="higher", empty=EmptyRule(both=_NAN, pred=_NAN, ref=0.0))
def precision_voxel(pair: MaskPair) -> float:
    """Share of the predicted voxels that are in the reference; ``nan`` without prediction."""
    return pair.n_both / pair.n_pred


@mask_metric(unit="", direction="higher", empty=None)
def specificity_voxel(pair: MaskPair) -> float:
    """Share of the background that was left alone; ``nan`` if the reference fills the grid.

    It depends on how much air was scanned, so compare it only between equal grids.
    """
    negatives = math.prod(pair.grid_shape) - pair.n_ref
    return 1 - (pair.n_pred - pair.n_both) / negatives if negatives else _NAN


@mask_metric(unit="", direction="higher", empty=OVERLAP)
def boundary_iou(pair: MaskPair, *, width_mm: float) -> float:
    """IoU of the two bands within ``width_mm`` inside each mask's boundary.

    Args:
        pred: Predicted mask, shape (X, Y, Z) or (X, Y).
        ref: Reference mask on the same grid.
        spacing_mm: Voxel edge lengths.
        width_mm: Depth of the band; a voxel belongs to it if its centre lies no further than
            this from the centre of the nearest background voxel. The grid's outside is
            background, but not above and below a single slice.

    Returns:
        0 to 1; ``nan`` if both masks are empty, 0 if one is or if no band holds a voxel.

    Source:
        Cheng et al. 2021, CVPR, arXiv:2103.16562.
    """
    if not width_mm > 0:
        raise ConfigError(f"width_mm must be positive, not {width_mm}")
    pair = pair.in_plane
    pred, ref = (_band(mask, pair.spacing_mm, width_mm) for mask in (pair.pred, pair.ref))
    union = np.count_nonzero(pred | ref)
    return float(np.count_nonzero(pred & ref) / union) if union else 0.0


@mask_metric(unit="", direction="higher", empty=OVERLAP)
def cldice(pair: MaskPair) -> float:
    """Centreline Dice: how much of each mask's skeleton lies inside the other mask.

    Meant for tubes (vessels, airways), where a broken branch costs few voxels. The skeleton is
    Lee's thinning, in voxels, as in the authors' code.

    Returns:
        0 to 1; ``nan`` if both masks are empty, 0 if one is.

    Raises:
        MissingPackageError: If scikit-image is not installed.

    Source:
        Shit et al. 2021, CVPR, arXiv:2003.07311.
    """
    pred_line, ref_line = _skeleton(pair.pred), _skeleton(pair.ref)
    precision = np.count_nonzero(pred_line & pair.ref) / np.count_nonzero(pred_line)
    sensitivity = np.count_nonzero(ref_line & pair.pred) / np.count_nonzero(ref_line)
    if precision + sensitivity == 0:
        return 0.0
    return float(2 * precision * sensitivity / (precision + sensitivity))


def _band(mask: Mask, spacing_mm: tuple[float, ...], width_mm: float) -> Mask:
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)
    inside = tuple(slice(1, -1) for _ in mask.shape)
    return mask & (np.asarray(depth)[inside] <= width_mm * (1 + 1e-9))


def _skeleton(mask: Mask) -> Mask:
    try:
        from skimage.morphology import skeletonize
    except ImportError as error:
        raise MissingPackageError("cldice needs scikit-image: pip install scikit-image") from error
    line = np.asarray(skeletonize(np.pad(mask, 1))).astype(bool)
    line = line[tuple(slice(1, -1) for _ in mask.shape)]
    return line if line.any() else mask
