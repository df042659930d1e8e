"""Cost against number and size of cases: ``python -m tools.bench.scale [--cases 10 100 1000]``.

Many cases are tiny volumes, labelled by a tiny network unless a bundle is named, so that what is
left is the cost of a case: reading, planning, writing, recording. Sizes go up to 512x512x600 with
14 classes, where the predicted peak of memory is printed beside the measured one; ``--whole`` does
one size through ``medvol predict --max-ram 6GB`` and its dry run, phantom CT and bundle included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.bench.bundles import bench_bundle, phantom_ct

SIZES = ((64, 64, 64), (128, 128, 128), (256, 256, 160), (512, 512, 600))
CLASSES = 14


def main() -> None:
    """Measure both curves, or one size in this process when called by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="", help="default: a tiny network")
    parser.add_argument("--cases", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sizes")
    parser.add_argument("--one", type=int, nargs=3, help="one size, in this process")
    parser.add_argument("--whole", type=int, nargs=3, help="one size through medvol predict")
    parser.add_argument("--small", action="store_true", help="a narrow network for --one")
    parser.add_argument("--overlap", type=float, default=0.5, help="for --one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_size(tuple(options.one), options.small, options.overlap)))
        return
    if options.whole:
        print(json.dumps(whole(tuple(options.whole), options.small, options.overlap)))
        return
    rows = []
    for row in _rows(options):
        rows.append(row)
        if not options.json:
            print(row, flush=True)
    if options.json:
        print(json.dumps(rows))


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for count in options.cases:
        yield many_cases(options.bundle, count)
    for size in SIZES[: options.sizes]:
        command = [sys.executable, "-m", "tools.bench.scale", "--one", *map(str, size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        yield json.loads(done.stdout.splitlines()[-1])


def many_cases(bundle: str, count: int) -> dict[str, Any]:
    """Predict ``count`` small phantoms in one process."""
    from medvol.io import write_nifti
    from medvol.runners import PredictOptions, find_cases, run_local

    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            values = draw.normal(size=(32, 32, 32)).astype(np.float32)
            write_nifti(Path(folder, "in", f"c{index:05}.nii"), values, np.eye(4))
        chosen = bundle or str(
            bench_bundle(Path(folder), channels=(4, 8), residual_units=0, roi_size=(32, 32, 32))
        )
        options = PredictOptions(
            chosen, str(Path(folder, "out")), device="cpu", threads=1, trust_bundle=not bundle
        )
        cases = find_cases([Path(folder, "in")])
        wall, cpu = time.perf_counter(), time.process_time()
        records = run_local(cases, options)
        done = sum(record.status == "done" for record in records)
        return {
            "cases": count,
            "done": done,
            "wall_s_per_case": (time.perf_counter() - wall) / count,
            "cpu_s_per_case": (time.process_time() - cpu) / count,
            "peak_bytes": peak(),
        }


def whole(size: tuple[int, ...], is_small: bool, overlap: float) -> dict[str, Any]:
    """Estimate and run ``medvol predict`` on a phantom CT under a ceiling of 6 GB."""
    widths = {"channels": (4, 8), "residual_units": 0} if is_small else {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = bench_bundle(root, overlap=overlap, **widths)  # pyright: ignore[reportArgumentType]
        image = phantom_ct(root / "in" / "ct.nii.gz", size, (0.8, 0.8, 1.0))
        command = [
            sys.executable, "-W", "ignore", "-m", "medvol", "predict", str(bundle), str(image),
            "-o", str(root / "out"), "--trust-bundle", "--max-ram", "6GB", "--json",
        ]  # fmt: skip
        estimate = subprocess.run(
            [*command, "--dry-run"], capture_output=True, text=True, check=True
        )
        subprocess.run(command, capture_output=True, text=True, check=True)
        record = json.loads((root / "out" / "ct" / "prediction.json").read_text("utf-8"))
    plan = json.loads(estimate.stdout)["cases"][0]["plan"]
    return {
        "size": list(size),
        "windows": plan["windows"],
        "predicted_bytes": plan["ram_bytes"],
        "peak_bytes": record["peak_ram_bytes"],
        "predicted / peak": plan["ram_bytes"] / record["peak_ram_bytes"],
        "seconds": record["seconds"],
    }


def one_size(size: tuple[int, ...], is_small: bool, overlap: float) -> dict[str, Any]:
    """Label one phantom of a size at its own spacing; compare predicted and measured peak."""
    from monai.data.meta_tensor import MetaTensor
    from monai.networks.nets.unet import UNet

    from medvol.core.geometry import Geometry
    from medvol.inferers import Decision, PredictionPipeline, SlidingWindowInferer
    from tools.bench.inference import WINDOW, network

    torch.set_num_threads(1)
    net = UNet(3, 1, CLASSES, (4, 8), (2,)).eval() if is_small else network(CLASSES)
    inferer = SlidingWindowInferer(WINDOW, 1, overlap, "gaussian")
    pipeline = PredictionPipeline(inferer, Decision())
    source = Geometry((size[0], size[1], size[2]), np.eye(4))
    plan = pipeline.plan(source, size, net, 1, is_asked=True)
    assert plan is not None
    print(plan.line(), file=sys.stderr)
    image = MetaTensor(torch.zeros((1, *size)), affine=torch.eye(4, dtype=torch.float64))
    image[..., 0].normal_()
    image.meta |= {"spatial_shape": np.array(size), "original_affine": np.eye(4)}
    wall, cpu = time.perf_counter(), time.process_time()
    labels = pipeline.predict(image, net).labels
    infer_bytes = pipeline.base_bytes + plan.phases["infer"]
    return {
        "size": list(size),
        "windows": plan.windows,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "predicted_bytes": plan.ram_bytes,
        "predicted_infer_bytes": infer_bytes,
        "peak_bytes": peak(),
        "labels": int(labels.max()) + 1,
    }


def peak() -> int:
    """Largest resident size of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
