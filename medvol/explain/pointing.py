"""Whether a map points at a finding: hits, energy in a mask, energy outside the patient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medvol.core import ConfigError, GridMismatchError


def points_into(cam: ArrayLike, mask: ArrayLike, tolerance: Sequence[float] | float = 0) -> bool:
    """Pointing game: whether the map's highest voxel lies in the mask.

    Args:
        cam: Map on the mask's grid, shape (X, Y) or (X, Y, Z).
        mask: Where the finding is.
        tolerance: Distance in voxels along each axis that still counts, for example one voxel
            of the layer's grid, ``size / layer size``.

    Returns:
        False for a map without variance, which points nowhere.

    Source:
        Zhang et al. 2018, IJCV 126:1084, doi:10.1007/s11263-017-1059-x.
    """
    cam, mask = _same_grid(cam, mask)
    if not mask.any() or cam.max() <= cam.min():
        return False
    peak = np.unravel_index(int(np.argmax(cam)), cam.shape)
    away = np.abs(np.argwhere(mask) - np.asarray(peak))
    return bool((away <= np.broadcast_to(tolerance, len(peak))).all(axis=1).any())


def energy_inside(cam: ArrayLike, mask: ArrayLike) -> float:
    """Share of the map's sum that lies in the mask, 0 to 1; ``nan`` for a map of zeros.

    Source:
        Wang et al. 2020 (energy-based pointing game), doi:10.1109/CVPRW50498.2020.00020.

    >>> energy_inside([[1.0, 3.0]], [[False, True]])
    0.75
    """
    cam, mask = _same_grid(cam, mask)
    total = float(cam.sum())
    return float(cam[mask].sum()) / total if total > 0 else math.nan


def energy_lift(cam: ArrayLike, mask: ArrayLike) -> float:
    """:func:`energy_inside` over the share of the grid that the mask fills; 1 is chance."""
    share = float(np.asarray(mask, bool).mean())
    return energy_inside(cam, mask) / share if share else math.nan


def body_mask(image: ArrayLike, *, threshold: float | None = None) -> NDArray[np.bool_]:
    """The patient in an image: the largest bright component, holes filled.

    Args:
        image: Shape (X, Y) or (X, Y, Z).
        threshold: What counts as body; -500 suits CT in HU. None splits the histogram by Otsu's
            method and takes half of the way from its minimum to that split, which keeps lungs of
            an X-ray and dark tissue of an MRI.
    """
    image = np.asarray(image, np.float64)
    if np.ptp(image) == 0:
        return np.zeros(image.shape, bool)
    if threshold is None:
        low = float(image.min())
        threshold = low + 0.5 * (_otsu(image) - low)
    parts, count = ndimage.label(image > threshold)  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        return np.zeros(image.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(parts == largest), bool)


def _same_grid(cam: ArrayLike, mask: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    cam, mask = np.asarray(cam, np.float64), np.asarray(mask, bool)
    if cam.shape != mask.shape:
        raise GridMismatchError(f"the map has shape {cam.shape}, the mask {mask.shape}")
    if cam.size and cam.min() < 0:
        raise ConfigError("the map holds negative values; a map is zero or positive")
    return cam, mask


def _otsu(image: NDArray[np.float64]) -> float:
    """The threshold with the largest variance between classes (Otsu 1979)."""
    counts, edges = np.histogram(image, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = mass / below - (mass[-1] - mass) / above
    between = np.nan_to_num(below * above * gap**2)
    return float(centres[int(np.argmax(between))])
