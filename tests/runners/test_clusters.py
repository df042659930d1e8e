"""Ray gives the results of one process, and a lost actor costs one retry."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medvol.core.errors import ConfigError
from medvol.runners import find_cases, run_local, run_ray

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own making


def digests(out: str) -> dict[str, str]:
    return {
        p.parent.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(out).glob("*/seg.nii.gz"))
    }


BOTH = ("nifti", "probabilities")


def furthest_apart(out: str, other: str) -> float:
    """Largest difference between the probabilities of two runs over the same four cases."""
    places = sorted(Path(out).glob("*/probabilities.nii.gz"))
    assert len(places) == 4
    far = 0.0
    for path in places:
        beside = Path(other) / path.parent.name / path.name
        one, two = (np.asarray(nib.load(p).dataobj) for p in (path, beside))  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
        assert one.shape == (22, 25, 12, 3)
        assert one.std() > 1e-3
        far = max(far, float(np.abs(one - two).max()))
    return far


@pytest.fixture
def alone(options, images, tmp_path):
    asked = options(output=str(tmp_path / "alone"), threads=1, formats=BOTH)
    threads = torch.get_num_threads()
    run_local(find_cases([images]), asked)
    torch.set_num_threads(threads)
    return digests(asked.output)


@pytest.mark.slow
def test_two_ray_actors_give_the_answers_of_one_process(options, images, tmp_path, alone):
    pytest.importorskip("ray")
    asked = options(output=str(tmp_path / "ray"), threads=1, formats=BOTH)
    records = run_ray(find_cases([images]), asked, 2)
    assert [r.status for r in records] == ["done"] * 4
    assert digests(asked.output) == alone
    assert furthest_apart(asked.output, str(tmp_path / "alone")) <= 1e-5


@pytest.mark.slow
def test_ray_runs_the_case_of_a_killed_actor_again(options, make_image, tmp_path, caplog):
    pytest.importorskip("ray")
    for seed in range(8):
        make_image(tmp_path / "in" / f"c{seed}.nii.gz", seed)
    cases, killed = find_cases([tmp_path / "in"]), []

    def kill_one(record):
        import psutil

        for process in psutil.process_iter(["ppid", "cmdline"]) if not killed else ():
            if "ray::_Predictor" in " ".join(process.info["cmdline"] or ()) and not killed:
                killed.append(process.pid)
                process.kill()

    records = run_ray(cases, options(threads=1), 2, report=kill_one)
    assert killed
    assert "was lost" in caplog.text
    assert [r.status for r in records] == ["done"] * 8
    assert len(digests(options().output)) == 8


def test_a_ray_that_never_starts_is_refused_in_one_line(options, images, monkeypatch):
    from types import SimpleNamespace

    from medvol.runners import ray_actors

    calls = []

    def init(**arguments):
        calls.append(arguments)
        raise Exception("The current node timed out\nduring startup.")

    fake = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: None)
    monkeypatch.setattr(ray_actors, "_import_ray", lambda: fake)
    with pytest.raises(ConfigError, match="timed out during startup"):
        run_ray(find_cases([images]), options(), 2)
    assert len(calls) == ray_actors.STARTS


def test_the_runner_module_needs_no_cluster_software():
    code = "import medvol.runners as r, sys; r.run_ray; assert 'ray' not in sys.modules"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
