"""What `medvol evaluate` left in a folder, read back as the rows that it wrote."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from medvol.core.errors import InputError, MissingInputError
from medvol.evaluation.classification import ClassRow
from medvol.evaluation.runs import load_run
from medvol.evaluation.summary import SummaryRow
from medvol.metrics import Score, scores_from_csv

Row = TypeVar("Row")
Kind = Literal["masks", "scores"]
_COMMANDS: dict[str, Kind] = {"evaluate --pred --ref": "masks", "evaluate --scores": "scores"}


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
        scores: Rows of ``scores.csv`` and ``scores_external.csv`` by cohort.
        worst: Rows of ``worst.csv``, worst first.
    """

    folder: Path
    kind: Kind
    options: Mapping[str, Any]
    inputs: Mapping[Path, str]
    versions: Mapping[str, str]
    table: Sequence[SummaryRow | ClassRow]
    scores: Mapping[str, Sequence[Score]]
    worst: Sequence[Score] = field(default_factory=tuple)


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
    row: type[Any] = SummaryRow if kind == "masks" else ClassRow
    scores = {"internal": _scores(folder / "scores.csv")}
    if (folder / "scores_external.csv").is_file():
        scores["external"] = _scores(folder / "scores_external.csv")
    return Results(
        folder=folder,
        kind=kind,
        options=run["options"],
        inputs={folder.absolute() / name: digest for name, digest in run["inputs"].items()},
        versions=run["versions"],
        table=read_rows(folder / "summary.csv", row),
        scores=scores,
        worst=_scores(folder / "worst.csv"),
    )


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Rows of a CSV file whose columns are the fields of a dataclass.

    Raises:
        InputError: Naming the line and the fault.
    """
    names = [one.name for one in fields(kind)]  # pyright: ignore[reportArgumentType]
    types = {one.name: str(one.type) for one in fields(kind)}  # pyright: ignore[reportArgumentType]
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    if missing := [name for name in names if name not in (reader.fieldnames or ())]:
        raise InputError(f"{path}: has no column {missing[0]!r}")
    found = []
    for line, row in enumerate(reader, start=2):
        try:
            found.append(kind(**{name: _PARSERS[types[name]](row[name]) for name in names}))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: line {line}: {error}") from error
    return found


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        InputError: If it is none.
    """
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is no JSON: {error}") from error


def _scores(path: Path) -> list[Score]:
    return scores_from_csv(_text(path), str(path))


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; run medvol evaluate again")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text: {error}") from error


def _is_true(text: str) -> bool:
    return {"True": True, "False": False}[text]


_PARSERS: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": _is_true}
