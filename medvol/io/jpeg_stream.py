"""Whether a JPEG holds the whole image that its header claims.

Decoders fill what is missing without a warning, even where the file ends properly. Of an 8-bit
image libjpeg-turbo itself warns, and simplejpeg makes its warnings errors; at an eighth of the
size that costs a fraction of decoding. For lossless and 12-bit streams no package at hand tells,
so the codes are counted here: of a lossless one only where its last samples look like filler.

Source:
    ITU-T T.81 (JPEG), sections B.1 (markers), F.2.2 and annex C (Huffman codes), H.1 (lossless).
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import InputError, MissingPackageError
from medvol.io.checks import shown

_SEQUENTIAL, _LOSSLESS = (0xC0, 0xC1), 0xC3
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BLOCK = 8
#: Bytes between the last code and the end marker that cameras and some encoders leave.
_HARMLESS_BYTES = 16
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker")
#: Samples at the end that are predicted wrong by the same amount, as filler is.
_FILLER_SAMPLES = 6
#: Selection value of a lossless scan to the prediction from left, above and above left (H.1.2.1).
_PREDICTORS: dict[int, Callable[[Any, Any, Any], Any]] = {
    1: lambda a, b, c: a, 2: lambda a, b, c: b, 3: lambda a, b, c: c,
    4: lambda a, b, c: a + b - c, 5: lambda a, b, c: a + ((b - c) >> 1),
    6: lambda a, b, c: b + ((a - c) >> 1), 7: lambda a, b, c: (a + b) >> 1,
}  # fmt: skip


@dataclass
class _Frame:
    """What the markers of a stream have stated so far.

    Attributes:
        components: Identifier to (horizontal, vertical) sampling.
        tables: (class, number) to the lengths and symbols of a Huffman table.
    """

    kind: int = 0
    precision: int = 0
    width: int = 0
    height: int = 0
    restart: int = 0
    components: dict[int, tuple[int, int]] = field(default_factory=dict)
    tables: dict[tuple[int, int], list[int]] = field(default_factory=dict)


def require_whole_jpeg(path: Path, stream: bytes, pixels: NDArray[Any]) -> None:
    """Reject a stream that ends before its image does, or that lost bytes on the way.

    Args:
        path: File to name.
        stream: The JPEG.
        pixels: What a decoder made of it, rows first.

    Raises:
        InputError: If something is missing.
        MissingPackageError: If simplejpeg is not installed.
    """
    try:
        is_whole = _is_whole(path, stream, pixels)
    except (struct.error, IndexError, KeyError) as error:
        raise InputError(f"{shown(path)}: is corrupt: its JPEG headers are damaged") from error
    if not is_whole:
        raise InputError(f"{shown(path)}: is truncated or corrupt: its JPEG data ends before "
                         "the image does, or bytes of it are lost")  # fmt: skip


def _is_whole(path: Path, stream: bytes, pixels: NDArray[Any]) -> bool:
    frame = _Frame()
    for marker, body, scan in _segments(stream):
        _take(frame, marker, body)
        if frame.precision == 8 and frame.kind != _LOSSLESS:
            return _is_silently_decoded(path, stream)
        is_judged = marker == 0xDA and _is_judged(frame, body, pixels)
        if is_judged and not _is_coded(frame, body, scan):
            return False
    return True


def _is_silently_decoded(path: Path, stream: bytes) -> bool:
    try:
        import simplejpeg
    except ImportError as error:
        raise MissingPackageError(f"{shown(path)}: a JPEG is checked with simplejpeg; "
                                  "pip install simplejpeg") from error  # fmt: skip
    try:
        space = simplejpeg.decode_jpeg_header(stream, strict=False)[2]
        space = {"Gray": "GRAY", "YCCK": "CMYK", "CMYK": "CMYK"}.get(space, "RGB")
        simplejpeg.decode_jpeg(stream, space, min_height=1, min_width=1)
    except ValueError as error:
        found = _EXTRANEOUS.search(str(error))
        return bool(found) and int(found[1]) <= _HARMLESS_BYTES
    return True


def _is_judged(frame: _Frame, body: bytes, pixels: NDArray[Any]) -> bool:
    """Whether the codes of a scan are to be counted."""
    if frame.kind != _LOSSLESS:
        return frame.kind in _SEQUENTIAL
    predict = _PREDICTORS.get(body[1 + 2 * body[0]])
    if predict is None or min(pixels.shape[:2]) < 2:
        return True
    rows = pixels[-2:, -_FILLER_SAMPLES - 1 :].astype(np.int64)
    errors = rows[1, 1:] - predict(rows[1, :-1], rows[0, 1:], rows[0, :-1])
    return bool((errors % (1 << 16) == errors[-1] % (1 << 16)).all())


def _segments(stream: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Marker, its content, and for a scan the entropy-coded bytes behind it."""
    at = 2
    while (at := stream.find(b"\xff", at)) >= 0 and at + 4 <= len(stream):
        marker = stream[at + 1]
        if marker in (0x00, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1
            continue
        if marker == 0xD9:
            return
        end = at + 2 + struct.unpack_from(">H", stream, at + 2)[0]
        body, at = stream[at + 4 : end], end
        if marker == 0xDA:
            at = _scan_end(stream, end)
        yield marker, body, stream[end:at]


def _scan_end(stream: bytes, at: int) -> int:
    while (at := stream.find(b"\xff", at)) >= 0:
        following = stream[at + 1 : at + 2]
        if following and following[0] != 0 and not 0xD0 <= following[0] <= 0xD7:
            return at
        at += 2
    return len(stream)


def _take(frame: _Frame, marker: int, body: bytes) -> None:
    if marker in _FRAMES:
        frame.kind = marker
        frame.precision, frame.height, frame.width, n = struct.unpack_from(">BHHB", body)
        parts = (body[6 + 3 * i : 9 + 3 * i] for i in range(n))
        frame.components = {part[0]: (part[1] >> 4, part[1] & 15) for part in parts}
    elif marker == 0xDD:
        (frame.restart,) = struct.unpack_from(">H", body)
    elif marker == 0xC4:
        while body:
            lengths = body[1:17]
            frame.tables[body[0] >> 4, body[0] & 15] = _lookup(lengths, body[17:])
            body = body[17 + sum(lengths) :]


def _lookup(lengths: bytes, symbols: bytes) -> list[int]:
    """For each 16 bits that may come next, length << 8 | symbol of the code; -1 for none."""
    table: list[int] = []
    place = 0
    for length, count in enumerate(lengths, 1):
        for symbol in symbols[place : place + count]:
            table += [length << 8 | symbol] * (1 << (16 - length))
        place += count
    return (table + [-1] * (1 << 16))[: 1 << 16]


def _is_coded(frame: _Frame, body: bytes, scan: bytes) -> bool:
    n = body[0]
    chosen = [(body[1 + 2 * i], body[2 + 2 * i]) for i in range(n)]
    side = 1 if frame.kind == _LOSSLESS else _BLOCK
    across = max(h for h, _ in frame.components.values())
    down = max(v for _, v in frame.components.values())
    if n == 1:  # a scan of one component holds its blocks without padding to whole units
        h, v = frame.components[chosen[0][0]]
        columns, rows = (-(-size * part // (side * most)) for size, part, most in
                         ((frame.width, h, across), (frame.height, v, down)))  # fmt: skip
        repeats = [1]
    else:
        columns, rows = -(-frame.width // (side * across)), -(-frame.height // (side * down))
        repeats = [h * v for h, v in (frame.components[part] for part, _ in chosen)]
    plan = [
        (frame.tables[0, tables >> 4], frame.tables.get((1, tables & 15), []))
        for (_, tables), times in zip(chosen, repeats, strict=True)
        for _ in range(times)
    ]
    holds = _holds_samples if side == 1 else _holds
    left = columns * rows
    for piece in _restarts(scan) if frame.restart else [scan]:
        units = min(frame.restart or left, left)
        if not holds(piece.replace(b"\xff\x00", b"\xff"), units, plan):
            return False
        left -= units
    return left <= 0


def _restarts(scan: bytes) -> Iterator[bytes]:
    start = at = 0
    while (at := scan.find(b"\xff", at)) >= 0 and at + 1 < len(scan):
        if 0xD0 <= scan[at + 1] <= 0xD7:
            yield scan[start:at]
            start = at + 2
        at += 2
    yield scan[start:]


def _holds(data: bytes, units: int, plan: list[tuple[list[int], list[int]]]) -> bool:
    """Whether the codes of that many units follow each other in the data."""
    bits, at = data + b"\0\0\0", 0
    end = 8 * len(data)
    for _ in range(units):
        for first, others in plan:
            k, table = 0, first
            while k < 64:
                place = at >> 3
                word = bits[place] << 16 | bits[place + 1] << 8 | bits[place + 2]
                code = table[word >> (8 - (at & 7)) & 0xFFFF]
                at += (code >> 8) + (code & 15)
                if code < 0 or at > end:
                    return False
                if table is others:
                    run = code >> 4 & 15
                    k += run + 1 if code & 255 else 64
                else:
                    k, table = 1, others
    return True


def _holds_samples(data: bytes, units: int, plan: list[tuple[list[int], list[int]]]) -> bool:
    """As ``_holds`` for a lossless scan: a code and its bits for each sample."""
    bits = np.frombuffer(data + b"\0\0\0", np.uint8).astype(np.uint32)
    words = bits[:-2] << 16 | bits[1:-1] << 8 | bits[2:]
    ahead = (words[:, None] >> np.arange(8, 0, -1, dtype=np.uint32) & 0xFFFF).ravel()
    nexts = []
    for table, _ in plan:
        codes = np.array(table, np.int32)[ahead]
        after = np.arange(len(codes), dtype=np.int32) + (codes >> 8)
        after += np.where(codes & 31 == 16, 0, codes & 31)
        after[(codes < 0) | (after > 8 * len(data))] = 8 * len(data) + 1
        nexts.append(array("i", after.tobytes()))
    at = 0
    for _ in range(units):
        for after in nexts:
            at = after[at]
    return at <= 8 * len(data)
