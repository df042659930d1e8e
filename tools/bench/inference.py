"""Inference against MONAI: ``python -m tools.bench.inference [--only NAME] [--json]``.

CPU time of this process, contenders interleaved, median of the rounds; ratios under 1 are faster.
The network is the reference U-Net (16-32-64-128-256, 2 residual units, instance norm), windows of
96^3, overlap 0.5, Gaussian weights. ``--size`` and ``--rounds`` make it shorter.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers.inferer import SlidingWindowInferer as MonaiInferer
from monai.networks.nets.unet import UNet

from medvol.inferers import (
    SlidingWindowInferer,
    compiled_openvino,
    convert_openvino,
)

WINDOW = (96, 96, 96)
START_BUNDLE = "hippocampus_mri_segmentation"
Case = Callable[[], Any]


def main() -> None:
    """Measure the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*ROWS, ""], default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=3, default=(256, 256, 160))
    parser.add_argument("--image", type=Path, help="CT for the row `predict`")
    parser.add_argument("--nnunet", type=Path, help="its environment, for the row `stitching`")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [ROWS[n](options) for n in ROWS if options.only in ("", n)]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        for name, value in row["figures"].items():
            print(f"{row['work']}: {name} {value:.3f}")


def network(channels: int) -> torch.nn.Module:
    """The reference U-Net with random weights."""
    torch.manual_seed(0)
    widths, strides = (16, 32, 64, 128, 256), (2, 2, 2, 2)
    return UNet(3, 1, channels, widths, strides, num_res_units=2, norm="instance").eval()


def end_to_end(options: argparse.Namespace) -> dict[str, Any]:
    """Sliding window over a whole volume, 3 classes; MONAI one window at a time and two."""
    net, image = network(3), torch.randn(1, 1, *options.size)
    cases: dict[str, Case] = {}
    for batch in (1, 2):
        theirs = MonaiInferer(WINDOW, batch, 0.5, "gaussian")
        cases[f"MONAI batch {batch}"] = lambda theirs=theirs: theirs(image, net)
    ours = SlidingWindowInferer(WINDOW, 1, 0.5, "gaussian")
    cases["medvol torch"] = lambda: ours(image, net)
    try:
        openvino = compiled_openvino(convert_openvino(net, (1, *WINDOW)), threads=1)
        cases["medvol OpenVINO"] = lambda: ours(image, openvino)
    except ImportError:
        print("openvino is not installed: its row is left out", file=sys.stderr)
    return _row(f"end to end {options.size}", cases, "MONAI batch 1", options.rounds)


def stitching(options: argparse.Namespace) -> dict[str, Any]:
    """Blending alone: the network hands back one stored prediction of 14 classes."""
    stored, image = torch.randn(1, 14, *WINDOW), torch.randn(1, 1, *options.size)
    theirs = MonaiInferer(WINDOW, 1, 0.5, "gaussian")
    ours = SlidingWindowInferer(WINDOW, 1, 0.5, "gaussian")
    count = len(ours.grid_over(options.size))
    # MONAI and nnU-Net multiply in place and must be given copies, which are taken off again.
    cases: dict[str, Case] = {
        "MONAI": lambda: theirs(image, lambda window: stored.clone()),
        "medvol": lambda: ours(image, lambda window: stored.expand(len(window), *stored.shape[1:])),
        "copies": lambda: sum(len(stored.clone()) for _ in range(count)),  # none is kept
    }
    peer = {"seconds": 0.0, "copies": 0.0}
    rows: list[dict[str, float]] = []
    if options.nnunet:
        cases["nnU-Net, start included"] = lambda: rows.append(_by_nnunet(options))
    row = _row(f"stitching 14 classes {options.size}", cases, "MONAI", options.rounds)
    seconds = row["seconds"]
    row["figures"] = {"medvol / MONAI": seconds["medvol"] / (seconds["MONAI"] - seconds["copies"])}
    if rows:
        peer = {key: statistics.median(r[key] for r in rows) for key in peer}
        row["nnU-Net"] = {**peer, "windows": rows[0]["windows"], "our windows": count}
        net = peer["seconds"] - peer["copies"]
        row["figures"]["medvol / nnU-Net"] = seconds["medvol"] / net
    return row


def _by_nnunet(options: argparse.Namespace) -> dict[str, float]:
    """nnU-Net's predictor in an environment of its own."""
    script = Path(__file__).with_name("nnunet_stitching.py")
    command = [str(options.nnunet / "bin" / "python"), str(script), *map(str, options.size)]
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=outside)
    return json.loads(done.stdout.splitlines()[-1])


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """The whole way of one CT to 1.5 mm with 14 classes, each contender in a process of its own."""
    if options.image is None:
        return {"work": "predict", "figures": {}, "note": "needs --image"}
    names = ["MONAI", "medvol", "medvol, slack"]
    if importlib.util.find_spec("openvino"):
        names.append("medvol, OpenVINO")
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, rows in found.items():
            command = [sys.executable, "-m", "tools.bench.whole_case", name, str(options.image)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append((row["wall_s"], row["cpu_s"], row["peak_bytes"]))
    middle = {n: [statistics.median(v) for v in zip(*r, strict=True)] for n, r in found.items()}
    figures = {
        f"{what}, {name} / MONAI": middle[name][i] / middle["MONAI"][i]
        for name in names[1:]
        for i, what in enumerate(("wall", "CPU", "peak memory"))
    }
    return {"work": f"predict {options.image.name}", "figures": figures, "seconds": middle}


def start(options: argparse.Namespace) -> dict[str, Any]:
    """From nothing to one labelled crop, CPU time of whole processes; imports bound it."""
    from medvol.bundle import load
    from medvol.io import write_nifti

    with tempfile.TemporaryDirectory() as folder:
        crop = np.random.default_rng(0).normal(size=(36, 50, 34)).astype(np.float32)
        image = write_nifti(Path(folder, "in", "crop.nii.gz"), crop, np.eye(4))
        config = load(START_BUNDLE).config_path("inference")
        python = [sys.executable, "-W", "ignore"]
        commands = {
            "import torch": [*python, "-c", "import torch"],
            "import monai.bundle": [*python, "-c", "import monai.bundle"],
            "monai.bundle run": [
                *python, "-m", "monai.bundle", "run", "--config_file", str(config),
                "--dataset_dir", str(image.parent), "--output_dir", str(Path(folder, "peer")),
            ],
            "medvol predict": [
                *python, "-m", "medvol", "predict", START_BUNDLE, str(image), "-o",
                str(Path(folder, "ours")), "--device", "cpu",
            ],
        }  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            shutil.rmtree(Path(folder, "ours"), ignore_errors=True)
            for name, command in commands.items():
                seconds[name].append(_child_seconds(command))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = middle["medvol predict"] / middle["monai.bundle run"]
    bound = middle["import monai.bundle"] / middle["medvol predict"]
    figures = {"medvol predict / monai.bundle run": ratio, "imports / medvol predict": bound}
    return {"work": "start to one labelled crop", "seconds": middle, "figures": figures}


def _child_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _row(work: str, cases: dict[str, Case], peer: str, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with torch.no_grad():
        for _ in range(rounds):
            for name, case in cases.items():
                begin = time.process_time()
                case()
                seconds[name].append(time.process_time() - begin)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {f"{n} / {peer}": v / middle[peer] for n, v in middle.items() if n != peer}
    return {"work": work, "seconds": middle, "figures": ratios}


ROWS = {"end_to_end": end_to_end, "stitching": stitching, "predict": predict, "start": start}

if __name__ == "__main__":
    main()
