"""What an evaluation left in a folder, by the verb or by a bundle, read back as rows."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medvol.core.errors import InputError, MissingInputError
from medvol.core.files import CsvRows
from medvol.core.runs import BUNDLE_RUN, load_run
from medvol.evaluation.agreement import AgreementRow, agreement
from medvol.evaluation.cases import read_case_lines
from medvol.evaluation.classification import ClassRow
from medvol.evaluation.evaluate import MASK_RUN, SCORE_RUN, MaskOptions
from medvol.evaluation.rows import read_json, read_rows, read_text
from medvol.evaluation.summary import BootstrapPlan, SummaryRow, summarise, worst_cases
from medvol.metrics import Score, Volume

Kind = Literal["masks", "scores"]
#: What ``run.json`` calls a run to the kind of its tables.
EVALUATIONS: dict[str, Kind] = {MASK_RUN: "masks", BUNDLE_RUN: "masks", SCORE_RUN: "scores"}
_COHORTS = {"internal": "", "external": "_external"}


@dataclass(frozen=True)
class Results:
    """One evaluation.

    Attributes:
        folder: The run's folder.
        kind: ``masks`` (segmentation) or ``scores`` (classification).
        command: What ``run.json`` calls the run.
        options: What ``medvol evaluate`` was asked for; paths are absolute.
        inputs: Absolute path to SHA-256 of every file that was read.
        versions: Versions of what decided the numbers.
        table: Rows of ``summary.csv``.
        worst: Rows of ``worst.csv``, worst first.
        scores: Rows of ``scores.csv`` by cohort; the same for the next two.
        volumes: Rows of ``volumes.csv``; segmentation only.
        cases: Rows of ``cases.csv`` as text: subgroups, and for classification the
            probabilities.
        agreement: Rows of ``agreement.csv``; segmentation only.
        curves: Cohorts of ``curves.json``; classification only.
    """

    folder: Path
    kind: Kind
    command: str
    options: Mapping[str, Any]
    inputs: Mapping[Path, str]
    versions: Mapping[str, str]
    table: Sequence[SummaryRow | ClassRow]
    worst: Sequence[Score]
    scores: Mapping[str, Sequence[Score]]
    volumes: Mapping[str, Sequence[Volume]]
    cases: Mapping[str, Sequence[Mapping[str, str]]]
    agreement: Sequence[AgreementRow]
    curves: Sequence[Mapping[str, Any]]


def read_results(folder: Path) -> Results:
    """Read an evaluation's folder; inputs need no longer exist.

    A bundle's own evaluation leaves what it measured; its tables of means are made here, with the
    defaults of ``medvol evaluate masks``.

    Raises:
        MissingInputError: If the folder holds no evaluation.
        InputError: If a file of it is damaged.
    """
    if not (folder / "run.json").is_file():
        raise MissingInputError(
            f"{folder}: holds no evaluation (run.json is missing); run medvol evaluate masks "
            f"-o {folder}"
        )
    run = load_run(folder / "run.json")
    kind = EVALUATIONS.get(run["command"])
    if kind is None:
        raise InputError(f"{folder}: run.json is of {run['command']!r}, not of an evaluation")
    here = {name: end for name, end in _COHORTS.items() if (folder / f"scores{end}.csv").is_file()}
    scores = {name: _scores(folder / f"scores{end}.csv") for name, end in here.items()}
    volumes = {name: read_rows(folder / f"volumes{end}.csv", Volume)
               for name, end in here.items() if kind == "masks"}  # fmt: skip
    cases = {name: _dicts(folder / f"cases{end}.csv") for name, end in here.items()}
    limits: Sequence[AgreementRow] = []
    options = run["options"]
    if run["command"] == BUNDLE_RUN:
        known, plan = read_case_lines(cases["internal"]), BootstrapPlan()
        table: Sequence[SummaryRow | ClassRow] = summarise(scores["internal"], known, plan=plan)
        limits = agreement(volumes["internal"], known, plan)
        worst = worst_cases(scores["internal"], MaskOptions.worst)
        options = {"resamples": plan.resamples, "confidence": plan.confidence, "seed": plan.seed,
                   **options}  # fmt: skip
    else:
        table = read_rows(folder / "summary.csv", SummaryRow if kind == "masks" else ClassRow)
        worst = _scores(folder / "worst.csv")
        limits = read_rows(folder / "agreement.csv", AgreementRow) if kind == "masks" else []
    return Results(
        folder=folder,
        kind=kind,
        command=run["command"],
        options=options,
        inputs={_absolute(folder, name): digest for name, digest in run["inputs"].items()},
        versions=run["versions"],
        table=table,
        worst=worst,
        scores=scores,
        volumes=volumes,
        cases=cases,
        agreement=limits,
        curves=[] if kind == "masks" else read_json(folder / "curves.json")["cohorts"],
    )


def _absolute(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder.absolute() / name))


def _scores(path: Path) -> list[Score]:
    return read_rows(path, Score)


def _dicts(path: Path) -> list[dict[str, str]]:
    return list(CsvRows(io.StringIO(read_text(path), newline="")))
