"""Left and right of a head are those of the patient, however the file stores its voxels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import medvol

pytestmark = pytest.mark.skipif(
    pytest.importorskip("nilearn") is None, reason="the template head is in nilearn"
)
ORIENTATIONS = ("LPS", "IRP")


@cache
def head() -> nib.Nifti1Image:
    """The MNI152 T1 at 2 mm: every second voxel, so that a run takes seconds."""
    import nilearn

    (path,) = Path(nilearn.__file__).parent.glob("datasets/data/mni_icbm152_t1_*")
    return nib.load(path).slicer[::2, ::2, ::2]  # pyright: ignore


def labels_of(image, folder: Path) -> np.ndarray:
    """Labels stored from left to right, back to front, foot to head."""
    nib.save(image, folder / "head.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    found = medvol.predict("brain_mri_segmentation", folder / "head.nii.gz")
    mask = nib.Nifti1Image(found.labels, found.source.affine)  # pyright: ignore
    return np.asarray(nib.as_closest_canonical(mask).dataobj)


def mean_dice(pred: np.ndarray, ref: np.ndarray) -> float:
    values = np.unique(ref[ref > 0])
    return float(np.mean([2 * ((pred == v) & (ref == v)).sum() / ((pred == v).sum()
                          + (ref == v).sum()) for v in values]))  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> np.ndarray:
    return labels_of(head(), tmp_path_factory.mktemp("plain"))


def test_left_structures_lie_on_the_patients_left(plain):
    affine = nib.as_closest_canonical(head()).affine
    labels = {v: n for b in medvol.bundles() if b.name == "brain_mri_segmentation"
              for v, n in b.labels.items()}  # fmt: skip
    sided = {value: name for value, name in labels.items() if name.split()[0] in ("left", "right")}
    assert len(sided) == 28
    for value, name in sided.items():
        voxels = np.argwhere(plain == value)
        x_mm = (affine @ [*voxels.mean(0), 1])[0]
        assert (x_mm < 0) == name.startswith("left"), name


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_head_stored_otherwise_gets_the_same_labels(codes, plain, tmp_path):
    to = nib.orientations.ornt_transform(
        nib.io_orientation(head().affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    assert mean_dice(labels_of(head().as_reoriented(to), tmp_path), plain) >= 0.99


@pytest.mark.parametrize("degrees", [10.0])
def test_a_patient_who_lies_turned_keeps_left_and_right(degrees, plain, tmp_path):
    """The same voxels under a turned affine: the scan of a patient who lies obliquely."""
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned = nib.Nifti1Image(np.asarray(head().dataobj), turn @ head().affine)  # pyright: ignore
    assert mean_dice(labels_of(turned, tmp_path), plain) >= 0.99
