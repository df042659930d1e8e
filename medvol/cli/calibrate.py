"""`medvol calibrate`: a temperature from validation cases, shown on test cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json

EXAMPLE = "medvol calibrate --validation validation.csv --test test.csv -o calibration"


def run(
    validation: Annotated[Path, typer.Option(help="CSV of logits to fit on.")],
    test: Annotated[Path, typer.Option(help="CSV of logits of other cases.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Classifier's folder, which uses it from then on.")
    ] = None,
    sensitivity: Annotated[
        float, typer.Option(help="Of the bundle's threshold on the validation cases.")
    ] = 0.95,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the resamples.", min=0)] = 0,
    is_json: Json = False,
) -> None:
    """Fit a temperature, show calibration before and after, and make a bundle use it."""
    from medvol.core.files import write_json
    from medvol.evaluation import BootstrapPlan, calibrate, show_interval, store

    found = calibrate(validation, test, plan=BootstrapPlan(resamples=resamples, seed=seed))
    if output is not None:
        write_json(output / "calibration.json", found.to_json())
    stored = None
    if bundle is not None:
        stored, _ = store(found, bundle, validation, sensitivity=sensitivity)
    if is_json:
        print(json.dumps(found.to_json(), allow_nan=False))
        return
    print(f"temperature {found.temperature:.4f}, fitted on {found.n_validation} cases")
    for row in found.rows:
        text = show_interval(row.value, row.lower, row.upper)
        print(f"  {row.when:6}  {row.metric:8}  {text}  n={row.n}")
    if stored is not None:
        print(f"the bundle reads it from {stored}")
