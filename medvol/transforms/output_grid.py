"""Where an image will lie after a bundle's preprocessing, from its header alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.transforms.spatial.dictionary import Orientationd

from medvol.core.geometry import Geometry

_PAIRS = ("LR", "PA", "IS")


def output_grid(preprocessing: Any, source: Geometry) -> Geometry:
    """The grid of an image after the transforms of a ``Compose``.

    A transform that changes the grid states it by a method ``output_grid(geometry)``; crops, whose
    size follows from the voxels, count as the whole.

    Args:
        preprocessing: MONAI's ``Compose`` of dictionary transforms.
        source: Grid of the image as stored.
    """
    grid = source
    for transform in preprocessing.transforms:
        if hasattr(transform, "output_grid"):
            grid = transform.output_grid(grid)
        elif isinstance(transform, Orientationd) and transform.ornt_transform.axcodes:
            grid = _reoriented(grid, str(transform.ornt_transform.axcodes))
    return grid


def _reoriented(grid: Geometry, axcodes: str) -> Geometry:
    """The grid with its axes along ``axcodes``, as MONAI's ``Orientation`` stores it."""
    codes = grid.axis_codes
    affine, shape = np.eye(4), []
    affine[:3, 3] = grid.affine[:3, 3]
    for place, wanted in enumerate(axcodes):
        pair = next(pair for pair in _PAIRS if wanted in pair)
        axis = next(a for a, code in enumerate(codes) if code in pair)
        sign = 1 if codes[axis] == wanted else -1
        affine[:3, place] = sign * grid.affine[:3, axis]
        if sign < 0:
            affine[:3, 3] += (grid.shape[axis] - 1) * grid.affine[:3, axis]
        shape.append(grid.shape[axis])
    return Geometry((shape[0], shape[1], shape[2]), affine)
