"""Where voxels lie in the patient: affines in RAS millimetres, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import GeometryError, GridMismatchError

#: DICOM and ITK speak LPS, medvol speaks RAS: the first two world axes change sign.
LPS_TO_RAS: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])

#: Two grids are the same when no voxel corner moves by more than this.
SAME_GRID_MM = 1e-3
_CODES = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in the patient: shape and a 4x4 affine from voxel index to RAS millimetres.

    An object that exists is valid: the affine is finite, invertible and its last row is
    ``0 0 0 1``, and every spacing is positive.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        object.__setattr__(self, "affine", affine)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError("the affine is not a finite 4x4 matrix")
        if not np.array_equal(affine[3], (0.0, 0.0, 0.0, 1.0)):
            raise GeometryError(f"the affine's last row is {affine[3].tolist()}, not 0 0 0 1")
        if min(self.shape) < 1:
            raise GeometryError(f"the shape {self.shape} holds an empty axis")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
            raise GeometryError("the affine is singular: two voxel axes point the same way")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each array axis."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))  # pyright: ignore[reportReturnType]

    @property
    def directions(self) -> NDArray[np.float64]:
        """Unit vectors of the array axes in RAS, one per column, shape (3, 3)."""
        return self.affine[:3, :3] / np.asarray(self.spacing_mm)

    @property
    def axis_codes(self) -> str:
        """The closest patient direction of each array axis, for example ``RAS`` or ``LPI``."""
        codes, free = [""] * 3, [0, 1, 2]
        strength = np.abs(self.directions)
        for axis in np.argsort(-strength.max(axis=0), kind="stable"):
            world = max(free, key=lambda row: strength[row, axis])
            free.remove(world)
            codes[axis] = _CODES[world][int(self.directions[world, axis] > 0)]
        return "".join(codes)

    @property
    def obliqueness_deg(self) -> float:
        """Largest angle between an array axis and its closest patient axis, in degrees."""
        nearest = np.clip(np.abs(self.directions).max(axis=0), 0.0, 1.0)
        return float(np.degrees(np.arccos(nearest.min())))

    @property
    def shear_deg(self) -> float:
        """How far the array axes are from perpendicular, in degrees; a tilted gantry shows here."""
        d = self.directions
        cosines = np.abs([d[:, 0] @ d[:, 1], d[:, 0] @ d[:, 2], d[:, 1] @ d[:, 2]])
        return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0.0, 1.0))))

    @property
    def is_left_handed(self) -> bool:
        """Whether the axes (X, Y, Z) form a left-handed system in RAS."""
        return bool(np.linalg.det(self.affine[:3, :3]) < 0)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """How far the voxels reach along left-right, back-front and foot-head."""
        return tuple(float(n) for n in np.abs(self.affine[:3, :3]) @ self.shape)  # pyright: ignore[reportReturnType]

    def corners_mm(self) -> NDArray[np.float64]:
        """World positions of the eight outermost voxel centres, shape (8, 3)."""
        return _corners(self.shape) @ self.affine[:3].T

    def distance_mm(self, other: Geometry) -> float:
        """Largest distance between corresponding corners; ``inf`` if the shapes differ."""
        if tuple(self.shape) != tuple(other.shape):
            return float("inf")
        return grid_distance_mm(self.shape, self.affine, other.affine)

    def require_same(self, other: Geometry, what: str, tolerance_mm: float = SAME_GRID_MM) -> None:
        """Raise unless ``other`` is this grid; ``what`` names the two in the message.

        Raises:
            GridMismatchError: If shapes differ or a corner lies further off than the tolerance.
        """
        if tuple(self.shape) != tuple(other.shape):
            raise GridMismatchError(f"{what}: shapes differ, {self.shape} and {other.shape}")
        if (gap := self.distance_mm(other)) > tolerance_mm:
            raise GridMismatchError(f"{what}: the grids lie {gap:.4g} mm apart")


def grid_distance_mm(shape: Sequence[int], affine: ArrayLike, other: ArrayLike) -> float:
    """How far two affines place the voxels of one array apart: the largest distance of a corner.

    Args:
        shape: Voxels along each axis; axes that are absent count as one voxel.
        affine: From voxel index to millimetres, 4x4.
        other: Likewise.
    """
    apart = np.asarray(affine, np.float64)[:3] - np.asarray(other, np.float64)[:3]
    return float(np.linalg.norm(_corners(shape) @ apart.T, axis=1).max())


def _corners(shape: Sequence[int]) -> NDArray[np.float64]:
    """Homogeneous indices of the outermost voxels, shape (8, 4)."""
    far = (*(int(n) - 1 for n in shape), 0, 0)[:3]
    index = np.stack(np.meshgrid(*[(0, n) for n in far], [1], indexing="ij"), -1)
    return index.reshape(-1, 4).astype(np.float64)


def affine_from_lps(affine_lps: ArrayLike) -> NDArray[np.float64]:
    """Convert a 4x4 voxel-to-LPS affine (DICOM, ITK) to voxel-to-RAS, or the reverse."""
    return LPS_TO_RAS @ np.asarray(affine_lps, dtype=np.float64)
