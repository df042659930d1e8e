"""Frozen rows as CSV and back, and the checked reading of what an evaluation wrote."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from medvol.core.errors import InputError, MissingInputError

Row = TypeVar("Row")


def fields_to_csv(kind: type[Row], rows: Sequence[Row]) -> str:
    """CSV whose columns are the fields of a dataclass."""
    sink = io.StringIO()
    names = [one.name for one in fields(kind)]  # pyright: ignore[reportArgumentType]
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return sink.getvalue()


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Rows of a CSV file whose columns are the fields of a dataclass.

    Raises:
        InputError: Naming the line and the fault.
    """
    names = [one.name for one in fields(kind)]  # pyright: ignore[reportArgumentType]
    types = {one.name: str(one.type) for one in fields(kind)}  # pyright: ignore[reportArgumentType]
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if missing := [name for name in names if name not in (reader.fieldnames or ())]:
        raise InputError(f"{path}: has no column {missing[0]!r}")
    found = []
    for line, row in enumerate(reader, start=2):
        try:
            found.append(kind(**{name: _PARSERS[types[name]](row[name]) for name in names}))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: line {line}: {error}") from error
    return found


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Column names and rows of a CSV file that a user wrote, without blanks around the texts.

    Raises:
        MissingInputError: If there is no such file or no row in it.
        InputError: If it is no CSV file.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        rows = [
            {k.strip(): (v or "").strip() for k, v in row.items() if isinstance(k, str)}
            for row in reader
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV file: {error}") from error
    if not rows:
        raise MissingInputError(f"{path}: holds no row")
    return [name.strip() for name in reader.fieldnames or ()], rows


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        InputError: If it is none.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is no JSON: {error}") from error


def read_text(path: Path) -> str:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; run medvol evaluate again")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text: {error}") from error


def _is_true(text: str) -> bool:
    return {"True": True, "False": False}[text]


_PARSERS: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": _is_true}
