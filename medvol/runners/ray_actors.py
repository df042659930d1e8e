"""Ray actors: the same work on a cluster, restarted by Ray when a node or worker is lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from medvol.core.errors import MedvolError, MissingPackageError
from medvol.runners.cases import CaseInput
from medvol.runners.local import Report
from medvol.runners.record import PredictOptions, Record
from medvol.runners.workers import RETRIES


def run_ray(
    cases: Sequence[CaseInput],
    options: PredictOptions,
    workers: int = 2,
    address: str = "",
    report: Report = lambda record: None,
) -> list[Record]:
    """Predict every case with actors of a Ray cluster; results equal those of ``run_local``.

    Ray restarts a lost actor and runs its case once more; a case whose actor is lost again is
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
        MedvolError: If the bundle cannot be loaded.
    """
    ray = _import_ray()
    owns = not ray.is_initialized()
    if owns:
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves beside anything else
        ray.init(
            address=address or None, log_to_driver=False, include_dashboard=False,
            num_cpus=None if address else max(workers, 1) * max(1, options.threads),
        )  # fmt: skip
    try:
        return _run(ray, cases, options, min(workers, max(1, len(cases))), report)
    finally:
        if owns:
            ray.shutdown()


def _run(
    ray: Any, cases: Sequence[CaseInput], options: PredictOptions, workers: int, report: Report
) -> list[Record]:
    gpus = 1 if options.device.startswith("cuda") else 0
    actor = ray.remote(_Predictor).options(
        num_cpus=max(1, options.threads), num_gpus=gpus, max_restarts=-1, max_task_retries=RETRIES
    )
    actors = [actor.remote(options) for _ in range(workers)]
    waiting = list(reversed(cases))
    running: dict[Any, tuple[CaseInput, Any]] = {}
    records: dict[str, Record] = {}
    for one in actors:
        if waiting:
            case = waiting.pop()
            running[one.predict.remote(case)] = (case, one)
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        case, one = running.pop(done)
        records[case.name] = _result(ray, done, case, options)
        report(records[case.name])
        if waiting:
            case = waiting.pop()
            running[one.predict.remote(case)] = (case, one)
    return [records[case.name] for case in cases]


def _result(ray: Any, done: Any, case: CaseInput, options: PredictOptions) -> Record:
    try:
        answer = ray.get(done)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MedvolError):
            raise cause from error
        record = Record(
            case.name, "failed", f"its Ray actor was lost twice ({type(error).__name__})"
        )
        record.save(options.out)
        return record
    return answer


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
