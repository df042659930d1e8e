"""The DICOM gate: one even grid in the patient, or one line that says what is wrong."""

from __future__ import annotations

import itertools
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.core import Geometry, InputError, MedvolError
from medvol.io import DicomOptions, InputWarning, ReadOptions, read_scan, scan_folder
from medvol.io.dicom_header import read_header

SPACING = (1.5, 2.0, 3.0)


def world(index, spacing=SPACING, row=(1, 0, 0), column=(0, 1, 0)):
    """RAS position of voxel (x, y, z), from the definition in PS3.3 C.7.6.2."""
    normal = np.cross(row, column)
    axes = np.stack([np.multiply(row, spacing[0]), np.multiply(column, spacing[1]),
                     normal * spacing[2]], axis=1)  # fmt: skip
    lps = np.asarray(index) @ axes.T + (-20.0, 30.0, 40.0)
    return lps * (-1, -1, 1)


def every_index(shape):
    return np.array(list(itertools.product(*map(range, shape))))


def delete(keyword, only=None):
    def change(ds, z):
        if only is None or z == only:
            delattr(ds, keyword)

    return change


def put(keyword, value, only=None):
    def change(ds, z):
        if only is None or z == only:
            setattr(ds, keyword, value)

    return change


def tilted(ds, z):
    ds.ImagePositionPatient = [-20.0, 30.0 + 0.8 * z, 40.0 + 3.0 * z]


def localizer(ds, z):
    if z == 4:
        ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def short_pixels(ds, z):
    if z == 2:
        ds.PixelData = ds.PixelData[:-8]


def turned(ds, z):
    if z > 2:
        c, s = np.cos(0.05), np.sin(0.05)
        ds.ImageOrientationPatient = [c, s, 0, -s, c, 0]


def second_place(ds, z):
    if z == 3:
        ds.ImagePositionPatient = [-20.0, 30.0, 40.0 + 3.0 * 2]


def claim_65535(ds, z):
    ds.Rows = ds.Columns = 65535


def colour(ds, z):
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.PixelData *= 3


def one_smaller(ds, z):
    if z == 1:
        ds.Rows, ds.PixelData = 3, ds.PixelData[: 3 * 14]


REFUSED = {
    "a slice lost": (lambda ds, z: z != 2, "missing|gap"),
    "two slices lost": (lambda ds, z: z not in (1, 2), "missing|gap|uniform"),
    "uneven": (lambda ds, z: setattr(ds, "ImagePositionPatient", [0, 0, z * z]), "uniform"),
    "same place twice": (second_place, "same position|gap|uniform"),
    "no PixelSpacing": (delete("PixelSpacing"), "PixelSpacing"),
    "no position": (delete("ImagePositionPatient"), "ImagePositionPatient"),
    "one without position": (delete("ImagePositionPatient", 1), "missing in 1 of 5"),
    "no orientation": (delete("ImageOrientationPatient"), "ImageOrientationPatient"),
    "orientation of zeros": (put("ImageOrientationPatient", [0] * 6), "orientation|directions"),
    "skewed directions": (put("ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0]), "perpendicular"),
    "turned slices": (turned, "orientation"),
    "localizer inside": (localizer, "localizer"),
    "zero spacing": (put("PixelSpacing", [0, 0]), "spacing"),
    "negative spacing": (put("PixelSpacing", [-1, 1]), "spacing"),
    "one other spacing": (put("PixelSpacing", [1, 0.75], 3), "spacing"),
    "tilt": (tilted, "tilt.*resample"),
    "two patients": (put("PatientID", "OTHER-1", 2), "patients"),
    "two frames of reference": (put("FrameOfReferenceUID", "1.2.70", 2), "frames of reference"),
    "two series": (put("SeriesInstanceUID", "1.2.90", 2), "2 series"),
    "two modalities": (put("Modality", "MR", 2), "modality"),
    "CT without slope": (delete("RescaleSlope"), "rescale"),
    "slope zero": (put("RescaleSlope", 0), "rescale"),
    "pixels short": (short_pixels, "too short: expected 84"),
    "17 bits in 16": (put("BitsStored", 17), "17 bits"),
    "high bit": (put("HighBit", 11), "HighBit"),
    "no rows": (put("Rows", 0), "Rows"),
    "65535 x 65535": (claim_65535, "too large"),
    "colour": (colour, "colour"),
    "no pixels": (delete("PixelData"), "no image"),
    "one other size": (one_smaller, "pixels"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_broken_series_is_refused_in_one_line_without_identity(dicom_series, what):
    change, fault = REFUSED[what]
    folder = dicom_series(change)
    with pytest.raises(InputError, match=fault) as refusal:
        read_scan(folder)
    line = str(refusal.value)
    assert folder.name in line
    assert "\n" not in line
    assert "PLANTED" not in line.upper()
    rows = scan_folder(folder)
    assert bool(rows) == (what != "no pixels")
    if what not in ("two series", "tilt", "no pixels"):
        assert not all(row.is_usable for row in rows)
    assert "PLANTED" not in repr(rows).upper()


def test_a_decimal_comma_is_refused(dicom_series):
    folder = dicom_series(spacing_mm=(1.75, 2.25, 3.0))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"2.25\\1.75", b"2,25\\1,75"))
    with pytest.raises(InputError, match="PixelSpacing holds a value that is not a decimal number"):
        read_scan(folder)


def test_every_voxel_lies_where_the_header_says(dicom_series, phantom, at_mm):
    scan = read_scan(dicom_series())
    index = every_index(phantom.shape)
    assert np.array_equal(at_mm(scan, world(index)), phantom[tuple(index.T)])
    assert scan.array.shape == (1, *phantom.shape)


@pytest.mark.parametrize(("row", "column"), [
    ((0, 1, 0), (0, 0, -1)), ((1, 0, 0), (0, 0, -1)), ((-1, 0, 0), (0, 1, 0)),
    ((0.8, 0.6, 0), (-0.36, 0.48, -0.8)),
])  # fmt: skip
def test_sagittal_coronal_and_oblique_series_lie_right(dicom_series, phantom, at_mm, row, column):
    scan = read_scan(dicom_series(row=row, column=column))
    index = every_index(phantom.shape)
    points = world(index, row=row, column=column)
    assert np.array_equal(at_mm(scan, points), phantom[tuple(index.T)])


def test_file_names_and_instance_numbers_do_not_order_slices(dicom_series, phantom, at_mm):
    folder = dicom_series(lambda ds, z: setattr(ds, "InstanceNumber", 99 - z))
    for z, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{(z * 3) % 5}-{path.stem}")
    index = every_index(phantom.shape)
    assert np.array_equal(at_mm(read_scan(folder), world(index)), phantom[tuple(index.T)])


def test_each_slice_has_its_own_slope(dicom_series, phantom):
    def change(ds, z):
        ds.RescaleSlope, ds.RescaleIntercept = z + 0.5, -z

    got = read_scan(dicom_series(change)).array[0]
    z = np.arange(phantom.shape[2])
    assert np.allclose(got, phantom * (z + 0.5) - z)


def test_junk_above_the_stored_bits_is_dropped(dicom_series, phantom):
    def change(ds, z):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
        pixels = np.frombuffer(ds.PixelData, "<u2") | 0xA000
        ds.PixelData = pixels.tobytes()

    assert np.array_equal(read_scan(dicom_series(change)).array[0], phantom)


def test_signs_are_extended_from_the_stored_bits(dicom_series, phantom):
    def change(ds, z):
        ds.BitsStored, ds.HighBit = 12, 11
        ds.PixelData = ((np.frombuffer(ds.PixelData, "<i2") - 300) & 0xFFF).astype("<u2").tobytes()

    assert np.array_equal(read_scan(dicom_series(change)).array[0], phantom - 300)


def test_monochrome1_ct_keeps_its_hounsfield_units(dicom_series, phantom):
    folder = dicom_series(put("PhotometricInterpretation", "MONOCHROME1"))
    assert np.array_equal(read_scan(folder).array[0], phantom)


def test_padding_becomes_air(dicom_series, phantom):
    voxels = phantom.copy()
    voxels[0] = -2000
    folder = dicom_series(lambda ds, z: ds.add_new("PixelPaddingValue", "SS", -2000) or True,
                          voxels=voxels)  # fmt: skip
    got = read_scan(folder).array[0]
    assert (got[0] == -1024).all()
    assert np.array_equal(got[1:], phantom[1:])


def test_a_tilted_gantry_is_resampled_where_asked(dicom_series, at_mm):
    # a plane of constant value along the patient's y: slices shifted by the tilt must line up
    voxels = np.tile((np.arange(40) * 10)[None, :, None], (6, 1, 5))
    folder = dicom_series(tilted, voxels=voxels, spacing_mm=(1.0, 1.0, 3.0))
    with pytest.warns(InputWarning, match="tilt"):
        scan = read_scan(folder, ReadOptions(dicom=DicomOptions(resample_tilt=True)))
    points = np.array([[20 - 2.0, -30 - y, 40 + 3 * z] for y in (8, 20, 30) for z in range(5)])
    index = (np.c_[points, np.ones(len(points))] @ np.linalg.inv(scan.affine).T)[:, :3]
    lower = np.floor(index[:, 1]).astype(int)
    share = index[:, 1] - lower
    x, z = np.rint(index[:, 0]).astype(int), np.rint(index[:, 2]).astype(int)
    got = scan.array[0][x, lower, z] * (1 - share) + scan.array[0][x, lower + 1, z] * share
    # in slice z, patient y = 30 + 0.8 z + row, so the value at patient y is 10 (y - 30 - 0.8 z)
    expected = [10 * (y - 0.8 * z) for y in (8, 20, 30) for z in range(5)]
    assert np.allclose(got, expected, atol=1e-3)
    directions = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    assert np.allclose(directions.T @ directions, np.eye(3), atol=1e-9)


def test_a_time_series_is_split_on_request(dicom_series, phantom):
    folder = dicom_series(put("TemporalPositionIdentifier", 1))

    def later(ds, z):
        ds.TemporalPositionIdentifier, ds.RescaleIntercept = 2, 1000
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.4.{z}"

    for path in dicom_series(later, name="later").iterdir():
        shutil.move(path, folder / f"late-{path.name}")
    with pytest.raises(InputError, match="4D series of 2 volumes"):
        read_scan(folder)
    second = read_scan(folder, ReadOptions(dicom=DicomOptions(volume=2)))
    assert np.array_equal(second.array[0], phantom + 1000)


def test_an_exact_copy_is_left_out_and_said(dicom_series, phantom):
    folder = dicom_series()
    shutil.copy(folder / "s002.dcm", folder / "again.dcm")
    with pytest.warns(InputWarning, match="1 files are copies"):
        assert np.array_equal(read_scan(folder).array[0], phantom)


def test_a_chosen_series_loads(dicom_series, phantom):
    folder = dicom_series()
    for path in dicom_series(put("SeriesInstanceUID", "1.2.91"), name="b").iterdir():
        shutil.move(path, folder / f"b{path.name}")
    with pytest.raises(InputError, match=r"1: CT 5 frames.*2: CT 5 frames"):
        read_scan(folder)
    for choice in (1, "1.2.91"):
        scan = read_scan(folder, ReadOptions(dicom=DicomOptions(series=choice)))
        assert np.array_equal(scan.array[0], phantom)


def test_notes_beside_slices_are_ignored_but_a_damaged_slice_is_not(dicom_series, phantom):
    folder = dicom_series()
    (folder / "README.txt").write_text("notes")
    (folder / "report.pdf").write_bytes(b"")
    (folder / ".DS_Store").write_bytes(b"x")
    assert np.array_equal(read_scan(folder).array[0], phantom)
    (folder / "s009.dcm").write_bytes(b"")
    with pytest.raises(InputError, match=r"s009\.dcm: is empty"):
        read_scan(folder)
    (folder / "s009.dcm").write_bytes(b"garbage" * 50)
    with pytest.raises(InputError, match=r"s009\.dcm: is not a DICOM"):
        read_scan(folder)


def test_a_file_without_preamble_loads(dicom_series, phantom):
    folder = dicom_series()
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    assert np.array_equal(read_scan(folder).array[0], phantom)


def test_a_single_slice_takes_its_thickness_or_is_refused(dicom_series):
    folder = dicom_series(lambda ds, z: z == 0)
    assert np.linalg.norm(read_scan(folder).affine[:3, 2]) == pytest.approx(3.0)
    folder = dicom_series(lambda ds, z: delattr(ds, "SliceThickness") or z == 0, name="no")
    with pytest.raises(InputError, match="SliceThickness"):
        read_scan(folder)


@pytest.mark.parametrize("how", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99",
                                 "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5",
                                 "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"])  # fmt: skip
@pytest.mark.parametrize("decoder", ["usual", "gdcm"])
def test_every_transfer_syntax_gives_the_stored_values(
    dicom_series, phantom, how, decoder, monkeypatch
):
    import pydicom

    from medvol.io import dicom_pixels

    wide = np.tile(phantom, (8, 8, 1)) - 300  # openjpeg refuses to encode smaller planes
    folder = dicom_series(voxels=wide)
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        if how == "1.2.840.10008.1.2.2":
            ds.PixelData = np.frombuffer(ds.PixelData, "<i2").byteswap().tobytes()
        if pydicom.uid.UID(how).is_encapsulated:
            ds.compress(how, generate_instance_uid=False)
        else:
            ds.file_meta.TransferSyntaxUID = how
        if how == "1.2.840.10008.1.2.2":  # pydicom converts only what it read itself
            pydicom.dcmwrite(path, ds, little_endian=False, implicit_vr=False, overwrite=True)
        else:
            ds.save_as(path)
    if decoder == "gdcm":
        only = dict.fromkeys(dicom_pixels._DECODERS, (dicom_pixels._gdcm,))
        monkeypatch.setattr(dicom_pixels, "_DECODERS", only)
    assert np.array_equal(read_scan(folder).array[0], wide)


def test_a_truncated_compressed_slice_is_refused(dicom_series, phantom):
    import pydicom

    folder = dicom_series(voxels=np.tile(phantom, (8, 8, 1)))
    for path in sorted(folder.iterdir()):
        ds = pydicom.dcmread(path)
        ds.compress("1.2.840.10008.1.2.4.90", generate_instance_uid=False)
        ds.save_as(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"truncated|corrupt"):
        read_scan(folder)


def enhanced(path: Path, phantom, order, slopes=None):
    """An enhanced multi-frame CT written element by element."""
    import pydicom
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.1"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3.1"
    ds.Modality, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "CT", "1.2.9", "1.2.7"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = phantom.shape[1], phantom.shape[0], 1
    ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME2", 1
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.NumberOfFrames = 15, len(order)

    def item(**values):
        inner = Dataset()
        for keyword, value in values.items():
            setattr(inner, keyword, value)
        return inner

    ds.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=[2.0, 1.5], SliceThickness=3.0)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[-20.0, 30.0, 40.0 + 3.0 * z])],
            PixelValueTransformationSequence=[
                item(RescaleSlope=slopes[z] if slopes else 1, RescaleIntercept=0)
            ],
        )
        for z in order
    ]
    scaled = [phantom[:, :, z].T / (slopes[z] if slopes else 1) for z in order]
    ds.PixelData = np.stack(scaled).round().astype("<i2").tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path  # fmt: skip


def test_enhanced_frames_are_ordered_and_scaled_one_by_one(tmp_path, phantom):
    path = enhanced(
        tmp_path / "e.dcm", phantom * 4, (3, 0, 4, 1, 2), {0: 1, 1: 2, 2: 4, 3: 1, 4: 2}
    )
    assert np.array_equal(read_scan(path).array[0], phantom * 4)
    path = enhanced(tmp_path / "gap.dcm", phantom, (0, 1, 3, 4))
    with pytest.raises(InputError, match=r"missing|gap"):
        read_scan(path)


def test_pet_becomes_suv(dicom_series, phantom):
    from pydicom.dataset import Dataset

    def change(ds, z):
        ds.Modality, ds.Units, ds.DecayCorrection = "PT", "BQML", "START"
        ds.PatientWeight, ds.SeriesTime, ds.RescaleSlope = 70, "103000", 2
        dose = Dataset()
        dose.RadionuclideTotalDose, dose.RadionuclideHalfLife = 350e6, 3600
        dose.RadiopharmaceuticalStartTime = "093000"
        ds.RadiopharmaceuticalInformationSequence = [dose]

    folder = dicom_series(change)
    # one half-life between injection and scan: SUV = c * 70 kg * 1000 / (350 MBq / 2)
    expected = phantom * 2 * 70e3 / 175e6
    assert np.allclose(read_scan(folder).array[0], expected, rtol=1e-6)
    raw_values = read_scan(folder, ReadOptions(dicom=DicomOptions(pet_suv=False)))
    assert np.array_equal(raw_values.array[0], phantom * 2)
    folder = dicom_series(lambda ds, z: change(ds, z) or delattr(ds, "PatientWeight"), name="w")
    with pytest.raises(InputError, match="PatientWeight"):
        read_scan(folder)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_radiograph_is_a_picture_with_bright_bones(dicom_series, phantom, photometric):
    def change(ds, z):
        ds.Modality, ds.PhotometricInterpretation = "DX", photometric
        ds.PixelRepresentation, ds.BitsStored, ds.HighBit = 0, 12, 11
        for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(ds, word)
        return z == 0

    got = read_scan(next(dicom_series(change).iterdir())).array
    plane = phantom[:, :, 0]
    assert got.shape == (1, *plane.shape)
    assert np.array_equal(got[0], 4095 - plane if photometric == "MONOCHROME1" else plane)


def test_burned_in_and_lossy_are_said(dicom_series):
    with pytest.warns(InputWarning, match="burned"):
        read_scan(dicom_series(put("BurnedInAnnotation", "YES")))
    with pytest.warns(InputWarning, match="lossy"):
        read_scan(dicom_series(put("LossyImageCompression", "01"), name="l"))


def test_headers_agree_with_pydicom(dicom_series):
    import pydicom

    for path in dicom_series().iterdir():
        mine, theirs = read_header(path), pydicom.dcmread(path)
        frame = mine.frames[0]
        assert frame.position == tuple(map(float, theirs.ImagePositionPatient))
        assert frame.orientation == tuple(map(float, theirs.ImageOrientationPatient))
        assert (mine.rows, mine.columns) == (theirs.Rows, theirs.Columns)
        assert mine.parsed.content() == theirs.PixelData


def test_integers_beyond_float32_are_refused(dicom_series):
    def change(ds, z):
        ds.BitsAllocated = ds.BitsStored = 32
        ds.HighBit = 31
        ds.PixelData = (np.frombuffer(ds.PixelData, "<i2").astype("<i4") + 2**24).tobytes()

    with pytest.raises(InputError, match="precision"):
        read_scan(dicom_series(change))


def test_reading_needs_no_dicom_package(dicom_series, phantom, monkeypatch):
    # where MONAI Label runs, pydicom is old and highdicom and pylibjpeg are absent
    import sys

    folder = dicom_series()
    for name in ("pydicom", "highdicom", "openjpeg", "libjpeg", "jpeg_ls", "typer", "rich"):
        monkeypatch.setitem(sys.modules, name, None)
    assert np.array_equal(read_scan(folder).array[0], phantom)


def test_an_object_without_pixels_is_no_image(dicom_series):
    folder = dicom_series(delete("PixelData"))
    with pytest.raises(InputError, match="not an image"):
        read_scan(next(folder.iterdir()))
    (folder / "x.txt").write_text("x")
    for path in folder.glob("*.dcm"):
        path.unlink()
    with pytest.raises(InputError, match="no DICOM image"):
        read_scan(folder)


@settings(max_examples=300)
@given(data=st.data())
def test_no_byte_flip_crashes_the_parser(dicom_series, data):
    folder = dicom_series(lambda ds, z: z == 0)
    source = next(folder.glob("s*.dcm"))
    whole = bytearray(source.read_bytes())
    for at in data.draw(st.lists(st.integers(128, len(whole) - 1), min_size=1, max_size=8)):
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    fuzzed = folder.parent / "f.dcm"
    fuzzed.write_bytes(bytes(whole[: cut if data.draw(st.booleans()) else len(whole)]))
    try:
        scan = read_scan(fuzzed)
    except (MedvolError, UserWarning):
        return
    assert np.isfinite(scan.array).all()


def test_deep_nesting_and_lying_lengths_are_refused(tmp_path):
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"
    level = struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, 0xFFFFFFFF)
    level += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    deep = level * 4000
    lie = struct.pack("<HH2sHI", 0x0040, 0x0555, b"UT", 0, 0xFFFFFFF0) + b"abc"
    for body in (deep, lie):
        path = tmp_path / "d.dcm"
        path.write_bytes(b"\0" * 128 + b"DICM" + meta + body)
        with pytest.raises(InputError, match=r"nested|truncated"):
            read_scan(path)


@pytest.mark.filterwarnings("ignore:Setting affine")
@pytest.mark.filterwarnings("ignore:NvImgCodec")
def test_loading_transform_resamples_a_tilt_where_asked(dicom_series):
    from monai.transforms.io.dictionary import LoadImaged

    folder = dicom_series(tilted, spacing_mm=(1.0, 1.0, 3.0))
    arguments = {"keys": "image", "reader": "medvol.io.MedvolReader", "ensure_channel_first": True}
    with pytest.raises(MedvolError, match="tilt"):
        LoadImaged(**arguments)({"image": str(folder)})
    with pytest.warns(InputWarning, match="tilt"):
        loaded = LoadImaged(**arguments, resample_tilt=True)({"image": str(folder)})["image"]
    assert Geometry(tuple(loaded.shape[1:]), loaded.affine.numpy()).shear_deg < 1e-6
