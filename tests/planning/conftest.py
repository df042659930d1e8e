"""Planned blobs: the fingerprint, values and bundle are real, the trial run is not made."""

import json

import nibabel
import numpy as np
import pytest

from medvol.planning import Costs
from tests.blobs import write_blobs

COSTS = Costs(10.0, 0.05, 0.2, 0.5, 0.3, 500 << 20, 1 << 20, 8)


@pytest.fixture
def no_trial(monkeypatch):
    """Costs as on a quiet machine, so that a plan takes a moment."""
    monkeypatch.setattr("medvol.planning.plan.measure_costs", lambda *_: COSTS)


@pytest.fixture
def blobs(tmp_path):
    return write_blobs(tmp_path / "blobs", n=6)


@pytest.fixture
def nnunet(tmp_path):
    """Two channels, nested regions and an ignore label, as nnU-Net raw, axes z, y, x on disk."""
    folder = tmp_path / "Dataset001_Glioma"
    turned = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    for number in range(5):
        rng = np.random.default_rng(number)
        label = np.zeros((16, 40, 44), np.uint8)
        label[4:12, 10:30, 12:30] = 1
        label[6:10, 14:24, 16:26] = 2
        label[:, :3] = 3
        for channel in range(2):
            image = rng.normal(100 * channel, 5, label.shape) + 40 * label
            put(folder / "imagesTr" / f"g_{number}_{channel:04d}.nii.gz", image, turned)
        put(folder / "labelsTr" / f"g_{number}.nii.gz", label, turned)
    facts = {"channel_names": {"0": "T1", "1": "FLAIR"}, "file_ending": ".nii.gz",
             "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
             "regions_class_order": [1, 2], "numTraining": 5}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def put(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
