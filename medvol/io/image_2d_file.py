"""What pillow would lose or turn wrongly: chunk lengths of PNG, 16-bit colours, turned TIFFs."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import InputError
from medvol.io.checks import shown

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_COLOUR_MODES = frozenset({"LA", "La", "RGB", "RGBA", "RGBa", "RGBX"})
#: Start row, row step, start column, column step of PNG's seven interlaced passes.
_ADAM7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2),
          (1, 2, 0, 1))  # fmt: skip
_BITS, _ORIENTATION, _PLANAR, _SAMPLE_FORMAT = 258, 274, 284, 339


@dataclass(frozen=True)
class PngHeader:
    """IHDR, and how many colours the palette has."""

    width: int
    height: int
    depth: int
    colour: int
    is_interlaced: bool
    n_palette: int = 0

    @property
    def n_bytes(self) -> int:
        """Length of the unfiltered pixel stream: a filter byte and the pixels of every row."""
        bits = self.depth * _SAMPLES.get(self.colour, 4)
        passes = _ADAM7 if self.is_interlaced else ((0, 1, 0, 1),)
        total = 0
        for row, row_step, column, column_step in passes:
            rows = -(-(self.height - row) // row_step)
            columns = -(-(self.width - column) // column_step)
            total += max(rows, 0) * (1 + (columns * bits + 7) // 8) if columns > 0 else 0
        return total


def check_png(path: Path) -> PngHeader:
    """Compare the checksum of every chunk and the length of the pixels with the header.

    pillow leaves the checksum of the pixels unread and fills a short stream with zeros.

    Raises:
        InputError: If a checksum or the length is wrong, or the end is missing.
    """
    data = memoryview(path.read_bytes())
    header, position = _header(path, data), 8
    pixels = _Pixels(path, header.n_bytes)
    n_palette = 0
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        end = position + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise InputError(f"{shown(path)}: is corrupt: a checksum (CRC) does not match")
        kind = bytes(data[position + 4 : position + 8])
        if kind == b"IDAT":
            pixels.feed(data[position + 8 : end - 4])
        elif kind == b"PLTE":
            n_palette = length // 3
        elif kind == b"IEND":
            pixels.require_whole()
            return PngHeader(**{**vars(header), "n_palette": n_palette})
        position = end
    raise InputError(f"{shown(path)}: is truncated or corrupt: its last chunk is missing")


def _header(path: Path, data: memoryview) -> PngHeader:
    if len(data) < 33 or bytes(data[12:16]) != b"IHDR":
        raise InputError(f"{shown(path)}: is truncated or corrupt: no PNG header")
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    return PngHeader(width, height, depth, colour, bool(interlace))


class _Pixels:
    """Counts inflated bytes without keeping them."""

    def __init__(self, path: Path, wanted: int) -> None:
        self._path, self._wanted, self._found = path, wanted, 0
        self._inflate = zlib.decompressobj()

    def feed(self, chunk: memoryview) -> None:
        pending: bytes | memoryview = chunk
        try:
            while pending and self._found <= self._wanted:
                self._found += len(self._inflate.decompress(pending, 1 << 20))
                pending = self._inflate.unconsumed_tail
        except zlib.error as error:
            raise InputError(f"{shown(self._path)}: is corrupt: its pixels do not inflate: "
                             f"{error}") from error  # fmt: skip

    def require_whole(self) -> None:
        if self._found != self._wanted:
            is_short = self._found < self._wanted
            what, found = ("truncated", self._found) if is_short else ("corrupt", "more")
            raise InputError(f"{shown(self._path)}: is {what}: expected {self._wanted} bytes of "
                             f"pixels, found {found}")  # fmt: skip


def require_palette(path: Path, opened: Any, header: PngHeader | None) -> None:
    """Reject pixels that name a colour which the palette does not have.

    Raises:
        InputError: If one does; pillow would show it as black.
    """
    if header is not None and opened.mode == "P":
        highest = int(np.asarray(opened).max())
        if highest >= header.n_palette:
            raise InputError(f"{shown(path)}: is corrupt: a pixel names colour {highest} of a "
                             f"palette of {header.n_palette}")  # fmt: skip


def is_wide_colour(opened: Any, header: PngHeader | None) -> bool:
    """Whether a 2D image has colours or alpha of more than 8 bits, which pillow cuts to 8."""
    if header is not None:
        return header.depth == 16 and header.colour in (2, 4, 6)
    bits = np.atleast_1d(getattr(opened, "tag_v2", {}).get(_BITS, 8))
    return opened.mode in _COLOUR_MODES and int(bits.max()) > 8


def read_wide_colour(path: Path, opened: Any, turn: int) -> NDArray[Any]:
    """Colours of 16 bits through SimpleITK, (rows, columns, samples).

    Raises:
        InputError: If it cannot read them either (grey with alpha, separate planes, a turned TIFF).
    """
    import SimpleITK as sitk

    is_apart = getattr(opened, "tag_v2", {}).get(_PLANAR, 1) != 1
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    unreadable = InputError(
        f"{shown(path)}: 16-bit grey with an alpha channel, 16-bit colours in separate planes or "
        "turned by a tag cannot be read without loss; save it as plain 16-bit grey or colour"
    )
    if turn != 1 or is_apart:
        raise unreadable
    try:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:  # its message names neither file nor fault
        raise unreadable from error


def untwisted_tiff(path: Path) -> tuple[Path | io.BytesIO, int]:
    """What to open instead of a TIFF, and the turn that is then left to do.

    pillow 13 decodes an uncompressed TIFF of orientation 5 to 8 with rows and columns confused,
    so such a file is opened from a copy in memory that states orientation 1.
    """
    with path.open("rb") as handle:
        place, orientation = _orientation_entry(handle)
        if not 2 <= orientation <= 8:
            return path, 1
        handle.seek(0)
        data = bytearray(handle.read())
    data[place : place + 2] = (1).to_bytes(2, "little" if data[:2] == b"II" else "big")
    return io.BytesIO(data), orientation


def _orientation_entry(handle: Any) -> tuple[int, int]:
    """Where the first directory states its orientation, and what; (0, 1) where it does not."""
    head = handle.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return 0, 1
    is_big = struct.unpack_from(order + "H", head, 2)[0] == 43
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), head, 8 if is_big else 4)
    handle.seek(start)
    count_size, entry_size, value_at = (8, 20, 12) if is_big else (2, 12, 8)
    raw = handle.read(count_size)
    if len(raw) < count_size:
        return 0, 1
    count = min(struct.unpack(order + ("Q" if is_big else "H"), raw)[0], 4096)
    entries = handle.read(count * entry_size)
    for at in range(0, len(entries) - entry_size + 1, entry_size):
        if struct.unpack_from(order + "H", entries, at)[0] == _ORIENTATION:
            (value,) = struct.unpack_from(order + "H", entries, at + value_at)
            return start + count_size + at + value_at, value
    return 0, 1


def signed_bytes(opened: Any, values: NDArray[Any]) -> NDArray[Any]:
    """8-bit TIFF values as the signed ones that they are where the file states this."""
    kinds = np.atleast_1d(getattr(opened, "tag_v2", {}).get(_SAMPLE_FORMAT, 1))
    return values.view(np.int8) if values.dtype == np.uint8 and (kinds == 2).all() else values


def turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(rows, columns, ...) as EXIF orientation 1 to 8 defines them."""
    if orientation in (5, 6, 7, 8):
        values = np.swapaxes(values, 0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
