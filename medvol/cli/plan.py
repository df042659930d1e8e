"""`medvol plan`: a data set becomes a bundle, every choice explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def run(
    dataset: Annotated[Path, typer.Argument(help="MSD, nnU-Net raw, BIDS, or a datalist.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle's folder.")],
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
    seed: Annotated[int, typer.Option(help="Seed of the run and of the folds.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a data set and this machine, and write a bundle that fills the budget."""
    from medvol.cli._progress import Bars
    from medvol.planning import Request, parse_duration, plan_dataset, plan_report

    budget_s = parse_duration(budget)
    request = Request(budget_s, _device(device), gpu_mem, network, folds, seed)
    with Bars(quiet=as_json) as bars:
        plan = plan_dataset(
            dataset, output, request, modality=modality, body_part=body_part, progress=bars
        )
    if as_json:
        print(json.dumps(plan_report(plan)))
        return
    print(f"{plan.folder}: planned; every choice is explained in {plan.values}")
    for note in plan.notes:
        print(f"  {note}")
    print(f"next: medvol train {plan.folder} --data {dataset} --fold 0 --trust-bundle")


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
