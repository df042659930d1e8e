"""Two masks on one grid: validated and cropped to where either has a voxel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvol.core.errors import GeometryError, GridMismatchError, LabelError

Mask = NDArray[np.bool_]
MaskLike = ArrayLike
SpacingMm = Sequence[float]


@dataclass(frozen=True, eq=False)
class MaskPair:
    """A predicted and a reference mask, cropped to the box that holds both.

    Nothing outside the box is foreground, so a voxel on the box's edge has a background
    neighbour there just as it would on the full grid: cropping changes no boundary.

    Attributes:
        pred: Predicted mask, shape (X, Y, Z), or (X, Y) for images.
        ref: Reference mask on the same grid.
        spacing_or_none: Voxel edge lengths along the array axes, if the caller gave them.
        grid_shape: Shape of the whole grid.
    """

    pred: Mask
    ref: Mask
    spacing_or_none: tuple[float, ...] | None
    grid_shape: tuple[int, ...]

    @classmethod
    def of(cls, pred: MaskLike, ref: MaskLike, spacing_mm: SpacingMm | None = None) -> MaskPair:
        """Check two masks and crop them.

        Args:
            pred: Predicted mask; booleans, or numbers that are all 0 or 1.
            ref: Reference mask of the same shape.
            spacing_mm: Voxel edge lengths, one per axis; distances and volumes need them.

        Raises:
            GridMismatchError: If the masks differ in shape.
            LabelError: If an array holds anything but 0 and 1.
            GeometryError: If a spacing is missing for an axis, not positive or not finite.
        """
        pred, ref = as_mask(pred, "pred"), as_mask(ref, "ref")
        check_same_shape(pred, ref)
        spacing = None if spacing_mm is None else check_spacing(spacing_mm, pred.ndim)
        box = joint_box(pred, ref)
        return cls(pred[box], ref[box], spacing, pred.shape)

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel edge lengths.

        Raises:
            GeometryError: If the caller gave none: a guess of 1 mm would be silently wrong.
        """
        if self.spacing_or_none is None:
            raise GeometryError(
                "spacing_mm is needed for distances and volumes; "
                "pass the voxel edge lengths in mm (all 1.0 measures in voxels)"
            )
        return self.spacing_or_none

    @cached_property
    def in_plane(self) -> MaskPair:
        """The pair without an axis along which the grid has one voxel, if two others remain.

        Nothing has a surface across a single slice: with that axis every voxel would be surface.
        """
        single = [axis for axis, length in enumerate(self.grid_shape) if length == 1]
        dropped = set(single[: max(0, len(self.grid_shape) - 2)])
        if not dropped:
            return self
        kept = [axis for axis in range(len(self.grid_shape)) if axis not in dropped]
        shape = tuple(self.pred.shape[axis] for axis in kept)
        spacing = self.spacing_or_none and tuple(self.spacing_or_none[axis] for axis in kept)
        grid = tuple(self.grid_shape[axis] for axis in kept)
        return MaskPair(self.pred.reshape(shape), self.ref.reshape(shape), spacing, grid)

    @cached_property
    def n_pred(self) -> int:
        """Voxels of the prediction."""
        return int(np.count_nonzero(self.pred))

    @cached_property
    def n_ref(self) -> int:
        """Voxels of the reference."""
        return int(np.count_nonzero(self.ref))

    @cached_property
    def n_both(self) -> int:
        """Voxels that prediction and reference share."""
        return int(np.count_nonzero(self.pred & self.ref))

    @cached_property
    def shared(self) -> dict[Any, Any]:
        """What metrics leave for each other, such as distances; keyed by what it is."""
        return {}


def as_mask(mask: MaskLike, name: str) -> Mask:
    """``mask`` as booleans, rejected if it is a label map or a probability map.

    Raises:
        LabelError: If a value is neither 0 nor 1.
    """
    array = np.asarray(mask)
    if array.dtype == np.bool_:
        return array
    foreground = array != 0
    if not np.array_equal(array, foreground):
        raise LabelError(
            f"{name} holds values other than 0 and 1; pass one label at a time ({name} == label), "
            "threshold probabilities, or use surface_report for label maps"
        )
    return foreground


def check_same_shape(pred: NDArray[Any], ref: NDArray[Any]) -> None:
    """Raise unless two arrays have the same shape.

    Raises:
        GridMismatchError: If they differ.
    """
    if pred.shape != ref.shape:
        raise GridMismatchError(
            f"pred has shape {pred.shape} but ref has {ref.shape}; "
            "resample pred onto the reference grid first (medvol.transforms.ResampleToMatchd)"
        )


def check_spacing(spacing_mm: SpacingMm, ndim: int) -> tuple[float, ...]:
    """Spacing as floats, one per axis.

    Raises:
        GeometryError: If the count is wrong or a value is not positive and finite.
    """
    spacing = tuple(float(step) for step in spacing_mm)
    if len(spacing) != ndim:
        raise GeometryError(f"spacing_mm has {len(spacing)} values for masks of {ndim} axes")
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise GeometryError(f"spacing_mm must be positive and finite, not {spacing}")
    return spacing


def joint_box(pred: Mask, ref: Mask) -> tuple[slice, ...]:
    """Smallest box that holds the foreground of both masks; empty slices if there is none."""
    box = []
    for axis in range(pred.ndim):
        others = tuple(a for a in range(pred.ndim) if a != axis)
        hit = np.flatnonzero(pred.any(axis=others) | ref.any(axis=others))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
    return tuple(box)
