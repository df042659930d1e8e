"""What a person sees of a run: a live bar, a table per epoch, and its figure."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from medvol.core.files import CsvRows, atomic_path, rows_to_csv, write_text
from medvol.engines.distributed import process_mean, process_rank

logger = logging.getLogger(__name__)


class ProgressBar:
    """Ignite handler: one bar over the whole run with loss, validation score and time left.

    Writes to stderr; off when stderr is not a terminal unless ``MEDVOL_PROGRESS=1``, where a line
    per epoch goes to the log instead.

    Args:
        name: What is running, for example ``train``.
        evaluator: Its key metric is shown after each validation.
    """

    def __init__(self, name: str, evaluator: Engine | None = None) -> None:
        self.name = name
        self.evaluator = evaluator
        self.bar: tqdm[Any] | None = None
        self.shown: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Open, advance and close with the engine; the first of several processes shows it."""
        if process_rank() != 0:
            return
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _open(self, engine: Engine) -> None:
        forced = os.environ.get("MEDVOL_PROGRESS") == "1"
        self.began, self.first = time.perf_counter(), engine.state.iteration
        self.bar = tqdm(
            total=_steps(engine), desc=self.name, unit="step", dynamic_ncols=True, file=sys.stderr,
            disable=not (forced or sys.stderr.isatty()), initial=engine.state.iteration,
        )  # fmt: skip

    def _advance(self, engine: Engine) -> None:
        loss = _loss(engine)
        if loss is not None:
            self.shown["loss"] = f"{loss:.3f}"
        if self.bar is not None:
            self.bar.total = _steps(engine)  # a budget moves it
            self.bar.set_postfix(self.shown, refresh=False)
            self.bar.update(1)

    def _epoch(self, engine: Engine) -> None:
        if self.evaluator is not None and self.evaluator.state.metrics:
            name = self.evaluator.state.key_metric_name  # pyright: ignore[reportAttributeAccessIssue]
            self.shown[str(name)] = f"{float(self.evaluator.state.metrics[name]):.4f}"
        if self.bar is not None and self.bar.disable:
            shown = " ".join(f"{key}={value}" for key, value in self.shown.items())
            logger.info("%s epoch %s/%s %s%s", self.name, engine.state.epoch,
                        engine.state.max_epochs, shown, self._left(engine))  # fmt: skip

    def _left(self, engine: Engine) -> str:
        """Time left by the pace of this run, validation included."""
        total, done = _steps(engine), engine.state.iteration
        if total is None or done <= self.first:
            return ""
        pace_s = (time.perf_counter() - self.began) / (done - self.first)
        return f" left={tqdm.format_interval(max(0, total - done) * pace_s)}"

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _fail(self, error: BaseException) -> None:
        self._close()
        raise error


class EpochTable:
    """Ignite handler: ``epochs.csv``, a row per epoch, and ``epochs.png`` once it ends.

    Columns: epoch, steps, loss (mean over the epoch), lr, seconds, then every metric of the
    evaluator's last validation. On resume, rows of epochs that are run again are dropped.

    Args:
        output_dir: Folder of the two files.
        evaluator: Source of the validation columns.
        optimizer: Source of the learning rate; the first parameter group's.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        evaluator: Engine | None = None,
        optimizer: Any = None,
    ) -> None:
        self.path = Path(output_dir) / "epochs.csv"
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.rows: list[dict[str, str]] = []
        self.losses: list[float] = []
        self.began = 0.0

    def attach(self, engine: Engine) -> None:
        """Collect with the trainer; attach after the validation handler."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._draw)

    def _start(self, engine: Engine) -> None:
        if not self.rows and engine.state.epoch > 1 and self.path.exists():
            with self.path.open(newline="") as handle:
                rows = list(CsvRows(handle))
            self.rows = [row for row in rows if int(row["epoch"]) < engine.state.epoch]
        self.losses = []
        self.began = time.perf_counter()

    def _collect(self, engine: Engine) -> None:
        loss = _loss(engine)
        if loss is not None:
            self.losses.append(loss)

    def _write(self, engine: Engine) -> None:
        mean = process_mean(math.fsum(self.losses) / len(self.losses) if self.losses else math.nan)
        row = {"epoch": str(engine.state.epoch), "steps": str(engine.state.iteration),
               "loss": f"{mean:.6f}"}  # fmt: skip
        if self.optimizer is not None:
            row["lr"] = f"{self.optimizer.param_groups[0]['lr']:.3g}"
        row["seconds"] = f"{time.perf_counter() - self.began:.2f}"
        if self.evaluator is not None:
            metrics = self.evaluator.state.metrics
            row |= {name: f"{float(value):.6f}" for name, value in metrics.items()}
        self.rows.append(row)
        if process_rank() == 0:
            write_text(self.path, rows_to_csv(self.rows))

    def _draw(self) -> None:
        if not self.rows or process_rank() != 0:
            return
        if importlib.util.find_spec("matplotlib") is None:
            logger.info("matplotlib is not installed: %s has no figure", self.path)
            return
        draw_epochs(self.rows, self.path.with_suffix(".png"))


def draw_epochs(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Loss on the left axis, validation scores on the right, over epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    epochs = [int(row["epoch"]) for row in rows]
    left.plot(epochs, [float(row["loss"]) for row in rows], color="0.45", label="loss")
    left.set_xlabel("epoch")
    left.set_ylabel("training loss")
    right = left.twinx()
    fixed = {"epoch", "steps", "loss", "lr", "seconds"}
    for name in [name for name in rows[-1] if name not in fixed]:
        values = [float(row.get(name, "nan") or "nan") for row in rows]
        right.plot(epochs, values, label=name)
    right.set_ylabel("validation")
    handles = [*left.get_lines(), *right.get_lines()]
    left.legend(handles, [str(line.get_label()) for line in handles], loc="center right")
    with atomic_path(path) as scratch:
        figure.savefig(scratch, dpi=120)


def _steps(engine: Engine) -> int | None:
    epochs, length = engine.state.max_epochs, engine.state.epoch_length
    return epochs * length if epochs and length else None


def _loss(engine: Engine) -> float | None:
    output = engine.state.output
    first = output[0] if isinstance(output, list) and output else output
    if not isinstance(first, dict) or "loss" not in first:
        return None
    return float(torch.as_tensor(first["loss"]).detach())
