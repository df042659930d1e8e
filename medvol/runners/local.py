"""In this process: one case computes while the next is prepared and the last is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from medvol.inferers import Prediction
from medvol.runners.cases import CaseInput
from medvol.runners.predict import PreparedCase, infer, load, predict_case, write
from medvol.runners.record import PredictOptions, Record
from medvol.runners.session import Session

Report = Callable[[Record], None]


def run_local(
    cases: Sequence[CaseInput], options: PredictOptions, report: Report = lambda record: None
) -> list[Record]:
    """Predict every case; a faulty one is recorded and the rest go on.

    Loading and writing overlap with the network, which holds up to three images at once; under a
    memory ceiling cases run one after the other.
    """
    session = Session(options)
    if options.max_ram is not None:
        return [_reported(predict_case(session, case), report) for case in cases]
    return _overlapped(session, cases, report)


def _overlapped(session: Session, cases: Iterable[CaseInput], report: Report) -> list[Record]:
    records: list[Record] = []
    with ThreadPoolExecutor(1) as loader, ThreadPoolExecutor(1) as writer:
        ahead: Future[PreparedCase] | None = None
        writing: Future[Record] | None = None
        for case in [*cases, None]:
            ready = ahead
            ahead = loader.submit(load, session, case) if case is not None else None
            if ready is None:
                continue
            prepared = ready.result()
            prediction = infer(session, prepared)
            if writing is not None:
                records.append(writing.result())
            writing = writer.submit(_written, session, prepared, prediction, report)
        if writing is not None:
            records.append(writing.result())
    return records


def _written(
    session: Session, prepared: PreparedCase, prediction: Prediction | None, report: Report
) -> Record:
    """Write and tell at once, and not only when the next case has left the network."""
    return _reported(write(session, prepared, prediction), report)


def _reported(record: Record, report: Report) -> Record:
    report(record)
    return record
