"""A picture of a volume in three planes, with the outlines of its structures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medvol.core.files import atomic_path
from medvol.core.labels import find_label

_PLANES = (("sagittal", 0, (1, 2)), ("coronal", 1, (0, 2)), ("axial", 2, (0, 1)))


def draw_planes(
    image: NDArray[np.floating],
    mask: NDArray[np.integer],
    labels: Mapping[int, str],
    path: str | os.PathLike[str],
    *,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    title: str = "",
) -> None:
    """Sagittal, coronal and axial slice through the middle of the structures, with contours.

    Args:
        image: Intensities in RAS storage, shape (X, Y, Z).
        mask: Label map on the same grid.
        labels: Label value to name; gives outlines and their colours.
        path: A .png file, written atomically.
        spacing_mm: Voxel edge lengths, for the aspect of each plane.
        title: Shown above the planes.
    """
    from matplotlib.figure import Figure

    found = np.argwhere(mask > 0)
    centre = np.median(found, axis=0) if len(found) else (np.asarray(mask.shape) - 1) / 2
    low, high = np.percentile(image, (1, 99.5))
    figure = Figure(figsize=(12, 4.4), layout="constrained", facecolor="black")
    for axes, (name, axis, (across, up)) in zip(figure.subplots(1, 3), _PLANES, strict=True):
        at = round(float(centre[axis]))
        plane = np.take(image, at, axis=axis).T
        extent = (0, plane.shape[1] * spacing_mm[across], 0, plane.shape[0] * spacing_mm[up])
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
        outline = np.take(mask, at, axis=axis).T
        for value, label in labels.items():
            if (outline == value).any():
                colour = np.asarray(find_label(label).colour) / 255
                axes.contour(
                    outline == value, [0.5], colors=[colour], linewidths=1.2, extent=extent,
                    origin="lower",
                )  # fmt: skip
        axes.set_title(name, color="white", fontsize=10)
        axes.set_axis_off()
    handles = [
        figure.axes[0].plot([], [], color=np.asarray(find_label(label).colour) / 255, label=label)[
            0
        ]
        for label in labels.values()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(labels), fontsize=9)
    figure.suptitle(title, color="white")
    with atomic_path(path) as scratch:
        figure.savefig(scratch, dpi=110)
