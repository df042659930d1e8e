"""The validated reading of CSV and JSON files that an evaluation, or a user, wrote."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, TypeVar

from medvol.core.errors import InputError, MissingInputError
from medvol.core.files import CsvRows, fields_from_csv

Row = TypeVar("Row")
_OTHER_SEPARATORS = (";", "\t", "|")


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Rows of a CSV file whose columns are the fields of a dataclass; see ``fields_from_csv``."""
    return fields_from_csv(kind, read_text(path), path)


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Column names and rows of a CSV file that a user wrote, without blanks around the texts.

    Raises:
        MissingInputError: If there is no such file or no row in it.
        InputError: If it is not a CSV file, or one with another separator.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        reader = CsvRows(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        rows = [
            {k.strip(): (v or "").strip() for k, v in row.items() if isinstance(k, str)}
            for row in reader
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is not a CSV file: {error}") from error
    header = [name.strip() for name in reader.fieldnames or ()]
    if len(header) == 1 and (other := next((s for s in _OTHER_SEPARATORS if s in header[0]), "")):
        raise InputError(
            f"{path}: its columns are separated by {other!r}; save it with commas between columns "
            "and points in numbers"
        )
    if not rows:
        raise MissingInputError(f"{path}: holds no row")
    return header, rows


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        InputError: If it is none.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON: {error}") from error


def read_text(path: Path) -> str:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; run medvol evaluate again")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text: {error}") from error
