"""Where a scan's grid lies in the network's grid, and how values are brought back along it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.geometry import Geometry
from medvol.transforms.separable import gaussian_matrix, shrinking_sigma

#: How far beyond its outer face a grid still counts as seen, in its own voxels.
FACE = 0.5 + 1e-3
_SMALLEST_WEIGHT = 1e-9


@dataclass(frozen=True)
class Inverse:
    """How a scan was brought to the network's grid, as far as the way back needs it.

    Attributes:
        anti_alias: Low-pass where source voxels are the larger ones.
        nearest_axis: Network axis across which slices are repeated instead of interpolated.
    """

    anti_alias: bool = False
    nearest_axis: int | None = None

    @classmethod
    def of(cls, image: Any) -> Inverse:
        """What the transforms of a MetaTensor recorded of themselves."""
        found: dict[str, Any] = {}
        for operation in getattr(image, "applied_operations", ()):
            found |= operation.get("extra_info", {}).get("inverse", {})
        return cls(**found)


@dataclass(frozen=True)
class GridMap:
    """How a source grid lies in the network's grid, where their axes are parallel.

    Attributes:
        axes: For each network axis the source axis that runs along it.
        scale: Network voxels per source voxel, negative where the axes run against each other.
        offset: Network coordinate of source voxel 0.
        size: Shape of the source grid, in source order.
        network_size: Shape of the network's grid.
        inverse: How values are brought back.
    """

    axes: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    size: tuple[int, int, int]
    network_size: tuple[int, int, int]
    inverse: Inverse = field(default_factory=Inverse)

    @classmethod
    def between(
        cls, network: Geometry, source: Geometry, inverse: Inverse | None = None
    ) -> GridMap | None:
        """The map from ``source`` to ``network``, or None if their axes are not parallel."""
        step = np.linalg.inv(network.affine) @ source.affine
        axes = np.abs(step[:3, :3]).argmax(axis=1)
        scale = step[np.arange(3), axes]
        rest = step[:3, :3].copy()
        rest[np.arange(3), axes] = 0
        drift = np.abs(rest) @ np.asarray(source.shape)  # network voxels, over the whole volume
        if sorted(axes) != [0, 1, 2] or drift.max() > 1e-3:
            return None
        return cls(
            _three(axes, int), _three(scale, float), _three(step[:3, 3], float),
            _three(source.shape, int), _three(network.shape, int), inverse or Inverse(),
        )  # fmt: skip

    def places(self, axis: int) -> NDArray[np.floating]:
        """Network coordinate of every source plane along network ``axis``."""
        return self.offset[axis] + np.arange(self.size[self.axes[axis]]) * self.scale[axis]

    def seen(self, axis: int) -> NDArray[np.bool_]:
        """Which source planes lie inside the outer faces of the network's grid."""
        places = self.places(axis)
        return (places >= -FACE) & (places <= self.network_size[axis] - 1 + FACE)

    def weights(self, axis: int) -> NDArray[np.floating] | None:
        """Share of each network plane in each source plane along network ``axis``.

        Inside the network's grid rows sum to 1, edges repeated; outside they are 0. None if the
        planes are the same.
        """
        size, step = self.network_size[axis], abs(self.scale[axis])
        places = np.clip(self.places(axis), 0, size - 1)
        matrix = np.zeros((len(places), size))
        rows = np.arange(len(places))
        if axis == self.inverse.nearest_axis:
            matrix[rows, np.floor(places + 0.5).astype(int)] = 1
        else:
            low = np.minimum(np.floor(places).astype(int), max(size - 2, 0))
            share = places - low
            np.add.at(matrix, (rows, low), 1 - share)
            np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)), share)
            if self.inverse.anti_alias and step > 1 and size > 1:
                matrix = matrix @ gaussian_matrix(size, shrinking_sigma(step))
        matrix[np.abs(matrix) < _SMALLEST_WEIGHT] = 0
        matrix[~self.seen(axis)] = 0
        if matrix.shape == (size, size) and np.allclose(matrix, np.eye(size), atol=1e-5):
            return None
        return matrix


def _three(values: Any, kind: type) -> Any:
    """Exactly three values as a tuple."""
    first, second, third = values
    return kind(first), kind(second), kind(third)
