"""`medvol.predict`, `evaluate`, `read_image`, `bundles`: the verbs' results without files."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import medvol
from medvol.cli.main import main

BUNDLE = "hippocampus_mri_segmentation"


@pytest.fixture(scope="module")
def crop(tmp_path_factory):
    """Noise of a hippocampus crop's size, with a brighter core."""
    voxels = np.random.default_rng(0).normal(100, 10, (36, 50, 34)).astype(np.float32)
    voxels[10:26, 10:40, 10:24] += 60
    path = tmp_path_factory.mktemp("crop") / "crop.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 1, 1])), path)  # pyright: ignore[reportPrivateImportUsage]
    return path


@pytest.fixture(scope="module")
def written(crop, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert main(["predict", BUNDLE, str(crop), "-o", str(out)]) == 0
    return out / "crop"


def test_importing_medvol_and_listing_bundles_loads_no_torch():
    code = "import medvol, sys; print(len(medvol.bundles())); print('torch' in sys.modules)"
    text = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert int(text[0]) > 10
    assert text[1] == "False"


def test_predict_gives_what_the_verb_writes(crop, written):
    found = medvol.predict(BUNDLE, crop)
    mask = nib.load(written / "seg.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    np.testing.assert_array_equal(found.labels, np.asarray(mask.dataobj))  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(found.source.affine, mask.affine)  # pyright: ignore[reportAttributeAccessIssue]
    assert found.structures() == json.loads((written / "prediction.json").read_text())["structures"]


def test_what_else_is_asked_for_changes_no_label(crop):
    plain = medvol.predict(BUNDLE, crop)
    more = medvol.predict(BUNDLE, crop, probabilities=True, uncertainty=True, max_ram="8GB")
    np.testing.assert_array_equal(plain.labels, more.labels)
    assert more.probabilities is not None
    assert more.probabilities.shape == (*plain.labels.shape, 3)
    assert set(more.maps) == {"aleatoric", "epistemic"}
    assert plain.probabilities is None


def test_a_prediction_is_a_table_in_pandas_and_in_a_notebook(crop):
    pytest.importorskip("pandas")
    found = medvol.predict(BUNDLE, crop)
    table = found.to_pandas()
    assert list(table["name"]) == ["anterior", "posterior"]
    assert list(table["volume_ml"]) == [(found.labels == k).sum() / 1000 for k in (1, 2)]
    assert found._repr_html_().count("<tr>") == 3


def test_two_files_are_one_case(tmp_path):
    pred, ref = np.zeros((2, 8, 8, 8), np.uint8)
    pred[2:4], ref[2:5], ref[6] = 1, 1, 2
    for name, labels in (("a.nii.gz", pred), ("b_seg.nii.gz", ref)):
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / name)  # pyright: ignore[reportPrivateImportUsage]
    places = tmp_path / "a.nii.gz", tmp_path / "b_seg.nii.gz"
    found = medvol.evaluate(*places, metrics=("dice",), resamples=20)
    assert found.output is None
    assert {row.label: row.mean for row in found.table if row.n == 1} == {"1": 0.8, "2": 0.0}
    assert "<td>dice</td>" in found._repr_html_()
    kept = medvol.evaluate(*places, output=tmp_path / "kept", resamples=20)
    assert kept.output == tmp_path / "kept"
    lines = (kept.output / "scores.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in lines[1:]} == {"b"}


def test_an_unknown_option_is_named(written):
    with pytest.raises(medvol.MedvolError, match="evaluate has no option 'metric'; choose from by"):
        medvol.evaluate(written, written, metric="dice")


def test_read_image_is_that_of_io(crop):
    image = medvol.read_image(crop)
    assert tuple(image.shape) == (1, 36, 50, 34)


@pytest.mark.parametrize(
    ("bundle", "image"), [("no_such_segmentation", "x.nii.gz"), (BUNDLE, "no_such.nii.gz")]
)
def test_what_is_missing_is_one_line(bundle, image):
    with pytest.raises(medvol.MedvolError, match="no_such") as error:
        medvol.predict(bundle, image)
    assert "\n" not in str(error.value)
