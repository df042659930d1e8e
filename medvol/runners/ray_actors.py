"""Ray actors: the same work on a cluster; the loss of a node or worker costs one retry."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medvol.core.errors import ConfigError, MedvolError, MissingPackageError, error_line
from medvol.runners.cases import CaseInput
from medvol.runners.record import PredictOptions, Record, Report

_log = logging.getLogger(__name__)
#: How often a case is given to a new actor after its actor was lost.
RETRIES = 1
#: How often a local Ray is started, or a cluster called, before giving up.
STARTS = 3


def run_ray(
    cases: Sequence[CaseInput],
    options: PredictOptions,
    workers: int = 2,
    address: str = "",
    report: Report = lambda record: None,
) -> list[Record]:
    """Predict every case with actors of a Ray cluster; results equal those of ``run_local``.

    A lost actor is replaced and its case run once more; a case whose actor is lost again is
    recorded as failed. Inputs, bundle and output folder must be visible from every node.

    Args:
        cases: What to predict.
        options: How.
        workers: Number of actors; each takes one CPU per thread, and a GPU where the device is
            one.
        address: Cluster to join, ``auto`` for the one on this node; empty starts a local one.
        report: Called with each record.

    Raises:
        MissingPackageError: If Ray is not installed.
        ConfigError: If no Ray can be reached or started.
        MedvolError: If the bundle cannot be loaded.
    """
    ray = _import_ray()
    owns = not ray.is_initialized()
    if owns:
        _start(ray, address, max(workers, 1) * max(1, options.threads))
    try:
        return _run(ray, cases, options, min(workers, max(1, len(cases))), report)
    finally:
        if owns:
            ray.shutdown()


def _start(ray: Any, address: str, cpus: int) -> None:
    """Join a cluster or start one here; Ray gives a busy machine 30 s for that, which we repeat."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves beside anything else
    for left in reversed(range(STARTS)):
        try:
            ray.init(
                address=address or None, log_to_driver=False, include_dashboard=False,
                num_cpus=None if address else cpus,
            )  # fmt: skip
        except Exception as error:  # Ray raises a bare Exception where its start times out
            ray.shutdown()
            if not left:
                text = " ".join(str(error).split())[:300]
                raise ConfigError(f"Ray cannot be reached or started: {text}") from error
            _log.warning("Ray did not start in time; trying again")
        else:
            return


def _run(
    ray: Any, cases: Sequence[CaseInput], options: PredictOptions, workers: int, report: Report
) -> list[Record]:
    actor = ray.remote(_Predictor).options(
        num_cpus=max(1, options.threads), num_gpus=1 if options.device.startswith("cuda") else 0
    )
    waiting = deque((case, 0) for case in cases)
    running: dict[Any, _Held] = {}
    records: dict[str, Record] = {}

    def feed(one: Any) -> None:
        if waiting:
            case, losses = waiting.popleft()
            running[one.predict.remote(case)] = _Held(case, losses, one)

    for _ in range(workers):
        feed(actor.remote(options))
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        held = running.pop(done)
        record, one = _record(ray, done), held.actor
        if isinstance(record, str):
            _log.warning("the Ray actor that held %s was lost (%s)", held.case.name, record)
            ray.kill(one)  # one that was only out of reach must not write later
            one = actor.remote(options)
            if held.losses < RETRIES:
                waiting.appendleft((held.case, held.losses + 1))
                feed(one)
                continue
            record = Record(held.case.name, "failed", f"its Ray actor was lost twice ({record})")
            record.save(options.output)
        records[held.case.name] = record
        report(record)
        feed(one)
    return [records[case.name] for case in cases]


@dataclass(frozen=True)
class _Held:
    """A case, how many actors were lost over it, and the one that has it now."""

    case: CaseInput
    losses: int
    actor: Any


def _record(ray: Any, done: Any) -> Record | str:
    """The record of a case, or how its actor was lost.

    Raises:
        MedvolError: If the bundle cannot be loaded.
    """
    try:
        return ray.get(done)
    except ray.exceptions.RayError as error:
        if (rejection := _rejection(error)) is not None:
            raise rejection from error
        return type(error).__name__


def _rejection(error: BaseException) -> MedvolError | None:
    """The error of an actor that could not be built; Ray hands it over as it is, or as text."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, MedvolError):
        return cause
    line = error_line(error)
    return ConfigError(line) if line else None


class _Predictor:
    """One actor: a session and the cases that Ray hands it."""

    def __init__(self, options: PredictOptions) -> None:
        from medvol.runners.session import Session

        self.session = Session(options)

    def predict(self, case: CaseInput) -> Record:
        """Run one case."""
        from medvol.runners.predict import predict_case

        return predict_case(self.session, case)


def _import_ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError("--runner ray needs Ray: pip install 'medvol[ray]'") from error
    return ray
