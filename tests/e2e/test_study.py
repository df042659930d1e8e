"""A study with real training, killed in the middle and started again by the same command."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from medvol.datasets.phantoms import write_phantom_classes

STUDY = {
    "title": "killed",
    "data": {"nodules": {"about": "phantoms"}},
    "folds": 3,
    "train": {"max_epochs": 3, "val_interval": 1},
    "arms": {
        "focal": {"bundle": "lung_nodule_ct_classification",
                  "values": {"labels": {"0": "clear", "1": "nodule"}}},
    },
    "resamples": 200,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_study_killed_in_its_training_goes_on_and_ends_in_report_and_card(tmp_path):
    images = write_phantom_classes(tmp_path / "data", 18, shape=(20, 20, 20))
    (tmp_path / "study.yaml").write_text(json.dumps(STUDY))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "medvol", "study", str(tmp_path / "study.yaml"),
               "--data", str(images), "-o", str(out), "--json"]  # fmt: skip
    log = tmp_path / "first.log"
    with log.open("w") as sink:
        first = subprocess.Popen(command, stdout=sink, stderr=sink)
    epochs = out / "runs/nodules/focal/seed0/fold0/train/epochs.csv"
    deadline = time.monotonic() + 1500
    while not epochs.is_file():
        assert first.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    rows = list(csv.DictReader(epochs.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    answer = json.loads(again.stdout.splitlines()[-1])
    for page in (answer["report"], answer["card"]):
        assert os.path.getsize(page) > 1000
    arms = list(csv.DictReader((out / "arms.csv").read_text().splitlines()))
    assert {row["arm"] for row in arms} == {"focal"}
    bundle = out / "runs/nodules/focal/seed0/fold0/lung_nodule_ct_classification"
    kept = json.loads((bundle / "configs" / "metadata.json").read_text())["medvol"]
    assert kept["weights_sha256"]
    third = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(third.stdout.splitlines()[-1])["steps"] == answer["steps"]
