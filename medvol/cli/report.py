"""`medvol report`: evaluations become one offline page with its figures and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.core.errors import ConfigError

EXAMPLE = "medvol report scores -o report"

_Images = Annotated[Path | None, typer.Option(help="Data set or folder of the cases' images.")]


def run(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of evaluations, or one folder of predictions.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "",
    names: Annotated[str, typer.Option(help="A name for each run: ours,theirs.")] = "",
    images: _Images = None,
    volumes: Annotated[int, typer.Option(help="Worst cases shown in 3D.", min=0)] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write report.html (one file, no network), figures as PDF and PNG, tables as CSV and LaTeX."""
    from medvol.cli._progress import Bars
    from medvol.reporting import write_prediction_report, write_report

    if output is None:
        if len(runs) > 1:
            raise ConfigError("medvol report of several runs needs an output folder: -o FOLDER")
        output = runs[0] / "report"
    called = [name.strip() for name in names.split(",")] if names else []
    with Bars(quiet=as_json, unit="step") as bars:
        if len(runs) == 1 and _holds_predictions(runs[0]):
            done = write_prediction_report(runs[0], output, title=title,
                                           images=_by_case(images), progress=bars)  # fmt: skip
        else:
            done = write_report(runs, output, title=title, names=called, images=images,
                                volumes=volumes, progress=bars)  # fmt: skip
    if as_json:
        answer = {
            "report": str(done.page),
            "figures": [str(path) for path in done.figures],
            "tables": [str(path) for path in done.tables],
            "volumes": list(done.volumes),
        }
        print(json.dumps(answer))
        return
    print(f"{len(done.figures)} figures, {len(done.tables)} tables, "
          f"{len(done.volumes)} cases in 3D")  # fmt: skip
    print(f"report: {done.page}")


def _holds_predictions(folder: Path) -> bool:
    return not (folder / "run.json").exists() and any(folder.glob("*/prediction.json"))


def _by_case(images: Path | None) -> dict[str, Path] | None:
    if images is None:
        return None
    from medvol.runners import find_cases

    return {case.name: Path(case.path) for case in find_cases([images])}
