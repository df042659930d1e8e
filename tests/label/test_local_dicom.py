"""A folder of DICOM series, served: a finished label lies beside itself as a DICOM SEG.

Marked ``net`` (builds an environment unless MEDVOL_LABEL_ENV names one) and ``slow``.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from medvol.bundle import load
from medvol.io import read_label, read_scan
from medvol.label import ServeOptions, Server, prepare
from tests.label.rest import Rest, free_port

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(900)]
SEGMENTER = "hippocampus_mri_segmentation"


def test_a_label_of_a_local_series_becomes_a_seg_on_its_grid(label_python, shared_data, tmp_path):
    series = shared_data / "dicom" / "mr_hippocrop_study1"
    shutil.copytree(series, tmp_path / "images" / "crop")
    place = prepare(tmp_path / "work", [load(SEGMENTER)], tmp_path / "images")
    (name,) = json.loads((place.studies / "sources.json").read_text())
    options = ServeOptions(place, [SEGMENTER], port=free_port(), is_scoring=False)
    with Server(label_python, options) as server:
        server.wait_ready()
        rest = Rest(options.url)
        status, content = rest.infer(SEGMENTER, name, "image", result_extension=".nii.gz")
        assert status == 200, content[:500]
        mask = tmp_path / "mask.nii.gz"
        mask.write_bytes(content)
        assert rest.put_label(name, mask, {"model": SEGMENTER})[0] == 200
    source, submitted = read_scan(series), read_label(mask, range(3), reference=read_scan(series))
    seg = read_label(place.labels / f"{name}.dcm", range(3), reference=source)
    assert np.array_equal(seg.array, submitted.array)
    assert set(np.unique(seg.array)) == {0, 1, 2}
    assert np.abs(seg.affine - source.affine).max() < 1e-3
