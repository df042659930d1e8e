"""The checks of an image and its label map: one grid, and values inside the class list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import GridMismatchError, LabelError
from medvol.core.geometry import SAME_GRID_MM, Geometry
from medvol.io.checks import Scan, shown
from medvol.io.image import ReadOptions, read_scan, to_metatensor

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor

#: A stored label may differ from a whole number by this much (resampled, scaled or 0.99999).
WHOLE_TOLERANCE = 1e-3


def read_pair(
    image: str | os.PathLike[str],
    label: str | os.PathLike[str],
    labels: Mapping[int, str] | Iterable[int],
    *,
    options: ReadOptions | None = None,
) -> tuple[MetaTensor, MetaTensor]:
    """Read an image and its label map and check the pair.

    A label map stored in another voxel order (mirrored or permuted axes) of the same grid is
    brought into the image's order; nothing is resampled.

    Args:
        image: What :func:`read_image` reads.
        label: Likewise, one channel.
        labels: Value to name of every class; 0 is background whether listed or not.
        options: Answers to what the image leaves open.

    Returns:
        Image and label map with one shape and one affine; label values are whole numbers.

    Raises:
        GridMismatchError: If the two do not lie on one grid within 1e-3 mm.
        LabelError: If the label map holds a value that is not a whole number or not a class.
    """
    first = read_scan(image, options)
    second = read_label(label, labels, reference=first, options=options)
    return to_metatensor(first), to_metatensor(second)


def read_label(
    label: str | os.PathLike[str],
    labels: Mapping[int, str] | Iterable[int],
    *,
    reference: Scan,
    options: ReadOptions | None = None,
) -> Scan:
    """Read a label map onto the grid of ``reference``, rejecting what is not one.

    Raises:
        GridMismatchError: If it lies on another grid.
        LabelError: If a value is not a whole number or not a class.
    """
    scan = read_scan(label, options)
    if scan.array.shape[0] != 1:
        raise LabelError(f"{shown(label)}: a label map has one channel, this has "
                         f"{scan.array.shape[0]}")  # fmt: skip
    known = {0} | {int(value) for value in labels}
    values = _whole(scan.path, scan.array)
    _require_classes(scan.path, values, known)
    return onto_grid(reference, Scan(values, scan.affine, scan.path))


def _whole(path: Path, array: NDArray[Any]) -> NDArray[np.float32]:
    rounded = np.rint(array)
    off = np.abs(array - rounded)
    if off.size and off.max() > WHOLE_TOLERANCE:
        worst = float(array.flat[int(off.argmax())])
        raise LabelError(f"{shown(path)}: label value {worst:.6g} is not an integer; a label map "
                         "holds whole class numbers")  # fmt: skip
    return rounded


def _require_classes(path: Path, values: NDArray[Any], known: set[int]) -> None:
    if strange := [int(v) for v in np.unique(values) if int(v) not in known]:
        listed = ", ".join(map(str, strange[:6])) + (" ..." if len(strange) > 6 else "")
        raise LabelError(f"{shown(path)}: label value {listed} is not in the class list "
                         f"{sorted(known)}")  # fmt: skip


def onto_grid(reference: Scan, label: Scan) -> Scan:
    """The label map in the voxel order of the reference, if both name the same grid.

    Raises:
        GridMismatchError: If they do not.
    """
    what = f"{shown(label.path)} and {shown(reference.path)}"
    wanted = reference.array.shape[1:]
    if len(wanted) != 3 or len(label.array.shape) != 4:
        if label.array.shape[1:] != wanted:
            raise GridMismatchError(f"{what}: shapes differ, {label.array.shape[1:]} and {wanted}")
        return label
    to_reference = np.linalg.inv(reference.affine) @ label.affine
    axes = np.abs(to_reference[:3, :3]).argmax(axis=0)
    if sorted(axes) == [0, 1, 2]:
        label = _reordered(label, axes, to_reference[axes, [0, 1, 2]] < 0)
    if label.array.shape[1:] != wanted:
        raise GridMismatchError(f"{what}: shape (size) of label {label.array.shape[1:]} and "
                                f"image {wanted} differ")  # fmt: skip
    try:
        Geometry(wanted, label.affine).require_same(Geometry(wanted, reference.affine), what)
    except GridMismatchError as error:
        raise GridMismatchError(f"{error}: their affines (geometry) differ by more than "
                                f"{SAME_GRID_MM:g} mm; spacing, orientation or position is "
                                "another") from error  # fmt: skip
    return Scan(label.array, reference.affine, label.path)


def _reordered(label: Scan, axes: NDArray[Any], mirrored: NDArray[np.bool_]) -> Scan:
    """Flip the mirrored array axes, then move array axis ``a`` to place ``axes[a]``."""
    array, affine = label.array, label.affine.copy()
    for axis in np.flatnonzero(mirrored).tolist():
        array = np.flip(array, axis + 1)
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis + 1] - 1)
        affine[:3, axis] *= -1
    order = np.argsort(axes)
    array = array.transpose(0, *(order + 1))
    affine[:, :3] = affine[:, order]
    return Scan(np.ascontiguousarray(array), affine, label.path)
