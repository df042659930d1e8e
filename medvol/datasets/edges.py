"""How much better a label map follows the edges of its image than its own mirror images do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medvol.core.geometry import Geometry

_MOST_EDGES = 200_000


def mirror_fit(
    image: NDArray[np.floating], label: NDArray[np.integer], geometry: Geometry
) -> tuple[float, float, float]:
    """Log ratio of edge strength under the label's surface to that under its mirror image.

    Args:
        image: (X, Y, Z).
        label: Its label map; every non-zero value counts as one structure.
        geometry: Of both.

    Returns:
        For mirrors left-right, front-back and head-foot of the field of view; above 0 where the
        label fits better as it is, nan where it has no surface.
    """
    surface = _surface(label != 0)
    if not len(surface):
        return (np.nan, np.nan, np.nan)
    surface = surface[:: max(1, len(surface) // _MOST_EDGES)]
    direct = _edge_strength(image, surface)
    fits = [np.nan] * 3
    for axis, direction in enumerate(np.abs(geometry.affine[:3, :3]).argmax(axis=0)):
        mirrored = surface.copy()
        mirrored[:, axis] = label.shape[axis] - 1 - mirrored[:, axis]
        other = _edge_strength(image, mirrored)
        if direct > 0 and other > 0:
            fits[int(direction)] = float(np.log(direct / other))
    return (fits[0], fits[1], fits[2])


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices of voxels beside a voxel on the other side of the surface."""
    boxes = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
             for axis in range(3)]  # fmt: skip
    if not all(len(box) for box in boxes):
        return np.empty((0, 3), np.intp)
    low = np.array([max(box[0] - 1, 0) for box in boxes])
    box = mask[tuple(slice(a, b[-1] + 2) for a, b in zip(low, boxes, strict=True))]
    edge = np.zeros(box.shape, np.bool_)
    for axis in range(3):
        changes = np.diff(box, axis=axis)
        first, second = ([slice(None)] * 3 for _ in range(2))
        first[axis], second[axis] = slice(0, -1), slice(1, None)
        edge[tuple(first)] |= changes
        edge[tuple(second)] |= changes
    return np.argwhere(edge) + low


def _edge_strength(image: NDArray[np.floating], places: NDArray[np.intp]) -> float:
    """Mean length of the image's gradient at voxels."""
    squares = np.zeros(len(places))
    for axis, size in enumerate(image.shape):
        ahead, behind = places.copy(), places.copy()
        ahead[:, axis] = np.minimum(ahead[:, axis] + 1, size - 1)
        behind[:, axis] = np.maximum(behind[:, axis] - 1, 0)
        steps = image[tuple(ahead.T)].astype(np.float64) - image[tuple(behind.T)]
        squares += steps**2
    return float(np.sqrt(squares).mean())
