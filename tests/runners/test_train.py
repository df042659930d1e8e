"""`medvol train`: folds as processes, what a person is told of them, and what a kill costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from medvol.bundle import fork
from medvol.cli.main import main
from medvol.core.errors import ConfigError
from medvol.runners import FoldRun, TrainOptions, run_training, sweep
from medvol.runners.train import check_training, command, fold_dir, run_fold, why
from tests.blobs import write_blobs

SMALL = ["--set", "network_def#networks#channels=[4,6,8]", "--set", "folds=3", "--set",
         "val_interval=1"]  # fmt: skip
BUNDLE = "hippocampus_mri_segmentation"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    previous = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def data(tmp_path):
    return write_blobs(tmp_path / "data", n=6)


def options(tmp_path, **given) -> TrainOptions:
    return TrainOptions(**{"bundle": BUNDLE, "data": str(tmp_path), "out": str(tmp_path), **given})


def train(data, out, *words) -> int:
    return main(["train", BUNDLE, "--data", str(data), "-o", str(out), *SMALL, *words])


def test_two_folds_are_trained_summed_up_and_kept_when_run_again(data, tmp_path, capsys):
    words = ["--folds", "0,1", "--set", "max_epochs=1", "--json"]
    assert train(data, tmp_path / "out", *words) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [(row["fold"], row["status"], row["epochs"]) for row in found["folds"]] == [
        (0, "done", 1), (1, "done", 1)]  # fmt: skip
    assert found["folds"][0]["metric"] == "val_mean_dice"
    best = [row["best"] for row in found["folds"]]
    assert found["mean"] == pytest.approx(sum(best) / 2)
    assert "epoch 1/1" in said.err
    for fold in (0, 1):
        names = {path.name for path in (tmp_path / "out" / f"fold_{fold}").iterdir()}
        assert {"last.pt", "model.pt", "epochs.csv", "epochs.png", "train.log", "run.json"} <= names
    assert train(data, tmp_path / "out", *words, "--resume") == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in again["folds"]] == ["kept", "kept"]
    assert again["mean"] == found["mean"]


def test_refusal_of_the_training_is_the_last_line_and_exit_2(data, tmp_path, capsys):
    facts = json.loads((data / "dataset.json").read_text())
    facts["labels"]["1"] = "left kidney"
    (data / "dataset.json").write_text(json.dumps(facts))
    assert train(data, tmp_path / "out", "--set", "max_epochs=1") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("medvol: fold 0: ")
    assert "left kidney" in last


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"folds": (7,)}, "fold 7 does not exist"),
        ({"bundle": "no_such_segmentation"}, "is not a bundle"),
        ({"data": "/nonexistent/scans"}, "/nonexistent/scans"),
        ({"settings": {"folds": "many"}}, "folds=many"),
        ({"settings": {"fold": "2"}}, "--folds"),
        ({"settings": {"output_dir": "elsewhere"}}, "--out"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        check_training(options(tmp_path, **given))


def test_folder_with_a_run_wants_to_be_resumed_or_left_alone(tmp_path):
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "last.pt").touch()
    with pytest.raises(ConfigError, match="--resume"):
        check_training(options(tmp_path))
    assert check_training(options(tmp_path, is_resumed=True)) == [0]


def test_a_fold_named_twice_is_trained_once(tmp_path):
    assert check_training(options(tmp_path, folds=(1, 0, 1))) == [1, 0]


def test_a_resumed_budget_gives_each_fold_what_a_straight_run_gives(tmp_path, monkeypatch):
    given = {}

    def run(asked, fold, say):
        given[fold] = asked.budget_s
        return FoldRun(fold, "", "kept" if fold < 3 else "done")

    monkeypatch.setattr("medvol.runners.train.run_fold", run)
    for fold in range(4):  # the last of them was cut off
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / "last.pt").touch()
    run_training(options(tmp_path, folds=None, is_resumed=True, budget_s=500.0))
    assert given == pytest.approx(dict.fromkeys(range(5), 100.0), abs=1)


@pytest.mark.parametrize(("workers", "share_s"), [(2, 100.0), (5, 300.0), (8, 300.0)])
def test_folds_side_by_side_share_the_budget(tmp_path, monkeypatch, workers, share_s):
    seen = []

    def start(asked, folds, *_):
        seen.append(asked.budget_s)
        return [FoldRun(fold, "") for fold in folds]

    monkeypatch.setattr("medvol.runners.train._ray_folds", start)
    sweep(options(tmp_path, folds=None, budget_s=300.0), "ray", workers, say=str)
    assert seen == [share_s]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_a_killed_command_takes_its_training_along(tmp_path):
    code = ("import sys, pathlib; from medvol.runners.train import _watch; "
            "_watch(['sleep', '90'], pathlib.Path('train.log'), 0.0, print)")  # fmt: skip
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    try:
        children = _awaited(lambda: _descendants(parent.pid))
    finally:
        parent.kill()
        parent.wait()
    assert children
    assert _awaited(lambda: not any(_lives(pid) for pid in children))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _awaited(ask):
    """What comes out true within half a minute."""
    end = time.time() + 30
    while not (found := ask()) and time.time() < end:
        time.sleep(0.05)
    return found


def test_strange_bundle_is_not_run_unless_trusted(tmp_path):
    folder = fork(BUNDLE, tmp_path / "strange_segmentation")
    with pytest.raises(ValueError, match="--trust-bundle"):
        check_training(options(tmp_path, bundle=str(folder)))
    assert check_training(options(tmp_path, bundle=str(folder), is_trusted=True)) == [0]


def test_command_is_what_a_person_could_type(tmp_path):
    one = command(options(tmp_path, budget_s=60.0, settings={"max_epochs": "3"}), 2)
    assert one[1:4] == ["-m", "monai.bundle", "run"]
    pairs = dict(zip(one[4::2], one[5::2], strict=True))
    assert pairs["--config_file"].endswith("train.json")
    assert (pairs["--fold"], pairs["--max_epochs"], pairs["--budget_s"]) == ("2", "3", "60.0")
    assert pairs["--output_dir"] == str(fold_dir(tmp_path, 2))
    two = command(options(tmp_path, processes=2), 0)
    assert "--nproc_per_node=2" in two
    assert any(word.endswith("multi_gpu_train.json") for word in two)


TORCHRUN = """
medvol: RuntimeError: Connection closed by peer
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Root Cause (first observed failure):
[0]:
  time      : 2026-11-25_10:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 123)
"""


@pytest.mark.parametrize(
    ("code", "tail", "processes", "said"),
    [
        (1, TORCHRUN.strip().splitlines(), 2, "process 1 of 2 was killed by SIGKILL"),
        (1, ["noise", "medvol: case 3: the loss is nan"], 1, "case 3: the loss is nan"),
        (-9, ["epoch 4"], 1, "killed by SIGKILL, for want of memory?; --resume continues"),
        (3, [], 1, "exit code 3"),
    ],
)
def test_every_end_has_one_line(code, tail, processes, said):
    assert said in why(code, tail, processes)
    assert "\n" not in why(code, tail, processes)


@pytest.mark.slow
def test_killed_rank_ends_the_job_with_one_line(data, tmp_path):
    settings = dict(word.split("=", 1) for word in SMALL[1::2]) | {"max_epochs": "500"}
    job = TrainOptions(BUNDLE, str(data), str(tmp_path / "out"), processes=2, settings=settings)
    lines: list[str] = []

    def kill_rank_one(line: str) -> None:
        lines.append(line)
        if "epoch 2/" not in line:
            return
        for pid in _descendants(os.getpid()):
            place = Path(f"/proc/{pid}/environ")
            if place.exists() and b"LOCAL_RANK=1" in place.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)

    began = time.time()
    run = run_fold(job, 0, kill_rank_one)
    assert run.status == "failed"
    assert run.reason == "process 1 of 2 was killed by SIGKILL; --resume continues"
    assert time.time() - began < 300
    assert run.epochs >= 2


def _descendants(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True,
                           check=False)  # fmt: skip
    children = [int(word) for word in found.stdout.split()]
    return children + [inner for child in children for inner in _descendants(child)]


@pytest.mark.slow
def test_budget_of_the_verb_is_kept_within_five_percent(data, tmp_path):
    words = [sys.executable, "-m", "medvol", "train", BUNDLE, "--data", str(data), "-o",
             str(tmp_path / "out"), *SMALL, "--budget", "120s"]  # fmt: skip
    began = time.time()
    subprocess.run(words, check=True, capture_output=True, cwd=tmp_path)
    run = json.loads((tmp_path / "out" / "fold_0" / "run.json").read_text())
    assert run["seconds"] == pytest.approx(120, rel=0.05)
    assert time.time() - began < 140


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["ray", "slurm"])
def test_folds_train_side_by_side_on_a_cluster(data, tmp_path, runner, capsys):
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[runner])
    address = ["--address", "local"] if runner == "slurm" else []
    words = ["--folds", "0,1", "--set", "max_epochs=1", "--json", "--runner", runner, *address]
    assert train(data, tmp_path / "out", *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["fold"], row["status"]) for row in found["folds"]] == [(0, "done"), (1, "done")]
