"""Planned bundles on phantoms: ``python -m tools.bench.planning [--only thick] [--budget 2m]``.

Four data sets that a plan must cope with are drawn, planned without any hand-set number and
trained on fold 0 in a process of their own. Shown: validation Dice, forecast over measured time,
forecast over measured peak memory, and what share of a core the trial run and the training got: a
forecast is as good as these two are equal.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medvol.core import write_json, write_text
from medvol.datasets import phantoms
from medvol.datasets.phantoms.writer import write_nifti
from medvol.planning import Request, parse_duration, plan_dataset


def main() -> None:
    """Measure the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["", *DATASETS], default="")
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--work", type=Path, help="Where data and runs stay; a scratch folder.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    budget_s = parse_duration(options.budget)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        names = [options.only] if options.only else list(DATASETS)
        rows = [measure(name, work / name, budget_s) for name in names]
    for row in rows:
        text = json.dumps(row) if options.json else "; ".join(f"{k} {v}" for k, v in row.items())
        print(text, flush=True)


def measure(name: str, work: Path, budget_s: float) -> dict[str, Any]:
    """Draw, plan, train, score one data set."""
    draw, options = DATASETS[name]
    data = draw(work / "data")
    plan = plan_dataset(data, work / "planned", Request(budget_s, folds=4), **options)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file",
               str(plan.folder / "configs" / "train.json"), "--dataset_dir", str(data),
               "--output_dir", str(work / f"run_{time.time():.0f}")]  # fmt: skip
    started = time.perf_counter()
    with (work / "train.log").open("wb") as log:
        actions = [(os.POSIX_SPAWN_DUP2, log.fileno(), n) for n in (1, 2)]
        pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{name}: training failed, see {work / 'train.log'}")
    peak = usage.ru_maxrss * 1024
    return {
        "data": name,
        "dice": best_scores(Path(command[-1]) / "epochs.csv"),
        "epochs": plan.forecast.epochs,
        "patch": plan.draft["roi_size"],
        "spacing_mm": plan.draft["spacing_mm"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "time_ratio": round(plan.forecast.total_s / seconds, 3),
        "peak_mib": peak >> 20,
        "memory_ratio": round(plan.forecast.peak_bytes / peak, 3),
        "core_share": [
            round(plan.costs.share, 2),
            round((usage.ru_utime + usage.ru_stime) / seconds, 2),
        ],
    }


def best_scores(table: Path) -> dict[str, float]:
    """Mean Dice of the best validation and each structure's."""
    with table.open() as handle:
        rows = [row for row in csv.DictReader(handle) if row["val_mean_dice"]]
    best = max(rows, key=lambda row: float(row["val_mean_dice"]))
    names = [name for name in best if name.startswith("val_mean_dice") and best[name]]
    short = {name: name.removeprefix("val_mean_dice").lstrip("_") or "mean" for name in names}
    return {short[name]: round(float(best[name]), 3) for name in names}


def thick(folder: Path) -> Path:
    """CT with slices five times as thick as pixels."""
    return phantoms.write_phantom_dataset(
        folder, 12, labels=("liver", "spleen"), shape=(80, 56, 14), spacing_mm=(4.5, 4.5, 22.5)
    )


def regions(folder: Path) -> Path:
    """Four channels, three nested tumour regions."""
    return phantoms.write_phantom_dataset(
        folder, 12, kind="mr", shape=(44, 52, 46), spacing_mm=(4.0, 4.0, 4.0)
    )


def rare(folder: Path) -> Path:
    """A liver in 100 cases, lesions in two of them."""
    rows = []
    for number in range(100):
        phantom = phantoms.ct_phantom(
            number, shape=(44, 32, 40), spacing_mm=(8.0, 8.0, 8.0), labels=("liver", "lesion"),
            lesions=3 if number in (7, 60) else 0,
        )  # fmt: skip
        name = f"rare_{number:02d}.nii.gz"
        write_nifti(folder / "imagesTr" / name, phantom.image, phantom.affine)
        write_nifti(folder / "labelsTr" / name, phantom.label, phantom.affine)
        rows.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    write_json(folder / "dataset.json", {
        "name": "CT phantom, rare lesions", "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "lesion"}, "numTraining": 100,
        "numTest": 0, "training": rows, "test": [],
    })  # fmt: skip
    return folder


def flat(folder: Path) -> Path:
    """2D images: the middle slice of the trunk with liver and spleen, as a CSV datalist."""
    from PIL import Image

    lines = ["image,label,patient_id"]
    for number in range(24):
        phantom = phantoms.ct_phantom(
            number, shape=(112, 80, 20), spacing_mm=(3.2, 3.2, 16.0), labels=("liver", "spleen")
        )
        grey = np.clip((phantom.image[:, :, 9] + 200) / 500, 0, 1) * 255
        for part, array in (("images", grey), ("masks", phantom.label[:, :, 9])):
            target = folder / part / f"slice_{number:02d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(array.T).astype(np.uint8)).save(target)
        lines.append(f"images/slice_{number:02d}.png,masks/slice_{number:02d}.png,p{number}")
    write_text(folder / "datalist.csv", "\n".join(lines) + "\n")
    return folder


#: Name to how it is drawn and what its names do not tell.
DATASETS: dict[str, tuple[Callable[[Path], Path], dict[str, str]]] = {
    "thick": (thick, {}),
    "regions": (regions, {}),
    "rare": (rare, {}),
    "flat": (flat, {"modality": "XR", "body_part": "phantom"}),
}

if __name__ == "__main__":
    main()
