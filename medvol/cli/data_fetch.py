"""`medvol data fetch`: a public data set by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medvol.core.errors import ConfigError


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Download, check and unpack a public data set; an interrupted download is resumed."""
    from medvol.datasets.fetch import PUBLIC, Source, fetch, find_public

    if show_list:
        rows = [{"name": r.name, "task": r.task, "licence": r.licence} for r in PUBLIC.values()]
        _print(rows, as_json, [f"{r['name']:20} {r['task']} ({r['licence']})" for r in rows])
        return
    if name is None:
        raise ConfigError("name a data set, or see medvol data fetch --list")
    row = find_public(name)
    source = Source(url or row.url, row.md5)
    with _Bar(row.archive, quiet=as_json) as bar:
        home = fetch(
            row, output, archive=archive, source=source, keep_archive=keep_archive, progress=bar
        )
    answer = {"name": row.name, "folder": str(home), "licence": row.licence}
    _print(answer, as_json, [f"{row.name} lies in {home} (licence: {row.licence})"])


class _Bar:
    """A progress bar on stderr that starts with the first bytes."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self._title, self._quiet, self._bar = title, quiet, None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int | None) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._title,
                total=total,
                unit="B",
                unit_scale=True,
                initial=done,
                disable=self._quiet,
            )
        self._bar.update(done - self._bar.n)


def _print(answer: Any, as_json: bool, lines: list[str]) -> None:
    print(json.dumps(answer) if as_json else "\n".join(lines))
