"""Data that is wrong is refused in one line; data that is only odd is planned, and said to be."""

import json
import sys

import nibabel
import numpy as np
import pytest

from medvol.bundle import render
from medvol.core import MedvolError
from medvol.core.errors import MissingInputError
from medvol.datasets import read_dataset
from medvol.planning import Request, measure, plan_dataset
from tests.blobs import make_blob, write_blobs
from tests.planning.conftest import put

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def reindex(folder, change):
    path = folder / "dataset.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def rewrite(path, change, spacing=(1.0, 1.0, 1.0)):
    put(path, change(np.asarray(nibabel.load(path).dataobj)), np.diag([*spacing, 1.0]))


def without_labels(folder):
    reindex(folder, lambda index: [row.pop("label") for row in index["training"]])


def with_few_labels(folder):
    reindex(folder, lambda index: [row.pop("label") for row in index["training"][:2]])


def with_a_lost_label(folder):
    (folder / "labelsTr" / "blob_001.nii.gz").unlink()


def with_half_labels(folder):
    rewrite(folder / "labelsTr" / "blob_002.nii.gz", lambda label: label * 0.5)


def with_an_unknown_label(folder):
    rewrite(folder / "labelsTr" / "blob_002.nii.gz", lambda label: np.where(label == 2, 9, label))


def with_empty_labels(folder):
    for path in (folder / "labelsTr").iterdir():
        rewrite(path, np.zeros_like)


def with_two_channels_once(folder):
    path = folder / "imagesTr" / "blob_003.nii.gz"
    rewrite(path, lambda image: np.stack([image, image], -1))


def with_a_nan(folder):
    rewrite(folder / "imagesTr" / "blob_002.nii.gz",
            lambda image: np.where(image == image.max(), np.nan, image))  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (without_labels, "holds no case with a label map"),
        (with_few_labels, r"3 patient\(s\) with labels cannot fill 5 folds; pass --folds 3"),
        (with_a_lost_label, r"blob_001.nii.gz: no such label"),
        (with_half_labels, r"blob_002.nii.gz: label value 0.5 is not an integer"),
        (with_an_unknown_label, r"label value 9 is not in the class list \[0, 1, 2\]"),
        (with_empty_labels, "no label map holds a structure"),
        (with_two_channels_once, "cases differ in channels: 1 in 'blob_004', 2 in 'blob_003'"),
        (with_a_nan, "blob_002.nii.gz: 1 of 64800 voxels are non-finite"),
    ],
)
def test_wrong_data_is_refused_in_one_line(spoil, line, tmp_path):
    data = write_blobs(tmp_path / "data", n=5)
    spoil(data)
    with pytest.raises(MedvolError, match=line) as refusal:
        plan_dataset(data, tmp_path / "out", Request(600))
    assert "\n" not in str(refusal.value)


def test_one_case_is_refused_before_it_is_measured(tmp_path, monkeypatch):
    data = write_blobs(tmp_path / "data", n=1)
    monkeypatch.setattr("medvol.planning.plan.measure", lambda *_: pytest.fail("was measured"))
    with pytest.raises(MedvolError, match=r"1 patient\(s\) with labels cannot .*; add patients$"):
        plan_dataset(data, tmp_path / "out", Request(600))


def test_odd_data_is_planned_and_the_user_is_told(tmp_path, no_trial):
    data = write_blobs(tmp_path / "data", n=6)
    reindex(data, lambda index: index["labels"].update({"3": "lesion"}))
    reindex(data, lambda index: index["training"][0].pop("label"))
    for kind in ("imagesTr", "labelsTr"):
        rewrite(data / kind / "blob_004.nii.gz", lambda array: array, (1.0, 1.0, 2.0))
    plan = plan_dataset(data, tmp_path / "out", Request(600))
    told = "\n".join(plan.notes)
    assert "1 case(s) without a label map are left out: blob_000" in told
    assert "No case holds lesion" in told
    assert "Spacings are mixed, 1 x 1 x 1 to 1 x 1 x 2 mm" in told


def test_bids_derivatives_are_measured(tmp_path):
    for kind, folder in (("Blobs", tmp_path), ("manual", tmp_path / "derivatives" / "manual")):
        facts = {"Name": kind, "BIDSVersion": "1.8.0"}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset_description.json").write_text(json.dumps(facts))
    for number in range(2):
        image, label = make_blob(number)
        anat = f"sub-{number}/anat/sub-{number}"
        put(tmp_path / f"{anat}_T1w.nii.gz", image, np.eye(4))
        put(tmp_path / "derivatives" / "manual" / f"{anat}_dseg.nii.gz", label, np.eye(4))
    found = measure(read_dataset(tmp_path))
    assert len(found.cases) == 2
    assert found.prevalence(1) == found.prevalence(2) == 1.0


def test_a_source_tree_without_a_licence_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[render.__module__], "shipped_root", lambda: tmp_path)
    with pytest.raises(MissingInputError, match="LICENSE: is missing, and every bundle carries"):
        render("hippocampus_mri_segmentation")
