"""A JPEG whose codes end before its picture is refused, however properly the file ends."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medvol.core import InputError
from medvol.io import read_scan
from medvol.io.jpeg_stream import require_whole_jpeg

KINDS = {
    "grey": ("L", {}),
    "grey, restarts": ("L", {"restart_marker_blocks": 7}),
    "grey, own tables": ("L", {"optimize": True}),
    "grey, progressive": ("L", {"progressive": True}),
    "colour": ("RGB", {"subsampling": 2}),
    "colour, every pixel": ("RGB", {"subsampling": 0, "restart_marker_blocks": 3}),
    "colour, progressive": ("RGB", {"progressive": True}),
    "four inks": ("CMYK", {}),
}
END = b"\xff\xd9"
pytestmark = pytest.mark.filterwarnings("ignore:.*CMYK:UserWarning")


def stream(kind, pixels=None, size=(83, 61)):
    mode, options = KINDS[kind]
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    picture = Image.fromarray(
        noise if pixels is None else pixels, "CMYK" if pixels is None else None
    )
    buffer = io.BytesIO()
    picture.convert(mode).save(buffer, "JPEG", quality=85, **options)
    return buffer.getvalue()


def scan_of(tmp_path, data):
    (tmp_path / "p.jpg").write_bytes(data)
    return read_scan(tmp_path / "p.jpg")


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_picture_loads(tmp_path, kind):
    assert scan_of(tmp_path, stream(kind)).array.shape[1:] == (83, 61)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (17, 9), (64, 40)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_picture_in_the_filler_grey_loads(tmp_path, kind, size):
    # It looks cut to a decoder's eye, so its codes are counted, and they are all there.
    grey = np.full((size[1], size[0]), 128, np.uint8)
    assert np.abs(scan_of(tmp_path, stream(kind, grey)).array - 128).max() <= 1


@pytest.mark.parametrize("share", [0.4, 0.8, 0.95, 0.995])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_picture_with_a_proper_end_is_refused(tmp_path, kind, share):
    whole = stream(kind)
    with pytest.raises(InputError, match=r"p\.jpg: is truncated or corrupt"):
        scan_of(tmp_path, whole[: int(len(whole) * share)] + END)


@pytest.mark.parametrize("kind", ["grey", "grey, restarts", "colour", "four inks"])
def test_a_picture_that_lost_bytes_on_the_way_is_refused(tmp_path, kind):
    whole = stream(kind, size=(320, 200))
    start, end = len(whole) // 2, len(whole) * 5 // 8  # whole blocks, not detail of one
    with pytest.raises(InputError, match=r"p\.jpg: is truncated or corrupt"):
        scan_of(tmp_path, whole[:start] + whole[end:])


def test_two_bytes_of_padding_before_the_end_do_no_harm(tmp_path):
    whole = stream("colour")
    assert scan_of(tmp_path, whole[:-2] + b"\0\0" + END).array.shape[1:] == (83, 61)


DEEP = {
    "lossless, left": ("lossless", {"predictor": 1}),
    "lossless, plane": ("lossless", {"predictor": 4}),
    "lossless, halves": ("lossless", {"predictor": 6}),
    "12 bits": ("lossy", {}),
}


def deep(kind):
    imagecodecs = pytest.importorskip("imagecodecs")
    noise = np.random.default_rng(0).integers(0, 60, (40, 50))
    pixels = (np.add.outer(np.arange(40), np.arange(50)) * 9 + noise).astype(np.uint16)
    pixels[-3:] = 0  # as the air below a patient, which looks like filler
    if DEEP[kind][0] == "lossy":
        return imagecodecs.jpeg8_encode(pixels, level=95, bitspersample=12)
    return imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=16, **DEEP[kind][1])


def decoded(data):
    libjpeg = pytest.importorskip("libjpeg")
    return libjpeg.decode(data)


@pytest.mark.parametrize("kind", DEEP)
def test_a_whole_deep_stream_passes(tmp_path, kind):
    data = deep(kind)
    require_whole_jpeg(tmp_path / "a.dcm", data, decoded(data))


@pytest.mark.parametrize("share", [0.4, 0.7, 0.9])
@pytest.mark.parametrize("kind", DEEP)
def test_a_cut_deep_stream_is_refused(tmp_path, kind, share):
    whole = deep(kind)
    data = whole[: int(len(whole) * share)] + END
    with pytest.raises(InputError, match=r"a\.dcm: is truncated or corrupt"):
        require_whole_jpeg(tmp_path / "a.dcm", data, decoded(data))


def test_damaged_headers_of_a_suspicious_picture_are_refused(tmp_path):
    grey = stream("grey", np.full((40, 64), 128, np.uint8))
    for old, new in ((b"\xff\xda\x00\x08\x01\x01\x00", b"\xff\xda\x00\x08\x01\x01\x33"),
                     (b"\xff\xda\x00\x08\x01\x01", b"\xff\xda\x00\x08\x01\x09")):  # fmt: skip
        assert old in grey
        with pytest.raises(InputError, match=r"p\.jpg"):
            scan_of(tmp_path, grey.replace(old, new))
