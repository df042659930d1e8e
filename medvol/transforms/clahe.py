"""Contrast-limited adaptive histogram equalisation of a 2D image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medvol.core import InputError

_BINS = 256


def equalise(
    image: NDArray[np.floating], *, tiles: int = 8, clip_limit: float = 2.0
) -> NDArray[np.float32]:
    """Equalise local contrast (Zuiderveld 1994, Graphics Gems IV, 474-485).

    Args:
        image: Shape (X, Y), values 0 to 1.
        tiles: Tiles along each axis; the mapping between tile centres is interpolated.
        clip_limit: Largest slope of a tile's mapping; 1 leaves the image nearly as it is.

    Returns:
        float32, shape (X, Y), values 0 to 1.

    Raises:
        InputError: If the image is not 2D.
    """
    if image.ndim != 2:
        raise InputError(f"CLAHE equalises 2D images; found shape {image.shape}")
    counts = tuple(max(1, min(tiles, size // 8)) for size in image.shape)
    level = np.clip(np.round(image * (_BINS - 1)), 0, _BINS - 1).astype(np.intp)
    maps = _tile_maps(level, counts, clip_limit)
    (low_x, high_x, share_x), (low_y, high_y, share_y) = (
        _neighbours(size, count) for size, count in zip(image.shape, counts, strict=True)
    )
    share_x, share_y = share_x[:, None], share_y[None, :]
    out = np.zeros(image.shape)
    for rows, weight_x in ((low_x, 1 - share_x), (high_x, share_x)):
        for columns, weight_y in ((low_y, 1 - share_y), (high_y, share_y)):
            out += weight_x * weight_y * maps[rows[:, None], columns[None, :], level]
    return out.astype(np.float32)


def _tile_maps(
    level: NDArray[np.intp], counts: tuple[int, ...], clip_limit: float
) -> NDArray[np.floating]:
    """Grey-value mapping of every tile, shape (tiles along X, along Y, bins)."""
    tile_x, tile_y = (
        np.arange(size) * count // size for size, count in zip(level.shape, counts, strict=True)
    )
    tile = tile_x[:, None] * counts[1] + tile_y[None, :]
    total = counts[0] * counts[1]
    histogram = np.bincount((tile * _BINS + level).ravel(), minlength=total * _BINS)
    histogram = histogram.reshape(total, _BINS).astype(np.float64)
    size = histogram.sum(axis=1, keepdims=True)
    ceiling = clip_limit * size / _BINS
    excess = np.maximum(histogram - ceiling, 0).sum(axis=1, keepdims=True)
    histogram = np.minimum(histogram, ceiling) + excess / _BINS
    # half of a level's own share: the mapping of a flat histogram is the identity
    mapping = (np.cumsum(histogram, axis=1) - 0.5 * histogram) / size
    return mapping.reshape(*counts, _BINS)


def _neighbours(
    size: int, count: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.floating]]:
    """The two tiles around each pixel along one axis, and the second one's share."""
    place = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    low = np.floor(place).astype(np.intp)
    return low, np.minimum(low + 1, count - 1), place - low
