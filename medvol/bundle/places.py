"""Where bundles, parts and values lie: in a checkout, or inside the installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

import medvol
from medvol.core.errors import MissingInputError

_PACKAGE = Path(medvol.__file__).resolve().parent


def shipped_root() -> Path:
    """The folder that holds ``bundles`` and ``configs``."""
    installed = _PACKAGE / "_shipped"
    return installed if installed.is_dir() else _PACKAGE.parent


def bundles_dir() -> Path:
    """Folder of the shipped bundles."""
    return shipped_root() / "bundles"


def configs_dir() -> Path:
    """Folder of parts and values files."""
    return shipped_root() / "configs"


def is_shipped(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies inside the shipped bundles."""
    return Path(path).resolve().is_relative_to(bundles_dir().resolve())


def find_bundle(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a bundle given by a shipped name or by a path.

    Raises:
        MissingInputError: If neither a shipped bundle nor a bundle folder is meant.
    """
    given = Path(name_or_path)
    shipped = bundles_dir() / given
    for folder in (given, shipped) if given.parts[1:] or given.is_absolute() else (shipped, given):
        if (folder / "configs" / "metadata.json").is_file():
            return folder.resolve()
    known = ", ".join(path.name for path in sorted(bundles_dir().glob("*/")))
    raise MissingInputError(f"{name_or_path}: is no bundle; shipped bundles: {known}")
