"""`medvol card`: a model card and the checklists of reporting guidelines, filled from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json

EXAMPLE = "medvol card hippocampus_mri_segmentation scores -o card"


def run(
    sources: Annotated[
        list[str], typer.Argument(help="Bundles (name or folder), and runs' folders.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    own: Annotated[
        Path | None, typer.Option("--facts", help="YAML of what no file can know: ethics: ...")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the card.")] = "",
    is_json: Json = False,
) -> None:
    """Write card.md, claim.md, stard_ai.md and tripod_ai.md; unknown items read NOT PROVIDED."""
    from medvol.bundle import load
    from medvol.reporting import write_card

    places = [Path(s) if Path(s).is_dir() else load(s).path for s in sources]
    card = write_card(places, output, own=own, title=title)
    if is_json:
        print(json.dumps({"files": [str(path) for path in card.files], "answered": card.answered,
                          "missing": card.missing}))  # fmt: skip
        return
    for name, (done, total) in card.answered.items():
        print(f"{name:12} {done} of {total} topics have evidence")
    print(f"not provided, state them with --facts: {', '.join(card.missing)}")
    print(f"card: {card.files[0]}")
