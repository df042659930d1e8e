"""Bytes of a file that may be gzipped, never more of them in memory than were asked for."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from medvol.core.errors import InputError
from medvol.io.door import check_file, shown, warn

_CHUNK = 1 << 18
_GZIP = b"\x1f\x8b"


class ByteSource:
    """Sequential access to the content of one file, decompressed where it is gzipped."""

    def __init__(self, path: Path, handle: IO[bytes], size: int) -> None:
        self.path, self._handle, self._size = path, handle, size
        first = handle.read(1024)
        self.is_gzip = first.startswith(_GZIP)
        self._position = 0
        self._peeked = b""
        if self.is_gzip:
            self._inflate = zlib.decompressobj(wbits=31)
            self._input = first
            self._ended = False
        else:
            handle.seek(0)
        if path.suffix.lower() == ".gz" and not self.is_gzip and not _plain_header(first):
            raise InputError(f"{shown(path)}: not a valid gzip file")

    def head(self, n: int) -> bytes:
        """Up to the first ``n`` bytes, which stay readable."""
        if not self.is_gzip:
            self._handle.seek(0)
            return self._handle.read(n)
        self._peeked = bytes(self._gunzip(n))
        return self._peeked

    def read_exactly(self, offset: int, n: int) -> bytes | bytearray:
        """The ``n`` bytes from ``offset`` on.

        Raises:
            InputError: If the file ends earlier or its compression is damaged.
        """
        if not self.is_gzip:
            if offset + n > self._size:
                raise InputError(f"{shown(self.path)}: truncated: expected {offset + n} bytes, "
                                 f"found {self._size}")  # fmt: skip
            self._handle.seek(offset)
            self._position = offset + n
            return self._handle.read(n)
        already = len(self._peeked)
        if offset > already:
            skipped = len(self._gunzip(offset - already))
            self._expect(offset, already + skipped)
            body = bytearray()
        else:
            body = bytearray(self._peeked[offset : offset + n])
        body += self._gunzip(n - len(body))
        self._expect(offset + n, offset + len(body))
        self._position = offset + n
        return body

    def check_end(self, one_more: int) -> None:
        """Verify the checksum, and that no further slice hides behind the claimed voxels.

        Args:
            one_more: Bytes of one more slice: that much unclaimed content is a contradiction.

        Raises:
            InputError: If the checksum is wrong or a slice's worth of bytes is left over.
        """
        limit = max(one_more, 4096)
        if self.is_gzip:
            left = len(self._gunzip(limit))
        else:
            left = self._size - self._position
        if left >= limit:
            raise InputError(f"{shown(self.path)}: holds at least {left} bytes more than its "
                             "header claims; the dimensions contradict the data")  # fmt: skip
        if left:
            warn(self.path, f"ignored {left} bytes behind the voxels")

    def _expect(self, wanted: int, found: int) -> None:
        if found < wanted:
            raise InputError(f"{shown(self.path)}: truncated: expected {wanted} bytes, found "
                             f"{found} after decompression")  # fmt: skip

    def _gunzip(self, n: int) -> bytearray:
        out = bytearray()
        while len(out) < n and not self._ended:
            if self._inflate.eof:
                if not self._next_member():
                    break
            if not self._input:
                self._input = self._handle.read(_CHUNK)
                if not self._input:
                    raise InputError(f"{shown(self.path)}: truncated: the gzip stream ends early")
            try:
                out += self._inflate.decompress(self._input, n - len(out))
            except zlib.error as error:
                raise InputError(f"{shown(self.path)}: corrupt gzip data: {error}") from error
            self._input = self._inflate.unconsumed_tail
        return out

    def _next_member(self) -> bool:
        rest = self._inflate.unused_data
        while not rest.strip(b"\0"):
            rest = self._handle.read(_CHUNK)
            if not rest:
                self._ended = True
                return False
        rest = rest.lstrip(b"\0")
        if not rest.startswith(_GZIP[: len(rest)]):
            warn(self.path, "ignored bytes behind the gzip stream")
            self._ended = True
            return False
        self._inflate, self._input = zlib.decompressobj(wbits=31), rest
        return True


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
        raise InputError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error


def _plain_header(first: bytes) -> bool:
    return first[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")
