from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write a label map as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(labels.astype(np.uint8), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


@pytest.fixture
def save_mask() -> Callable[..., Path]:
    """``save`` for tests of their own masks."""
    return save


@pytest.fixture
def write_csv() -> Callable[[Path, Sequence[str], Sequence[Sequence[object]]], Path]:
    """Write a CSV and return its path."""

    def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
        with path.open("w", newline="") as handle:
            csv.writer(handle).writerows([header, *rows])
        return path

    return write


@pytest.fixture
def study(tmp_path: Path, write_csv) -> Path:
    """Ten cases of five patients, a liver everywhere, a false negative tumour in five."""
    rows = []
    for k in range(10):
        ref = np.zeros((16, 16, 10), np.uint8)
        ref[2:9, 2:9, 2:7], ref[11:14, 11:14, 7:9] = 1, 2
        pred = np.roll(ref, k % 2, axis=0)
        if k < 5:
            pred[pred == 2] = 0
        save(tmp_path / "ref" / f"c{k}.nii.gz", ref)
        save(tmp_path / "pred" / f"c{k}.nii.gz", pred)
        save(tmp_path / "image" / f"c{k}.nii.gz", ref)
        paths = (f"image/c{k}.nii.gz", f"ref/c{k}.nii.gz")
        rows.append((f"c{k}", *paths, f"secret{k // 2}", "AB"[k % 2], "FM"[k // 5], 30 + 6 * k))
    header = ("case", "image", "label", "patient_id", "site", "sex", "age")
    write_csv(tmp_path / "data.csv", header, rows)
    return tmp_path
