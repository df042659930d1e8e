"""Slurm through submitit: one job per share of the cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvol.core.errors import MissingPackageError
from medvol.runners.cases import CaseInput
from medvol.runners.local import Report, run_local
from medvol.runners.record import PredictOptions, Record, stored

#: Minutes that a job may take; a job that is cut off is resumed by running the command again.
TIMEOUT_MIN = 24 * 60


def run_slurm(
    cases: Sequence[CaseInput],
    options: PredictOptions,
    jobs: int = 2,
    cluster: str = "slurm",
    report: Report = lambda record: None,
) -> list[Record]:
    """Submit the cases as Slurm jobs and wait; results equal those of ``run_local``.

    Args:
        cases: What to predict.
        options: How; everything must be visible from the nodes.
        jobs: Number of jobs.
        cluster: ``slurm``, or submitit's ``local`` and ``debug`` for trying it out.
        report: Called with each record.

    Raises:
        MissingPackageError: If submitit is not installed.
    """
    submitit = _import_submitit()
    executor = submitit.AutoExecutor(folder=str(Path(options.out) / ".jobs"), cluster=cluster)
    executor.update_parameters(
        timeout_min=TIMEOUT_MIN, cpus_per_task=max(1, options.threads),
        gpus_per_node=1 if options.device.startswith("cuda") else 0,
    )  # fmt: skip
    shares = [list(cases[index::jobs]) for index in range(min(jobs, max(1, len(cases))))]
    submitted = [executor.submit(run_local, share, options) for share in shares]
    found: dict[str, Record] = {}
    for share, job in zip(shares, submitted, strict=True):
        for record in _records(submitit, job, share, options):
            found[record.case] = record
            report(record)
    return [found[case.name] for case in cases]


def _records(
    submitit: Any, job: Any, share: Sequence[CaseInput], options: PredictOptions
) -> list[Record]:
    try:
        return job.result()
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
        reason = f"its Slurm job {job.job_id} ended early; run the command again to go on"
        return [_finished_or_failed(case, options, reason) for case in share]


def _finished_or_failed(case: CaseInput, options: PredictOptions, reason: str) -> Record:
    found = stored(options.out, case.name)
    if found is not None and found.status == "done":
        return found
    record = Record(case.name, "failed", reason)
    record.save(options.out)
    return record


def _import_submitit() -> Any:
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError(
            "--runner slurm needs submitit: pip install 'medvol[slurm]'"
        ) from error
    return submitit
