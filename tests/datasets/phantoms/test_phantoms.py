import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medvol.core import ConfigError
from medvol.core.geometry import Geometry
from medvol.datasets import read_dataset
from medvol.datasets.phantoms import (
    MR_REGIONS,
    Cylinder,
    Ellipsoid,
    Grid,
    Marker,
    chest_phantom,
    ct_phantom,
    mr_phantom,
    nodule_patch,
    oblique_affine,
    write_phantom_classes,
    write_phantom_dataset,
)
from medvol.io import read_image

ORGANS = ("spleen", "liver", "right_kidney", "left_kidney", "right_lung", "left_lung",
          "heart", "stomach")  # fmt: skip
OBLIQUE = oblique_affine((88, 80, 96), (3.6, 3.2, 3.4), (8, -11, 14), (20, -40, 300), (-1, 1, -1))


def volume_ml(phantom, name):
    value = {name: value for value, name in phantom.labels.items()}[name]
    return (
        np.count_nonzero(phantom.label == value) * abs(np.linalg.det(phantom.affine[:3, :3])) / 1e3
    )


def center_mm(phantom, name):
    value = {name: value for value, name in phantom.labels.items()}[name]
    index = np.argwhere(phantom.label == value).mean(axis=0)
    return phantom.affine[:3, :3] @ index + phantom.affine[:3, 3]


@given(st.tuples(*[st.floats(12, 40)] * 3), st.floats(-90, 90), st.tuples(*[st.floats(1, 3)] * 3))
@settings(max_examples=25)
def test_voxels_inside_an_ellipsoid_fill_its_closed_form_volume(radii, turn, spacing):
    grid = Grid.of((96, 96, 96), spacing)
    solid = Ellipsoid(tuple(grid.center_mm), radii, turn)
    _box, filled = grid.occupancy(solid)
    inside = all(n > 2 * max(radii) / s + 6 for n, s in zip(grid.shape, spacing, strict=True))
    if inside:
        assert (filled > 0.5).sum() * grid.voxel_mm3 == pytest.approx(solid.volume_mm3, rel=0.03)
        assert filled.sum() * grid.voxel_mm3 == pytest.approx(solid.volume_mm3, rel=0.05)
        assert filled[0].max() == filled[-1].max() == 0, "the box cuts the solid"


@given(st.tuples(*[st.floats(5, 40)] * 3), st.floats(-90, 90), st.integers(0, 99))
def test_ellipsoid_distance_has_the_sign_of_the_quadric(radii, turn, seed):
    solid = Ellipsoid((1.0, -2.0, 3.0), radii, turn)
    points = np.random.default_rng(seed).uniform(-60, 60, (200, 3))
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    x, y, z = (points - solid.center_mm).T
    level = (
        ((c * x + s * y) / radii[0]) ** 2 + ((c * y - s * x) / radii[1]) ** 2 + (z / radii[2]) ** 2
    )
    assert np.array_equal(solid.distance_mm(points) < 0, level < 1)


def test_cylinder_volume_agrees_with_counting():
    grid = Grid.of((64, 64, 64), (1, 1, 1))
    solid = Cylinder((0, 0, 0), (20, 12), 25)
    _, filled = grid.occupancy(solid)
    assert filled.sum() == pytest.approx(np.pi * 20 * 12 * 50, rel=0.01)


@pytest.mark.parametrize("seed", range(8))
def test_ct_organs_never_overlap_and_fill_their_closed_forms(seed):
    # An overlap would take voxels from the organ painted first.
    phantom = ct_phantom(seed)
    for name in ORGANS:
        assert volume_ml(phantom, name) == pytest.approx(phantom.volumes_ml[name], rel=0.015), name
    assert volume_ml(phantom, "spine") == pytest.approx(phantom.volumes_ml["spine"], rel=0.07)


def test_ct_volumes_hold_on_an_oblique_flipped_grid():
    phantom = ct_phantom(5, shape=(88, 80, 96), affine=OBLIQUE, lesions=2, nodules=2)
    assert Geometry(phantom.label.shape, phantom.affine).obliqueness_deg > 10
    for name in (*ORGANS, "lesion"):
        assert volume_ml(phantom, name) == pytest.approx(phantom.volumes_ml[name], rel=0.06), name


def test_ct_sides_are_the_patients_own_on_any_grid():
    for options in ({}, {"shape": (88, 80, 96), "affine": OBLIQUE}):
        phantom = ct_phantom(1, **options)
        middle = Grid.of(phantom.label.shape, (1, 1, 1), phantom.affine).center_mm
        x = {name: (center_mm(phantom, name) - middle)[0] for name in ORGANS}
        assert x["liver"] > 0
        assert x["right_kidney"] > 0
        assert x["right_lung"] > 0
        assert x["spleen"] < 0
        assert x["stomach"] < 0
        assert x["heart"] < 0


def test_ct_attenuation_is_that_of_tissue():
    phantom = ct_phantom(2, lesions=2, nodules=1)
    mean = {name: phantom.image[phantom.label == v].mean() for v, name in phantom.labels.items()}
    assert 70 < mean["spleen"] < 160
    assert 60 < mean["liver"] < 150
    assert mean["left_lung"] < -700
    assert mean["lesion"] < mean["liver"] - 15
    assert phantom.image.min() >= -1024
    assert phantom.image.max() <= 3071
    air = phantom.image[:6, -6:]
    assert np.median(air) == pytest.approx(-1000, abs=5)
    assert 8 < air.std() < 20


def test_lesion_left_out_of_the_labels_belongs_to_its_organ():
    whole = ct_phantom(2, labels=("liver",), lesions=2)
    parts = ct_phantom(2, labels=("liver", "lesion"), lesions=2)
    assert np.array_equal(whole.image, parts.image)
    assert np.array_equal(whole.label > 0, parts.label > 0)
    assert whole.volumes_ml["liver"] == pytest.approx(sum(parts.volumes_ml.values()))


def test_equal_seeds_give_equal_patients_and_others_differ():
    for make in (ct_phantom, mr_phantom, chest_phantom, nodule_patch):
        assert np.array_equal(make(4).image, make(4).image)
        assert not np.array_equal(make(4).image, make(6).image)


def test_mr_tumour_parts_are_nested_and_fill_their_closed_forms():
    phantom = mr_phantom(3)
    assert phantom.image.shape == (4, *phantom.label.shape)
    for name in ("necrosis", "edema", "enhancing"):
        assert volume_ml(phantom, name) == pytest.approx(phantom.volumes_ml[name], rel=0.03)
    for inner, outer in itertools.pairwise(("enhancing", "tumour_core", "whole_tumour")):
        assert set(MR_REGIONS[inner]) < set(MR_REGIONS[outer])
    brightest = [phantom.image[1][phantom.label == v].mean() for v in (1, 2, 3)]
    assert brightest[2] == max(brightest), "the rim takes up contrast"
    assert not mr_phantom(3, tumour=False).label.any()


def test_chest_areas_agree_and_the_heart_lies_left():
    phantom = chest_phantom(2, shape=(512, 512))
    value = {name: v for v, name in phantom.labels.items()}
    heart = phantom.label == value["heart"]
    assert np.argwhere(heart)[:, 0].mean() > 256, "the patient's left is at high X"
    spot = np.count_nonzero(phantom.label == value["opacity"])
    assert spot == pytest.approx(phantom.areas_mm2["opacity"], rel=0.02)
    assert phantom.category == "opacity"
    assert chest_phantom(2, opacity=False).category == "clear"


def test_nodule_patch_differs_only_where_the_nodule_is():
    ill, well = nodule_patch(7, nodule=True), nodule_patch(7, nodule=False)
    changed = ill.image != well.image
    near = ill.label > 0
    assert volume_ml(ill, "nodule") == pytest.approx(ill.volumes_ml["nodule"], rel=0.05)
    assert changed[near].mean() > 0.95
    assert np.count_nonzero(changed) < 3 * np.count_nonzero(near)
    assert not well.label.any()


@pytest.mark.parametrize("make", [ct_phantom, mr_phantom, nodule_patch, chest_phantom])
def test_marker_covers_its_corner_and_nothing_else_changes(make):
    marker = Marker(size=5, value=999.0, corner=(1, 0, 1))
    plain, marked = make(2), make(2, marker=marker)
    assert marked.marker.sum() == 5**marked.marker.ndim
    assert marked.marker[-1, 0].any()
    assert not marked.marker[0].any()
    assert (marked.image[..., marked.marker] == 999.0).all()
    assert np.array_equal(plain.image[..., ~marked.marker], marked.image[..., ~marked.marker])


def test_single_slice_and_tiny_grids_are_drawn():
    for shape in ((64, 64, 1), (16, 16, 16)):
        phantom = ct_phantom(0, shape=shape, spacing_mm=(5, 5, 5), lesions=0, nodules=0)
        assert phantom.image.shape == shape
        assert np.isfinite(phantom.image).all()


def test_written_ct_data_set_is_read_back_with_its_volumes(tmp_path):
    folder = write_phantom_dataset(
        tmp_path / "d",
        3,
        labels=("spleen", "liver"),
        shape=(64, 56, 56),
        spacing_mm=(5, 5, 5),
        seed=7,
    )
    found = read_dataset(folder)
    assert (found.layout, found.labels, found.modality) == (
        "msd",
        {1: "spleen", 2: "liver"},
        "CT",
    )
    assert [case.case for case in found.cases] == [f"phantom_0000{n}" for n in (7, 8, 9)]
    image, label = (nibabel.load(path) for path in (found.cases[0].image, found.cases[0].label))
    assert np.allclose(image.affine, label.affine)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
    written = dict(line.rsplit(",", 1) for line in (folder / "volumes.csv").read_text().split()[1:])
    counted = np.count_nonzero(np.asarray(label.dataobj) == 1) * 125 / 1000
    assert counted == pytest.approx(float(written["phantom_00007,spleen"]), rel=0.05)


def test_held_out_patients_are_not_the_training_patients(tmp_path):
    small = {"shape": (24, 24, 24), "spacing_mm": (14, 12, 14), "lesions": 0, "nodules": 0}
    seen = read_dataset(write_phantom_dataset(tmp_path / "a", 2, **small))
    unseen = read_dataset(write_phantom_dataset(tmp_path / "b", 2, held_out=True, **small))
    digests = [case.sha256()["image"] for case in (*seen.cases, *unseen.cases)]
    assert len(set(digests)) == 4
    assert not {c.case for c in seen.cases} & {c.case for c in unseen.cases}


def test_written_mr_data_set_has_its_channels_last_in_the_file(tmp_path):
    found = read_dataset(
        write_phantom_dataset(
            tmp_path / "m", 1, kind="mr", shape=(32, 36, 32), spacing_mm=(6, 6, 6)
        )
    )
    assert found.channels == ("T1", "T1ce", "T2", "FLAIR")
    assert nibabel.load(found.cases[0].image).shape == (32, 36, 32, 4)


@pytest.mark.parametrize("kind", ["nodule", "chest"])
def test_written_classes_are_balanced_and_masks_mark_the_finding(tmp_path, kind):
    shape = (24, 24, 24) if kind == "nodule" else (64, 48)
    radii = {"radius_mm": (3.0, 5.0)} if kind == "nodule" else {}
    found = read_dataset(write_phantom_classes(tmp_path / "c", 4, kind=kind, shape=shape, **radii))
    assert sorted(case.category for case in found.cases)[0] == "clear"
    assert len(found.classes) == 2
    assert all(case.patient for case in found.cases)
    for case in found.cases:
        mask = read_image(case.image.parents[1] / "masks" / case.image.name).numpy() > 0
        assert mask.any() == (case.category != "clear")
        assert mask.mean() < 0.1  # not the lungs and the heart of a chest
    if kind == "chest":
        with Image.open(found.cases[0].image) as image:
            assert image.size == shape


def test_impossible_orders_are_rejected(tmp_path):
    with pytest.raises(ConfigError, match="no 'tail'"):
        ct_phantom(0, labels=("tail",))
    with pytest.raises(ConfigError, match="do not fit"):
        ct_phantom(0, lesions=500)
    with pytest.raises(ConfigError, match="at least one"):
        write_phantom_dataset(tmp_path, 0)
    with pytest.raises(ConfigError, match="above 0"):
        ct_phantom(0, spacing_mm=(0, 1, 1))
