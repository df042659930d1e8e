"""Evaluations small enough to make in every run, with names that try to break out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medvol.evaluation import (
    MaskOptions,
    ScoreOptions,
    evaluate_scores,
    evaluate_segmentation,
)

#: A label that is code wherever it is not escaped: HTML, an attribute, JavaScript, LaTeX.
HOSTILE = '</script><img src=x onerror="window.hacked=1">\'${1}$\\frac_%&'
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path: Path, values: np.ndarray) -> Path:
    """Write a volume as NIfTI in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


@pytest.fixture(scope="session")
def mask_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases of two structures, a false negative in case 3, a false positive in case 4."""
    folder = tmp_path_factory.mktemp("masks")
    rng = np.random.default_rng(0)
    for k in range(6):
        ref = np.zeros((24, 24, 12), np.uint8)
        ref[4:12, 4:12, 2:8], ref[15:20, 15:20, 6:10] = 1, 2
        pred = np.roll(ref, k % 3, axis=0)
        pred[pred == 2] *= k != 3
        ref[ref == 2] *= k != 4
        image = 100 * (ref > 0) + rng.normal(0, 10, ref.shape)
        save(folder / "images" / f"case{k}.nii.gz", image.astype(np.float32))
        save(folder / "ref" / f"case{k}.nii.gz", ref)
        save(folder / "pred" / f"case{k}.nii.gz", pred)
    labels = {1: "liver", 2: HOSTILE}
    evaluate_segmentation(
        MaskOptions(folder / "pred", folder / "ref", folder / "out", labels=labels, resamples=200)
    )
    return folder / "out"


@pytest.fixture(scope="session")
def score_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred cases of fifty patients in two classes, thresholds from other cases."""
    folder = tmp_path_factory.mktemp("scores")
    for seed, (name, start) in enumerate((("val", 0), ("test", 100))):
        rng = np.random.default_rng(seed)
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            rows = csv.writer(handle)
            rows.writerow(
                ("case", "truth", "logit_benign", f"logit_{HOSTILE}", "patient_id", "site")
            )
            for k in range(start, start + 100):
                y = k % 2
                logit = rng.normal(2 * y - 1, 1.2)
                truth = ("benign", HOSTILE)[y]
                rows.writerow((f"<b>{k}", truth, 0.0, logit, f"secret{k // 2}", "AB"[k // 2 % 2]))
    options = ScoreOptions(
        folder / "test.csv", folder / "out", validation=folder / "val.csv", by=("site",),
        resamples=200,
    )  # fmt: skip
    evaluate_scores(options)
    return folder / "out"


@pytest.fixture
def predictions(tmp_path):
    """Three cases: sound, flagged, and one that was rejected; a hostile name among them."""
    affine, rng = np.diag([-1.0, 1.0, 2.0, 1.0]), np.random.default_rng(0)
    for name, flag in (("b sound", ""), ("<script>alert(1)", "liver was not found")):
        image = rng.normal(100, 20, (30, 32, 16)).astype(np.float32)
        mask = np.zeros(image.shape, np.uint8)
        mask[8:20, 8:20, 4:12] = 2
        folder = tmp_path / "out" / name
        folder.mkdir(parents=True)
        nib.save(nib.Nifti1Image(image, affine), tmp_path / f"{name}.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
        nib.save(nib.Nifti1Image(mask, affine), folder / "seg.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
        record = {
            "case": name, "status": "done", "bundle": {"name": "toy", "version": "1.2"},
            "input": f"../{name}.nii.gz", "outputs": {"nifti": "seg.nii.gz"},
            "structures": [
                {"label": 1, "name": "liver", "voxels": 0, "volume_ml": 0.0},
                {"label": 2, "name": "spleen", "voxels": 1152, "volume_ml": 2.304},
            ],
            "review": {"flag": bool(flag), "reason": flag}, "seconds": {"infer": 1.0},
        }  # fmt: skip
        (folder / "prediction.json").write_text(json.dumps(record))
    (tmp_path / "out" / "c").mkdir()
    refused = {"case": "c", "status": "rejected", "reason": "c.nii: is cut short"}
    (tmp_path / "out" / "c" / "prediction.json").write_text(json.dumps(refused))
    return tmp_path / "out"
