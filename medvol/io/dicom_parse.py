"""DICOM bytes to elements: a bounded parser that keeps the wanted tags and skips the rest.

pydicom reads everything and warns with the values it finds odd, which puts header contents into
logs; it also costs most of the time of loading an uncompressed series. This parser never shows a
value, never recurses deeper than allowed, and never believes a length beyond the file's end.

Source:
    DICOM PS3.5, sections 7.1 (data elements), 7.5 (nesting), A.4 (encapsulation), A.5 (deflate).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medvol.core.errors import InputError, TooLargeError
from medvol.io.checks import check_file, shown

Elements = dict[int, "bytes | list[Elements]"]

PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA = (0x7FE00008, 0x7FE00009)
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG_VR = frozenset([b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR",
                      b"UT", b"UV"])  # fmt: skip
_SHORT_VR = frozenset([b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO",
                       b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL",
                       b"US"])  # fmt: skip
_MAX_DEPTH = 16
_MAX_VALUE = 1 << 20
_FIRST_READ = 1 << 16
_MAX_INFLATED = 512 << 20

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"


class NotDicomError(InputError):
    """The file is not a DICOM file at all."""


@dataclass(frozen=True)
class Parsed:
    """One file's wanted elements, and where its pixels are.

    Attributes:
        elements: Tag to raw bytes, or to a list of items for a wanted sequence.
        syntax: Transfer syntax UID.
        order: ``<`` or ``>``.
        pixel_offset: Where the pixel bytes start in :meth:`content`; None if there are none.
        pixel_length: Their claimed length; None where they are encapsulated.
        inflated: The whole deflated data set, else empty.
    """

    path: Path
    elements: Elements
    syntax: str
    order: str
    pixel_offset: int | None
    pixel_length: int | None
    size: int
    inflated: bytes = field(default=b"", repr=False)

    def content(self) -> bytes:
        """Everything from the start of the pixel bytes on."""
        if self.pixel_offset is None:
            return b""
        if self.inflated:
            return self.inflated[self.pixel_offset :]
        with self.path.open("rb") as handle:
            handle.seek(self.pixel_offset)
            return handle.read() if self.pixel_length is None else handle.read(self.pixel_length)


class _EndOfBuffer(Exception):
    """More of the file is needed than was read so far."""


@dataclass
class _Cursor:
    data: bytes
    position: int
    order: str
    explicit: bool
    name: str
    whole: bool

    def need(self, n: int) -> int:
        start = self.position
        if start + n > len(self.data):
            if self.whole:
                raise InputError(f"{self.name}: truncated DICOM file: its data set ends inside an "
                                 "element")  # fmt: skip
            raise _EndOfBuffer
        self.position = start + n
        return start


def parse_file(path: Path, wanted: frozenset[int]) -> Parsed:
    """Parse one file up to its pixels.

    Args:
        path: A DICOM file, with or without the 128-byte preamble.
        wanted: Tags to keep; a wanted sequence is descended into for its wanted tags.

    Raises:
        NotDicomError: If the file is not a DICOM file.
        InputError: If it is truncated or corrupt.
    """
    size = check_file(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(_FIRST_READ)
            while True:
                try:
                    return _parse(path, head, size, wanted)
                except _EndOfBuffer:
                    if len(head) >= size:
                        raise InputError(f"{shown(path)}: truncated DICOM file") from None
                    more = handle.read(max(len(head) * 3, 1 << 20))
                    if not more:
                        raise InputError(f"{shown(path)}: truncated DICOM file") from None
                    head += more
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error


def _parse(path: Path, head: bytes, size: int, wanted: frozenset[int]) -> Parsed:
    name, start = shown(path), 132
    if head[128:132] != b"DICM":
        if not _looks_bare(head):
            raise NotDicomError(f"{name}: is not a DICOM file")
        start = 0
    whole = len(head) >= size
    cursor = _Cursor(head, start, "<", True, name, whole)
    syntax = _file_meta(cursor)
    if start == 0 and not syntax:
        cursor.explicit = head[4:6] in _SHORT_VR or head[4:6] in _LONG_VR
        syntax = EXPLICIT_LE if cursor.explicit else IMPLICIT_LE
    if not syntax:
        raise InputError(f"{name}: DICOM file without a TransferSyntaxUID")
    inflated = b""
    if syntax == DEFLATED_LE:
        if not whole:
            raise _EndOfBuffer
        inflated = _inflate(name, head[cursor.position :])
        cursor = _Cursor(inflated, 0, "<", True, name, True)
    cursor.explicit = syntax != IMPLICIT_LE
    cursor.order = ">" if syntax == EXPLICIT_BE else "<"
    elements: Elements = {}
    offset = length = None
    for tag, vr, n in _headers(cursor):
        if tag == PIXEL_DATA or tag in FLOAT_PIXEL_DATA:
            offset, length = cursor.position, None if n == _UNDEFINED else n
            if tag != PIXEL_DATA:
                elements[tag] = b""
            break
        _take(cursor, elements, (tag, vr, n), wanted, 0)
    return Parsed(path, elements, syntax, cursor.order, offset, length,
                  len(inflated) if inflated else size, inflated)  # fmt: skip


def _looks_bare(head: bytes) -> bool:
    if len(head) < 16:
        return False
    group, element = struct.unpack_from("<HH", head)
    explicit = head[4:6] in _SHORT_VR or head[4:6] in _LONG_VR
    (length,) = struct.unpack_from("<I", head, 4)
    return group in (0x0002, 0x0008) and element < 0x0100 and (explicit or length < 256)


def _file_meta(cursor: _Cursor) -> str:
    syntax = ""
    while cursor.position + 8 <= len(cursor.data):
        (group,) = struct.unpack_from("<H", cursor.data, cursor.position)
        if group != 0x0002:
            break
        tag, _, n = next(_headers(cursor))
        if n == _UNDEFINED or n > _MAX_VALUE:
            raise InputError(f"{cursor.name}: corrupt DICOM file meta information")
        start = cursor.need(n)
        if tag == 0x00020010:
            syntax = cursor.data[start : start + n].rstrip(b"\0 ").decode("ascii", "replace")
    return syntax


def _inflate(name: str, deflated: bytes) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(deflated, _MAX_INFLATED)
    except zlib.error as error:
        raise InputError(f"{name}: corrupt deflated DICOM data") from error
    if inflate.unconsumed_tail:
        raise TooLargeError(f"{name}: deflated data set is too large: over the limit of "
                            f"{_MAX_INFLATED >> 20} MiB")  # fmt: skip
    if not inflate.eof:
        raise InputError(f"{name}: truncated: the deflated data set ends early")
    return data


def _headers(cursor: _Cursor) -> Iterator[tuple[int, bytes, int]]:
    """Yield (tag, VR, length) with the cursor at the value; the caller moves past the value."""
    data, order = cursor.data, cursor.order
    pair, word, half = struct.Struct(order + "HH"), struct.Struct(order + "I"), struct.Struct(
        order + "H"
    )  # fmt: skip
    while cursor.position < len(data) or not cursor.whole:
        if cursor.whole and len(data) - cursor.position < 8 and _is_padding(cursor):
            return
        at = cursor.need(8)
        group, element = pair.unpack_from(data, at)
        tag = group << 16 | element
        if tag == 0 and cursor.whole and _is_padding(cursor):
            return
        if group == 0xFFFE or not cursor.explicit:
            yield tag, b"", word.unpack_from(data, at + 4)[0]
            continue
        vr = data[at + 4 : at + 6]
        if vr in _SHORT_VR:
            yield tag, vr, half.unpack_from(data, at + 6)[0]
        elif vr in _LONG_VR:
            yield tag, vr, word.unpack_from(data, cursor.need(4))[0]
        else:
            raise InputError(f"{cursor.name}: corrupt DICOM file: no value representation at "
                             f"({group:04X},{element:04X})")  # fmt: skip


def _is_padding(cursor: _Cursor) -> bool:
    return not cursor.data[cursor.position :].strip(b"\0")


def _take(
    cursor: _Cursor,
    into: Elements,
    header: tuple[int, bytes, int],
    wanted: frozenset[int],
    depth: int,
) -> None:
    tag, vr, n = header
    if n == _UNDEFINED:
        items = _items(cursor, vr, None, wanted if tag in wanted else frozenset(), depth + 1)
        if tag in wanted:
            into[tag] = items
        return
    if tag not in wanted:
        if cursor.whole or cursor.position + n <= len(cursor.data):
            cursor.need(n)
            return
        raise _EndOfBuffer
    if vr == b"SQ" or (vr in (b"", b"UN") and tag in SEQUENCES):
        into[tag] = _items(cursor, vr, cursor.position + n, wanted, depth + 1)
        return
    if n > _MAX_VALUE:
        raise InputError(f"{cursor.name}: corrupt DICOM file: a header value claims {n} bytes")
    start = cursor.need(n)
    into[tag] = cursor.data[start : start + n]


def _items(cursor: _Cursor, vr: bytes, end: int | None, wanted: frozenset[int],
           depth: int) -> list[Elements]:  # fmt: skip
    if depth > _MAX_DEPTH:
        raise InputError(f"{cursor.name}: corrupt DICOM file: sequences nested deeper than "
                         f"{_MAX_DEPTH}")  # fmt: skip
    if end is not None and end > len(cursor.data):
        cursor.need(end - cursor.position)
    explicit, cursor.explicit = cursor.explicit, cursor.explicit and vr != b"UN"
    items: list[Elements] = []
    try:
        while end is None or cursor.position < end:
            at = cursor.need(8)
            group, element, n = struct.unpack_from(cursor.order + "HHI", cursor.data, at)
            tag = group << 16 | element
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM:
                raise InputError(f"{cursor.name}: corrupt DICOM file: a sequence holds no items")
            items.append(_item(cursor, n, wanted, depth))
    finally:
        cursor.explicit = explicit
    return items


def _item(cursor: _Cursor, n: int, wanted: frozenset[int], depth: int) -> Elements:
    elements: Elements = {}
    if n != _UNDEFINED:
        end = cursor.position + n
        if not wanted:
            cursor.need(n)
            return elements
        if end > len(cursor.data):
            cursor.need(n)
    else:
        end = None
    while end is None or cursor.position < end:
        found = next(_headers(cursor), None)
        if found is None:
            raise InputError(f"{cursor.name}: truncated DICOM file: an item has no end")
        if found[0] == _ITEM_END:
            break
        _take(cursor, elements, found, wanted, depth)
    return elements


#: Sequences that medvol descends into; implicit VR does not mark them.
SEQUENCES = frozenset({
    0x52009229, 0x52009230, 0x00209113, 0x00209116, 0x00289110, 0x00289145, 0x00209111, 0x00540016,
    0x00620002, 0x0062000A, 0x00283000, 0x00081115, 0x00189114,
})  # fmt: skip
