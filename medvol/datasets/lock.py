"""Locked test cases: recognised by content, wherever the data set is read from."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medvol.core.errors import InputError
from medvol.datasets.manifest import Case, Manifest, file_digest
from medvol.datasets.reading import index_files, read_dataset
from medvol.datasets.split import (
    TEST,
    Split,
    read_split,
    require_disjoint_patients,
    split_patients,
)
from medvol.io.data_file import with_data

logger = logging.getLogger(__name__)

#: Name of the split file inside a data set's folder, where every reader finds it.
LOCK_FILE = "locked_split.json"


@dataclass(frozen=True)
class LockedDataset:
    """A data set as training and scoring may use it.

    Attributes:
        manifest: The cases; locked ones carry the split ``test``, the others the lock's folds.
        names: Names of the locked cases, sorted.
        files: The split files that lock them.
    """

    manifest: Manifest
    names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def choose(self, usable: Iterable[Case], *, for_test: bool) -> list[str]:
        """Names of the usable cases to train on, or to test on: all where none is set aside."""
        usable = list(usable)
        tested = [case.case for case in usable if case.split == "test"]
        if for_test:
            return tested or [case.case for case in usable]
        return [case.case for case in usable if case.split != "test"]

    def __str__(self) -> str:
        files = ", ".join(str(path) for path in self.files)
        return f"{len(self.names)} test cases are locked by {files}"


def locked_cases(
    dataset: str | os.PathLike[str], split: str | os.PathLike[str] | None = None
) -> LockedDataset:
    """Read a data set and respect every split file that locks cases of it.

    The file that lies in the data set's folder (or ``split``) has to describe exactly the cases
    that are there. Files above the folder, or beside the images of another index, lock the cases
    that hold the same images, and with them the other cases of the same patient.

    Args:
        dataset: Anything that :func:`read_dataset` reads.
        split: A split file elsewhere, for a folder that cannot be written to.

    Raises:
        InputError: If cases were added, removed or changed since the split was written, it was
            edited, or it puts a patient on both sides.
    """
    manifest = read_dataset(dataset)
    own = _own_file(dataset, manifest) if split is None else Path(split)
    names: set[str] = set()
    files: list[Path] = []
    if own is not None:
        lock = read_split(own)
        _require_unchanged(manifest, lock, own)
        manifest = _placed(manifest, lock)
        names |= set(lock.test) & {case.case for case in manifest.cases}
        files.append(own)
    for path in _files_around(_folders(manifest)):
        if own is not None and _is_same(path, own):
            continue
        if found := _locked_images(manifest.cases, read_split(path)):
            names |= found
            files.append(path)
    groups = {case.group for case in manifest.cases if case.case in names}
    if groups:
        manifest = replace(manifest, cases=tuple(
            replace(case, split="test", fold=None) if case.group in groups else case
            for case in manifest.cases
        ))  # fmt: skip
    names = {case.case for case in manifest.cases if case.group in groups}
    found = LockedDataset(manifest, tuple(sorted(names)), tuple(files))
    if names:
        logger.info("%s", found)
    return found


def lock_patients(manifest: Manifest, locked: Split | None = None, **options: Any) -> Split:
    """A split with the digests of what it locks; an earlier one is extended.

    A case that was renamed keeps its place, recognised by its images; the place of a case that is
    absent now is kept for its return.

    Args:
        manifest: The data set.
        locked: The split to extend.
        options: Of :func:`split_patients`.
    """
    content = {case.case: content_of(case) for case in manifest.cases}
    if locked is not None:
        place = {images: locked.place[name] for name, (images, _) in locked.content.items()}
        renamed = {name: place[images] for name, (images, _) in content.items() if images in place}
        locked = replace(locked, place={**renamed, **locked.place})
    split = split_patients(manifest, locked=locked, **options)
    require_disjoint_patients(manifest, split)
    kept = {} if locked is None else locked.place
    return replace(split, place={**kept, **split.place}, content=content)


def require_unlocked(images: Iterable[Sequence[Path]], split: Path | None = None) -> None:
    """Reject cases to train on that a split file near them locks.

    Args:
        images: Image files of each case.
        split: A further split file.

    Raises:
        InputError: Naming the first locked image and the split file.
    """
    cases = [tuple(Path(os.path.abspath(path)) for path in row) for row in images]
    around = _files_around(_parents(path for row in cases for path in row))
    for file in [*around, *([split] if split is not None else [])]:
        lock = read_split(file)
        locked = {lock.content[name][0] for name in lock.test if name in lock.content}
        for row in cases if locked else ():
            if image_digest(row) in locked:
                raise InputError(f"{row[0]}: is a test case locked by {file}; leave it out of "
                                 "training and validation")  # fmt: skip


def content_of(case: Case) -> tuple[str, str]:
    """Digest of a case's images, and of its truth (label map and class)."""
    label = "" if case.label is None else _digest(case.label, _stamp(case.label))
    truth = hashlib.sha256(f"{label}\0{case.category or ''}".encode()).hexdigest()
    return image_digest(case.images), truth


def image_digest(images: Sequence[str | os.PathLike[str]]) -> str:
    """Digest of a case's image files in order: its identity, whatever it is called."""
    paths = [Path(image) for image in images]
    joined = "\n".join(_digest(path, _stamp(path)) for path in paths)
    return hashlib.sha256(joined.encode()).hexdigest()


def _own_file(dataset: str | os.PathLike[str], manifest: Manifest) -> Path | None:
    path, own = Path(os.path.abspath(dataset)), manifest.root / LOCK_FILE
    is_own = path.is_dir() or path in [Path(p) for p in index_files(manifest.root)]
    return own if is_own and own.is_file() else None


def _require_unchanged(manifest: Manifest, lock: Split, path: Path) -> None:
    if not lock.content:
        raise InputError(f"{path}: holds no digests and locks nothing; write it with "
                         "medvol data split")  # fmt: skip
    found = {case.case: case for case in manifest.cases}
    added = sorted(set(found) - set(lock.content))
    gone = sorted(set(lock.content) - set(found))
    changed = [
        name for name, case in found.items()
        if name in lock.content and content_of(case) != lock.content[name]
    ]  # fmt: skip
    for what, names in (("added", added), ("removed", gone), ("changed", changed)):
        if names:
            raise InputError(
                f"{manifest.root}: {len(names)} cases were {what} since {path} locked the split "
                f"({names[0]} ...); undo it, or run medvol data split on the data set with "
                f"-o {path}, which keeps every place"
            )


def _placed(manifest: Manifest, lock: Split) -> Manifest:
    def place(case: Case) -> Case:
        fold = lock.place[case.case]
        is_test = fold == TEST
        return replace(case, split="test" if is_test else None, fold=None if is_test else fold)

    placed = replace(manifest, cases=tuple(place(case) for case in manifest.cases))
    require_disjoint_patients(placed)
    return placed


def _locked_images(cases: Iterable[Case], lock: Split) -> set[str]:
    locked = {lock.content[name][0] for name in lock.test if name in lock.content}
    if not locked:
        return set()
    return {case.case for case in cases if image_digest(case.images) in locked}


def _folders(manifest: Manifest) -> set[Path]:
    images = (image for case in manifest.cases for image in case.images)
    return {manifest.root.absolute(), *_parents(images)}


def _parents(paths: Iterable[Path]) -> set[Path]:
    return {
        parent for path in paths for parent in (path.parent, Path(os.path.realpath(path)).parent)
    }


def _files_around(folders: Iterable[Path]) -> list[Path]:
    above = {place for folder in folders for place in (folder, *folder.parents)}
    found = {os.path.realpath(file) for place in above if (file := place / LOCK_FILE).is_file()}
    return [Path(path) for path in sorted(found)]


def _is_same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _stamp(path: Path) -> tuple[tuple[int, int], ...]:
    files = with_data(path) if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files))


@functools.lru_cache(maxsize=1 << 16)
def _digest(path: Path, stamp: tuple[tuple[int, int], ...]) -> str:
    del stamp  # a file that changes is read again
    return file_digest(path)
