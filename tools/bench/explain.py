"""Grad-CAM against MONAI's, batch 8: ``python -m tools.bench.explain [--rounds 3] [--json]``.

CPU time of this process, the two interleaved, median of the rounds; ratio under 1 is faster.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
from monai.networks.nets import densenet121, resnet18
from monai.visualize import GradCAM as MonaiGradCAM
from torch import Tensor, nn

from medvol.explain import GradCAM

CASES: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "DenseNet121 2D, 224x224": (
        lambda: densenet121(spatial_dims=2, in_channels=1, out_channels=2),
        "class_layers.relu",
        (8, 1, 224, 224),
    ),
    "ResNet18 3D, 64x64x64": (
        lambda: resnet18(spatial_dims=3, n_input_channels=1, num_classes=2),
        "layer4",
        (8, 1, 64, 64, 64),
    ),
}


def main() -> None:
    """Print one row per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, options.rounds) for name in CASES]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            "{case}: medvol {medvol_s:.3f} s, MONAI {monai_s:.3f} s, ratio {ratio:.2f}".format(
                **row
            )
        )


def measure(name: str, rounds: int) -> dict[str, float | str]:
    """Median CPU seconds of both for one network."""
    build, layer, shape = CASES[name]
    torch.manual_seed(0)
    network, x = build().eval(), torch.randn(shape)
    ours, theirs = GradCAM(network, layer), MonaiGradCAM(copy.deepcopy(network), layer)
    pairs = [
        (cpu_seconds(lambda: ours(x, 1)), cpu_seconds(lambda: theirs(x, class_idx=1)))
        for _ in range(rounds + 1)
    ][1:]
    own, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"case": name, "medvol_s": own, "monai_s": other, "ratio": own / other}


def cpu_seconds(work: Callable[[], Tensor]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
