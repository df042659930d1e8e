"""`medvol bundle fork`: a bundle becomes the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json

EXAMPLE = "medvol bundle fork hippocampus_mri_segmentation -o my_mri_segmentation"


def run(
    bundle: Annotated[str, typer.Argument(help="Name or folder of the bundle.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new bundle's folder.")],
    is_json: Json = False,
) -> None:
    """Copy a bundle out, to be edited freely."""
    from medvol.bundle.load import fork

    folder = fork(bundle, output)
    print(json.dumps({"forked": str(folder)}) if is_json else folder)
