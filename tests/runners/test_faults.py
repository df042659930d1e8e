"""Killed at any moment and started again: nothing is lost, nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from medvol.core.errors import MissingInputError
from medvol.runners import find_cases, run_local, run_workers, workers


def digests(out: str) -> dict[str, str]:
    return {
        p.parent.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(out).glob("*/seg.nii.gz"))
    }


def records_at(out: str) -> dict[str, int]:
    """Each finished case and when its record was written."""
    found = {}
    for path in Path(out).glob("*/prediction.json"):
        assert json.loads(path.read_text())["status"] == "done"
        found[path.parent.name] = path.stat().st_mtime_ns
    return found


@pytest.mark.skipif(os.name != "posix", reason="kills processes by signal")
@pytest.mark.parametrize("kills", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_and_restarted_runs_end_with_the_same_outputs(tmp_path, options, make_image, kills):
    for seed in range(6):
        make_image(tmp_path / "in" / f"c{seed}.nii.gz", seed)
    cases, draw = find_cases([tmp_path / "in"]), random.Random(kills)
    whole, broken = (
        options(output=str(tmp_path / "whole")),
        options(output=str(tmp_path / "broken")),
    )
    start = time.perf_counter()
    run_local(cases, whole)
    length = time.perf_counter() - start
    seen: dict[str, int] = {}
    done = 0
    for _ in range(kills):
        if len(seen) == len(cases):  # all done: begin afresh, so that every kill can hit
            done += 1
            assert digests(broken.output) == digests(whole.output)
            broken, seen = options(output=str(tmp_path / f"broken{done}")), {}
        if (child := os.fork()) == 0:
            try:
                run_local(cases, broken)
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        now = records_at(broken.output)
        assert seen.items() <= now.items(), "a finished case was lost or done again"
        seen = now
    last = run_local(cases, broken)
    assert {r.case for r in last if r.is_resumed} == set(seen)
    assert [r.status for r in last] == ["done"] * len(cases)
    assert digests(broken.output) == digests(whole.output)
    assert not list(Path(broken.output).glob("*/.*")), "scratch files of killed runs remain"


def test_workers_give_the_results_of_one_process(options, images, tmp_path):
    cases = find_cases([images])
    alone, many = options(output=str(tmp_path / "a")), options(output=str(tmp_path / "b"))
    run_local(cases, alone)
    records = run_workers(cases, many, 2)
    assert [r.case for r in records] == [c.name for c in cases]
    assert digests(many.output) == digests(alone.output)


def test_a_killed_worker_loses_nothing(options, make_image, tmp_path, caplog):
    for seed in range(6):
        make_image(tmp_path / "in" / f"c{seed}.nii.gz", seed)
    cases, killed = find_cases([tmp_path / "in"]), []

    def kill_one(record):
        if not killed:
            victim = psutil.Process().children()[-1]
            killed.append(victim.pid)
            victim.kill()

    records = run_workers(cases, options(), 2, kill_one)
    assert killed
    assert [r.status for r in records] == ["done"] * 6
    assert len(digests(options().output)) == 6
    assert "died (killed" in caplog.text


def test_a_case_that_kills_every_worker_fails_alone(options, make_bundle, make_image, tmp_path):
    bundle = make_bundle(tmp_path / "b")
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    deadly = (
        "$lambda x: __import__('os').kill(__import__('os').getpid(), 9) if x.shape[1] == 9 else x"
    )
    config["preprocessing"]["transforms"].insert(
        2, {"_target_": "Lambdad", "keys": "image", "func": deadly}
    )
    path.write_text(json.dumps(config))
    for name, shape in (("a", (22, 25, 12)), ("b", (9, 25, 12)), ("c", (22, 25, 12))):
        make_image(tmp_path / "in" / f"{name}.nii.gz", 0, shape)
    records = run_workers(find_cases([tmp_path / "in"]), options(bundle=str(bundle)), 2)
    assert [r.status for r in records] == ["done", "failed", "done"]
    assert "died twice" in records[1].reason


def test_a_bundle_that_cannot_load_is_refused_once(options, images):
    with pytest.raises(MissingInputError, match="is not a bundle"):
        run_workers(find_cases([images]), options(bundle="nowhere"), 2)


def test_workers_keep_a_ceiling_together(options, images, monkeypatch):
    seen = []

    def pool(waiting, asked, *_):
        seen.append(asked)
        waiting.clear()
        return workers._PoolEnd()

    monkeypatch.setattr(workers, "_run_pool", pool)
    run_workers(find_cases([images]), options(max_ram=8 * 10**9), workers=4)
    run_workers(find_cases([images]), options(), workers=4)
    assert [one.max_ram for one in seen] == [2 * 10**9, None]
    assert seen[0].digest() == seen[1].digest()


@pytest.mark.skipif(os.name != "posix", reason="kills processes by signal")
def test_workers_end_with_a_parent_that_is_killed(options, images, tmp_path):
    code = (
        "import sys, time; from medvol.runners import PredictOptions, find_cases, run_workers\n"
        "if __name__ == '__main__':\n"
        "    run_workers(find_cases([sys.argv[1]]), PredictOptions(sys.argv[2], sys.argv[3],"
        " device='cpu', trust_bundle=True), 2, lambda record: time.sleep(60))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    words = [sys.executable, str(script), str(images), options().bundle, str(tmp_path / "out")]
    parent = psutil.Popen(words)
    try:
        deadline = time.monotonic() + 120
        while not records_at(str(tmp_path / "out")) and time.monotonic() < deadline:
            time.sleep(0.2)
        children = parent.children(recursive=True)
    finally:
        parent.kill()
        parent.wait()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
