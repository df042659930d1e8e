"""Kills and full disks while writing leave the old file or the whole new one: 100 of 100."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from medvol.core import OutputError
from medvol.io import (
    Algorithm,
    read_scan,
    read_sr_volumes,
    write_dicom_seg,
    write_dicom_sr,
    write_itk,
    write_nifti,
    write_png16,
)

GRID = np.diag([1.0, 2.0, 3.0, 1.0])
OLD, NEW = (np.random.default_rng(seed).integers(0, 9, (40, 40, 20)) for seed in (0, 1))
KINDS = ("v.nii", "v.nii.gz", "v.nrrd", "v.mha", "p.png")


def write(path, volume):
    if path.suffix == ".png":
        write_png16(path, volume[:, :, 0])
    elif path.suffix in (".nrrd", ".mha"):
        write_itk(path, volume, GRID)
    else:
        write_nifti(path, volume, GRID)


def holds(path, volume):
    array = read_scan(path).array[0]
    return np.array_equal(array, volume if array.ndim == 3 else volume[:, :, 0])


def in_child(work):
    """Run ``work`` in a forked child and return its process id; the child never comes back."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except OutputError:
            os._exit(2)
        except BaseException:  # noqa: BLE001 - a child must not run the parent's tests
            os._exit(99)
        os._exit(0)
    return child


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, kind):
    target = tmp_path / kind
    write(target, OLD)
    began = time.perf_counter()
    write(target, OLD)
    duration = time.perf_counter() - began
    survived = 0
    for share in np.linspace(0.02, 1.3, 10):
        child = in_child(lambda: write(target, NEW))
        time.sleep(duration * share)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert holds(target, OLD) or holds(target, NEW)
        survived += 1
        write(target, OLD)
    assert survived == 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, kind):
    target = tmp_path / kind
    write(target, NEW)
    size = target.stat().st_size
    write(target, OLD)
    survived = 0
    for limit in np.linspace(0, size - 1, 8).astype(int).tolist():

        def full(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            write(target, NEW)

        _, status = os.waitpid(in_child(full), 0)
        assert os.waitstatus_to_exitcode(status) == 2
        assert holds(target, OLD)
        assert [p.name for p in tmp_path.iterdir()] == [kind]
        survived += 1
    assert survived == 8


@pytest.mark.parametrize("fault", ["kill", "full"])
def test_dicom_results_are_whole_or_absent(dicom_series, tmp_path, phantom, fault):
    pytest.importorskip("highdicom")
    folder = dicom_series()
    scan = read_scan(folder)
    made_by = Algorithm("spleen_ct_segmentation", "0.1.0")
    common = {"source": folder, "algorithm": made_by}

    def seg(label_map):
        return write_dicom_seg(tmp_path / "o" / "seg.dcm", label_map, scan.affine,
                               labels={1: "spleen"}, **common)  # fmt: skip

    def sr():
        return write_dicom_sr(tmp_path / "o" / "sr.dcm", segmentation=tmp_path / "o" / "seg.dcm",
                              **common)  # fmt: skip

    old, new = phantom > 100, phantom > 300
    began = time.perf_counter()
    seg(old), sr()
    duration = time.perf_counter() - began
    before = read_sr_volumes(tmp_path / "o" / "sr.dcm")
    for number in range(5):

        def work(number=number):
            if fault == "full":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (number * 400,) * 2)
            seg(new) if number % 2 else sr()

        child = in_child(work)
        if fault == "kill":
            time.sleep(duration * (number + 1) / 6)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if fault == "full":
            assert os.waitstatus_to_exitcode(status) == 2
        array = read_scan(tmp_path / "o" / "seg.dcm").array[0]
        assert np.array_equal(array, old) or np.array_equal(array, new)
        assert read_sr_volumes(tmp_path / "o" / "sr.dcm") == before
        seg(old)


def test_a_full_disk_is_exit_2_with_one_line(dicom_series, tmp_path):
    pytest.importorskip("dicomanonymizer")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200));"
        "from medvol.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, "data", "deid", str(dicom_series()), "-o",
         str(tmp_path / "out")], capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "cannot be written" in done.stderr
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
