import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medvol.core import MissingInputError
from medvol.datasets import list_images


def write_dicom(path, series, modality):
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SeriesInstanceUID, header.Modality = series, modality
    header.save_as(path, enforce_file_format=True)


def test_every_readable_kind_is_listed_once_and_sorted(touch):
    folder = touch(
        "b.nii.gz",
        "a.NRRD",
        "sub/c.mha",
        "d.mhd",
        "d.raw",
        "e.PNG",
        "f.jpeg",
        "g.tif",
        ".x.nii",
        "labelsTr/b.nii.gz",
        "notes.txt",
        "__MACOSX/b.nii.gz",
    )
    assert [path.relative_to(folder).as_posix() for path in list_images(folder)] == [
        "a.NRRD",
        "b.nii.gz",
        "d.mhd",
        "e.PNG",
        "f.jpeg",
        "g.tif",
        "sub/c.mha",
    ]


def test_a_series_is_its_folder_and_radiographs_are_files(tmp_path):
    series = generate_uid()
    for number in range(3):
        write_dicom(tmp_path / f"ct/IM{number}", series, "CT")
        write_dicom(tmp_path / f"xray/{number}.dcm", series, "DX")
        write_dicom(tmp_path / f"alone/{number}.dcm", generate_uid(), "MR")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == [
        *(f"alone/{n}.dcm" for n in range(3)),
        "ct",
        *(f"xray/{n}.dcm" for n in range(3)),
    ]


def test_nothing_to_list_is_refused(tmp_path, touch):
    with pytest.raises(MissingInputError, match="no such folder"):
        list_images(tmp_path / "none")
    touch("a.txt")
    with pytest.raises(MissingInputError, match="holds no image"):
        list_images(tmp_path)
