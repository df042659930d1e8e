"""Every metric of every label from one pass over two label maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import ConfigError, LabelError
from medvol.metrics.masks import MaskPair, SpacingMm, check_same_shape, check_spacing
from medvol.metrics.registry import Metric, find_metric

TausMm = float | Sequence[float] | Mapping[int, float]
DEFAULT_METRICS = ("dice", "hd95", "assd", "nsd_voxel")
_MAX_LABEL = 65_535


def surface_report(
    pred: ArrayLike,
    ref: ArrayLike,
    spacing_mm: SpacingMm,
    taus_mm: TausMm | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    labels: Sequence[int] | None = None,
    params: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[int, dict[str, float]]:
    """Metrics of every label, each pair of surfaces extracted and measured once.

    Args:
        pred: Predicted label map of integers, background 0, shape (X, Y, Z) or (X, Y).
        ref: Reference label map on the same grid.
        spacing_mm: Voxel edge lengths along the array axes.
        taus_mm: Tolerance of the NSD in millimetres: one for all labels, one per label in rising
            order of labels, or a mapping; needed only where a metric has a ``tau``.
        metrics: Names of registered mask metrics with one number as value.
        labels: Labels to report, present or not; by default all that occur in either map.
        params: Further parameters by metric, such as ``{"boundary_iou": {"width_mm": 2}}``.

    Returns:
        ``{label: {metric: value}}`` in rising order of labels. A label that one map lacks scores
        by the metric's empty rule (Dice 0, distance ``inf``), it is never left out.

    Raises:
        GridMismatchError: If the maps differ in shape.
        LabelError: If a map holds anything but integers from 0 to 65535.
        ConfigError: If a metric is unknown or a tolerance is missing.

    >>> ref = np.zeros((6, 6, 6), np.uint8)
    >>> ref[1:4, 1:4, 1:4] = 1
    >>> surface_report(np.roll(ref, 1, axis=0), ref, (2.0, 1.0, 1.0), 2.0)[1]["hd95"]
    2.0
    """
    rows = [_scalar_metric(name) for name in metrics]
    found = dict(label_pairs(pred, ref, spacing_mm, labels))
    taus = _taus_by_label(taus_mm, list(found))
    extra = params or {}
    report: dict[int, dict[str, float]] = {}
    for label, pair in found.items():
        report[label] = {
            row.name: float(_call(row, pair, taus.get(label), extra.get(row.name, {})))
            for row in rows
        }
    return report


def label_pairs(
    pred: ArrayLike, ref: ArrayLike, spacing_mm: SpacingMm, labels: Sequence[int] | None = None
) -> Iterator[tuple[int, MaskPair]]:
    """The pair of masks of each label, cropped to its own box; one scan of each map finds all."""
    from scipy.ndimage import find_objects

    pred, ref = as_label_map(pred, "pred"), as_label_map(ref, "ref")
    check_same_shape(pred, ref)
    spacing = check_spacing(spacing_mm, pred.ndim)
    boxes = [find_objects(labelled) for labelled in (pred, ref)]
    length = max(len(found) for found in boxes)
    joint = {
        index + 1: box
        for index in range(length)
        if (box := _join(*(found[index] if index < len(found) else None for found in boxes)))
    }
    nowhere = (slice(0, 0),) * pred.ndim
    for label in sorted(joint) if labels is None else sorted(set(labels)):
        box = joint.get(label, nowhere)
        yield label, MaskPair(pred[box] == label, ref[box] == label, spacing, pred.shape)


def as_label_map(labels: ArrayLike, name: str) -> NDArray[np.integer]:
    """A label map as integers.

    Raises:
        LabelError: If values are not whole, negative or beyond 65535.
    """
    array = np.asarray(labels)
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = array.astype(np.int32)
        if not np.array_equal(whole, array):
            raise LabelError(f"{name} holds values that are not whole numbers; pass a label map")
        array = whole
    if array.dtype.kind not in "iu":
        raise LabelError(f"{name} must hold integers, not {array.dtype}")
    if array.dtype.itemsize > 1 and array.size and not 0 <= array.max() <= _MAX_LABEL:
        raise LabelError(f"{name} holds label {array.max()}; labels lie in 0 to {_MAX_LABEL}")
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise LabelError(f"{name} holds the negative label {array.min()}")
    return array.astype(np.int64) if array.dtype.itemsize == 8 else array


def _scalar_metric(name: str) -> Metric:
    row = find_metric(name)
    if row.of_pair is None or not row.is_scalar:
        raise ConfigError(f"metric {name!r} is not a mask metric with one number as value")
    return row


def _call(row: Metric, pair: MaskPair, tau: float | None, params: Mapping[str, Any]) -> float:
    assert row.of_pair is not None
    if "tau" in row.params and "tau" not in params:
        if tau is None:
            raise ConfigError(f"{row.name} needs a tolerance for each label: pass taus_mm in mm")
        params = {**params, "tau": tau}
    return row.of_pair(pair, **params)


def _taus_by_label(taus_mm: TausMm | None, labels: list[int]) -> dict[int, float]:
    if taus_mm is None:
        return {}
    if isinstance(taus_mm, Mapping):
        return {label: float(tau) for label, tau in taus_mm.items()}
    if isinstance(taus_mm, (int, float)) or np.ndim(taus_mm) == 0:
        return dict.fromkeys(labels, float(taus_mm))  # pyright: ignore[reportArgumentType]
    taus = [float(tau) for tau in taus_mm]
    if len(taus) == 1:
        return dict.fromkeys(labels, taus[0])
    if len(taus) != len(labels):
        raise ConfigError(f"taus_mm has {len(taus)} values for {len(labels)} labels {labels}")
    return dict(zip(labels, taus, strict=True))


def _join(
    first: tuple[slice, ...] | None, second: tuple[slice, ...] | None
) -> tuple[slice, ...] | None:
    if first is None or second is None:
        return first or second
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in zip(first, second, strict=True)
    )
