"""How far an image may be moved, and one random move within those ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medvol.core import ConfigError, PatientAxis, array_axis
from medvol.transforms.grid import FOLD_FREE_SHARE, Warp, control_shape, local_frame

Range = float | Sequence[float]


@dataclass(frozen=True)
class SpatialRanges:
    """Ranges of one random move; every length is in millimetres along the array's own axes.

    Attributes:
        rotate: Largest angle in radians, one number or one per plane.
        scale: Largest relative change of size; one number for one factor, a sequence for one
            factor per axis.
        shear: Largest tangent of shear.
        translate_mm: Largest shift, one number or one per axis.
        flip_axes: Patient axes that may be mirrored.
        flip_prob: Probability of each mirror.
        max_tilt_deg: Images tilted further than this are not mirrored.
        elastic_mm: Smallest and largest displacement of a control point.
        elastic_spacing_mm: Distance between control points.
        elastic_prob: Probability of an elastic deformation.
    """

    rotate: Range = 0.3
    scale: Range = 0.2
    shear: float = 0.0
    translate_mm: Range = 0.0
    flip_axes: tuple[PatientAxis, ...] = ()
    flip_prob: float = 0.5
    max_tilt_deg: float = 0.0
    elastic_mm: tuple[float, float] = (0.0, 6.0)
    elastic_spacing_mm: float = 32.0
    elastic_prob: float = 1.0

    def __post_init__(self) -> None:
        if np.max(np.abs(self.scale)) >= 1:
            raise ConfigError(f"scale_range {self.scale} would shrink the image to nothing")
        if not 0 <= self.elastic_mm[0] <= self.elastic_mm[1]:
            raise ConfigError(
                f"elastic_magnitude_mm {self.elastic_mm} does not run from low to high"
            )
        if self.elastic_spacing_mm <= 0:
            raise ConfigError(f"elastic_spacing_mm {self.elastic_spacing_mm:g} is not positive")

    def draw(
        self,
        random: np.random.RandomState,
        start: Sequence[int],
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        affine: NDArray[np.floating],
    ) -> tuple[Warp, bool]:
        """One random map about the middle of the output.

        Args:
            random: Source of every draw.
            start: Input voxel of the output's first voxel, before the move.
            in_shape: Spatial shape of the input.
            out_shape: Spatial shape of the output.
            affine: Input index to RAS millimetres.

        Returns:
            The map, and whether left and right changed sides.
        """
        n = len(in_shape)
        frame = local_frame(affine, n)
        linear, mirrored = self._linear(random, n, affine)
        if not np.array_equal(np.abs(linear), np.eye(n)):
            linear = np.linalg.solve(frame, linear @ frame)
        shift = np.linalg.solve(frame, _symmetric(random, self.translate_mm, n))
        control, step = self._control(random, out_shape, frame)
        matrix = about(linear, start, out_shape, shift)
        return Warp(matrix, in_shape, out_shape, control, step), mirrored

    def _linear(
        self, random: np.random.RandomState, n: int, affine: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], bool]:
        """Map from output to input millimetres; exactly the identity when nothing is asked."""
        linear = np.eye(n)
        planes = list(combinations(range(n), 2))[::-1]
        for (a, b), angle in zip(planes, _symmetric(random, self.rotate, len(planes)), strict=True):
            turn = np.eye(n)
            turn[a, a] = turn[b, b] = math.cos(angle)
            turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
            linear = linear @ turn
        if self.shear:
            shear = _symmetric(random, self.shear, n * n).reshape(n, n)
            linear = linear @ (np.eye(n) + shear * (1 - np.eye(n)))
        size = n if isinstance(self.scale, Sequence) else 1
        linear = linear / (1 + _symmetric(random, self.scale, size))
        mirrored = False
        for axis in self.flip_axes:
            place = array_axis(affine, n, axis, self.max_tilt_deg)
            if random.rand() < self.flip_prob and place is not None:
                linear[:, place] *= -1
                mirrored ^= axis == "left-right"
        return linear, mirrored

    def _control(
        self, random: np.random.RandomState, out_shape: tuple[int, ...], frame: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating] | None, tuple[float, ...]]:
        n, (low, high) = len(out_shape), self.elastic_mm
        bound = FOLD_FREE_SHARE[n] * self.elastic_spacing_mm
        if self.elastic_prob > 0 and high > bound:
            raise ConfigError(
                f"elastic_magnitude_mm {high:g} could fold: with elastic_spacing_mm "
                f"{self.elastic_spacing_mm:g} it must stay under {bound:.3g} in {n}D"
            )
        if high <= 0 or random.rand() >= self.elastic_prob:
            return None, ()
        step = tuple(float(self.elastic_spacing_mm / s) for s in np.linalg.norm(frame, axis=0))
        size = (n, *control_shape(out_shape, step))
        control = random.uniform(-1, 1, size) * random.uniform(low, high)
        return np.tensordot(np.linalg.inv(frame), control, 1), step


def about(
    linear: NDArray[np.floating],
    start: Sequence[int],
    out_shape: Sequence[int],
    shift: NDArray[np.floating] | float = 0.0,
) -> NDArray[np.floating]:
    """Homogeneous output-to-input map that turns about the middle of a box of the input."""
    n = len(out_shape)
    centre = (np.asarray(out_shape) - 1) / 2
    matrix = np.eye(n + 1)
    matrix[:n, :n] = linear
    matrix[:n, n] = np.asarray(start) + centre - linear @ centre - shift
    return matrix


def _symmetric(random: np.random.RandomState, bound: Range, size: int) -> NDArray[np.floating]:
    bounds = np.asarray(bound, np.float64)
    if bounds.ndim and bounds.shape != (size,):
        raise ConfigError(f"expected one range or {size}, found {list(bounds)}")
    if not bounds.any():
        return np.zeros(size)
    return random.uniform(-1, 1, size) * bounds
