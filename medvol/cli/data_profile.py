"""`medvol data profile`: counts, balance, effort and warnings before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json

EXAMPLE = "medvol data profile Task04_Hippocampus -o profile"


def run(
    dataset: Annotated[Path, typer.Argument(help="Folder, dataset.json or CSV.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for JSON, figures and HTML.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Reader minutes an image, or a structure to outline.")
    ] = None,
    readers: Annotated[int, typer.Option(help="Independent readers of every item.")] = 1,
    rate: Annotated[float, typer.Option(help="Pay of a reader an hour.")] = 100.0,
    currency: Annotated[str, typer.Option(help="Of the pay.")] = "USD",
    is_json: Json = False,
) -> None:
    """Show what a data set is, and whether it is enough."""
    from medvol.cli._progress import Bars
    from medvol.datasets import read_dataset
    from medvol.datasets.profile import Effort, profile_dataset
    from medvol.datasets.profile_page import write_profile_page

    effort = Effort(minutes, readers, rate, currency)
    manifest = read_dataset(dataset)
    with Bars(quiet=is_json) as bars:
        profile = profile_dataset(
            manifest,
            effort=effort,
            progress=lambda done: bars("profile", done, len(manifest.cases)),
        )
    page = write_profile_page(profile, manifest, output) if output else None
    if is_json:
        print(json.dumps({**profile.to_dict(), "page": str(page) if page else None}))
        return
    print(
        f"{profile.name}: {profile.task}, {profile.counts['cases']} cases of "
        f"{profile.counts['patients']} patients"
    )
    for name, count in profile.classes.items():
        print(f"  class {name}: {count} images, {profile.patients_by_class[name]} patients")
    for name, row in profile.labels.items():
        print(f"  {name}: in {row['cases']} cases, median {row['volume_median']:.4g}")
    hours, cost = profile.annotation_hours, profile.annotation_cost
    print(f"  effective sample size {profile.effective_n:.0f}")
    print(f"  annotation {hours:.1f} hours, {cost:,.0f} {currency} (assumed {rate:g} an hour)")
    for line in profile.warnings:
        print(f"  warning: {line}")
    if page:
        print(f"written: {page}")
