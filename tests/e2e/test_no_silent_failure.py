"""`python -m monai.bundle run` as a user types it: every fault has an exit code and a last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medvol.bundle import load
from tests.blobs import write_blobs

BUNDLE = "hippocampus_mri_segmentation"


def run_bundle(task: str, cwd: Path, *options: str) -> tuple[int, str]:
    config = load(BUNDLE).config_path(task)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), *options]
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, done.stderr.strip().splitlines()[-1] if lines else ""


@pytest.fixture
def data(tmp_path):
    return write_blobs(tmp_path / "data", n=6)


def edit(path: Path, change) -> None:
    volume = nibabel.load(path)
    array = change(np.asarray(volume.dataobj).copy())
    out = nibabel.Nifti1Image(array, volume.affine)
    out.header.set_xyzt_units("mm")
    nibabel.save(out, path)


def short(tmp_path) -> list[str]:
    return ["--output_dir", str(tmp_path / "run"), "--max_epochs", "1", "--folds", "3"]


@pytest.mark.parametrize("task", ["train", "inference", "evaluate"])
def test_missing_data_set_stops_with_its_name(tmp_path, task):
    code, last = run_bundle(task, tmp_path, "--dataset_dir", "/nonexistent/scans")
    assert code != 0
    assert "/nonexistent/scans" in last
    assert "no such" in last
    assert not list(tmp_path.iterdir())


def test_empty_data_set_stops_with_its_name(tmp_path):
    (tmp_path / "empty").mkdir()
    code, last = run_bundle("inference", tmp_path, "--dataset_dir", str(tmp_path / "empty"))
    assert code != 0
    assert "empty" in last
    assert "no image" in last


def test_forgotten_data_set_says_what_to_pass(tmp_path):
    code, last = run_bundle("inference", tmp_path)
    assert code != 0
    assert "--dataset_dir" in last


@pytest.mark.parametrize("option", ["dataset_dirr", "inferer#overlp"])
def test_misspelt_option_is_refused_with_the_right_spelling(tmp_path, data, option):
    code, last = run_bundle("inference", tmp_path, "--dataset_dir", str(data), f"--{option}", "0.5")
    assert code != 0
    assert "did you mean" in last
    assert "dataset_dir'" in last or "overlap'" in last


def poke_nan(array):
    array[5, 5, 5] = np.nan
    return array


@pytest.mark.parametrize(
    ("folder", "change", "fault"),
    [
        ("imagesTr", poke_nan, "NaN"),
        ("labelsTr", lambda array: np.where(array == 2, 7, array).astype(np.uint8), "label 7"),
        ("labelsTr", lambda array: array[:-2], "label"),
    ],
    ids=["nan voxel", "label outside the class list", "label on another grid"],
)
def test_bad_case_stops_training_with_its_file_name(tmp_path, data, folder, change, fault):
    edit(data / folder / "blob_002.nii.gz", change)
    code, last = run_bundle("train", tmp_path, "--dataset_dir", str(data), *short(tmp_path))
    assert code != 0
    assert "blob_002" in last
    assert fault in last


def test_volume_much_smaller_than_the_patch_is_refused(tmp_path, data):
    for folder in ("imagesTr", "labelsTr"):
        edit(data / folder / "blob_001.nii.gz", lambda array: array[:8, :8, :8])
    code, last = run_bundle("train", tmp_path, "--dataset_dir", str(data), *short(tmp_path))
    assert code != 0
    assert "blob_001" in last
    assert "8x8x8" in last


def test_non_finite_loss_stops_in_its_step_and_names_cases(tmp_path, data):
    code, last = run_bundle(
        "train",
        tmp_path,
        "--dataset_dir",
        str(data),
        *short(tmp_path),
        "--learning_rate",
        "1e30",
        "--cosine_epochs",
        "1",
    )
    assert code != 0
    assert "the loss is" in last
    assert "step 2" in last
    assert "blob_00" in last


def test_wrong_label_names_are_refused(tmp_path, data):
    facts = json.loads((data / "dataset.json").read_text())
    facts["labels"] = {"0": "background", "1": "posterior", "2": "anterior"}
    (data / "dataset.json").write_text(json.dumps(facts))
    code, last = run_bundle("train", tmp_path, "--dataset_dir", str(data), *short(tmp_path))
    assert code != 0
    assert "its labels are" in last
