"""A run's epochs in TensorBoard or MLflow, where a team looks at them."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from medvol.core.errors import ConfigError, MissingPackageError
from medvol.core.files import write_text
from medvol.engines.distributed import process_rank
from medvol.engines.progress import EpochTable

logger = logging.getLogger(__name__)
_KINDS = ("tensorboard", "mlflow")
#: What MLflow allows in no metric's name; labels may hold it.
_NOT_ALLOWED = re.compile(r"[^\w.\- /]")


class Tracker:
    """Ignite handler of the trainer: every number of ``epochs.csv``, epoch by epoch.

    TensorBoard files go to ``<output_dir>/tensorboard``; MLflow to ``MLFLOW_TRACKING_URI``, by
    default ``<output_dir>/mlruns.db``. A resumed run goes on in the same place.

    Args:
        kind: ``tensorboard``, ``mlflow``, or None for neither.
        output_dir: The run's folder.
        table: The table whose last row is logged; attach after it.
        name: Experiment in MLflow.

    Raises:
        ConfigError: If the kind is unknown.
        MissingPackageError: If its package is not installed.
    """

    def __init__(
        self,
        kind: str | None,
        output_dir: str | os.PathLike[str],
        table: EpochTable,
        name: str = "medvol",
    ) -> None:
        if kind is not None and kind not in _KINDS:
            raise ConfigError(f"tracker {kind!r} is unknown; choose from {', '.join(_KINDS)}")
        self.kind, self.folder, self.table, self.name = kind, Path(output_dir), table, name
        self.sink: Any = None
        if kind is not None:
            _require(kind)

    def attach(self, engine: Engine) -> None:
        """Log when an epoch has ended."""
        if self.kind is None or process_rank() != 0:
            return
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._close)

    def _open(self, engine: Engine) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        sink = _TensorBoard if self.kind == "tensorboard" else _MLflow
        self.sink = sink(self.folder, self.name)

    def _log(self, engine: Engine) -> None:
        row = self.table.rows[-1]
        numbers = {key: float(value) for key, value in row.items() if key != "epoch" and value}
        self.sink.log(numbers, engine.state.epoch)

    def _close(self, engine: Engine, *error: BaseException) -> None:
        if self.sink is not None:
            self.sink.close(is_failed=bool(error))
        if error:
            raise error[0]


class _TensorBoard:
    def __init__(self, folder: Path, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, numbers: dict[str, float], epoch: int) -> None:
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, epoch)
        self.writer.flush()

    def close(self, is_failed: bool) -> None:
        self.writer.close()


class _MLflow:
    def __init__(self, folder: Path, name: str) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        local = f"sqlite:///{(folder / 'mlruns.db').resolve()}"
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        note = folder / "mlflow_run.txt"
        if note.is_file():
            self.run = note.read_text("utf-8").strip()
            self.client.update_run(self.run, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(
            name, artifact_location=(folder / "mlruns").resolve().as_uri()
        )  # fmt: skip
        self.run = self.client.create_run(experiment, run_name=folder.name).info.run_id
        write_text(note, self.run + "\n")

    def log(self, numbers: dict[str, float], epoch: int) -> None:
        for key, value in numbers.items():
            self.client.log_metric(self.run, _NOT_ALLOWED.sub("_", key), value, step=epoch)

    def close(self, is_failed: bool) -> None:
        self.client.set_terminated(self.run, "FAILED" if is_failed else "FINISHED")


def _require(kind: str) -> None:
    try:
        if kind == "tensorboard":
            import torch.utils.tensorboard  # noqa: F401
        else:
            import mlflow  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError(
            f"tracker {kind!r} needs a package: pip install 'medvol[track]'"
        ) from error
