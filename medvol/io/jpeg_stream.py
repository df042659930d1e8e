"""Whether the entropy-coded data of a JPEG holds the whole picture that its header claims.

Decoders fill what is missing with grey and say nothing, even where the file ends properly. A
decoded picture that ends in that grey is suspicious; only then are the codes of its blocks
counted here, so that a whole picture costs nothing.

Source:
    ITU-T T.81 (JPEG), sections B.1 (markers), F.2.2 and annex C (Huffman codes).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import InputError
from medvol.io.door import shown

_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BLOCK = 8


@dataclass
class _Frame:
    """What the markers of a stream have said so far.

    Attributes:
        components: Identifier to (horizontal, vertical) sampling.
        tables: (class, number) to the lengths and symbols of a Huffman table.
        sent: (component, coefficient) to how many low bits are still missing.
    """

    kind: int = 0
    width: int = 0
    height: int = 0
    restart: int = 0
    components: dict[int, tuple[int, int]] = field(default_factory=dict)
    tables: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    sent: dict[tuple[int, int], int] = field(default_factory=dict)


def ends_in_filler(pixels: NDArray[Any]) -> bool:
    """Whether the last pixel of a decoded picture has the grey of blocks that never came.

    One pixel only: the colours of its neighbours are blended with those of earlier blocks.
    """
    last = np.atleast_1d(pixels[-1, -1]).astype(np.float64)
    return pixels.dtype == np.uint8 and bool((np.abs(last - 127.5) < 1).all())


def require_whole_jpeg(path: Path, stream: bytes) -> None:
    """Refuse a stream that ends before its last block, or before its last progressive scan.

    Only Huffman streams are judged. Of a progressive one the scans are counted and not the codes
    in them, so that a cut inside its last scan, which loses detail and no place, is not seen.

    Raises:
        InputError: If something is missing.
    """
    frame = _Frame()
    for marker, body, scan in _segments(stream):
        try:
            _take(frame, marker, body)
            is_cut = marker == 0xDA and frame.kind in _SEQUENTIAL and not _is_whole(
                frame, body, scan
            )  # fmt: skip
        except (struct.error, IndexError, KeyError) as error:
            raise InputError(f"{shown(path)}: is corrupt: its JPEG headers are damaged") from error
        if is_cut:
            raise InputError(f"{shown(path)}: is truncated or corrupt: its JPEG data ends before "
                             "the picture does")  # fmt: skip
    wanted = [(part, k) for part in frame.components for k in range(64)]
    if frame.kind == _PROGRESSIVE and any(frame.sent.get(key, 1) for key in wanted):
        raise InputError(f"{shown(path)}: is truncated or corrupt: scans of its progressive JPEG "
                         "are missing")  # fmt: skip


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
        frame.height, frame.width, n = struct.unpack_from(">HHB", body, 1)
        parts = (body[6 + 3 * i : 9 + 3 * i] for i in range(n))
        frame.components = {part[0]: (part[1] >> 4, part[1] & 15) for part in parts}
    elif marker == 0xDD:
        (frame.restart,) = struct.unpack_from(">H", body)
    elif marker == 0xC4:
        while body:
            lengths = body[1:17]
            frame.tables[body[0] >> 4, body[0] & 15] = _lookup(lengths, body[17:])
            body = body[17 + sum(lengths) :]
    elif marker == 0xDA:
        n = body[0]
        first, last, bits = body[1 + 2 * n : 4 + 2 * n]
        for i in range(n):
            for k in range(first, last + 1):
                frame.sent[body[1 + 2 * i], k] = bits & 15


def _lookup(lengths: bytes, symbols: bytes) -> list[int]:
    """For each 16 bits that may come next, length << 8 | symbol of the code; -1 for none."""
    table: list[int] = []
    place = 0
    for length, count in enumerate(lengths, 1):
        for symbol in symbols[place : place + count]:
            table += [length << 8 | symbol] * (1 << (16 - length))
        place += count
    return (table + [-1] * (1 << 16))[: 1 << 16]


def _is_whole(frame: _Frame, body: bytes, scan: bytes) -> bool:
    n = body[0]
    chosen = [(body[1 + 2 * i], body[2 + 2 * i]) for i in range(n)]
    across = max(h for h, _ in frame.components.values())
    down = max(v for _, v in frame.components.values())
    if n == 1:  # a scan of one component holds its blocks without padding to whole units
        h, v = frame.components[chosen[0][0]]
        columns, rows = (-(-size * part // (_BLOCK * most)) for size, part, most in
                         ((frame.width, h, across), (frame.height, v, down)))  # fmt: skip
        repeats = [1]
    else:
        columns, rows = -(-frame.width // (_BLOCK * across)), -(-frame.height // (_BLOCK * down))
        repeats = [h * v for h, v in (frame.components[part] for part, _ in chosen)]
    plan = [
        (frame.tables[0, tables >> 4], frame.tables[1, tables & 15])
        for (_, tables), times in zip(chosen, repeats, strict=True)
        for _ in range(times)
    ]
    left = columns * rows
    for piece in _restarts(scan) if frame.restart else [scan]:
        units = min(frame.restart or left, left)
        if not _holds(piece.replace(b"\xff\x00", b"\xff"), units, plan):
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
