"""Label maps without images, for training on synthesised images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medvol.core.errors import ConfigError, MissingInputError
from medvol.io import formats
from medvol.io.checks import shown


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
    maps = {formats.split_name(path.name)[0]: path for path in find_label_maps(folder)}
    if lacking := sorted(set(held_out) - set(maps)):
        raise ConfigError(f"{folder}: held-out label map {lacking[0]!r} is not there; change "
                          "held_out or add it")  # fmt: skip
    train = [{"label": str(path)} for name, path in maps.items() if name not in held_out]
    if not train:
        raise MissingInputError(f"{folder}: all of its label maps are held out; none trains")
    return {"train": train, "validate": [{"label": str(maps[name])} for name in held_out]}


def find_label_maps(place: str | os.PathLike[str]) -> list[Path]:
    """NIfTI label maps of a folder by name, or the one file that is given.

    Raises:
        MissingInputError: If there is nothing, or no such file in the folder.
    """
    place = Path(place)
    if not place.exists():
        raise MissingInputError(f"{shown(place)}: does not exist")
    if place.is_file():
        return [place]
    found = sorted(p for p in place.iterdir() if formats.ends_like(p.name, formats.NIFTI_FILES))
    if not found:
        raise MissingInputError(f"{shown(place)}: holds no .nii or .nii.gz label map")
    return found
