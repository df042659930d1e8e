"""Files that are whole or absent: atomic writes with read-back, and names that stay inside."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from medvol.core.errors import InputError, MedvolError, OutputError

#: Bytes of a name; file systems allow 255.
LONGEST_NAME = 180
_CHUNK = 1 << 20
_Row = TypeVar("_Row")
#: What a field's CSV text becomes, by the name of its type.
_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "str": str, "int": int, "float": float, "bool": {"True": True, "False": False}.__getitem__,
}  # fmt: skip


@contextmanager
def atomic_path(
    target: str | os.PathLike[str], *, verify: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """A scratch path beside ``target`` that replaces it only when the block ends well.

    The scratch file keeps the target's suffixes, so that writers which go by suffix work. It is
    flushed to disk, passed to ``verify``, then renamed over the target in one step; on any
    failure it is removed and the old file stays.

    Args:
        target: The final path; its folder is created.
        verify: Called with the scratch path; raises if what was written is not what was meant.

    Raises:
        OutputError: If the file cannot be written (disk full, no permission).
    """
    target = Path(target)
    scratch = target.with_name(f".{secrets.token_hex(4)}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        with scratch.open("rb") as handle:
            os.fsync(handle.fileno())
        if verify is not None:
            verify(scratch)
        os.replace(scratch, target)
        _sync_folder(target.parent)
    except MedvolError:
        raise
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)


def write_bytes(target: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` atomically and read it back before the name appears."""

    def same(path: Path) -> None:
        if path.read_bytes() != content:
            raise OutputError(f"{target}: what was read back differs from what was written")

    with atomic_path(target, verify=same) as scratch:
        scratch.write_bytes(content)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically, indented, rejecting NaN (which is not JSON)."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


#: What makes a spreadsheet take a cell for a formula, behind the apostrophes of earlier escapes.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED = re.compile(r"'(?='*[=+\-@\t\r])")


def safe_cell(value: Any) -> Any:
    """A cell that no spreadsheet runs: text that would be a formula gets an apostrophe in front.

    Numbers stay as they are. :class:`CsvRows` takes the apostrophe off again, and so does
    ``table.replace(r"^'(?='*[=+\\-@\\t\\r])", "", regex=True)`` in pandas.

    >>> safe_cell("=1+1"), safe_cell("-0.5"), safe_cell("a=b"), safe_cell(-2)
    ("'=1+1", '-0.5', 'a=b', -2)
    """
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def plain_cell(text: str) -> str:
    """The value that :func:`safe_cell` was given.

    >>> plain_cell("'=1+1"), plain_cell("'quoted'")
    ('=1+1', "'quoted'")
    """
    return text[1:] if _ESCAPED.match(text) else text


class CsvRows(csv.DictReader):
    """Rows of a CSV as :class:`csv.DictReader` gives them, with the values that were written."""

    def __next__(self) -> dict[str | Any, str | Any]:
        row = super().__next__()
        return {k: plain_cell(v) if isinstance(v, str) else v for k, v in row.items()}


def csv_text(names: Sequence[str], rows: Iterable[Iterable[Any] | Mapping[str, Any]]) -> str:
    """CSV with a header and Unix line ends; floats keep every digit.

    A row is its values in order, or a mapping of column to value, where absent ones stay empty.

    >>> csv_text(["case", "value"], [("a", 0.1)])
    'case,value\\na,0.1\\n'
    """
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([safe_cell(name) for name in names])
    for row in rows:
        if isinstance(row, Mapping):
            writer.writerow([safe_cell(row.get(name, "")) for name in names])
        else:
            writer.writerow([safe_cell(value) for value in row])
    return sink.getvalue()


def fields_to_csv(kind: type[_Row], rows: Iterable[_Row]) -> str:
    """CSV whose columns are the fields of a dataclass."""
    names = [one.name for one in fields(kind)]  # pyright: ignore[reportArgumentType]
    return csv_text(names, ([getattr(row, name) for name in names] for row in rows))


def fields_from_csv(kind: type[_Row], text: str, source: str | os.PathLike[str]) -> list[_Row]:
    """Rows of a CSV whose columns are the fields (text, numbers, truth values) of a dataclass.

    Args:
        kind: The dataclass.
        text: The file's content.
        source: The file's name, for messages.

    Raises:
        InputError: If a column is missing or a value does not fit its field.
    """
    types = {one.name: str(one.type) for one in fields(kind)}  # pyright: ignore[reportArgumentType]
    reader = CsvRows(io.StringIO(text, newline=""))
    if missing := [name for name in types if name not in (reader.fieldnames or ())]:
        raise InputError(f"{source}: has no column {missing[0]!r}; needed: {', '.join(types)}")
    found = []
    for line, row in enumerate(reader, start=2):
        values = {}
        for name, type_name in types.items():
            try:
                values[name] = _PARSERS[type_name](row[name])
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    f"{source}: line {line}: {name} {row[name]!r} is not of type {type_name}"
                ) from None
        found.append(kind(**values))
    return found


def rows_to_csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """CSV of rows by column name; a column that a row lacks stays empty.

    Args:
        rows: Column name to value.
        names: Columns that come first, also where there is no row.
    """
    every = list(dict.fromkeys([*names, *(name for row in rows for name in row)]))
    return csv_text(every, rows)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def output_path(folder: str | os.PathLike[str], *parts: str) -> Path:
    """Join names to an output folder so that the result stays inside it.

    Each part is one name: separators, drive letters, control characters and leading dots are
    replaced, so that ``../x`` cannot climb out.

    Raises:
        OutputError: If a link inside the folder leads elsewhere.
    """
    root = Path(folder)
    path = root.joinpath(*[safe_name(part) for part in parts])
    if not path.resolve().is_relative_to(root.resolve()):
        raise OutputError(f"{path}: would be written outside {root}")
    return path


def safe_name(name: str) -> str:
    """``name`` reduced to letters, digits, ``.``, ``_``, ``-``, ``+`` and ``@``; never empty.

    At most ``LONGEST_NAME`` bytes, so that suffixes and scratch marks still fit a file system.

    >>> safe_name("../../etc/passwd")
    'etc_passwd'
    """
    cleaned = re.sub(r"[^\w.+@-]+", "_", name).lstrip("._")
    return cleaned.encode()[:LONGEST_NAME].decode(errors="ignore").rstrip(". ") or "unnamed"


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
