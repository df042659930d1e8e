"""A table as CSV text, the same for every file that we write."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def csv_text(header: Sequence[str], rows: Iterable[Iterable[Any] | Mapping[str, Any]]) -> str:
    """Header and rows, each ended by one newline; a mapping gives its values by column name.

    >>> csv_text(["case", "n"], [("a", 1), {"n": 2}])
    'case,n\\na,1\\n,2\\n'
    """
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(
            [row.get(name, "") for name in header] if isinstance(row, Mapping) else [*row]
        )
    return sink.getvalue()
