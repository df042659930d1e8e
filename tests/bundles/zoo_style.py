"""Bundles as MONAI's model zoo writes them, with random weights: spleen in CT, glioma in MRI.

Written after the zoo's spleen_ct_segmentation and brats_mri_segmentation (schema 20240725): the
same components and expressions, smaller networks and windows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

Config = dict[str, Any]

LOGGING = """[loggers]
keys=root
[handlers]
keys=consoleHandler
[formatters]
keys=fullFormatter
[logger_root]
level=INFO
handlers=consoleHandler
[handler_consoleHandler]
class=StreamHandler
level=INFO
formatter=fullFormatter
args=(sys.stdout,)
[formatter_fullFormatter]
format=%(asctime)s - %(name)s - %(levelname)s - %(message)s
"""


def write_spleen(folder: Path) -> Path:
    """``folder/spleen_ct_segmentation``: one channel in; softmax over background and spleen."""
    network = {
        "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
        "channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 2, "norm": "batch",
    }  # fmt: skip
    steps = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164,
         "b_min": 0, "b_max": 1, "clip": True},
        {"_target_": "EnsureTyped", "keys": "image"},
    ]  # fmt: skip
    image = {"format": "hounsfield", "modality": "CT", "spatial_shape": [32, 32, 32],
             "channel_def": {"0": "image"}}  # fmt: skip
    pred = {"spatial_shape": [32, 32, 32], "channel_def": {"0": "background", "1": "spleen"}}
    return _write(
        folder / "spleen_ct_segmentation",
        network,
        steps,
        activation={"softmax": True},
        decision=[{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}],
        image=image,
        pred=pred,
    )


def write_brats(folder: Path, *, is_painted: bool = False) -> Path:
    """``folder/brats_mri_segmentation``: four channels in; a sigmoid for each of three regions.

    Args:
        folder: Where the bundle's folder is made.
        is_painted: Write one label map (4, 1 and 2, as in BraTS) and not a channel a region.
    """
    network = {
        "_target_": "SegResNet", "blocks_down": [1, 1], "blocks_up": [1], "init_filters": 8,
        "in_channels": 4, "out_channels": 3, "dropout_prob": 0.2,
    }  # fmt: skip
    steps = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True,
         "channel_wise": True},
    ]  # fmt: skip
    paint = (
        "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, "
        "torch.where(x[[1]] > 0, 2, 0)))"
    )
    decision: list[Config] = [{"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}]
    if is_painted:
        decision.append({"_target_": "Lambdad", "keys": "pred", "func": paint})
    size = ["8*n", "8*n", "8*n"]
    channels = dict(enumerate(("T1c", "T1", "T2", "FLAIR")))
    image = {"format": "magnitude", "modality": "MR", "spatial_shape": size,
             "channel_def": {str(k): v for k, v in channels.items()}}  # fmt: skip
    regions = {"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"}
    return _write(
        folder / "brats_mri_segmentation",
        network,
        steps,
        activation={"sigmoid": True},
        decision=decision,
        image=image,
        pred={"spatial_shape": size, "channel_def": regions},
    )


def _write(
    folder: Path,
    network: Config,
    steps: list[Config],
    *,
    activation: Config,
    decision: list[Config],
    image: Config,
    pred: Config,
) -> Path:
    from monai.bundle import ConfigParser

    shared: Config = {
        "imports": ["$import glob", "$import os", "$from pathlib import Path"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
    }
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "sw_batch_size": 2,
               "overlap": 0.5}  # fmt: skip
    activate = {"_target_": "Activationsd", "keys": "pred", **activation}
    configs = {
        "inference": _inference(shared, steps, inferer, [activate, decision]),
        "train": _train(shared, steps, inferer, [activate, *decision[:1]]),
        "evaluate": {  # read on top of train.json
            "validate#handlers": [
                {"_target_": "CheckpointLoader", "load_path": "$@ckpt_dir + '/model.pt'",
                 "load_dict": {"model": "@network"}},
                {"_target_": "StatsHandler", "iteration_log": False},
            ],
            "initialize": ["$setattr(torch.backends.cudnn, 'benchmark', True)"],
            "run": ["$@validate#evaluator.run()"],
        },
        "multi_gpu_train": {
            "device": "$torch.device('cuda:' + os.environ['LOCAL_RANK'])",
            "network": {
                "_target_": "torch.nn.parallel.DistributedDataParallel",
                "module": "$@network_def.to(@device)",
                "device_ids": ["@device"],
            },
            "run": ["$@train#trainer.run()"],
        },
        "metadata": _metadata(folder.name, network, image, pred),
    }  # fmt: skip
    for name, config in configs.items():
        path = folder / "configs" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=4) + "\n")
    (folder / "configs" / "logging.conf").write_text(LOGGING)
    (folder / "docs").mkdir()
    (folder / "docs" / "README.md").write_text("# Model Overview\nRandom weights.\n")
    (folder / "LICENSE").write_text("Apache License 2.0\n")
    (folder / "models").mkdir()
    torch.manual_seed(0)
    made: Any = ConfigParser({"network": dict(network)}).get_parsed_content("network")
    torch.save(made.state_dict(), folder / "models" / "model.pt")
    return folder


def _inference(
    shared: Config, steps: list[Config], inferer: Config, after: list[Any]
) -> Config:  # fmt: skip
    activate, decision = after
    invert = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing",
              "orig_keys": "image", "nearest_interp": False, "to_tensor": True}  # fmt: skip
    save = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir",
            "output_ext": ".nii.gz", "output_dtype": "$np.float32", "output_postfix": "trans",
            "separate_folder": True}  # fmt: skip
    return {
        **shared,
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "preprocessing": {"_target_": "Compose", "transforms": steps},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]",
                    "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1,
                       "shuffle": False, "num_workers": 0},
        "inferer": inferer,
        "postprocessing": {"_target_": "Compose",
                           "transforms": [activate, invert, *decision, save]},
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {"_target_": "SupervisedEvaluator", "device": "@device",
                      "val_data_loader": "@dataloader", "network": "@network",
                      "inferer": "@inferer", "postprocessing": "@postprocessing",
                      "val_handlers": "@handlers", "amp": True},
        "checkpointloader": {"_target_": "CheckpointLoader",
                             "load_path": "$@bundle_root + '/models/model.pt'",
                             "load_dict": {"model": "@network"}},
        "initialize": ["$monai.utils.set_determinism(seed=123)",
                       "$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def _train(shared: Config, steps: list[Config], inferer: Config, after: list[Config]) -> Config:
    both = [{**step, "keys": ["image", "label"]} for step in steps[:2]]
    flips = [{"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5,
              "spatial_axis": axis} for axis in range(3)]  # fmt: skip
    loader = {"_target_": "DataLoader", "batch_size": 1, "num_workers": 0}
    engine = {"device": "@device", "network": "@network"}
    return {
        **shared,
        "ckpt_dir": "$@bundle_root + '/models'",
        "images": "$list(sorted(glob.glob(@dataset_dir + '/imagesTr/*.nii.gz')))",
        "labels": "$list(sorted(glob.glob(@dataset_dir + '/labelsTr/*.nii.gz')))",
        "val_interval": 5,
        "loss": {"_target_": "DiceCELoss", "batch": True},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()",
                      "lr": 0.0001},
        "train": {
            "deterministic_transforms": [*both, *steps[2:]],
            "random_transforms": flips,
            "preprocessing": {
                "_target_": "Compose",
                "transforms": "$@train#deterministic_transforms + @train#random_transforms",
            },
            "dataset": {
                "_target_": "Dataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images[:-9], @labels[:-9])]",
                "transform": "@train#preprocessing",
            },
            "dataloader": {**loader, "dataset": "@train#dataset"},
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": {"_target_": "Compose", "transforms": after},
            "handlers": [
                {"_target_": "ValidationHandler", "validator": "@validate#evaluator",
                 "epoch_level": True, "interval": "@val_interval"},
                {"_target_": "StatsHandler", "tag_name": "train_loss",
                 "output_transform": "$monai.handlers.from_engine(['loss'], first=True)"},
            ],
            "trainer": {"_target_": "SupervisedTrainer", "max_epochs": 300,
                        "train_data_loader": "@train#dataloader", "loss_function": "@loss",
                        "optimizer": "@optimizer", "inferer": "@train#inferer",
                        "postprocessing": "@train#postprocessing",
                        "train_handlers": "@train#handlers", **engine},
        },
        "validate": {
            "preprocessing": {"_target_": "Compose",
                              "transforms": "%train#deterministic_transforms"},
            "dataset": {
                "_target_": "Dataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images[-9:], @labels[-9:])]",
                "transform": "@validate#preprocessing",
            },
            "dataloader": {**loader, "dataset": "@validate#dataset"},
            "inferer": inferer,
            "postprocessing": "%train#postprocessing",
            "handlers": [
                {"_target_": "StatsHandler", "iteration_log": False},
                {"_target_": "CheckpointSaver", "save_dir": "@ckpt_dir",
                 "save_dict": {"model": "@network"}, "save_key_metric": True,
                 "key_metric_filename": "model.pt"},
            ],
            "key_metric": {"val_mean_dice": {
                "_target_": "MeanDice", "include_background": False,
                "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
            }},
            "evaluator": {"_target_": "SupervisedEvaluator",
                          "val_data_loader": "@validate#dataloader",
                          "inferer": "@validate#inferer",
                          "postprocessing": "@validate#postprocessing",
                          "key_val_metric": "@validate#key_metric",
                          "val_handlers": "@validate#handlers", **engine},
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@train#trainer.run()"],
    }  # fmt: skip


def _metadata(name: str, network: Config, image: Config, pred: Config) -> Config:
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/"
                  "0.8.1/meta_schema_20240725.json",
        "version": "0.5.9",
        "changelog": {"0.5.9": "random weights"},
        "monai_version": "1.4.0",
        "pytorch_version": "2.4.0",
        "numpy_version": "1.24.4",
        "optional_packages_version": {"nibabel": "5.2.1", "pytorch-ignite": "0.4.11"},
        "task": f"Zoo's {name}",
        "description": "A network with random weights, for tests",
        "authors": "medvol contributors",
        "copyright": "Copyright (c) medvol contributors",
        "intended_use": "Tests",
        "network_data_format": {
            "inputs": {"image": {"type": "image", "num_channels": network["in_channels"],
                                 "dtype": "float32", "value_range": [], "is_patch_data": True,
                                 **image}},
            "outputs": {"pred": {"type": "image", "format": "segmentation",
                                 "num_channels": network["out_channels"], "dtype": "float32",
                                 "value_range": [0, 1], "is_patch_data": True, **pred}},
        },
    }  # fmt: skip
