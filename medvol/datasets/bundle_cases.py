"""What a bundle's config asks of a data set: cases to train on, to score, to predict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from medvol.core.errors import InputError, LabelError, MissingInputError
from medvol.datasets.listing import list_images
from medvol.datasets.lock import LockedDataset, locked_cases
from medvol.datasets.manifest import Case, Manifest
from medvol.datasets.seen import warn_trained_on
from medvol.datasets.split import ALL, fold_names, require_disjoint_patients

#: Share of cases below which the cases that hold a label are spread over the folds.
_RARE = 0.2


def training_cases(
    dataset_dir: str | os.PathLike[str],
    labels: Mapping[Any, str],
    fold: int = 0,
    folds: int = 5,
    seed: int = 0,
    allow_shared_patients: bool = False,
    split: str | os.PathLike[str] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Cases of one fold as lists for ``train`` and ``validate``.

    Patients never cross; folds are stratified by labels that few cases hold, then by quartile of
    the labelled volume. A split file or a ``fold`` column of the data set is respected instead.
    Locked test cases are in neither list.

    Args:
        dataset_dir: Anything that :func:`read_dataset` reads; nothing gives no case, so that a
            config can be inspected without data.
        labels: The bundle's labels, value to name.
        fold: The fold that validates; -1 trains on all cases, and the validation figures are
            then no estimate of accuracy.
        folds: Number of folds.
        seed: Salt of the split.
        allow_shared_patients: Train even if the data set's own folds put a patient on both sides.
        split: A split file outside the data set's folder, see :func:`locked_cases`.

    Raises:
        InputError: If a patient lies on both sides and that is not allowed, the data set was
            changed since its split was locked, or every training label map is empty.
        MissingInputError: If the folder holds no labelled case.
        LabelError: If the data set names its labels otherwise than the bundle.
    """
    if not dataset_dir:
        return {"train": [], "validate": []}
    manifest = _labelled(dataset_dir, locked_cases(dataset_dir, split), labels)
    if not allow_shared_patients:
        require_disjoint_patients(manifest)
    train, validate = _fold_names(manifest, labels, fold, folds, seed)
    chosen = set(train)
    if not any(
        sum(_voxels(case, labels).values()) for case in manifest.cases if case.case in chosen
    ):
        raise InputError(f"{dataset_dir}: no label map of the {len(train)} training cases holds a "
                         "structure; there is nothing to learn")  # fmt: skip
    return {"train": manifest.datalist(train), "validate": manifest.datalist(validate)}


def evaluation_cases(
    dataset_dir: str | os.PathLike[str],
    labels: Mapping[Any, str],
    fold: int | None = None,
    folds: int = 5,
    seed: int = 0,
    split: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Labelled cases to score: those that one fold held out, or the test cases.

    Without a fold the test cases are scored, locked or set aside by the data set itself; all
    labelled cases where there are none. Beside its files a case states ``patient_group``, the
    same text for all cases of one patient (empty where unknown), and ``split``, its part of the
    data set.

    Args:
        dataset_dir: Anything that :func:`read_dataset` reads.
        labels: The bundle's labels, value to name.
        fold: The fold that was held out; None for the test cases.
        folds: Number of folds.
        seed: Salt of the split.
        split: A split file outside the data set's folder.
        checkpoint: Weights that are scored; a warning tells if they were trained on a case.
    """
    if not dataset_dir:
        return []
    dataset = locked_cases(dataset_dir, split)
    manifest = _labelled(dataset_dir, dataset, labels, for_test=fold is None)
    names = [case.case for case in manifest.cases]
    if fold is not None:
        names = _fold_names(manifest, labels, int(fold), folds, seed)[1]
    cases = _with_facts(dataset.manifest, names, "validation" if fold is not None else None)
    warn_trained_on(cases, checkpoint)
    return cases


def inference_cases(dataset_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every readable image below a folder (or one file), label folders left out."""
    return [{"image": str(path)} for path in list_images(dataset_dir)] if dataset_dir else []


def _with_facts(whole: Manifest, names: list[str], split: str | None) -> list[dict[str, Any]]:
    """The rows with what evaluation must know; patients go by number, in order of the cases."""
    cases = {case.case: case for case in whole.cases}
    number = {group: k for k, group in enumerate(dict.fromkeys(c.group for c in whole.cases))}
    rows = whole.datalist(names)
    for row in rows:
        case = cases[row["case"]]
        row["patient_group"] = f"patient {number[case.group]}" if case.patient else ""
        row["split"] = split or whole.split_of(case)
    return rows


def _labelled(
    place: str | os.PathLike[str],
    dataset: LockedDataset,
    labels: Mapping[Any, str],
    *,
    for_test: bool = False,
) -> Manifest:
    manifest = dataset.manifest
    wanted = {int(value): str(name).lower() for value, name in labels.items()}
    found = {int(value): name.lower() for value, name in manifest.labels.items()}
    if found and found != wanted:
        raise LabelError(f"{place}: its labels are {found}, the bundle's are {wanted}")
    labelled = [case for case in manifest.cases if case.label is not None]
    names = dataset.choose(labelled, for_test=for_test)
    if not names:
        raise MissingInputError(f"{place}: holds no case with a label map")
    return manifest.select(names)


def _fold_names(
    manifest: Manifest, labels: Mapping[Any, str], fold: int, folds: int, seed: int
) -> tuple[list[str], list[str]]:
    # Training on all cases validates nothing, so that no label map need be read for it.
    return fold_names(
        manifest, fold, folds, seed, lambda: {} if fold == ALL else _strata(manifest, labels)
    )


def _strata(manifest: Manifest, labels: Mapping[Any, str]) -> dict[str, str]:
    """A case's rarest label where few cases hold it, else the quartile of its labelled volume."""
    counts = [_voxels(case, labels) for case in manifest.cases]
    sizes = [sum(row.values()) for row in counts]
    ranks = np.searchsorted(np.quantile(sizes, (0.25, 0.5, 0.75)), sizes)
    shares = {int(value): np.mean([row[int(value)] > 0 for row in counts]) for value in labels}
    found = {}
    for case, row, rank in zip(manifest.cases, counts, ranks, strict=True):
        rare = [value for value, share in shares.items() if share < _RARE and row[value]]
        found[case.case] = f"+{min(rare, key=shares.__getitem__)}" if rare else str(rank)
    return found


def _voxels(case: Case, labels: Mapping[Any, str]) -> dict[int, int]:
    from medvol.io import read_image

    array = read_image(str(case.label)).numpy()
    return {int(value): int((array == int(value)).sum()) for value in labels}
