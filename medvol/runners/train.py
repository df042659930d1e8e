"""Training from the command line: folds as processes of their own, watched and summed up."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from medvol.bundle import load
from medvol.core.errors import ConfigError, InputError, MedvolError
from medvol.core.files import write_json
from medvol.runners.cases import shard_of
from medvol.runners.monai_run import die_with_parent

#: Fold number that trains on every case; its folder is named so.
ALL_CASES = -1
#: The file in a fold's folder that says how its run ended.
RECORD = "run.json"
#: Lines of the training process that a person wants to see.
_SHOWN = re.compile(r" - (medvol\.\S+) - (INFO|WARNING|ERROR) - (.*)")
#: Options of a bundle that the verb gives itself.
_OWN = {"dataset_dir": "--data", "output_dir": "--output", "fold": "--folds", "resume": "--resume"}
_NO_METRIC = {"epoch", "steps", "loss", "lr", "seconds"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainOptions:
    """What to train and how.

    Attributes:
        bundle: Shipped name or folder.
        data: Data set.
        out: Folder that receives ``fold_<i>`` (or ``all_cases`` for fold -1).
        folds: Folds to train; the bundle's own number where ``None``.
        is_resumed: Continue runs that were cut off and skip those that ended.
        budget_s: Wall-clock seconds for all folds together; None follows the bundle's epochs.
        processes: Processes a fold, by torchrun; 1 is none.
        is_trusted: Run the code of a bundle that is not shipped.
        shard: ``i/n`` trains every n-th of these folds from the i-th; empty trains all.
        settings: Further options of the bundle, ``id`` to text.
    """

    bundle: str
    data: str
    out: str
    folds: tuple[int, ...] | None = (0,)
    is_resumed: bool = False
    budget_s: float | None = None
    processes: int = 1
    is_trusted: bool = False
    shard: str = ""
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FoldRun:
    """How the training of one fold ended.

    Attributes:
        fold: Its number.
        folder: Where its files are.
        status: ``done``, ``kept`` (had ended before) or ``failed``.
        reason: Why it failed, one line.
        epochs: Epochs trained in all.
        metric: Name of the validation's key metric.
        best: Its best value, nan without a validation.
        best_epoch: The epoch of that value.
        seconds: Wall-clock time of this run.
    """

    fold: int
    folder: str
    status: str = "done"
    reason: str = ""
    epochs: int = 0
    metric: str = ""
    best: float = math.nan
    best_epoch: int = 0
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """Plain values for JSON; an absent number is null."""
        return {**asdict(self), "best": self.best if math.isfinite(self.best) else None}


def run_training(options: TrainOptions, say: Say = lambda line: None) -> list[FoldRun]:
    """Train folds one after another, each as ``python -m monai.bundle run`` would.

    A fold that fails does not stop the others; their time is then theirs.

    Args:
        options: What and how.
        say: Receives progress, a line at a time.

    Raises:
        MedvolError: If the bundle, the data set or the output folder cannot be used.
    """
    folds = check_training(options)
    left, runs = options.budget_s, []
    for index, fold in enumerate(folds):
        share = None if left is None else max(1.0, left) / (len(folds) - index)
        is_begun, began = (fold_dir(options.out, fold) / "last.pt").exists(), time.time()
        runs.append(run_fold(replace(options, budget_s=share), fold, say))
        if left is not None and share is not None:  # of a fold that was begun before, all is spent
            is_spent = is_begun and runs[-1].status != "failed"
            left -= share if is_spent else time.time() - began
    return runs


def check_training(options: TrainOptions) -> list[int]:
    """Reject what cannot be trained, before anything is; returns the folds to train here.

    Raises:
        MissingInputError: If bundle or data set does not exist.
        ConfigError: If the bundle has no training, a fold does not exist, or a folder holds a run
            and is not to be resumed.
    """
    bundle = load(options.bundle, is_trusted=True if options.is_trusted else None)
    task = "multi_gpu_train" if options.processes > 1 else "train"
    if task not in bundle.tasks:
        raise ConfigError(f"{bundle.name}: has no {task}.json, so that it cannot be trained")
    if not Path(options.data).exists():
        raise InputError(f"{options.data}: no such data set")
    if taken := [name for name in _OWN if name in options.settings]:
        raise ConfigError(f"--set {taken[0]}: is told by {_OWN[taken[0]]}")
    told = options.settings.get("folds") or str(bundle.config(task).get("folds", 1))
    if not told.isdigit():
        raise ConfigError(f"--set folds={told}: is no number of folds")
    count = int(told)
    every = list(dict.fromkeys(range(count) if options.folds is None else options.folds))
    folds = shard_of(every, options.shard)
    if bad := [fold for fold in folds if not ALL_CASES <= fold < count]:
        raise ConfigError(f"fold {bad[0]} does not exist: {bundle.name} has folds 0 to {count - 1},"
                          " and -1 for a run on every case")  # fmt: skip
    for fold in folds:
        if not options.is_resumed and (fold_dir(options.out, fold) / "last.pt").exists():
            raise ConfigError(f"{fold_dir(options.out, fold)}: holds a run; pass --resume to "
                              "continue it, or another folder with -o")  # fmt: skip
    return folds


def fold_dir(out: str | os.PathLike[str], fold: int) -> Path:
    """The folder of one fold's run."""
    return Path(out) / ("all_cases" if fold == ALL_CASES else f"fold_{fold}")


def run_fold(options: TrainOptions, fold: int, say: Say = lambda line: None) -> FoldRun:
    """Train one fold in a process of its own (or several) and say how it ended."""
    folder = fold_dir(options.out, fold).resolve()
    record = folder / RECORD
    if options.is_resumed and record.is_file():
        found = json.loads(record.read_text("utf-8"))
        if found["status"] in ("done", "kept"):
            say(f"fold {fold}: had ended before, kept")
            return replace(_summed(FoldRun(fold, str(folder), "kept")), seconds=0.0)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    code, tail = _watch(command(options, fold), folder / "train.log", began, say)
    seconds = time.time() - began
    run = replace(_summed(FoldRun(fold, str(folder))), seconds=seconds)
    if code:
        run = replace(run, status="failed", reason=why(code, tail, options.processes))
    write_json(record, {**run.row(), "settings": options.settings})
    return run


def command(options: TrainOptions, fold: int) -> list[str]:
    """The command line that trains one fold, as a person could type it."""
    bundle = load(options.bundle, is_trusted=True if options.is_trusted else None)
    task = "multi_gpu_train" if options.processes > 1 else "train"
    words = [sys.executable]
    if options.processes > 1:
        words += ["-m", "torch.distributed.run", f"--nproc_per_node={options.processes}",
                  "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]  # fmt: skip
    words += ["-m", "monai.bundle", "run", "--config_file", str(bundle.config_path(task))]
    given = {
        "dataset_dir": str(Path(options.data).resolve()),
        "output_dir": str(fold_dir(options.out, fold).resolve()),
        "fold": str(fold),
        **options.settings,
    }
    if options.is_resumed:
        given["resume"] = "true"
    if options.budget_s is not None:
        given["budget_s"] = f"{options.budget_s:.1f}"
    return words + [word for name, value in given.items() for word in (f"--{name}", value)]


def why(code: int, tail: Sequence[str], processes: int = 1) -> str:
    """One line on why a training process ended, from its exit code and its last lines."""
    lost = _lost_process("\n".join(tail)) if processes > 1 else None
    if lost:
        return f"process {lost[0]} of {processes} was killed by {lost[1]}; --resume continues"
    said = [line.removeprefix("medvol: ") for line in tail if line.startswith("medvol: ")]
    if said:
        return said[0] if processes > 1 else said[-1]
    if code < 0:
        hint = ", for want of memory?" if -code == signal.SIGKILL else ""
        return f"training was killed by {signal.Signals(-code).name}{hint}; --resume continues"
    return tail[-1] if tail else f"training ended with exit code {code} and no message"


def _lost_process(text: str) -> tuple[str, str] | None:
    """Rank and signal of the process that torchrun names as the first to be lost."""
    cause = text.partition("Root Cause")[2]
    rank = re.search(r"rank\s*:\s*(\d+)", cause)
    code = re.search(r"exitcode\s*:\s*-(\d+)", cause)
    return (rank[1], signal.Signals(int(code[1])).name) if rank and code else None


def _watch(words: list[str], log: Path, began: float, say: Say) -> tuple[int, list[str]]:
    """Run a command with its output in a log; progress and warnings go to ``say`` too."""
    is_live = sys.stderr.isatty()
    env = {**os.environ, "MEDVOL_RUN_BEGAN": str(began)} | (
        {"MEDVOL_PROGRESS": "1"} if is_live else {}
    )
    tail: deque[str] = deque(maxlen=200)
    with (
        log.open("ab") as sink,
        subprocess.Popen(
            words,
            env=env,
            stdout=sink,
            stderr=subprocess.PIPE,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - no other thread runs yet
        ) as process,
    ):
        try:
            assert process.stderr is not None
            _pump(process.stderr, sink, tail, say, is_live)
            return process.wait(), list(tail)
        finally:
            if process.poll() is None:  # we are ending, by Ctrl-C or a signal
                process.terminate()


def _pump(source: IO[bytes], sink: IO[bytes], tail: deque[str], say: Say, is_live: bool) -> None:
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
                say(found[3])
    if rest.strip():
        tail.append(rest.decode("utf-8", "replace").strip())


def _summed(run: FoldRun) -> FoldRun:
    table = Path(run.folder) / "epochs.csv"
    if not table.is_file():
        return run
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    metric = next((name for name in rows[-1] if name not in _NO_METRIC), "") if rows else ""
    scored = [(float(row[metric]), -int(row["epoch"])) for row in rows if metric and row[metric]]
    best, epoch = max((pair for pair in scored if math.isfinite(pair[0])), default=(math.nan, 0))
    return replace(run, epochs=len(rows), metric=metric, best=best, best_epoch=-epoch)


def sweep(
    options: TrainOptions, workers: int = 2, address: str = "", say: Say = print
) -> list[FoldRun]:
    """Train folds side by side as Ray tasks, one fold each.

    Args:
        options: What and how; everything must be visible from every node.
        workers: Folds at a time; they share the budget's time in rounds of so many.
        address: Ray cluster to join; empty starts one here.
        say: Receives a line as each fold ends.

    Raises:
        MissingPackageError: If Ray is not installed.
    """
    folds = check_training(options)
    if options.budget_s is not None:
        options = replace(options, budget_s=options.budget_s / math.ceil(len(folds) / workers))
    runs = []
    for run in _ray_folds(options, folds, workers, address):
        say(line_of(run))
        runs.append(run)
    return runs


def _ray_folds(options: TrainOptions, folds: list[int], workers: int, address: str) -> Any:
    from medvol.runners.ray_actors import _import_ray

    ray = _import_ray()
    owns = not ray.is_initialized()
    if owns:
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(address=address or None, log_to_driver=False, include_dashboard=False,
                 num_cpus=None if address else workers)  # fmt: skip
    try:
        task = ray.remote(run_fold).options(num_cpus=1)
        jobs = [(fold, task.remote(options, fold)) for fold in folds]
        for fold, job in jobs:
            try:
                yield ray.get(job)
            except ray.exceptions.RayError as error:
                yield _lost(options, fold, f"its Ray task was lost ({type(error).__name__})")
    finally:
        if owns:
            ray.shutdown()


def _lost(options: TrainOptions, fold: int, reason: str) -> FoldRun:
    folder = str(fold_dir(options.out, fold).resolve())
    return _summed(FoldRun(fold, folder, "failed", f"{reason}; --resume continues"))


def line_of(run: FoldRun) -> str:
    """One line on a fold, for a person."""
    name = "all cases" if run.fold == ALL_CASES else f"fold {run.fold}"
    if run.status == "failed":
        return f"{name}: failed after {run.epochs} epochs: {run.reason}"
    best = f"best {run.metric} {run.best:.4f} at epoch {run.best_epoch}" if run.metric else ""
    took = time.strftime("%H:%M:%S", time.gmtime(run.seconds))
    return f"{name}: {run.epochs} epochs, {best or 'not validated'}, {took}; {run.folder}"


def require_success(runs: Sequence[FoldRun]) -> None:
    """Raise the first failure's reason.

    Raises:
        MedvolError: If a fold failed.
    """
    if failed := [run for run in runs if run.status == "failed"]:
        more = f" (and {len(failed) - 1} more folds)" if len(failed) > 1 else ""
        raise MedvolError(f"fold {failed[0].fold}: {failed[0].reason}{more}")
