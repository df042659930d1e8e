"""Worker processes: each builds the bundle once, and the death of one costs one retry."""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import signal
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from typing import Any

from medvol.runners.cases import CaseInput
from medvol.runners.record import PredictOptions, Record, Report

_log = logging.getLogger(__name__)


def run_workers(
    cases: Sequence[CaseInput],
    options: PredictOptions,
    workers: int = 2,
    report: Report = lambda record: None,
) -> list[Record]:
    """Predict every case in worker processes; results equal those of :func:`run_local`.

    When a worker dies, for example killed for its memory, Python ends its whole pool. The cases
    that were at work are then run one at a time, each alone on the machine, which finds the case
    that kills its worker; that one is recorded as failed and the others go on in a new pool.
    Ceilings are those of all workers together.

    Raises:
        MedvolError: If the bundle cannot be loaded at all.
    """
    count = min(workers, max(1, len(cases)))
    shared = _divided(options, count)
    order = {case.name: index for index, case in enumerate(cases)}
    records: list[Record] = []

    def keep(record: Record) -> None:
        records.append(record)
        report(record)

    waiting = deque(cases)
    while waiting:
        for case in _run_pool(waiting, shared, count, keep).suspects:
            alone = _run_pool(deque([case]), shared, 1, keep)
            if alone.suspects:
                record = Record(case.name, "failed", f"its worker died twice ({alone.cause})")
                record.save(options.output)
                keep(record)
    return sorted(records, key=lambda record: order[record.case])


def _divided(options: PredictOptions, count: int) -> PredictOptions:
    parts = {name: getattr(options, name) for name in ("max_ram", "max_gpu")}
    return replace(options, **{name: n and n // count for name, n in parts.items()})


@dataclass
class _PoolEnd:
    """How a pool ended: the cases that were at work when a worker died, and of what it died."""

    suspects: list[CaseInput] = field(default_factory=list)
    cause: str = ""


def _run_pool(
    waiting: deque[CaseInput], options: PredictOptions, count: int, keep: Report
) -> _PoolEnd:
    """Predict with one pool until no case waits or a worker dies.

    No more cases are handed out than there are workers, so that few are suspects of a death.
    """
    running: dict[Future[Record], CaseInput] = {}
    processes: set[BaseProcess] = set()
    context = mp.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin)
    try:
        while waiting or running:
            while waiting and len(running) < count:
                case = waiting.popleft()
                running[_submitted(pool, options, case)] = case
                processes |= set(mp.active_children())
            done = wait(running, return_when=FIRST_COMPLETED).done
            for future in sorted(done, key=lambda one: one.exception() is not None):
                record = future.result()
                del running[future]
                keep(record)
    except BrokenProcessPool:
        pool.shutdown()
        end = _PoolEnd(list(running.values()), _cause(processes))
        names = ", ".join(case.name for case in end.suspects)
        _log.warning("a worker died (%s) while these cases were at work: %s", end.cause, names)
        return end
    except BaseException:  # Ctrl-C, or a bundle that cannot be loaded: nothing more is wanted
        for process in processes:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return _PoolEnd()


def _submitted(pool: ProcessPoolExecutor, options: PredictOptions, case: CaseInput) -> Any:
    """The future of a case; one that is broken already where a worker died just now."""
    try:
        return pool.submit(_predict, options, case)
    except BrokenProcessPool as error:
        future: Future[Record] = Future()
        future.set_exception(error)
        return future


def _cause(processes: set[BaseProcess]) -> str:
    """Of what the first worker died; the executor ends all others by SIGTERM."""
    codes = sorted(code for process in processes if (code := process.exitcode))
    code = next((code for code in codes if code != -signal.SIGTERM), -signal.SIGTERM)
    if code == -9:
        return "killed, which is how the system frees memory"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


#: The session of this worker, built for its first case.
_sessions: dict[str, Any] = {}


def _begin() -> None:
    """Start of a worker: it leaves Ctrl-C to the parent, and ends where the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = mp.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _predict(options: PredictOptions, case: CaseInput) -> Record:
    from medvol.runners.predict import predict_case
    from medvol.runners.session import Session

    if "own" not in _sessions:
        _sessions["own"] = Session(options)
    return predict_case(_sessions["own"], case)
