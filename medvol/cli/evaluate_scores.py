"""`medvol evaluate scores`: a classifier's probabilities, as tables with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import (
    By,
    Confidence,
    Json,
    Output,
    Resamples,
    Seed,
    Split,
    Train,
    Worst,
)
from medvol.core.errors import ConfigError

EXAMPLE = "medvol evaluate scores test.csv --validation val.csv -o scores"


def run(
    test: Annotated[Path, typer.Argument(help="CSV of the test cases: case, truth, prob ...")],
    output: Output,
    validation: Annotated[Path | None, typer.Option(help="CSV to fix thresholds on.")] = None,
    external: Annotated[Path | None, typer.Option(help="CSV of an external cohort.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set: class, patient, site.")] = None,
    train: Train = None,
    split: Split = None,
    positive: Annotated[str | None, typer.Option(help="Positive class.")] = None,
    at: Annotated[
        str, typer.Option(help="Operating points: sensitivity>=0.95,youden (with --validation).")
    ] = "",
    prevalence: Annotated[float | None, typer.Option(help="State PPV and NPV at it.")] = None,
    by: By = "",
    worst: Worst = 10,
    resamples: Resamples = 10_000,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score classifications; thresholds are fixed on other cases than those tested."""
    from medvol.cli._evaluation import as_list, print_evaluation
    from medvol.evaluation import ScoreOptions, evaluate_scores

    if at and validation is None:
        raise ConfigError("--at needs --validation: an operating point is fixed on other cases")
    rules = {"rules": as_list(at)} if at else {}
    options = ScoreOptions(
        test, output, validation=validation, external=external, data=data, train=train, split=split,
        positive=positive, prevalence=prevalence, by=as_list(by), worst=worst,
        resamples=resamples, confidence=confidence, seed=seed, **rules,
    )  # fmt: skip
    print_evaluation(evaluate_scores(options), as_json)
