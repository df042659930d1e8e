"""`medvol calibrate`: a temperature from validation cases, shown on test cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import By, Json

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
    by: By = "",
    alpha: Annotated[
        float, typer.Option(help="Share of cases of each class whose conformal set may miss it.")
    ] = 0.1,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the resamples.", min=0)] = 0,
    is_json: Json = False,
) -> None:
    """Fit a temperature, show calibration before and after, and make a bundle use it."""
    from medvol.cli._evaluation import as_list
    from medvol.core.files import write_json
    from medvol.evaluation import BootstrapPlan, calibrate, show_interval, store

    found = calibrate(
        validation, test, plan=BootstrapPlan(resamples=resamples, seed=seed), by=as_list(by),
        alpha=alpha,
    )  # fmt: skip
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
    print(f"conformal sets promised to hold the truth in {1 - found.alpha:.0%} of each class")
    for row in found.coverage:
        mark = "" if row.is_kept else "  BROKEN"
        print(
            f"  {row.group:20}  {row.coverage:.3f} (expected {row.expected_lower:.3f} to "
            f"{row.expected_upper:.3f})  {row.mean_size:.2f} classes  n={row.n}{mark}"
        )
    if stored is not None:
        print(f"the bundle reads it from {stored}")
