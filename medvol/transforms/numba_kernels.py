"""Compiled loops of ``medvol.transforms.kernel``; importing this module needs numba."""

from __future__ import annotations

import math

import numba
import numpy as np

# Plain argument lists, since compiled code takes no structures. Single-threaded, since numba's
# thread pools do not survive the fork of a data loader.
_compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


@_compiled
def _row(partial, weights, y, row):
    """Coordinates of one output row, (3, Z'): the weighted sum of the partial coordinates."""
    row[:] = 0
    for k in range(weights.shape[0]):
        weight = weights[k]
        if weight != 0:
            for c in range(3):
                for z in range(row.shape[1]):
                    row[c, z] += weight * partial[k, y, c, z]


@_compiled
def _clip(value, end):
    return min(max(value, np.float32(0)), end)


@_compiled
def _corner(volume, i, j, k):
    x, y, z = volume.shape
    if i < 0 or j < 0 or k < 0 or i >= x or j >= y or k >= z:
        return np.float32(0)
    return volume[i, j, k]


@_compiled
def _between(a, b, share):
    return a + (b - a) * share


@_compiled
def _near_edge(volume, a, b, c):
    """Linear interpolation with zeros outside the volume."""
    i, j, k = math.floor(a), math.floor(b), math.floor(c)
    x, y, z = volume.shape
    if i < -1 or j < -1 or k < -1 or i >= x or j >= y or k >= z:
        return np.float32(0)
    u, v, w = a - np.float32(i), b - np.float32(j), c - np.float32(k)
    p = _between(_corner(volume, i, j, k), _corner(volume, i, j, k + 1), w)
    q = _between(_corner(volume, i, j + 1, k), _corner(volume, i, j + 1, k + 1), w)
    r = _between(_corner(volume, i + 1, j, k), _corner(volume, i + 1, j, k + 1), w)
    s = _between(_corner(volume, i + 1, j + 1, k), _corner(volume, i + 1, j + 1, k + 1), w)
    return _between(_between(p, q, v), _between(r, s, v), u)


@_compiled
def linear(volume, partial, basis, is_border, out, first, last):  # noqa: PLR0917
    """Fill the slabs ``first`` to ``last`` of ``out``, shape (C, X', Y', Z'), linearly."""
    size_x, size_y, size_z = volume.shape[1:]
    end_x, end_y, end_z = np.float32(size_x - 1), np.float32(size_y - 1), np.float32(size_z - 1)
    row = np.empty((3, out.shape[3]), np.float32)
    for x in range(first, last):
        for y in range(out.shape[2]):
            _row(partial, basis[x], y, row)
            for z in range(out.shape[3]):
                a, b, c = row[0, z], row[1, z], row[2, z]
                if is_border:
                    a, b, c = _clip(a, end_x), _clip(b, end_y), _clip(c, end_z)
                if a >= 0 and b >= 0 and c >= 0 and a < end_x and b < end_y and c < end_z:
                    i, j, k = np.int32(a), np.int32(b), np.int32(c)
                    u, v, w = a - np.float32(i), b - np.float32(j), c - np.float32(k)
                    for t in range(volume.shape[0]):
                        image = volume[t]
                        p = _between(image[i, j, k], image[i, j, k + 1], w)
                        q = _between(image[i, j + 1, k], image[i, j + 1, k + 1], w)
                        r = _between(image[i + 1, j, k], image[i + 1, j, k + 1], w)
                        s = _between(image[i + 1, j + 1, k], image[i + 1, j + 1, k + 1], w)
                        out[t, x, y, z] = _between(_between(p, q, v), _between(r, s, v), u)
                else:
                    for t in range(volume.shape[0]):
                        out[t, x, y, z] = _near_edge(volume[t], a, b, c)


@_compiled
def nearest(volume, partial, basis, is_border, out, first, last):  # noqa: PLR0917
    """Fill the slabs ``first`` to ``last`` of ``out`` with the nearest voxel."""
    size_x, size_y, size_z = volume.shape[1:]
    end_x, end_y, end_z = np.float32(size_x - 1), np.float32(size_y - 1), np.float32(size_z - 1)
    half = np.float32(0.5)
    row = np.empty((3, out.shape[3]), np.float32)
    for x in range(first, last):
        for y in range(out.shape[2]):
            _row(partial, basis[x], y, row)
            for z in range(out.shape[3]):
                a, b, c = row[0, z], row[1, z], row[2, z]
                if is_border:
                    a, b, c = _clip(a, end_x), _clip(b, end_y), _clip(c, end_z)
                a, b, c = a + half, b + half, c + half
                is_inside = a >= 0 and b >= 0 and c >= 0
                if is_inside and a < size_x and b < size_y and c < size_z:
                    i, j, k = np.int32(a), np.int32(b), np.int32(c)
                    for t in range(volume.shape[0]):
                        out[t, x, y, z] = volume[t, i, j, k]
                else:
                    out[:, x, y, z] = 0
