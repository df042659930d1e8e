import json
import shutil

import numpy as np
import pytest
import torch

from medvol.bundle import fork, list_bundles, load, verify
from medvol.cli.main import main
from medvol.core import ConfigError, OutputError
from medvol.io import write_nifti

SHIPPED = [bundle.name for bundle in list_bundles()]


@pytest.fixture
def copy(tmp_path):
    return fork("hippocampus_mri_segmentation", tmp_path / "copy_segmentation")


def change(folder, task, edit):
    path = folder / "configs" / f"{task}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def faults(folder) -> str:
    return "\n".join(verify(load(folder, is_trusted=True)))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_bundle_is_sound(name):
    assert verify(load(name)) == []


def test_there_are_bundles_to_verify():
    assert len(SHIPPED) >= 4


@pytest.mark.parametrize(
    ("task", "edit", "fault"),
    [
        ("metadata", lambda c: c.pop("task"), "lacks 'task'"),
        ("train", lambda c: c["train"].pop("inferer"), "train::inferer"),
        ("inference", lambda c: c.pop("device"), "lacks the required property device"),
        ("inference", lambda c: c["inferer"].update(_target_="NoSuchInferer"), "does not exist"),
        (
            "inference",
            lambda c: c["network_def"]["networks"].update(out_channels=5),
            "gives 5 channels",
        ),
        (
            "inference",
            lambda c: c["preprocessing"]["transforms"][3].update(pixdim=[2, 2, 2]),
            "preprocesses images otherwise",
        ),
        ("evaluate", lambda c: c["labels"].update({"1": "head"}), "names the labels"),
        (
            "inference",
            lambda c: c.update(labels={"2": "anterior", "1": "posterior"}),
            "names the labels",
        ),
        ("evaluate", lambda c: c.update(labels={"1": "anterior", "5": "posterior"}), "the values"),
        (
            "train",
            lambda c: c["network_def"]["networks"].update(out_channels=5),
            "train.json: the network gives 5 channels",
        ),
        (
            "evaluate",
            lambda c: c["network_def"].update(count=2),
            "evaluate.json builds another network than inference.json",
        ),
        ("inference", lambda c: c["inferer"].update(tta=["superior-inferior"]), "superior"),
        (
            "train",
            lambda c: c["train"]["augmentation"]["transforms"].append(
                {"_target_": "RandFlipd", "keys": ["image", "label"], "spatial_axis": 2}
            ),
            "RandFlipd",
        ),
        ("train", lambda c: c.update(seed="%values#seed"), "unexpanded macro"),
    ],
)
def test_each_fault_is_named(copy, task, edit, fault):
    change(copy, task, edit)
    assert fault in faults(copy)


def test_regions_that_metadata_names_otherwise_are_noticed(tmp_path):
    folder = fork("brain_tumour_mri_segmentation", tmp_path / "tumour_segmentation")

    def swap(content):
        channels = content["network_data_format"]["outputs"]["pred"]["channel_def"]
        channels["0"], channels["1"] = channels["1"], channels["0"]

    change(folder, "metadata", swap)
    assert "names the regions" in faults(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_metadata_is_one_line_for_every_verb(copy, capsys, text):
    (copy / "configs" / "metadata.json").write_text(text)
    assert "metadata.json: " in faults(copy)
    scan = write_nifti(copy / "scan.nii.gz", np.ones((8, 8, 8), np.float32), np.eye(4))
    words = ["predict", str(copy), str(scan), "-o", str(copy / "out"), "--trust-bundle"]
    assert main(words) == 2
    assert "metadata.json: " in capsys.readouterr().err


def test_changed_weights_are_noticed(copy):
    state = torch.load(copy / "models" / "model.pt", weights_only=True)
    first = next(iter(state))
    state[first] = state[first] + 1
    torch.save(state, copy / "models" / "model.pt")
    assert "sha256" in faults(copy)


def test_weights_that_only_our_own_loader_would_take_are_noticed(copy):
    # MONAI Label and the model zoo load model.pt into network_def as it stands.
    state = torch.load(copy / "models" / "model.pt", weights_only=True)
    single = {k.removeprefix("networks.0."): v for k, v in state.items() if ".0." in k[:11]}
    torch.save(single, copy / "models" / "model.pt")
    assert "does not fit network_def" in faults(copy)


def test_nan_weights_are_noticed(copy):
    state = torch.load(copy / "models" / "model.pt", weights_only=True)
    state[next(iter(state))].fill_(float("nan"))
    torch.save(state, copy / "models" / "model.pt")
    assert "NaN" in faults(copy)


def test_missing_weights_are_noticed(copy):
    shutil.rmtree(copy / "models")
    assert "model.pt is missing" in faults(copy)


def test_fork_refuses_a_name_without_its_task_and_an_existing_folder(copy, tmp_path):
    with pytest.raises(ConfigError, match="segmentation"):
        fork(copy, tmp_path / "mine")
    with pytest.raises(OutputError, match="exists"):
        fork(copy, copy)


def test_of_two_bundles_of_one_name_each_is_judged(copy, tmp_path, capsys):
    other = fork(copy, tmp_path / "other" / copy.name)
    change(copy, "metadata", lambda content: content.pop("task"))
    words = ["bundle", "verify", str(copy), str(other), "--trust-bundle", "--json"]
    assert main(words) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {str(copy): ["metadata.json lacks 'task'"], str(other): []}


def test_cli_lists_and_verifies(capsys):
    assert main(["bundle", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(SHIPPED)
    assert main(["bundle", "verify", "phantom_ct_segmentation"]) == 0
    assert "sound" in capsys.readouterr().out
    assert main(["bundle", "verify", "nothing"]) == 2
    assert "nothing: is not a bundle" in capsys.readouterr().err
