"""A volume in three planes as a figure, with the outlines of its structures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The Okabe-Ito pair of reference and prediction, light enough for a black ground.
REFERENCE_ON_DARK, PREDICTION_ON_DARK = "#56B4E9", "#E69F00"
_THUMB_IN = 1.9
_PLANES = (("sagittal", 0, (1, 2)), ("coronal", 1, (0, 2)), ("axial", 2, (0, 1)))


def outline_planes(
    image: NDArray[np.uint8] | None,
    ref: NDArray[np.uint8] | None,
    pred: NDArray[np.uint8] | None,
    spacing_mm: Sequence[float],
) -> bytes:
    """A small PNG: three planes through the middle of the structures, reference and prediction
    as outlines in their colours; the axial plane alone where there is one slice."""
    from matplotlib.figure import Figure

    shape = next(a.shape for a in (image, ref, pred) if a is not None)
    base = np.zeros(shape, np.uint8) if image is None else image
    masks = [(m, colour) for m, colour in ((ref, REFERENCE_ON_DARK), (pred, PREDICTION_ON_DARK))
             if m is not None]  # fmt: skip
    found = np.argwhere(np.any([m > 0 for m, _ in masks], axis=0)) if masks else ()
    centre = np.median(found, axis=0) if len(found) else (np.asarray(shape) - 1) / 2
    planes = [p for p in _PLANES if min(shape[a] for a in p[2]) > 1]
    sizes = [[shape[a] * spacing_mm[a] for a in across_up] for _, _, across_up in planes]
    widths, height = [w / h for w, h in sizes], _THUMB_IN
    figure = Figure(figsize=(min(sum(widths) * height, 4 * height), height), facecolor="black")
    grid = figure.add_gridspec(1, len(planes), width_ratios=widths, wspace=0.02, left=0, right=1,
                               bottom=0, top=1)  # fmt: skip
    for k, (_, axis, (across, up)) in enumerate(planes):
        axes = figure.add_subplot(grid[k])
        at = round(float(centre[axis]))
        plane = np.take(base, at, axis=axis).T
        extent = (0, plane.shape[1] * spacing_mm[across], 0, plane.shape[0] * spacing_mm[up])
        axes.imshow(plane, cmap="gray", vmin=0, vmax=255, origin="lower", extent=extent)
        for mask, colour in masks:
            _outline(axes, np.take(mask, at, axis=axis).T, colour, extent)
        axes.set_axis_off()
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, metadata={"Software": None})
    return sink.getvalue()


def _outline(axes: Any, labels: NDArray[np.integer], colour: str, extent: Any) -> None:
    """Around every structure of a slice, at the slice's own edge too."""
    for value in np.unique(labels[labels > 0]):
        padded = np.pad(labels == value, 1)
        step = [
            (extent[k + 1] - extent[k]) / n for k, n in ((0, labels.shape[1]), (2, labels.shape[0]))
        ]
        wide = (-step[0], extent[1] + step[0], -step[1], extent[3] + step[1])
        axes.contour(padded, [0.5], colors=[colour], linewidths=1.1, extent=wide, origin="lower")
