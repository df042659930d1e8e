"""A cohort of label maps: which belong together, what their values mean, and whose they are."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medvol.core.errors import ConfigError, InputError, LabelError, MedvolError, MissingInputError
from medvol.core.files import sha256_file
from medvol.evaluation import pairing
from medvol.evaluation.cases import (
    CaseInfo,
    from_manifest,
    from_names,
    numbered,
    placed,
    require_no_overlap,
)
from medvol.evaluation.pairing import MaskFiles
from medvol.metrics import Structures

if TYPE_CHECKING:
    from medvol.datasets import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cohort:
    """What is compared, and what is known about it.

    Attributes:
        name: ``internal`` or ``external``.
        files: The pairs of label maps.
        structures: What is scored in them.
        cases: What is known of each case, in the order of ``files``.
        images: Case to its first image, where a data set names it.
        indexes: Files that were read to know all this.
        manifest: The data set that knows the patients, if any.
    """

    name: str
    files: Sequence[MaskFiles]
    structures: Structures
    cases: Mapping[str, CaseInfo]
    images: Mapping[str, Path]
    indexes: Sequence[Path]
    manifest: Manifest | None


def find_cohort(
    name: str,
    pred: Path,
    ref: Path,
    data: Path | None = None,
    labels: Mapping[int, str] | None = None,
    split: Path | None = None,
) -> Cohort:
    """Pair predictions with references and gather what data sets and predictions state.

    Args:
        name: ``internal`` or ``external``.
        pred: Folder of predictions, a manifest that names them, a template, or one label map.
        ref: Folder of references, a data set that names them, a template, or one label map.
        data: Data set that knows patients, site and sex; ``ref`` if that is one.
        labels: Label value to name, before what any data set states.
        split: File of ``medvol data split`` that states which cases trained.

    Raises:
        InputError: If ``data`` knows none of the cases.
        LabelError: If the predictions name a label otherwise than the references.
    """
    from medvol.datasets import index_files

    about = None if data is None else _read(data)
    source, place = _references(ref)
    files = _pairs(pred, ref, source if place == ref else None)
    for one in files:
        pairing.require_unaltered(one.pred)
    names = list(dict.fromkeys(one.case for one in files))
    cases = from_names(names, name)
    for manifest in (source, about):
        known = from_manifest(manifest, name) if manifest else {}
        if manifest is about and about and not set(known) & set(names):
            raise InputError(
                f"{data}: knows none of the {len(names)} cases of {ref}, for example {names[0]!r}"
            )
        cases |= {case: cases[case].joined(known[case]) for case in names if case in known}
    images = {c.case: c.image for m in (source, about) if m for c in m.cases if c.case in cases}
    stated = next((m for m in (about, source) if m and m.labels), None)
    indexes = [file for path in (data, place, split) if path for file in index_files(path)]
    if not labels:
        indexes += [one.record_path for one in files if one.record_path.is_file()]
    structures, cases = _structures(files, stated, labels), placed(cases, split)
    for one in files:
        if one.record().get("is_training_case") is True:
            cases[one.case] = cases[one.case].trained()
    cases = numbered(cases)
    return Cohort(name, files, structures, cases, images, indexes, about or source)


def require_apart(cohort: Cohort, train: Path | None) -> None:
    """Reject a tested case of a training patient; the data set may hold other cases too."""
    if train is None:
        return
    if cohort.manifest is None:
        raise ConfigError(
            "--train needs to know the test cases' patients: give their data set with --data"
        )
    from medvol.datasets import read_dataset

    tested = [case.case for case in cohort.manifest.cases if case.case in cohort.cases]
    require_no_overlap(cohort.manifest.select(tested), read_dataset(train))


def require_other_cohort(internal: Cohort, external: Cohort, empty: Set[tuple[str, str]]) -> None:
    """Reject an external cohort that holds an image or a reference of the internal one.

    Args:
        internal: The one cohort.
        external: The other.
        empty: Cohort and name of cases without a structure: their references are alike by nature.

    Raises:
        InputError: Naming the two cases.
    """
    both = internal, external
    images = [dict(one.images) for one in both]
    refs = [
        {f"{f.case} {f.structure}".strip(): f.ref for f in one.files
         if (one.name, f.case) not in empty}
        for one in both
    ]  # fmt: skip
    for what, (ours, theirs) in (("image", images), ("reference", refs)):
        if found := _same_file(ours, theirs):
            raise InputError(
                f"{theirs[found[1]]}: is the {what} of the external case {found[1]!r} and, byte "
                f"for byte, of the internal case {found[0]!r}; an external cohort must hold other "
                "patients"
            )


def _same_file(ours: Mapping[str, Path], theirs: Mapping[str, Path]) -> tuple[str, str] | None:
    """The first two names whose files are equal; only files of one size are read."""
    by_size: dict[int, list[str]] = {}
    for name, path in ours.items():
        if path.is_file():
            by_size.setdefault(path.stat().st_size, []).append(name)
    for name, path in theirs.items():
        alike = by_size.get(path.stat().st_size, []) if path.is_file() else []
        digest = sha256_file(path) if alike else ""
        for other in alike:
            if sha256_file(ours[other]) == digest:
                return other, name
    return None


def _read(path: Path) -> Manifest:
    from medvol.datasets import locked_cases

    return locked_cases(path).manifest


def _references(ref: Path) -> tuple[Manifest | None, Path | None]:
    """The data set of the references and its path: ``ref`` itself, or the folder around it."""
    if pairing.is_template(ref) or pairing.is_mask_file(ref):
        return None, None
    try:
        manifest = _read(ref)
    except MedvolError:
        if ref.is_file():
            raise
        manifest = None  # a plain folder of label maps
    if manifest is not None and any(case.label for case in manifest.cases):
        return manifest, ref
    if ref.is_file():
        raise MissingInputError(f"{ref}: the data set names no reference label map to test on")
    around = ref.absolute().parent
    if not (ref.is_dir() and (around / "dataset.json").is_file()):
        return None, None
    try:
        manifest = _read(around)
    except MedvolError as error:
        logger.warning("what the data set states of %s is not used: %s", ref, error)
        return None, None
    is_its_own = any(c.label and c.label.is_relative_to(ref.absolute()) for c in manifest.cases)
    return (manifest, around) if is_its_own else (None, None)


def _pairs(pred: Path, ref: Path, source: Manifest | None) -> list[MaskFiles]:
    if pairing.is_template(pred) or pairing.is_template(ref):
        if not (pairing.is_template(pred) and pairing.is_template(ref)):
            raise ConfigError("pred and ref both need {case} and {label}, or neither")
        found = [pairing.find_structures(path) for path in (pred, ref)]
        return pairing.pair_structures(found[0], found[1], str(pred))
    if pairing.is_mask_file(pred) and pairing.is_mask_file(ref):
        return [MaskFiles(pairing.case_name(ref), pred, ref)]
    predictions = _predictions(pred)
    if source is None:
        return pairing.pair_masks(predictions, pairing.find_masks(ref), str(pred))
    refs = {case.case: case.label for case in source.tested if case.label is not None}
    return pairing.pair_masks(predictions, refs, str(pred))


def _predictions(pred: Path) -> dict[str, Path]:
    """Predicted label maps of a folder, or of a manifest's label (or else image) column."""
    if not pred.is_file():
        return pairing.find_masks(pred)
    return {case.case: case.label or case.image for case in _read(pred).cases}


def _structures(
    files: Sequence[MaskFiles], stated: Manifest | None, labels: Mapping[int, str] | None
) -> Structures:
    """From the caller's labels, else the data set, else the predictions' records."""
    ignored = stated.ignore_label if stated else None
    if labels:
        return Structures.of(labels, ignore_label=ignored)
    predicted = _predicted_names(files)
    if stated is None:
        regions, ignored = _predicted_rules(files)
        return Structures(predicted, regions, ignored, is_open=not regions)
    if not stated.regions:
        _require_same_names(stated.labels, predicted)
    return Structures.of(stated.labels, stated.regions, ignored)


def _predicted_names(files: Iterable[MaskFiles]) -> dict[int, str]:
    """Label value to name, as the predictions' ``prediction.json`` state them.

    Raises:
        LabelError: If two of them disagree.
    """
    names: dict[int, str] = {}
    for one in files:
        rows = [] if one.structure else one.record().get("structures", [])
        for row in rows if isinstance(rows, list) else []:
            value, name = (row.get(k) if isinstance(row, dict) else None for k in ("label", "name"))
            if not (isinstance(value, int) and isinstance(name, str)):
                raise InputError(f"{one.record_path}: 'structures' is damaged at {str(row)[:80]!r}")
            if names.setdefault(value, name) != name:
                raise LabelError(
                    f"{one.record_path}: label {value} is {name!r}, in other "
                    f"cases {names[value]!r}; score the predictions of one bundle at a time"
                )
    return dict(sorted(names.items()))


def _predicted_rules(files: Sequence[MaskFiles]) -> tuple[dict[str, list[int]], int | None]:
    """Regions and ignore label, as the predictions' ``prediction.json`` state them.

    Raises:
        InputError: If two of them disagree, or one is damaged.
    """
    found: tuple[dict[str, list[int]], int | None] | None = None
    for one in files:
        record = {} if one.structure else one.record()
        if "structures" not in record:
            continue
        rules = record.get("regions") or {}, record.get("ignore_label")
        is_whole = isinstance(rules[0], dict) and all(
            isinstance(values, list) and all(isinstance(v, int) for v in values)
            for values in rules[0].values()
        )
        if not (is_whole and isinstance(rules[1], int | None)):
            raise InputError(f"{one.record_path}: 'regions' or 'ignore_label' is damaged")
        if found is not None and rules != found:
            raise InputError(f"{one.record_path}: its regions or ignore label differ from other "
                             "cases'; score the predictions of one bundle at a time")  # fmt: skip
        found = rules
    return found or ({}, None)


def _require_same_names(stated: Mapping[int, str], predicted: Mapping[int, str]) -> None:
    for value in sorted(set(stated) & set(predicted)):
        if _plain(stated[value]) != _plain(predicted[value]):
            raise LabelError(
                f"label {value} is {predicted[value]!r} in the predictions (prediction.json) and "
                f"{stated[value]!r} in the references' data set; if they mean the same, name the "
                f"labels with --labels {value}=NAME"
            )


def _plain(name: str) -> str:
    """A label name without case and separators.

    >>> _plain("Left-Kidney") == _plain("left kidney")
    True
    """
    return re.sub(r"[\W_]+", " ", name).strip().lower()
