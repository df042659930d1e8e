"""What tests/golden/nnunet was made with: two small networks that nnU-Net itself trained.

Run with the interpreter of an environment that holds nnunetv2 2.8.1, from the repository's root:
``python tools/nnunet_golden.py WORK tests/golden/nnunet`` (WORK is a scratch folder). Six noisy
two-part blobs, one of them at another spacing, are planned and preprocessed by nnU-Net; its plan
is made small, anisotropic and transposed, so that every import rule is met; its trainer makes four
steps of each network. Beside each checkpoint lies what nnU-Net's preprocessor and network give for
the odd-spaced blob, and its whole predictor's segmentation without mirrors.
``python tools/nnunet_golden.py tests/golden/nnunet`` adds the segmentations to networks that are
there already.
"""

import json
import os
import shutil
import sys
from pathlib import Path

WORK, OUT = Path(sys.argv[1]).resolve(), Path(sys.argv[-1]).resolve()
for name, folder in (("raw", "raw"), ("preprocessed", "pre"), ("results", "res")):
    os.environ[f"nnUNet_{name}"] = str(WORK / folder)
os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}

import nibabel  # noqa: E402 - nnU-Net reads the environment when it is imported
import numpy as np  # noqa: E402
import torch  # noqa: E402

SHAPE = (24, 30, 18)
ODD = "blob_005"


def main() -> None:
    """Everything, from blobs to golden files."""
    torch.set_num_threads(1)
    raw = WORK / "raw" / "Dataset007_Blobs"
    write_blobs(raw)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
    )

    pre = WORK / "pre" / "Dataset007_Blobs"
    if not (pre / "nnUNetPlans.json").is_file():
        extract_fingerprints([7], num_processes=1)
        plan_experiments([7])
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # the planner wants at least one, training none
    plans = json.loads((pre / "nnUNetPlans.json").read_text())
    names = [f"blob_{i:03d}" for i in range(6)]
    (pre / "splits_final.json").write_text(json.dumps([{"train": names[:5], "val": names[5:]}]))
    for kind in ("plain", "residual"):
        small_plan(plans, kind)
        (pre / "nnUNetPlans.json").write_text(json.dumps(plans))
        train(plans, kind, raw)
        add_segmentation(kind)


def write_blobs(raw: Path) -> None:
    """Six images and labels."""
    for kind in ("imagesTr", "labelsTr"):
        (raw / kind).mkdir(parents=True, exist_ok=True)
    for index in range(6):
        rng = np.random.default_rng(index)
        grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
        offset = grid - (np.asarray(SHAPE) - 1) / 2 - rng.uniform(-1, 1, 3)
        inside = ((offset / (6.0, 9.0, 5.0)) ** 2).sum(-1) <= 1
        label = np.where(inside, np.where(offset[..., 1] > 0, 1, 2), 0).astype(np.uint8)
        image = (400 + 250 * inside + 150 * (label == 1) + rng.normal(0, 40, SHAPE)).round()
        image[:2] = 0  # so that the crop to what is not zero has something to do
        spacing = (0.8, 1.0, 2.3) if index == 5 else (1.0, 1.0, 2.0)
        for kind, array, tail in (("imagesTr", image, "_0000"), ("labelsTr", label, "")):
            volume = nibabel.Nifti1Image(array.astype(np.int16), np.diag([*spacing, 1.0]))
            volume.header.set_xyzt_units("mm")
            nibabel.save(volume, raw / kind / f"blob_{index:03d}{tail}.nii.gz")
    facts = {
        "channel_names": {"0": "MRI"},
        "numTraining": 6,
        "file_ending": ".nii.gz",
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
    }
    (raw / "dataset.json").write_text(json.dumps(facts))


def small_plan(plans: dict, kind: str) -> None:
    """Three stages of few features, one flat kernel, axes in another order."""
    plans |= {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    one = plans["configurations"]["3d_fullres"]
    one |= {"batch_size": 2, "spacing": [1.0, 2.0, 1.0], "patch_size": [16, 12, 24]}
    one["data_identifier"] = f"nnUNetPlans_{kind}"
    arch = one["architecture"]
    given = arch["arch_kwargs"]
    given |= {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "n_conv_per_stage_decoder": [1, 2],
        "kernel_sizes": [[3, 1, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [2, 1, 2], [2, 2, 2]],
    }
    package = "dynamic_network_architectures.architectures.unet."
    if kind == "residual":
        given.pop("n_conv_per_stage", None)
        given["n_blocks_per_stage"] = [1, 2, 2]
        arch["network_class_name"] = package + "ResidualEncoderUNet"
    else:
        given["n_conv_per_stage"] = [2, 1, 2]
        arch["network_class_name"] = package + "PlainConvUNet"


def train(plans: dict, kind: str, raw: Path) -> None:
    """Preprocess, four steps, golden files."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - nnU-Net draws from it
    DefaultPreprocessor(verbose=False).run(7, "3d_fullres", "nnUNetPlans", num_processes=1)
    facts = json.loads((raw / "dataset.json").read_text())
    given = {**plans, "continue_training": False}
    trainer = nnUNetTrainer(given, "3d_fullres", 0, facts, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = 2, 2
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    model = OUT / kind / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (model / "fold_0").mkdir(parents=True, exist_ok=True)
    made = Path(trainer.output_folder)
    shutil.copy(made / "checkpoint_final.pth", model / "fold_0" / "checkpoint_final.pth")
    for name in ("plans.json", "dataset.json"):
        shutil.copy(made.parent / name, model / name)
    manager = PlansManager(plans)
    data, _, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(raw / "imagesTr" / f"{ODD}_0000.nii.gz")],
        None,
        manager,
        manager.get_configuration("3d_fullres"),
        facts,
    )
    window = torch.from_numpy(np.asarray(data))[None]
    window = window[
        ..., : window.shape[2] // 4 * 4, : window.shape[3] // 2 * 2, : window.shape[4] // 4 * 4
    ]
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        logits = trainer.network.eval()(window)
    np.savez_compressed(OUT / kind / "expected.npz", data=np.asarray(data), logits=logits.numpy())
    shutil.copy(raw / "imagesTr" / f"{ODD}_0000.nii.gz", OUT / "image.nii.gz")


def add_segmentation(kind: str) -> None:
    """What nnU-Net's predictor draws, in the order of axes of the NIfTI file."""
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False,
        perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False,
    )  # fmt: skip
    model = OUT / kind / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    image, properties = NibabelIO().read_images([str(OUT / "image.nii.gz")])
    found = predictor.predict_single_npy_array(image, properties, None, None, False)
    with np.load(OUT / kind / "expected.npz") as file:
        kept = dict(file)
    kept["segmentation"] = np.asarray(found).transpose(2, 1, 0).astype(np.uint8)
    np.savez_compressed(OUT / kind / "expected.npz", **kept)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        for name in ("plain", "residual"):
            add_segmentation(name)
    else:
        main()
