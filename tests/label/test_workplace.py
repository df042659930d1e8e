"""The overlay, the app and the commands that start it; no MONAI Label needed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from medvol.bundle import load
from medvol.cli.main import main
from medvol.core.errors import ConfigError, MissingInputError
from medvol.label import ServeOptions, prepare
from medvol.label.environment import LOCK, build_environment, clean_environ, environment_python
from medvol.label.server import server_command, server_environ
from medvol.label.workplace import Workplace, family_of
from tests.label.rest import write_scan

SEGMENTER, CLASSIFIER = "hippocampus_mri_segmentation", "hippocampus_mri_classification"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "site a").mkdir(parents=True)
    (folder / "labels" / "final").mkdir(parents=True)
    array = np.zeros((8, 8, 8), np.float32)
    write_scan(folder / "one.nii.gz", array, np.eye(4))
    write_scan(folder / "site a" / "one.nii.gz", array, np.eye(4))
    write_scan(folder / "labels" / "final" / "one.nii.gz", array.astype(np.uint8), np.eye(4))
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip


def test_images_are_linked_and_their_folder_stays_as_it_was(tmp_path, images):
    before = digests(images)
    place = prepare(tmp_path / "work", [load(SEGMENTER)], images)
    links = sorted(p.name for p in place.studies.glob("*.nii.gz"))
    assert links == ["one.nii.gz", "site_a_one.nii.gz"]
    assert all((place.studies / name).is_symlink() for name in links)
    label = place.labels / "one.nii.gz"
    assert label.is_file()
    assert not label.is_symlink()
    assert digests(images) == before


def test_a_second_start_follows_the_folder_and_keeps_newer_labels(tmp_path, images):
    place = prepare(tmp_path / "work", [load(SEGMENTER)], images)
    (place.labels / "one.nii.gz").write_bytes(b"newer")
    (images / "site a" / "one.nii.gz").unlink()
    place = prepare(tmp_path / "work", [load(SEGMENTER)], images)
    assert [p.name for p in place.studies.glob("*.nii.gz")] == ["one.nii.gz"]
    assert (place.labels / "one.nii.gz").read_bytes() == b"newer"


def test_a_dicom_series_is_converted_and_its_origin_noted(tmp_path, shared_data):
    source = shared_data / "dicom"
    place = prepare(tmp_path / "work", [load(SEGMENTER)], source)
    sources = json.loads((place.studies / "sources.json").read_text())
    assert len(sources) == 3
    for name, series in sources.items():
        assert (place.studies / f"{name}.nii.gz").is_file()
        assert Path(series).is_dir()


def test_another_folders_image_of_the_same_name_is_shown_as_itself(tmp_path, shared_data):
    series = sorted(path for path in (shared_data / "dicom").iterdir() if path.is_dir())[:2]
    for name, source in zip("ab", series, strict=True):
        shutil.copytree(source, tmp_path / name / "scan")
    prepare(tmp_path / "alone", [load(SEGMENTER)], tmp_path / "b")
    prepare(tmp_path / "work", [load(SEGMENTER)], tmp_path / "a")
    place = prepare(tmp_path / "work", [load(SEGMENTER)], tmp_path / "b")
    found = digests(place.studies)[str(place.studies / "scan.nii.gz")]
    assert found in digests(tmp_path / "alone" / "studies").values()


def test_labels_of_one_image_are_not_shown_on_another_of_its_name(tmp_path, images):
    place = prepare(tmp_path / "work", [load(SEGMENTER)], images)
    other = shutil.copytree(images, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"goes by the same name.*-o"):
        prepare(tmp_path / "work", [load(SEGMENTER)], other)
    shutil.rmtree(images)  # moved, not another
    assert prepare(tmp_path / "work", [load(SEGMENTER)], other) == place


def test_bundles_are_copied_and_trained_weights_survive_a_restart(tmp_path, images):
    bundle = load(SEGMENTER)
    weights = prepare(tmp_path / "work", [bundle], images).app / "model" / SEGMENTER / "models"
    assert not weights.is_symlink()
    trained = weights / "model.pt"
    assert trained.read_bytes() == bundle.weights.read_bytes()
    trained.write_bytes(b"trained here")
    prepare(tmp_path / "work", [bundle], images)
    assert trained.read_bytes() == b"trained here"
    assert bundle.weights.read_bytes() != b"trained here"


def test_a_newer_bundle_replaces_an_untrained_copy(tmp_path, images):
    source = tmp_path / "mine_segmentation"
    shutil.copytree(load(SEGMENTER).path, source)
    prepare(tmp_path / "work", [load(source, is_trusted=True)], images)
    (source / "models" / "model.pt").write_bytes(b"newer release")
    place = prepare(tmp_path / "work", [load(source, is_trusted=True)], images)
    copy = place.app / "model" / "mine_segmentation" / "models" / "model.pt"
    assert copy.read_bytes() == b"newer release"


def test_the_task_comes_from_the_metadata():
    assert family_of(load(SEGMENTER).metadata) == "segmentation"
    assert family_of(load(CLASSIFIER).metadata) == "classification"


def test_errors_name_their_reason(tmp_path, images):
    with pytest.raises(ConfigError, match="no bundle"):
        prepare(tmp_path / "work", [], images)
    with pytest.raises(ConfigError, match="lies inside the images"):
        prepare(images / "work", [load(SEGMENTER)], images)
    (tmp_path / "link").symlink_to(images)
    with pytest.raises(ConfigError, match="inside the images"):
        prepare(images / "work", [load(SEGMENTER)], tmp_path / "link")
    with pytest.raises(MissingInputError, match="no such folder"):
        prepare(tmp_path / "work", [load(SEGMENTER)], tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="serve the classification bundle"):
        prepare(tmp_path / "work", [load("hippocampus_mri_gradcam")], images)


def test_the_server_is_set_to_bind_loopback_and_to_write_into_the_workplace(tmp_path, images):
    place = prepare(tmp_path / "work", [load(SEGMENTER)], images)
    options = ServeOptions(place, [SEGMENTER], port=8123)
    command = server_command(Path("/env/bin/python"), options)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--studies") + 1] == str(place.studies)
    assert "local" in command  # the zoo is never asked
    environ = server_environ(Path("/env/bin/python"), options, "token")
    for key in ("MONAI_LABEL_SESSION_PATH", "MONAI_LABEL_DICOMWEB_CACHE_PATH"):
        assert environ[key].startswith(str(place.folder))
    assert environ["MEDVOL_LABEL_HOSTS"] == "127.0.0.1,localhost,::1"


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.2", "http://127.0.0.2:8000"), ("10.1.2.3", "http://10.1.2.3:8000"),
     ("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000")],
)  # fmt: skip
def test_the_server_is_asked_where_it_listens_and_knows_that_name(tmp_path, host, url):
    options = ServeOptions(Workplace(tmp_path), [SEGMENTER], host=host, is_remote_allowed=True)
    environ = server_environ(Path("/env/bin/python"), options, "token")
    assert environ["MEDVOL_LABEL_URL"] == options.url == url
    hosts = environ["MEDVOL_LABEL_HOSTS"].split(",")
    assert ("127.0.0.2" in hosts) == (host == "127.0.0.2")


def test_our_own_environment_does_not_leak_into_the_servers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    found = clean_environ(environment_python("/env"))
    assert "PYTHONPATH" not in found
    assert found["PATH"].split(os.pathsep)[0] == str(environment_python("/env").parent)


def test_the_lock_pins_every_package_and_holds_pydicom_2():
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 80
    assert all("==" in line for line in lines)
    assert "pydicom==2.4.4" in lines
    assert not any(line.startswith(("torchvision", "typer", "rich", "highdicom")) for line in lines)


def test_a_folder_that_holds_something_else_is_not_built_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="something else"):
        build_environment(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_environment_of_the_users_own_is_not_built_over(tmp_path):
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin")
    with pytest.raises(ConfigError, match="something else"):
        build_environment(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["pyvenv.cfg"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--bundles", SEGMENTER], "--images DIR or --dicomweb URL"),
        (["--bundles", SEGMENTER, "--images", "x", "--dicomweb", "http://y"], "either"),
        (["--images", "x"], "--bundles"),
        (["--bundles", "nothing_segmentation", "--images", "x"], "is not a bundle"),
        (["--bundles", SEGMENTER, "--images", "/nowhere"], "no such folder"),
        (["--bundles", SEGMENTER, "--dicomweb", "ftp://x"], "not an http address"),
        (["--bundles", SEGMENTER, "--images", "x", "--host", "0.0.0.0"], "--allow-remote"),
        (["--bundles", SEGMENTER, "--images", "x", "--host", "0.0.0.0", "--allow-remote"],
         "MEDVOL_LABEL_PASSWORD"),
        (["--bundles", SEGMENTER, "--images", "x", "--tls-cert", "c"], "--tls-key"),
    ],
)  # fmt: skip
def test_the_command_rejects_in_one_line(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDVOL_LABEL_PASSWORD", raising=False)
    monkeypatch.setattr("medvol.cli.label._require_free", lambda host, port: None)
    assert main(["label", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert word in lines[0]


def test_a_port_in_use_is_named(tmp_path, images, capsys):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code = main(["label", "--bundles", SEGMENTER, "--images", str(images), "--port", port,
                     "-o", str(tmp_path / "work")])  # fmt: skip
    assert code == 2
    assert "--port" in capsys.readouterr().err
