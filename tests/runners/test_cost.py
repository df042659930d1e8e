"""What headers tell beforehand, and what damaged ones do not spoil."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medvol.runners import find_cases, run_local
from medvol.runners.cost import read_geometry


def write_series(folder: Path, count: int, step_mm: float, uid: str, **changes) -> None:
    """Headers and pixels of an axial CT."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        row = Dataset()
        row.file_meta = FileMetaDataset()
        row.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        row.file_meta.MediaStorageSOPClassUID = row.SOPClassUID = CTImageStorage
        row.file_meta.MediaStorageSOPInstanceUID = row.SOPInstanceUID = f"{uid}.{index + 1}"
        row.SeriesInstanceUID, row.Modality = uid, "CT"
        row.Rows, row.Columns, row.PixelSpacing, row.SliceThickness = 4, 6, [0.5, 0.7], 1.25
        row.ImagePositionPatient = [0, 0, index * step_mm]
        row.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        for name, value in changes.items():
            setattr(row, name, value)
        row.save_as(folder / f"{uid}.{index + 1}.dcm", enforce_file_format=True)


def test_the_step_and_not_the_thickness_is_foretold(tmp_path):
    write_series(tmp_path, 7, 5.0, "1.2.3")
    write_series(tmp_path, 3, 5.0, "1.2.4")  # a second series is none of the first one's slices
    (tmp_path / "notes.txt").write_text("not a slice")
    geometry = read_geometry(str(tmp_path))
    assert geometry is not None
    assert geometry.shape == (6, 4, 7)
    assert geometry.spacing_mm == pytest.approx((0.7, 0.5, 5.0))


def test_a_damaged_header_is_left_to_the_reader(tmp_path):
    write_series(tmp_path, 2, 5.0, "1.2.3")
    whole = (tmp_path / "1.2.3.1.dcm").read_bytes()
    (tmp_path / "1.2.3.1.dcm").write_bytes(whole[: len(whole) - 30])
    (tmp_path / "1.2.3.2.dcm").write_bytes(whole[:132])
    assert read_geometry(str(tmp_path)) is None


def test_a_damaged_stream_is_refused_and_the_rest_go_on(tmp_path, options, make_image):
    bad = make_image(tmp_path / "in" / "a.nii.gz", 0)
    make_image(tmp_path / "in" / "b.nii.gz", 1)
    content = bytearray(bad.read_bytes())
    start = content.index(b"\0", 10) + 1 if content[3] & 8 else 10  # behind the file's name
    content[start : start + 40] = np.random.default_rng(3).bytes(40)
    content[start] = 0b111  # no such kind of block
    bad.write_bytes(content)
    records = run_local(find_cases([tmp_path / "in"]), options())
    assert [r.status for r in records] == ["refused", "done"]
    assert "a.nii.gz" in records[0].reason
