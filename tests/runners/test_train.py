"""`medvol train`: folds as processes, what a person is told of them, and what a kill costs."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medvol.bundle import fork
from medvol.cli.main import main
from medvol.core.errors import ConfigError
from medvol.runners import FoldRun, TrainOptions, run_training, sweep
from medvol.runners.train import check_training, next_step, overrides_of, run_fold
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
    return TrainOptions(
        **{"bundle": BUNDLE, "data": str(tmp_path), "output": str(tmp_path), **given}
    )


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
        ({"settings": {"output_dir": "elsewhere"}}, "--output"),
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


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_train_every_fold_once(tmp_path, count):
    asked = [options(tmp_path, folds=None, shard=f"{i}/{count}") for i in range(1, count + 1)]
    found = [fold for one in asked for fold in check_training(one)]
    assert sorted(found) == [0, 1, 2, 3, 4]


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
    sweep(options(tmp_path, folds=None, budget_s=300.0), workers, show=str)
    assert seen == [share_s]


def test_untrusted_bundle_is_not_run_unless_trusted(tmp_path):
    folder = fork(BUNDLE, tmp_path / "own_segmentation")
    with pytest.raises(ValueError, match="--trust-bundle"):
        check_training(options(tmp_path, bundle=str(folder)))
    assert check_training(options(tmp_path, bundle=str(folder), trust_bundle=True)) == [0]


def test_a_fold_is_given_its_folder_its_settings_and_its_share_of_time(tmp_path):
    given = overrides_of(options(tmp_path, budget_s=60.0, settings={"max_epochs": "3"}), 2)
    assert (given["fold"], given["max_epochs"], given["budget_s"]) == ("2", "3", "60.0")
    assert given["output_dir"] == str(tmp_path / "fold_2")
    assert "resume" not in given
    assert overrides_of(options(tmp_path, is_resumed=True), 2)["resume"] == "true"


@pytest.fixture
def small(tmp_path):
    """A bundle with a network and a schedule that train in seconds."""
    folder = fork(BUNDLE, tmp_path / "my own" / "small_segmentation")
    network = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3,
               "channels": [4, 8], "strides": [2]}  # fmt: skip
    for task in ("train", "evaluate", "inference"):
        path = folder / "configs" / f"{task}.json"
        config = json.loads(path.read_text())
        changes = {"folds": 2, "val_interval": 1, "max_epochs": 1, "network_def": network}
        config |= {name: value for name, value in changes.items() if name in config}
        path.write_text(json.dumps(config))
    return folder


def test_folds_that_are_all_trained_end_with_the_command_that_joins_them(
    small, data, tmp_path, capsys
):
    words = [str(small), "--data", str(data), "-o", str(tmp_path / "runs"), "--trust-bundle"]
    assert main(["train", *words, "--folds", "0"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert "--ensemble" in line
    assert "fold_0/model.pt" in line
    assert main(["train", *words, "--folds", "all", "--resume"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    typed = shlex.split(line.removeprefix("next: "))
    assert typed[:2] == ["medvol", "select"]
    assert main(typed[1:]) == 0
    made = Path(typed[typed.index("-o") + 1])
    assert (made / "models" / "model.pt").is_file()


def test_a_failed_fold_has_no_next_step(tmp_path):
    assert next_step(options(tmp_path), [FoldRun(0, str(tmp_path), "failed")]) == ""


@pytest.mark.skipif(os.name != "posix", reason="interrupts by signal")
def test_ctrl_c_says_what_is_kept_and_how_to_continue(data, tmp_path):
    words = [sys.executable, "-m", "medvol", "train", BUNDLE, "--data", str(data), "-o",
             str(tmp_path / "out"), *SMALL, "--set", "max_epochs=500"]  # fmt: skip
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as run:
        assert run.stderr is not None
        lines = []
        for line in run.stderr:
            lines.append(line)
            if "epoch 2/" in line:
                run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
    assert "Traceback" not in "".join(lines)
    assert str(tmp_path / "out" / "fold_0") in lines[-1]
    assert "--resume continues" in lines[-1]
    assert (tmp_path / "out" / "fold_0" / "last.pt").is_file()


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
def test_folds_train_side_by_side_on_ray(data, tmp_path, capsys):
    pytest.importorskip("ray")
    words = ["--folds", "0,1", "--set", "max_epochs=1", "--json", "--runner", "ray"]
    assert train(data, tmp_path / "out", *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["fold"], row["status"]) for row in found["folds"]] == [(0, "done"), (1, "done")]
