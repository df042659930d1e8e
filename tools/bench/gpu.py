"""The same on a GPU: ``python -m tools.bench.gpu [--json]``; needs CUDA.

512x512x400, 14 classes, windows of 96^3: time and peak memory against MONAI, stitched on the GPU
and on the CPU, with the card's name. nnU-Net's predictor is measured where nnunetv2 is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import SlidingWindowInferer as MonaiInferer

from medvol.inferers import Decision, PredictionPipeline, SlidingWindowInferer
from tools.bench.inference import WINDOW, network

CLASSES = 14


def main() -> None:
    """Measure every contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    rows = [
        {"case": name, **measured(run, options.rounds)} for name, run in contenders(options).items()
    ]
    report = {"card": torch.cuda.get_device_name(), "size": list(options.size), "rows": rows}
    print(json.dumps(report) if options.json else "\n".join(map(str, [report["card"], *rows])))


def contenders(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """MONAI with AMP, medvol in its three placements."""
    net = network(CLASSES).cuda()
    plain = torch.randn(1, 1, *options.size)
    prepared = MetaTensor(plain[0], affine=torch.eye(4, dtype=torch.float64))
    prepared.meta |= {"spatial_shape": np.array(options.size), "original_affine": np.eye(4)}
    common: dict[str, Any] = {
        "roi_size": WINDOW, "sw_batch_size": options.batch, "overlap": 0.5, "mode": "gaussian",
        "sw_device": "cuda",
    }  # fmt: skip

    def monai(device: str) -> Any:
        with torch.autocast("cuda"):
            return MonaiInferer(**common, device=device)(plain, net)

    def ours(device: str) -> Any:
        return SlidingWindowInferer(**common, device=device, amp=True)(plain, net)

    def labels() -> Any:
        return PredictionPipeline(SlidingWindowInferer(**common), Decision()).predict(prepared, net)

    return {
        "MONAI, stitched on the GPU": lambda: monai("cuda"),
        "medvol, stitched on the GPU": lambda: ours("cuda"),
        "MONAI, stitched on the CPU": lambda: monai("cpu"),
        "medvol, stitched on the CPU": lambda: ours("cpu"),
        "medvol, labels only": labels,
    }


def measured(run: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Best wall time and peak memory; running out of memory is a result too."""
    best = float("inf")
    torch.cuda.reset_peak_memory_stats()
    try:
        with torch.no_grad():
            for _ in range(rounds + 1):
                torch.cuda.synchronize()
                start = time.perf_counter()
                run()
                torch.cuda.synchronize()
                best = min(best, time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return {"wall_s": float("nan"), "peak_gib": float("nan")}
    return {"wall_s": best, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


if __name__ == "__main__":
    main()
