"""`medvol data split`: folds and a test set, by patient, locked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.core.errors import ConfigError, OutputError

EXAMPLE = "medvol data split Task04_Hippocampus --test 0.2 -o split.json"


def run(
    dataset: Annotated[Path, typer.Argument(help="Folder, dataset.json or CSV.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Split file; by default locked_split.json in the data set."
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="What is kept together: patient.")] = "patient",
    folds: Annotated[
        int | None, typer.Option(help="Number of folds; 5, or those of the file that is extended.")
    ] = None,
    test: Annotated[
        float | None, typer.Option(help="Share of patients to lock as test cases; 0 by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Salt of the hash; 0 by default.")] = None,
    stratify: Annotated[str, typer.Option(help="Fields to balance: class,site,sex.")] = "class",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Distribute patients over folds and lock test cases; every other verb respects the file.

    An existing split file is extended, never reshuffled.

    Example: medvol data split DATASET --test 0.2
    """
    from medvol.datasets import (
        LOCK_FILE,
        lock_patients,
        read_dataset,
        read_split,
        require_known_cases,
        write_split,
    )

    if by != "patient":
        raise ConfigError(f"--by {by} is not offered: only a split by patient keeps scores honest")
    known = {"class": "category", "site": "site", "sex": "sex"}
    fields = [field.strip() for field in stratify.split(",") if field.strip()]
    if unknown := [field for field in fields if field not in known]:
        raise ConfigError(f"--stratify {unknown[0]} is unknown; choose from {', '.join(known)}")
    manifest = read_dataset(dataset)
    target = output or manifest.root / LOCK_FILE
    locked = read_split(target) if target.exists() else None
    if locked:
        require_known_cases(manifest, locked, target)
        if seed not in (None, locked.seed):
            raise OutputError(
                f"{target}: is locked with seed {locked.seed}; choose another --output"
            )
        folds, seed = folds or locked.folds, locked.seed
        test = locked.test_fraction if test is None else test
    split = lock_patients(
        manifest, locked, folds=5 if folds is None else folds, seed=seed or 0,
        test_fraction=test or 0.0, stratify=[known[f] for f in fields],
    )  # fmt: skip
    try:
        write_split(split, target)
    except OutputError as error:
        raise OutputError(f"{error}; choose a place with -o FILE, and pass it on with "
                          "--split FILE") from error  # fmt: skip
    counts = {f"fold {fold}": len(split.validation(fold)) for fold in range(split.folds)}
    counts |= {"test": len(split.test)} if split.test else {}
    new = len(split.place) - (len(locked.place) if locked else 0)
    if as_json:
        print(json.dumps({"file": str(target), "cases": len(split.place), "new": new, **counts}))
        return
    print(f"{target}: {len(split.place)} cases, {new} of them new")
    for place, count in counts.items():
        print(f"  {place}: {count}")
    if output and output.absolute() != manifest.root / LOCK_FILE:
        print(f"next: pass it on by --split {target} of plan, or --set split={target} of train")
