"""Training from the command line: folds as processes of their own, watched and summed up."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from medvol.bundle import Bundle, KilledError, load, run_task
from medvol.core.errors import ConfigError, MedvolError, MissingInputError
from medvol.core.files import CsvRows, write_json
from medvol.runners.cases import shard_of

#: Fold number that trains on every case; its folder is named so.
ALL_CASES = -1
#: The file in a fold's folder with how its run ended.
RECORD = "run.json"
#: Options of a bundle that the verb sets itself.
_OWN = {"dataset_dir": "--data", "output_dir": "--output", "fold": "--folds", "resume": "--resume"}
#: Options that decide which cases a fold holds out, and so what ``medvol select`` can join.
_OF_SPLIT = {"folds", "split_seed"}
_NO_METRIC = {"epoch", "steps", "loss", "lr", "seconds"}
Log = Callable[[str], None]


@dataclass(frozen=True)
class TrainOptions:
    """What to train and how.

    Attributes:
        bundle: Shipped name or folder.
        data: Data set.
        output: Folder that receives ``fold_<i>`` (or ``all_cases`` for fold -1).
        folds: Folds to train; the bundle's own number where ``None``.
        is_resumed: Continue runs that were cut off and skip those that ended.
        budget_s: Wall-clock seconds for all folds together; None follows the bundle's epochs.
        processes: Processes a fold, by torchrun; 1 is none.
        trust_bundle: Run the code of a bundle that is not shipped.
        shard: ``i/n`` trains every n-th of these folds from the i-th; empty trains all.
        settings: Further options of the bundle, ``id`` to text.
    """

    bundle: str
    data: str
    output: str
    folds: tuple[int, ...] | None = (0,)
    is_resumed: bool = False
    budget_s: float | None = None
    processes: int = 1
    trust_bundle: bool = False
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


def run_training(options: TrainOptions, show: Log = lambda line: None) -> list[FoldRun]:
    """Train folds one after another, each as ``python -m monai.bundle run`` would.

    A fold that fails does not stop the others, which then have its time.

    Args:
        options: What and how.
        show: Receives lines on progress.

    Raises:
        MedvolError: If the bundle, the data set or the output folder cannot be used.
    """
    folds = check_training(options)
    left, runs = options.budget_s, []
    for index, fold in enumerate(folds):
        share = None if left is None else max(1.0, left) / (len(folds) - index)
        is_begun, began = (fold_dir(options.output, fold) / "last.pt").exists(), time.time()
        runs.append(run_fold(replace(options, budget_s=share), fold, show))
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
    bundle, task = _bundle(options), task_of(options)
    if task not in bundle.tasks:
        raise ConfigError(f"{bundle.name}: has no {task}.json, so that it cannot be trained")
    if not Path(options.data).exists():
        raise MissingInputError(f"{options.data}: does not exist; name a data set's folder or file")
    if taken := [name for name in _OWN if name in options.settings]:
        raise ConfigError(f"--set {taken[0]}: use {_OWN[taken[0]]} for it")
    given = options.settings.get("folds") or str(bundle.config(task).get("folds", 1))
    if not given.isdigit():
        raise ConfigError(f"--set folds={given}: is not a number of folds")
    number = int(given)
    every = list(dict.fromkeys(range(number) if options.folds is None else options.folds))
    folds = shard_of(every, options.shard)
    if bad := [fold for fold in folds if not ALL_CASES <= fold < number]:
        raise ConfigError(
            f"fold {bad[0]} does not exist: {bundle.name} has folds 0 to {number - 1}, and -1 for "
            "a run on every case"
        )
    for fold in folds:
        if not options.is_resumed and (fold_dir(options.output, fold) / "last.pt").exists():
            raise ConfigError(f"{fold_dir(options.output, fold)}: holds a run; pass --resume to "
                              "continue it, or another folder with -o")  # fmt: skip
    return folds


def fold_dir(out: str | os.PathLike[str], fold: int) -> Path:
    """The folder of one fold's run."""
    return Path(out) / ("all_cases" if fold == ALL_CASES else f"fold_{fold}")


def run_fold(options: TrainOptions, fold: int, show: Log = lambda line: None) -> FoldRun:
    """Train one fold in a process of its own (or several); how it ended.

    Raises:
        KeyboardInterrupt: After Ctrl-C, with a line on what is kept and how to continue.
    """
    folder = fold_dir(options.output, fold).resolve()
    record = folder / RECORD
    if options.is_resumed and record.is_file():
        found = json.loads(record.read_text("utf-8"))
        if found["status"] in ("done", "kept"):
            show(f"fold {fold}: ended before, kept")
            return replace(_summed(FoldRun(fold, str(folder), "kept")), seconds=0.0)
    bundle, began, reason = _bundle(options), time.time(), ""
    try:
        run_task(
            bundle, task_of(options), overrides_of(options, fold), folder / "train.log",
            processes=options.processes, show=show, is_live=sys.stderr.isatty(),
        )  # fmt: skip
    except KilledError as error:
        reason = f"{error}; --resume continues"
    except MedvolError as error:
        reason = str(error)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(folder)) from None
    run = replace(_summed(FoldRun(fold, str(folder))), seconds=time.time() - began)
    if reason:
        run = replace(run, status="failed", reason=reason)
    write_json(record, {**run.row(), "settings": options.settings})
    return run


def _kept(folder: Path) -> str:
    """What an interrupted fold leaves, for a person."""
    epochs = _summed(FoldRun(0, str(folder))).epochs
    if not (folder / "last.pt").is_file():
        return f"interrupted before the first epoch ended; {folder} holds nothing to continue"
    return (
        f"interrupted; {folder} keeps {epochs} epochs, and the same command with --resume continues"
    )


def _bundle(options: TrainOptions) -> Bundle:
    return load(options.bundle, is_trusted=True if options.trust_bundle else None)


def task_of(options: TrainOptions) -> str:
    """The config that is run: one process or several."""
    return "multi_gpu_train" if options.processes > 1 else "train"


def overrides_of(options: TrainOptions, fold: int) -> dict[str, Any]:
    """The overrides of one fold's config."""
    given: dict[str, Any] = {
        "dataset_dir": str(Path(options.data).resolve()),
        "output_dir": str(fold_dir(options.output, fold).resolve()),
        "fold": str(fold),
        **options.settings,
    }
    if options.is_resumed:
        given["resume"] = "true"
    if options.budget_s is not None:
        given["budget_s"] = f"{options.budget_s:.1f}"
    return given


def _summed(run: FoldRun) -> FoldRun:
    table = Path(run.folder) / "epochs.csv"
    if not table.is_file():
        return run
    with table.open(newline="") as handle:
        rows = list(CsvRows(handle))
    metric = next((name for name in rows[-1] if name not in _NO_METRIC), "") if rows else ""
    scored = [(float(row[metric]), -int(row["epoch"])) for row in rows if metric and row[metric]]
    best, epoch = max((pair for pair in scored if math.isfinite(pair[0])), default=(math.nan, 0))
    return replace(run, epochs=len(rows), metric=metric, best=best, best_epoch=-epoch)


def sweep(
    options: TrainOptions, workers: int = 2, address: str = "", show: Log = print
) -> list[FoldRun]:
    """Train folds side by side as Ray tasks, one fold each.

    Args:
        options: What and how; everything must be visible from every node.
        workers: Folds at a time; they share the budget's time in rounds of so many.
        address: Ray cluster to join; empty starts one here.
        show: Receives a line as each fold ends.

    Raises:
        MissingPackageError: If Ray is not installed.
    """
    folds = check_training(options)
    if options.budget_s is not None:
        options = replace(options, budget_s=options.budget_s / math.ceil(len(folds) / workers))
    runs = []
    for run in _ray_folds(options, folds, workers, address):
        show(line_of(run))
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
    folder = str(fold_dir(options.output, fold).resolve())
    return _summed(FoldRun(fold, folder, "failed", f"{reason}; --resume continues"))


def line_of(run: FoldRun) -> str:
    """One line on a fold, for a person."""
    name = "all cases" if run.fold == ALL_CASES else f"fold {run.fold}"
    if run.status == "failed":
        return f"{name}: failed after {run.epochs} epochs: {run.reason}"
    best = f"best {run.metric} {run.best:.4f} at epoch {run.best_epoch}" if run.metric else ""
    took = time.strftime("%H:%M:%S", time.gmtime(run.seconds))
    return f"{name}: {run.epochs} epochs, {best or 'not validated'}, {took}; {run.folder}"


def next_step(options: TrainOptions, runs: Sequence[FoldRun]) -> str:
    """What makes a bundle of the trained folds, as a command that can be typed as it is.

    Empty after a failure.
    """
    if not runs or any(run.status == "failed" for run in runs):
        return ""
    bundle, out = _bundle(options), Path(options.output)
    trust = ["--trust-bundle"] if options.trust_bundle else []
    new = next(path for n in count(1) if not (path := out / f"bundle_{n}" / bundle.name).exists())
    best = _weights(max(runs, key=lambda run: run.best if math.isfinite(run.best) else -1))
    if bundle.metadata.get("medvol", {}).get("family") != "segmentation":
        fork = shlex.join(["medvol", "bundle", "fork", options.bundle, "-o", str(new)])
        return f"{fork} && {shlex.join(['cp', str(best), str(new / 'models' / 'model.pt')])}"
    changed = [name for name in options.settings if name in _OF_SPLIT or "network" in name]
    number = int(bundle.config(task_of(options)).get("folds", 1))
    is_whole = all((fold_dir(out, fold) / "model.pt").is_file() for fold in range(number))
    if is_whole and not changed:
        words = ["select", options.bundle, options.output, "--data", options.data, "-o", str(new)]
        return shlex.join(["medvol", *words, *trust])
    words = ["predict", options.bundle, "IMAGE", "-o", "OUT", "--ensemble", str(best)]
    return shlex.join(["medvol", *words, *trust])


def _weights(run: FoldRun) -> Path:
    """The weights of the best epoch, or of the last one where there was no validation."""
    best = Path(run.folder) / "model.pt"
    return best if best.is_file() else best.with_name("model_last.pt")


def require_success(runs: Sequence[FoldRun]) -> None:
    """Raise the first failure's reason.

    Raises:
        MedvolError: If a fold failed.
    """
    if failed := [run for run in runs if run.status == "failed"]:
        more = f" (and {len(failed) - 1} more folds)" if len(failed) > 1 else ""
        raise MedvolError(f"fold {failed[0].fold}: {failed[0].reason}{more}")
