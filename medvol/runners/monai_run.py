"""One task of a bundle by ``python -m monai.bundle run``, in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medvol.core.errors import MedvolError

Epoch = Callable[[int], None]
_POLL_S = 1.0


def run_task(
    config: Path, options: Mapping[str, Any], log: Path, epoch: Epoch = lambda _: None
) -> None:
    """Run one config of a bundle to its end; its output goes to a log.

    Args:
        config: The task's JSON inside a bundle.
        options: Ids and values, as on MONAI's command line.
        log: File for everything that the run prints.
        epoch: Called with the number of the last finished epoch as it changes.

    Raises:
        MedvolError: With the run's last line, if it ends badly.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config)]
    for name, value in options.items():
        command += [f"--{name}", _text(value)]
    log.parent.mkdir(parents=True, exist_ok=True)
    table = Path(str(options.get("output_dir", log.parent))) / "epochs.csv"
    with log.open("w", encoding="utf-8") as sink:
        child = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - between steps no other thread runs
        )
        try:
            _follow(child, table, epoch)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if child.returncode:
        raise MedvolError(f"{config.parents[1].name} {config.stem}: {_last_line(log)} (see {log})")


def _follow(child: subprocess.Popen[bytes], table: Path, epoch: Epoch) -> None:
    seen = -1
    while child.poll() is None:
        time.sleep(_POLL_S if seen >= 0 else _POLL_S / 5)
        if table.is_file():
            last = table.read_text("utf-8").rsplit("\n", 2)[-2:-1] or [""]
            done = last[0].partition(",")[0]
            if done.isdigit() and int(done) != seen:
                seen = int(done)
                epoch(seen)


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> Callable[[], None] | None:
    """On Linux a killed parent takes its run along, lest it write on beside a resumed one."""
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def arrange() -> None:
        libc.prctl(1, by)
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines() or ["no message"]
    return lines[-1].removeprefix("medvol: ")


def _text(value: Any) -> str:
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value)
