"""Where the shipped bundles and configs lie: in a checkout, or inside the installed wheel."""

from __future__ import annotations

from pathlib import Path

import medvol

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
