"""`medvol study`: a scripted evaluation from data to tables, report and card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvol.cli._options import Json
from medvol.core.errors import ConfigError
from medvol.core.files import CsvRows

if TYPE_CHECKING:
    from medvol.runners import Study


EXAMPLE = "medvol study my_study.yaml --data hippocampus=Task04_Hippocampus -o study_output"


#: Numbers that the printed table leaves to arms.csv.
_ONLY_IN_FILE = {"ppv", "npv", "accuracy", "balanced_accuracy", "mcc", "lr_plus", "lr_minus",
                 "macro_f1", "kappa"}  # fmt: skip


def run(
    study: Annotated[str, typer.Argument(help="Shipped name, or a YAML file.")],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER, or FOLDER if the study has one.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field: train.max_epochs=2.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the steps, do none.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes for scoring.")] = 1,
    is_json: Json = False,
) -> None:
    """Train, predict, evaluate and compare every arm; run it again to go on after a kill."""
    from medvol.runners import find_study, plan_study, read_study, run_study

    found = read_study(find_study(study), change or ())
    places = _places(found, data or [])
    if output is None:
        raise ConfigError("medvol study needs an output folder: -o FOLDER")
    if dry_run:
        steps = [step.name for step in plan_study(found, places, output)]
        print(json.dumps(steps) if is_json else "\n".join(steps))
        return
    from medvol.cli._progress import Bars

    with Bars(quiet=is_json, unit="part") as bars:

        def progress(name: str, number: int, total: int, done: int, parts: int) -> None:
            bars(f"[{number}/{total}] {name}", done, parts or None)

        content = run_study(found, places, output, progress, jobs=jobs)
    if is_json:
        print(json.dumps({"output": str(output), "steps": content["steps"],
                          "report": str(output / "report" / "report.html"),
                          "card": str(output / "card" / "card.md")}))  # fmt: skip
        return
    print(_tables(output))
    print(f"report: {output / 'report' / 'report.html'}")
    print(f"card: {output / 'card' / 'card.md'}")


def _places(study: Study, given: list[str]) -> dict[str, Path]:
    places = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not sign and len(study.data) == 1:
            name, folder = study.data[0].name, text
        elif not sign:
            raise ConfigError(f"--data {text!r} is not of the form NAME=FOLDER")
        places[name] = Path(folder)
    return places


def _tables(output: Path) -> str:
    from medvol.evaluation import show, show_interval

    lines = []
    for name in ("arms.csv", "tests.csv"):
        if not (output / name).is_file():
            continue
        lines.append(name)
        with (output / name).open(newline="", encoding="utf-8") as handle:
            lines += [_line(row, show, show_interval) for row in CsvRows(handle)
                      if row["metric"].partition("@")[0] not in _ONLY_IN_FILE]  # fmt: skip
    return "\n".join(lines)


def _line(row: dict[str, str], show: Any, show_interval: Any) -> str:
    from medvol.evaluation.summary import SMALL_GROUP

    where = f"  {row['data']}  {row['arm']:16}  {row['label']:16}  {row['metric']:30}"
    bounds = float(row["lower"]), float(row["upper"])
    if "p_holm" in row:
        text = show_interval(float(row["difference"]), *bounds)
        return (f"{where} against {row['reference']}: {text}  n={row['n']}  {row['test']} "
                f"p={float(row['p']):.3g}, Holm {float(row['p_holm']):.3g}")  # fmt: skip
    text = show_interval(float(row["value"]), *bounds)
    low, high = (show(float(row[f"seed_{end}"])) for end in ("lowest", "highest"))
    spread = f"  {row['seeds']} seeds {low} to {high}" if int(row["seeds"]) > 1 else ""
    few = "  few patients" if int(row["n_patients"]) < SMALL_GROUP else ""
    return f"{where} {row['statistic']:6} {text}  n={row['n']}{spread}{few}"
