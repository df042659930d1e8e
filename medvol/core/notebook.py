"""Tables as a notebook shows them, and as pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from medvol.core.errors import MissingPackageError

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]


def data_frame(rows: Sequence[Row]) -> DataFrame:
    """Rows as a pandas table.

    Raises:
        MissingPackageError: If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingPackageError("to_pandas needs pandas: pip install pandas") from error
    return pd.DataFrame([dict(row) for row in rows])


def html_table(rows: Sequence[Row]) -> str:
    """Rows as an HTML table; every text is escaped.

    >>> html_table([{"name": "<liver>", "volume_ml": 1.5}])
    '<table><tr><th>name</th><th>volume_ml</th></tr><tr><td>&lt;liver&gt;</td><td>1.5</td></tr></table>'
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = (
        "".join(f"<td>{escape(str(row.get(name, '')))}</td>" for name in columns) for row in rows
    )
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
