"""`medvol bundle list`: what ships, or what bundles elsewhere are; reads metadata alone."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from medvol.cli._options import Json

EXAMPLE = "medvol bundle list --json"


def run(
    bundles: Annotated[list[str] | None, typer.Argument(help="Others, by folder.")] = None,
    is_json: Json = False,
) -> None:
    """List the shipped bundles or those given: task, labels, and whether they have weights."""
    from medvol.bundle.load import Bundle, list_bundles
    from medvol.bundle.places import find_bundle
    from medvol.bundle.verify import bundle_report

    found = [Bundle(find_bundle(name)) for name in bundles or ()] or list_bundles()
    rows = [bundle_report(bundle) for bundle in found]
    if is_json:
        print(json.dumps(rows))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        weights = "weights" if row["weights"] else "recipe "
        print(f"{row['name']:{width}}  {row['version']}  {weights}  {', '.join(row['labels'])}")
