"""torchrun with two gloo processes trains the network that one process trains, whole and finite."""

from __future__ import annotations

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
SMALL = ["--network_def#channels", "[4,8]", "--network_def#strides", "[2]", "--folds", "3",
         "--fold", "0", "--max_epochs", "2", "--val_interval", "2"]  # fmt: skip


def launch(tmp_path, prefix, task, out, *options) -> None:
    command = [*prefix, "-m", "monai.bundle", "run", "--config_file",
               str(BUNDLE.config_path(task)), "--output_dir", str(out), *options]  # fmt: skip
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_two_processes_train_the_same_network_to_finite_weights(tmp_path):
    data = write_blobs(tmp_path / "data", n=6)
    given = ["--dataset_dir", str(data), *SMALL]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
                "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]  # fmt: skip
    two = tmp_path / "two"
    launch(tmp_path, torchrun, "multi_gpu_train", two, *given, "--batch_size", "1")
    one = tmp_path / "one"
    launch(tmp_path, [sys.executable], "train", one, *given, "--batch_size", "2",
           "--loss#batch", "false")  # fmt: skip
    a, b = (load_checkpoint(path / "last.pt")["objects"] for path in (two, one))
    ours = {name.removeprefix("module."): value for name, value in a["network"].items()}
    assert ours.keys() == b["network"].keys()
    for name, value in ours.items():
        assert torch.isfinite(value).all()
        assert value.shape == b["network"][name].shape
    assert (two / "model.pt").is_file()
    assert len((two / "epochs.csv").read_text().splitlines()) == 3
