"""`medvol train`: a bundle, a data set, weights."""

from __future__ import annotations

import json
import math
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from medvol.cli._options import Json, TrustBundle
from medvol.core.errors import ConfigError

if TYPE_CHECKING:
    from medvol.runners import FoldRun


EXAMPLE = "medvol train hippocampus_mri_segmentation --data Task04_Hippocampus -o runs --folds all"


def run(
    bundle: Annotated[str, typer.Argument(help="Shipped name or folder of a bundle.")],
    data: Annotated[str, typer.Option("--data", help="Data set to train on.")],
    output: Annotated[str, typer.Option("--output", "-o", help="One folder per fold.")] = "",
    folds: Annotated[str, typer.Option(help="all, or 0,2; -1 trains on every case.")] = "0",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue what was cut off, keep what ended.")
    ] = False,
    budget: Annotated[str, typer.Option(help="Time for all folds: 90s, 12m, 2h, 1.5d.")] = "",
    processes: Annotated[int, typer.Option(min=1, help="Processes a fold, by torchrun.")] = 1,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the bundle: max_epochs=50.")
    ] = None,
    runner: Annotated[str, typer.Option(help="local, or ray: folds side by side.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Folds at a time on Ray.")] = 2,
    address: Annotated[str, typer.Option(help="Ray cluster; empty starts one here.")] = "",
    shard: Annotated[
        str, typer.Option(help="i/n: every n-th fold from the i-th; one process for each i.")
    ] = "",
    trust_bundle: TrustBundle = False,
    is_json: Json = False,
) -> None:
    """Train a bundle's folds; what is cut off is continued with --resume, bit for bit on a CPU."""
    from medvol.planning import parse_duration
    from medvol.runners import (
        TrainOptions,
        line_of,
        next_step,
        require_success,
        run_training,
        sweep,
    )

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the training ends with us
    name = bundle.rstrip("/").rpartition("/")[2]
    options = TrainOptions(
        bundle=bundle, data=data, output=output or f"runs/{name}", folds=_folds(folds),
        is_resumed=resume, budget_s=parse_duration(budget) if budget else None,
        processes=processes, trust_bundle=trust_bundle, shard=shard,
        settings=_settings(settings or []),
    )  # fmt: skip
    if runner not in ("local", "ray"):
        raise ConfigError(f"--runner {runner!r} is unknown; choose local or ray")
    if runner == "ray":
        runs = sweep(options, workers, address, _show)
    else:
        runs = run_training(options, _show)
    mean, following = _mean(runs), next_step(options, runs)
    if is_json:
        rows = [one.row() for one in runs]
        found = {"output": options.output, "folds": rows, "mean": mean, "next": following}
        print(json.dumps(found))
    else:
        for one in runs:
            print(line_of(one))
        if len(runs) > 1 and mean is not None:
            print(f"mean over {len(runs)} folds: {mean:.4f}")
        if following:
            print(f"next: {following}")
    require_success(runs)


def _show(line: str) -> None:
    print(line, file=sys.stderr)


def _folds(text: str) -> tuple[int, ...] | None:
    if text == "all":
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--folds {text!r} is neither all nor numbers like 0,1") from error


def _settings(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (_, sign, _) in zip(texts, pairs, strict=True) if not sign]:
        raise ConfigError(f"--set {bad[0]!r} is not of the form option=value")
    return {name: value for name, _, value in pairs}


def _mean(runs: list[FoldRun]) -> float | None:
    known = [one.best for one in runs if math.isfinite(one.best)]
    return math.fsum(known) / len(known) if known else None
