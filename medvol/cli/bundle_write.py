"""`medvol bundle write`: values and parts become a bundle folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json
from medvol.core.errors import ConfigError

EXAMPLE = "medvol bundle write --all --check"


def run(
    names: Annotated[list[str] | None, typer.Argument(help="Names of values files.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every values file.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if stale.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the bundle.")
    ] = None,
    is_json: Json = False,
) -> None:
    """Write bundles from configs/bundles/NAME.yaml and configs/parts."""
    from medvol.bundle.write import all_names, stale, write

    chosen = all_names() if all_ else (names or [])
    if not chosen:
        raise ConfigError("name a bundle, or pass --all")
    if output is not None and len(chosen) != 1:
        raise ConfigError("-o takes one bundle")
    if check:
        old = {name: stale(name, output) for name in chosen}
        old = {name: files for name, files in old.items() if files}
        lines = [f"{name}: {', '.join(files)}" for name, files in old.items()]
        print(json.dumps({"stale": old}) if is_json else "\n".join(lines) or "all fresh")
        if old:
            raise typer.Exit(1)
        return
    folders = [str(write(name, output)) for name in chosen]
    print(json.dumps({"written": folders}) if is_json else "\n".join(folders))
