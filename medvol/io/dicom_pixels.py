"""Stored pixels of DICOM frames, whatever their compression, as the integers that were stored.

Decoders are tried in order of speed: pylibjpeg's where installed, then pyjpegls, pillow, and
last GDCM inside SimpleITK, which is always there. Bits above BitsStored are dropped and signs
extended here, so that no decoder's own idea of them matters.
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import InputError, MissingPackageError
from medvol.io.checks import shown
from medvol.io.dicom_header import DicomImage
from medvol.io.dicom_parse import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from medvol.io.jpeg_stream import require_whole_jpeg

_NATIVE = frozenset({IMPLICIT_LE, EXPLICIT_LE, DEFLATED_LE, EXPLICIT_BE})
_JPEG = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
_JPEG_LOSSLESS = frozenset({"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"})
_JPEG_LS = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})
_JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
_RLE = "1.2.840.10008.1.2.5"
#: Transfer syntaxes that lose something by themselves.
LOSSY = _JPEG | {"1.2.840.10008.1.2.4.81"}
#: What each supported compression is called in a listing.
SYNTAX_NAMES = {
    **dict.fromkeys(_NATIVE, "uncompressed"), **dict.fromkeys(_JPEG, "JPEG"),
    **dict.fromkeys(_JPEG_LOSSLESS, "JPEG lossless"), **dict.fromkeys(_JPEG_LS, "JPEG-LS"),
    **dict.fromkeys(_JPEG_2000, "JPEG 2000"), _RLE: "RLE", DEFLATED_LE: "deflate",
}  # fmt: skip
#: First bytes of a JPEG or JPEG-LS, a JPEG 2000 codestream and a JP2 file.
_FRAME_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
#: Zeros and no-operations that pad a plane of RLE.
_RLE_PADDING = b"\0\x80"

Pixels = NDArray[Any]


class _Unavailable(Exception):
    """This decoder is not installed or cannot take this stream."""


def check_pixel_claim(image: DicomImage) -> None:
    """Compare what the header claims with the bytes that are there, decoding nothing.

    Raises:
        InputError: If uncompressed pixel data is shorter than claimed, or holds a row too much,
            or the compression is not supported.
    """
    parsed, name = image.parsed, shown(image.path)
    if parsed.syntax not in SYNTAX_NAMES:
        raise InputError(f"{name}: its transfer syntax (compression) is not supported")
    offset, length = parsed.pixel_offset or 0, parsed.pixel_length
    if length is None:
        if parsed.syntax in _NATIVE:
            raise InputError(f"{name}: encapsulated pixel data in an uncompressed transfer syntax")
        return
    if parsed.syntax not in _NATIVE:
        raise InputError(f"{name}: compressed pixel data is not encapsulated")
    expected = image.n_frames * frame_bytes(image) if image.bits_allocated > 1 else (
        (image.n_frames * image.rows * image.columns * image.samples + 7) // 8
    )  # fmt: skip
    present = min(length, parsed.size - offset)
    if present < expected:
        raise InputError(f"{name}: pixel data is too short: expected {expected} bytes, found "
                         f"{present} (truncated)")  # fmt: skip
    if length - expected >= max(frame_bytes(image) // image.rows, 2):
        raise InputError(f"{name}: pixel data is longer than claimed: expected {expected} bytes, "
                         f"found {length}")  # fmt: skip


def frame_bytes(image: DicomImage) -> int:
    """Bytes of one uncompressed frame of 8 bits or more."""
    return image.rows * image.columns * image.samples * image.bits_allocated // 8


def stored_frames(image: DicomImage) -> Iterator[Pixels]:
    """Each frame's stored values, (rows, columns) or (rows, columns, samples), in file order.

    Raises:
        InputError: If a frame is missing or cannot be decoded.
        MissingPackageError: If no decoder for its compression is installed.
    """
    check_pixel_claim(image)
    content = image.parsed.content()
    if image.parsed.syntax in _NATIVE:
        yield from _native(image, content)
        return
    for fragment in _encapsulated(image, content):
        yield _clean(image, _shaped(image, _decode(image, fragment)))


def _native(image: DicomImage, content: bytes) -> Iterator[Pixels]:
    shape = (image.rows, image.columns) + ((image.samples,) if image.samples > 1 else ())
    if image.bits_allocated == 1:
        count = image.n_frames * image.rows * image.columns
        bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")[:count]
        yield from bits.reshape(image.n_frames, *shape)
        return
    kind = f"{image.parsed.order}{'i' if image.is_signed else 'u'}{image.bits_allocated // 8}"
    planar = image.samples > 1 and _planar(image)
    per_frame = image.rows * image.columns * image.samples
    flat = np.frombuffer(content, dtype=kind, count=per_frame * image.n_frames)
    for values in flat.reshape(image.n_frames, per_frame):
        if planar:
            frame = values.reshape(image.samples, image.rows, image.columns).transpose(1, 2, 0)
        else:
            frame = values.reshape(shape)
        yield _clean(image, frame)


def _planar(image: DicomImage) -> bool:
    raw = image.parsed.elements.get(0x00280006)
    return isinstance(raw, bytes) and raw[:2].strip(b"\0") == b"\x01"


def _shaped(image: DicomImage, values: Pixels) -> Pixels:
    wanted = (image.rows, image.columns) + ((image.samples,) if image.samples > 1 else ())
    if values.size != np.prod(wanted):
        raise InputError(f"{shown(image.path)}: a compressed frame holds {values.size} values, "
                         f"the header claims {'x'.join(map(str, wanted))}")  # fmt: skip
    if values.ndim == len(wanted) and values.shape != wanted:
        raise InputError(f"{shown(image.path)}: a compressed frame is {values.shape}, the header "
                         f"claims {wanted}")  # fmt: skip
    return values.reshape(wanted)


def _clean(image: DicomImage, values: Pixels) -> Pixels:
    """Drop bits above BitsStored and extend the sign, where a value needs it."""
    stored = image.bits_stored
    if stored == image.bits_allocated and values.dtype.kind == ("i" if image.is_signed else "u"):
        return values
    low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if image.is_signed else (
        0, (1 << stored) - 1
    )  # fmt: skip
    if values.dtype.kind != "b" and values.min() >= low and values.max() <= high:
        return values
    wide = values.astype(np.int64) & ((1 << stored) - 1)
    if image.is_signed:
        wide -= (wide >> (stored - 1)) << stored
    return wide


def _encapsulated(image: DicomImage, content: bytes) -> Iterator[bytes]:
    name = shown(image.path)
    fragments, table = _fragments(name, content)
    if image.n_frames == 1:
        starts = [f.startswith(_FRAME_STARTS) for f in fragments[1:]]
        if any(starts) or (starts and image.parsed.syntax == _RLE):
            raise InputError(f"{name}: its compressed pixel data holds several frames, the header "
                             "claims one")  # fmt: skip
        yield b"".join(fragments)
        return
    if len(fragments) == image.n_frames:
        yield from fragments
        return
    if len(table) != image.n_frames:
        raise InputError(f"{name}: {len(fragments)} compressed fragments for {image.n_frames} "
                         "frames, and no offset table")  # fmt: skip
    starts = np.cumsum([0, *(len(f) + 8 for f in fragments)]).tolist()
    bounds = [*table, starts[-1]]
    for first, last in pairwise(bounds):
        if first not in starts or last not in starts:
            raise InputError(f"{name}: the offset table points beside the fragments")
        yield b"".join(fragments[starts.index(first) : starts.index(last)])


def _fragments(name: str, content: bytes) -> tuple[list[bytes], list[int]]:
    found: list[bytes] = []
    position = 0
    while position + 8 <= len(content):
        group, element, n = struct.unpack_from("<HHI", content, position)
        tag = group << 16 | element
        position += 8
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or position + n > len(content):
            raise InputError(f"{name}: truncated or corrupt compressed pixel data")
        found.append(content[position : position + n])
        position += n
    else:
        raise InputError(f"{name}: truncated: compressed pixel data has no end")
    if len(found) < 2:
        raise InputError(f"{name}: compressed pixel data is empty")
    table = found[0]
    return found[1:], [v[0] for v in struct.iter_unpack("<I", table[: len(table) // 4 * 4])]


def _decode(image: DicomImage, stream: bytes) -> Pixels:
    syntax = image.parsed.syntax
    if syntax == _RLE:
        return _rle(image, stream)
    reasons: list[str] = []
    for decoder in _DECODERS[syntax]:
        try:
            pixels = decoder(image, stream)
        except _Unavailable as error:
            reasons.append(str(error))
        except (RuntimeError, ValueError, OSError, TypeError, MemoryError, SystemError) as error:
            if isinstance(error, InputError):
                raise
            reasons.append(f"{decoder.__name__.strip('_')} failed")
        else:
            if syntax in _JPEG | _JPEG_LOSSLESS:
                require_whole_jpeg(image.path, stream, pixels)
            return pixels
    if all(r.endswith("missing") for r in reasons):
        raise MissingPackageError(f"{shown(image.path)}: {SYNTAX_NAMES[syntax]} needs a decoder; "
                                  "pip install 'medvol[dicom]'")  # fmt: skip
    raise InputError(f"{shown(image.path)}: {SYNTAX_NAMES[syntax]} pixel data is truncated or "
                     f"corrupt ({'; '.join(reasons)})")  # fmt: skip


def _openjpeg(image: DicomImage, stream: bytes) -> Pixels:
    try:
        import openjpeg
    except ImportError as error:
        raise _Unavailable("openjpeg is missing") from error
    return openjpeg.decode(stream)  # pyright: ignore[reportPrivateImportUsage]


def _libjpeg(image: DicomImage, stream: bytes) -> Pixels:
    try:
        import libjpeg
    except ImportError as error:
        raise _Unavailable("libjpeg is missing") from error
    return libjpeg.decode(stream)  # pyright: ignore[reportPrivateImportUsage]


def _jpegls(image: DicomImage, stream: bytes) -> Pixels:
    try:
        import jpeg_ls
    except ImportError as error:
        raise _Unavailable("pyjpegls is missing") from error
    return jpeg_ls.decode(np.frombuffer(stream, dtype=np.uint8))


def _pillow(image: DicomImage, stream: bytes) -> Pixels:
    from PIL import Image

    if image.bits_allocated != 8:
        raise _Unavailable("pillow decodes 8 bits only; a wider decoder is missing")
    with Image.open(io.BytesIO(stream), formats=("JPEG", "JPEG2000")) as opened:
        if opened.size != (image.columns, image.rows):
            raise ValueError("another size than the header")
        return np.asarray(opened.convert("L" if image.samples == 1 else "RGB"))


def _gdcm(image: DicomImage, stream: bytes) -> Pixels:
    """Decode through SimpleITK, which carries GDCM.

    GDCM applies rescale and inverts MONOCHROME1 by itself, so the stream travels in a minimal
    file of its own without either.
    """
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory(prefix="medvol-") as folder:
        path = Path(folder) / "frame.dcm"
        path.write_bytes(_minimal_file(image, stream))
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        values = sitk.GetArrayFromImage(reader.Execute())
    return values[0] if values.ndim > 2 and values.shape[0] == 1 else values


def _minimal_file(image: DicomImage, stream: bytes) -> bytes:
    def element(tag: int, vr: bytes, value: bytes) -> bytes:
        value += b"" if len(value) % 2 == 0 else (b"\0" if vr in (b"UI", b"OB") else b" ")
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
        return head + struct.pack("<H", len(value)) + value

    def short(tag: int, value: int) -> bytes:
        return element(tag, b"US", struct.pack("<H", value))

    capture = b"1.2.840.10008.5.1.4.1.1.7"
    meta = element(0x00020002, b"UI", capture) + element(0x00020003, b"UI", b"2.25.1") + element(
        0x00020010, b"UI", image.parsed.syntax.encode()
    )  # fmt: skip
    grey = b"MONOCHROME2" if image.samples == 1 else b"RGB"
    body = b"".join([
        element(0x00080016, b"UI", capture), element(0x00080018, b"UI", b"2.25.1"),
        short(0x00280002, image.samples), element(0x00280004, b"CS", grey),
        *([short(0x00280006, 0)] if image.samples > 1 else []),
        short(0x00280010, image.rows), short(0x00280011, image.columns),
        short(0x00280100, image.bits_allocated), short(0x00280101, image.bits_stored),
        short(0x00280102, image.high_bit), short(0x00280103, int(image.is_signed)),
    ])  # fmt: skip
    stream += b"\0" * (len(stream) % 2)
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    pixels += struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    pixels += struct.pack("<HHI", 0xFFFE, 0xE000, len(stream)) + stream
    pixels += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    length = element(0x00020000, b"UL", struct.pack("<I", len(meta)))
    return b"\0" * 128 + b"DICM" + length + meta + body + pixels


def _rle(image: DicomImage, stream: bytes) -> Pixels:
    """PS3.5 Annex G: byte planes, most significant first, each PackBits compressed."""
    name, n_bytes = shown(image.path), image.bits_allocated // 8
    if len(stream) < 64 or n_bytes < 1:
        raise InputError(f"{name}: truncated or corrupt RLE pixel data")
    n, *offsets = struct.unpack_from("<16I", stream)
    if n != n_bytes * image.samples:
        raise InputError(f"{name}: RLE pixel data holds {n} planes, wanted "
                         f"{n_bytes * image.samples}")  # fmt: skip
    per_plane = image.rows * image.columns
    bounds = [*offsets[:n], len(stream)]
    if bounds[0] < 64 or sorted(bounds) != bounds:
        raise InputError(f"{name}: truncated or corrupt RLE pixel data: its planes are "
                         "not in order")  # fmt: skip
    planes = np.empty((image.samples, n_bytes, per_plane), dtype=np.uint8)
    for i in range(n):
        plane, rest = _unpack_bits(stream[bounds[i] : bounds[i + 1]], per_plane)
        if len(plane) < per_plane:
            raise InputError(f"{name}: truncated or corrupt RLE pixel data")
        if len(plane) > per_plane or rest.strip(_RLE_PADDING):
            raise InputError(f"{name}: RLE pixel data holds more than the {image.rows}x"
                             f"{image.columns} pixels that the header claims")  # fmt: skip
        planes[i // n_bytes, i % n_bytes] = np.frombuffer(plane, np.uint8)
    big = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f">u{n_bytes}")[..., 0]
    values = big.astype(f"={'i' if image.is_signed else 'u'}{n_bytes}")
    return values[0] if image.samples == 1 else np.ascontiguousarray(values.T)


def _unpack_bits(data: bytes, limit: int) -> tuple[bytearray, bytes]:
    """At least ``limit`` bytes where there are as many, and what was not unpacked."""
    out, i, n = bytearray(), 0, len(data)
    while i < n and len(out) < limit:
        control = data[i]
        i += 1
        if control < 128:
            out += data[i : i + control + 1]
            i += control + 1
        elif control > 128:
            out += data[i : i + 1] * (257 - control)
            i += 1
    return out, data[i:]


_Decoder = Callable[[DicomImage, bytes], Pixels]
_DECODERS: dict[str, tuple[_Decoder, ...]] = {
    **dict.fromkeys(_JPEG, (_pillow, _libjpeg, _gdcm)),
    **dict.fromkeys(_JPEG_LOSSLESS, (_libjpeg, _gdcm)),
    # pylibjpeg's decoder fills a cut stream with guesses; CharLS, in both of these, does not.
    **dict.fromkeys(_JPEG_LS, (_jpegls, _gdcm)),
    **dict.fromkeys(_JPEG_2000, (_openjpeg, _gdcm)),
}
