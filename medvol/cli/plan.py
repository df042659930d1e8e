"""`medvol plan`: a data set becomes a bundle, every choice explained."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json

EXAMPLE = "medvol plan Task04_Hippocampus -o my_mri_segmentation --budget 2h"

#: Options of planning, which do not apply to a network that is trained already.
_OF_A_PLAN = ("budget", "device", "gpu_mem", "network", "folds", "seed", "split")


def run(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle's folder.")],
    dataset: Annotated[
        Path | None, typer.Argument(help="MSD, nnU-Net raw, BIDS, or a datalist.")
    ] = None,
    from_nnunet: Annotated[
        Path | None, typer.Option(help="Instead of a data set: a folder that nnU-Net v2 trained.")
    ] = None,
    budget: Annotated[str, typer.Option(help="Time of one training run: 90s, 12m, 2h.")] = "2h",
    device: Annotated[str, typer.Option(help="Where it trains: auto, cpu or cuda.")] = "auto",
    gpu_mem: Annotated[float, typer.Option(help="Memory of the GPU in GB.")] = 12.0,
    network: Annotated[
        str, typer.Option(help="auto, folded, plain, residual, segresnet or swin_unetr.")
    ] = "auto",
    modality: Annotated[str | None, typer.Option(help="CT, MR, PT, XR, US or RGB.")] = None,
    body_part: Annotated[
        str | None, typer.Option(help="Tells which mirrors and turns are legal.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the run and of the folds.", min=0)] = 0,
    split: Annotated[
        Path | None, typer.Option(help="Split file of medvol data split -o, where not in DATASET.")
    ] = None,
    is_json: Json = False,
) -> None:
    """Measure a data set and this machine, and write a bundle that fills the budget."""
    if from_nnunet is not None or dataset is None:
        _reject_planning(ctx)
        _import(from_nnunet, dataset, output, (body_part, modality), is_json)
        return
    from medvol.cli._progress import Bars
    from medvol.planning import Request, parse_duration, plan_dataset, plan_report

    budget_s = parse_duration(budget)
    request = Request(budget_s, _device(device), gpu_mem, network, folds, seed)
    with Bars(quiet=is_json) as bars:
        plan = plan_dataset(
            dataset, output, request, modality=modality, body_part=body_part, split=split,
            progress=bars,
        )  # fmt: skip
    if is_json:
        print(json.dumps(plan_report(plan)))
        return
    print(f"{plan.folder}: planned; every choice is explained in {plan.values}")
    for note in plan.notes:
        print(f"  {note}")
    words = [str(plan.folder), "--data", str(dataset), "--folds", "all", "--trust-bundle"]
    words += ["--set", f"split={split.absolute()}"] if split else []
    print(f"next: medvol train {shlex.join(words)}")


def _reject_planning(ctx: typer.Context) -> None:
    from medvol.core.errors import ConfigError

    for name in _OF_A_PLAN:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(
                f"--{name.replace('_', '-')} cannot be combined with --from-nnunet; "
                "give a data set to plan for"
            )


def _import(
    source: Path | None,
    dataset: Path | None,
    output: Path,
    facts: tuple[str | None, str | None],
    is_json: bool,
) -> None:
    from medvol.core.errors import ConfigError
    from medvol.planning import import_nnunet

    body_part, modality = facts
    if source is None or dataset is not None:
        raise ConfigError("give either a data set or --from-nnunet FOLDER")
    if body_part is None:
        raise ConfigError("--from-nnunet needs --body-part, to know which mirrors are legal")
    found = import_nnunet(source, output, body_part, modality=modality)
    if is_json:
        print(json.dumps({"folder": str(found.folder), "folds": found.folds, "notes": found.notes}))
        return
    print(f"{found.folder}: imported from nnU-Net, folds {', '.join(found.folds)}")
    for note in found.notes:
        print(f"  {note}")
    print(f"next: medvol predict {shlex.quote(str(found.folder))} IMAGE -o OUT --trust-bundle")


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
