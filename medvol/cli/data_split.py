"""`medvol data split`: folds and a test set, by patient, locked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from medvol.core.errors import ConfigError, OutputError

EXAMPLE = "medvol data split Task04_Hippocampus --test 0.2 -o split.json"


def run(
    dataset: Annotated[Path, typer.Argument(help="Folder, dataset.json or CSV.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Split file; splits.json by default.")
    ] = None,
    by: Annotated[str, typer.Option(help="What is kept together: patient.")] = "patient",
    folds: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    test: Annotated[float, typer.Option(help="Share of patients to lock away.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Salt of the hash.")] = 0,
    stratify: Annotated[str, typer.Option(help="Fields to balance: class,site,sex.")] = "class",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Deal patients into folds; an existing split file is extended, never reshuffled."""
    from medvol.datasets import (
        read_dataset,
        read_split,
        require_disjoint_patients,
        require_known_cases,
        split_patients,
        write_split,
    )

    if by != "patient":
        raise ConfigError(f"--by {by} is not offered: only a split by patient keeps scores honest")
    known = {"class": "category", "site": "site", "sex": "sex"}
    fields = [field.strip() for field in stratify.split(",") if field.strip()]
    if unknown := [field for field in fields if field not in known]:
        raise ConfigError(f"--stratify {unknown[0]} is unknown; choose from {', '.join(known)}")
    manifest = read_dataset(dataset)
    target = output or Path("splits.json")
    locked = read_split(target) if target.exists() else None
    if locked and locked.seed != seed:
        raise OutputError(f"{target}: is locked with seed {locked.seed}; choose another --output")
    if locked:
        require_known_cases(manifest, locked, target)
    split = split_patients(manifest, folds=folds, test_fraction=test, seed=seed, locked=locked,
                           stratify=[known[field] for field in fields])  # fmt: skip
    require_disjoint_patients(manifest, split)
    if locked:  # a case that is missing today must find its place again
        split = replace(split, place={**locked.place, **split.place})
    write_split(split, target)
    counts = {f"fold {fold}": len(split.validation(fold)) for fold in range(folds)}
    counts |= {"test": len(split.test)} if split.test else {}
    new = len(split.place) - (len(locked.place) if locked else 0)
    if as_json:
        print(json.dumps({"file": str(target), "cases": len(split.place), "new": new, **counts}))
        return
    print(f"{target}: {len(split.place)} cases, {new} of them new")
    for place, count in counts.items():
        print(f"  {place}: {count}")
