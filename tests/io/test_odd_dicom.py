"""DICOM folders of neighbouring kinds, each with its one right answer."""

from __future__ import annotations

import os
import shutil
import struct

import numpy as np
import pytest
from tests.io.test_dicom_gate import delete, enhanced, put

from medvol.core import InputError
from medvol.io import DicomOptions, ReadOptions, read_scan

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom.*")


def together(*changes):
    def change(ds, z):
        for each in changes:
            each(ds, z)

    return change


def place(at):
    return lambda ds, z: setattr(ds, "ImagePositionPatient", [float(v) for v in at(z)])


def overlay(ds, z):
    ds.add_new(0x60003000, "OW", b"\xff" * 20)


def private_sequence(ds, z):
    ds.add_new(0x00991001, "UN", b"\xfe\xff\x00\xe0" + b"\xff" * 4)


def icon(ds, z):
    from pydicom.dataset import Dataset

    small = Dataset()
    small.Rows = small.Columns = 2
    small.BitsAllocated, small.PixelData = 8, b"abcd"
    ds.IconImageSequence = [small]


LOADS = {
    "one SOPInstanceUID for all": put("SOPInstanceUID", "1.2.3.9"),
    "no frame of reference": delete("FrameOfReferenceUID"),
    "no series UID": delete("SeriesInstanceUID"),
    "no BitsStored": delete("BitsStored"),
    "no PixelRepresentation": delete("PixelRepresentation"),
    "no SamplesPerPixel": delete("SamplesPerPixel"),
    "twelve bits in some slices": together(put("BitsStored", 12, 1), put("HighBit", 11, 1)),
    "another SliceThickness": put("SliceThickness", 9),
    "another SOP class in one": put("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4", 3),
    "MONOCHROME1": put("PhotometricInterpretation", "MONOCHROME1"),
    "positions within 0.01 mm": place(lambda z: (-20, 30, 40 + 3 * z + 0.005 * (z % 2))),
    "two acquisitions": lambda ds, z: setattr(ds, "AcquisitionNumber", z % 2),
    "MR without rescale": together(put("Modality", "MR"), delete("RescaleSlope"),
                                   delete("RescaleIntercept")),
    "an overlay": overlay, "a private sequence": private_sequence, "an icon": icon,
    "padding behind the pixels": put("DataSetTrailingPadding", b"\0" * 10),
    "exponents in PixelSpacing": put("PixelSpacing", ["2.0e0", "1.5E+0"]),
}  # fmt: skip


@pytest.mark.parametrize("what", LOADS)
def test_an_odd_series_loads_as_it_lies(dicom_series, phantom, what):
    scan = read_scan(dicom_series(LOADS[what]))
    assert np.array_equal(scan.array[0], phantom)
    assert np.allclose(np.diag(scan.affine), (-1.5, -2, 3, 1), atol=2e-3)


REFUSED = {
    "one without frame of reference": (delete("FrameOfReferenceUID", 2), "frames of reference"),
    "one without series": (delete("SeriesInstanceUID", 2), "2 series"),
    "every slice in one place": (place(lambda z: (0, 0, 0)), "same position"),
    "steps off by 0.05 mm": (place(lambda z: (-20, 30, 40 + 3 * z + 0.05 * (z % 2))), "uniform"),
    "a zigzag": (place(lambda z: (-20 + 0.5 * (z % 2), 30, 40 + 3 * z)), "one line"),
    "a position of four": (put("ImagePositionPatient", [1, 2, 3, 4]), "4 values"),
    "a spacing of one": (put("PixelSpacing", "1.5"), "wanted 2"),
    "a spacing of a kilometre": (put("PixelSpacing", ["1e6", "1e6"]), "implausible"),
    "short directions": (put("ImageOrientationPatient", [0.9, 0, 0, 0, 0.9, 0]), "unit"),
    "another name": (put("PatientName", "Other^Name", 3), "different patients"),
    "no frames": (put("NumberOfFrames", 0), "NumberOfFrames"),
    "frames below zero": (put("NumberOfFrames", -1), "NumberOfFrames"),
    "more frames than pixels": (put("NumberOfFrames", 2), "same position|too short"),
    "12 bits allocated": (put("BitsAllocated", 12), "bits"),
    "64 bits allocated": (put("BitsAllocated", 64), "bits"),
    "PixelRepresentation of 7": (put("PixelRepresentation", 7), "PixelRepresentation"),
    "four samples": (put("SamplesPerPixel", 4), "colour"),
    "a palette": (put("PhotometricInterpretation", "PALETTE COLOR"), "palette"),
    "no pixels at all": (put("PixelData", b""), "too short"),
    "radiographs without places": (together(put("Modality", "CR"), delete("ImagePositionPatient"),
                                            delete("ImageOrientationPatient")), "missing"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_an_odd_series_is_refused_without_identity(dicom_series, what):
    change, fault = REFUSED[what]
    with pytest.raises(InputError, match=fault) as refusal:
        read_scan(dicom_series(change))
    line = str(refusal.value)
    assert line.isprintable()
    assert not any(secret in line for secret in ("Planted", "PLANTED", "19610203"))


def rewritten(folder, old, new):
    for path in folder.iterdir():
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))
    return folder


LITTLE = b"1.2.840.10008.1.2.1\0"


@pytest.mark.parametrize(("old", "new", "fault"), [
    (b"2.0\\1.5 ", b"2_0\\1.5 ", "not a decimal"), (b"2.0\\1.5 ", b"nan\\1.5 ", "non-finite"),
    (b"2.0\\1.5 ", b"inf\\1.5 ", "non-finite"), (b"2.0\\1.5 ", b"2,0\\1,5 ", "not a decimal"),
    (LITTLE, b"1.2.840.10008.1.2\0\0\0", "corrupt|truncated"),
    (LITTLE, b"1.2.840.10008.1.2.2\0", "corrupt|truncated"),
    (LITTLE, b"1.2.840.10008.9.9.9\0", "transfer syntax"),
    (LITTLE, b"1.2.840.10008.1.2.5\0", "not encapsulated"),
])  # fmt: skip
def test_a_lying_header_is_refused(dicom_series, old, new, fault):
    with pytest.raises(InputError, match=fault):
        read_scan(rewritten(dicom_series(), old, new))


@pytest.mark.parametrize(("spoil", "fault"), [
    (lambda raw: raw[:700], "s002.dcm.*(truncated|too short)"),
    (lambda raw: b"<html>404</html>" * 20, "s002.dcm.*not a DICOM"),
    (lambda raw: b"", "s002.dcm.*empty"),
    (lambda raw: b"\x1f\x8b\x08" + raw, "s002.dcm.*not a DICOM"),
    (lambda raw: raw[:132] + b"\xff" * 400, "s002.dcm"),
])  # fmt: skip
def test_one_damaged_slice_refuses_the_series(dicom_series, spoil, fault):
    folder = dicom_series()
    (folder / "s002.dcm").write_bytes(spoil((folder / "s002.dcm").read_bytes()))
    with pytest.raises(InputError, match=fault):
        read_scan(folder)


def test_junk_behind_the_pixels_and_files_beside_them_change_nothing(dicom_series, phantom):
    folder = dicom_series()
    for path in list(folder.iterdir()):
        path.write_bytes(path.read_bytes() + b"<html>junk" * 50)
    (folder / "nested").mkdir()
    shutil.move(folder / "s001.dcm", folder / "nested" / "s001.dcm")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (folder / "x.zip").write_bytes(b"PK\3\4")
    assert np.array_equal(read_scan(folder).array[0], phantom)


def again(folder, change):
    """Each slice a second time under another UID, changed."""
    import pydicom

    for path in sorted(folder.glob("s*.dcm")):
        ds = pydicom.dcmread(path)
        ds.SOPInstanceUID += ".5"
        change(ds)
        ds.save_as(path.with_name(f"b{path.name}"))
    return folder


@pytest.mark.parametrize(("keyword", "value"), [
    ("EchoTime", 20), ("AcquisitionTime", "101010"), ("TemporalPositionIdentifier", 2),
    ("TriggerTime", 300), ("AcquisitionNumber", 2),
])  # fmt: skip
def test_two_volumes_in_one_place_are_told_apart_by_any_tag(dicom_series, phantom, keyword, value):
    def later(ds):
        setattr(ds, keyword, value)
        ds.PixelData = (np.frombuffer(ds.PixelData, "<i2") + 7).astype("<i2").tobytes()

    folder = again(dicom_series(), later)
    with pytest.raises(InputError, match="4D series of 2 volumes"):
        read_scan(folder)
    second = read_scan(folder, ReadOptions(dicom=DicomOptions(volume=2)))
    assert np.array_equal(second.array[0], phantom + 7)
    with pytest.raises(InputError, match="1 to 2"):
        read_scan(folder, ReadOptions(dicom=DicomOptions(volume=3)))


def test_magnitude_and_phase_that_no_time_tells_apart_are_refused(dicom_series):
    folder = again(
        dicom_series(), lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "P"])
    )
    with pytest.raises(InputError, match="same position"):
        read_scan(folder)


def test_a_padding_range_becomes_air(dicom_series):
    def padded(ds, z):
        ds.PixelPaddingValue, ds.PixelPaddingRangeLimit = -2000, -1900
        ds.PixelData = struct.pack("<hhh", -2000, -1950, -1899) + ds.PixelData[6:]

    plane = read_scan(dicom_series(padded)).array[0][:3, 0, 0]
    assert plane.tolist() == [-1024, -1024, -1899]


def test_ct_values_that_are_no_hounsfield_units_are_said(dicom_series):
    with pytest.warns(UserWarning, match="RescaleType is not HU"):
        read_scan(dicom_series(put("RescaleType", "Z_EFF")))


def test_enhanced_frames_must_describe_themselves(tmp_path, phantom):
    import pydicom

    path = enhanced(tmp_path / "e.dcm", phantom, (4, 2, 0, 1, 3))
    assert np.array_equal(read_scan(path).array[0], phantom)
    whole = pydicom.dcmread(path)
    faults = {
        "position": lambda ds: delattr(ds.PerFrameFunctionalGroupsSequence[2],
                                       "PlanePositionSequence"),
        "PixelSpacing": lambda ds: delattr(ds.SharedFunctionalGroupsSequence[0],
                                           "PixelMeasuresSequence"),
        "frames are described": lambda ds: ds.PerFrameFunctionalGroupsSequence.pop(),
        "too short": lambda ds: setattr(ds, "PixelData", ds.PixelData[:-100]),
        "same position": lambda ds: setattr(
            ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0],
            "ImagePositionPatient", [-20.0, 30.0, 40.0]),
    }  # fmt: skip
    for fault, spoil in faults.items():
        whole = pydicom.dcmread(path)
        spoil(whole)
        whole.save_as(tmp_path / "bad.dcm")
        with pytest.raises(InputError, match=fault):
            read_scan(tmp_path / "bad.dcm")


def compressed(folder, syntax, change=lambda ds: None):
    import pydicom

    for path in sorted(folder.iterdir()):
        ds = pydicom.dcmread(path)
        ds.compress(syntax, generate_instance_uid=False)
        change(ds)
        ds.save_as(path)
    return folder


RLE, JPEG_LS = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"


def test_a_frame_in_several_fragments_is_one_frame(dicom_series, phantom):
    from pydicom.encaps import encapsulate, get_frame

    def torn(ds):
        ds.PixelData = encapsulate([get_frame(ds.PixelData, 0, number_of_frames=1)],
                                   fragments_per_frame=3)  # fmt: skip

    wide = np.tile(phantom, (8, 8, 1))
    folder = compressed(dicom_series(voxels=wide), JPEG_LS, torn)
    assert np.array_equal(read_scan(folder).array[0], wide)


@pytest.mark.parametrize(("syntax", "change", "fault"), [
    (JPEG_LS, put("Rows", 40), "header claims"), (JPEG_LS, put("Columns", 8), "header claims"),
    (RLE, put("BitsAllocated", 8), "bits"), (RLE, put("SamplesPerPixel", 3), "colour"),
    (RLE, lambda ds, z: setattr(ds, "PixelData", ds.PixelData[:40]), "RLE|truncated|corrupt"),
    (JPEG_LS, lambda ds, z: setattr(ds, "PixelData", ds.PixelData[:-60]), "truncated|corrupt"),
])  # fmt: skip
def test_a_compressed_frame_must_be_what_its_header_claims(
    dicom_series, phantom, syntax, change, fault
):
    folder = dicom_series(voxels=np.tile(phantom, (8, 8, 1)))
    with pytest.raises(InputError, match=fault):
        read_scan(compressed(folder, syntax, lambda ds: change(ds, 0)))


@pytest.mark.parametrize("keyword", ["TemporalPositionIndex", "DiffusionBValue", "EchoTime"])
def test_volumes_are_numbered_by_their_value_not_by_its_bytes(dicom_series, keyword):
    voxels = np.repeat(np.arange(24) // 2, 12).reshape(24, 3, 4).transpose(2, 1, 0)

    def change(ds, z):
        setattr(ds, keyword, z // 2 + 1)
        ds.ImagePositionPatient = [0, 0, 3 * (z % 2)]

    folder = dicom_series(change, voxels=voxels)
    for number in (1, 9, 10, 12):
        options = ReadOptions(dicom=DicomOptions(volume=number))
        assert (read_scan(folder, options).array == number - 1).all()
