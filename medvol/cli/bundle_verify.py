"""`medvol bundle verify`: every fault of a bundle by name."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from medvol.cli._options import Json, TrustBundle
from medvol.core.errors import ConfigError

EXAMPLE = "medvol bundle verify hippocampus_mri_segmentation"


def run(
    bundles: Annotated[list[str] | None, typer.Argument(help="Names or folders.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every shipped bundle.")] = False,
    trust_bundle: TrustBundle = False,
    is_json: Json = False,
) -> None:
    """Check metadata, properties, targets, network, labels, weights and anatomy policy."""
    from medvol.bundle.load import list_bundles, load
    from medvol.bundle.verify import verify

    chosen = (
        list_bundles()
        if all_
        else [load(b, is_trusted=trust_bundle or None) for b in bundles or []]
    )
    if not chosen:
        raise ConfigError("name a bundle, or pass --all")
    names = [bundle.name for bundle in chosen]
    faults = {
        bundle.name if names.count(bundle.name) == 1 else str(bundle.path): verify(bundle)
        for bundle in chosen
    }
    if is_json:
        print(json.dumps(faults))
    else:
        for name, found in faults.items():
            print(f"{name}: {'sound' if not found else f'{len(found)} faults'}")
            print("".join(f"  {fault}\n" for fault in found), end="")
    if any(faults.values()):
        raise typer.Exit(1)
