"""What the user named becomes cases: one image each, under a name that collides with no other."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from medvol.core.errors import ConfigError, InputError, MissingInputError
from medvol.core.files import LONGEST_NAME, output_path, safe_name
from medvol.datasets import list_images
from medvol.io import formats, image_digest

T = TypeVar("T")


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
        out: Folder of results; where it lies inside an input folder, what it holds is not an input.

    Raises:
        MissingInputError: If something does not exist or nothing is found.
        InputError: If results would lie among the inputs.
    """
    found: dict[str, tuple[str, str]] = {}
    for given in inputs:
        root = Path(os.path.abspath(given))
        if not root.exists():
            raise MissingInputError(f"{given}: does not exist")
        results = Path(os.path.realpath(out)) if out is not None and root.is_dir() else None
        if results and results == root.resolve():
            raise InputError(f"{given}: is the folder of results too; name another one with -o")
        inner = results if results and _lies_in(results, root) else None
        for path in list_images(given):
            if inner and _lies_in(path, inner):
                continue
            inside = path.relative_to(root) if root.is_dir() else Path(path.name)
            parts = inside.parts or (root.name,)
            found.setdefault(str(path), (_stem(parts[-1]), _stem("_".join(parts))))
    if not found:
        raise MissingInputError("no image was named")
    cases = [CaseInput(name, path) for path, name in _named(found).items()]
    if out is not None:
        _require_apart(cases, out)
    return cases


def shard_of(cases: Sequence[T], shard: str) -> list[T]:
    """The part of a list that one of several processes takes: every n-th entry, from the i-th.

    Processes that are given the same list and ``1/n`` to ``n/n`` take every entry exactly once.

    Args:
        cases: The whole list, in the same order for all.
        shard: ``i/n`` with i from 1 to n; empty takes all.

    Raises:
        ConfigError: If it is not of that form.
    """
    if not shard:
        return list(cases)
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)
    index, count = (int(part) for part in found.groups()) if found else (0, 0)
    if not 1 <= index <= count:
        raise ConfigError(f"--shard {shard!r}: write i/n with i from 1 to n, as in --shard 1/4")
    return list(cases[index - 1 :: count])


def input_digest(path: str) -> str:
    """SHA-256 of a file's bytes, or of the sorted digests where an image is several files.

    These are the files of a folder, and a header with the data file that it names.

    Raises:
        InputError: If there is neither.
    """
    place = Path(path)
    if not place.exists():
        raise MissingInputError(f"{path}: does not exist, or is a link to nowhere")
    if not place.is_file() and not place.is_dir():
        raise InputError(f"{path}: is neither a file nor a folder")
    return image_digest(place)


def _require_apart(cases: Iterable[CaseInput], out: str | os.PathLike[str]) -> None:
    for case in cases:
        folder = output_path(out, case.name)
        if _lies_in(Path(case.path), folder):
            raise InputError(f"{case.path}: its results would lie beside it in {folder}; "
                             "name another folder with -o")  # fmt: skip


def _lies_in(path: Path, folder: str | os.PathLike[str]) -> bool:
    """Whether it does once links among the folders above it are followed."""
    place = Path(os.path.realpath(path.parent), path.name)
    return place.is_relative_to(os.path.realpath(folder))


def _named(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    short = Counter(name.lower() for name, _ in found.values())
    chosen = {
        path: name if short[name.lower()] == 1 else long for path, (name, long) in found.items()
    }
    taken = Counter(name.lower() for name in chosen.values())
    return {
        path: name if taken[name.lower()] == 1 else _marked(name, path)
        for path, name in sorted(chosen.items())
    }


def _marked(name: str, path: str) -> str:
    """The name with a mark of its place, short enough that nothing cuts the mark off."""
    mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}_{mark}"


def _stem(name: str) -> str:
    return safe_name(formats.split_name(name)[0])
