"""Twenty SIGKILLs at random moments cost time, never a bit of the result."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from medvol.bundle import fork
from medvol.engines import load_checkpoint
from medvol.networks import load_weights
from tests.blobs import write_blobs
from tests.e2e.test_bundle_run import SMALL, run, same

KILLS, EPOCHS = 20, 8
SCHEDULE = {"lr_scheduler#t_total": 16, "lr_scheduler#warmup_steps": 1, "patience": 99}


def in_child(bundle: Path, data: Path, out: Path) -> int:
    """Start (or continue) a training in a child process; the parent's imports are its own."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        run("train", bundle, dataset_dir=str(data), output_dir=str(out), resume=True,
            max_epochs=EPOCHS, **{**SMALL, **SCHEDULE})  # fmt: skip
        code = 0
    finally:
        os._exit(code)


def cpu_seconds(process: int) -> float:
    """What a child has used of a processor: unlike the clock, deaf to other programs."""
    try:
        used = psutil.Process(process).cpu_times()
    except psutil.NoSuchProcess:
        return float("inf")
    return used.user + used.system


def kill_after(child: int, seconds: float) -> None:
    """SIGKILL once the child has used that much of a processor, unless it has ended by then."""
    while cpu_seconds(child) < seconds and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)


def what_counts(out: Path) -> dict:
    """Everything that a run leaves, without the time that it took."""
    last = load_checkpoint(out / "last.pt")
    with (out / "epochs.csv").open(newline="") as handle:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(handle)]
    best = load_weights(out / "model.pt")
    return {"last": {k: last[k] for k in last if k != "extras"}, "rows": rows, "best": best}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_run_equals_the_straight_run_bit_for_bit(tmp_path):
    bundle = fork("hippocampus_mri_segmentation", tmp_path / "fork" / "small_segmentation")
    data = write_blobs(tmp_path / "data", n=6)
    _, status, used = os.wait4(in_child(bundle, data, tmp_path / "straight"), 0)
    assert status == 0
    want = what_counts(tmp_path / "straight")
    chance, kills, ends, cut = random.Random(0), 0, 0, tmp_path / "cut"
    epochs_at_kill = []
    while kills < KILLS or not ends:
        child = in_child(bundle, data, cut)
        if kills < KILLS:
            kill_after(child, chance.uniform(0.0, 1.0) * (used.ru_utime + used.ru_stime))
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            kills += 1
            last = cut / "last.pt"
            epochs_at_kill.append(load_checkpoint(last)["epoch"] if last.exists() else 0)
            continue
        assert status == 0
        assert same(what_counts(cut), want)
        shutil.rmtree(cut)
        ends += 1
    assert kills == KILLS
    assert len(set(epochs_at_kill)) > 3, f"the kills met few moments: {epochs_at_kill}"
