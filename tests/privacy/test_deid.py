"""De-identification: nothing planted survives, everything needed does, the source is untouched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.cli.main import main
from medvol.core import ConfigError, OutputError
from medvol.io import read_scan
from medvol.privacy import Pseudonyms, deidentify_folder, load_key, load_profile

pytest.importorskip("dicomanonymizer")
pydicom = pytest.importorskip("pydicom")
KEY = Pseudonyms(b"0123456789abcdef")
PLANTED = ("Janssen", "Wilhelmina", "4477-1190-AB", "19610203", "Kerkstraat", "Dr Overbeek",
           "Sint Elders", "ACC990017", "0612345678", "STATION7", "SN-55120")  # fmt: skip


def series(folder: Path, n: int = 3, **extra) -> Path:
    """A head CT with identity planted in public, private, nested and free-text elements."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

    folder.mkdir(parents=True, exist_ok=True)
    for z in range(n):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{z + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.SourceApplicationEntityTitle = "STATION7"
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"Janssen".ljust(128, b"\0"))
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"1.2.3.{z + 1}"
        ds.PatientName, ds.PatientID = "Janssen^Wilhelmina", "4477-1190-AB"
        ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19610203", "F", "062Y"
        ds.PatientAddress, ds.PatientTelephoneNumbers = "Kerkstraat 5", "0612345678"
        ds.ReferringPhysicianName, ds.InstitutionName = "Dr Overbeek", "Sint Elders"
        ds.AccessionNumber, ds.StationName = "ACC990017", "STATION7"
        ds.DeviceSerialNumber, ds.StudyDate, ds.StudyTime = "SN-55120", "20240301", "101500"
        ds.ContentDate = "20240303"
        ds.StudyDescription = "CT head of Wilhelmina"
        ds.ImageComments = "see Dr Overbeek"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.BodyPartExamined, ds.Modality = "HEAD", "CT"
        ds.ManufacturerModelName = "Model for Janssen"
        request = Dataset()
        request.RequestedProcedureDescription = "Janssen again"
        request.ReferringPhysicianName = "Dr Overbeek"
        ds.RequestAttributesSequence = [request]
        plan = Dataset()
        plan.CodeMeaning, plan.CodeValue, plan.CodingSchemeDesignator = "Wilhelmina", "1", "99X"
        ds.ProcedureCodeSequence = [plan]
        source = Dataset()
        source.ReferencedSOPClassUID = pydicom.uid.CTImageStorage
        source.ReferencedSOPInstanceUID = "1.2.3.1"
        ds.SourceImageSequence = [source]
        block = ds.private_block(0x0029, "ACME HEADER", create=True)
        block.add_new(0x10, "LO", "Janssen")
        block.add_new(0x11, "DA", "19610203")
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
            "1.2.8",
            "1.2.9",
            "1.2.7",
        )
        ds.Rows = ds.Columns = 4
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.PixelSpacing = 1, -1024, [1, 1]
        ds.SliceThickness, ds.ImageOrientationPatient = 2, [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [0, 0, 2 * z]
        ds.PixelData = (np.arange(16, dtype="<u2") + z).tobytes()
        for keyword, value in extra.items():
            setattr(ds, keyword, value)
        ds.save_as(folder / f"Janssen_{z}.dcm", enforce_file_format=True)
    return folder


def everything(folder: Path) -> bytes:
    return b"".join(str(p).encode() + p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("profile", ["basic", "shifted_dates", "retain_device"])
def test_nothing_planted_survives(tmp_path, profile):
    source = series(tmp_path / "in")
    report = deidentify_folder(source, tmp_path / "out", load_profile(profile), KEY)
    assert report.written == 3
    assert report.is_clean
    content = everything(tmp_path / "out").lower()
    kept = ("STATION7", "SN-55120") if profile == "retain_device" else ()
    for secret in PLANTED:
        assert (secret.lower().encode() in content) == (secret in kept), secret
    for uid in (b"1.2.3.1", b"1.2.8", b"1.2.9", b"1.2.7"):
        assert uid + b"\0" not in content


def test_the_image_and_its_geometry_survive(tmp_path):
    source = series(tmp_path / "in")
    deidentify_folder(source, tmp_path / "out", load_profile("basic"), KEY)
    before, after = read_scan(source), read_scan(tmp_path / "out" / "P001" / "S001")
    assert np.array_equal(before.array, after.array)
    assert np.array_equal(before.affine, after.affine)


def test_the_source_is_never_touched(tmp_path):
    source = series(tmp_path / "in")
    before = hashlib.sha256(everything(source)).hexdigest()
    deidentify_folder(source, tmp_path / "out", load_profile("basic"), KEY)
    assert hashlib.sha256(everything(source)).hexdigest() == before
    for target in (source, source / "deep", tmp_path):
        with pytest.raises(OutputError, match="outside the source folder"):
            deidentify_folder(source, target, load_profile("basic"), KEY)
    with pytest.raises(OutputError, match="not empty"):
        deidentify_folder(source, tmp_path / "out", load_profile("basic"), KEY)


def first(folder: Path):
    return pydicom.dcmread(next(folder.rglob("000001.dcm")))


def test_pseudonyms_are_consistent_under_a_key_and_only_under_it(tmp_path):
    one = series(tmp_path / "a")
    two = series(tmp_path / "b", SeriesInstanceUID="1.2.99")
    for name, key in (("x", KEY), ("y", KEY), ("z", Pseudonyms(b"another secret key"))):
        source = two if name == "y" else one
        deidentify_folder(source, tmp_path / name, load_profile("basic"), key)
    x, y, z = (first(tmp_path / name) for name in "xyz")
    assert x.PatientID == y.PatientID != z.PatientID
    assert x.StudyInstanceUID == y.StudyInstanceUID != z.StudyInstanceUID
    assert x.SeriesInstanceUID != y.SeriesInstanceUID
    assert x.SourceImageSequence[0].ReferencedSOPInstanceUID == x.SOPInstanceUID
    assert x.file_meta.MediaStorageSOPInstanceUID == x.SOPInstanceUID


def test_shifted_dates_keep_their_intervals(tmp_path):
    from datetime import datetime

    deidentify_folder(series(tmp_path / "in"), tmp_path / "out", load_profile("shifted_dates"), KEY)
    ds = first(tmp_path / "out")
    study, content = (datetime.strptime(d, "%Y%m%d") for d in (ds.StudyDate, ds.ContentDate))
    assert (content - study).days == 2
    assert 1 <= (datetime(2024, 3, 1) - study).days <= 365
    assert ds.LongitudinalTemporalInformationModified == "MODIFIED"
    assert not ds.PatientBirthDate


def test_what_was_done_is_declared(tmp_path):
    deidentify_folder(series(tmp_path / "in"), tmp_path / "out", load_profile("retain_device"), KEY)
    ds = first(tmp_path / "out")
    assert ds.PatientIdentityRemoved == "YES"
    codes = [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113109"]
    assert ds.StationName == "STATION7"
    assert not any(element.tag.is_private for element in ds.iterall())


def test_faces_and_burned_in_text_are_flagged(tmp_path):
    source = series(tmp_path / "in", BurnedInAnnotation="YES")
    report = deidentify_folder(source, tmp_path / "out", load_profile("basic"), KEY)
    assert {row["kind"] for row in report.residuals} == {"face", "burned-in"}
    saved = json.loads((tmp_path / "out" / "deid_report.json").read_text())
    assert saved["residuals"] == report.residuals


def test_documents_are_left_out_and_stated(tmp_path):
    report_class = "1.2.840.10008.5.1.4.1.1.88.33"
    series(tmp_path / "in" / "sr", n=1, SOPClassUID=report_class)
    series(tmp_path / "in" / "ct", SeriesInstanceUID="1.2.99")
    report = deidentify_folder(tmp_path / "in", tmp_path / "out", load_profile("basic"), KEY)
    assert report.written == 3
    assert len(report.left_out) == 1
    assert "document" in report.left_out[0]["why"]


def test_a_file_without_preamble_is_copied_and_a_damaged_one_is_stated(tmp_path):
    source = series(tmp_path / "in", n=3)
    bare, cut, _ = sorted(source.iterdir())
    bare.write_bytes(bare.read_bytes()[132:])
    cut.write_bytes(cut.read_bytes()[:400])
    (source / "notes.txt").write_text("Janssen")
    (source / "IM9").write_bytes(b"")
    report = deidentify_folder(source, tmp_path / "out", load_profile("basic"), KEY)
    assert report.written == 2
    assert [row["why"] for row in report.left_out] == [
        "is damaged and cannot be read: left out"
    ] * 2
    assert not report.is_clean
    copies = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(copies) == 2
    assert not any(word.encode() in path.read_bytes() for path in copies for word in PLANTED)
    for path in copies:
        assert pydicom.dcmread(path).pixel_array.any()


def test_a_word_kept_against_the_profile_is_never_written(tmp_path):
    # a keyword that a profile keeps may not smuggle a name out
    profile = load_profile("basic")
    smuggling = type(profile)(**{**vars(profile), "keep": ("StudyDescription",)})
    report = deidentify_folder(series(tmp_path / "in"), tmp_path / "out", smuggling, KEY)
    assert report.written == 0
    assert len(report.left_out) == 3
    assert b"Wilhelmina" not in everything(tmp_path / "out")


def test_the_command_exits_0_1_and_2(tmp_path, capsys):
    source = series(tmp_path / "in")
    arguments = ["data", "deid", str(source), "-o"]
    key = ["--key-file", str(tmp_path / "key")]
    assert main([*arguments, str(tmp_path / "out"), *key, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["is_clean"]
    for secret in PLANTED[:4]:
        assert secret not in printed.out.replace(str(tmp_path), "")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert main([*arguments, str(tmp_path / "out2"), *key]) == 0
    a, b = first(tmp_path / "out"), first(tmp_path / "out2")
    assert a.PatientID == b.PatientID
    assert main([*arguments, str(tmp_path / "out")]) == 2
    assert main([*arguments, str(tmp_path / "o3"), "--profile", "nothing"]) == 2
    assert "is not a privacy profile; known: basic" in capsys.readouterr().err


def test_a_rejected_run_writes_no_key_and_no_key_lies_among_scans(tmp_path, capsys):
    source, out = series(tmp_path / "in", n=1), tmp_path / "out"
    key = tmp_path / "key"
    assert main(["data", "deid", str(tmp_path / "no"), "-o", str(out), "--key-file", str(key)]) == 2
    assert not key.exists()
    for place in (source, out):
        command = ["data", "deid", str(source), "-o", str(out), "--key-file", str(place / "key")]
        assert main(command) == 2
        assert "key must lie outside" in capsys.readouterr().err
    assert len(list(source.iterdir())) == 1
    assert not out.exists()


def test_profiles_are_checked(tmp_path):
    for text, fault in (("name: x\ndates: never", "dates must be"), ("dates: shift", "a name"),
                        ("name: x\nkeep: [NoSuchWord]", "not a DICOM keyword"),
                        ("name: x\nmax_shift_days: 0", "1 to 36500"),
                        ("name: x\nother: 1", "unknown key 'other'")):  # fmt: skip
        path = tmp_path / "p.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=fault):
            load_profile(path)
    (tmp_path / "short").write_text("abc")
    with pytest.raises(ConfigError, match="shorter than 16"):
        load_key(tmp_path / "short")


@given(st.text(max_size=30), st.text(max_size=30))
def test_different_people_get_different_pseudonyms(one, other):
    same = one.strip() == other.strip()
    assert (KEY.patient(one, "") == KEY.patient(other, "")) == same or not (one and other)
    assert KEY.uid(one).replace(".", "").isdigit()
    assert 1 <= KEY.shift_days(one, 10) <= 10
