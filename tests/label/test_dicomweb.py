"""A real DICOMweb server: Orthanc (Debian: orthanc, orthanc-dicomweb) on loopback."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from medvol.bundle import load
from medvol.io import read_image
from medvol.label.server import ServeOptions, Server
from medvol.label.workplace import prepare
from tests.label.rest import Rest, free_port

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(900)]
SEGMENTER = "hippocampus_mri_segmentation"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.is_file():
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    http, dicom = free_port(), free_port()
    config = {"Name": "test", "StorageDirectory": str(folder / "store"),
              "IndexDirectory": str(folder / "store"), "HttpPort": http, "DicomPort": dicom,
              "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
              "DicomServerEnabled": False, "Plugins": [str(PLUGIN)],
              "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
        rest = Rest(f"http://127.0.0.1:{http}")
        for _ in range(120):
            with contextlib.suppress(OSError):
                if rest.ask("GET", "/system")[0] == 200:
                    break
            assert server.poll() is None, (folder / "log").read_text(errors="replace")[-2000:]
            time.sleep(0.5)
        yield rest
        server.send_signal(signal.SIGTERM)
        server.wait(30)


@pytest.fixture(scope="module")
def series(orthanc, shared_data):
    """The hippocampus crop as DICOM, and an image that the bundle must not be offered."""
    folder = shared_data / "dicom" / "mr_hippocrop_study1"
    files = sorted(folder.rglob("*.dcm"))
    assert files
    other = pydicom.dcmread(files[0])
    other.Modality, other.SeriesInstanceUID = "OT", pydicom.uid.generate_uid()
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    stream = io.BytesIO()
    other.save_as(stream)
    for content in (*(path.read_bytes() for path in files), stream.getvalue()):
        assert orthanc.ask("POST", "/instances", content, "application/dicom")[0] == 200
    found = {row["MainDicomTags"]["Modality"]: row["MainDicomTags"]["SeriesInstanceUID"]
             for row in orthanc.json("GET", "/series?expand")}  # fmt: skip
    assert set(found) == {"MR", "OT"}
    return folder, found["MR"]


@pytest.fixture(scope="module")
def server(label_python, orthanc, series, tmp_path_factory):
    place = prepare(tmp_path_factory.mktemp("work"), [load(SEGMENTER)], None)
    options = ServeOptions(place, [SEGMENTER], dicomweb=f"{orthanc.url}/dicom-web",
                           modalities=("MR",), port=free_port(), is_scoring=False)  # fmt: skip
    with Server(label_python, options) as running:
        running.wait_ready()
        yield place, Rest(options.url)


def test_only_series_of_the_bundles_modality_are_listed(server, series):
    assert server[1].json("GET", "/info/")["datastore"]["total"] == 1
    assert server[1].json("POST", "/activelearning/first", {})["id"] == series[1]


def test_a_label_travels_from_series_to_seg_and_back_aligned(server, series, orthanc, tmp_path):
    (_, rest), (folder, uid) = server, series
    status, content = rest.infer(SEGMENTER, uid, "image", result_extension=".nii.gz")
    assert status == 200, content[:500]
    mask = tmp_path / "mask.nii.gz"
    mask.write_bytes(content)
    labels = np.asarray(nibabel.load(mask).dataobj)
    assert set(np.unique(labels)) == {0, 1, 2}
    status, content = rest.put_label(uid, mask)
    assert status == 200, content[:500]

    stored = [row for row in orthanc.json("GET", "/series?expand")
              if row["MainDicomTags"]["Modality"] == "SEG"]  # fmt: skip
    assert len(stored) == 1
    seg = tmp_path / "seg.dcm"
    seg.write_bytes(orthanc.ask("GET", f"/instances/{stored[0]['Instances'][0]}/file")[1])
    back, image = read_image(seg), read_image(folder)
    assert tuple(back.shape) == tuple(image.shape)
    assert np.abs(np.asarray(back.affine) - np.asarray(image.affine)).max() < 1e-3
    ours = nibabel.load(mask)
    onto = np.linalg.inv(np.asarray(back.affine)) @ ours.affine
    index = np.indices(labels.shape).reshape(3, -1)
    there = np.rint(onto[:3, :3] @ index + onto[:3, 3:]).astype(int)
    assert np.array_equal(np.asarray(back)[0][tuple(there)], labels.ravel())
    assert rest.json("GET", "/info/")["datastore"]["completed"] == 1


def test_training_fetches_the_segmentation_from_the_server(server, series):
    (place, rest), (_, uid) = server, series
    (place.cache / "dicomweb").mkdir(exist_ok=True)
    for path in (place.cache / "dicomweb").rglob(f"final/{uid}*"):
        path.unlink()
    rest.json("POST", f"/train/{SEGMENTER}", {"max_epochs": 1, "val_split": 0})
    task = rest.finished("train")
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert any('"trained_on": 1,' in line for line in task["details"])
