"""Pictures of neighbouring kinds: 16-bit colours, turned TIFFs, short streams, bombs."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medvol.core import InputError
from medvol.io import read_scan

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
WIDE = (np.arange(12, dtype=np.uint16).reshape(3, 4) * 300 + 7).astype(np.uint16)
TURNS = {1: GREY, 2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1], 5: GREY.T,
         6: np.rot90(GREY, -1), 7: GREY[::-1, ::-1].T, 8: np.rot90(GREY)}  # fmt: skip


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, rows, depth, colour, *, more=b"", width=4, height=3, raw=None, interlace=0):
    """A PNG written by hand: libraries refuse to write what a test wants."""
    stream = b"".join(b"\0" + row.tobytes() for row in rows) if raw is None else raw
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more
                     + chunk(b"IDAT", zlib.compress(stream)) + chunk(b"IEND", b""))  # fmt: skip
    return path


def colours(n, alpha=None):
    planes = [WIDE + i for i in range(n)] + ([np.full_like(WIDE, alpha)] if alpha else [])
    return np.stack(planes, -1)


@pytest.mark.parametrize(("colour", "pixels"), [(2, colours(3)), (6, colours(3, 65535))])
def test_sixteen_bit_colours_keep_all_their_bits(tmp_path, colour, pixels):
    array = read_scan(png(tmp_path / "c.png", pixels.astype(">u2"), 16, colour)).array
    assert np.array_equal(array, pixels[..., :3].transpose(2, 1, 0))


def test_sixteen_bit_greys_in_three_channels_are_one(tmp_path):
    rows = np.stack([WIDE] * 3, -1).astype(">u2")
    assert np.array_equal(read_scan(png(tmp_path / "g.png", rows, 16, 2)).array[0].T, WIDE)


def test_what_no_decoder_reads_whole_is_refused(tmp_path):
    rows = np.stack([WIDE, np.full_like(WIDE, 65535)], -1).astype(">u2")
    with pytest.raises(InputError, match=r"alpha.*without loss"):
        read_scan(png(tmp_path / "la.png", rows, 16, 4))


def tiff(path, pixels, *tags):
    """An uncompressed little-endian TIFF of one strip."""
    pixels = np.ascontiguousarray(pixels)
    rows, columns = pixels.shape[:2]
    bits = pixels.dtype.itemsize * 8
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    entries = {256: columns, 257: rows, 258: bits, 259: 1, 262: 1 if samples == 1 else 2,
               273: 400, 277: samples, 278: rows, 279: pixels.nbytes, **dict(tags)}  # fmt: skip
    raw = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, value in sorted(entries.items()):
        if tag == 258 and samples > 1:  # one number for each sample, stored behind
            raw += struct.pack("<HHII", tag, 3, samples, 390)
        else:
            raw += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
    raw = (raw + b"\0" * 4).ljust(390, b"\0") + struct.pack("<HHHHH", bits, bits, bits, bits, 0)
    path.write_bytes(raw + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
    return path


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_turned_once_in_every_format(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(GREY).save(tmp_path / "t.png", exif=exif)
    Image.fromarray(GREY).save(tmp_path / "z.tif", tiffinfo={274: orientation},
                               compression="tiff_lzw")  # fmt: skip
    tiff(tmp_path / "u.tif", GREY, (274, orientation))
    for name in ("t.png", "z.tif", "u.tif"):
        assert np.array_equal(read_scan(tmp_path / name).array[0].T, TURNS[orientation]), name


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint16"])
def test_tiff_values_keep_their_sign(tmp_path, dtype):
    values = (np.arange(12).reshape(3, 4) - (0 if dtype[0] == "u" else 6)).astype(dtype)
    path = tiff(tmp_path / "s.tif", values, (339, 1 if dtype[0] == "u" else 2))
    assert np.array_equal(read_scan(path).array[0].T, values)


def test_sixteen_bit_tiff_colours_keep_all_their_bits(tmp_path):
    array = read_scan(tiff(tmp_path / "c.tif", colours(3))).array
    assert np.array_equal(array, colours(3).transpose(2, 1, 0))


BYTES = np.arange(12, dtype=np.uint8).reshape(3, 4)
PALETTE = chunk(b"PLTE", bytes([9, 9, 9, 5, 5, 5, 200, 200, 200]))


@pytest.mark.parametrize(("options", "fault"), [
    ({"raw": b"\0abcd"}, "truncated: expected 15 bytes of pixels, found 5"),
    ({"raw": b"\0" * (8 << 20)}, "corrupt.*found more"),
    ({"width": 0}, "not a valid image"), ({"width": 60000, "height": 60000}, "too large"),
    ({"colour": 3, "more": PALETTE}, "colour 11 of a palette of 3"),
    ({"more": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * (8 << 20)))}, "too large"),
    ({"interlace": 1}, "expected 18 bytes"),
])  # fmt: skip
def test_an_odd_png_is_refused(tmp_path, options, fault):
    options = {"depth": 8, "colour": 0, **options}
    path = png(tmp_path / "odd.png", BYTES, options.pop("depth"), options.pop("colour"), **options)
    with pytest.raises(InputError, match=fault) as refusal:
        read_scan(path)
    assert "odd.png" in str(refusal.value)


def test_shallow_interlaced_and_transparent_greys_load(tmp_path):
    packed = np.array([[0b00011011], [0b11100100], [0b00011011]], np.uint8)
    shallow = read_scan(png(tmp_path / "2.png", packed, 2, 0)).array[0].T
    assert shallow.tolist() == [[0, 85, 170, 255], [255, 170, 85, 0], [0, 85, 170, 255]]
    clear = png(tmp_path / "t.png", BYTES, 8, 0, more=chunk(b"tRNS", b"\0\3"))
    assert np.array_equal(read_scan(clear).array[0].T, BYTES)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    raw = b"".join(b"\0" + pixels[r::rs, c::cs][i].tobytes() for r, rs, c, cs in
                   ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2),
                    (0, 2, 1, 2), (1, 2, 0, 1)) for i in range(len(pixels[r::rs])))  # fmt: skip
    woven = png(tmp_path / "i.png", (), 8, 0, raw=raw, width=8, height=8, interlace=1)
    assert np.array_equal(read_scan(woven).array[0].T, pixels)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.98])
def test_a_cut_jpeg_or_tiff_is_refused(tmp_path, cut):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "c.jpg")
    tiff(tmp_path / "c.tif", noise)
    for name in ("c.jpg", "c.tif"):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw[: int(len(raw) * cut)])
        with pytest.raises(InputError, match=rf"{name}.*(truncated|corrupt|not a valid)"):
            read_scan(tmp_path / name)


def test_a_picture_is_known_by_its_bytes_and_not_its_name(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "j.png", format="BMP")
    assert np.array_equal(read_scan(tmp_path / "j.png").array[0].T, GREY)
    Image.fromarray(GREY).save(tmp_path / "g.png", format="GIF")
    with pytest.raises(InputError, match="not a valid image"):
        read_scan(tmp_path / "g.png")
