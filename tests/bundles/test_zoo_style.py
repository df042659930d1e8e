"""Bundles of the model zoo: verified for what they are, read with their own labels."""

import json

import pytest
import torch

from medvol.bundle import fork, load, verify
from medvol.bundle.verify import voxels_of
from medvol.cli.main import main
from medvol.core import ConfigError, UnsafeFileError
from tests.bundles.zoo_style import write_brats, write_spleen

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

BUNDLES = {
    "spleen": (write_spleen, {1: "spleen"}),
    "brats": (write_brats, {1: "Tumor core", 2: "Whole tumor", 3: "Enhancing tumor"}),
}


@pytest.fixture(params=BUNDLES)
def zoo(request, tmp_path):
    writer, labels = BUNDLES[request.param]
    return writer(tmp_path), labels


def test_it_is_sound_and_has_its_labels_and_network(zoo):
    folder, labels = zoo
    bundle = load(folder, is_trusted=True)
    assert verify(bundle) == []
    assert bundle.labels == labels
    assert set(bundle.tasks) == {"train", "evaluate", "inference", "multi_gpu_train"}
    channels = bundle.metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    with torch.no_grad():
        found = bundle.network()(torch.zeros(1, channels, 16, 16, 16))
    outputs = bundle.metadata["network_data_format"]["outputs"]["pred"]["num_channels"]
    assert found.shape == (1, outputs, 16, 16, 16)


def test_a_painted_label_map_is_sound_too(tmp_path):
    assert verify(load(write_brats(tmp_path, is_painted=True), is_trusted=True)) == []


def test_it_needs_trust_and_then_every_verb_of_bundles_takes_it(zoo, tmp_path, capsys):
    folder, labels = zoo
    assert main(["bundle", "list", str(folder), "--json"]) == 0  # runs nothing, needs no trust
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["labels"]) == (folder.name, list(labels.values()))
    with pytest.raises(UnsafeFileError, match="--trust-bundle"):
        load(folder)
    assert main(["bundle", "verify", str(folder)]) == 2
    assert main(["bundle", "verify", str(folder), "--trust-bundle", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {folder.name: []}
    copy = fork(folder, tmp_path / "mine" / folder.name)
    assert (copy / "configs" / "train.json").read_bytes() == (
        folder / "configs" / "train.json"
    ).read_bytes()


FAULTS = [
    ("metadata", lambda c: c.pop("authors"), "metadata.json lacks 'authors'"),
    ("inference", lambda c: c.pop("dataset"), "lacks the required property dataset (dataset)"),
    ("inference", lambda c: c["inferer"].update(_target_="NoSuchInferer"),
     "inference.json: target 'NoSuchInferer' does not exist"),
    ("train", lambda c: c["network_def"].update(out_channels=7), "train.json: the network gives 7"),
    ("inference", lambda c: c["network_def"].update(in_channels=2),
     "inference.json: the network takes no input of shape (1, "),
    ("metadata",
     lambda c: c["network_data_format"]["inputs"]["image"].update(spatial_shape=["8*m"] * 3),
     "'8*m', which is not a size"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "edit", "fault"), FAULTS)
def test_each_real_fault_is_still_named(zoo, task, edit, fault):
    folder, _ = zoo
    path = folder / "configs" / f"{task}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    assert fault in "\n".join(verify(load(folder, is_trusted=True)))


def test_components_of_its_own_scripts_are_found(zoo):
    folder, _ = zoo
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("from torch.nn import Identity\n")
    path = folder / "configs" / "inference.json"
    content = json.loads(path.read_text())
    content["extra"] = {"_target_": "scripts.Identity"}
    path.write_text(json.dumps(content))
    assert verify(load(folder, is_trusted=True)) == []
    content["extra"] = {"_target_": "scripts.Missing"}
    path.write_text(json.dumps(content))
    assert verify(load(folder, is_trusted=True)) == [
        "inference.json: target 'scripts.Missing' does not exist"
    ]


def test_weights_of_another_network_are_named(zoo):
    folder, _ = zoo
    torch.save({"weight": torch.zeros(1)}, folder / "models" / "model.pt")
    assert "does not fit network_def" in "\n".join(verify(load(folder, is_trusted=True)))


@pytest.mark.parametrize("channels", [None, "spleen", {"one": "spleen"}])
def test_a_bundle_that_names_no_channels_says_so(zoo, channels):
    folder, _ = zoo
    path = folder / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    content["network_data_format"]["outputs"]["pred"]["channel_def"] = channels
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="channel_def"):
        _ = load(folder, is_trusted=True).labels


@pytest.mark.parametrize("text", ["", "x", "n*", "8+n", "-1", "__import__('os')"])
def test_a_size_that_is_not_a_formula_of_the_schema_is_rejected(text):
    with pytest.raises(ConfigError, match="not a size"):
        voxels_of(text)
