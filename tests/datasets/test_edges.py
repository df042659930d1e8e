"""A label map that was mirrored by itself no longer follows its image."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from medvol.core import Geometry
from medvol.datasets import read_dataset
from medvol.datasets.checking import check_dataset
from medvol.datasets.stats import mirror_fit

SHAPE = (20, 24, 22)


def lopsided(axis=None):
    """A bright block off the middle of noise, and its label map, mirrored along one axis."""
    label = np.zeros(SHAPE, np.uint8)
    label[3:9, 4:11, 12:20] = 1
    image = label * 100.0 + np.random.default_rng(0).normal(0, 5, SHAPE)
    return image.astype(np.float32), label if axis is None else np.flip(label, axis)


def test_a_label_fits_better_as_it_is():
    image, label = lopsided()
    assert min(mirror_fit(image, label, Geometry(SHAPE, np.eye(4)))) > 1


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("codes", ["RAS", "SPL", "AIR"])
def test_the_mirror_is_named_by_direction_and_not_by_storage(axis, codes):
    image, label = lopsided(axis)
    orientation = nibabel.orientations.axcodes2ornt(codes)
    moved = [nibabel.orientations.apply_orientation(array, orientation) for array in (image, label)]
    affine = nibabel.orientations.inv_ornt_aff(orientation, SHAPE)
    fits = mirror_fit(*moved, Geometry(moved[0].shape, affine))
    assert int(np.argmin(fits)) == axis
    assert fits[axis] < -1


@pytest.mark.parametrize("label", [np.zeros(SHAPE, np.uint8), np.ones(SHAPE, np.uint8)])
def test_a_label_without_a_surface_has_no_fit(label):
    assert np.isnan(mirror_fit(lopsided()[0], label, Geometry(SHAPE, np.eye(4)))).all()


@pytest.mark.parametrize("axis", range(3))
def test_one_mirrored_label_among_real_ones_is_found(shared_data, tmp_path, axis):
    source = shared_data / "hippocampus"
    index = json.loads((source / "dataset.json").read_text())
    index |= {"training": index["training"][:12], "test": [], "numTraining": 12}
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    for case in index["training"]:
        for part in ("image", "label"):
            shutil.copy(source / case[part], tmp_path / case[part])
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    path = tmp_path / index["training"][4]["label"]
    label = nibabel.load(path)
    turned = np.ascontiguousarray(np.flip(np.asarray(label.dataobj), axis))
    nibabel.save(nibabel.Nifti1Image(turned, label.affine, label.header), path)
    faults = check_dataset(read_dataset(tmp_path)).faults
    assert {fault.case for fault in faults} == {path.name.removesuffix(".nii.gz")}
    assert {fault.kind for fault in faults} == {"mirrored"}
