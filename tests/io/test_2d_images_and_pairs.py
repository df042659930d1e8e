"""Pictures, stacks of pictures, and the pair gate."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medvol.core import GridMismatchError, InputError, LabelError
from medvol.io import InputWarning, ReadOptions, read_image, read_pair, read_scan, write_nifti
from medvol.io.pair import onto_grid

GREY = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9)


def save(path, array, **kwargs):
    Image.fromarray(np.asarray(array)).save(path, **kwargs)
    return path


def test_columns_are_x_and_rows_are_y(tmp_path):
    array = read_scan(save(tmp_path / "g.png", GREY)).array
    assert array.shape == (1, 9, 6)
    assert np.array_equal(array[0].T, GREY)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_their_values(tmp_path, suffix):
    wide = (GREY.astype(np.uint16) + 1) * 1000
    assert np.array_equal(read_scan(save(tmp_path / f"w{suffix}", wide)).array[0].T, wide)


def test_float_tiff_keeps_its_values(tmp_path):
    wide = GREY.astype(np.float32) / 7
    assert np.array_equal(read_scan(save(tmp_path / "f.tif", wide)).array[0].T, wide)


def test_alpha_is_no_channel_and_its_loss_is_said(tmp_path):
    rgba = np.stack([GREY, GREY, GREY, np.full_like(GREY, 9)], -1)
    with pytest.warns(InputWarning, match="alpha"):
        array = read_scan(save(tmp_path / "a.png", rgba)).array
    assert np.array_equal(array[0].T, GREY)
    assert array.shape[0] == 1


def test_the_shown_grey_of_a_palette_counts_and_not_its_index(tmp_path):
    picture = Image.fromarray(GREY, mode=None).convert("P")
    picture.putdata(GREY.ravel().tolist())
    picture.putpalette([255 - i for i in range(256) for _ in range(3)])
    picture.save(tmp_path / "p.png")
    assert np.array_equal(read_scan(tmp_path / "p.png").array[0].T, 255 - GREY)


def test_colours_are_three_channels(tmp_path):
    rgb = np.stack([GREY, GREY + 1, GREY + 2], -1)
    array = read_scan(save(tmp_path / "c.png", rgb)).array
    assert np.array_equal(array.transpose(2, 1, 0), rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    smooth = np.kron(np.array([[0, 60, 120], [180, 220, 250]], np.uint8), np.ones((16, 16)))
    turned = {1: smooth, 2: smooth[:, ::-1], 3: smooth[::-1, ::-1], 4: smooth[::-1],
              5: smooth.T, 6: np.rot90(smooth, -1), 7: smooth[::-1, ::-1].T,
              8: np.rot90(smooth)}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "e.jpg", smooth.astype(np.uint8), quality=95, exif=exif)
    got = read_scan(path).array[0].T
    assert got.shape == turned.shape
    assert np.abs(got - turned).max() < 12


def test_white_is_zero_tiffs_are_turned(tmp_path):
    # a minimal little-endian TIFF: 8-bit WhiteIsZero, one strip
    tags = [(256, 4, 9), (257, 4, 6), (258, 3, 8), (259, 3, 1), (262, 3, 0), (273, 4, 8),
            (277, 3, 1), (278, 4, 6), (279, 4, 54)]  # fmt: skip
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v)
                                                  for t, k, v in tags) + b"\0" * 4  # fmt: skip
    data = b"II*\0" + struct.pack("<I", 8 + 54) + GREY.tobytes() + ifd
    (tmp_path / "m.tif").write_bytes(data)
    assert np.array_equal(read_scan(tmp_path / "m.tif").array[0].T, 255 - GREY)


def test_cmyk_is_converted_and_said(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.jpg")
    with pytest.warns(InputWarning, match="CMYK"):
        assert (read_scan(tmp_path / "c.jpg").array > 250).all()


def damaged_crc(data):
    at = data.index(b"IDAT") + 6
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(("spoil", "fault"), [
    (lambda d: d[: len(d) // 2], "truncated or corrupt"),
    (damaged_crc, "corrupt"),
    (lambda d: b"<html>error</html>", "not a valid image"),
    (lambda d: b"", "empty"),
    (lambda d: d[:8] + struct.pack(">I", 13) + b"IHDR" + (h := struct.pack(">IIBBBBB", 50000, 50000,
     8, 0, 0, 0, 0)) + struct.pack(">I", zlib.crc32(b"IHDR" + h)) + d[33:], "too large"),
])  # fmt: skip
def test_damaged_pictures_are_refused(tmp_path, spoil, fault):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8)
    path = save(tmp_path / "d.png", noise)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=fault) as refusal:
        read_scan(path)
    assert "d.png" in str(refusal.value)


def test_pages_are_refused(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "p.tif", save_all=True,
                               append_images=[Image.fromarray(GREY)])  # fmt: skip
    with pytest.raises(InputError, match="2 frames"):
        read_scan(tmp_path / "p.tif")


def stack(folder, numbers, name="s{}.png"):
    folder.mkdir()
    for n in numbers:
        save(folder / name.format(n), np.full((4, 3), n, np.uint8))
    return folder


def test_slices_are_counted_not_spelled(tmp_path):
    folder = stack(tmp_path / "s", range(1, 13))
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    scan = read_scan(folder, ReadOptions(spacing_mm=(1.5, 2, 3)))
    assert scan.array[0, 0, 0].tolist() == list(range(1, 13))
    assert np.allclose(np.diag(scan.affine), (1.5, 2, 3, 1))
    assert read_image(folder, spacing_mm=(1, 1, 1)).shape == (1, 3, 4, 12)


def test_a_stack_is_refused_for_a_gap_a_double_or_no_spacing(tmp_path):
    with pytest.raises(InputError, match="spacing_mm"):
        read_scan(stack(tmp_path / "a", (1, 2)))
    spacing = ReadOptions(spacing_mm=(1, 1, 1))
    with pytest.raises(InputError, match="slice 4 missing"):
        read_scan(stack(tmp_path / "b", (1, 2, 3, 5)), spacing)
    folder = stack(tmp_path / "c", (1, 2))
    save(folder / "s01.png", np.zeros((4, 3), np.uint8))
    with pytest.raises(InputError, match="duplicate"):
        read_scan(folder, spacing)
    folder = stack(tmp_path / "d", (1, 2))
    save(folder / "s3.png", np.zeros((5, 3), np.uint8))
    with pytest.raises(InputError, match="size"):
        read_scan(folder, spacing)
    for wrong in ((1, 1), (1, 1, 0), (1, 1, float("nan")), (1, 1, -2)):
        with pytest.raises(InputError, match="spacing"):
            read_scan(folder, ReadOptions(spacing_mm=wrong))


AFFINE = np.array([[1.5, 0, 0, -20], [0, 2, 0, 30], [0, 0, 3, 40], [0, 0, 0, 1.0]])
CLASSES = {1: "a", 2: "b"}


@pytest.fixture
def pair(tmp_path, phantom):
    labels = np.zeros(phantom.shape, np.uint8)
    labels[1:3, 2:4, 1], labels[5, 0, 4] = 1, 2

    def build(label=labels, affine=AFFINE):
        image = write_nifti(tmp_path / "image.nii.gz", phantom, AFFINE)
        return image, write_nifti(tmp_path / "label.nii.gz", label, affine), labels

    return build


def test_a_matching_pair_loads(pair):
    image, label, labels = pair()
    got_image, got_label = read_pair(image, label, CLASSES)
    assert got_image.shape == got_label.shape
    assert np.array_equal(got_label[0], labels)


@pytest.mark.parametrize("flips", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_another_voxel_order_of_the_same_grid_is_brought_together(pair, flips, order):
    _, _, labels = pair()
    affine = AFFINE.copy()
    stored = np.flip(labels, flips)
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (labels.shape[axis] - 1)
        affine[:3, axis] *= -1
    affine[:, :3] = affine[:, list(order)]
    image, label, _ = pair(stored.transpose(order), affine)
    _, got = read_pair(image, label, CLASSES)
    assert np.array_equal(got[0], labels)
    assert np.allclose(got.affine, AFFINE)


@pytest.mark.parametrize(("change", "error", "fault"), [
    (lambda la, af: (la[:-1], af), GridMismatchError, "shape"),
    (lambda la, af: (la.transpose(1, 0, 2), af), GridMismatchError, "shape"),
    (lambda la, af: (la, af @ np.diag([1.1, 1.1, 1.1, 1])), GridMismatchError, "geometry"),
    (lambda la, af: (la, af + np.eye(4)[:, [3, 3, 3, 3]].T[::-1] * 0.01), GridMismatchError, "mm"),
    (lambda la, af: (np.where(la == 2, 7, la), af), LabelError, "label value 7"),
    (lambda la, af: (np.where(la > 0, 255, 0), af), LabelError, "255"),
    (lambda la, af: (np.where(la == 2, 257, la.astype(int)), af), LabelError, "257"),
    (lambda la, af: (np.where(la == 2, -1, la.astype(int)), af), LabelError, "-1"),
    (lambda la, af: (la * np.float32(0.5), af), LabelError, "0.5 is not an integer"),
])  # fmt: skip
def test_a_mismatched_pair_is_refused(pair, change, error, fault):
    _, _, labels = pair()
    stored, affine = change(labels, AFFINE.copy())
    affine[3] = (0, 0, 0, 1)
    image, label, _ = pair(stored, affine)
    with pytest.raises(error, match=fault) as refusal:
        read_pair(image, label, CLASSES)
    assert "label.nii.gz" in str(refusal.value)


def test_almost_whole_labels_are_rounded_and_not_cut(pair):
    _, _, labels = pair()
    image, label, _ = pair(labels * np.float32(0.99999))
    assert np.array_equal(read_pair(image, label, CLASSES)[1][0], labels)


def test_swapped_image_and_label_are_refused(pair):
    image, label, _ = pair()
    with pytest.raises(LabelError, match="class list"):
        read_pair(label, image, CLASSES)


def test_a_half_voxel_shift_is_no_match(pair):
    image, label, _ = pair()
    a, b = read_scan(image), read_scan(label)
    b.affine[0, 3] += 0.75
    with pytest.raises(GridMismatchError, match=r"0\.75 mm apart"):
        onto_grid(a, b)
