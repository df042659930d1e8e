"""PNG, JPEG, TIFF and BMP, alone or as a folder of numbered slices.

A 2D image has no place in the patient: its affine is the identity, X runs along columns and Y
down the rows. Greys keep their stored values (16-bit included), a palette is looked up, alpha is
dropped, EXIF rotation is applied, MONOCHROME1-like TIFFs are turned so that bright is bright.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import GeometryError, InputError, MissingInputError, TooLargeError
from medvol.io import formats
from medvol.io.checks import Scan, check_claim, check_file, check_spacing, shown, to_float32, warn
from medvol.io.image_2d_file import (
    check_png,
    is_wide_colour,
    read_wide_colour,
    require_palette,
    signed_bytes,
    turned,
    untwisted_tiff,
)
from medvol.io.jpeg_stream import require_whole_jpeg

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_GREY = {"1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_COLOUR = {"RGB", "YCbCr", "LAB", "HSV"}
_MINISWHITE = 0
_PHOTOMETRIC = 262
_ORIENTATION = 274


def read_image_2d(path: Path) -> Scan:
    """Read one 2D image as (C, X, Y): one channel for greys, three for colours.

    A colour image whose three channels are equal is a grey one.

    Raises:
        InputError: If the file is not a 2D image, damaged, animated, or of an unsupported kind.
        TooLargeError: If the claimed size exceeds the ceiling.
    """
    pixels = _decode(path)
    rows_first = pixels[..., None] if pixels.ndim == 2 else pixels
    return Scan(np.ascontiguousarray(rows_first.transpose(2, 1, 0)), np.eye(4), path)


def read_stack(folder: Path, spacing_mm: Sequence[float] | None) -> Scan:
    """Read a folder of numbered 2D images as one volume (1, X, Y, Z).

    Slices are ordered by the last number in their names (2 before 10) and follow +Z; X runs along
    columns, Y down the rows.

    Args:
        folder: Holds images of one size and one numbering without gaps.
        spacing_mm: Voxel edge lengths along X, Y, Z; 2D images do not carry them.

    Raises:
        GeometryError: If ``spacing_mm`` is missing or a slice is.
        InputError: If sizes, names or channels differ.
    """
    files = numbered(folder)
    spacing = stack_spacing(folder, spacing_mm)
    slices: list[NDArray[Any]] = []
    for path in files:
        array = read_image_2d(path).array
        if array.shape[0] != 1:
            raise InputError(f"{shown(path)}: is a colour image; a volume needs grey slices")
        if slices and array.shape != slices[0].shape:
            raise InputError(f"{shown(path)}: its size {array.shape[2]}x{array.shape[1]} differs "
                             f"from {shown(files[0])}")  # fmt: skip
        if not slices:
            check_claim(folder, (*array.shape, len(files)))
        slices.append(array)
    return Scan(np.stack(slices, axis=-1), np.diag([*spacing, 1.0]), folder)


def stack_spacing(folder: Path, spacing_mm: Sequence[float] | None) -> NDArray[np.float64]:
    """The spacing that the user states for a folder of numbered images, which carry none.

    Raises:
        GeometryError: If it is missing or impossible.
    """
    if spacing_mm is None:
        count = len(numbered(folder))
        raise GeometryError(f"{shown(folder)}: a folder of {count} images has no spacing; "
                            "pass spacing_mm=(x, y, z)")  # fmt: skip
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,):
        raise GeometryError(f"{shown(folder)}: spacing_mm holds {spacing.size} numbers, wanted 3")
    check_spacing(folder, spacing)
    return spacing


def numbered(folder: Path) -> list[Path]:
    """The images of a folder in the order of the last number in their names.

    Raises:
        GeometryError: If a number is missing.
        InputError: If a number is absent or doubled, or formats are mixed.
    """
    names = [p for p in sorted(folder.iterdir())
             if formats.ends_like(p.name, formats.FLAT) and not p.name.startswith(".")]  # fmt: skip
    if not names:
        raise MissingInputError(f"{shown(folder)}: holds no image that can be read")
    numbers: dict[int, Path] = {}
    for path in names:
        found = re.findall(r"\d+", path.stem)
        if not found:
            raise InputError(f"{shown(path)}: has no slice number in its name")
        number = int(found[-1])
        if number in numbers:
            raise InputError(f"{shown(path)}: is slice number {number}, a duplicate of "
                             f"{shown(numbers[number].name)}")  # fmt: skip
        numbers[number] = path
    suffix, count = Counter(p.suffix.lower() for p in names).most_common(1)[0]
    if count != len(names):
        raise InputError(f"{shown(folder)}: mixes image formats; {count} of {len(names)} are "
                         f"{suffix}")  # fmt: skip
    order = sorted(numbers)
    steps = Counter(b - a for a, b in pairwise(order))
    step = min(steps) if steps else 1
    if missing := [n for n in range(order[0], order[-1], step) if n not in numbers]:
        listed = ", ".join(map(str, missing[:5]))
        raise GeometryError(f"{shown(folder)}: slice {listed} missing: a gap in the numbering "
                            f"{order[0]} to {order[-1]}")  # fmt: skip
    return [numbers[n] for n in order]


def read_size(path: Path) -> tuple[int, int]:
    """(columns, rows) of an image file as it is read, without decoding it.

    Raises:
        InputError: If it is not an image, or of an unsupported kind.
    """
    with _opened(path) as (image, turn):
        columns, rows = image.size
        if image.format == "PNG":
            check_png(path)
        return (rows, columns) if max(turn, _exif_turn(image)) > 4 else (columns, rows)


def _decode(path: Path) -> NDArray[np.float32]:
    with _opened(path) as (image, turn):
        values, exif_turn = _read(path, image, turn)
        return turned(to_float32(path, values), max(turn, exif_turn))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, int]]:
    """An open image whose header is legal, and how its TIFF orientation turns it."""
    from PIL import Image, UnidentifiedImageError

    check_file(path)
    try:
        source, turn = untwisted_tiff(path)
        with _silent():
            opened = Image.open(source, formats=_FORMATS)
        with opened as image:
            with _silent():
                _check_header(path, image)
            yield image, turn
    except UnidentifiedImageError as error:
        raise InputError(f"{shown(path)}: is not a valid image: not a valid PNG, JPEG, TIFF or "
                         "BMP, or of an unsupported kind") from error  # fmt: skip
    except Image.DecompressionBombError as error:
        raise TooLargeError(
            f"{shown(path)}: too large: claims more pixels than the limit"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown(path)}: is truncated or corrupt: {_reason(error)}") from error


def _read(path: Path, opened: Any, turn: int) -> tuple[NDArray[Any], int]:
    """The stored pixels, and the EXIF orientation that is left to apply."""
    with _silent():
        header = check_png(path) if opened.format == "PNG" else None
        is_wide = is_wide_colour(opened, header)
        if not is_wide:
            opened.load()
            require_palette(path, opened, header)
            if opened.format == "JPEG":
                require_whole_jpeg(path, path.read_bytes(), np.asarray(opened))
        exif_turn = _exif_turn(opened)
    if is_wide:
        return _without_alpha(path, read_wide_colour(path, opened, turn)), exif_turn
    return _to_values(path, opened), exif_turn


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pillow quotes file contents; sizes are checked here
        yield


def _exif_turn(opened: Any) -> int:
    value = opened.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_header(path: Path, opened: Any) -> None:
    width, height = opened.size
    check_claim(path, (height, width, len(opened.getbands())))
    if getattr(opened, "n_frames", 1) > 1:
        raise InputError(f"{shown(path)}: holds {opened.n_frames} frames (pages); "
                         "one image per file is wanted")  # fmt: skip


def _to_values(path: Path, opened: Any) -> NDArray[Any]:
    white_is_zero = opened.format == "TIFF" and (
        getattr(opened, "tag_v2", {}).get(_PHOTOMETRIC) == _MINISWHITE
    )
    if opened.mode in ("P", "PA"):
        opened = opened.convert("RGBA" if "transparency" in opened.info else "RGB")
    if opened.mode == "CMYK":
        warn(path, "CMYK colours were converted to RGB without a colour profile")
        opened = opened.convert("RGB")
    if opened.mode in _GREY:
        values = signed_bytes(opened, np.asarray(opened))
        # pillow itself turns 1- and 8-bit MINISWHITE; wider ones come as stored
        if white_is_zero and values.dtype.itemsize > 1:
            values = np.iinfo(np.uint16).max - values.astype(np.int64)
        return values
    if opened.mode in ("LA", "La", "RGBA", "RGBa", "RGBX"):
        return _without_alpha(path, np.asarray(opened))
    if opened.mode not in _COLOUR:
        raise InputError(f"{shown(path)}: pixel mode {opened.mode} is not supported")
    return _without_alpha(path, np.asarray(opened.convert("RGB")))


def _without_alpha(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """Colours (rows, columns, 3) without the last of 2 or 4 channels; greys (rows, columns)."""
    if values.shape[-1] in (2, 4):
        alpha, values = values[..., -1], values[..., :-1]
        if alpha.size and alpha.min() < np.iinfo(alpha.dtype).max:
            warn(path, "the alpha channel was dropped; transparent pixels keep their stored colour")
    return values[..., 0] if (values[..., :1] == values).all() else values


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
