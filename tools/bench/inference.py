"""Inference against MONAI: ``python -m tools.bench.inference [--only NAME] [--json]``.

CPU time of this process, contenders interleaved, median of the rounds; ratios under 1 are faster.
The network is the reference U-Net (16-32-64-128-256, 2 residual units, instance norm), windows of
96^3, overlap 0.5, Gaussian weights. ``--size`` and ``--rounds`` make it shorter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.inferers.inferer import SlidingWindowInferer as MonaiInferer
from monai.networks.nets.unet import UNet

from medvol.inferers import (
    FusedNetwork,
    SlidingWindowInferer,
    compiled_openvino,
    convert_openvino,
)

WINDOW = (96, 96, 96)
Case = Callable[[], Any]


def main() -> None:
    """Measure the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*ROWS, ""], default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=3, default=(256, 256, 160))
    parser.add_argument("--image", type=Path, help="CT for the row `predict`")
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
    cases["medvol torch, fused"] = lambda: ours(image, FusedNetwork(net, (1, *WINDOW)))
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
    # MONAI multiplies in place, so that it must be given a copy; the copy is taken off again.
    cases: dict[str, Case] = {
        "MONAI": lambda: theirs(image, lambda window: stored.clone()),
        "medvol": lambda: ours(image, lambda window: stored.expand(len(window), *stored.shape[1:])),
        "copies": lambda: [stored.clone() for _ in range(len(ours._windows(image)[0].grid))],
        "nnU-Net": lambda: _nnunet_stitching(image, stored, ours),
    }
    row = _row(f"stitching 14 classes {options.size}", cases, "MONAI", options.rounds)
    seconds = row["seconds"]
    net = seconds["MONAI"] - seconds["copies"]
    row["figures"] = {
        "medvol / MONAI": seconds["medvol"] / net,
        "medvol / nnU-Net": seconds["medvol"] / seconds["nnU-Net"],
    }
    return row


def _nnunet_stitching(image: torch.Tensor, stored: torch.Tensor, ours: Any) -> torch.Tensor:
    """The accumulation of nnU-Net v2's predictor: half-precision sums, multiply, add, divide."""
    source = ours._windows(image)[0]
    weight = ours._weight(source, image.device).half()
    total = torch.zeros((stored.shape[1], *source.grid.padded), dtype=torch.half)
    count = torch.zeros(source.grid.padded, dtype=torch.half)
    for box in source.grid.boxes():
        prediction = stored[0].to(torch.half)
        prediction *= weight
        total[(slice(None), *box)] += prediction
        count[box] += weight
    torch.div(total, count, out=total)
    return total


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """The whole way of one CT to 1.5 mm with 14 classes, each contender in a process of its own."""
    if options.image is None:
        return {"work": "predict", "figures": {}, "note": "needs --image"}
    names = ("MONAI", "medvol", "medvol, slack", "medvol, OpenVINO")
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
    """From nothing to the first window: imports bound it."""
    code = {
        "import torch": "import torch",
        "import monai.bundle": "import monai.bundle",
        "medvol.runners.Session": "from medvol.runners import Session; Session",
    }
    figures = {}
    for name, line in code.items():
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", "-c", line], check=True)
        figures[f"{name} (s)"] = time.perf_counter() - begin
    del options
    return {"work": "start", "figures": figures}


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
