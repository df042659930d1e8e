"""A small MSD data set of two-part blobs that looks like the hippocampus task."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np

LABELS = {"0": "background", "1": "anterior", "2": "posterior"}


def make_blob(seed: int, shape=(36, 50, 36)) -> tuple[np.ndarray, np.ndarray]:
    """A bright ellipsoid in noise; its front half is label 1, its back half label 2."""
    rng = np.random.default_rng(seed)
    centre = (np.asarray(shape) - 1) / 2 + rng.uniform(-2, 2, 3)
    radii = np.array([6.0, 14.0, 6.0]) * rng.uniform(0.85, 1.15)
    offset = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - centre
    inside = ((offset / radii) ** 2).sum(-1) <= 1
    label = np.where(inside, np.where(offset[..., 1] > 0, 1, 2), 0).astype(np.uint8)
    image = 400 + 250 * inside + 150 * (label == 1) + rng.normal(0, 40, shape)
    return image.astype(np.float32), label


def write_blobs(folder: Path, n: int = 6, first_seed: int = 0) -> Path:
    """Write ``n`` cases and their dataset.json."""
    rows = []
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(n):
        image, label = make_blob(first_seed + index)
        name = f"blob_{index:03d}.nii.gz"
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        for kind, array in (("imagesTr", image), ("labelsTr", label)):
            volume = nibabel.Nifti1Image(array, affine)
            volume.header.set_xyzt_units("mm")
            nibabel.save(volume, folder / kind / name)
        rows.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    facts = {"name": "Blobs", "modality": {"0": "MRI"}, "labels": LABELS, "numTraining": n,
             "numTest": 0, "training": rows, "test": []}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder
