"""A whole bundle of a few kilobytes, and images for it, so that every runner runs for real."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medvol.runners import PredictOptions

LABELS = {"1": "spleen", "2": "liver"}


def write_bundle(folder: Path, *, spacing_mm=(1.5, 1.5, 2.0), after=(), **inferer) -> Path:
    """A segmentation bundle in the shape that ``medvol bundle write`` gives it."""
    network = {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 3,
        "channels": [4, 8],
        "strides": [2],
        "norm": "instance",
    }
    config = {
        "bundle_root": ".",
        "dataset_dir": "",
        "output_dir": "out",
        "device": "cpu",
        "labels": LABELS,
        "network_def": network,
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "network": {
            "_target_": "medvol.networks.with_weights",
            "network": "@network_def",
            "path": "@checkpoint",
            "device": "@device",
        },
        "inferer": {
            "_target_": "medvol.inferers.SlidingWindowInferer",
            **{"roi_size": [16, 16, 8], "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"},
            **inferer,
        },
        "decision": {"_target_": "medvol.inferers.Decision", "activation": "softmax"},
        "pipeline": {
            "_target_": "medvol.inferers.PredictionPipeline",
            "inferer": "@inferer",
            "decision": "@decision",
            "max_ram": "@max_ram",
        },
        "max_ram": None,
        "cases": {"_target_": "medvol.datasets.inference_cases", "dataset_dir": "@dataset_dir"},
        "dataset": {"_target_": "Dataset", "data": "@cases", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device(@device)",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@pipeline",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged",
                    "keys": ["image"],
                    "reader": "medvol.io.MedvolReader",
                    "ensure_channel_first": True,
                },
                {"_target_": "medvol.engines.ValidateInputd", "keys": "image"},
                {"_target_": "Orientationd", "keys": ["image"], "axcodes": "RAS", "labels": None},
                {
                    "_target_": "medvol.transforms.Spacingd",
                    "keys": ["image"],
                    "pixdim": list(spacing_mm),
                    "mode": ["bilinear"],
                },
                {"_target_": "NormalizeIntensityd", "keys": "image"},
            ],
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "medvol.inferers.ToSourceGridd",
                    "keys": "pred",
                    "decision": "@decision",
                },
                *after,
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                },
            ],
        },
    }
    facts = {"body_part": "phantom", "family": "segmentation", "labels": LABELS}
    metadata = {"version": "0.1.0", "medvol": facts}
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    from monai.networks.nets.unet import UNet

    torch.manual_seed(0)
    arguments = {k: v for k, v in network.items() if k != "_target_"}
    torch.save(UNet(**arguments).state_dict(), folder / "models" / "model.pt")
    return folder


def write_image(path: Path, seed: int, shape=(22, 25, 12)) -> Path:
    """Smooth noise on an anisotropic, turned grid."""
    rng = np.random.default_rng(seed)
    values = gaussian_filter(rng.normal(size=shape), 2).astype(np.float32) * 100
    affine = np.array([[0, 1.2, 0, 5], [-1.0, 0, 0, 9], [0, 0, 2.5, -4], [0, 0, 0, 1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)  # pyright: ignore[reportPrivateImportUsage]
    return path


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "phantom_ct_segmentation")


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(4):
        write_image(folder / f"case{seed}.nii.gz", seed)
    return folder


@pytest.fixture
def options(toy_bundle, tmp_path):
    def make(**changes) -> PredictOptions:
        given = {"bundle": str(toy_bundle), "output": str(tmp_path / "out"), "trust_bundle": True}
        return PredictOptions(**{**given, "device": "cpu", **changes})

    return make


def read_labels(out: str | Path, case: str) -> np.ndarray:
    """A case's label map."""
    return np.asarray(nib.load(Path(out) / case / "seg.nii.gz").dataobj)  # pyright: ignore[reportPrivateImportUsage]


@pytest.fixture(scope="session")
def make_bundle():
    return write_bundle


@pytest.fixture(scope="session")
def make_image():
    return write_image


@pytest.fixture(scope="session")
def labels_of():
    return read_labels
