"""Our transforms against MONAI's own in one recipe: ``python -m tools.bench.paired_folds``.

The hippocampus bundle is trained twice on every fold, with one seed, one schedule and a smaller
network: once with its own layer (``Spacingd``, ``RandSpatiald``), once with MONAI's ``Spacingd``,
``RandAffined``, ``Rand3DElasticd`` and ``RandFlipd`` over the same ranges. Every case is scored
once, by the network that did not see its subject; the differences are paired by case.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from medvol.core.files import write_json
from medvol.evaluation import BootstrapPlan, compare

BUNDLE = "hippocampus_mri_segmentation"
KEYS, MODES = ["image", "label"], ["bilinear", "nearest"]
ARMS = ("medvol", "monai")


def main() -> None:
    """Train what is missing below ``--out``, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="MSD Task04 folder")
    parser.add_argument("--out", type=Path, required=True, help="kept between calls")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    for fold in options.folds:
        for arm in ARMS:
            train(arm, fold, options)
    pooled = {arm: pool(options.out / arm) for arm in ARMS}
    plan = BootstrapPlan(resamples=10_000, seed=options.seed)
    rows = compare(pooled["medvol"], pooled["monai"], data=options.dataset, plan=plan)
    if options.json:
        print(json.dumps([row.to_json() for row in rows], allow_nan=False))
        return
    for row in rows:
        print(f"{row.label} {row.metric}: medvol {row.first:.4f}, MONAI {row.second:.4f}, "
              f"difference {row.difference:+.4f} ({row.lower:+.4f} to {row.upper:+.4f}), "
              f"n={row.n}")  # fmt: skip


def train(arm: str, fold: int, options: argparse.Namespace) -> None:
    """One run of one arm, unless its scores are there already."""
    from monai.bundle import ConfigWorkflow

    from medvol.bundle import load

    folder = options.out / arm / f"fold{fold}"
    if (folder / "run.json").exists():
        return
    began = time.process_time()
    workflow = ConfigWorkflow(
        config_file=str(load(BUNDLE).config_path("train")), logging_file=False,
        dataset_dir=str(options.dataset), output_dir=str(folder), fold=fold, seed=options.seed,
        resume=True, **schedule(options.epochs, folder),
        **(monai_layer(load(BUNDLE).config("train")) if arm == "monai" else {}),
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    cpu_s = round(time.process_time() - began, 1)
    write_json(folder / "run.json", {"cpu s": cpu_s, "epochs": options.epochs})
    print(f"{arm} fold {fold}: {cpu_s} s of CPU", flush=True)


def schedule(epochs: int, folder: Path) -> dict[str, Any]:
    """What both arms share and the bundle does otherwise: a small network, briefly."""
    return {
        "network_def#networks#channels": [16, 32, 64],
        "max_epochs": epochs, "val_interval": epochs, "patience": epochs, "ema#decay": 0.99,
        "inferer#tta": None, "validate#key_metric#val_mean_dice#output_dir": str(folder),
    }  # fmt: skip


def monai_layer(config: dict[str, Any]) -> dict[str, Any]:
    """The same recipe in MONAI's own transforms, over the ranges of the bundle's config."""
    ours = config["train"]["augmentation"]["transforms"][0]
    size, moved, bent = ours["spatial_size"], ours["prob"], ours["prob"] * ours["elastic_prob"]
    affine = {
        "keys": KEYS, "prob": 1.0, "rotate_range": [ours["rotate_range"]] * 3,
        "scale_range": ours["scale_range"],
        "translate_range": [ours.get("translate_range_mm", 0.0)] * 3,
        "mode": MODES, "padding_mode": ours["padding_mode"],
    }  # fmt: skip
    elastic = {**affine, "sigma_range": [5, 8], "magnitude_range": [50, 150]}
    moves = {
        "_target_": "OneOf",
        "weights": [1 - moved, moved - bent, bent],
        "transforms": [{"_target_": "Identityd", "keys": KEYS},
                       {"_target_": "RandAffined", **affine},
                       {"_target_": "Rand3DElasticd", **elastic}],
    }  # fmt: skip
    steps = [
        {"_target_": "SpatialPadd", "keys": KEYS, "spatial_size": size},
        {"_target_": "RandSpatialCropd", "keys": KEYS, "roi_size": size, "random_size": False},
        {"_target_": "RandFlipd", "keys": KEYS, "prob": 0.5, "spatial_axis": 0},
        moves,
    ]
    return {
        "preprocessing#transforms#3": {"_target_": "Spacingd", "keys": KEYS,
                                       "pixdim": [1.0] * 3, "mode": MODES},
        "train#augmentation#transforms#0": {"_target_": "Compose", "transforms": steps},
    }  # fmt: skip


def pool(folder: Path) -> Path:
    """One table of the held-out scores of all folds."""
    rows: list[list[str]] = []
    for path in sorted(folder.glob("fold*/scores.csv")):
        header, *body = csv.reader(path.read_text(encoding="utf-8").splitlines())
        rows = [*(rows or [header]), *body]
    target = folder / "scores.csv"
    with target.open("w", encoding="utf-8", newline="") as sink:
        csv.writer(sink).writerows(rows)
    return target


if __name__ == "__main__":
    main()
