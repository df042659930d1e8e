"""Every bundle passes the model zoo's checks, offline."""

from __future__ import annotations

import math
import shutil

import pytest

from medvol.bundle import list_bundles, load
from tools.zoo_check import check, find_schema, main

PUBLISHED = "path: models/model.pt, url: https://example.org/model.pt"
NAMES = [bundle.name for bundle in list_bundles()]
pytestmark = pytest.mark.filterwarnings("ignore")


def sized(name):
    """A bundle's name, marked slow where its network takes minutes for one input."""
    size = load(name).metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    return pytest.param(name, marks=[pytest.mark.slow] if math.prod(size) > 100**3 else [])


@pytest.fixture(scope="session")
def schema(shared_data):
    found = find_schema()
    assert found is not None
    return found


def test_all_bundles_are_judged():
    assert len(NAMES) >= 10


@pytest.fixture
def no_export(monkeypatch):
    for step in ("_torchscript", "_onnx"):
        monkeypatch.setattr(f"tools.zoo_check.{step}", lambda *_: None)


@pytest.mark.parametrize("name", [sized(name) for name in NAMES])
def test_files_version_properties_and_network_pass(name, tmp_path, no_export):
    found = dict(check(load(name), None, tmp_path))
    assert {"files", "version", "properties", "net in/out"} <= set(found)
    assert not any(found.values()), found


@pytest.mark.parametrize("name", NAMES)
def test_metadata_follows_the_schema(name, schema, tmp_path):
    assert fault_of("schema", load(name), schema, tmp_path) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if load(n).has_weights])
def test_weights_export_to_torchscript_and_onnx(name, tmp_path):
    pytest.importorskip("onnxscript")
    found = dict(check(load(name), None, tmp_path))
    assert found["torchscript"] == ""
    assert found["onnx"] == ""


def fault_of(step, bundle, schema, tmp_path):
    """What one step of the checks reports; empty where it passes."""
    return dict(check(bundle, schema, tmp_path, only=(step,)))[step]


def broken(tmp_path, change):
    folder = tmp_path / "hippocampus_mri_segmentation"
    shutil.copytree(load("hippocampus_mri_segmentation").path, folder)
    change(folder)
    return dict(check(load(folder, is_trusted=True), find_schema(), tmp_path / "work"))


@pytest.mark.parametrize(
    ("step", "file", "old", "new"),
    [
        ("files", "docs/README.md", "## **Performance**", "## Accuracy"),
        ("files", "large_files.yml", "[]", '[{path: models/model.pt, url: ""}]'),
        ("files", "large_files.yml", "[]", f"[{{{PUBLISHED}, hash_val: '0', hash_type: sha256}}]"),
        ("version", "configs/metadata.json", '"version": "', '"version": "9'),
        ("net in/out", "configs/metadata.json", '"num_channels": 3', '"num_channels": 4'),
        ("properties", "configs/inference.json", '"inferer":', '"infererr":'),
    ],
)
def test_each_step_can_fail(step, file, old, new, tmp_path, no_export):
    (tmp_path / "work").mkdir()

    def change(folder):
        path = folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    found = broken(tmp_path, change)
    assert found[step]


def test_the_schema_step_can_fail(schema, tmp_path):
    folder = tmp_path / "x_segmentation"
    shutil.copytree(load("phantom_ct_segmentation").path, folder)
    path = folder / "configs" / "metadata.json"
    path.write_text(path.read_text().replace('"network_data_format"', '"network_format"'))
    assert "schema" in fault_of("schema", load(folder, is_trusted=True), schema, tmp_path)


def test_with_a_checkout_the_zoos_own_script_judges_and_the_checkout_stays(
    schema, tmp_path, capsys
):
    checkout = tmp_path / "zoo"
    (checkout / "ci").mkdir(parents=True)
    (checkout / "models").mkdir()
    (checkout / "models" / "model_info.json").write_text("{}")
    (checkout / "ci" / "verify_bundle.py").write_text(
        "import os, sys\n"
        "name, models = sys.argv[2], sys.argv[4]\n"
        "assert sys.argv[1::2] == ['-b', '-p', '-m'] and sys.argv[6] == 'full'\n"
        "assert os.path.isfile(f'{models}/{name}/eval/schema.json')\n"
        "assert os.path.isfile(f'{models}/{name}/models/model.pt')\n"
        "sys.exit('ValueError: no' if 'slice' in name else 0)\n"
    )
    before = sorted(map(str, checkout.rglob("*")))
    names = ["hippocampus_mri_segmentation", "hippocampus_mri_slice_segmentation"]
    assert main([str(checkout), *names]) == 1
    out = capsys.readouterr().out
    assert f"{names[0]}: ci/verify_bundle.py: passed" in out
    assert f"{names[1]}: ci/verify_bundle.py: ValueError: no" in out
    assert sorted(map(str, checkout.rglob("*"))) == before


def test_a_file_above_the_zoos_limit_must_be_listed(tmp_path, no_export):
    (tmp_path / "work").mkdir()

    def change(folder):
        with (folder / "models" / "more.pt").open("wb") as file:
            file.truncate(26_000_000)

    assert "models/more.pt is over" in broken(tmp_path, change)["files"]
