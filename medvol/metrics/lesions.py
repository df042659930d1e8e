"""Lesion-wise detection: were the right things found, however well they were outlined?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import ConfigError, GridMismatchError, LabelError
from medvol.metrics.masks import Mask, MaskPair, check_same_shape
from medvol.metrics.registry import mask_metric, metric
from medvol.metrics.result import Fields

_NAN = float("nan")
#: Mean false positives per image at which FROC sensitivities are averaged (LUNA16).
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class LesionOverlap(Fields):
    """Counts of components that touch, and what follows from them.

    Attributes:
        n_ref: Lesions in the reference.
        n_pred: Lesions in the prediction.
        tp_ref: Reference lesions that share a voxel with the prediction.
        tp_pred: Predicted lesions that share a voxel with the reference.
        sensitivity: tp_ref / n_ref; ``nan`` without reference lesions.
        precision: tp_pred / n_pred; ``nan`` without predicted lesions.
        f1: Their harmonic mean; 0 if either side has lesions and none touch, ``nan`` if
            neither has any.
        fp_voxels: Voxels in predicted lesions that touch nothing.
        fn_voxels: Voxels in reference lesions that nothing touches.
    """

    n_ref: int
    n_pred: int
    tp_ref: int
    tp_pred: int
    sensitivity: float
    precision: float
    f1: float
    fp_voxels: int
    fn_voxels: int


@dataclass(frozen=True)
class Panoptic(Fields):
    """Matched instances: quality of recognition (rq), of outline (sq), and both (pq).

    Attributes:
        tp: Matched pairs.
        fp: Predicted instances without a match.
        fn: Reference instances without a match.
        rq: tp / (tp + fp / 2 + fn / 2), the F1 of detection; ``nan`` without any instance.
        sq: Mean IoU of the matched pairs; ``nan`` without any.
        pq: Sum of the matched IoU / (tp + fp / 2 + fn / 2); ``nan`` without any instance.
    """

    tp: int
    fp: int
    fn: int
    rq: float
    sq: float
    pq: float


@dataclass(frozen=True)
class Froc(Fields):
    """Free-response curve: sensitivity against false positives per image.

    Attributes:
        threshold: Scores, falling; one point of the curve for each.
        fp_per_image: False positives per image at that threshold.
        sensitivity: Share of the lesions found at that threshold.
        mean_sensitivity: Mean of the sensitivities at ``FROC_RATES``.
    """

    threshold: NDArray[np.float64]
    fp_per_image: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    mean_sensitivity: float


@mask_metric(unit="", direction="higher", empty=None)
def lesion_overlap(pair: MaskPair, *, connectivity: int | None = None) -> LesionOverlap:
    """Any-overlap detection of connected components.

    Args:
        pred: Predicted mask, shape (X, Y, Z) or (X, Y).
        ref: Reference mask on the same grid.
        spacing_mm: Not used.
        connectivity: 1 joins voxels by faces only, the number of axes (the default) by corners
            too: 26 neighbours in volumes, 8 in images.
    """
    pred, n_pred = components(pair.pred, connectivity)
    ref, n_ref = components(pair.ref, connectivity)
    both = pair.pred & pair.ref
    tp_pred, tp_ref = np.unique(pred[both]), np.unique(ref[both])
    sensitivity = tp_ref.size / n_ref if n_ref else _NAN
    precision = tp_pred.size / n_pred if n_pred else _NAN
    return LesionOverlap(
        n_ref=n_ref,
        n_pred=n_pred,
        tp_ref=tp_ref.size,
        tp_pred=tp_pred.size,
        sensitivity=sensitivity,
        precision=precision,
        f1=_f1(sensitivity, precision, n_ref + n_pred),
        fp_voxels=pair.n_pred - int(np.isin(pred, tp_pred).sum()),
        fn_voxels=pair.n_ref - int(np.isin(ref, tp_ref).sum()),
    )


@metric(kind="instances", direction="higher")
def panoptic(
    pred: ArrayLike,
    ref: ArrayLike,
    spacing_mm: Sequence[float] | None = None,
    *,
    iou_threshold: float = 0.5,
    connectivity: int | None = None,
) -> Panoptic:
    """Instance-wise detection and outline: panoptic quality.

    Instances match if their IoU exceeds the threshold; equal is not a match. From 0.5 on no
    instance can match twice; below, the assignment with the largest summed IoU is taken.

    Args:
        pred: Predicted instances as positive integers, background 0, each one instance however
            many parts it has; or a mask of booleans, whose connected components are the instances.
        ref: Reference instances, likewise.
        spacing_mm: Not used.
        iou_threshold: 0 to 1, exclusive.
        connectivity: As in ``lesion_overlap``, for masks.

    Source:
        Kirillov et al. 2019, CVPR, arXiv:1801.00868.
    """
    if not 0 <= iou_threshold <= 1:
        raise ConfigError(f"iou_threshold must lie in 0 to 1, not {iou_threshold}")
    pred, ref = np.asarray(pred), np.asarray(ref)
    check_same_shape(pred, ref)
    maps = _instances(pred, ref, connectivity)
    matched = match_instances(*maps, iou_threshold)
    tp = len(matched)
    n_pred, n_ref = (int(m.max(initial=0)) for m in maps)
    weight = (n_pred + n_ref) / 2
    total = float(matched.sum())
    return Panoptic(
        tp=tp,
        fp=n_pred - tp,
        fn=n_ref - tp,
        rq=tp / weight if weight else _NAN,
        sq=total / tp if tp else _NAN,
        pq=total / weight if weight else _NAN,
    )


def match_instances(
    pred: NDArray[np.integer], ref: NDArray[np.integer], iou_threshold: float
) -> NDArray[np.float64]:
    """IoU of each matched pair of two instance maps numbered 1 to n.

    The IoU of all overlapping pairs comes from one histogram of the two maps.
    """
    from scipy.optimize import linear_sum_assignment

    n_pred, n_ref = int(pred.max(initial=0)) + 1, int(ref.max(initial=0)) + 1
    joint = pred.astype(np.int64).ravel() * n_ref + ref.ravel()
    shared = np.bincount(joint, minlength=n_pred * n_ref).reshape(n_pred, n_ref)
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    overlap = (shared / np.maximum(union, 1))[1:, 1:]
    allowed = np.where(overlap > iou_threshold, overlap, 0.0)
    found = allowed[linear_sum_assignment(allowed, maximize=True)]
    return found[found > 0]


def components(mask: Mask, connectivity: int | None = None) -> tuple[NDArray[np.int32], int]:
    """Connected components of a mask, numbered from 1, and their count.

    Raises:
        ConfigError: If the connectivity is not between 1 and the number of axes.
    """
    from scipy.ndimage import generate_binary_structure, label

    reach = mask.ndim if connectivity is None else connectivity
    if not 1 <= reach <= mask.ndim:
        raise ConfigError(f"connectivity must be 1 to {mask.ndim} here, not {connectivity}")
    if not mask.size:
        return np.zeros(mask.shape, np.int32), 0
    found: Any = label(mask, generate_binary_structure(mask.ndim, reach))
    return found[0], int(found[1])


def froc(
    score: ArrayLike,
    lesion: ArrayLike,
    *,
    n_lesions: int,
    n_images: int,
    rates: Sequence[float] = FROC_RATES,
) -> Froc:
    """Free-response ROC over all candidates of a data set.

    Args:
        score: Confidence of each candidate.
        lesion: Index of the lesion that the candidate hits, unique over the data set; negative
            for a false positive. Further hits of a lesion neither help nor hurt.
        n_lesions: Lesions in the data set, found or not.
        n_images: Images in the data set, with lesions or not.
        rates: False positives per image at which sensitivities are averaged.

    Source:
        Setio et al. 2017, Med Image Anal 42:1, doi:10.1016/j.media.2017.06.015.
    """
    score, lesion = np.asarray(score, float), np.asarray(lesion)
    if score.shape != lesion.shape or n_lesions < 1 or n_images < 1:
        raise GridMismatchError("froc needs one lesion index per score, and lesions and images")
    order = np.argsort(-score, kind="stable")
    score, lesion = score[order], lesion[order]
    first = np.zeros(len(lesion), bool)
    first[np.unique(lesion, return_index=True)[1]] = True
    hits, alarms = np.cumsum(first & (lesion >= 0)), np.cumsum(lesion < 0)
    last = np.flatnonzero(np.append(np.diff(score) != 0, True)) if len(score) else np.array([], int)
    rate, found = alarms[last] / n_images, hits[last] / n_lesions
    at = [found[rate <= limit].max(initial=0.0) for limit in rates]
    return Froc(score[last], rate, found, float(np.mean(at)))


def _f1(sensitivity: float, precision: float, n: int) -> float:
    if not n:
        return _NAN
    if not (sensitivity > 0 and precision > 0):
        return 0.0
    return 2 * sensitivity * precision / (sensitivity + precision)


def _instances(
    pred: NDArray, ref: NDArray, connectivity: int | None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Two instance maps numbered 1 to n; booleans are masks, numbers are instances as they are."""
    for name, array in (("pred", pred), ("ref", ref)):
        if array.dtype.kind not in ("b", "i", "u") or (array.size and array.min() < 0):
            raise LabelError(f"{name} must hold instance numbers from 0 or booleans")
    first, second = (
        components(one, connectivity)[0] if one.dtype.kind == "b" else _renumber(one)
        for one in (pred, ref)
    )
    return first, second


def _renumber(array: NDArray) -> NDArray[np.int32]:
    numbers, inverse = np.unique(array, return_inverse=True)
    start = 0 if numbers.size and numbers[0] == 0 else 1
    return (inverse.reshape(array.shape) + start).astype(np.int32)
