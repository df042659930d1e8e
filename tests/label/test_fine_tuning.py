"""Fine-tuning runs the bundle's training in a process of its own; MONAI Label itself is faked."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import pytest
import torch

from medvol.bundle import fork
from medvol.core.errors import MedvolError
from tests.blobs import write_blobs


@pytest.fixture
def fine_tuning(monkeypatch):
    """The module, with just those names of MONAI Label that it uses."""
    for name in ("monailabel", "monailabel.tasks", "monailabel.tasks.train", "monailabel.utils",
                 "monailabel.utils.others"):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    task = types.ModuleType("monailabel.tasks.train.bundle")
    task.BundleTrainTask = type("BundleTrainTask", (), {"__init__": lambda *_, **__: None})  # pyright: ignore[reportAttributeAccessIssue]
    others = types.ModuleType("monailabel.utils.others.generic")
    others.name_to_device = torch.device  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "monailabel.tasks.train.bundle", task)
    monkeypatch.setitem(sys.modules, "monailabel.utils.others.generic", others)
    store = types.ModuleType("medvol.label.datastore")
    store.staged_pairs = None  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "medvol.label.datastore", store)
    monkeypatch.delitem(sys.modules, "medvol.label.train", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    yield importlib.import_module("medvol.label.train")
    sys.modules.pop("medvol.label.train", None)


@pytest.fixture
def bundle(tmp_path):
    folder = fork("hippocampus_mri_segmentation", tmp_path / "app" / "small_segmentation")
    path = folder / "configs" / "train.json"
    config = json.loads(path.read_text())
    config["network_def"] = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1,
                             "out_channels": 3, "channels": [4, 8], "strides": [2]}  # fmt: skip
    path.write_text(json.dumps(config))
    return folder


def pairs_of(folder: Path) -> list[dict[str, str]]:
    images = sorted((folder / "imagesTr").glob("*.nii.gz"))
    return [{"case": image.name, "image": str(image),
             "label": str(folder / "labelsTr" / image.name)} for image in images]  # fmt: skip


def test_submitted_pairs_train_weights_and_a_bad_one_ends_with_its_line(
    fine_tuning, bundle, tmp_path
):
    task = fine_tuning.FineTuning(bundle, {})
    pairs = pairs_of(write_blobs(tmp_path / "data", n=3))
    assert len(pairs) == 3
    request = {"max_epochs": 1, "device": "cpu"}
    state = task._train(request, pairs, [], tmp_path / "run", {})
    assert all(torch.isfinite(value).all() for value in state.values())
    assert "epoch 1/1" in (tmp_path / "run" / "train.log").read_text()
    Path(pairs[1]["image"]).write_bytes(b"no image")
    with pytest.raises(MedvolError, match=r"\.nii\.gz"):
        task._train(request, pairs, [], tmp_path / "again", {})
