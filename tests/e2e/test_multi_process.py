"""torchrun with two gloo processes trains what one process with twice the batch trains."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medvol.bundle import load
from medvol.engines import load_checkpoint
from tests.blobs import write_blobs

BUNDLE = load("hippocampus_mri_segmentation")
SMALL = ["--network_def#networks#channels", "[4,6,8]", "--folds", "3",
         "--fold", "0", "--max_epochs", "4", "--val_interval", "2"]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
            "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]  # fmt: skip


def launch(tmp_path, prefix, task, out, *options) -> None:
    command = [*prefix, "-m", "monai.bundle", "run", "--config_file",
               str(BUNDLE.config_path(task)), "--output_dir", str(out), *options]  # fmt: skip
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def curve(out: Path, column: str) -> list[float]:
    with (out / "epochs.csv").open(newline="") as handle:
        return [float(row[column]) for row in csv.DictReader(handle) if row[column]]


@pytest.mark.slow
def test_two_processes_follow_the_loss_curve_of_one_with_twice_the_batch(tmp_path):
    data = write_blobs(tmp_path / "data", n=6)
    given = ["--dataset_dir", str(data), *SMALL]
    two, one = tmp_path / "two", tmp_path / "one"
    launch(tmp_path, TORCHRUN, "multi_gpu_train", two, *given, "--batch_size", "1")
    launch(tmp_path, [sys.executable], "train", one, *given, "--batch_size", "2")
    # Batch Dice, gradients and the reported loss are those of the whole batch; only the order of
    # sums differs.
    assert curve(two, "loss") == pytest.approx(curve(one, "loss"), rel=1e-4)
    assert curve(two, "val_mean_dice") == pytest.approx(curve(one, "val_mean_dice"), abs=0.01)
    a, b = (load_checkpoint(path / "last.pt")["objects"]["network"] for path in (two, one))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-2, atol=1e-3)
    # One checkpoint format: what two processes began, one continues.
    launch(tmp_path, [sys.executable], "train", two, *given, "--batch_size", "2", "--resume",
           "true", "--max_epochs", "5")  # fmt: skip
    assert len(curve(two, "loss")) == 5
