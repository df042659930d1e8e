"""`medvol evaluate masks`: segmentations against references, as tables with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import (
    By,
    Confidence,
    Jobs,
    Json,
    Output,
    Resamples,
    Seed,
    Split,
    Train,
    Worst,
)
from medvol.core.errors import ConfigError

EXAMPLE = "medvol evaluate masks --pred out --ref Task04_Hippocampus -o scores --by site"


def run(
    pred: Annotated[
        Path, typer.Option(help="Predictions: file, folder, or P/{case}/{label}.nrrd.")
    ],
    ref: Annotated[
        Path, typer.Option(help="References: folder, data set, file, or R/{case}/{label}.nrrd.")
    ],
    output: Output,
    data: Annotated[Path | None, typer.Option(help="Data set: patient, site, sex.")] = None,
    train: Train = None,
    split: Split = None,
    external_pred: Annotated[Path | None, typer.Option(help="External predictions.")] = None,
    external_ref: Annotated[Path | None, typer.Option(help="External references.")] = None,
    external_data: Annotated[Path | None, typer.Option(help="External data set.")] = None,
    by: By = "",
    metrics: Annotated[str, typer.Option(help="Mask metrics.")] = "dice,hd95,assd,nsd_voxel",
    tau: Annotated[str, typer.Option(help="Surface Dice tolerances in mm.")] = "2",
    width: Annotated[float | None, typer.Option(help="Band of boundary_iou in mm.")] = None,
    labels: Annotated[str, typer.Option(help="Label names: 1=liver,2=tumour.")] = "",
    worst: Worst = 10,
    resamples: Resamples = 10_000,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
    jobs: Jobs = 1,
    as_json: Json = False,
) -> None:
    """Score segmentations: every number with its n and its interval, patients resampled whole.

    Label names, regions and the ignore label come from the data set, else the names from the
    predictions' prediction.json.
    """
    from medvol.cli._evaluation import as_list, as_numbers, print_evaluation, progress
    from medvol.evaluation import MaskOptions, evaluate_segmentation

    if (external_pred is None) != (external_ref is None):
        raise ConfigError("--external-pred and --external-ref belong together")
    if external_data is not None and external_pred is None:
        raise ConfigError("--external-data needs --external-pred and --external-ref")
    options = MaskOptions(
        pred, ref, output, data=data, train=train, split=split, external_pred=external_pred,
        external_ref=external_ref, external_data=external_data, by=as_list(by),
        metrics=as_list(metrics), taus_mm=as_numbers(tau, "--tau"), width_mm=width,
        labels=_labels(labels), worst=worst, resamples=resamples, confidence=confidence, seed=seed,
    )  # fmt: skip
    print_evaluation(evaluate_segmentation(options, jobs=jobs, progress=progress()), as_json)


def _labels(text: str) -> dict[int, str] | None:
    from medvol.cli._evaluation import as_list

    found = {}
    for part in as_list(text):
        value, _, name = part.partition("=")
        if not (value.strip().isdigit() and name.strip()):
            raise ConfigError(f"--labels: {part!r} is not of the form 1=liver")
        if int(value) == 0:
            raise ConfigError(f"--labels: {part!r}: 0 is the background, which is not scored")
        found[int(value)] = name.strip()
    return found or None
