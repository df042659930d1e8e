"""`medvol compare`: two models on the same cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "medvol compare scores_a scores_b -o comparison"


def run(
    first: Annotated[Path, typer.Argument(help="Evaluation folder, scores.csv or predictions.")],
    second: Annotated[Path, typer.Argument(help="The same of the other model.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set that knows the patients.")] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the resamples.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Paired differences (first minus second) with intervals, tests and Holm's correction."""
    from medvol.core.files import fields_to_csv, write_text
    from medvol.evaluation import BootstrapPlan, Comparison, compare, show_interval

    rows = compare(first, second, data=data, plan=BootstrapPlan(resamples=resamples, seed=seed))
    if output is not None:
        write_text(output / "comparison.csv", fields_to_csv(Comparison, rows))
    if as_json:
        print(json.dumps([row.to_json() for row in rows], allow_nan=False))
        return
    for row in rows:
        text = show_interval(row.difference, row.lower, row.upper)
        print(f"{row.label:18}  {row.metric:16}  {row.first:.4g} against {row.second:.4g}  "
              f"difference {text}  n={row.n}, {row.n_undefined} undefined  better {row.better}, "
              f"worse {row.worse}  {row.test} p={row.p:.3g}, Holm {row.p_holm:.3g}")  # fmt: skip
    if data is None:
        print("a case of which no patient is known counts as one patient; --data names them")
