"""Files whose parts contradict each other: each refused in one line that names file and fault."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pytest
from PIL import Image
from tests.io.test_dicom_gate import delete, enhanced, put
from tests.io.test_nifti_gate import VOXELS, nifti

from medvol.core import InputError
from medvol.io import read_scan, scan_folder
from tests.io.test_odd_dicom import JPEG_LS, RLE, compressed, place
from tests.io.test_round_trips import meta_text, nrrd_text

pydicom = pytest.importorskip("pydicom")
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom.*")


def refused(path, fault):
    """The refusal of a file: one printable line that names it and no patient."""
    with pytest.raises(InputError, match=fault) as refusal:
        read_scan(path)
    line = str(refusal.value)
    assert line.isprintable()
    assert "PLANTED" not in line
    return line


def item(**values):
    inner = pydicom.dataset.Dataset()
    for keyword, value in values.items():
        setattr(inner, keyword, value)
    return inner


def frame(ds, index):
    return ds.PerFrameFunctionalGroupsSequence[index]


def turn_one(ds):
    frame(ds, 2).PlaneOrientationSequence = [item(ImageOrientationPatient=[0, 1, 0, -1, 0, 0])]


def stretch_one(ds):
    frame(ds, 2).PixelMeasuresSequence = [item(PixelSpacing=[1.0, 1.0], SliceThickness=3)]


def share_one_place(ds):
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlanePositionSequence = [item(ImagePositionPatient=[0.0, 0.0, 0.0])]
    for index in range(5):
        del frame(ds, index).PlanePositionSequence


def move_last(ds, place_mm):
    frame(ds, 4).PlanePositionSequence[0].ImagePositionPatient = place_mm


def float_pixels(ds):
    ds.FloatPixelData = np.zeros(210, "<f4").tobytes()
    ds.BitsAllocated = 32
    del ds.PixelData


ENHANCED = {
    "one frame is turned": (turn_one, "orientation differs"),
    "one frame is stretched": (stretch_one, "spacing differs"),
    "one frame has no rescale": (
        lambda ds: delattr(frame(ds, 2), "PixelValueTransformationSequence"), "rescale"),
    "one frame has slope 0": (
        lambda ds: setattr(frame(ds, 1).PixelValueTransformationSequence[0], "RescaleSlope", 0),
        "RescaleSlope is 0"),
    "no frame is described": (
        lambda ds: setattr(ds, "PerFrameFunctionalGroupsSequence", []), "missing in 5 of 5"),
    "nothing is shared": (lambda ds: delattr(ds, "SharedFunctionalGroupsSequence"), "missing"),
    "an empty orientation": (
        lambda ds: setattr(ds.SharedFunctionalGroupsSequence[0], "PlaneOrientationSequence", []),
        "orientation"),
    "all frames in one place": (share_one_place, "same position"),
    "the last frame too far": (lambda ds: move_last(ds, [-20.0, 30.0, 55.0]), "gap"),
    "a place of two numbers": (lambda ds: move_last(ds, [1.0, 2.0]), "2 values"),
    "six frames claimed": (put("NumberOfFrames", 6), "6 but 5 frames"),
    "four frames claimed": (put("NumberOfFrames", 4), "4 but 5 frames"),
    "no number of frames": (delete("NumberOfFrames"), "5 frames are described"),
    "twice the rows": (put("Rows", 12), "too short"),
    "half the rows": (put("Rows", 3), "longer than claimed"),
    "no pixels": (delete("PixelData"), "without pixel data"),
    "float pixels": (float_pixels, "float pixel"),
}  # fmt: skip


@pytest.mark.parametrize("what", ENHANCED)
def test_an_enhanced_file_must_agree_with_itself(tmp_path, phantom, what):
    change, fault = ENHANCED[what]
    path = enhanced(tmp_path / "e.dcm", phantom, range(5))
    ds = pydicom.dcmread(path)
    change(*(ds, None)[: change.__code__.co_argcount])
    ds.save_as(path)
    assert "e.dcm" in refused(path, fault)


def look_up(ds, z):
    del ds.RescaleSlope, ds.RescaleIntercept
    ds.ModalityLUTSequence = [
        item(LUTDescriptor=[4, 0, 16], ModalityLUTType="HU", LUTData=b"\0\0\1\0\2\0\3\0")
    ]


def swap_sides(ds, z):
    if z == 3:
        ds.Rows, ds.Columns = ds.Columns, ds.Rows


SERIES = {
    "slope 0": (put("RescaleSlope", 0), "RescaleSlope is 0"),
    "two slopes": (put("RescaleSlope", [1, 2]), "2 values"),
    "one slope missing": (delete("RescaleSlope", 2), "s002.*rescale"),
    "one slope empty": (put("RescaleSlope", None, 2), "s002.*rescale"),
    "a slope beyond float32": (put("RescaleSlope", "1e300"), "non-finite"),
    "an intercept beyond float32": (put("RescaleIntercept", "1e308"), "non-finite"),
    "values through a table": (look_up, "Modality LUT"),
    "20 bits of 16": (put("BitsStored", 20), "20 bits"),
    "no bits": (put("BitsStored", 0), "0 bits"),
    "another high bit": (put("HighBit", 7), "HighBit 7"),
    "an orientation of five": (put("ImageOrientationPatient", [1, 0, 0, 0, 1]), "5 values"),
    "spacing of the detector only": (delete("PixelSpacing"), "PixelSpacing"),
    "no rows": (put("Rows", 0), "above zero"),
    "two rows more than pixels": (put("Rows", 8), "too short"),
    "one slice on its side": (swap_sides, "s003.*6x7"),
    "one of another modality": (put("Modality", "MR", 2), "modality"),
    "one turned by 180 degrees": (
        put("ImageOrientationPatient", [-1, 0, 0, 0, -1, 0], 3), "s003.*orientation"),
    "one seen from behind": (put("ImageOrientationPatient", [0, 1, 0, 1, 0, 0], 2), "orientation"),
    "one in another room": (put("ImagePositionPatient", [1e30, 0, 0], 2), "uniform"),
    "the last 0.2 mm too far": (
        place(lambda z: (-20, 30, 40 + 3 * z + 0.2 * (z == 4))), "uniform"),
}  # fmt: skip


@pytest.mark.parametrize("what", SERIES)
def test_a_series_must_agree_with_itself(dicom_series, what):
    change, fault = SERIES[what]
    assert refused(dicom_series(change), fault)


def frames_of(ds):
    from pydicom.encaps import get_frame

    return get_frame(ds.PixelData, 0, number_of_frames=1)


def packed(*frames):
    from pydicom.encaps import encapsulate

    return encapsulate([part + b"\0" * (len(part) % 2) for part in frames])


COMPRESSED = {
    "a frame cut in the middle": (
        JPEG_LS, lambda f: packed(f[: len(f) // 2] + b"\xff\xd9"), "truncated or corrupt"),
    "two frames": (JPEG_LS, lambda f: packed(f, f), "several frames"),
    "two frames of planes": (RLE, lambda f: packed(f, f), "several frames"),
    "an offset beyond the end": (
        RLE, lambda f: packed(f[:8] + b"\xff\xff\xff\x00" + f[12:]), "truncated or corrupt"),
    "a plane that starts in the header": (
        RLE, lambda f: packed(f[:4] + b"\0\0\0\0" + f[8:]), "not in order"),
    "15 planes": (RLE, lambda f: packed(b"\x0f" + f[1:]), "15 planes"),
    "two thirds of the planes": (RLE, lambda f: packed(f[: len(f) * 2 // 3]), "truncated"),
    "a JPEG 2000 cut in the middle": (
        "1.2.840.10008.1.2.4.90", lambda f: packed(f[: len(f) // 2] + b"\xff\xd9"), "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("what", COMPRESSED)
def test_a_compressed_frame_must_be_whole_and_one(dicom_series, phantom, what):
    syntax, spoil, fault = COMPRESSED[what]
    folder = dicom_series(voxels=np.tile(phantom, (8, 8, 1)))

    def change(ds):
        ds.PixelData = spoil(frames_of(ds))

    assert refused(compressed(folder, syntax, change), fault)


@pytest.mark.filterwarnings("ignore:.*lossy:UserWarning")
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_dicom_jpeg_must_hold_all_its_blocks(dicom_series, phantom, is_cut):
    voxels = np.tile(phantom % 256, (8, 8, 1))

    def change(ds, z):
        buffer = io.BytesIO()
        Image.fromarray(voxels[:, :, z].T.astype(np.uint8)).save(buffer, "JPEG", quality=90)
        stream = buffer.getvalue()
        if is_cut and z == 2:
            stream = stream[: len(stream) * 2 // 3] + b"\xff\xd9"
        ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation = 7, 0
        ds.PixelData = packed(stream)
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True

    folder = dicom_series(change, voxels=voxels)
    if is_cut:
        assert "s002.dcm" in refused(folder, "ends before the image")
    else:
        assert np.abs(read_scan(folder).array[0] - voxels).mean() < 10


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dim", [(3, 3, 4, 4, 1, 1, 1, 1), (3, 3, 4, 2, 1, 1, 1, 1)])
def test_slices_that_a_nifti_does_not_claim_are_no_padding(tmp_path, dim, suffix):
    assert refused(nifti(tmp_path / f"n{suffix}", VOXELS, dim=dim), "more than its header claims")


def test_a_few_bytes_of_padding_are_said(tmp_path):
    path = nifti(tmp_path / "n.nii")
    path.write_bytes(path.read_bytes() + b"\0" * 7)
    with pytest.warns(UserWarning, match="ignored 7 bytes"):
        assert np.array_equal(read_scan(path).array[0], VOXELS)


TEXT_HEADERS = {
    "spacings beside directions": (nrrd_text, {"spacings": "2 2 2"}, "contradict its space dir"),
    "a direction too few": (nrrd_text, {"space directions": "(1,0,0) (0,1,0)"}, "disagree"),
    "spacings of letters": (nrrd_text, {"spacings": "x y z"}, "spacings holds"),
    "two matrices": (meta_text, {"Orientation": "-1 0 0 0 1 0 0 0 1"}, "orientation differ"),
    "two places": (meta_text, {"Position": "5 0 0"}, "position and origin differ"),
    "two byte orders": (meta_text, {"ElementByteOrderMSB": "True"}, "msb differ"),
    "a flag of another kind": (meta_text, {"BinaryDataByteOrderMSB": "big"}, "neither True"),
    "no axis in space": (nrrd_text, {"space directions": "none none none"}, "0 spatial axes"),
    "17 dimensions": (nrrd_text, {"dimension": "17"}, "disagree"),
    "sizes beyond 64 bits": (nrrd_text, {"sizes": "4294967297 4294967297 4294967297"}, "sizes"),
    "a skip backwards": (nrrd_text, {"byte skip": "-2"}, "byte skip"),
    "a skip beyond the end": (nrrd_text, {"byte skip": "999999999"}, "truncated"),
    "voxels by URL": (nrrd_text, {"data file": "http://example.org/v.raw"}, "outside"),
    "voxels on a share": (nrrd_text, {"datafile": "\\\\host\\v.raw"}, "outside"),
    "a size that does not fit": (meta_text, {"CompressedData": "True"}, "corrupt"),
    "fractions of voxels": (meta_text, {"DimSize": "2.5 2 2"}, "whole numbers"),
    "no dimension": (meta_text, {"NDims": "0"}, "dimensions"),
    "no channel": (meta_text, {"ElementNumberOfChannels": "0"}, "empty"),
    "a header behind the header": (meta_text, {"HeaderSize": "64"}, "HeaderSize"),
    "two sizes": (meta_text, {"DimSize ": "3 3 3"}, "said twice"),
}  # fmt: skip


@pytest.mark.parametrize("what", TEXT_HEADERS)
def test_a_text_header_must_agree_with_its_voxels(tmp_path, what):
    text, fields, fault = TEXT_HEADERS[what]
    path = tmp_path / ("t.nrrd" if text is nrrd_text else "t.mha")
    path.write_bytes(text(**fields))
    assert path.name in refused(path, fault)


@pytest.mark.parametrize(("encoding", "voxels", "fault"), [
    ("raw", gzip.compress(b"\1\0" * 8, mtime=0), "compressed by gzip"),
    ("gzip", gzip.compress(b"\1\0" * 4, mtime=0), "truncated"),
    ("gzip", gzip.compress(bytes(range(16)), mtime=0)[:-12], "truncated"),
    ("gzip", gzip.compress(b"\1\0" * 8 + bytes(1 << 22), mtime=0), "more than its header"),
    ("ascii", b"1 2 3 4 5 6 7", "7 text voxels"), ("ascii", b"1 2 3 4 5 6 7 nan", "non-finite"),
    ("ascii", b"1 2 3 4 5 6 7 1.5", "1.5 is no int16"),
    ("ascii", b"1 2 3 4 5 6 7 99999", "99999 is no int16"),
    ("ascii", b"1 2 3 4 5 6 7 1_0", "non-number"),
], ids=["gzip called raw", "half", "cut", "too long", "a number short", "nan", "a fraction",
        "beyond the type", "an underscore"])  # fmt: skip
def test_detached_voxels_must_be_what_the_header_says(tmp_path, encoding, voxels, fault):
    head = nrrd_text(encoding=encoding, **{"data file": "v.raw"}).partition(b"\n\n")[0]
    (tmp_path / "t.nhdr").write_bytes(head + b"\n\n")
    (tmp_path / "v.raw").write_bytes(voxels)
    assert "t.nhdr" in refused(tmp_path / "t.nhdr", fault) or fault == "truncated"


@pytest.mark.parametrize("syntax", [RLE, JPEG_LS])
def test_a_compressed_frame_may_hold_no_row_more_than_claimed(dicom_series, phantom, syntax):
    folder = dicom_series(voxels=np.tile(phantom, (8, 8, 1)))

    def change(ds):
        ds.Rows -= 1

    assert refused(compressed(folder, syntax, change), "header claims")


def as_radiograph(ds, z):
    ds.Modality, ds.SOPClassUID = "DX", "1.2.840.10008.5.1.4.1.1.1.1"
    for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, word)
    return z == 0


@pytest.mark.parametrize("change", [look_up, put("RescaleSlope", 0)])
def test_a_radiograph_whose_values_mean_nothing_is_refused_and_listed_so(dicom_series, change):
    def both(ds, z):
        change(ds, z)
        return as_radiograph(ds, z)

    (path,) = dicom_series(both).iterdir()
    fault = refused(path, r"Modality LUT|RescaleSlope is 0")
    (row,) = scan_folder(path.parent)
    assert row.problem == fault


def test_a_table_from_a_writer_that_does_not_know_it_is_a_table(dicom_series):
    inside = b"\x28\0\x02\x30" + (6).to_bytes(4, "little") + b"\x04\0\0\0\x10\0"
    value = b"\xfe\xff\0\xe0" + len(inside).to_bytes(4, "little") + inside
    folder = dicom_series(lambda ds, z: ds.add_new(0x00293000, "UN", value))
    for path in folder.iterdir():
        raw = path.read_bytes()
        assert b"\x29\0\0\x30UN" in raw
        path.write_bytes(raw.replace(b"\x29\0\0\x30UN", b"\x28\0\0\x30UN"))
    assert refused(folder, "Modality LUT")


@pytest.mark.parametrize("modality", [None, "PT"])
def test_calibrated_values_need_their_scale_even_where_only_the_class_names_them(
    dicom_series, modality
):
    def change(ds, z):
        del ds.RescaleSlope, ds.RescaleIntercept, ds.Modality
        if modality:
            ds.Modality, ds.Units = modality, "GML"

    assert refused(dicom_series(change), "rescale")


@pytest.mark.parametrize("flag", ["True", "T", "1"])
def test_a_flag_of_byte_order_is_read_as_its_readers_do(tmp_path, flag):
    path = tmp_path / "t.mha"
    path.write_bytes(meta_text(BinaryDataByteOrderMSB=flag))
    assert (read_scan(path).array == 256).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_of_a_radiograph_becomes_its_darkest_value(dicom_series, phantom, photometric):
    def change(ds, z):
        ds.PhotometricInterpretation, ds.PixelRepresentation = photometric, 0
        ds.PixelPaddingValue = 56  # the last pixel
        return as_radiograph(ds, z)

    (path,) = dicom_series(change).iterdir()
    got = read_scan(path).array[0]
    others = 65535 - phantom[..., 0] if photometric == "MONOCHROME1" else phantom[..., 0].copy()
    others[6, 5] = np.delete(others.ravel(), -1).min()
    assert np.array_equal(got, others)
