"""Bytes of a file that may be compressed, never more of them in memory than were asked for."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from medvol.core.errors import InputError
from medvol.io.checks import check_file, shown, warn

_CHUNK = 1 << 18
#: Bytes that are decompressed at a time where nothing of them is kept.
_SKIPPED = 1 << 22
_GZIP = b"\x1f\x8b"
#: Writers pad files to blocks of at most this many bytes; fewer bytes than a row are not a slice.
_PADDING, _LEAST_SLICE = 4096, 16
GZIP_BITS = 31
ZLIB_BITS = 15


class Inflater:
    """Decompress a gzip or zlib stream piece by piece, as much as is asked for.

    Args:
        path: What to name in an error.
        handle: Open at the stream's first byte, or behind ``first``.
        bits: ``GZIP_BITS`` or ``ZLIB_BITS``.
        first: Bytes already read from ``handle``.
    """

    def __init__(
        self, path: Path, handle: IO[bytes], bits: int = GZIP_BITS, first: bytes = b""
    ) -> None:
        self._path, self._handle, self._bits, self._input = path, handle, bits, first
        self._inflate = zlib.decompressobj(wbits=bits)
        self._ended = False

    def read(self, n: int) -> bytearray:
        """The next ``n`` bytes, fewer only at the stream's end.

        Raises:
            InputError: If the stream is cut or damaged; a checksum is verified at the end.
        """
        out = bytearray()
        while len(out) < n and not self._ended:
            if self._inflate.eof and not self._next_member():
                break
            if not self._input:
                self._input = self._handle.read(_CHUNK)
                if not self._input:
                    raise InputError(f"{shown(self._path)}: truncated: its compressed data ends "
                                     "early")  # fmt: skip
            try:
                out += self._inflate.decompress(self._input, n - len(out))
            except zlib.error as error:
                raise InputError(
                    f"{shown(self._path)}: corrupt compressed data: {error}"
                ) from error
            self._input = self._inflate.unconsumed_tail
        return out

    def _next_member(self) -> bool:
        rest = self._inflate.unused_data
        if self._bits != GZIP_BITS:
            self._ended = True
            return False
        while not rest.strip(b"\0"):
            rest = self._handle.read(_CHUNK)
            if not rest:
                self._ended = True
                return False
        rest = rest.lstrip(b"\0")
        if not rest.startswith(_GZIP[: len(rest)]):
            warn(self._path, "ignored bytes behind the gzip stream")
            self._ended = True
            return False
        self._inflate, self._input = zlib.decompressobj(wbits=self._bits), rest
        return True


class ByteSource:
    """Sequential access to the content of one file, decompressed where it is gzipped."""

    def __init__(self, path: Path, handle: IO[bytes], size: int) -> None:
        self.path, self._handle, self._size = path, handle, size
        first = handle.read(1024)
        self._position = 0
        self._peeked = b""
        self._inflater: Inflater | None = None
        if first.startswith(_GZIP):
            self._inflater = Inflater(path, handle, GZIP_BITS, first)
        elif path.suffix.lower() == ".gz" and not _plain_header(first):
            raise InputError(f"{shown(path)}: not a valid gzip file")

    def head(self, n: int) -> bytes:
        """Up to the first ``n`` bytes, which stay readable."""
        if self._inflater is None:
            self._handle.seek(0)
            return self._handle.read(n)
        self._peeked = bytes(self._inflater.read(n))
        return self._peeked

    def read_exactly(self, offset: int, n: int) -> bytes | bytearray:
        """The ``n`` bytes from ``offset`` on.

        Raises:
            InputError: If the file ends earlier or its compression is damaged.
        """
        self._position = offset + n
        self.check_length(offset + n)
        if self._inflater is None:
            self._handle.seek(offset)
            return self._handle.read(n)
        already = len(self._peeked)
        skipped = len(self._inflater.read(max(offset - already, 0)))
        body = bytearray(self._peeked[offset : offset + n])
        body += self._inflater.read(n - len(body))
        if len(body) < n:
            found = min(already, offset) + skipped + len(body)
            raise InputError(f"{shown(self.path)}: truncated: expected {offset + n} bytes, found "
                             f"{found} after decompression")  # fmt: skip
        return body

    def skip_through(self, n: int) -> None:
        """Decompress up to byte ``n`` and keep nothing, so that damage before it shows.

        Raises:
            InputError: If the content ends earlier or its compression is damaged.
        """
        self.check_length(n)
        found = min(len(self._peeked), n) if self._inflater is not None else n
        while self._inflater is not None and found < n:
            got = len(self._inflater.read(min(_SKIPPED, n - found)))
            if not got:
                raise InputError(f"{shown(self.path)}: truncated: expected {n} bytes, found "
                                 f"{found} after decompression")  # fmt: skip
            found += got
        self._position = n

    def check_length(self, n: int) -> None:
        """Reject a plain file of fewer than ``n`` bytes; a compressed one does not state it.

        Raises:
            InputError: If it is shorter.
        """
        if self._inflater is None and n > self._size:
            raise InputError(f"{shown(self.path)}: truncated: expected {n} bytes, "
                             f"found {self._size}")  # fmt: skip

    def check_end(self, one_more: int) -> None:
        """Verify the checksum, and that no further slice hides behind the claimed voxels.

        Args:
            one_more: Bytes of one more slice: that much unclaimed content is a contradiction.

        Raises:
            InputError: If the checksum is wrong or a slice's worth of bytes is left over.
        """
        if self._inflater is not None:
            left = max(len(self._peeked) - self._position, 0)
            left += len(self._inflater.read(max(one_more, _PADDING)))
        else:
            left = self._size - self._position
        reject_surplus(self.path, left, one_more)


def reject_surplus(path: Path, left: int, one_more: int) -> None:
    """Reject unclaimed bytes that look like slices; mention other few.

    Args:
        path: Named in an error.
        left: How many bytes lie behind the voxels.
        one_more: Bytes of a slice. Whole slices are rejected, and anything longer than padding.

    Raises:
        InputError: If the dimensions contradict the data.
    """
    are_slices = one_more >= _LEAST_SLICE and left > 0 and left % one_more == 0
    if are_slices or left >= max(one_more, _PADDING):
        raise InputError(f"{shown(path)}: holds at least {left} bytes more than its header claims; "
                         "the dimensions contradict the data")  # fmt: skip
    if left > 0:
        warn(path, f"ignored {left} bytes behind the voxels")


@contextmanager
def open_bytes(path: Path) -> Iterator[ByteSource]:
    """Open a file for sequential, bounded reading.

    Raises:
        InputError: If it is missing, empty, no regular file, or not gzip though named .gz.
    """
    size = check_file(path)
    try:
        with path.open("rb") as handle:
            yield ByteSource(path, handle, size)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error


def _plain_header(first: bytes) -> bool:
    return first[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")
