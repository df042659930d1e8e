"""Classification bundles: their own config predicts; here bad cases are set aside first."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from medvol.bundle import load
from medvol.core.errors import ConfigError, MedvolError, error_line
from medvol.core.files import write_json
from medvol.datasets import SeenCases, trained_on
from medvol.runners.cases import CaseInput, input_digest
from medvol.runners.record import RECORD, PredictOptions, Record, Report, case_folder
from medvol.runners.session import reader_overrides

_FOR_MASKS = {"formats": "--format", "tta": "--tta", "uncertainty": "--uncertainty",
              "max_ram": "--max-ram", "max_gpu": "--max-gpu-mem", "engine": "--engine",
              "ensemble": "--ensemble"}  # fmt: skip


def is_classification(options: PredictOptions) -> bool:
    """Whether the bundle gives classes and not masks."""
    bundle = load(options.bundle, is_trusted=True if options.trust_bundle else None)
    return bundle.metadata.get("medvol", {}).get("family") == "classification"


def run_classification(
    cases: Sequence[CaseInput], options: PredictOptions, report: Report = lambda record: None
) -> list[Record]:
    """Classify every case that can be read; ``predictions.csv`` and a record each.

    Windows, masks and other engines are not for classifiers: options of these are rejected.
    Images that the bundle's preprocessing rejects are recorded and left out, so that one of them
    does not end the run. Already classified cases are classified again: they take no time.
    """
    _require_legal(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    bundle = load(options.bundle, is_trusted=True if options.trust_bundle else None)
    config = bundle.config("inference")
    changes: dict[str, Any] = {"output_dir": options.output, "dataset_dir": _root(cases)}
    changes |= reader_overrides(config, options.reader)
    if options.device:
        changes["device"] = options.device
    screen = bundle.parser("inference", **changes).get_parsed_content("preprocessing")
    records = [_screened(case, screen, options) for case in cases]
    good = [case for case, record in zip(cases, records, strict=True) if record.status == "done"]
    if good:
        entries = [{"image": c.path, "source": c.path, "case": c.name} for c in good]
        parser = bundle.parser("inference", **changes, cases=entries)
        parser.get_parsed_content("evaluator").run()
    seen = trained_on(bundle.weights)
    for case, record in zip(cases, records, strict=True):
        if record.status == "done":
            _complete(case, record, seen, options.output)
        else:
            record.save(options.output)
        report(record)
    return records


def _complete(case: CaseInput, record: Record, seen: SeenCases | None, output: str) -> None:
    """Add what the bundle itself cannot know to the ``prediction.json`` that it wrote."""
    path = case_folder(output, case.name) / RECORD
    content = json.loads(path.read_text(encoding="utf-8"))
    record.seconds["infer"] = content["seconds"]
    record.is_training_case = None if seen is None else bool(seen.trained([{"image": case.path}]))
    write_json(path, {**content, "is_training_case": record.is_training_case})


def _require_legal(options: PredictOptions) -> None:
    plain = PredictOptions(options.bundle, options.output)
    for name, option in _FOR_MASKS.items():
        if getattr(options, name) != getattr(plain, name):
            raise ConfigError(f"{option} is not for {options.bundle}, which is a classification")


def _screened(case: CaseInput, screen: Any, options: PredictOptions) -> Record:
    record, start = Record(case.name, options_sha256=options.digest()), time.perf_counter()
    try:
        record.input_sha256 = input_digest(case.path)
        screen({"image": case.path})
        record.seconds["load"] = round(time.perf_counter() - start, 4)
    except (MedvolError, RuntimeError, ValueError, OSError) as error:
        line = error_line(error)
        record.status = "rejected" if line else "failed"
        record.reason = line or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return record


def _root(cases: Sequence[CaseInput]) -> str:
    """The folder that holds every case, to which the table's paths are relative."""
    return os.path.commonpath([os.path.dirname(case.path) for case in cases])
