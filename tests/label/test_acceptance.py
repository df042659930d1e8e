"""The whole of it over REST: stock app, our app, training, active learning, classification.

Marked ``net`` (builds an environment unless MEDVOL_LABEL_ENV names one) and ``slow``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest

from medvol.bundle import load
from medvol.label.workplace import Workplace
from tests.label.rest import Rest, free_port, stock_server, write_geometries, write_scan

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(900)]
SEGMENTER, CLASSIFIER = "hippocampus_mri_segmentation", "hippocampus_mri_classification"
AS_MASK = {"result_extension": ".nii.gz", "result_dtype": "uint8"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "labels"):
        (root / name).mkdir()
    names = write_geometries(root / "images", root / "labels")
    assert names == ["flipped", "odd", "rotated"]
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A copy of the classification bundle, as a user's own would be: outside the shipped ones."""
    folder = tmp_path_factory.mktemp("bundles") / CLASSIFIER
    shutil.copytree(load(CLASSIFIER).path, folder)
    return load(folder, is_trusted=True)


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    """What `python -m monai.bundle run` makes of the same images."""
    out = tmp_path_factory.mktemp("expected")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file",
               str(load(SEGMENTER).config_path("inference")), "--dataset_dir",
               str(data / "images"), "--output_dir", str(out)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    found = {p.name.removesuffix("_seg.nii.gz"): nibabel.load(p) for p in out.rglob("*_seg.nii.gz")}
    assert set(found) == {"flipped", "odd", "rotated"}
    assert all(len(np.unique(np.asarray(volume.dataobj))) > 1 for volume in found.values())
    return found


def assert_same_masks(rest: Rest, expected, tmp_path: Path) -> None:
    for name, wanted in expected.items():
        status, content = rest.infer(SEGMENTER, name, "image", **AS_MASK)
        assert status == 200, content[:500]
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(content)
        mask = nibabel.load(path)
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(wanted.dataobj)), name
        assert np.abs(mask.affine - wanted.affine).max() < 1e-4, name


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in found
    }


def test_stock_app_serves_and_trains_the_bundles_unmodified(
    label_python, data, classifier, expected, tmp_path
):
    studies = tmp_path / "studies"
    shutil.copytree(data / "images", studies)
    bundles = [load(SEGMENTER).path, classifier.path]
    with stock_server(label_python, tmp_path, bundles, studies) as rest:
        info = rest.json("GET", "/info/")
        assert info["models"][SEGMENTER]["labels"] == {"anterior": 1, "posterior": 2}
        assert info["models"][CLASSIFIER]["type"] == "classification"
        assert_same_masks(rest, expected, tmp_path)
        status, content = rest.infer(CLASSIFIER, "odd", "json")
        assert status == 200, content[:500]
        scores = json.loads(content)["prediction"]
        assert [row["label"] for row in scores] == ["normal_volume", "low_volume"]
        assert sum(row["score"] for row in scores) == pytest.approx(1, abs=1e-5)
        for name in expected:
            assert rest.put_label(name, data / "labels" / f"{name}.nii.gz")[0] == 200
        rest.json("POST", f"/train/{SEGMENTER}", {"max_epochs": 1, "val_split": 0.0})
        task = rest.finished("train")
        assert task["status"] == "DONE", "\n".join(task["details"])


@pytest.fixture(scope="module")
def ours(label_python, data, classifier, tmp_path_factory):
    """The one line that a user types, stopped as Ctrl-C would."""
    work, port, before = tmp_path_factory.mktemp("ours"), free_port(), digests(data)
    command = [sys.executable, "-m", "medvol", "label", "--bundles",
               f"{SEGMENTER},{classifier.path}", "--images", str(data / "images"),
               "--env", str(label_python.parents[1]), "-o", str(work), "--port", str(port),
               "--no-scoring", "--trust-bundle", "--json"]  # fmt: skip
    verb = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert verb.stdout
    line = verb.stdout.readline()
    assert line, (work / "server.log").read_text(errors="replace")[-3000:]
    printed = json.loads(line)
    assert printed["url"] == f"http://127.0.0.1:{port}"
    assert printed["images"] == 3
    servers = psutil.Process(verb.pid).children()
    assert len(servers) == 1
    yield Workplace(work), Rest(printed["url"]), servers[0]
    verb.send_signal(signal.SIGTERM)
    assert verb.wait(60) == 0
    verb.stdout.close()
    assert not servers[0].is_running()
    assert digests(data) == before, "an image was written to"


@pytest.mark.parametrize("kind", ["climbing", "absolute", "link", "image"])
def test_archives_of_clients_are_unpacked_by_our_rules(ours, data, tmp_path, kind):
    """MONAI Label hands them to ``shutil.unpack_archive``, which writes wherever names point."""
    _, rest, _ = ours
    outside = tmp_path / "outside.txt"
    with tarfile.open(tmp_path / "sent.tar", "w") as archive:
        if kind == "image":
            archive.add(data / "images" / "odd.nii.gz", "odd.nii.gz")
        elif kind == "link":
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc"
            archive.addfile(link)
        else:
            name = f"{'../' * 20}{outside}" if kind == "climbing" else str(outside)
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"owned"))
    before = set(Path(tempfile.gettempdir()).iterdir())
    status, content = rest.put_session(tmp_path / "sent.tar")
    assert not outside.exists()
    assert set(Path(tempfile.gettempdir()).iterdir()) <= before
    if kind == "image":
        assert status == 200, content
        session = json.loads(content)["session_id"]
        status, content = rest.ask("GET", f"/session/{session}")
        assert status == 200, content
    else:
        assert status == 422, content
        assert b"Traceback" not in content


def test_info_tells_models_trainers_and_strategies(ours):
    info = ours[1].json("GET", "/info/")
    assert set(info["models"]) == {SEGMENTER, CLASSIFIER, f"{CLASSIFIER}_gradcam"}
    assert info["models"][SEGMENTER]["type"] == "segmentation"
    assert info["models"][CLASSIFIER]["type"] == "classification"
    assert set(info["trainers"]) == {SEGMENTER}
    assert "uncertainty" in info["strategies"]
    assert info["datastore"] == {"total": 3, "completed": 0, "label_tags": {}}


def test_server_is_bound_to_loopback_only(ours):
    found = [c.laddr for c in ours[2].net_connections("inet")
             if c.status == psutil.CONN_LISTEN]  # fmt: skip
    assert [address.ip for address in found] == ["127.0.0.1"]


def test_masks_are_those_of_monai_bundle_run(ours, expected, tmp_path):
    assert_same_masks(ours[1], expected, tmp_path)


def test_unknown_models_images_and_files_are_rejected_in_one_line(ours, data):
    rest = ours[1]
    for model, image, word in [("nothing", "odd", "no model"), (SEGMENTER, "nobody", "no image"),
                               (SEGMENTER, str(data / "images" / "odd.nii.gz"), "no image"),
                               (SEGMENTER, "/etc/hostname", "no image")]:  # fmt: skip
        status, content = rest.infer(model, image, "image")
        assert status == 404
        assert word in json.loads(content)["detail"]


def test_classification_gives_scores_and_a_mask_on_the_images_grid(ours, data, tmp_path):
    rest = ours[1]
    for name in ("odd", "rotated"):
        status, content = rest.infer(CLASSIFIER, name, "json")
        assert status == 200, content[:500]
        found = json.loads(content)
        assert sum(row["score"] for row in found["prediction"]) == pytest.approx(1, abs=1e-5)
        image, values = nibabel.load(data / "images" / f"{name}.nii.gz"), set()
        for label in ("normal_volume", "low_volume"):
            wanted = {**AS_MASK, "class": label}
            status, content = rest.infer(CLASSIFIER, name, "image", **wanted)
            assert status == 200, content[:500]
            path = tmp_path / f"{name}_{label}.nii.gz"
            path.write_bytes(content)
            mask = nibabel.load(path)
            assert mask.shape == image.shape
            assert np.abs(mask.affine - image.affine).max() < 1e-4
            values |= {int(value) for value in np.unique(np.asarray(mask.dataobj))}
        assert values == {0, 1}


def test_active_learning_serves_in_descending_uncertainty(ours):
    rest = ours[1]
    scores = rest.json("POST", f"/scoring/uncertainty_{SEGMENTER}?run_sync=true", {})
    assert set(scores) == {"odd", "flipped", "rotated"}
    assert all(0 < row["entropy"] < np.log(3) for row in scores.values())
    wanted = sorted(scores, key=lambda name: -scores[name]["entropy"])
    assert len({row["entropy"] for row in scores.values()}) == 3
    served = [rest.json("POST", "/activelearning/uncertainty", {})["id"] for _ in range(3)]
    assert served == wanted
    assert rest.json("POST", "/activelearning/uncertainty", {})["id"] == wanted[0]


def test_batch_inference_reports_progress_and_saves_drafts(ours):
    rest = ours[1]
    rest.json("POST", f"/batch/infer/{SEGMENTER}?images=all", {})
    task = rest.finished("batch/infer")
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert any("batch 3/3" in line for line in task["details"])
    drafts = ours[0].studies / "labels" / "original"
    assert len(list(drafts.glob("*.nii.gz"))) == 3


def test_images_are_never_removed_replaced_or_left(ours, data, tmp_path):
    rest, before = ours[1], digests(data / "images")
    extra = write_scan(tmp_path / "extra.nii.gz", np.ones((8, 8, 8), np.float32), np.eye(4))
    assert rest.put_image("odd", extra)[0] == 422
    assert rest.put_image("../../escaped", extra)[0] == 422
    assert rest.put_label("odd", extra)[0] == 422  # another grid
    assert rest.put_label("odd", extra, tag="../../out")[0] == 422
    assert rest.put_image("extra", extra)[0] == 200
    assert rest.ask("DELETE", "/datastore/image?id=extra")[0] == 200
    assert rest.ask("DELETE", "/datastore/image?id=odd")[0] == 200
    assert digests(data / "images") == before
    assert not list(ours[0].folder.parent.glob("escaped*"))
    link = ours[0].studies / "odd.nii.gz"
    link.symlink_to(data / "images" / "odd.nii.gz")
    rest.infer(SEGMENTER, "rotated", "json")
    for _ in range(50):
        if rest.json("GET", "/datastore/")["total"] == 3:
            return
    raise AssertionError("the image that was linked again is not listed")


def test_a_label_outside_the_class_list_stops_training_before_it_starts(ours, data, tmp_path):
    rest = ours[1]
    volume = nibabel.load(data / "labels" / "rotated.nii.gz")
    strange = np.asarray(volume.dataobj).copy()
    strange[0, 0, 0] = 9
    write_scan(tmp_path / "rotated.nii.gz", strange, volume.affine)
    assert rest.put_label("rotated", tmp_path / "rotated.nii.gz")[0] == 200
    rest.json("POST", f"/train/{SEGMENTER}", {"max_epochs": 1})
    task = rest.finished("train")
    assert task["status"] == "ERROR"
    assert "9" in task["details"][-1]
    assert "class" in task["details"][-1]


def test_one_epoch_of_training_publishes_weights_that_are_served(ours, data):
    place, rest, _ = ours
    for name in ("odd", "flipped", "rotated"):
        assert rest.put_label(name, data / "labels" / f"{name}.nii.gz")[0] == 200
    weights = place.app / "model" / SEGMENTER / "models" / "model.pt"
    before = weights.read_bytes()
    rest.json("POST", f"/train/{SEGMENTER}", {"max_epochs": 1, "val_split": 0.0})
    task = rest.finished("train")
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert weights.read_bytes() != before
    assert weights.with_name("model_previous.pt").read_bytes() == before
    assert load(SEGMENTER).weights.read_bytes() == before
    assert rest.infer(SEGMENTER, "odd", "image", **AS_MASK)[0] == 200


def test_every_target_of_every_bundle_imports_with_the_lock_alone(label_python):
    folders = sorted(p.parent for p in load(SEGMENTER).path.parent.glob("*/configs"))
    assert len(folders) >= 10
    code = Path(__file__).with_name("import_targets.py")
    done = subprocess.run(
        [str(label_python), str(code), *map(str, folders)], capture_output=True, text=True,
        check=False, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 40
