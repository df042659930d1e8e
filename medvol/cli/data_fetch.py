"""`medvol data fetch`: a public data set by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medvol.cli._options import Json
from medvol.core.errors import ConfigError

EXAMPLE = "medvol data fetch msd_hippocampus -o data"


def run(
    name: Annotated[str | None, typer.Argument(help="For example msd_hippocampus.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where its folder goes.")] = Path(
        "data"
    ),
    show_list: Annotated[bool, typer.Option("--list", help="Show the known names.")] = False,
    archive: Annotated[
        Path | None, typer.Option(help="A file already downloaded, instead of the network.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="A mirror; the checksum still holds.")] = None,
    keep_archive: Annotated[
        bool, typer.Option(help="Leave the archive beside the folder.")
    ] = False,
    is_json: Json = False,
) -> None:
    """Download, check and unpack a public data set; an interrupted download is resumed."""
    from medvol.cli._progress import Bars
    from medvol.datasets.fetch import PUBLIC, DownloadSource, fetch, find_public

    if show_list:
        rows = [{"name": r.name, "task": r.task, "licence": r.licence} for r in PUBLIC.values()]
        _print(rows, is_json, [f"{r['name']:20} {r['task']} ({r['licence']})" for r in rows])
        return
    if name is None:
        raise ConfigError("name a data set, or see medvol data fetch --list")
    row = find_public(name)
    source = DownloadSource(url or row.url, row.md5)
    with Bars(quiet=is_json, unit="B", scale=True) as bars:
        home = fetch(
            row,
            output,
            archive=archive,
            source=source,
            keep_archive=keep_archive,
            progress=lambda done, total: bars(row.archive, done, total),
        )
    found = {"name": row.name, "folder": str(home), "licence": row.licence}
    _print(found, is_json, [f"{row.name} lies in {home} (licence: {row.licence})"])


def _print(found: Any, is_json: bool, lines: list[str]) -> None:
    print(json.dumps(found) if is_json else "\n".join(lines))
