"""What the user named becomes cases: one image each, under a name that collides with no other."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medvol.core.errors import InputError, MissingInputError
from medvol.core.files import safe_name, sha256_file
from medvol.datasets import list_images

_SUFFIXES = (
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".dicom", ".ima", ".png", ".jpg",
    ".jpeg", ".tiff", ".tif",
)  # fmt: skip


@dataclass(frozen=True)
class CaseInput:
    """One image to predict.

    Attributes:
        name: Folder of its results, the same whenever the same inputs are named.
        path: File, or folder that holds one DICOM series.
    """

    name: str
    path: str


def find_cases(
    inputs: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> list[CaseInput]:
    """Every image among files and folders, each once, in a fixed order.

    A case is named by its file; where two files share a name, by their folders too; where even
    these agree, a digest of the place is added.

    Args:
        inputs: Files and folders.
        out: Folder of results; where it lies inside an input folder, what it holds is no input.

    Raises:
        MissingInputError: If something does not exist or nothing is found.
    """
    found: dict[str, tuple[str, str]] = {}
    for given in inputs:
        root = Path(given)
        if not root.exists():
            raise MissingInputError(f"{given}: does not exist")
        for path in list_images(root):
            if root.is_dir() and _lies_in(path, out):
                continue
            inside = path.relative_to(root.absolute()) if root.is_dir() else Path(path.name)
            parts = inside.parts or (root.absolute().name,)
            found.setdefault(str(path), (_stem(parts[-1]), _stem("_".join(parts))))
    if not found:
        raise MissingInputError("no image was named")
    return [CaseInput(name, path) for path, name in _named(found).items()]


def input_digest(path: str) -> str:
    """SHA-256 of a file's bytes, or of its files' digests in sorted order for a folder.

    Raises:
        InputError: If there is neither.
    """
    place = Path(path)
    if not place.exists():
        raise MissingInputError(f"{path}: does not exist, or is a link to nowhere")
    if not place.is_file() and not place.is_dir():
        raise InputError(f"{path}: is neither a file nor a folder")
    if place.is_file():
        return sha256_file(place)
    digest = hashlib.sha256()
    for one in sorted(sha256_file(p) for p in place.iterdir() if p.is_file()):
        digest.update(bytes.fromhex(one))
    return digest.hexdigest()


def _lies_in(path: Path, out: str | os.PathLike[str] | None) -> bool:
    if out is None:
        return False
    results = Path(os.path.abspath(out))
    return path == results or results in path.parents


def _named(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    short = Counter(name.lower() for name, _ in found.values())
    chosen = {
        path: name if short[name.lower()] == 1 else long for path, (name, long) in found.items()
    }
    taken = Counter(name.lower() for name in chosen.values())
    return {
        path: name if taken[name.lower()] == 1 else f"{name}_{_mark(path)}"
        for path, name in sorted(chosen.items())
    }


def _mark(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:8]


def _stem(name: str) -> str:
    lowered = name.lower()
    for suffix in _SUFFIXES:
        if lowered.endswith(suffix) and len(name) > len(suffix):
            return safe_name(name[: -len(suffix)])
    return safe_name(name)
