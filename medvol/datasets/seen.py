"""Which cases weights were trained on: a record of digests that lies beside them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.core.errors import InputError
from medvol.core.files import write_json
from medvol.datasets.lock import image_digest, require_unlocked

logger = logging.getLogger(__name__)

#: The record's name beside ``model.pt``.
SEEN_FILE = "trained_on.json"
_VERSION = 1


@dataclass(frozen=True)
class SeenCases:
    """Digests of image files that weights have seen; they name no patient.

    Attributes:
        train: What the weights were trained on, starting weights included.
        validate: What chose the best epoch.
    """

    train: frozenset[str] = frozenset()
    validate: frozenset[str] = frozenset()

    def trained(self, cases: Iterable[Mapping[str, Any]]) -> list[str]:
        """Names of the entries of a datalist that the weights were trained on."""
        return [name_of(entry) for entry in cases if _digest_of(entry) in self.train]


def trained_on(weights: str | os.PathLike[str]) -> SeenCases | None:
    """What weights were trained on; None where no record lies beside them.

    Args:
        weights: A weights file, or the folder of a training run.

    Raises:
        InputError: If the record is damaged.
    """
    path = Path(weights)
    path = (path if path.is_dir() else path.parent) / SEEN_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["medvol_trained_on"] != _VERSION:
            raise ValueError("another version")
        return SeenCases(frozenset(content["train"]), frozenset(content["validate"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a record of training cases: {error!r}; "
                         "delete it, or train again") from error  # fmt: skip


def write_trained_on(parts: Sequence[SeenCases], folder: str | os.PathLike[str]) -> None:
    """Write the record of weights that join those of several runs."""
    train = frozenset[str]().union(*(part.train for part in parts))
    validate = frozenset[str]().union(*(part.validate for part in parts))
    body = {"train": sorted(train), "validate": sorted(validate)}
    write_json(Path(folder) / SEEN_FILE, {"medvol_trained_on": _VERSION, **body})


def record_training(
    train: Sequence[Mapping[str, Any]],
    validate: Sequence[Mapping[str, Any]],
    output_dir: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    split: str | os.PathLike[str] | None = None,
) -> None:
    """Last check before the first step: no locked case; then write what will be seen.

    It looks at the cases that are really trained on, so that it also holds where an override
    lists them. Where starting weights have seen a validation case, it warns: the validation is
    then not an estimate for new cases.

    Args:
        train: Entries of the training data set.
        validate: Entries of the validation data set.
        output_dir: The run's folder.
        weights: Starting weights.
        split: A split file outside the data set's folder.

    Raises:
        InputError: If a case is a locked test case.
    """
    cases = [*train, *validate]
    require_unlocked((_images(entry) for entry in cases), None if split is None else Path(split))
    before = None if not weights else trained_on(weights)
    if before is not None and (names := before.trained(validate)):
        logger.warning("%d of %d validation cases were trained on by the starting weights (%s "
                       "...): the validation is not an estimate for new cases; validate on "
                       "others", len(names), len(validate), names[0])  # fmt: skip
    if os.environ.get("RANK", "0") != "0":
        return
    now = SeenCases(*(frozenset(_digest_of(row) for row in rows) for rows in (train, validate)))
    write_trained_on([now, *([before] if before else [])], output_dir)


def warn_trained_on(
    cases: Sequence[Mapping[str, Any]], weights: str | os.PathLike[str] | None
) -> None:
    """Warn where weights that are to be scored were trained on some of the cases."""
    seen = None if not weights else trained_on(weights)
    if seen is not None and (names := seen.trained(cases)):
        logger.warning(
            "%d of %d cases were trained on by %s (%s ...): their scores are not an estimate for "
            "new cases", len(names), len(cases), weights, names[0],
        )  # fmt: skip


def name_of(entry: Mapping[str, Any]) -> str:
    """The case's name in a datalist's entry."""
    return str(entry.get("case") or _images(entry)[0].name)


def _images(entry: Mapping[str, Any]) -> list[Path]:
    image = entry["image"]
    return [Path(path) for path in (image if isinstance(image, (list, tuple)) else [image])]


def _digest_of(entry: Mapping[str, Any]) -> str:
    return image_digest(_images(entry))
