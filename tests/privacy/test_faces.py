"""A face is found by its skin surface, wherever it lies in storage; a cut one is not."""

from __future__ import annotations

import numpy as np
import pytest

from medvol.datasets.phantoms import ct_phantom, mr_phantom
from medvol.io import read_scan
from medvol.privacy import Pseudonyms, deidentify_folder, load_profile
from medvol.privacy.faces import Face, find_face
from tests.privacy.heads import CUTS, grid, head, turned

COARSE = (3.5, 3.5, 3.5)
#: modality, storage order, voxel in mm along RAS, pose, size
SCANS = [
    ("MR", "RAS", COARSE, turned(), 1.0),
    ("MR", "PIR", (3.5, 3.5, 5.0), turned(12), 1.0),
    ("CT", "LPS", (3.0, 3.0, 5.0), turned(-12), 0.9),
    ("CT", "RAS", (5.0, 3.0, 3.0), turned(5, 8, 10), 1.0),
    ("MR", "LAS", COARSE, turned(-5, -8, -10), 0.85),
]


@pytest.mark.parametrize("cut", ["", *CUTS])
@pytest.mark.parametrize(("modality", "storage", "spacing_mm", "pose", "scale"), SCANS)
def test_a_face_is_present_until_it_is_cut(modality, storage, spacing_mm, pose, scale, cut):
    shape, affine = grid(spacing_mm=spacing_mm, storage=storage)
    scan = head(modality, shape=shape, affine=affine, cut=cut, pose=pose, scale=scale)
    assert find_face(scan, affine, modality) is (Face.CUT if cut else Face.PRESENT)


def test_the_grid_may_lie_oblique_to_the_patient():
    shape, affine = grid(spacing_mm=COARSE)
    oblique = np.eye(4)
    oblique[:3, :3] = turned(15, 10, 20)
    affine = oblique @ affine
    assert find_face(head(shape=shape, affine=affine), affine, "MR") is Face.PRESENT
    cut = head(shape=shape, affine=affine, cut="box")
    assert find_face(cut, affine, "MR") is not Face.PRESENT


def test_a_field_of_view_without_skin_has_no_face():
    shape, affine = grid((-60, -70, -20), (60, 70, 90), COARSE)
    assert find_face(head(shape=shape, affine=affine), affine, "MR") is Face.NO_HEAD


def test_a_nose_is_enough_where_the_top_was_not_scanned():
    shape, affine = grid((-100, -120, -110), (100, 140, 20), COARSE)
    assert find_face(head("CT", shape=shape, affine=affine), affine, "CT") is Face.PRESENT


def test_trunks_and_skull_stripped_brains_have_no_face():
    trunk = ct_phantom(3, shape=(48, 36, 40), spacing_mm=(7.5, 7.5, 8.0))
    assert find_face(trunk.image, trunk.affine, "CT") is Face.NO_HEAD
    brain = mr_phantom(3, shape=(44, 52, 44), spacing_mm=(4.0, 4.0, 4.0))
    stripped = np.where(brain.image[0] > 0.4 * brain.image[0].max(), brain.image[0], 0)
    assert find_face(stripped, brain.affine, "MR") is not Face.PRESENT


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 1, 40), (2, 2, 2), (30, 30, 30)])
@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan])
def test_volumes_without_content_have_no_head(shape, fill):
    assert find_face(np.full(shape, fill, np.float32), np.eye(4), "MR") is Face.NO_HEAD


def test_real_scans_are_judged_right(shared_data):
    for path, modality, wanted in (("mri/head_t1.nii.gz", "MR", Face.PRESENT),
                                   ("dicom/mr_t1post_study1", "MR", Face.PRESENT),
                                   ("dicom/mr_hippocrop_study1", "MR", Face.NO_HEAD),
                                   ("ct/torso_ct_3mm.nii.gz", "CT", Face.NO_HEAD)):  # fmt: skip
        scan = read_scan(shared_data / path)
        assert find_face(scan.array[0], scan.affine, modality) is wanted, path


@pytest.mark.parametrize("part", ["", "HEAD", "ABDOMEN"])
@pytest.mark.parametrize("cut", ["", "box"])
def test_the_audit_believes_voxels_before_tags(tmp_path, dicom_head, part, cut):
    pytest.importorskip("dicomanonymizer")
    source = dicom_head(cut=cut, BodyPartExamined=part)
    key = Pseudonyms(b"0123456789abcdef")
    report = deidentify_folder(source, tmp_path / "out", load_profile("basic"), key)
    faces = [row["why"] for row in report.residuals if row["kind"] == "face"]
    assert len(faces) == (not cut)
    assert all("skin surface" in why for why in faces)
    by_tags = deidentify_folder(source, tmp_path / "tags", load_profile("basic"), key,
                                is_judging_faces=False)  # fmt: skip
    assert len([row for row in by_tags.residuals if row["kind"] == "face"]) == (part != "ABDOMEN")


@pytest.fixture
def dicom_head(tmp_path):
    """A coarse MR head as a series, whose tags state what the test needs."""
    from tests.io.conftest import write_series

    def build(cut="", **tags):
        shape, affine = grid(spacing_mm=(4.0, 4.0, 4.0), storage="LPS")
        voxels = head(shape=shape, affine=affine, cut=cut)
        place = np.diag([-1, -1, 1]) @ affine[:3, 3]

        def change(ds, z):
            ds.Modality = "MR"
            ds.ImagePositionPatient = [*map(float, place[:2]), float(place[2] + 4.0 * z)]
            for keyword, value in tags.items():
                setattr(ds, keyword, value)

        return write_series(tmp_path / "head", voxels, change, spacing_mm=(4.0, 4.0, 4.0))

    return build
