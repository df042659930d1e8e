"""Data sets without an index: a tree with a folder per class, or a plain folder of images."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from medvol.core.errors import InputError, MissingInputError
from medvol.datasets.listing import list_images, stem
from medvol.datasets.manifest import Case, Manifest

_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_MASK = re.compile(r"[_-](label|labels|seg|segmentation|mask)$", re.IGNORECASE)


def is_class_tree(folder: Path) -> bool:
    """Whether the folder's subfolders are classes.

    They are when no image lies beside them, at least two hold images, and the subfolders are not
    single cases: one image each, or the same file names in each.
    """
    parts = [found for _, found in _split_parts(folder)]
    return all(_looks_like_classes(part) for part in parts)


def read_class_tree(folder: Path) -> Manifest:
    """A folder per class, optionally below train, val and test folders."""
    cases = []
    for split, part in _split_parts(folder):
        for category in _subfolders(part):
            for image in _images_below(category):
                name = image.relative_to(part).as_posix().replace("/", "_")
                cases.append((stem(Path(name)), image, category.name, split))
    repeated = {name for name, count in Counter(case[0] for case in cases).items() if count > 1}
    return Manifest(
        folder.name,
        folder,
        "class-tree",
        tuple(
            Case(
                f"{split}_{name}" if name in repeated and split else name,
                (image,),
                category=category,
                split=split,
            )
            for name, image, category, split in cases
        ),
    )


def read_plain_folder(folder: Path) -> Manifest:
    """Every image below the folder; ``X_label``, ``X_seg`` or ``X_mask`` belongs to ``X``."""
    images = list_images(folder)
    by_place = {(path.parent, stem(path)): path for path in images}
    if len(by_place) < len(images):
        twice = Counter((path.parent, stem(path)) for path in images).most_common(1)[0][0]
        raise InputError(f"{twice[0]}: case {twice[1]!r} appears twice, with two file endings")
    masks = {
        (place, _MASK.sub("", name)): path
        for (place, name), path in by_place.items()
        if _MASK.search(name) and (place, _MASK.sub("", name)) in by_place
    }
    used = set(masks.values())
    plain = [path for path in images if path not in used]
    names = _short_names(folder, plain)
    cases = tuple(
        Case(names[path], (path,), masks.get((path.parent, stem(path)))) for path in plain
    )
    return Manifest(folder.name, folder, "folder", cases)


def _short_names(folder: Path, images: list[Path]) -> dict[Path, str]:
    """File names where they are unique, else names that carry the folders above."""
    counts = Counter(stem(path) for path in images)
    return {
        path: stem(path)
        if counts[stem(path)] == 1
        else stem(Path(path.relative_to(folder).as_posix().replace("/", "_")))
        for path in images
    }


def _split_parts(folder: Path) -> list[tuple[str | None, Path]]:
    below = _subfolders(folder)
    named = [(_SPLIT_FOLDERS.get(part.name.lower()), part) for part in below]
    if below and all(split for split, _ in named):
        return [(split, part) for split, part in named]
    return [(None, folder)]


def _looks_like_classes(folder: Path) -> bool:
    if any(path.parent == folder for path in _images_below(folder)):
        return False
    parts = [found for sub in _subfolders(folder) if (found := _images_below(sub))]
    if len(parts) < 2 or all(len(part) == 1 for part in parts):
        return False
    names = [{path.name for path in part} for part in parts]
    return any(found != names[0] for found in names)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        Path(item.path)
        for item in os.scandir(folder)
        if item.is_dir() and not item.name.startswith(".") and item.name != "__MACOSX"
    )


def _images_below(folder: Path) -> list[Path]:
    try:
        return list_images(folder)
    except MissingInputError:
        return []
