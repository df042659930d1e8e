"""`medvol select`: the folds of a training become one bundle, by what validation shows."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from medvol.cli._options import Json, TrustBundle

EXAMPLE = (
    "medvol select hippocampus_mri_segmentation runs --data Task04_Hippocampus "
    "-o chosen_mri_segmentation"
)


def run(
    bundle: Annotated[str, typer.Argument(help="Bundle whose folds were trained.")],
    runs: Annotated[list[str], typer.Argument(help="Folders of medvol train --folds all.")],
    data: Annotated[str, typer.Option("--data", help="Data set that they were trained on.")],
    output: Annotated[str, typer.Option("--output", "-o", help="The new bundle's folder.")],
    holdout: Annotated[str, typer.Option(help="Cases that nothing was trained on.")] = "",
    single: Annotated[bool, typer.Option("--single", help="Export the best fold alone.")] = False,
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="Also search each structure's threshold.")
    ] = False,
    trust_bundle: TrustBundle = False,
    is_json: Json = False,
) -> None:
    """Choose single network or ensemble, thresholds and cleaning; export one bundle."""
    from pathlib import Path

    from medvol.runners import SelectOptions, select

    options = SelectOptions(holdout or None, single, thresholds, trust_bundle)
    found = select(
        bundle, runs, data, output, options, show=lambda line: print(line, file=sys.stderr)
    )
    if is_json:
        print(json.dumps(json.loads((Path(output) / "docs" / "selection.json").read_text("utf-8"))))
        return
    for row in found.networks:
        mark = "->" if row.is_chosen else "  "
        print(f"{mark} {row.what}: Dice {row.dice:.4f} ({row.lower:.4f} to {row.upper:.4f}), "
              f"{row.n} cases")  # fmt: skip
    for row in found.steps:
        mark = "->" if row.is_chosen else "  "
        print(f"{mark} {row.what}: {row.dice:+.4f} ({row.lower:+.4f} to {row.upper:+.4f})")
    print(f"{found.evidence} With what the other folds chose: {found.crossfitted:.4f}.")
    print(f"{output}: {len(found.members)} network(s) in one bundle; next: medvol predict {output} "
          "IMAGE -o OUT --trust-bundle")  # fmt: skip
