"""One task of a bundle by ``python -m monai.bundle run``, in a process of its own."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from medvol.bundle.load import Bundle
from medvol.core.errors import MedvolError
from medvol.core.files import write_json

Log = Callable[[str], None]
#: Seconds that a run gets to end by itself after SIGTERM.
_GRACE_S = 10.0
#: Lines of the run worth showing to a person.
_SHOWN = re.compile(r" - (medvol\.\S+) - (INFO|WARNING|ERROR) - (.*)")
_EPOCH = re.compile(r"\bepoch (\d+)/(\d+)")


class KilledError(MedvolError):
    """A run was ended by a signal, so that it may be continued."""


def run_task(
    bundle: Bundle,
    task: str,
    overrides: Mapping[str, Any],
    log: Path,
    *,
    processes: int = 1,
    show: Log = lambda line: None,
    is_live: bool = False,
) -> None:
    """Run one task of a bundle to its end; all that it prints goes to a log.

    Nothing is imported from the current folder, a parent that is killed takes the run along (on
    Linux), and Ctrl-C ends it.

    Args:
        bundle: Whose task it is.
        task: Name of the config: ``train``, ``evaluate``, ``inference`` ...
        overrides: Ids and values. Text is passed as on MONAI's command line, anything else with
            its type.
        log: File that the output is appended to.
        processes: Processes of one training, by torchrun; 1 is none.
        show: Receives the lines of medvol's own log as they come.
        is_live: Draw the run's progress bar on this terminal instead.

    Raises:
        UnsafeFileError: If the bundle is neither shipped nor trusted.
        KilledError: If the run was ended by a signal.
        MedvolError: With the run's last line, if it ends badly in another way.
    """
    bundle.require_trusted(task)
    log.parent.mkdir(parents=True, exist_ok=True)
    words = command(bundle, task, overrides, processes=processes, values_file=_values_file(log))
    code, tail = _watch(words, log, show, is_live)
    if code:
        raise _error(code, tail, processes, log)


def command(
    bundle: Bundle,
    task: str,
    overrides: Mapping[str, Any],
    *,
    processes: int = 1,
    values_file: Path | None = None,
) -> list[str]:
    """The command line of a task, as a person could type it.

    Args:
        bundle: Whose task it is.
        task: Name of the config.
        overrides: Ids and values.
        processes: Processes by torchrun.
        values_file: File that is written with the values that are not text, if there are any.
    """
    words = [sys.executable]
    if processes > 1:
        words += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}",
                  "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]  # fmt: skip
    words += ["-m", "monai.bundle", "run", "--config_file", str(bundle.config_path(task))]
    typed = {key: str(v) for key, v in overrides.items() if isinstance(v, (str, Path))}
    others = {key: value for key, value in overrides.items() if key not in typed}
    if others and values_file is not None:
        write_json(values_file, others)
        words += ["--args_file", str(values_file)]
    return words + [word for name, value in typed.items() for word in (f"--{name}", value)]


def epochs_of(report: Callable[[int, int], None]) -> Log:
    """A receiver of lines that reports finished epochs and epochs in all."""

    def show(line: str) -> None:
        if found := _EPOCH.search(line):
            report(int(found[1]), int(found[2]))

    return show


def reason_of(code: int, tail: Sequence[str], processes: int = 1) -> str:
    """One line on why a run ended, from its exit code and its last lines."""
    if lost := _lost_process("\n".join(tail)) if processes > 1 else None:
        return f"process {lost[0]} of {processes} was killed by {lost[1]}"
    own = [line.removeprefix("medvol: ") for line in tail if line.startswith("medvol: ")]
    if own:
        return own[0] if processes > 1 else own[-1]
    if code < 0:
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"the run was killed by {signal.Signals(-code).name}{hint}"
    return tail[-1] if tail else f"the run ended with exit code {code} and no message"


def _error(code: int, tail: Sequence[str], processes: int, log: Path) -> MedvolError:
    reason = reason_of(code, tail, processes)
    if " was killed by " in reason:
        return KilledError(reason)
    is_own = any(line.startswith("medvol: ") for line in tail)
    return MedvolError(reason if is_own else f"{reason} (the whole log: {log})")


def _values_file(log: Path) -> Path:
    return log.with_name(f"{log.stem}_values.json")


def _lost_process(text: str) -> tuple[str, str] | None:
    """Rank and signal of the process that torchrun names as the first to be lost."""
    cause = text.partition("Root Cause")[2]
    rank = re.search(r"rank\s*:\s*(\d+)", cause)
    code = re.search(r"exitcode\s*:\s*-(\d+)", cause)
    return (rank[1], signal.Signals(int(code[1])).name) if rank and code else None


def _watch(words: list[str], log: Path, show: Log, is_live: bool) -> tuple[int, list[str]]:
    """Run a command with its output in a log; its exit code and last lines."""
    env = {**os.environ, "MEDVOL_RUN_BEGAN": str(time.time()), "PYTHONSAFEPATH": "1"}
    env |= {"MEDVOL_PROGRESS": "1"} if is_live else {}
    tail: deque[str] = deque(maxlen=200)
    with (
        log.open("ab") as sink,
        subprocess.Popen(
            words,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.PIPE,
            preexec_fn=_end_with_parent(),  # noqa: PLW1509 - no other thread runs yet
        ) as process,
    ):
        try:
            assert process.stderr is not None
            _copy(process.stderr, sink, tail, show, is_live)
            return process.wait(), list(tail)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a run that is still alive, since this process is ending or was interrupted."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _copy(source: IO[bytes], sink: IO[bytes], tail: deque[str], show: Log, is_live: bool) -> None:
    rest = b""
    while chunk := os.read(source.fileno(), 1 << 16):
        sink.write(chunk)
        sink.flush()
        if is_live and b"\r" in chunk:  # the bar redraws its line
            sys.stderr.buffer.write(chunk[chunk.index(b"\r") :])
            sys.stderr.flush()
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if text:
                tail.append(text)
            if (found := _SHOWN.search(text)) and not is_live:
                show(found[3])
    if rest.strip():
        tail.append(rest.decode("utf-8", "replace").strip())


def _end_with_parent() -> Callable[[], None] | None:
    """On Linux a killed parent takes its run along, which could write beside a resumed one."""
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def arrange() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return arrange
