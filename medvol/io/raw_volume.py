"""Voxels that a text header describes: where they lie, how they are stored, and none too many."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import InputError
from medvol.io.checks import check_claim, check_file, shown
from medvol.io.stream import GZIP_BITS, ZLIB_BITS, Inflater, reject_surplus

_GZIP_MAGIC = b"\x1f\x8b\x08"


@dataclass(frozen=True)
class RawVolume:
    """Where the voxels of a text header are, and how they are stored, fastest axis first."""

    path: Path
    data_path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    encoding: str
    from_end: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of uncompressed voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> NDArray[Any]:
        """The voxels, in Fortran order of ``shape``.

        Raises:
            InputError: If they are cut, damaged, or more than claimed.
        """
        check_claim(self.path, self.shape)
        size = self.check_length()
        with self.data_path.open("rb") as handle:
            if self.encoding == "raw":
                raw = self._plain(handle, size)
            elif self.encoding == "text":
                return self._text(handle)
            else:
                handle.seek(self.offset)
                bits = GZIP_BITS if self.encoding == "gzip" else ZLIB_BITS
                inflater = Inflater(self.data_path, handle, bits)
                raw = bytes(inflater.read(self.n_bytes))
                self._expect(len(raw))
                slab = self.n_bytes // self.shape[-1]
                reject_surplus(self.path, len(inflater.read(max(slab, 4096))), slab)
        return np.frombuffer(raw, self.dtype).reshape(self.shape, order="F")

    def check_length(self) -> int:
        """The size of the data file, which must hold what the header claims if it is not packed.

        Raises:
            InputError: If it is missing or too short.
        """
        size = check_file(self.data_path)
        if self.encoding == "raw":
            self._expect(size if self.from_end else max(size - self.offset, 0))
        return size

    def _plain(self, handle: IO[bytes], size: int) -> bytes:
        offset = size - self.n_bytes if self.from_end else self.offset
        left = size - offset - self.n_bytes
        handle.seek(offset)
        raw = handle.read(self.n_bytes)
        if left > 0 and raw.startswith(_GZIP_MAGIC):
            raise InputError(f"{shown(self.path)}: its encoding is raw, but its data is compressed "
                             "by gzip")  # fmt: skip
        reject_surplus(self.path, left, self.n_bytes // self.shape[-1])
        return raw

    def _text(self, handle: IO[bytes]) -> NDArray[Any]:
        handle.seek(self.offset)
        text = handle.read()
        try:
            values = np.array(text.split(), dtype=np.float64)
            if b"_" in text:
                raise ValueError("Python alone reads 1_0 as ten")
        except ValueError as error:
            raise InputError(f"{shown(self.path)}: its text voxels hold a non-number") from error
        if values.size != math.prod(self.shape):
            raise InputError(f"{shown(self.path)}: truncated or too long: {values.size} text "
                             f"voxels, expected {math.prod(self.shape)}")  # fmt: skip
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            fits = (values == np.rint(values)) & (limits.min <= values) & (values <= limits.max)
            fits |= ~np.isfinite(values)  # rejected later, as in every format
            if not fits.all():
                raise InputError(f"{shown(self.path)}: text voxel {values[~fits][0]:g} is not a "
                                 f"{self.dtype.name}, which its header claims")  # fmt: skip
        return values.reshape(self.shape, order="F")

    def _expect(self, found: int) -> None:
        if found < self.n_bytes:
            raise InputError(f"{shown(self.path)}: truncated: expected {self.n_bytes} bytes of "
                             f"voxels, found {found}")  # fmt: skip
