"""One case from file to files: load, predict, write; each step timed, every fault recorded."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from medvol.core.errors import MedvolError, OutputError, error_line
from medvol.core.files import sha256_file
from medvol.core.memory import peak_ram_bytes
from medvol.inferers import Prediction, is_out_of_memory
from medvol.inferers.pipeline import source_of
from medvol.runners.cases import CaseInput, input_digest
from medvol.runners.cost import header_grid, plan_case
from medvol.runners.outputs import write_outputs
from medvol.runners.record import Record, case_folder, earlier, sweep
from medvol.runners.session import Session

#: Factor between what was located and what was segmented of it above which a person should look.
_MOST_APART = 2.0


@dataclass
class PreparedCase:
    """A case whose image is ready for the network, or whose record is final already."""

    case: CaseInput
    record: Record
    data: dict[str, Any] | None = None


def predict_case(session: Session, case: CaseInput) -> Record:
    """Run one case through all phases; every fault of the case ends up in its record."""
    prepared = load(session, case)
    prediction = infer(session, prepared)
    return write(session, prepared, prediction)


def load(session: Session, case: CaseInput) -> PreparedCase:
    """Read and prepare the image, unless an earlier run already finished this case."""
    options = session.options
    record = Record(
        case.name,
        bundle=session.identity,
        options_sha256=options.digest(),
        device=str(session.device),
    )
    prepared = PreparedCase(case, record)
    with _recorded(record):
        record.input = os.path.relpath(case.path, options.output)
        record.input_sha256 = input_digest(case.path)
        same = {k: getattr(record, k) for k in ("bundle", "input_sha256", "options_sha256")}
        if found := earlier(options.output, case.name, same):
            prepared.record = found
            return prepared
        sweep(options.output, case.name)
        record.is_training_case = session.has_trained_on(case.path)
        record.predicted = plan_case(session, header_grid(session, case.path))
        with _timed(record, "load"):
            data = session.prepare(case.path)
        record.predicted = record.predicted or plan_case(session, source_of(data["image"]))
        prepared.data = data
    return prepared


def infer(session: Session, prepared: PreparedCase) -> Prediction | None:
    """Predict on the source grid; with less at a time where memory runs out."""
    record, data = prepared.record, prepared.data
    if data is None:
        return None
    with _recorded(record), _timed(record, "infer"), torch.inference_mode():
        is_on_gpu = session.device.type == "cuda"
        if is_on_gpu:
            torch.cuda.reset_peak_memory_stats(session.device)
        prediction = session.predict(data)
        record.fallback, record.located = prediction.fallback, prediction.located
        if is_on_gpu:
            record.peak_gpu_bytes = torch.cuda.max_memory_allocated(session.device)
        return prediction
    return None


def write(session: Session, prepared: PreparedCase, prediction: Prediction | None) -> Record:
    """Write the results and, last, the record that certifies them."""
    record = prepared.record
    prepared.data = None
    if prediction is not None:
        with _recorded(record), _timed(record, "write"):
            record.outputs = write_outputs(session, prepared.case, prediction)
            folder = case_folder(session.options.output, prepared.case.name)
            record.output_sha256 = {n: sha256_file(folder / n) for n in record.outputs.values()}
            record.structures = prediction.structures(session.labels)
            stated = session.bundle.metadata.get("medvol", {})
            record.regions = stated.get("regions", {})
            record.ignore_label = stated.get("ignore_label")
            record.review = _review(record)
    record.peak_ram_bytes = peak_ram_bytes()
    if not record.is_resumed:
        record.save(session.options.output)
    return record


def summary(records: list[Record]) -> Mapping[str, int]:
    """How many cases ended in which way."""
    counts = {"done": 0, "resumed": 0, "rejected": 0, "failed": 0}
    for record in records:
        counts["resumed" if record.is_resumed else record.status] += 1
    return counts


def _review(record: Record) -> dict[str, Any]:
    reasons = []
    for row in record.structures:
        if row["voxels"] == 0:
            reasons.append(f"{row['name']} was not found")
        elif "interval_ml" in row:
            low, high = row["interval_ml"]
            if high - low > row["volume_ml"]:
                reasons.append(
                    f"the volume of {row['name']} is uncertain: {row['volume_ml']:.3g} ml, "
                    f"{low:.3g} to {high:.3g}"
                )
    for row in record.located:
        share = row["predicted_ml"] / row["located_ml"]
        if not 1 / _MOST_APART <= share <= _MOST_APART:
            reasons.append(
                f"of the {row['structure']} {row['predicted_ml']:.2g} ml were segmented, but "
                f"{row['located_ml']:.2g} ml located: slices too thick, or another contrast?"
            )
    return {"flag": bool(reasons), "reason": "; ".join(reasons)}


@contextmanager
def _timed(record: Record, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    record.seconds[phase] = round(time.perf_counter() - start, 4)


@contextmanager
def _recorded(record: Record) -> Iterator[None]:
    """Turn a fault of this case into its record, so that the other cases go on."""
    try:
        yield
    except OutputError as error:
        record.status, record.reason = "failed", str(error)
    except MedvolError as error:
        record.status, record.reason = "rejected", str(error)
    except Exception as error:  # noqa: BLE001 - of whatever kind: zlib.error is an Exception only
        line = error_line(error)
        record.status = "rejected" if line else "failed"
        record.reason = line or _one_line(error)
        if is_out_of_memory(error):
            record.reason = f"out of memory: {record.reason}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
