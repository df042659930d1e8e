"""What every reader checks: names fit to print, the memory ceiling, finite voxels."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import GeometryError, InputError, NonFiniteError, TooLargeError

#: Decoded float32 voxels of one image may take this many GiB; MEDVOL_MAX_IMAGE_GIB overrides it.
DEFAULT_CEILING_GIB = 4.0
#: The largest spacing that a scan can plausibly have; beyond it the unit is wrong.
MAX_SPACING_MM = 100.0
MIN_SPACING_MM = 1e-7
_FLOAT32_EXACT = 2**24


class InputWarning(UserWarning):
    """An input was accepted, but its user should know something about it."""


@dataclass(frozen=True)
class Scan:
    """One image as it entered, before it becomes a MetaTensor.

    Attributes:
        array: Voxels, channel first: (C, X, Y, Z), or (C, X, Y) for a 2D image.
        affine: Voxel index to RAS millimetres, shape (4, 4).
        path: What the user named.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    path: Path


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it may appear in a message: control characters cannot forge a log line.

    >>> shown("a\\nERROR\\x1b[2K.nii")
    'a?ERROR?[2K.nii'
    """
    return "".join(c if c.isprintable() else "?" for c in os.fspath(path))


def warn(path: str | os.PathLike[str], text: str) -> None:
    """Tell the user about an accepted input, naming the file, in one line without our source."""
    warnings.warn_explicit(f"{shown(path)}: {text}", InputWarning, "medvol", 1)


def ceiling_bytes() -> int:
    """The most bytes that one decoded float32 image may take."""
    import psutil

    text = os.environ.get("MEDVOL_MAX_IMAGE_GIB", "")
    try:
        wanted = float(text) if text else DEFAULT_CEILING_GIB
    except ValueError as error:
        raise InputError(f"MEDVOL_MAX_IMAGE_GIB={text!r} is not a number") from error
    return int(min(wanted * 2**30, 0.7 * psutil.virtual_memory().available))


def check_claim(path: str | os.PathLike[str], shape: tuple[int, ...]) -> None:
    """Reject a claimed size before anything is decoded.

    Raises:
        TooLargeError: If the image as float32 would exceed the ceiling.
    """
    claimed, ceiling = 4, ceiling_bytes()
    for n in shape:
        claimed *= int(n)
    if claimed > ceiling:
        raise TooLargeError(
            f"{shown(path)}: claims {'x'.join(map(str, shape))} voxels, too large: "
            f"{claimed / 2**30:.3g} GiB as float32 over the limit of {ceiling / 2**30:.3g} GiB "
            "of memory (raise MEDVOL_MAX_IMAGE_GIB if it is meant)"
        )


def check_file(path: Path) -> int:
    """The size in bytes of a regular, non-empty file.

    Raises:
        InputError: If it is a device, a pipe, unreadable, or empty.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    if not path.is_file():
        raise InputError(f"{shown(path)}: is not a regular file")
    if size == 0:
        raise InputError(f"{shown(path)}: is empty (0 bytes)")
    return size


def check_spacing(path: str | os.PathLike[str], spacing_mm: NDArray[np.float64]) -> None:
    """Reject spacings that are missing, not positive, or of a wrong unit.

    Raises:
        GeometryError: Naming the spacing found.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    text = " x ".join(f"{v:.6g}" for v in spacing)
    if not np.isfinite(spacing).all():
        raise GeometryError(f"{shown(path)}: voxel spacing {text} is not finite (NaN or infinite)")
    if spacing.min() < MIN_SPACING_MM:
        raise GeometryError(f"{shown(path)}: voxel spacing {text} mm holds a zero or less")
    if spacing.max() > MAX_SPACING_MM:
        raise GeometryError(f"{shown(path)}: voxel spacing {text} mm is implausible; "
                            "is the unit millimetres?")  # fmt: skip


def number(text: str) -> float:
    """A decimal number of a text header; Python alone would read ``1_0`` as ten.

    Raises:
        ValueError: If it is none.

    >>> number(" -1.5e2 ")
    -150.0
    """
    if "_" in text:
        raise ValueError(f"{text!r} is not a decimal number")
    return float(text)


def to_float32(path: str | os.PathLike[str], array: NDArray[Any]) -> NDArray[np.float32]:
    """Voxels as float32, or an error where that would lose or add something.

    Raises:
        NonFiniteError: If a voxel is NaN or infinite, or overflows float32.
        InputError: If integers above 2**24 would merge with their neighbours.
    """
    if array.dtype == np.float32:
        out = array
    elif array.dtype.kind in "iub":
        if array.dtype.itemsize >= 4 and array.size:
            low, high = int(array.min()), int(array.max())
            if max(high, -low) > _FLOAT32_EXACT:
                raise InputError(f"{shown(path)}: integer values reach {max(high, -low)}, beyond "
                                 "2**24 = 16777216: float32 precision would merge neighbours; "
                                 "rescale the file")  # fmt: skip
        return array.astype(np.float32)
    else:
        with np.errstate(over="ignore"):
            out = array.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        total = out.sum(dtype=np.float64)
    if not np.isfinite(total):
        bad = int(out.size - np.count_nonzero(np.isfinite(out)))
        if bad:
            raise NonFiniteError(f"{shown(path)}: {bad} of {out.size} voxels are non-finite "
                                 "(NaN or infinity)")  # fmt: skip
    return out
