"""Finding bundles: the shipped ones by name, others by path."""

from __future__ import annotations

import os
from pathlib import Path

from medvol.core.errors import MissingInputError
from medvol.core.shipped import bundles_dir, configs_dir

__all__ = ["configs_dir", "find_bundle", "is_shipped"]


def is_shipped(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies inside the shipped bundles."""
    return Path(path).resolve().is_relative_to(bundles_dir().resolve())


def find_bundle(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a bundle given by a shipped name or by a path.

    A name with a separator, as in ``./name``, is a path first.

    Raises:
        MissingInputError: If neither a shipped bundle nor a bundle folder is meant.
    """
    given = Path(name_or_path)
    shipped = bundles_dir() / given
    is_path = os.fspath(name_or_path) != given.name  # Path drops the "./" of "./name"
    for folder in (given, shipped) if is_path else (shipped, given):
        if (folder / "configs" / "metadata.json").is_file():
            return folder.resolve()
    known = ", ".join(path.name for path in sorted(bundles_dir().glob("*/")))
    raise MissingInputError(f"{name_or_path}: is not a bundle; shipped bundles: {known}")
