"""The NIfTI gate: what is right loads right, everything else is refused in one line."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.core import InputError, MedvolError
from medvol.io import InputWarning, ReadOptions, read_image, read_scan

VOXELS = np.arange(3 * 4 * 5, dtype="<i2").reshape(3, 4, 5, order="F")
SROW = ((1.5, 0, 0, -20), (0, 2, 0, 30), (0, 0, 3, 40))


def header(order: str = "<", **fields: Any) -> bytearray:
    """A NIfTI-1 header written by hand: libraries repair what a test wants broken."""
    f = {"dim": (3, 3, 4, 5, 1, 1, 1, 1), "datatype": 4, "pixdim": (1, 1.5, 2, 3, 0, 0, 0, 0),
         "vox_offset": 352.0, "slope": 1.0, "inter": 0.0, "units": 2, "qform_code": 0,
         "sform_code": 1, "quatern": (0, 0, 0), "qoffset": (-20, 30, 40), "srow": SROW,
         "magic": b"n+1\0", "sizeof_hdr": 348, **fields}  # fmt: skip
    raw = bytearray(352)
    struct.pack_into(order + "i", raw, 0, f["sizeof_hdr"])
    struct.pack_into(order + "8h", raw, 40, *f["dim"])
    struct.pack_into(order + "hh", raw, 70, f["datatype"], 16)
    struct.pack_into(order + "8f", raw, 76, *f["pixdim"])
    struct.pack_into(order + "3f", raw, 108, f["vox_offset"], f["slope"], f["inter"])
    raw[123] = f["units"]
    struct.pack_into(order + "2h", raw, 252, f["qform_code"], f["sform_code"])
    struct.pack_into(order + "6f", raw, 256, *f["quatern"], *f["qoffset"])
    struct.pack_into(order + "12f", raw, 280, *np.ravel(f["srow"]))
    raw[344:348] = f["magic"]
    return raw


def nifti(path: Path, voxels: Any = VOXELS, order: str = "<", **fields: Any) -> Path:
    data = bytes(header(order, **fields)) + np.asarray(voxels).tobytes(order="F")
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


NAN, INF = float("nan"), float("inf")
QUARTER = {"qform_code": 1, "sform_code": 0, "quatern": (0, 0, np.sqrt(0.5))}
REFUSED = {
    "no orientation": ({"sform_code": 0}, "orientation"),
    "sform of zeros": ({"srow": np.zeros((3, 4))}, "sform|singular"),
    "sform with NaN": ({"srow": np.full((3, 4), NAN)}, "affine|non-finite"),
    "sform with equal axes": ({"srow": ((1, 1, 0, 0), (0, 0, 0, 0), (0, 0, 1, 0))}, "singular"),
    "qform against sform": ({"qform_code": 1, "quatern": (0, 0, 1)}, "sform and qform"),
    "qform shifted by 5 mm": ({"qform_code": 1, "qoffset": (-15, 30, 40)}, "sform and qform"),
    "zero pixdim under qform": ({**QUARTER, "pixdim": (1, 1, 1, 0, 0, 0, 0, 0)}, "pixdim"),
    "NaN pixdim under qform": ({**QUARTER, "pixdim": (1, 1, NAN, 1, 0, 0, 0, 0)}, "pixdim"),
    "negative pixdim under qform": ({**QUARTER, "pixdim": (1, -1, 1, 1, 0, 0, 0, 0)}, "pixdim"),
    "quaternion too long": ({**QUARTER, "quatern": (1, 1, 1)}, "quaternion"),
    "time series": ({"dim": (4, 3, 4, 5, 2, 1, 1, 1)}, "4D"),
    "vector image": ({"dim": (5, 3, 4, 5, 1, 3, 1, 1)}, "4D"),
    "RGB": ({"datatype": 128}, "RGB"),
    "complex": ({"datatype": 32}, "complex"),
    "one bit": ({"datatype": 1}, "data type"),
    "unknown type": ({"datatype": 9999}, "data type.*9999"),
    "negative dim": ({"dim": (3, -3, 4, 5, 1, 1, 1, 1)}, "negative"),
    "zero dim": ({"dim": (3, 3, 4, 0, 1, 1, 1, 1)}, "zero"),
    "no dims": ({"dim": (0, 3, 4, 5, 1, 1, 1, 1)}, "dim"),
    "nine dims": ({"dim": (9, 3, 4, 5, 1, 1, 1, 1)}, "dim"),
    "offset in header": ({"vox_offset": 0.0}, "vox_offset"),
    "offset past the end": ({"vox_offset": 4000.0}, "truncated"),
    "offset NaN": ({"vox_offset": NAN}, "vox_offset"),
    "infinite slope": ({"slope": INF}, "slope"),
    "NaN inter": ({"slope": 2.0, "inter": NAN}, "slope"),
    "no magic": ({"magic": b"\0\0\0\0"}, "not a valid NIfTI"),
    "too many voxels": ({"dim": (3, 30000, 30000, 30000, 1, 1, 1, 1)}, "too large"),
    "voxels missing": ({"dim": (3, 3, 4, 6, 1, 1, 1, 1)}, "truncated"),
    "a slice unclaimed": ({"dim": (3, 3, 4, 4, 1, 1, 1, 1)}, None),
    "spacing of metres": ({"units": 1}, "implausible"),
    "unknown unit": ({"units": 5}, "unit"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("what", [w for w, (_, fault) in REFUSED.items() if fault])
def test_broken_header_is_refused_in_one_line(tmp_path, what, suffix):
    fields, fault = REFUSED[what]
    path = nifti(tmp_path / f"case{suffix}", **fields)
    with pytest.raises(InputError, match=fault) as refusal:
        read_scan(path)
    assert path.name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_more_voxels_than_claimed_are_refused(tmp_path):
    voxels = np.zeros((64, 64, 4), "<i2")
    path = nifti(tmp_path / "case.nii.gz", voxels, dim=(3, 64, 64, 3, 1, 1, 1, 1))
    with pytest.raises(InputError, match="more than its header claims"):
        read_scan(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", "<>")
def test_both_byte_orders_load_alike(tmp_path, suffix, order):
    path = nifti(tmp_path / f"case{suffix}", VOXELS.astype(f"{order}i2"), order)
    scan = read_scan(path)
    assert np.array_equal(scan.array[0], VOXELS)
    assert np.allclose(scan.affine[:3], SROW)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (2, 1), (3, 0.001)])
def test_units_become_millimetres(tmp_path, unit, factor):
    scan = read_scan(nifti(tmp_path / "u.nii", units=unit))
    assert np.allclose(scan.affine[:3], np.asarray(SROW) * factor)


def test_metres_become_millimetres(tmp_path):
    small, pixdim = np.asarray(SROW) / 1000, (1, 0.0015, 0.002, 0.003, 0, 0, 0, 0)
    scan = read_scan(nifti(tmp_path / "u.nii", units=1, srow=small, pixdim=pixdim))
    assert np.allclose(scan.affine[:3], SROW, atol=1e-4)


@pytest.mark.parametrize(("slope", "inter", "expected"),
                         [(0, 5, (1, 0)), (NAN, NAN, (1, 0)), (2, -1024, (2, -1024)),
                          (0.5, 0, (0.5, 0))])  # fmt: skip
def test_scaling_follows_the_standard(tmp_path, slope, inter, expected):
    scan = read_scan(nifti(tmp_path / "s.nii.gz", slope=slope, inter=inter))
    assert np.array_equal(scan.array[0], VOXELS * expected[0] + expected[1])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_voxel_that_is_no_number_refuses_the_file(tmp_path, bad):
    voxels = VOXELS.astype("<f4")
    voxels[1, 2, 3] = bad
    with pytest.raises(MedvolError, match="1 of 60 voxels are non-finite"):
        read_scan(nifti(tmp_path / "n.nii.gz", voxels, datatype=16))


def test_integers_that_float32_would_merge_are_refused(tmp_path):
    voxels = (VOXELS.astype("<i4") + 2**24).astype("<i4")
    with pytest.raises(InputError, match="precision"):
        read_scan(nifti(tmp_path / "p.nii", voxels, datatype=8))


def test_float64_beyond_float32_is_refused(tmp_path):
    voxels = VOXELS.astype("<f8") * 1e300
    with pytest.raises(InputError, match="non-finite"):
        read_scan(nifti(tmp_path / "f.nii", voxels, datatype=64))


@pytest.mark.parametrize(("spoil", "fault"), [
    (lambda b: b[:-4], "truncated"),
    (lambda b: b[: len(b) // 2], "truncated"),
    (lambda b: b[:-8] + bytes([b[-8] ^ 1]) + b[-7:], "corrupt"),
    (lambda b: b[:40] + bytes([b[40] ^ 0xFF]) + b[41:], "corrupt|truncated|NIfTI"),
    (lambda b: b"not gzip at all" * 9, "not a valid gzip"),
    (lambda b: b"", "empty"),
    (lambda b: b[:1], "not a valid gzip"),
])  # fmt: skip
def test_damaged_gzip_is_refused(tmp_path, spoil, fault):
    path = nifti(tmp_path / "g.nii.gz")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=fault):
        read_scan(path)


def test_a_bomb_is_stopped_by_its_header(tmp_path):
    # 8 GiB claimed honestly; only the first bytes may be decompressed
    raw = bytes(header(dim=(3, 2048, 2048, 1024, 1, 1, 1, 1))) + b"\0" * (1 << 20)
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(raw))
    with pytest.raises(MemoryError, match="too large"):
        read_scan(path)


def test_a_bomb_behind_an_honest_volume_is_not_inflated(tmp_path):
    raw = bytes(header()) + VOXELS.tobytes(order="F") + b"\0" * (64 << 20)
    path = tmp_path / "tail.nii.gz"
    path.write_bytes(gzip.compress(raw, 1))
    with pytest.raises(InputError, match="more than its header claims"):
        read_scan(path)


def test_a_lower_ceiling_refuses_a_small_image(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVOL_MAX_IMAGE_GIB", "1e-7")
    with pytest.raises(MemoryError, match="MEDVOL_MAX_IMAGE_GIB"):
        read_scan(nifti(tmp_path / "c.nii"))


def test_gzip_under_a_plain_name_and_the_reverse_load(tmp_path):
    (tmp_path / "a.nii").write_bytes(gzip.compress(nifti(tmp_path / "x.nii").read_bytes()))
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "x.nii").read_bytes())
    for name in ("a.nii", "b.nii.gz"):
        assert np.array_equal(read_scan(tmp_path / name).array[0], VOXELS)


def test_an_explicit_answer_overrides_an_open_question(tmp_path):
    path = nifti(tmp_path / "o.nii", sform_code=0)
    scan = read_scan(path, ReadOptions(orientation="assume_ras"))
    assert np.allclose(np.diag(scan.affine), (1.5, 2, 3, 1))
    path = nifti(tmp_path / "q.nii", qform_code=1, quatern=(0, 0, 1))
    assert np.allclose(read_scan(path, ReadOptions(orientation="sform")).affine[:3], SROW)
    assert read_scan(path, ReadOptions(orientation="qform")).affine[0, 0] == pytest.approx(-1.5)


def test_a_fourth_axis_becomes_channels_on_request(tmp_path):
    voxels = np.arange(120, dtype="<i2").reshape(3, 4, 5, 2, order="F")
    path = nifti(tmp_path / "c.nii", voxels, dim=(4, 3, 4, 5, 2, 1, 1, 1))
    array = read_scan(path, ReadOptions(channels=True)).array
    assert np.array_equal(array, np.moveaxis(voxels, -1, 0))


def test_a_pair_of_hdr_and_img_loads_by_either_name(tmp_path):
    (tmp_path / "p.hdr").write_bytes(bytes(header(magic=b"ni1\0", vox_offset=0.0))[:348])
    (tmp_path / "p.img").write_bytes(VOXELS.tobytes(order="F"))
    for name in ("p.hdr", "p.img"):
        assert np.array_equal(read_scan(tmp_path / name).array[0], VOXELS)
    (tmp_path / "p.img").unlink()
    with pytest.raises(InputError, match="other half"):
        read_scan(tmp_path / "p.hdr")


def test_a_control_character_in_a_name_cannot_forge_a_line(tmp_path):
    path = nifti(tmp_path / "a\nERROR \x1b[31mfake.nii", sform_code=0)
    with pytest.raises(InputError) as refusal:
        read_scan(path)
    assert str(refusal.value).isprintable()


def test_pixdim_against_the_only_form_is_mentioned(tmp_path):
    path = nifti(tmp_path / "w.nii", pixdim=(1, 9, 9, 9, 0, 0, 0, 0))
    with pytest.warns(InputWarning, match=r"w\.nii: pixdim differs"):
        assert read_scan(path).affine[0, 0] == 1.5


@given(q=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
       spacing=st.tuples(*[st.floats(0.1, 9)] * 3), fac=st.sampled_from([-1, 1]))  # fmt: skip
def test_qform_agrees_with_nibabel(tmp_path_factory, q, spacing, fac):
    import nibabel as nib

    a, b, c, d = np.asarray(q) / np.linalg.norm(q) * (1 if q[0] >= 0 else -1)
    path = nifti(tmp_path_factory.mktemp("q") / "q.nii", qform_code=1, sform_code=0,
                 quatern=(b, c, d), pixdim=(fac, *spacing, 0, 0, 0, 0))  # fmt: skip
    assert a >= 0
    expected = nib.load(path).get_qform()
    assert np.allclose(read_scan(path).affine, expected, atol=2e-3)


def test_nifti_2_from_nibabel_loads(tmp_path):
    import nibabel as nib

    nib.save(nib.Nifti2Image(VOXELS, np.vstack([SROW, (0, 0, 0, 1)])), tmp_path / "n2.nii.gz")
    scan = read_scan(tmp_path / "n2.nii.gz")
    assert np.array_equal(scan.array[0], VOXELS)
    assert np.allclose(scan.affine[:3], SROW)


def test_read_image_is_channel_first_float32_with_a_ras_affine(tmp_path):
    import torch

    image = read_image(nifti(tmp_path / "i.nii.gz"))
    assert image.shape == (1, 3, 4, 5)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert np.allclose(image.affine[:3], SROW)
    assert image.meta["filename_or_obj"] == str(tmp_path / "i.nii.gz")


@given(data=st.data())
def test_no_byte_flip_crashes_or_overruns_the_reader(tmp_path_factory, data):
    raw = bytearray(header()) + VOXELS.tobytes(order="F")
    for at in data.draw(st.lists(st.integers(0, 351), min_size=1, max_size=6)):
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "f.nii"
    path.write_bytes(bytes(raw))
    try:
        scan = read_scan(path)
    except MedvolError:
        return
    except UserWarning:  # warnings are errors in tests
        return
    assert np.isfinite(scan.array).all()
    assert np.isfinite(scan.affine).all()
    assert abs(np.linalg.det(scan.affine)) > 0
