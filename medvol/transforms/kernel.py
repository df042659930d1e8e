"""The numba path: coordinates and interpolation in one pass, without a dense grid.

Optional (``pip install medvol[fast]``): without numba, torch samples a dense grid.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: Below this many voxels a thread costs more than it saves.
_VOXELS_PER_THREAD = 200_000
_log = logging.getLogger(__name__)


def is_available() -> bool:
    """Whether numba is installed and can compile here."""
    return _kernels() is not None


def warp_volume(
    volume: NDArray[Any],
    partial: NDArray[np.float32],
    basis: NDArray[np.float32],
    mode: str,
    is_border: bool,
) -> NDArray[Any]:
    """Resample one volume where its coordinates are ``basis @ partial``.

    Args:
        volume: Shape (C, X, Y, Z); any number type for ``nearest``, float32 for ``bilinear``.
        partial: Input index of every output voxel but for the first axis, (K, Y', 3, Z').
        basis: Weights along the first output axis, shape (X', K).
        mode: ``bilinear`` or ``nearest``.
        is_border: Repeat the edge outside the volume; otherwise it is 0 there.

    Returns:
        Shape (C, X', Y', Z'), the dtype of ``volume``.
    """
    kernels = _kernels()
    if kernels is None:
        raise RuntimeError("numba is not installed; ask is_available() first")
    kernel = kernels.linear if mode == "bilinear" else kernels.nearest
    out = np.empty((volume.shape[0], len(basis), partial.shape[1], partial.shape[3]), volume.dtype)
    threads = min(torch.get_num_threads(), max(1, out.size // _VOXELS_PER_THREAD))
    edges = np.linspace(0, len(basis), threads + 1).astype(int)
    if threads == 1:
        kernel(volume, partial, basis, is_border, out, 0, len(basis))
        return out
    with ThreadPoolExecutor(threads) as pool:
        fixed = (volume, partial, basis, is_border, out)
        jobs = [pool.submit(kernel, *fixed, a, b) for a, b in pairwise(edges)]
    for job in jobs:
        job.result()
    return out


@cache
def _kernels() -> ModuleType | None:
    try:
        from medvol.transforms import numba_kernels
    except ImportError:
        return None
    except RuntimeError as error:  # numba found no folder to keep compiled code in
        _log.info("numba cannot be used (%s); augmentation runs in torch", error)
        return None
    return numba_kernels
