"""Resampling along array axes: one small matrix per axis holds filter, spline and interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import spline_filter1d

AxisMode = Literal["bilinear", "nearest", "cubic"]
Block = tuple[int, int, int, int, torch.Tensor]

#: Weights below this change no float32 result but would slow the product through denormals.
_SMALLEST_WEIGHT = 1e-9
_BLOCK = 64


def resample_axes(
    volume: torch.Tensor,
    steps: Sequence[float],
    out_shape: Sequence[int],
    mode: AxisMode,
    *,
    anti_alias: bool,
) -> torch.Tensor:
    """Read a channel-first volume at ``step * index`` along every axis, edges repeated.

    Args:
        volume: Shape (C, *spatial).
        steps: Input voxels per output voxel along each axis.
        out_shape: Output spatial shape.
        mode: ``bilinear``, ``cubic`` (the interpolating cubic B-spline, mirrored at the edge
            centres) or ``nearest``, which also keeps the dtype.
        anti_alias: Whether an axis that shrinks is low-passed first.

    Returns:
        float32 (or the volume's dtype for ``nearest``), shape (C, *out_shape).
    """
    if mode == "nearest":
        return _nearest(volume, steps, out_shape)
    out = volume.to(torch.float32)
    order = sorted(range(len(steps)), key=lambda axis: out_shape[axis] / volume.shape[axis + 1])
    for axis in order:
        size = volume.shape[axis + 1]
        if steps[axis] == 1.0 and out_shape[axis] == size:
            continue
        blocks = axis_blocks(size, out_shape[axis], float(steps[axis]), mode, anti_alias)
        out = _apply(out, axis + 1, out_shape[axis], blocks)
    return out


def axis_matrix(
    size: int, out_size: int, step: float, mode: AxisMode, anti_alias: bool
) -> NDArray[np.floating]:
    """Weights of every input voxel in every output voxel of one axis, shape (out_size, size).

    Shrinking is preceded by the Gaussian of :func:`shrinking_sigma`.
    """
    place = np.clip(np.arange(out_size) * step, 0, size - 1)
    if mode == "cubic" and size > 1:
        weights = _cubic_weights(place, size) @ spline_filter1d(np.eye(size), 3, 0, mode="mirror")
    else:
        weights = _linear_weights(place, size)
    if anti_alias and step > 1 and size > 1:
        weights = weights @ gaussian_matrix(size, shrinking_sigma(step))
    weights[np.abs(weights) < _SMALLEST_WEIGHT] = 0.0
    return weights


@lru_cache(maxsize=128)
def axis_blocks(
    size: int, out_size: int, step: float, mode: AxisMode, anti_alias: bool
) -> tuple[Block, ...]:
    """The matrix of one axis cut into dense blocks (out from, out to, in from, in to, weights)."""
    weights = axis_matrix(size, out_size, step, mode, anti_alias).astype(np.float32)
    return _cut(weights)


def apply_matrices(
    volume: torch.Tensor, matrices: Sequence[NDArray[np.floating] | None]
) -> torch.Tensor:
    """Multiply each spatial axis of a channel-first volume by a matrix; None leaves the axis."""
    out = volume.to(torch.float32)
    for axis, matrix in enumerate(matrices, 1):
        if matrix is not None:
            out = _apply(out, axis, len(matrix), _cut(np.asarray(matrix, np.float32)))
    return out


def shrinking_sigma(step: float) -> float:
    """Standard deviation, in input voxels, of the low-pass for an axis that shrinks by ``step``.

    Its variance is the difference between those of the two sampling functions.

    Source:
        Cardoso et al. 2015, MICCAI, "Scale factor point spread function matching".
    """
    return math.sqrt((step**2 - 1) / (8 * math.log(2)))


def gaussian_matrix(size: int, sigma: float) -> NDArray[np.floating]:
    """Gaussian smoothing with repeated edges, one row per voxel; every row sums to 1."""
    reach = math.ceil(4 * sigma)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    smooth = np.zeros((size, size))
    rows = np.arange(size)
    for offset, tap in zip(range(-reach, reach + 1), taps, strict=True):
        np.add.at(smooth, (rows, np.clip(rows + offset, 0, size - 1)), tap)
    return smooth


def _cut(weights: NDArray[np.floating]) -> tuple[Block, ...]:
    blocks, out_size = [], len(weights)
    for first in range(0, out_size, _BLOCK):
        rows = weights[first : first + _BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)
        dense = torch.from_numpy(np.ascontiguousarray(rows[:, low:high]))
        blocks.append((first, first + len(rows), low, high, dense))
    return tuple(blocks)


def _apply(
    volume: torch.Tensor,
    axis: int,
    out_size: int,
    blocks: tuple[Block, ...],
) -> torch.Tensor:
    shape = volume.shape
    before = math.prod(shape[:axis])
    after = math.prod(shape[axis + 1 :])
    source = volume.reshape(before, shape[axis], after)
    out = source.new_empty(before, out_size, after)
    for start, stop, low, high, weights in blocks:
        part = weights.to(source.device)
        if after == 1:
            torch.mm(source[:, low:high, 0], part.T, out=out[:, start:stop, 0])
            continue
        for index in range(before):
            torch.mm(part, source[index, low:high], out=out[index, start:stop])
    return out.reshape(*shape[:axis], out_size, *shape[axis + 1 :])


def _nearest(
    volume: torch.Tensor, steps: Sequence[float], out_shape: Sequence[int]
) -> torch.Tensor:
    out = volume
    for axis, (step, size) in enumerate(zip(steps, out_shape, strict=True), 1):
        place = np.clip(np.rint(np.arange(size) * step), 0, volume.shape[axis] - 1)
        index = torch.from_numpy(place.astype(np.int64)).to(volume.device)
        out = out.index_select(axis, index)
    return out


def _linear_weights(place: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    low = np.minimum(np.floor(place).astype(int), max(size - 2, 0))
    share = place - low
    weights = np.zeros((len(place), size))
    rows = np.arange(len(place))
    weights[rows, low] = 1 - share
    weights[rows, np.minimum(low + 1, size - 1)] += share
    return weights


def _cubic_weights(place: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    first = np.floor(place).astype(int) - 1
    u = place - first - 1
    parts = (
        (1 - u) ** 3 / 6,
        (3 * u**3 - 6 * u**2 + 4) / 6,
        (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6,
        u**3 / 6,
    )
    weights = np.zeros((len(place), size))
    for offset, part in enumerate(parts):
        np.add.at(weights, (np.arange(len(place)), _mirror(first + offset, size)), part)
    return weights


def _mirror(index: NDArray[np.int_], size: int) -> NDArray[np.int_]:
    period = 2 * (size - 1)
    index = np.abs(index) % period
    return np.where(index >= size, period - index, index)
