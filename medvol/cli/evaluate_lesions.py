"""`medvol evaluate lesions`: lesions matched between two times, and how they changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json, Output

EXAMPLE = "medvol evaluate lesions pairs.csv -o changes --repeatability 20"


def run(
    pairs: Annotated[Path, typer.Argument(help="CSV: case, baseline, followup, kind.")],
    output: Output,
    repeatability: Annotated[float | None, typer.Option(help="Limit, % of volume.")] = None,
    as_json: Json = False,
) -> None:
    """Follow every lesion of registered label maps: new, resolved, grown, shrunk or stable."""
    from medvol.evaluation import follow_pairs
    from medvol.reporting import draw_changes

    rows = follow_pairs(pairs, output, repeatability)
    draw_changes(rows, output / "longitudinal.png")
    if as_json:
        print(json.dumps(rows, allow_nan=False))
        return
    for row in rows:
        change = row["change_percent"]
        text = f"{float(change):+.0f}%" if change != "inf" else "new"
        print(f"{row['case']:16}  label {row['label']}  lesion {row['lesion']}  {row['status']:9} "
              f"{row['baseline_ml']:.3f} -> {row['followup_ml']:.3f} ml  {text}  "
              f"{row['n_baseline']} -> {row['n_followup']} components")  # fmt: skip
    if not rows:
        print(f"no lesion at either time\ntables: {output}")
        return
    limits = rows[0].get("limits_percent")
    stated = "none: give --repeatability, or rows of kind retest" if limits is None else (
        f"{limits[0]:.0f}% to +{limits[1]:.0f}%")  # fmt: skip
    print(f"repeatability limit: {stated}\ntables: {output}")
