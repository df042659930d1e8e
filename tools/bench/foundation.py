"""Start-up, training step and whole-set inference: ``python -m tools.bench.foundation [--json]``.

Peer and us run interleaved in one process, or as processes in turn; the ratio of medians is
printed. ``--dataset`` is an MSD folder for the inference row.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUNDLE = "hippocampus_mri_segmentation"


def main() -> None:
    """Measure the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["", *ROWS], default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--cases", type=int, default=52)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row(options) for name, row in ROWS.items() if options.only in ("", name)]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("; ".join(f"{key} {value}" for key, value in row.items()))


def start_up(options: argparse.Namespace) -> dict[str, Any]:
    """``medvol --help`` against importing MONAI, wall time of whole processes."""
    ours = [sys.executable, "-m", "medvol", "--help"]
    peer = [sys.executable, "-c", "import monai"]
    found = _interleaved({"ours": _process(ours), "peer": _process(peer)}, options.rounds)
    return {
        "row": "start-up",
        "medvol --help s": found["ours"],
        "import monai s": found["peer"],
        "ratio": round(found["ours"] / found["peer"], 4),
    }


def training_step(options: argparse.Namespace) -> dict[str, Any]:
    """One step of the bundle's trainer, handlers and data included, against a bare MONAI loop.

    Both train MONAI's DynUNet of one configuration on the same cached sample.
    """
    import torch

    torch.set_num_threads(options.threads)
    network = _dynunet()
    batch = {
        "image": torch.randn(2, 1, 40, 56, 40),
        "label": torch.randint(0, 3, (2, 1, 40, 56, 40)),
    }
    ours = _trainer_step(network, batch)
    found = _interleaved(
        {"ours": ours, "peer": _bare_step(_dynunet(), batch)}, options.rounds, time.process_time
    )
    wait = _loader_wait()
    return {
        "row": "training step",
        "ours s": found["ours"],
        "bare MONAI DynUNet s": found["peer"],
        "ratio": round(found["ours"] / found["peer"], 3),
        "one augmented sample s": wait,
        "two samples over a step": round(2 * wait / found["ours"], 3),
    }


def inference(options: argparse.Namespace) -> dict[str, Any]:
    """``monai.bundle run`` of the inference config over many volumes, start included."""
    if options.dataset is None:
        return {"row": "inference", "skipped": "pass --dataset, an MSD folder"}
    from medvol.bundle import load

    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        images.mkdir()
        files = sorted((options.dataset / "imagesTr").glob("[!.]*.nii.gz"))[: options.cases]
        for path in files:
            (images / path.name).symlink_to(path.resolve())
        command = [
            sys.executable, "-m", "monai.bundle", "run", "--config_file",
            str(load(BUNDLE).config_path("inference")), "--dataset_dir", str(images),
            "--output_dir", str(Path(scratch) / "out"),
        ]  # fmt: skip
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        wall = time.perf_counter() - began
        written = len(list((Path(scratch) / "out").rglob("*.nii.gz")))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {
        "row": "inference", "volumes": written, "wall s": round(wall, 1),
        "peak GiB": round(peak, 2), "cores": os.cpu_count(),
    }  # fmt: skip


ROWS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "start-up": start_up,
    "training-step": training_step,
    "inference": inference,
}


def _interleaved(
    cases: dict[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    for case in cases.values():
        case()
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            began = clock()
            case()
            taken[name].append(clock() - began)
    return {name: round(statistics.median(values), 4) for name, values in taken.items()}


def _process(command: list[str]) -> Callable[[], Any]:
    return lambda: subprocess.run(command, check=True, capture_output=True)


def _dynunet() -> Any:
    import torch
    from monai.networks.nets.dynunet import DynUNet

    torch.manual_seed(0)
    return DynUNet(
        3, 1, 3, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[16, 32, 64, 128],
        norm_name=("INSTANCE", {"affine": True}),
    )  # fmt: skip


def _loss() -> Any:
    from monai.losses.dice import DiceCELoss

    return DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)


def _bare_step(network: Any, batch: dict[str, Any]) -> Callable[[], Any]:
    import torch

    loss, optimizer = _loss(), torch.optim.AdamW(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(network(batch["image"]), batch["label"]).backward()
        optimizer.step()

    return step


def _trainer_step(network: Any, batch: dict[str, Any]) -> Callable[[], Any]:
    import torch
    from monai.engines.trainer import SupervisedTrainer

    from medvol.engines import MovingAverage, ProgressBar, StopOnNonFinite, plain_batch

    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=10**6, epoch_length=1, network=network,
        train_data_loader=[batch], optimizer=torch.optim.AdamW(network.parameters()),
        loss_function=_loss(), prepare_batch=plain_batch, decollate=False,
        train_handlers=[StopOnNonFinite(), MovingAverage(network), ProgressBar("bench")],
    )  # fmt: skip

    def step() -> None:
        trainer.state.max_epochs = trainer.state.epoch + 1
        trainer.run()

    return step


def _loader_wait() -> float:
    import torch
    from monai.data.meta_tensor import MetaTensor

    from medvol.bundle import load
    from medvol.engines import CaseDataset

    case = {
        "image": MetaTensor(torch.randn(1, 36, 50, 36), affine=torch.eye(4)),
        "label": MetaTensor(torch.randint(0, 3, (1, 36, 50, 36)).float(), affine=torch.eye(4)),
    }
    parser = load(BUNDLE).parser("train")
    augmentation = parser.get_parsed_content("train#augmentation")
    dataset = CaseDataset([case], dict, augmentation)
    for token in range(3):
        dataset[token]
    began = time.process_time()
    for token in range(20):
        dataset[token]
    return round((time.process_time() - began) / 20, 4)


if __name__ == "__main__":
    main()
