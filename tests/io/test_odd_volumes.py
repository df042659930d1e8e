"""NIfTI, NRRD and MetaImage files of neighbouring kinds, each with its one right answer."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from tests.io.test_nifti_gate import NAN, QUARTER, SROW, VOXELS, header, nifti

from medvol.core import InputError
from medvol.io import ReadOptions, read_scan
from tests.io.test_round_trips import meta_text, nrrd_text

TURN = ((0, -2, 0, 5), (1.5, 0, 0, 6), (0, 0, 3, 7))
SHEARED = ((1.5, 0, 0.4, -20), (0, 2, 0, 30), (0, 0, 3, 40))
MM = (1, 1.5, 2, 3, 0, 0, 0, 0)
#: name -> (fields, affine rows that the file means)
NIFTI_MEANS = {
    "qfac of 0 means 1": ({**QUARTER, "pixdim": (0, 1.5, 2, 3, 0, 0, 0, 0)},
                          ((0, -2, 0, -20), (1.5, 0, 0, 30), (0, 0, 3, 40))),
    "qfac of -1 mirrors Z": ({**QUARTER, "pixdim": (-1, 1.5, 2, 3, 0, 0, 0, 0)},
                             ((0, -2, 0, -20), (1.5, 0, 0, 30), (0, 0, -3, 40))),
    "identity quaternion": ({"qform_code": 2, "sform_code": 0}, SROW),
    "both forms, one grid": ({"qform_code": 1}, SROW),
    "sform in MNI space alone": ({"sform_code": 4}, SROW),
    "a negative code is none": ({"qform_code": -3, "quatern": (0, 0, 1)}, SROW),
    "sform turned in plane": ({"srow": TURN, "pixdim": MM}, TURN),
    "a sheared sform keeps its world": ({"srow": SHEARED}, SHEARED),
    "sform wins over zero pixdim": ({"pixdim": (1, 0, 0, 0, 0, 0, 0, 0)}, SROW),
    "sform wins over NaN pixdim": ({"pixdim": (1, NAN, NAN, NAN, 0, 0, 0, 0)}, SROW),
    "microns with a time unit": ({"units": 3 | 16}, np.asarray(SROW) / 1000),
    "millimetres with seconds": ({"units": 2 | 8}, SROW),
    "four axes, one volume": ({"dim": (4, 3, 4, 5, 1, 1, 1, 1)}, SROW),
    "seven axes, one volume": ({"dim": (7, 3, 4, 5, 1, 1, 1, 1)}, SROW),
    "zeros behind the used dims": ({"dim": (3, 3, 4, 5, 0, 0, 0, 0)}, SROW),
    "bytes between header and voxels": ({"vox_offset": 368.0}, SROW),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("what", NIFTI_MEANS)
def test_an_odd_nifti_means_one_affine(tmp_path, what, suffix):
    fields, rows = NIFTI_MEANS[what]
    gap = bytes(int(fields.get("vox_offset", 352)) - 352)
    raw = bytes(header(**fields)) + gap + VOXELS.tobytes(order="F")
    path = tmp_path / f"o{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    scan = read_scan(path)
    assert np.allclose(scan.affine[:3], rows, atol=1e-5)
    assert np.array_equal(scan.array[0], VOXELS)


def fault_of(path, fault):
    """The refusal of a file: one printable line that names the file and the fault."""
    with pytest.raises(InputError, match=fault) as refusal:
        read_scan(path)
    text = str(refusal.value)
    assert path.name in text
    assert text.isprintable()
    return text


NIFTI_REFUSED = {
    "NaN in an unused qform corner": ({"qform_code": 1, "qoffset": (NAN, 0, 0)}, "qform"),
    "infinite quaternion": ({**QUARTER, "quatern": (float("inf"), 0, 0)}, "qform|non-finite"),
    "mirrored against each other": ({"qform_code": 1, "pixdim": (-1, 1.5, 2, 3, 0, 0, 0, 0)},
                                    "sform and qform"),
    "spacings that disagree": ({"qform_code": 1, "pixdim": (1, 1.5, 2, 4, 0, 0, 0, 0)},
                               "sform and qform"),
    "sform of 1e-12 mm": ({"srow": np.asarray(SROW) * 1e-12}, "spacing|singular"),
    "sform of a kilometre": ({"srow": np.asarray(SROW) * 1e6}, "implausible"),
    "one axis of zeros": ({"srow": ((1, 0, 0, 0), (0, 0, 0, 0), (0, 0, 1, 0))}, "singular"),
    "RGBA": ({"datatype": 2304}, "RGBA"), "128-bit float": ({"datatype": 1536}, "128-bit"),
    "one symmetric tensor a voxel": ({"dim": (5, 3, 4, 5, 1, 6, 1, 1)}, "4D"),
    "two time points": ({"dim": (4, 3, 4, 5, 2, 1, 1, 1)}, "4D"),
    "a fractional offset": ({"vox_offset": 352.5}, "vox_offset"),
    "a negative offset": ({"vox_offset": -352.0}, "vox_offset"),
    "an offset of 1e30": ({"vox_offset": 1e30}, "vox_offset"),
    "minus infinite slope": ({"slope": float("-inf")}, "slope"),
    "infinite intercept": ({"slope": 1.0, "inter": float("inf")}, "slope"),
    "a unit of hertz": ({"units": 7}, "unit"),
    "dim[0] of 8": ({"dim": (8, 3, 4, 5, 1, 1, 1, 1)}, "dim"),
    "dim[0] below zero": ({"dim": (-3, 3, 4, 5, 1, 1, 1, 1)}, "dim"),
    "32767 in every direction": ({"dim": (3, 32767, 32767, 32767, 1, 1, 1, 1)}, "too large"),
    "a pair's magic in one file": ({"magic": b"ni1\0"}, ".img file"),
    "a header of 0 bytes": ({"sizeof_hdr": 0}, "not a valid NIfTI"),
}  # fmt: skip


@pytest.mark.parametrize("what", NIFTI_REFUSED)
def test_an_odd_nifti_is_refused_in_one_line(tmp_path, what):
    fields, fault = NIFTI_REFUSED[what]
    assert fault_of(nifti(tmp_path / "odd.nii.gz", **fields), fault)


def nifti_2(order="<", **fields):
    f = {"dim": (3, 3, 4, 5, 1, 1, 1, 1), "offset": 544, "magic": b"n+2\0\r\n\x1a\n", **fields}
    raw = bytearray(544)
    struct.pack_into(order + "i", raw, 0, 540)
    raw[4:12] = f["magic"]
    struct.pack_into(order + "hh8q", raw, 12, 4, 16, *f["dim"])
    struct.pack_into(order + "8d", raw, 104, *MM)
    struct.pack_into(order + "qdd", raw, 168, f["offset"], 1.0, 0.0)
    struct.pack_into(order + "2i", raw, 344, 0, 1)
    struct.pack_into(order + "12d", raw, 400, *np.ravel(SROW))
    struct.pack_into(order + "i", raw, 500, 2)
    return bytes(raw) + VOXELS.astype(f"{order}i2").tobytes(order="F")


@pytest.mark.parametrize("order", "<>")
def test_nifti_2_loads_in_both_byte_orders(tmp_path, order):
    (tmp_path / "two.nii").write_bytes(nifti_2(order))
    scan = read_scan(tmp_path / "two.nii")
    assert np.array_equal(scan.array[0], VOXELS)
    assert np.allclose(scan.affine[:3], SROW)


@pytest.mark.parametrize(("fields", "fault"), [
    ({"dim": (3, 2**62, 2**62, 2**62, 1, 1, 1, 1)}, "too large"),
    ({"dim": (3, 3, 4, -5, 1, 1, 1, 1)}, "negative"),
    ({"offset": 2**62}, "vox_offset"), ({"offset": 100}, "vox_offset"),
    ({"magic": b"n+9\0\r\n\x1a\n"}, "magic"),
])  # fmt: skip
def test_an_odd_nifti_2_is_refused(tmp_path, fields, fault):
    (tmp_path / "two.nii").write_bytes(nifti_2(**fields))
    with pytest.raises(InputError, match=fault):
        read_scan(tmp_path / "two.nii")


def test_extensions_are_skipped_and_not_believed(tmp_path):
    for claimed in (32, 7, 2**31 - 1):
        raw = bytearray(header(vox_offset=384.0))
        raw[348] = 1
        raw += struct.pack("<ii", claimed, 6) + b"<secret>" * 3
        (tmp_path / "e.nii").write_bytes(bytes(raw) + VOXELS.tobytes(order="F"))
        assert np.array_equal(read_scan(tmp_path / "e.nii").array[0], VOXELS)


def test_a_gzip_of_two_members_loads_and_junk_behind_it_is_said(tmp_path):
    raw = bytes(header()) + VOXELS.tobytes(order="F")
    path = tmp_path / "m.nii.gz"
    path.write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))
    assert np.array_equal(read_scan(path).array[0], VOXELS)
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    assert np.array_equal(read_scan(path).array[0], VOXELS)
    path.write_bytes(path.read_bytes() + b"<html>")
    with pytest.warns(UserWarning, match="behind the gzip"):
        assert np.array_equal(read_scan(path).array[0], VOXELS)


@pytest.mark.parametrize(("change", "fault"), [
    (lambda folder: (folder / "p.img").unlink(), "other half"),
    (lambda folder: (folder / "p.img").write_bytes(b"\0" * 60), "truncated"),
    (lambda folder: (folder / "p.img").write_bytes(b"\0" * 9000), "more than its header"),
    (lambda folder: (folder / "p.img").write_bytes(b""), "empty"),
    (lambda folder: (folder / "p.hdr").write_bytes((folder / "p.hdr").read_bytes()[:200]),
     "truncated header"),
    (lambda folder: (folder / "p.hdr").write_bytes(bytes(header(magic=b"\0" * 4))), "ANALYZE"),
])  # fmt: skip
def test_a_broken_pair_is_refused_by_either_name(tmp_path, change, fault):
    (tmp_path / "p.hdr").write_bytes(bytes(header(magic=b"ni1\0", vox_offset=0.0))[:348])
    (tmp_path / "p.img").write_bytes(VOXELS.tobytes(order="F"))
    assert np.array_equal(read_scan(tmp_path / "p.hdr").array[0], VOXELS)
    change(tmp_path)
    for name in ("p.hdr", "p.img"):
        if (tmp_path / name).exists():
            with pytest.raises(InputError, match=fault):
                read_scan(tmp_path / name)


NRRD_MEANS = {
    "millimetres said": ({"space units": '"mm" "mm" "mm"'}, (-1, -1, 1)),
    "microns": ({"space units": '"um" "um" "um"'}, (-1e-3, -1e-3, 1e-3)),
    "centimetres": ({"space units": "cm cm cm"}, (-10, -10, 10)),
    "right-anterior": ({"space": "right-anterior-superior"}, (1, 1, 1)),
    "left-anterior": ({"space": "LAS"}, (-1, 1, 1)),
    "a channel axis of one": ({"dimension": "4", "sizes": "1 2 2 2",
                               "kinds": "list domain domain domain",
                               "space directions": "none (1,0,0) (0,1,0) (0,0,1)"}, (-1, -1, 1)),
    "its last axis free": ({"dimension": "4", "sizes": "2 2 2 1",
                            "space directions": "(1,0,0) (0,1,0) (0,0,1) none"}, (-1, -1, 1)),
    "voxels at the end": ({"byte skip": "-1"}, (-1, -1, 1)),
    "kinds, centers, thicknesses": ({"kinds": "space space space", "centers": "cell cell cell",
                                     "thicknesses": "NaN NaN 3"}, (-1, -1, 1)),
}  # fmt: skip


@pytest.mark.parametrize(("order", "value"), [("little", 1), ("big", 256)])
def test_nrrd_bytes_follow_endian_and_line_ends_do_not_matter(tmp_path, order, value):
    (tmp_path / "b.nrrd").write_bytes(nrrd_text(endian=order).replace(b"\n", b"\r\n"))
    assert (read_scan(tmp_path / "b.nrrd").array == value).all()


@pytest.mark.parametrize(("fields", "fault"), [
    ({"space units": '"mm" "mm" "um"'}, "units"), ({"space units": "inch inch inch"}, "units"),
    ({"space origin": "(1_0,0,0)"}, "not a number"), ({"space origin": "(inf,0,0)"}, "non-finite"),
    ({"space origin": "(0,0)"}, "holds 2 numbers"), ({"sizes": "2 -2 2"}, "whole numbers"),
    ({"kinds": "vector domain domain"}, "kinds"), ({"Sizes": "2 2 1"}, "said twice"),
    ({"space": None, "space dimension": "3"}, "orientation"), ({"space": "scanner-xyz"}, "orient"),
    ({"data file": "none.raw"}, "b.nrrd.*does not exist"), ({"data file": "b.nrrd"}, "itself"),
    ({"data file": "C:\\x.raw"}, "outside"), ({"data file": "x%03d.raw 1 3 1"}, "several files"),
    ({"encoding": "bzip2"}, "encoding"), ({"line skip": "1"}, "skip"),
    ({"space directions": "(1e-9,0,0) (0,1,0) (0,0,1)"}, "spacing"),
    ({"space directions": "(500,0,0) (0,1,0) (0,0,1)"}, "implausible"),
    ({"type": "uint64", "sizes": "2 1 1"}, "precision"),
])  # fmt: skip
def test_an_odd_nrrd_is_refused(tmp_path, fields, fault):
    (tmp_path / "b.nrrd").write_bytes(nrrd_text(**fields))
    assert fault_of(tmp_path / "b.nrrd", fault)


def test_a_cut_or_overlong_nrrd_is_refused(tmp_path):
    whole = nrrd_text()
    for raw, fault in ((whole[:60], "truncated"), (whole[:-3], "truncated"),
                       (whole + b"\1\0" * 4000, "more than its header"),
                       (b"NRRD0004\n" + b"#" * (1 << 19), "header does not end")):  # fmt: skip
        (tmp_path / "c.nrrd").write_bytes(raw)
        with pytest.raises(InputError, match=fault):
            read_scan(tmp_path / "c.nrrd")


META_MEANS = {
    "microns": ({"DistanceUnits": "um"}, (-1e-3, -1e-3, 1e-3)),
    "a mirrored axis": ({"TransformMatrix": "-1 0 0 0 1 0 0 0 1"}, (1, -1, 1)),
    "two dimensions": ({"NDims": "2", "DimSize": "2 4", "TransformMatrix": "1 0 0 1",
                        "Offset": "0 0", "ElementSpacing": "1 1"}, (-1, -1, 1)),
    "unused fields": ({"CenterOfRotation": "5 5 5", "AnatomicalOrientation": "RAI",
                       "CompressedDataSize": "10"}, (-1, -1, 1)),
}  # fmt: skip


@pytest.mark.parametrize(("text", "fields", "diagonal"), [
    *(pytest.param(nrrd_text, *means, id=f"nrrd, {what}") for what, means in NRRD_MEANS.items()),
    *(pytest.param(meta_text, *means, id=f"mha, {what}") for what, means in META_MEANS.items()),
])  # fmt: skip
def test_an_odd_header_means_one_affine(tmp_path, text, fields, diagonal):
    path = tmp_path / ("o.nrrd" if text is nrrd_text else "o.mha")
    path.write_bytes(text(**fields))
    scan = read_scan(path)
    assert np.allclose(np.diag(scan.affine)[:3], diagonal)
    assert (scan.array == 1).all()


@pytest.mark.parametrize(("fields", "fault"), [
    ({"ElementSpacing": "1 -1 1"}, "negative"), ({"ElementSpacing": "1_0 1 1"}, "not a number"),
    ({"ElementSpacing": "1 1"}, "spacing"), ({"TransformMatrix": "2 0 0 0 2 0 0 0 2"}, "unit vec"),
    ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "singular"), ({"Offset": "0 0 inf"}, "non-finite"),
    ({"DistanceUnits": "inch"}, "units"), ({"ElementType": "MET_LONG"}, "type"),
    ({"ElementToIntensityFunctionSlope": "2"}, "slope"), ({"BinaryData": "False"}, "text voxels"),
    ({"ElementDataFile": "LIST"}, "several files"), ({"ElementDataFile": "b.mha"}, "itself"),
    ({"ElementDataFile": "gone.raw"}, "b.mha.*does not exist"), ({"HeaderSize": "x"}, "HeaderSize"),
    ({"DimSize": None}, "DimSize"), ({"NDims": "3", "DimSize": "2 2"}, "dimensions"),
])  # fmt: skip
def test_an_odd_metaimage_is_refused(tmp_path, fields, fault):
    (tmp_path / "b.mha").write_bytes(meta_text(**fields))
    assert fault_of(tmp_path / "b.mha", fault)


def test_a_data_file_that_is_a_link_outside_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"\1\0" * 8)
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "v.raw").symlink_to(tmp_path / "secret")
    (inside / "v.mhd").write_bytes(meta_text(ElementDataFile="v.raw").split(b"\1\0")[0])
    with pytest.raises(InputError, match="outside"):
        read_scan(inside / "v.mhd")


def test_what_is_no_file_of_its_name_is_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "zeros.mha").symlink_to("/dev/zero")
    for name, fault in (("pipe.nii.gz", "regular file"), ("folder.nii", "no DICOM image"),
                        ("loop.nii", "does not exist|cannot be read"),
                        ("zeros.mha", "regular file"), ("none.nii", "does not exist")):  # fmt: skip
        with pytest.raises(InputError, match=fault):
            read_scan(tmp_path / name, ReadOptions())
