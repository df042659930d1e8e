"""Which input sizes a U-Net can take, and how deep it may go: arithmetic before memory is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medvol.core import ConfigError

Ints = tuple[int, ...]


@dataclass(frozen=True)
class PoolingPlan:
    """The shape of a U-Net that suits a patch.

    Attributes:
        strides: One per level; the first is all 1, as MONAI's DynUNet requires.
        kernels: One per level: 3, or 1 along axes that are still too coarse to mix.
        factors: What each axis of an input must be divisible by.
        size: The patch, rounded up to that.
        bottom: Size at the lowest level.
    """

    strides: tuple[Ints, ...]
    kernels: tuple[Ints, ...]
    factors: Ints
    size: Ints
    bottom: Ints


def pooling_plan(
    size: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    min_edge: int = 4,
    max_levels: int = 6,
) -> PoolingPlan:
    """Halve the axes level by level, the finest spacings first, until the patch is used up.

    Args:
        size: Patch asked for.
        spacing_mm: Voxel edges along the same axes.
        min_edge: No axis is halved below this many voxels.
        max_levels: Most levels, the first one included.

    Raises:
        ConfigError: If sizes or spacings are not positive or not equally many.

    Source:
        Isensee et al. 2021, Nat Methods 18:203, doi:10.1038/s41592-020-01008-z, supplement.

    >>> pooling_plan((64, 192, 160), (1.6, 0.79, 0.79)).factors
    (16, 32, 32)
    """
    shape, spacing = [int(n) for n in size], [float(s) for s in spacing_mm]
    if len(shape) != len(spacing) or not shape or min(shape) < 1 or not min(spacing) > 0:
        raise ConfigError(f"size {tuple(size)} and spacing {tuple(spacing_mm)} do not go together")
    axes = range(len(shape))
    kernel = [1] * len(shape)
    strides, kernels = [tuple(kernel)], []
    while len(strides) < max_levels and (halved := _axes_to_halve(shape, spacing, min_edge)):
        kernel = [3 if spacing[a] / min(spacing) < 2 else kernel[a] for a in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if a in halved else 1 for a in axes))
        shape = [-(-shape[a] // strides[-1][a]) for a in axes]
        spacing = [spacing[a] * strides[-1][a] for a in axes]
    kernels.append((3,) * len(shape))
    factors = size_factors(strides)
    whole = legal_size(size, factors)
    bottom = tuple(n // f for n, f in zip(whole, factors, strict=True))
    return PoolingPlan(tuple(strides), tuple(kernels), factors, whole, bottom)


def size_factors(strides: Sequence[Sequence[int] | int], dims: int = 3) -> Ints:
    """What each axis must be divisible by, given the strides of all levels.

    Args:
        strides: One per level, a number for all axes or one per axis.
        dims: Number of axes where every stride is one number.

    >>> size_factors([1, 2, (1, 2, 2)])
    (2, 4, 4)
    """
    wide = [s for s in strides if not isinstance(s, int)]
    count = len(wide[0]) if wide else dims
    full = [(s,) * count if isinstance(s, int) else tuple(s) for s in strides]
    return tuple(math.prod(level[axis] for level in full) for axis in range(count))


def legal_size(size: Sequence[int], factors: Sequence[int]) -> Ints:
    """``size`` rounded up to the next size that the network takes.

    >>> legal_size((35, 51, 40), (8, 8, 8))
    (40, 56, 40)
    """
    return tuple(max(1, -(-int(n) // f)) * f for n, f in zip(size, factors, strict=True))


def _axes_to_halve(shape: list[int], spacing: list[float], min_edge: int) -> list[int]:
    large = [a for a, n in enumerate(shape) if n >= 2 * min_edge]
    if not large:
        return []
    finest = min(spacing[a] for a in large)
    chosen = [a for a in large if spacing[a] / finest < 2]
    # One axis alone is halved only where enough of it remains.
    return [] if len(chosen) == 1 and shape[chosen[0]] < 3 * min_edge else chosen
