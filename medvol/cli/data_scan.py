"""`medvol data scan`: what a folder holds, and why some of it cannot be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "medvol data scan scans --json"


def run(
    folder: Annotated[Path, typer.Argument(help="Any folder of scans.")],
    html: Annotated[
        Path | None, typer.Option(help="Write a page with thumbnails to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """One row per series: modality, size, spacing, tilt, gaps; exit 1 if any cannot be used."""
    from dataclasses import asdict

    from medvol.core.files import write_text
    from medvol.io.scan import scan_folder
    from medvol.io.scan_html import scan_html

    rows = scan_folder(folder, on_file=None if as_json else _progress)
    if html is not None:
        write_text(html, scan_html(rows, str(folder)))
    unusable = sum(not row.is_usable for row in rows)
    if as_json:
        listed = [{**{k: v for k, v in asdict(row).items() if k != "members"},
                   "usable": row.is_usable} for row in rows]  # fmt: skip
        print(json.dumps({"folder": str(folder), "rows": listed, "unusable": unusable}))
    else:
        _print(rows)
        print(f"{len(rows)} series or files, {len(rows) - unusable} usable")
    if unusable:
        raise typer.Exit(1)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty() and (done % 50 == 0 or done == total):
        print(f"\r{done} of {total} files", end="" if done < total else "\n", file=sys.stderr)


def _print(rows: list) -> None:
    from medvol.io.checks import shown

    for row in rows:
        size = "x".join(map(str, row.shape)) or "-"
        spacing = "x".join(f"{v:g}" for v in row.spacing_mm) or "-"
        verdict = "usable" if row.is_usable else f"NOT USABLE: {row.problem}"
        notes = f" ({'; '.join(row.notes)})" if row.notes else ""
        what = f"{row.kind} {row.modality}".strip()
        print(f"{shown(row.path)}: {what} {size} {spacing} mm {row.axes} {verdict}{notes}")
