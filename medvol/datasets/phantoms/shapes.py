"""Solids with closed-form volumes, and the grid that they are drawn on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import ConfigError
from medvol.core.geometry import Geometry

Array = NDArray[np.floating]


class Shape(Protocol):
    """A solid in world space (RAS, mm)."""

    @property
    def volume_mm3(self) -> float: ...
    def distance_mm(self, points: Array) -> Array: ...
    def bounds_mm(self) -> tuple[Array, Array]: ...
    def scaled(self, factor: float, shift_mm: Array) -> Shape: ...


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid whose half-axes lie along the columns of ``axes``."""

    center_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    turn_deg: float = 0.0  # about the superior axis

    @property
    def volume_mm3(self) -> float:
        """4/3 pi a b c."""
        return 4.0 / 3.0 * math.pi * math.prod(self.radii_mm)

    def distance_mm(self, points: Array) -> Array:
        """Signed distance to the surface to first order, exact in sign; below 0 is inside.

        Args:
            points: World positions, shape (..., 3).
        """
        local = (points - np.asarray(self.center_mm)) @ _turn(self.turn_deg)
        radii = np.asarray(self.radii_mm)
        level = np.linalg.norm(local / radii, axis=-1)
        slope = np.linalg.norm(local / radii**2, axis=-1)
        return level * (level - 1.0) / np.maximum(slope, 1e-9) - (level == 0) * radii.min()

    def bounds_mm(self) -> tuple[Array, Array]:
        """Lowest and highest corner of a box that holds the solid."""
        half = np.sqrt((_turn(self.turn_deg) ** 2) @ np.square(self.radii_mm))
        return np.asarray(self.center_mm) - half, np.asarray(self.center_mm) + half

    def scaled(self, factor: float, shift_mm: Array) -> Ellipsoid:
        """The solid scaled about the origin, then moved."""
        center = _triple(np.asarray(self.center_mm) * factor + shift_mm)
        return Ellipsoid(center, _triple(np.asarray(self.radii_mm) * factor), self.turn_deg)


@dataclass(frozen=True)
class Cylinder:
    """An upright elliptic cylinder, ``half_height_mm`` above and below its centre."""

    center_mm: tuple[float, float, float]
    radii_mm: tuple[float, float]
    half_height_mm: float

    @property
    def volume_mm3(self) -> float:
        """pi a b h."""
        return 2.0 * math.pi * math.prod(self.radii_mm) * self.half_height_mm

    def distance_mm(self, points: Array) -> Array:
        """Signed distance to first order, exact in sign; below 0 is inside."""
        local = points - np.asarray(self.center_mm)
        radii = np.asarray(self.radii_mm)
        level = np.linalg.norm(local[..., :2] / radii, axis=-1)
        slope = np.linalg.norm(local[..., :2] / radii**2, axis=-1)
        side = level * (level - 1.0) / np.maximum(slope, 1e-9) - (level == 0) * radii.min()
        return np.maximum(side, np.abs(local[..., 2]) - self.half_height_mm)

    def bounds_mm(self) -> tuple[Array, Array]:
        """Lowest and highest corner of a box that holds the solid."""
        half = np.asarray([*self.radii_mm, self.half_height_mm])
        return np.asarray(self.center_mm) - half, np.asarray(self.center_mm) + half

    def scaled(self, factor: float, shift_mm: Array) -> Cylinder:
        """The solid scaled about the origin, then moved."""
        center = _triple(np.asarray(self.center_mm) * factor + shift_mm)
        radii = (self.radii_mm[0] * factor, self.radii_mm[1] * factor)
        return Cylinder(center, radii, self.half_height_mm * factor)


@dataclass(frozen=True)
class Grid:
    """Where the voxels lie: shape (X, Y, Z) and the affine from index to RAS mm."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        shape: tuple[int, int, int],
        spacing_mm: tuple[float, float, float],
        affine: NDArray[np.float64] | None = None,
    ) -> Grid:
        """A grid from its affine, or axis-aligned and centred on the origin."""
        if affine is None:
            if min(spacing_mm) <= 0:
                raise ConfigError(f"spacing_mm {spacing_mm} must be above 0")
            affine = np.diag([*spacing_mm, 1.0])
            affine[:3, 3] = -np.asarray(spacing_mm) * (np.asarray(shape) - 1) / 2
        return cls(shape, Geometry(shape, np.asarray(affine, float)).affine)

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths along X, Y, Z."""
        return Geometry(self.shape, self.affine).spacing_mm

    @property
    def center_mm(self) -> Array:
        """World position of the middle of the field of view."""
        return self.affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2) + self.affine[:3, 3]

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def fit(self, half_extent_mm: tuple[float, float, float]) -> float:
        """Largest factor by which a centred box may be scaled and stay inside the grid."""
        signs = np.stack(np.meshgrid(*[(-1, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
        corners = (signs * np.asarray(half_extent_mm)) @ np.linalg.inv(self.affine[:3, :3]).T
        return float((np.asarray(self.shape) / 2 / np.abs(corners).max(axis=0)).min())

    def points(self, box: tuple[slice, slice, slice]) -> Array:
        """World positions of the voxel centres of a box, shape (x, y, z, 3)."""
        x, y, z = (np.arange(part.start, part.stop)[:, None] for part in box)
        a = self.affine[:3, :3].T
        return (
            (x * a[0])[:, None, None]
            + (y * a[1])[None, :, None]
            + (z * a[2])[None, None, :]
            + self.affine[:3, 3]
        )

    def box_of(self, shape: Shape, margin: int = 2) -> tuple[slice, slice, slice]:
        """The smallest box of voxels that holds a solid, with a margin, cut at the edge."""
        low, high = shape.bounds_mm()
        picks = np.stack(np.meshgrid(*[(0, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
        corners = np.where(picks == 0, low, high) - self.affine[:3, 3]
        index = corners @ np.linalg.inv(self.affine[:3, :3]).T
        first = np.clip(np.floor(index.min(axis=0)).astype(int) - margin, 0, self.shape)
        last = np.clip(np.ceil(index.max(axis=0)).astype(int) + margin + 1, 0, self.shape)
        return tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))  # pyright: ignore[reportReturnType]

    def occupancy(self, shape: Shape) -> tuple[tuple[slice, slice, slice], Array]:
        """The box of a solid and how much of each voxel in it the solid fills, 0 to 1.

        A voxel centre on the surface is half filled; the edge is as wide as a voxel.
        """
        box = self.box_of(shape)
        width = float(np.mean(self.spacing_mm))
        return box, np.clip(0.5 - shape.distance_mm(self.points(box)) / width, 0.0, 1.0)


@dataclass(frozen=True)
class Marker:
    """A bright block planted in a corner: a shortcut that a classifier can be caught using.

    Attributes:
        size: Edge length in voxels.
        value: Intensity of the block.
        corner: 0 for the low, 1 for the high end of each axis.
    """

    size: int = 6
    value: float = 1000.0
    corner: tuple[int, ...] = (0, 0, 0)

    def plant(self, image: Array) -> NDArray[np.bool_]:
        """Write the block into ``image`` in place and return its mask."""
        mask = np.zeros(image.shape, bool)
        mask[
            tuple(
                slice(0, self.size) if end == 0 else slice(-self.size, None)
                for end in self.corner[: image.ndim]
            )
        ] = True
        image[mask] = self.value
        return mask


@dataclass(frozen=True)
class Phantom:
    """A procedural patient.

    Attributes:
        image: float32, (X, Y, Z); (C, X, Y, Z) with several channels; (X, Y) in 2D.
        label: uint8, (X, Y, Z) or (X, Y).
        affine: 4x4, index to RAS mm.
        labels: Label value to name.
        volumes_ml: Closed-form volume by label name, without the parts that other labels cover.
            For 2D phantoms areas in square millimetres, see ``areas_mm2``.
        marker: Mask of the planted marker, None where none was asked for.
        category: Class name where the phantom belongs to one.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    labels: dict[int, str]
    volumes_ml: dict[str, float]
    marker: NDArray[np.bool_] | None = None
    category: str | None = None
    areas_mm2: dict[str, float] = field(default_factory=dict)


def oblique_affine(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    angles_deg: tuple[float, float, float],
    center_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    flips: tuple[int, int, int] = (1, 1, 1),
) -> NDArray[np.float64]:
    """An affine turned about the three patient axes, its field of view centred at a point."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(angles_deg)):
        turn = np.eye(3)
        a, b = [other for other in range(3) if other != axis]
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    affine = np.eye(4)
    affine[:3, :3] = matrix @ np.diag(np.asarray(spacing_mm) * flips)
    affine[:3, 3] = np.asarray(center_mm) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float
) -> NDArray[np.float32]:
    """Gaussian noise of unit variance, correlated over ``sigma`` voxels."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
    return (noise / max(float(noise.std()), 1e-6)).astype(np.float32)


def _turn(angle_deg: float) -> Array:
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return np.asarray([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _triple(values: Array) -> tuple[float, float, float]:
    return (float(values[0]), float(values[1]), float(values[2]))
