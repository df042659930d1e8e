"""`data scan`: one row per series, without decoding, in text, JSON and HTML."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from medvol.cli.main import main
from medvol.core import MissingInputError
from medvol.io import scan_folder, scan_html, write_itk, write_nifti


@pytest.fixture
def messy(dicom_series, phantom, tmp_path):
    """A folder with a good and a broken series, volumes, pictures and notes."""
    root = tmp_path / "messy"
    root.mkdir()
    shutil.move(dicom_series(name="good"), root / "good")
    shutil.move(dicom_series(lambda ds, z: z != 2, name="gap"), root / "gap")
    for path in (root / "gap").iterdir():  # a series of its own
        path.write_bytes(path.read_bytes().replace(b"1.2.9\0", b"1.2.5\0"))
    write_nifti(root / "v.nii.gz", phantom, np.diag([2.0, 3, 4, 1]))
    write_itk(root / "w.nrrd", phantom, np.diag([2.0, 3, 4, 1]))
    (root / "bad.nii").write_bytes(b"<html>" * 90)
    (root / "notes.txt").write_text("<script>")
    (root / "stack").mkdir()
    for n in range(3):
        Image.fromarray(np.full((4, 5), n, np.uint8)).save(root / "stack" / f"s{n}.png")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(root / "<b>one.png")
    return root


def test_each_series_has_one_row_and_a_reason(messy):
    rows = {row.path: row for row in scan_folder(messy)}
    assert set(rows) == {"good", "gap", "v.nii.gz", "w.nrrd", "bad.nii", "stack", "<b>one.png"}
    good = rows["good"]
    assert (good.modality, good.shape, good.spacing_mm) == ("CT", (7, 6, 5), (1.5, 2.0, 3.0))
    assert (good.axes, good.files, good.is_usable) == ("LPS", 5, True)
    assert "missing" in rows["gap"].problem
    assert rows["v.nii.gz"].spacing_mm == rows["w.nrrd"].spacing_mm == (2.0, 3.0, 4.0)
    assert "not a valid NIfTI" in rows["bad.nii"].problem
    assert rows["stack"].shape == (5, 4, 3)


def test_the_command_prints_json_and_exits_1_for_problems(messy, capsys):
    assert main(["data", "scan", str(messy), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["unusable"] == 2
    assert len(told["rows"]) == 7
    (messy / "bad.nii").unlink()
    shutil.rmtree(messy / "gap")
    assert main(["data", "scan", str(messy)]) == 0
    assert "7x6x5 1.5x2x3 mm LPS usable" in capsys.readouterr().out
    assert main(["data", "scan", str(messy / "nowhere")]) == 2


def test_the_page_shows_thumbnails_and_escapes_names(messy):
    page = scan_html(scan_folder(messy), str(messy))
    assert page.count("data:image/png;base64,") == 5
    assert "<b>one" not in page
    assert "&lt;b&gt;one" in page
    assert "PLANTED" not in page.upper()
    assert "http" not in page


def test_a_tilt_and_a_time_series_are_noted(dicom_series):
    def tilted(ds, z):
        ds.ImagePositionPatient = [-20.0, 30.0 + 0.8 * z, 40.0 + 3.0 * z]

    (row,) = scan_folder(dicom_series(tilted))
    assert row.is_usable
    assert "gantry tilt" in row.notes[0]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match="does not exist"):
        scan_folder(tmp_path / "nowhere")


def test_what_cannot_be_read_is_not_called_usable(phantom, tmp_path):
    import nibabel

    affine = np.diag([2.0, 3, 4, 1])
    write_nifti(tmp_path / "cut.nii", phantom, affine)
    write_itk(tmp_path / "whole.mha", phantom, affine)
    plain = tmp_path / "plain.nrrd"
    plain.write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nspace: RAS\nsizes: 2 2 2\nencoding: raw\n"
        b"endian: little\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
        + b"\0"
        * 15
    )
    (tmp_path / "cut.nii").write_bytes((tmp_path / "cut.nii").read_bytes()[:-1])
    pair = nibabel.Nifti1Pair(phantom, affine)
    pair.set_sform(affine, 1)
    for name in ("pair", "half"):
        nibabel.save(pair, tmp_path / f"{name}.hdr")
    (tmp_path / "half.img").unlink()
    for ending in ("hdr", "img"):
        (tmp_path / f"pair.{ending}").rename(tmp_path / f"PAIR.{ending.upper()}")
    rows = {row.path: row.problem for row in scan_folder(tmp_path)}
    assert set(rows) == {"cut.nii", "whole.mha", "plain.nrrd", "PAIR.HDR", "half.hdr"}
    assert not rows["PAIR.HDR"]
    assert not rows["whole.mha"]
    assert "truncated" in rows["cut.nii"]
    assert "truncated" in rows["plain.nrrd"]
    assert "half.img is missing" in rows["half.hdr"]
