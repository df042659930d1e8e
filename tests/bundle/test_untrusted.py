"""A bundle that is neither shipped nor trusted: it predicts as before, and runs nothing of its own.

Each attack changes a copy of a shipped bundle; all of them ran code or wrote files before configs
were read against `medvol/bundle/allowed.py`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medvol.bundle import fork, list_bundles, load
from medvol.bundle.allowed import EXPRESSIONS, NAMES
from medvol.bundle.run import run_task
from medvol.cli.main import main
from medvol.core import UnsafeFileError
from medvol.core.shipped import bundles_dir
from medvol.label.workplace import prepare

NAME = "hippocampus_mri_segmentation"
BIAS = "in an argument of the network"
STEP = "as a step of the preprocessing"
LINEAR = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
TOUCH = {"_target_": "os.system", "command": "touch CANARY"}


def target(name: str, /, **arguments):
    return {"_target_": name, **arguments}


#: Place and component, or a value; CANARY stands for the file that no attack may make.
ATTACKS = [
    (BIAS, TOUCH),
    (BIAS, target("subprocess.getoutput", cmd="touch CANARY")),
    (BIAS, "$open('CANARY', 'w')"),
    (BIAS, " $open('CANARY', 'w')"),
    (BIAS, "$@bundle_root + open('CANARY', 'w').name"),
    (BIAS, "@_meta_::evil"),
    (BIAS, {"deep": ["@_meta_::evil"]}),
    (BIAS, "%CANARY"),
    (BIAS, target("monai.networks.utils.save_state", src=LINEAR, path="CANARY")),
    (BIAS, target("save_state", src=LINEAR, path="CANARY")),
    (BIAS, target("monai.networks.utils.torch.save", obj=1, f="CANARY")),
    (BIAS, target("torch.nn.functional.torch.os.system", command="touch CANARY")),
    (BIAS, target("torch.nn.modules.module.torch.save", obj=1, f="CANARY")),
    (BIAS, target("torch.optim.lr_scheduler.warnings.os.system", command="touch CANARY")),
    (BIAS, target("medvol.io.write_nifti", path="CANARY", array=[1], affine=[1])),
    (BIAS, target("medvol.core.files.write_text", path="CANARY", text="x")),
    (BIAS, target("medvol.datasets.record_training", train=[], validate=[], output_dir="CANARY")),
    (BIAS, target("medvol.engines.EpochTable", path="CANARY")),
    (BIAS, target("monai.data.PersistentDataset", data=[], transform=[], cache_dir="CANARY")),
    (BIAS, target("PersistentDataset", data=[], transform=[], cache_dir="CANARY")),
    (BIAS, target("monai.data.LMDBDataset", data=[], transform=[], cache_dir="CANARY")),
    (BIAS, target("monai.data.CacheDataset", data=[{"image": "PICKLE"}], num_workers=0,
                  transform=target("LoadImaged", keys="image", reader="NumpyReader"))),
    (BIAS, target("monai.data.Dataset", data=[{"image": "PICKLE"}],
                  transform=target("LoadImaged", keys="image"))),
    (BIAS, target("monai.data.NumpyReader", allow_pickle=True)),
    (BIAS, target("monai.apps.download_url", url="file:///etc/passwd", filepath="CANARY")),
    (BIAS, target("monai.bundle.run", config_file="CANARY")),
    (BIAS, target("monai.bundle.ConfigWorkflow", config_file="CANARY")),
    (BIAS, target("monai.handlers.CheckpointSaver", save_dir="CANARY", save_dict={"a": LINEAR})),
    (BIAS, target("monai.handlers.LogfileHandler", output_dir="CANARY")),
    (BIAS, target("monai.handlers.TensorBoardStatsHandler", log_dir="CANARY")),
    (BIAS, target("monai.handlers.MLFlowHandler", tracking_uri="CANARY")),
    (BIAS, target("monai.networks.nets.EfficientNetBN", model_name="efficientnet-b0")),
    (BIAS, target("DenseNet121", spatial_dims=2, in_channels=3, out_channels=1, pretrained=True)),
    (BIAS, target("monai.losses.PerceptualLoss", spatial_dims=2)),
    (BIAS, target("torch.nn.Linear", _mode_="debug", in_features=1, out_features=1)),
    (BIAS, target("builtins.open", file="CANARY", mode="w")),
    (BIAS, target("pathlib.Path.touch", self="CANARY")),
    (BIAS, {"_target_": ["os.system"]}),
    (BIAS, {"_target_": "$__import__('os').system", "command": "touch CANARY"}),
    (STEP, target("LoadImaged", keys="image", reader="subprocess.getoutput", cmd="touch CANARY")),
    (STEP, target("LoadImaged", keys="image", reader=["subprocess.getoutput"])),
    (STEP, target("LoadImageD", keys="image")),
    (STEP, target("SaveImaged", keys="image", output_dir="CANARY")),
    (STEP, target("SaveImageD", keys="image", output_dir="CANARY")),
    (STEP, target("SaveImageDict", keys="image", output_dir="CANARY")),
    (STEP, target("SaveImaged", keys="image", output_dir="@output_dir")),
    (STEP, target("monai.transforms.SaveImage", output_dir="CANARY")),
    (STEP, target("SaveClassificationd", keys="image", output_dir="CANARY")),
    (STEP, target("WriteFileMappingd", keys="image", mapping_file_path="CANARY")),
    (STEP, target("TorchVisiond", keys="image", name="io.read_file")),
    (STEP, target("Lambdad", keys="image", func="$lambda x: open('CANARY', 'w')")),
    (STEP, target("monai.data.image_writer.ITKWriter")),
]  # fmt: skip


@pytest.fixture
def scan(tmp_path):
    voxels = np.random.default_rng(0).normal(100, 10, (36, 50, 34)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    return tmp_path / "scan.nii.gz"


class Bomb:
    def __reduce__(self):
        return os.system, ("touch unpickled_canary",)


def attacked(folder: Path, place: str, change) -> Path:
    """A copy of a shipped bundle with one component of the attacker's."""
    shutil.copytree(bundles_dir() / NAME, folder)
    (folder / "pickle.npy").write_bytes(pickle.dumps(Bomb()))
    path = folder / "configs" / "inference.json"
    text = json.dumps(change).replace("CANARY", str(folder.parent / "canary"))
    change = json.loads(text.replace("PICKLE", str(folder / "pickle.npy")))
    config = json.loads(path.read_text())
    if place == BIAS:
        config["network_def"]["networks"] = {**LINEAR, "bias": change}
    else:
        config["preprocessing"]["transforms"].append(change)
    path.write_text(json.dumps(config))
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    evil = json.loads(json.dumps(TOUCH).replace("CANARY", str(folder.parent / "canary")))
    (folder / "configs" / "metadata.json").write_text(json.dumps({**metadata, "evil": evil}))
    return folder


def test_there_are_attacks_enough():
    assert len(ATTACKS) >= 40


@pytest.mark.parametrize(("place", "change"), ATTACKS, ids=lambda value: str(value)[:60])
def test_an_attack_runs_nothing_and_is_one_line(place, change, tmp_path, scan, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bundle = attacked(tmp_path / "evil_segmentation", place, change)
    before = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
    for words in (
        ["predict", str(bundle), str(scan), "-o", str(tmp_path / "out")],
        ["export", str(bundle), "--to", "torchscript", "-o", str(tmp_path / "out")],
        ["bundle", "verify", str(bundle)],
    ):
        assert main(words) in (1, 2)
        text = capsys.readouterr()
        assert "Traceback" not in text.err + text.out
        assert "inference.json" in text.err + text.out
    assert {p.relative_to(tmp_path) for p in tmp_path.rglob("*")} - before <= {Path("out")}


@pytest.mark.parametrize("place", ["a file", "a folder"])
def test_links_in_a_bundle_are_rejected_and_not_copied(place, tmp_path):
    folder = tmp_path / "mine_segmentation"
    shutil.copytree(bundles_dir() / NAME, folder)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (folder / "docs" / "notes").symlink_to(secret / "key" if place == "a file" else secret)
    with pytest.raises(UnsafeFileError, match="notes: is a link"):
        load(folder)
    with pytest.raises(UnsafeFileError, match="notes: is a link"):
        fork(folder, tmp_path / "fork_segmentation")
    assert not (tmp_path / "fork_segmentation").exists()


def test_modules_beside_an_untrusted_bundle_are_not_imported(tmp_path, monkeypatch):
    folder = tmp_path / "mine_segmentation"
    shutil.copytree(bundles_dir() / NAME, folder)
    for name in ("jsonschema", "scripts", "ignite"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    main(["bundle", "verify", str(folder)])
    assert not (tmp_path / "canary").exists()


def test_what_hands_configs_to_monai_needs_trust(tmp_path):
    folder = fork(NAME, tmp_path / "mine_segmentation")
    with pytest.raises(UnsafeFileError, match="train runs the bundle's configs as code"):
        run_task(load(folder), "train", {}, tmp_path / "log.txt")
    with pytest.raises(UnsafeFileError, match="medvol label runs the bundle's configs as code"):
        prepare(tmp_path / "work", [load(folder)], None)
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.parametrize("bundle", list_bundles(), ids=lambda bundle: bundle.name)
def test_a_copy_of_every_shipped_bundle_needs_no_trust_to_predict(bundle, tmp_path):
    folder = tmp_path / bundle.name
    shutil.copytree(bundle.path, folder)
    copy = load(folder)
    assert not copy.is_code_trusted
    assert copy.config("inference") == bundle.config("inference")
    assert "_meta_" not in copy.parser("inference").config


def test_a_fork_predicts_what_the_shipped_bundle_predicts(tmp_path, scan):
    folder = fork(NAME, tmp_path / "mine_segmentation")
    for bundle, out in ((NAME, "a"), (str(folder), "b")):
        assert main(["predict", bundle, str(scan), "-o", str(tmp_path / out)]) == 0
    masks = [(tmp_path / out / "scan" / "seg.nii.gz").read_bytes() for out in "ab"]
    assert masks[0] == masks[1]


def test_every_name_on_the_list_is_a_class_or_function_of_its_package():
    import importlib
    import inspect

    for package, names in NAMES.items():
        found = importlib.import_module(package)
        extra = {"monai.networks": ["monai.networks.nets"],
                 "torch.optim": ["torch.optim.lr_scheduler"]}  # fmt: skip
        places = [found, *map(importlib.import_module, extra.get(package, ()))]
        for name in names:
            one = next((getattr(p, name) for p in places if hasattr(p, name)), None)
            assert inspect.isclass(one) or inspect.isfunction(one), f"{package}.{name}"
            assert one.__module__.startswith(package), f"{package}.{name}"


def test_expressions_hold_no_call_but_of_what_is_known():
    assert all(text.startswith("$") and "import" not in text for text in EXPRESSIONS)
