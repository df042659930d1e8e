"""The page of predictions alone: it draws what lies where in the patient, and claims no more."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medvol.cli.main import main
from medvol.reporting import write_prediction_report
from medvol.reporting.panels import PLANES, draw_slice
from medvol.reporting.volumes import View, canonical

#: Plane -> where the brighter half of a scan must appear when it is at R, A or S.
SIDES = {
    "axial": {0: "left", 1: "top"},
    "coronal": {0: "left", 2: "top"},
    "sagittal": {1: "right", 2: "top"},
}


def drawn(image, mask, spacing, plane, scale=2.0):
    colours = {1: (255, 0, 0), 2: (0, 0, 255)}
    at = image.shape[PLANES[plane][0]] // 2
    return np.asarray(draw_slice(image, mask, colours, spacing, plane, at, scale)).astype(int)


@pytest.mark.parametrize(
    ("plane", "axis"), [(plane, axis) for plane, axes in SIDES.items() for axis in axes]
)
def test_right_is_on_the_left_and_front_and_head_are_on_top(plane, axis):
    image = np.zeros((60, 70, 80), np.uint8)
    image[tuple(slice(30, None) if a == axis else slice(None) for a in range(3))] = 255
    grey = drawn(image, np.zeros_like(image), (1.0, 1.0, 1.0), plane).mean(-1)
    height, width = grey.shape
    halves = {
        "left": grey[:, : width // 2], "right": grey[:, width // 2 :],
        "top": grey[: height // 2], "bottom": grey[height // 2 :],
    }  # fmt: skip
    brightest = max(halves, key=lambda name: halves[name].mean())
    assert brightest == SIDES[plane][axis]


@given(
    shape=st.tuples(*[st.integers(20, 50)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 4.0)] * 3),
    plane=st.sampled_from(sorted(PLANES)),
)
def test_a_slice_keeps_the_proportions_of_the_patient(shape, spacing, plane):
    image = np.zeros(shape, np.uint8)
    found = drawn(image, image, spacing, plane, scale=3.0)
    across, up = PLANES[plane][1]
    assert found.shape[1] == pytest.approx(3 * shape[across] * spacing[across], abs=0.51)
    assert found.shape[0] == pytest.approx(3 * shape[up] * spacing[up], abs=0.51)


def test_outlines_have_their_structures_colours_and_leave_the_inside_free():
    mask = np.zeros((60, 60, 60), np.uint8)
    mask[20:40, 20:40, 20:40], mask[40:50, 20:40, 20:40] = 1, 2
    found = drawn(np.full_like(mask, 100), mask, (1.0, 1.0, 1.0), "axial", scale=4.0)
    is_red, is_blue = (found == (255, 0, 0)).all(-1), (found == (0, 0, 255)).all(-1)
    assert is_red.sum() == 4 * 79
    assert is_blue.sum() == 2 * 39 + 2 * 79  # the patient's right: 40 x 80 pixels
    assert np.argwhere(is_blue)[:, 1].mean() < np.argwhere(is_red)[:, 1].mean()
    assert (found[120, 120] == 100).all()


@pytest.mark.parametrize("codes", ["".join(c) for c in itertools.product("RL", "AP", "SI")])
def test_a_display_copy_is_stored_the_same_way_however_the_file_was(codes):
    voxels = np.random.default_rng(0).integers(0, 255, (5, 6, 7)).astype(np.uint8)
    plain = nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]))
    to = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(("R", "A", "S")), nib.orientations.axcodes2ornt(tuple(codes))
    )
    stored = plain.as_reoriented(to)
    view = View(np.asarray(stored.dataobj), None, None, np.asarray(stored.affine), (), "")
    turned = canonical(view)
    np.testing.assert_array_equal(turned.image, voxels)
    np.testing.assert_allclose(turned.affine, plain.affine)


def test_cases_to_look_at_come_first_and_every_case_is_there(predictions, tmp_path):
    done = write_prediction_report(predictions, tmp_path / "report")
    text = done.page.read_text()
    names = re.findall(r"<h2>(.*?)</h2>", text)
    assert names[:3] == ["&lt;script&gt;alert(1)", "c", "b sound"]
    assert "3 cases segmented by toy 1.2. 2 of them should be looked at" in text
    assert "rejected: c.nii: is cut short" in text
    assert "liver was not found" in text
    assert "0 (not found)" in text
    assert "<script>alert(1)" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert done.tables[0].read_text().count("spleen") == 2


def test_figures_show_the_image_and_a_missing_image_is_told(predictions, tmp_path):
    text = write_prediction_report(predictions, tmp_path / "report").page.read_text()
    uris = re.findall(r"src=\"data:image/png;base64,([^\"]+)\"", text)
    assert len(uris) == 4  # planes and a strip of two cases
    planes = np.asarray(Image.open(io.BytesIO(base64.b64decode(uris[0]))))
    assert len(np.unique(planes)) > 100
    for path in tmp_path.glob("*.nii.gz"):
        path.unlink()
    text = write_prediction_report(predictions, tmp_path / "bare").page.read_text()
    assert text.count("The image is not at hand") >= 2


def test_report_of_predictions_by_the_verb(predictions, tmp_path, capsys):
    assert main(["report", str(predictions), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)["report"]
    assert page == str(predictions / "report" / "report.html")
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "x")]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
