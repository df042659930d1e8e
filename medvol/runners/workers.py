"""Worker processes: each builds the bundle once, and the death of one costs one retry."""

from __future__ import annotations

import logging
import multiprocessing as mp
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from medvol.core.errors import MedvolError
from medvol.runners.cases import CaseInput
from medvol.runners.local import Report
from medvol.runners.record import PredictOptions, Record

_log = logging.getLogger(__name__)
#: How often a case is given to a new worker after its worker died.
RETRIES = 1


def run_workers(
    cases: Sequence[CaseInput],
    options: PredictOptions,
    workers: int = 2,
    report: Report = lambda record: None,
    *,
    start: str = "spawn",
) -> list[Record]:
    """Predict every case in worker processes; results equal those of :func:`run_local`.

    A worker that dies, for example killed for its memory, is one line naming the case; the case
    is tried once more in a new worker and then recorded as failed. Ceilings are those of all
    workers together.

    Raises:
        MedvolError: If the bundle cannot be loaded at all.
    """
    count = min(workers, max(1, len(cases)))
    pool = _Pool(_shared(options, count), count, start)
    try:
        return pool.run(deque((case, 0) for case in cases), report)
    finally:
        pool.close()


def _shared(options: PredictOptions, count: int) -> PredictOptions:
    parts = {name: getattr(options, name) for name in ("max_ram", "max_gpu")}
    return replace(options, **{name: n and n // count for name, n in parts.items()})


@dataclass
class _Worker:
    process: Any
    pipe: Any
    job: tuple[CaseInput, int] | None = None


@dataclass
class _Pool:
    options: PredictOptions
    size: int
    start: str
    workers: list[_Worker] = field(default_factory=list)

    def run(self, queue: deque[tuple[CaseInput, int]], report: Report) -> list[Record]:
        """Hand cases out until none is left."""
        records: list[Record] = []
        order = {case.name: index for index, (case, _) in enumerate(queue)}
        self.workers = [self._new() for _ in range(self.size)]
        for worker in self.workers:
            self._feed(worker, queue)
        while any(worker.job for worker in self.workers):
            busy = {w.pipe: w for w in self.workers if w.job}
            for pipe in wait(list(busy)):
                record = self._receive(busy[pipe], queue)  # pyright: ignore[reportArgumentType]
                if record is not None:
                    records.append(record)
                    report(record)
        return sorted(records, key=lambda record: order[record.case])

    def close(self) -> None:
        """Ask every worker to end."""
        for worker in self.workers:
            with suppress(OSError):  # it died already
                worker.pipe.send(None)
            worker.pipe.close()
        for worker in self.workers:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()

    def _new(self) -> _Worker:
        context = mp.get_context(self.start)
        ours, theirs = context.Pipe()
        process: Any = context.Process(  # pyright: ignore[reportAttributeAccessIssue]
            target=_serve, args=(self.options, theirs), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _feed(self, worker: _Worker, queue: deque[tuple[CaseInput, int]]) -> None:
        worker.job = queue.popleft() if queue else None
        if worker.job is not None:
            with suppress(OSError):  # its death is noticed when its answer is waited for
                worker.pipe.send(worker.job[0])

    def _receive(self, worker: _Worker, queue: deque[tuple[CaseInput, int]]) -> Record | None:
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            return self._bury(worker, queue)
        if isinstance(answer, MedvolError):
            raise answer
        self._feed(worker, queue)
        return answer

    def _bury(self, worker: _Worker, queue: deque[tuple[CaseInput, int]]) -> Record | None:
        case, tries = worker.job or (CaseInput("", ""), 0)
        worker.process.join(10)
        how = _cause(worker.process.exitcode)
        _log.warning("the worker that held %s died (%s)", case.name, how)
        self.workers.remove(worker)
        if tries < RETRIES:
            queue.appendleft((case, tries + 1))
        fresh = self._new()
        self.workers.append(fresh)
        self._feed(fresh, queue)
        if tries < RETRIES:
            return None
        record = Record(case.name, "failed", f"its worker died twice ({how})")
        record.save(self.options.out)
        return record


def _cause(code: int | None) -> str:
    if code is None:
        return "no exit code"
    if code == -9:
        return "killed, which is how the system frees memory"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _serve(options: PredictOptions, pipe: Connection) -> None:
    """Life of a worker: build the bundle, then answer until it is told to end."""
    from medvol.runners.predict import predict_case
    from medvol.runners.session import Session

    try:
        session = Session(options)
    except MedvolError as error:
        pipe.send(error)
        return
    while True:
        try:
            case = pipe.recv()
        except EOFError:
            return
        if case is None:
            return
        pipe.send(predict_case(session, case))
