"""`medvol demo`: the main job on the embedded default."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json

EXAMPLE = "medvol demo -o demo_output"


def run(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.")] = Path(
        "demo_output"
    ),
    train: Annotated[
        bool, typer.Option("--train", help="Also train on CT phantoms, and score unseen ones.")
    ] = False,
    is_json: Json = False,
) -> None:
    """Segment a template head: its brain, and both hippocampi; ends with a page."""
    from medvol.runners import run_demo

    def show(line: str) -> None:
        print(line, file=sys.stderr if is_json else sys.stdout, flush=True)

    result = run_demo(output, show, trains=train)
    if is_json:
        print(json.dumps({"volumes_ml": result.volumes_ml, "phantom_dice": result.phantom_dice,
                          "report": str(result.report)}))  # fmt: skip
    else:
        print(f"report: {result.report}")
