"""`medvol evaluate rerun`: repeat a locked evaluation and compare what it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Jobs, Json

EXAMPLE = "medvol evaluate rerun scores/run.json"


def run(
    path: Annotated[Path, typer.Argument(metavar="RUN.JSON", help="Of an evaluation's folder.")],
    jobs: Jobs = 1,
    as_json: Json = False,
) -> None:
    """Repeat the command of a run.json on the same inputs; exit 1 if an output differs."""
    from medvol.cli._evaluation import progress
    from medvol.evaluation import rerun

    changed = rerun(path, jobs=jobs, progress=progress())
    if as_json:
        print(json.dumps({"run": str(path), "identical": not changed, "changed": changed}))
    elif not changed:
        print(f"{path}: repeated exactly")
    else:
        print(f"{path}: differs in {', '.join(changed)}")
    if changed:
        raise typer.Exit(1)
