"""From a layer's grid to the input's: sizes, upsampling, scaling and affines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medvol.core import ConfigError

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resample maps linearly with the two grids' outer edges, not their corner centres, aligned.

    A layer's cell covers ``size / layer size`` input voxels. Aligning the corner centres instead
    moves a cell at the rim by half a cell towards the rim.

    Args:
        maps: Shape (B, 1, ...).
        size: The spatial shape to reach.

    >>> upsample(torch.tensor([[[0.0, 1.0]]]), [4])
    tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    return F.interpolate(maps, tuple(size), mode=_MODES[len(size)], align_corners=False)


def scale_to_unit(maps: Tensor) -> Tensor:
    """Divide each item by its largest value: 0 stays 0 (no evidence), a map of zeros stays so."""
    peak = maps.flatten(1).amax(1).view(-1, *[1] * (maps.ndim - 1))
    return torch.where(peak > 0, maps / peak.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def layer_affine(affine: ArrayLike, size: Sequence[int], layer_size: Sequence[int]) -> NDArray:
    """Affine of a layer's grid that covers the same field of view as the input's grid.

    Args:
        affine: 4x4, from the input's voxel index to world.
        size: Spatial shape of the input.
        layer_size: Spatial shape of the layer's map.

    >>> layer_affine(np.eye(4), (8, 8, 8), (2, 4, 8))[:3, 3]
    array([1.5, 0.5, 0. ])
    """
    step = np.ones(3)
    step[: len(size)] = np.asarray(size, float) / np.asarray(layer_size, float)
    to_input = np.diag([*step, 1.0])
    to_input[:3, 3] = (step - 1) / 2
    return np.asarray(affine, np.float64) @ to_input


def as_spatial(values: Tensor, size: Sequence[int]) -> Tensor:
    """A layer's values as (B, C, ...): tokens of a transformer, (B, N, C), are put on their grid.

    Args:
        values: Shape (B, C, ...) or, for tokens, (B, N, C) with or without one class token first.
        size: Spatial shape of the network's input.
    """
    if values.ndim == len(size) + 2:
        return values
    if values.ndim != 3:
        raise ConfigError(
            f"a layer's output of shape {tuple(values.shape)} has no {len(size)}D grid; "
            "name a layer before the pooling"
        )
    grid, extra = token_grid(values.shape[1], size)
    tokens = values[:, extra:].transpose(1, 2)
    return tokens.reshape(len(values), -1, *grid)


def token_grid(tokens: int, size: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The patch grid behind a number of tokens, and how many class tokens lead it.

    >>> token_grid(197, (224, 224))
    ((14, 14), 1)
    """
    for extra in (0, 1):
        if tokens <= extra:
            continue
        edge = (math.prod(size) / (tokens - extra)) ** (1 / len(size))
        grid = tuple(round(n / edge) for n in size)
        if math.prod(grid) == tokens - extra and all(
            n % g == 0 for n, g in zip(size, grid, strict=True) if g
        ):
            return grid, extra
    raise ConfigError(
        f"{tokens} tokens are not a grid of equal patches over an input of {tuple(size)}"
    )
