"""A JPEG whose codes end before its picture is refused, however properly the file ends."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medvol.core import InputError
from medvol.io import read_scan

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


@pytest.mark.parametrize(
    ("kind", "share"),
    [(kind, share) for kind in KINDS for share in (0.4, 0.8, 0.95)
     if share < 0.5 or "progressive" not in kind],
)  # fmt: skip
def test_a_cut_picture_with_a_proper_end_is_refused(tmp_path, kind, share):
    whole = stream(kind)
    with pytest.raises(InputError, match=r"p\.jpg: is truncated or corrupt"):
        scan_of(tmp_path, whole[: int(len(whole) * share)] + END)


def test_damaged_headers_of_a_suspicious_picture_are_refused(tmp_path):
    grey = stream("grey", np.full((40, 64), 128, np.uint8))
    for old, new in ((b"\xff\xda\x00\x08\x01\x01\x00", b"\xff\xda\x00\x08\x01\x01\x33"),
                     (b"\xff\xda\x00\x08\x01\x01", b"\xff\xda\x00\x08\x01\x09")):  # fmt: skip
        assert old in grey
        with pytest.raises(InputError, match=r"p\.jpg"):
            scan_of(tmp_path, grey.replace(old, new))
