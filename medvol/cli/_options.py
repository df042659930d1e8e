"""Options that several verbs share, worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TrustBundle = Annotated[
    bool, typer.Option("--trust-bundle", help="Run code in a bundle that is not shipped.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")]
Train = Annotated[Path | None, typer.Option(help="Training data set: no patient twice.")]
Split = Annotated[Path | None, typer.Option(help="Split file: names cases that trained.")]
By = Annotated[str, typer.Option(help="Subgroup columns: site,sex,age.")]
Worst = Annotated[int, typer.Option(help="Worst cases listed.", min=0)]
Resamples = Annotated[int, typer.Option(help="Bootstrap resamples.")]
Confidence = Annotated[float, typer.Option(help="Nominal coverage.")]
Seed = Annotated[int, typer.Option(help="Of the resamples.", min=0)]
Jobs = Annotated[int, typer.Option(help="Processes; they change no number.", min=1)]
