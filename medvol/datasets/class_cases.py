"""What a classification bundle asks of a data set: cases with the number of their class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medvol.core.errors import ConfigError, InputError, LabelError, MissingInputError
from medvol.datasets.listing import list_images, stem
from medvol.datasets.lock import locked_cases
from medvol.datasets.manifest import Case, Manifest
from medvol.datasets.seen import warn_trained_on
from medvol.datasets.split import fold_names, require_disjoint_patients

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VolumeTarget:
    """A class derived from a label map: 1 where the labelled volume is small, else 0.

    Attributes:
        quantile: The cut-off is this quantile of the training cases' volumes.
        cutoff_ml: A cut-off fixed before; None takes it from the training cases.
    """

    quantile: float = 0.25
    cutoff_ml: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ConfigError(f"quantile {self.quantile} is not between 0 and 1")

    def cutoff_of(self, volumes_ml: Sequence[float]) -> float:
        """The cut-off in millilitres, from the training cases unless it was fixed."""
        if self.cutoff_ml is not None:
            return float(self.cutoff_ml)
        return float(np.quantile(np.asarray(volumes_ml, float), self.quantile))


def class_training_cases(
    dataset_dir: str | os.PathLike[str],
    labels: Mapping[Any, str],
    fold: int = 0,
    folds: int = 5,
    seed: int = 0,
    target: VolumeTarget | None = None,
    allow_shared_patients: bool = False,
    split: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Cases of one fold for training and validation.

    Patients never cross and folds are stratified by class. Cases of classes that the bundle does
    not have are left out. A cut-off that defines the class is fixed on the fold's training cases.

    Args:
        dataset_dir: Anything that :func:`read_dataset` reads; nothing gives no case, so that a
            config can be inspected without data.
        labels: The bundle's classes, number to name.
        fold: The fold that validates; -1 trains on all cases, and the validation figures are
            then no estimate of accuracy.
        folds: Number of folds.
        seed: Salt of the split.
        target: Derives the class from the label map instead of reading a class name.
        allow_shared_patients: Trains on a split of the data set's own that has one patient on both
            sides, with a warning: what it validates is then no estimate for other patients.
        split: A split file outside the data set's folder, see :func:`locked_cases`.

    Returns:
        ``train`` and ``validate``: lists of case, source, image, label (class number) and, where
        the case has a label map, ``mask``; ``classes``: class numbers of ``train`` in order;
        ``counts``: training cases per class.

    Raises:
        MissingInputError: If a class has no case.
        InputError: If a patient is in two places of the data set's own split.
    """
    if not dataset_dir:
        return {"train": [], "validate": [], "classes": [], "counts": [1 for _ in labels]}
    manifest = _usable(dataset_dir, labels, target, split)
    _require_disjoint(manifest, allow_shared_patients)
    volumes = {} if target is None else _volumes_ml(manifest)
    training, validation = fold_names(manifest, fold, folds, seed, lambda: _quartiles(volumes))
    numbers = _numbers(manifest, labels, target, volumes, training)
    train = _entries(manifest, training, numbers)
    counts = Counter(entry["label"] for entry in train)
    for key, name in labels.items():
        if not counts[int(key)]:
            raise MissingInputError(f"{dataset_dir}: no training case is of class {name!r}")
    return {
        "train": train,
        "validate": _entries(manifest, validation, numbers),
        "classes": [entry["label"] for entry in train],
        "counts": [counts[int(key)] for key in sorted(labels, key=int)],
    }


def class_evaluation_cases(
    dataset_dir: str | os.PathLike[str],
    labels: Mapping[Any, str],
    fold: int | None = None,
    folds: int = 5,
    seed: int = 0,
    target: VolumeTarget | None = None,
    split: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Cases with their class to score: those that one fold held out, or the test cases.

    Without a fold the locked test cases are scored, or all cases where none is locked. A cut-off
    that is not fixed comes from the fold's training cases; a warning tells if ``checkpoint`` was
    trained on a case.

    Raises:
        ConfigError: If all cases are asked for and no cut-off is fixed: it would come from the
            test cases themselves.
    """
    if not dataset_dir:
        return []
    manifest = _usable(dataset_dir, labels, target, split, for_test=fold is None)
    volumes = {} if target is None else _volumes_ml(manifest)
    names = [case.case for case in manifest.cases]
    if fold is None:
        if target is not None and target.cutoff_ml is None:
            raise ConfigError("the class needs a fixed cutoff_ml to score cases outside the folds")
        cases = _entries(manifest, names, _numbers(manifest, labels, target, volumes, names))
        warn_trained_on(cases, checkpoint)
        return cases
    training, validation = fold_names(manifest, int(fold), folds, seed, lambda: _quartiles(volumes))
    cases = _entries(manifest, validation, _numbers(manifest, labels, target, volumes, training))
    warn_trained_on(cases, checkpoint)
    return cases


def class_inference_cases(dataset_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every readable image below a folder (or one file), with its own path as ``source``."""
    return [
        {"image": str(path), "source": str(path), "case": stem(path)}
        for path in (list_images(dataset_dir) if dataset_dir else ())
    ]


def _usable(
    dataset_dir: str | os.PathLike[str],
    labels: Mapping[Any, str],
    target: VolumeTarget | None,
    split: str | os.PathLike[str] | None,
    *,
    for_test: bool = False,
) -> Manifest:
    dataset = locked_cases(dataset_dir, split)
    manifest = dataset.manifest
    offered = manifest.select(dataset.choose(manifest.cases, for_test=for_test)).cases
    known = {str(name) for name in labels.values()}
    if target is None:
        names = [case.case for case in offered if case.category in known]
        what = f"of the classes {', '.join(sorted(known))}"
    else:
        names = [case.case for case in offered if case.label is not None]
        what = "with a label map"
    if target is None and (others := len(offered) - len(names)):
        logger.warning("%s: %d cases without a class of %s are left out", dataset_dir, others,
                       ", ".join(sorted(known)))  # fmt: skip
    if not names:
        found = f"; its classes: {', '.join(manifest.classes)}" if manifest.classes else ""
        raise MissingInputError(f"{dataset_dir}: holds no case {what}{found}")
    return manifest.select(names)


def _require_disjoint(manifest: Manifest, is_forced: bool) -> None:
    try:
        require_disjoint_patients(manifest)
    except InputError as objection:
        if not is_forced:
            raise InputError(f"{objection}, or force it with allow_shared_patients") from None
        logger.warning("%s; trained all the same, the validation is not an estimate", objection)


def _numbers(
    manifest: Manifest,
    labels: Mapping[Any, str],
    target: VolumeTarget | None,
    volumes: Mapping[str, float],
    training: Sequence[str],
) -> dict[str, int]:
    if target is None:
        number = {str(name): int(key) for key, name in labels.items()}
        return {case.case: number[str(case.category)] for case in manifest.cases}
    if sorted(int(key) for key in labels) != [0, 1]:
        raise LabelError("a class derived from a volume needs the classes 0 and 1")
    cutoff = target.cutoff_of([volumes[name] for name in training])
    return {name: int(volume <= cutoff) for name, volume in volumes.items()}


def _entries(
    manifest: Manifest, names: Sequence[str], numbers: Mapping[str, int]
) -> list[dict[str, Any]]:
    chosen = set(names)
    return [_entry(case, numbers) for case in manifest.cases if case.case in chosen]


def _entry(case: Case, numbers: Mapping[str, int]) -> dict[str, Any]:
    paths = [str(path) for path in case.images]
    image = paths if len(paths) > 1 else paths[0]
    mask = {} if case.label is None else {"mask": str(case.label)}
    return {
        "case": case.case, "source": paths[0], "image": image, "label": numbers[case.case], **mask
    }  # fmt: skip


def _quartiles(volumes: Mapping[str, float]) -> dict[str, str]:
    if not volumes:
        return {}
    edges = np.quantile(list(volumes.values()), (0.25, 0.5, 0.75))
    return {name: str(int(np.searchsorted(edges, v))) for name, v in volumes.items()}


def _volumes_ml(manifest: Manifest) -> dict[str, float]:
    from medvol.io import read_image

    volumes = {}
    for case in manifest.cases:
        if case.label is None:
            raise InputError(f"case {case.case!r} has no label map to take the class from")
        mask = read_image(case.label)
        voxel_ml = float(abs(np.linalg.det(np.asarray(mask.affine)[:3, :3]))) / 1000
        volumes[case.case] = float((mask > 0).sum()) * voxel_ml
    return volumes
