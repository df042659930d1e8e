"""`medvol bundle fork`: a bundle becomes the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def run(
    bundle: Annotated[str, typer.Argument(help="Name or folder of the bundle.")],
    into: Annotated[Path, typer.Argument(help="The new bundle's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy a bundle out, to be edited freely."""
    from medvol.bundle.load import fork

    folder = fork(bundle, into)
    print(json.dumps({"forked": str(folder)}) if as_json else folder)
