"""Training configs survive what MONAI Label's stock trainer does to them."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigWorkflow

from medvol.bundle import list_bundles, load
from medvol.bundle.verify import verify
from medvol.core.errors import MissingInputError, error_line
from tests.blobs import write_blobs

TRAINABLE = [bundle.name for bundle in list_bundles() if "train" in bundle.tasks]


def test_there_are_bundles_to_train():
    assert len(TRAINABLE) >= 6


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_handler_is_a_mapping(name):
    # MONAI Label calls handler.get(...) on each before it adds its checkpoint loader.
    handlers = load(name).config("train")["train"]["handlers"]
    assert handlers
    assert all(isinstance(handler, dict) for handler in handlers)


def test_verify_names_a_bare_reference_among_the_handlers(monkeypatch):
    bundle = load("hippocampus_mri_segmentation")
    config = bundle.config("train")
    config["train"]["handlers"].append("@ema")
    monkeypatch.setattr(
        type(bundle), "config", lambda self, task: config if task == "train" else {}
    )
    assert any("@ema" in fault and "MONAI Label" in fault for fault in verify(bundle))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_cases_may_come_as_an_override_in_place_of_a_data_set(tmp_path):
    data = write_blobs(tmp_path / "data", n=2)
    pairs = [
        {"image": str(image), "label": str(data / "labelsTr" / image.name)}
        for image in sorted((data / "imagesTr").glob("*.nii.gz"))
    ]
    assert len(pairs) == 2
    bundle = load("phantom_ct_segmentation")
    handlers = bundle.config("train")["train"]["handlers"]
    tiny = torch.nn.Conv3d(1, 3, 1)
    path = tmp_path / "start.pt"
    torch.save(tiny.state_dict(), path)
    loader = {"_target_": "CheckpointLoader", "load_path": str(path),
              "load_dict": {"model": "$@network"}, "strict": False}  # fmt: skip
    overrides = {
        "bundle_root": str(bundle.path), "device": "cpu", "train#trainer#max_epochs": 1,
        "train#dataset#data": pairs, "validate#dataset#data": [],
        "train#handlers": [loader, *handlers], "output_dir": str(tmp_path / "run"),
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3,
                        "kernel_size": 1},
        "preprocessing#transforms": bundle.config("train")["preprocessing"]["transforms"][:1],
        "labels": {"1": "a", "2": "b"},
    }  # fmt: skip
    workflow = ConfigWorkflow(
        config_file=str(bundle.config_path("train")), logging_file=False, **overrides
    )
    workflow.initialize()
    workflow.run()
    assert (tmp_path / "run" / "last.pt").is_file()


def test_without_cases_or_a_data_set_the_run_is_rejected():
    workflow = ConfigWorkflow(
        config_file=str(load("phantom_ct_segmentation").config_path("train")), logging_file=False
    )
    workflow.initialize()
    with pytest.raises(Exception, match=r".") as caught:
        workflow.run()
    assert "--dataset_dir" in (error_line(caught.value) or "")
    assert isinstance(caught.value, MissingInputError) or caught.value.__cause__ is not None
