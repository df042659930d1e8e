"""Label maps without images, for training on synthesised images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medvol.core.errors import ConfigError, MissingInputError
from medvol.io import formats


def label_map_cases(
    dataset_dir: str | os.PathLike[str], held_out: Sequence[str] = ()
) -> dict[str, list[dict[str, str]]]:
    """Label maps of a folder as lists for ``train`` and ``validate``.

    Args:
        dataset_dir: Holds one NIfTI label map per person; nothing gives no case, so that a config
            can be inspected without data.
        held_out: Names without their ending of those that only validate.

    Raises:
        MissingInputError: If the folder is missing or holds no map to train on.
        ConfigError: If a map that is held out is not there: the others might stand in for it.
    """
    if not dataset_dir:
        return {"train": [], "validate": []}
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: is not a folder; give the folder of the label maps")
    maps = {_stem(path.name): path for path in sorted(folder.iterdir()) if _stem(path.name)}
    if lacking := sorted(set(held_out) - set(maps)):
        raise ConfigError(f"{folder}: held-out label map {lacking[0]!r} is not there; change "
                          "held_out or add it")  # fmt: skip
    train = [{"label": str(path)} for name, path in maps.items() if name not in held_out]
    if not train:
        raise MissingInputError(f"{folder}: holds no .nii or .nii.gz label map to train on")
    return {"train": train, "validate": [{"label": str(maps[name])} for name in held_out]}


def _stem(name: str) -> str:
    stem, ending = formats.split_name(name)
    return stem if ending.lower() in formats.NIFTI_FILES else ""
