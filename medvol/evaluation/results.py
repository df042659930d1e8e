"""What `medvol evaluate` left in a folder, read back as the rows that it wrote."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medvol.core.errors import InputError, MissingInputError
from medvol.evaluation.agreement import AgreementRow, Volume
from medvol.evaluation.classification import ClassRow
from medvol.evaluation.rows import read_json, read_rows, read_text
from medvol.evaluation.runs import load_run
from medvol.evaluation.summary import SummaryRow
from medvol.metrics import Score, scores_from_csv

Kind = Literal["masks", "scores"]
_COMMANDS: dict[str, Kind] = {"evaluate --pred --ref": "masks", "evaluate --scores": "scores"}
_COHORTS = {"internal": "", "external": "_external"}


@dataclass(frozen=True)
class Results:
    """One evaluation.

    Attributes:
        folder: The run's folder.
        kind: ``masks`` (segmentation) or ``scores`` (classification).
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

    Raises:
        MissingInputError: If the folder holds no evaluation.
        InputError: If a file of it is damaged.
    """
    if not (folder / "run.json").is_file():
        raise MissingInputError(
            f"{folder}: holds no evaluation (run.json is missing); run medvol evaluate -o {folder}"
        )
    run = load_run(folder / "run.json")
    kind = _COMMANDS.get(run["command"])
    if kind is None:
        raise InputError(f"{folder}: run.json is of {run['command']!r}, not of medvol evaluate")
    is_masks = kind == "masks"
    row: type[Any] = SummaryRow if is_masks else ClassRow
    here = {name: end for name, end in _COHORTS.items() if (folder / f"scores{end}.csv").is_file()}
    return Results(
        folder=folder,
        kind=kind,
        options=run["options"],
        inputs={_absolute(folder, name): digest for name, digest in run["inputs"].items()},
        versions=run["versions"],
        table=read_rows(folder / "summary.csv", row),
        worst=_scores(folder / "worst.csv"),
        scores={name: _scores(folder / f"scores{end}.csv") for name, end in here.items()},
        volumes={
            name: read_rows(folder / f"volumes{end}.csv", Volume)
            for name, end in here.items()
            if is_masks
        },
        cases={name: _dicts(folder / f"cases{end}.csv") for name, end in here.items()},
        agreement=read_rows(folder / "agreement.csv", AgreementRow) if is_masks else [],
        curves=[] if is_masks else read_json(folder / "curves.json")["cohorts"],
    )


def _absolute(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder.absolute() / name))


def _scores(path: Path) -> list[Score]:
    return scores_from_csv(read_text(path), str(path))


def _dicts(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(read_text(path), newline="")))
