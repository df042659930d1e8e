"""A task in a process of its own: what it is given, how it ends, and that it never outlives us."""

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

from medvol.bundle import KilledError, epochs_of, fork, load, run_task
from medvol.bundle.run import command, reason_of
from medvol.core.errors import MedvolError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def make(tmp_path):
    """A bundle whose task ``check`` is one step of a config."""

    def make(step):
        folder = fork("hippocampus_mri_segmentation", tmp_path / "small_segmentation")
        config = {
            "bundle_root": ".",
            "values": None,
            "text": "",
            "place": "",
            "run": [step],
        }
        (folder / "configs" / "check.json").write_text(json.dumps(config))
        return load(folder, is_trusted=True)

    return make


def test_values_keep_their_types_and_text_is_read_as_typed(make, tmp_path):
    bundle = make({"_target_": "medvol.core.files.write_json", "target": "@place",
                   "value": ["@values", "@text"]})  # fmt: skip
    values = [{"image": "a, b.nii", "n": 1.5, "is": True, "no": None}, "3"]
    given = {"values": values, "text": "[1,2]", "place": tmp_path / "seen.json"}
    run_task(bundle, "check", given, tmp_path / "log" / "check.log")
    assert json.loads((tmp_path / "seen.json").read_text()) == [values, [1, 2]]


def test_nothing_is_imported_from_the_current_folder(make, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    for name in ("nibabel", "secrets"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('imported from here')")
    monkeypatch.chdir(tmp_path / "here")
    run_task(make("$__import__('nibabel').__version__"), "check", {}, tmp_path / "check.log")


def test_the_last_line_of_the_log_is_the_error(make, tmp_path):
    with pytest.raises(MedvolError, match="abacus"):
        run_task(make("$int('abacus')"), "check", {}, tmp_path / "check.log")
    text = (tmp_path / "check.log").read_text()
    assert "Traceback" in text
    assert "abacus" in text.splitlines()[-1]


def test_a_killed_run_is_told_apart(make, tmp_path):
    with pytest.raises(KilledError, match="SIGKILL"):
        run_task(
            make("$__import__('os').kill(__import__('os').getpid(), 9)"),
            "check",
            {},
            tmp_path / "check.log",
        )


def test_command_is_what_a_person_could_type(make, tmp_path):
    bundle = make("0")
    one = command(bundle, "train", {"fold": "2", "output_dir": tmp_path})
    assert one[1:4] == ["-m", "monai.bundle", "run"]
    pairs = dict(zip(one[4::2], one[5::2], strict=True))
    assert pairs == {"--config_file": str(bundle.config_path("train")), "--fold": "2",
                     "--output_dir": str(tmp_path)}  # fmt: skip
    assert "--nproc_per_node=2" in command(bundle, "multi_gpu_train", {}, processes=2)


def test_epochs_are_read_from_lines():
    seen = []
    show = epochs_of(lambda done, total: seen.append((done, total)))
    for line in ("train epoch 3/40 loss=0.1 left=00:10", "resumed last.pt after epoch 3", "a/b"):
        show(line)
    assert seen == [(3, 40)]


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
    ("code", "tail", "processes", "reason"),
    [
        (1, TORCHRUN.strip().splitlines(), 2, "process 1 of 2 was killed by SIGKILL"),
        (1, ["noise", "medvol: case 3: the loss is nan"], 1, "case 3: the loss is nan"),
        (-9, ["epoch 4"], 1, "the run was killed by SIGKILL (out of memory?)"),
        (3, [], 1, "exit code 3"),
    ],
)
def test_every_end_has_one_line(code, tail, processes, reason):
    assert reason in reason_of(code, tail, processes)
    assert "\n" not in reason_of(code, tail, processes)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_parent_that_ends_takes_its_run_along(tmp_path, by):
    code = ("import pathlib; from medvol.bundle.run import _watch; "
            "_watch(['sleep', '90'], pathlib.Path('train.log'), print, False)")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code]
    parent = psutil.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    children = []
    try:
        deadline = time.monotonic() + 60
        while not children and time.monotonic() < deadline:
            time.sleep(0.05)
            children = parent.children()
        parent.send_signal(by)
        parent.wait(30)
    finally:
        if parent.is_running():
            parent.kill()
    assert children
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
