"""`medvol label env`: the environment that MONAI Label runs in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json
from medvol.cli._progress import Bars

EXAMPLE = "medvol label env --json"


def run(
    output: Annotated[
        str, typer.Option("--output", "-o", help="Its folder; default: the user's cache.")
    ] = "",
    torch: Annotated[str, typer.Option(help="What pip is asked for in place of the lock's.")] = "",
    torch_index: Annotated[
        str, typer.Option(help="Package index for torch alone, e.g. PyTorch's CPU wheels.")
    ] = "",
    is_json: Json = False,
) -> None:
    """Build or update the environment from the shipped lock; a few minutes, once."""
    from medvol.label import build_environment, default_environment
    from medvol.label.environment import TORCH

    target = Path(output) if output else default_environment()
    with Bars(quiet=is_json, unit="step") as bars:
        python = build_environment(
            target, lambda _what, done, total: bars("label environment", done, total),
            torch=torch or TORCH, torch_index=torch_index,
        )  # fmt: skip
    print(json.dumps({"folder": str(target), "python": str(python)}) if is_json else str(python))
