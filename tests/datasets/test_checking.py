import json

import nibabel
import numpy as np
import pytest

from medvol.cli.main import main
from medvol.datasets import read_dataset
from medvol.datasets.checking import check_dataset
from medvol.datasets.phantoms import ct_phantom, write_phantom_dataset
from medvol.datasets.phantoms.writer import write_nifti

SHAPE, SPACING = (48, 40, 40), (7.5, 6.5, 7.5)


@pytest.fixture
def phantoms(tmp_path):
    """Nine small patients with spleen and liver."""
    return write_phantom_dataset(
        tmp_path / "set",
        9,
        labels=("spleen", "liver"),
        shape=SHAPE,
        spacing_mm=SPACING,
        lesions=0,
        nodules=0,
    )


def rewrite(folder, number, change, parts=("imagesTr", "labelsTr")):
    """Change the arrays (and affine) of one case on disk."""
    for part in parts:
        path = folder / part / f"phantom_{number:05d}.nii.gz"
        image = nibabel.load(path)
        array, affine = change(np.asarray(image.dataobj), image.affine.copy(), part)
        path.unlink()
        write_nifti(path, array, affine)


def faults(folder):
    return {
        (f.case[-1], f.kind): f.fault
        for f in check_dataset(read_dataset(folder, strict=False)).faults
    }


def test_a_sound_data_set_has_no_fault(phantoms):
    report = check_dataset(read_dataset(phantoms))
    assert report.faults == []
    assert len(report.stats) == 9
    value = report.stats[0].volumes_ml[1]
    assert value == pytest.approx(
        ct_phantom(
            0, shape=SHAPE, spacing_mm=SPACING, lesions=0, nodules=0, labels=("spleen",)
        ).volumes_ml["spleen"],
        rel=0.1,
    )


def test_every_bad_case_is_named_and_the_check_never_stops_at_the_first(phantoms):
    rewrite(phantoms, 0, lambda a, m, p: (a[:, :, :-1], m), ("labelsTr",))
    rewrite(phantoms, 1, lambda a, m, p: (a + np.uint8(7) * (a > 0), m), ("labelsTr",))
    rewrite(
        phantoms,
        2,
        lambda a, m, p: (np.where(a > 200, np.nan, a.astype(np.float32)), m),
        ("imagesTr",),
    )
    (phantoms / "imagesTr/phantom_00003.nii.gz").write_bytes(b"broken")
    (phantoms / "labelsTr/phantom_00004.nii.gz").unlink()
    rewrite(
        phantoms, 5, lambda a, m, p: (a, m + np.outer([1, 0, 0, 0], [0, 0, 0, 3])), ("labelsTr",)
    )
    found = faults(phantoms)
    assert {case for case, kind in found if kind == "rejected"} == set("012345")
    for (case, _), line in found.items():
        assert f"phantom_0000{case}" in line
        assert "\n" not in line


CHANGES = {
    "mirrored": lambda a, m, p: (a[::-1].copy(), m),
    "HU range": lambda a, m, p: (a + 1024 if p == "imagesTr" else a, m),
    "wrong modality": lambda a, m, p: ((a / 500).astype(np.float32) if p == "imagesTr" else a, m),
    "constant image": lambda a, m, p: (np.zeros_like(a) if p == "imagesTr" else a, m),
    "empty label": lambda a, m, p: (a if p == "imagesTr" else np.zeros_like(a), m),
    "outlier volume": lambda a, m, p: (a if p == "imagesTr" else first_voxel_of_each(a), m),
    "outlier grid": lambda a, m, p: (a, m @ np.diag([0.1, 0.1, 0.1, 1])),
}


def first_voxel_of_each(label):
    out = np.zeros_like(label)
    for value in (1, 2):
        index = tuple(np.argwhere(label == value).mean(axis=0).astype(int))
        out[index] = value
    return out


@pytest.mark.parametrize("kind", CHANGES)
def test_an_implausible_case_is_called_what_it_is(phantoms, kind):
    rewrite(phantoms, 4, CHANGES[kind])
    found = faults(phantoms)
    assert ("4", kind) in found
    assert {case for case, _ in found} == {"4"}


def test_a_mirrored_case_without_known_organs_is_told_from_the_others(phantoms):
    index = json.loads((phantoms / "dataset.json").read_text())
    index["labels"] = {"0": "background", "1": "thing", "2": "other"}
    (phantoms / "dataset.json").write_text(json.dumps(index))
    assert faults(phantoms) == {}
    rewrite(phantoms, 2, CHANGES["mirrored"])
    assert set(faults(phantoms)) == {("2", "mirrored")}


def test_swapped_sides_of_a_pair_are_mirrored(tmp_path):
    folder = write_phantom_dataset(
        tmp_path / "k", 2, labels=("left_kidney", "right_kidney"), shape=SHAPE, spacing_mm=SPACING
    )
    assert faults(folder) == {}
    rewrite(
        folder, 1, lambda a, m, p: (np.where(a > 0, 3 - a, 0).astype(np.uint8), m), ("labelsTr",)
    )
    assert set(faults(folder)) == {("1", "mirrored")}


def test_a_ct_among_mr_is_the_wrong_modality(phantoms):
    index = json.loads((phantoms / "dataset.json").read_text())
    index["modality"] = {"0": "MRI"}
    (phantoms / "dataset.json").write_text(json.dumps(index))
    assert {kind for _, kind in faults(phantoms)} == {"wrong modality"}


def test_channels_on_different_grids_are_refused(tmp_path):
    for channel, shift in ((0, 0.0), (1, 2.0)):
        affine = np.eye(4)
        affine[0, 3] = shift
        array = np.random.default_rng(channel).random((8, 8, 8)).astype(np.float32)
        write_nifti(tmp_path / f"imagesTr/a_000{channel}.nii.gz", array, affine)
    write_nifti(tmp_path / "labelsTr/a.nii.gz", np.ones((8, 8, 8), np.uint8), np.eye(4))
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "T1", "1": "T2"},
                "labels": {"background": 0, "x": 1},
                "numTraining": 1,
                "file_ending": ".nii.gz",
            }
        )
    )
    (fault,) = check_dataset(read_dataset(tmp_path)).faults
    assert (fault.kind, "2 mm apart" in fault.fault) == ("rejected", True)


def test_verb_lists_all_bad_cases_and_exits_1(phantoms, tmp_path, capsys):
    assert main(["data", "check", str(phantoms)]) == 0
    assert "9 cases, 0 bad" in capsys.readouterr().out
    (phantoms / "imagesTr/phantom_00003.nii.gz").write_bytes(b"broken")
    rewrite(phantoms, 4, CHANGES["empty label"])
    assert main(["data", "check", str(phantoms), "--json", "-o", str(tmp_path / "out")]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["bad_cases"] == ["phantom_00003", "phantom_00004"]
    assert answer["ok"] is False
    page = (tmp_path / "out/check.html").read_text()
    assert "2 of 9 cases are bad" in page
    assert "http" not in page.replace("http-equiv", "")
    assert main(["data", "check", str(tmp_path / "none")]) == 2
    assert "no such data set" in capsys.readouterr().err


def test_hippocampus_is_sound_and_its_pairs_stay_together(shared_data):
    from medvol.datasets import split_patients

    manifest = read_dataset(shared_data / "hippocampus")
    report = check_dataset(manifest)
    assert report.faults == []
    place = split_patients(manifest).place
    together = [
        place[f"hippocampus_{n:03d}"] == place[f"hippocampus_{n + 1:03d}"]
        for n in range(1, 394, 2)
        if {f"hippocampus_{n:03d}", f"hippocampus_{n + 1:03d}"} <= set(place)
    ]
    assert len(together) == 57
    assert all(together)


def test_a_channel_of_one_value_is_named(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        label = np.zeros((8, 8, 8), np.uint8)
        label[2:5, 2:5, 2:5] = 1
        write_nifti(tmp_path / f"labelsTr/c{k}.nii.gz", label, np.eye(4))
        for channel in range(3):
            is_flat = (k, channel) == (1, 2)
            image = np.zeros((8, 8, 8)) if is_flat else rng.normal(100, 9, (8, 8, 8))
            name = f"imagesTr/c{k}_{channel:04d}.nii.gz"
            write_nifti(tmp_path / name, image.astype(np.float32), np.eye(4))
    index = {"channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}, "file_ending": ".nii.gz",
             "labels": {"background": 0, "tumour": 1}, "numTraining": 3}  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    faults = check_dataset(read_dataset(tmp_path)).faults
    found = [fault for fault in faults if fault.kind == "constant image"]
    assert [(fault.case, "channel 2" in fault.fault) for fault in found] == [("c1", True)]
