"""``read_dataset``: whatever way a data set lies on disk becomes one ``Manifest``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvol.core.errors import InputError, MedvolError, MissingInputError
from medvol.datasets.folders import is_class_tree, read_class_tree, read_plain_folder
from medvol.datasets.layouts import read_bids, read_json_datalist, read_nnunet
from medvol.datasets.manifest import Manifest, manifest_from_json, require_apart, require_files
from medvol.datasets.tables import read_csv_datalist

_INDEXES = ("manifest.json", "dataset.json")
_BIDS = "dataset_description.json"
_CSV_NAMES = ("dataset.csv", "datalist.csv", "labels.csv", "manifest.csv", "index.csv")
_JSON_NAMES = ("datalist.json", "dataset_split.json")


def read_dataset(path: str | os.PathLike[str], *, strict: bool = True) -> Manifest:
    """Read a data set's index: which cases there are, with which files; no pixel is decoded.

    Understood, in this order: medvol's own ``manifest.json``; ``dataset.json`` of the Medical
    Segmentation Decathlon, of nnU-Net raw (channels, regions, ignore label) or of a MONAI
    datalist with folds; BIDS derivatives; a CSV or JSON datalist (image, label, patient_id,
    fold ...); a tree with one folder per class; a plain folder of images, where ``X_label``,
    ``X_seg`` or ``X_mask`` belongs to ``X``.

    Args:
        path: The folder, or the JSON or CSV file itself.
        strict: Reject an index that names a missing file; a check of all cases leaves it in.

    Raises:
        MissingInputError: If the folder, an image or a label does not exist, or nothing is found.
        InputError: If the index is malformed, or names a case or an image twice.
    """
    path = Path(os.path.abspath(path))
    if not path.is_file():
        manifest = _read_folder(path)
        require_apart(manifest)
        if strict:
            require_files(manifest.cases)
        return manifest
    manifest = _read_file(path)
    with _naming(path):
        require_apart(manifest)
        if strict:
            require_files(manifest.cases)
    return manifest


def index_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that state which cases there are and what is known of them.

    None for a folder whose names state all. They are what :func:`read_dataset` reads there.
    """
    path = Path(path)
    if not path.is_dir():
        return [path] if path.is_file() else []
    for name in _INDEXES:
        if (path / name).is_file():
            return [path / name]
    if (path / _BIDS).is_file():
        return [path / _BIDS, *sorted(path.rglob("*dseg.tsv"))]
    table = _table_of(path)
    return [table] if table else []


def _read_file(path: Path) -> Manifest:
    with _naming(path):
        return _read_table(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the index's name before an error that does not hold it."""
    try:
        yield
    except MedvolError as error:
        if path.name in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _read_table(path: Path) -> Manifest:
    if path.suffix.lower() == ".csv":
        return read_csv_datalist(path)
    if path.suffix.lower() != ".json":
        raise InputError(f"{path}: a data set is a folder, a .json or a .csv file")
    content = _load_json(path)
    if isinstance(content, dict) and "medvol_manifest" in content:
        return manifest_from_json(path, content)
    if isinstance(content, dict) and _is_nnunet(content):
        return read_nnunet(path, content)
    return read_json_datalist(path, content)


def _read_folder(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such data set folder")
    if not any(folder.iterdir()):
        raise MissingInputError(f"{folder}: the data set folder is empty")
    for name in _INDEXES:
        if (folder / name).is_file():
            return _read_file(folder / name)
    if (folder / _BIDS).is_file():
        return read_bids(folder, _load_json(folder / _BIDS))
    if table := _table_of(folder):
        return _read_file(table)
    if (folder / "imagesTr").is_dir():
        raise MissingInputError(
            f"{folder / 'dataset.json'}: no such file; a folder with imagesTr needs it to state "
            "what the labels mean"
        )
    if any(p.is_dir() for p in folder.glob("sub-*")) and any(folder.rglob("sub-*_*.nii*")):
        return read_bids(folder, {})  # BIDS but for its description
    if is_class_tree(folder):
        return read_class_tree(folder)
    return read_plain_folder(folder)


def _table_of(folder: Path) -> Path | None:
    for name in (*_CSV_NAMES, *_JSON_NAMES):
        if (folder / name).is_file():
            return folder / name
    tables = sorted(folder.glob("*.csv"))
    return tables[0] if len(tables) == 1 else None


def _is_nnunet(content: dict[str, Any]) -> bool:
    return "training" not in content and ("file_ending" in content or "channel_names" in content)


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise InputError(f"{path}: is not valid JSON: {error}") from error
