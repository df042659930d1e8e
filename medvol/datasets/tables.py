"""Datalists: one row per case, under any of the usual column names."""

from __future__ import annotations

import csv
import math
import os
import re
from collections import Counter
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from medvol.core.errors import InputError
from medvol.core.files import CsvRows
from medvol.datasets.listing import has_image_suffix, stem
from medvol.datasets.manifest import Case, Manifest
from medvol.io import formats

#: field -> column names that mean it, in order of preference.
COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image", "images", "file", "filename", "path", "image_path", "img"),
    "label": ("label", "mask", "seg", "segmentation", "label_path", "mask_path"),
    "category": ("class", "class_name", "category", "diagnosis", "target", "finding"),
    "case": ("case", "case_id", "id", "uid", "image_id"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "participant_id"),
    "study": ("study", "study_id", "session", "session_id", "visit"),
    "fold": ("fold",),
    "split": ("split", "subset", "partition", "set"),
    "site": ("site", "source", "center", "centre", "hospital", "institution", "scanner"),
    "sex": ("sex", "gender"),
}
#: Columns that name a person; they are never read.
_PERSONAL = ("patient_name", "patientname", "birth", "dob", "address", "phone", "ssn")
_SPLITS = {
    "train": "train", "training": "train", "tr": "train", "val": "validation", "test": "test",
    "valid": "validation", "validation": "validation", "dev": "validation", "testing": "test",
    "ts": "test", "holdout": "test",
}  # fmt: skip


def read_csv_datalist(path: Path) -> Manifest:
    """A CSV with a header row; paths are relative to the file's folder.

    A ``label`` column holds paths of label maps or class names: it is a path where the value
    ends like an image file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = CsvRows(handle, strict=True)
            rows = list(reader)
            header = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is not a readable CSV: {error}") from error
    if not rows:
        raise InputError(f"{path}: holds no row below its header")
    if not any(_canonical(name) == "image" for name in header):
        raise InputError(f"{path}: has no image column; looked for {', '.join(COLUMNS['image'])}")
    if doubled := [name for name, n in Counter(header).items() if n > 1]:
        raise InputError(f"{path}: its header names the column {doubled[0]!r} twice")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(f"{path}: line {number} has more or fewer values than the header")
    cases = name_cases(path.parent, [case_from_row(path, row, None) for row in rows])
    return Manifest(path.parent.name, path.parent, "datalist", cases)


def case_from_row(path: Path, row: dict[str, Any], split: str | None) -> Case:
    """One case from a table's row; ``path`` is the table, for messages and relative paths."""
    given: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for column in sorted(row, key=_rank):
        value = row[column]
        if isinstance(value, str):
            value = value.strip()
        name = _canonical(column)
        if value in (None, "", []) or any(word in str(column).lower() for word in _PERSONAL):
            continue
        if name is None or name in given:
            extra[str(column)] = _number(value)
        else:
            given[name] = value
    if "image" not in given:
        raise InputError(f"{path}: a row names no image: {str(row)[:120]}")
    images = tuple(_path_of(path, item) for item in _as_list(given.pop("image")))
    label, category = _label_or_class(path, given)
    return Case(
        case=str(given.get("case", "")),
        images=images,
        label=label,
        category=category,
        fold=_fold(path, given.get("fold")),
        split=_split(path, given.get("split")) or split,
        extra=extra,
        **{name: _text(given.get(name)) for name in ("patient", "study", "site", "sex")},
    )


def name_cases(root: Path, cases: list[Case]) -> tuple[Case, ...]:
    """Name the cases that their table left unnamed after their files.

    The files of several channels name their case by the words that they share, or by their folder.
    Where two files in different folders share a name, the folders are added to it.
    """
    counts = Counter(_own_name(case) for case in cases if not case.case)
    named = []
    for case in cases:
        name = case.case or _own_name(case)
        if not case.case and counts[name] > 1:
            name = stem(Path(os.path.relpath(case.image, root).replace(os.sep, "_").lstrip("._")))
        named.append(replace(case, case=name))
    return tuple(named)


def _own_name(case: Case) -> str:
    """The file's name; of several files the words that their names begin with alike."""
    names = [stem(path) for path in case.images]
    if len(set(names)) < 2:
        return names[0]
    words = [re.split(r"[_.\- ]", name) for name in names]
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))))
    if shared:
        return names[0][: len("_".join(words[0][:shared]))]
    folders = {path.parent for path in case.images}
    return folders.pop().name if len(folders) == 1 else names[0]


def _canonical(column: str | None) -> str | None:
    key = str(column).strip().lower().replace(" ", "_")
    return next((name for name, known in COLUMNS.items() if key in known), None)


def _rank(column: str | None) -> tuple[int, str]:
    """Preferred names first, so that ``image`` wins over ``file`` and ``label`` over ``mask``."""
    key = str(column).strip().lower().replace(" ", "_")
    ranks = [known.index(key) for known in COLUMNS.values() if key in known]
    return (ranks[0] if ranks else 99, key)


def _label_or_class(path: Path, given: dict[str, Any]) -> tuple[Path | None, str | None]:
    label, category = given.get("label"), _text(given.get("category"))
    if label is None:
        return None, category
    if isinstance(label, list):
        raise InputError(f"{path}: a case has several label files; merge them into one label map")
    if isinstance(label, str) and (has_image_suffix(Path(label)) or "/" in label or "\\" in label):
        return _path_of(path, label), category
    if category is not None and category != str(label):
        raise InputError(f"{path}: a row has the label {label!r} and the class {category!r}")
    return None, _text(label)


def _path_of(table: Path, item: Any) -> Path:
    if not isinstance(item, str):
        raise InputError(f"{table}: {item!r} is not a path")
    path = Path(os.path.abspath(table.parent / item.replace("\\", "/")))
    if os.path.exists(path):  # False too for what no file system could hold
        return path
    # nnU-Net version 1 lists X.nii.gz, the disk has X_0000.nii.gz
    other = path.with_name("_0000".join(formats.split_name(path.name)))
    return (
        other if formats.ends_like(path.name, formats.VOLUMES) and os.path.exists(other) else path
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        return value
    return int(number) if number.is_integer() and "." not in value else number


def _fold(path: Path, value: Any) -> int | None:
    if value is None:
        return None
    try:
        fold = int(str(value))
    except ValueError as error:
        raise InputError(f"{path}: fold {value!r} is not a whole number") from error
    if fold < 0:
        raise InputError(f"{path}: fold {fold} is below 0")
    return fold


def _split(path: Path, value: Any) -> str | None:
    if value is None:
        return None
    name = _SPLITS.get(str(value).strip().lower())
    if name is None:
        raise InputError(f"{path}: split {value!r} is unknown; use train, validation or test")
    return name
