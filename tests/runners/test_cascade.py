"""A bundle of crops, given a whole scan: located, cropped, and joined on the scan's own grid."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.bundle import load
from medvol.cli.main import main
from medvol.core import ConfigError, InputError
from medvol.core.errors import error_line
from medvol.core.geometry import Geometry
from medvol.inferers import Prediction
from medvol.runners.cascade import Locates, find_structures, joined

BUNDLE = "hippocampus_mri_segmentation"
LABELS = {1: "anterior", 2: "posterior"}
NAMES = {7: "left hippocampus", 9: "right hippocampus"}
LOCATES = Locates("brain", tuple(NAMES.values()), 4.0, (65.0, 90.0, 70.0))
#: Middle of each hippocampus in MNI152 space, in mm: of the Harvard-Oxford atlas's labels.
ATLAS_MM = {"left": (-25.0, -23.0, -14.0), "right": (26.0, -22.0, -14.0)}


def prediction(labels, spacing=(1.0, 2.0, 1.0)) -> Prediction:
    grid = Geometry(labels.shape, np.diag([*spacing, 1.0]))
    return Prediction(labels.astype(np.uint8), grid)


def located(seed: int):
    """A label map with both structures as boxes, and stray voxels of them elsewhere."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 30, 30), np.uint8)
    starts = {7: rng.integers(2, 8, 3), 9: rng.integers([22, 2, 2], [28, 8, 8])}
    for value, start in starts.items():
        labels[tuple(slice(a, a + 6) for a in start)] = value
    labels[0, 29, 29], labels[39, 0, 29] = 9, 7
    return labels, starts


@given(seed=st.integers(0, 10**6))
def test_a_box_is_the_largest_part_and_the_margin_whatever_strays(seed):
    labels, starts = located(seed)
    found = find_structures(prediction(labels), NAMES, LOCATES, "a.nii.gz")
    assert [one.name for one in found] == list(NAMES.values())
    for one, start in zip(found, starts.values(), strict=True):
        for place, first, margin, size in zip(one.box, start, (4, 2, 4), labels.shape, strict=True):
            assert (place.start, place.stop) == (
                max(0, first - margin),
                min(size, first + 6 + margin),
            )
        assert one.volume_ml == pytest.approx(6**3 * 2 / 1000)


@given(seed=st.integers(0, 10**6))
def test_joined_parts_keep_their_voxels_names_and_sides(seed):
    labels, _ = located(seed)
    found = find_structures(prediction(labels), NAMES, LOCATES, "a.nii.gz")
    rng, parts = np.random.default_rng(seed), []
    for one in found:
        part = np.zeros(labels.shape, np.uint8)
        part[one.box] = rng.integers(0, 3, part[one.box].shape)
        parts.append((one, prediction(part)))
    whole = joined(parts, LABELS, LOCATES)
    assert whole.names == {
        1: "left anterior", 2: "left posterior", 3: "right anterior", 4: "right posterior"
    }  # fmt: skip
    for k, (one, part) in enumerate(parts):
        other = parts[1 - k][0].box
        alone = np.zeros(labels.shape, bool)
        alone[one.box] = True
        alone[other] = False
        raised = np.where(part.labels > 0, part.labels + 2 * k, 0)
        np.testing.assert_array_equal(whole.labels[alone], raised[alone])
        assert whole.located[k]["predicted_ml"] <= (part.labels > 0).sum() * 2 / 1000 + 1e-9
    outside = np.ones(labels.shape, bool)
    for one in found:
        outside[one.box] = False
    assert not whole.labels[outside].any()


def test_a_scan_without_the_structures_is_rejected_by_name():
    nothing = prediction(np.zeros((9, 9, 9)))
    with pytest.raises(InputError, match=r"a\.nii\.gz: is a whole scan, and brain finds none of"):
        find_structures(nothing, NAMES, LOCATES, "a.nii.gz")
    with pytest.raises(ConfigError, match="brain has no structure 'left hippocampus'"):
        find_structures(nothing, {1: "liver"}, LOCATES, "a.nii.gz")


@pytest.mark.parametrize(
    ("shape", "is_whole"), [((43, 59, 47), False), ((65, 90, 70), False), ((66, 40, 40), True),
                            ((180, 220, 180), True)]
)  # fmt: skip
def test_the_extent_in_the_patient_decides_what_is_a_whole_scan(shape, is_whole):
    for order in ([0, 1, 2], [2, 0, 1]):  # however the voxels are stored
        affine = np.eye(4)[:, [*order, 3]]
        grid = Geometry(tuple(shape[axis] for axis in order), affine)
        assert LOCATES.is_whole(grid) == is_whole


def test_bundle_run_on_a_whole_scan_says_that_it_wants_crops(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((90, 90, 90), np.float32), np.eye(4)), tmp_path / "a.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    steps = load(BUNDLE).parser("inference").get_parsed_content("preprocessing")
    with pytest.raises(RuntimeError) as error:
        steps({"image": str(tmp_path / "a.nii.gz")})
    line = error_line(error.value)
    assert line is not None
    assert "a whole scan; this bundle expects a crop around one structure" in line


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """The MNI152 T1 that nilearn ships, beside the masks that both bundles predict of it."""
    nilearn = pytest.importorskip("nilearn")
    folder = tmp_path_factory.mktemp("mni")
    (source,) = Path(nilearn.__file__).parent.glob("datasets/data/mni_icbm152_t1_*")
    (folder / "mni.nii.gz").write_bytes(source.read_bytes())
    words = ["predict", BUNDLE, str(folder / "mni.nii.gz"), "-o", str(folder / "out")]
    assert main(words) == 0
    return folder


def record_of(folder: Path) -> dict:
    return json.loads((folder / "prediction.json").read_text())


def test_both_hippocampi_of_a_head_are_where_the_atlas_has_them(template):
    mask = nib.load(template / "out" / "mni" / "seg.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    labels, image = np.asarray(mask.dataobj), nib.load(template / "mni.nii.gz")  # pyright: ignore
    assert labels.shape == image.shape  # pyright: ignore[reportAttributeAccessIssue]
    record = record_of(template / "out" / "mni")
    assert [row["name"] for row in record["structures"]] == [
        "left anterior", "left posterior", "right anterior", "right posterior"
    ]  # fmt: skip
    for first, (_, atlas_mm) in zip((1, 3), ATLAS_MM.items(), strict=True):
        voxels = np.argwhere((labels == first) | (labels == first + 1))
        centre = (mask.affine @ [*voxels.mean(0), 1])[:3]  # pyright: ignore[reportAttributeAccessIssue]
        assert np.linalg.norm(centre - atlas_mm) < 10
        assert 2 < len(voxels) * abs(np.linalg.det(mask.affine)) / 1000 < 5  # pyright: ignore
    assert {row["structure"] for row in record["located"]} == set(NAMES.values())
    assert not record["review"]["flag"]
    assert record["bundle"]["locates"]["name"] == "brain_mri_segmentation"


def test_inside_its_box_a_whole_scan_is_predicted_as_the_crop_itself(template, tmp_path):
    image = nib.load(template / "mni.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    labels = np.asarray(nib.load(template / "out" / "mni" / "seg.nii.gz").dataobj)  # pyright: ignore
    row = record_of(template / "out" / "mni")["located"][0]
    box = tuple(slice(a, b) for a, b in zip(row["start"], row["stop"], strict=True))
    crop = image.slicer[box]  # pyright: ignore[reportAttributeAccessIssue]
    nib.save(crop, tmp_path / "crop.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    assert main(["predict", BUNDLE, str(tmp_path / "crop.nii.gz"), "-o", str(tmp_path / "o")]) == 0
    alone = np.asarray(nib.load(tmp_path / "o" / "crop" / "seg.nii.gz").dataobj)  # pyright: ignore
    inside = np.where(labels[box] <= 2, labels[box], 0)
    assert alone.any()
    assert (alone != inside).sum() <= 0.001 * (alone > 0).sum()
    assert record_of(tmp_path / "o" / "crop")["located"] == []
