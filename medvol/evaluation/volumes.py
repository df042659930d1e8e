"""`volumes.csv`: the volume of every structure of every predicted case, side beside side."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.core.errors import MissingInputError
from medvol.core.files import fields_to_csv, write_text
from medvol.core.labels import are_two_sides, side_of

logger = logging.getLogger(__name__)

#: Name of the table in a folder of predictions.
TABLE = "volumes.csv"
_RECORD = "prediction.json"


@dataclass(frozen=True)
class StructureVolume:
    """One structure of one case.

    Attributes:
        case: Name of the case.
        label: Its value in the label map.
        structure: Its name.
        volume_ml: Voxels times their size.
        lower_ml: Volume at a probability of at least 0.95, where uncertainty was asked for.
        upper_ml: Volume at a probability of at least 0.05, likewise.
        asymmetry_percent: 200 (left - right) / (left + right), where the other side is a label
            too; empty where both are 0.
        share_percent: Of all structures of the case together.
    """

    case: str
    label: int
    structure: str
    volume_ml: float
    lower_ml: float | str = ""
    upper_ml: float | str = ""
    asymmetry_percent: float | str = ""
    share_percent: float | str = ""


def structure_volumes(record: Mapping[str, Any]) -> list[StructureVolume]:
    """The volumes that a ``prediction.json`` holds, with what follows from them."""
    rows = record.get("structures", [])
    total = sum(row["volume_ml"] for row in rows)
    found = []
    for row in rows:
        name, volume = str(row["name"]), float(row["volume_ml"])
        lower, upper = row.get("interval_ml", ("", ""))
        other = next((o for o in rows if are_two_sides(name, str(o["name"]))), None)
        found.append(
            StructureVolume(
                str(record["case"]), int(row["label"]), name, volume, lower, upper,
                _asymmetry(name, volume, other), round(100 * volume / total, 3) if total else "",
            )
        )  # fmt: skip
    return found


def read_records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The ``prediction.json`` of every case in a folder of predictions, by name.

    Raises:
        MissingInputError: If there is none.
    """
    found = []
    for path in sorted(Path(folder).glob(f"*/{_RECORD}")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("%s: cannot be read; the case is left out", path)
            continue
        if isinstance(content, dict) and "case" in content:
            found.append(content)
    if not found:
        raise MissingInputError(f"{folder}: holds neither an evaluation nor predictions")
    return found


def write_volumes(folder: str | os.PathLike[str]) -> Path | None:
    """Write ``volumes.csv`` over all finished cases of a folder; None where none has a volume.

    Every run into the folder, each shard of one included, writes it again from what is there.
    """
    rows = [row for record in read_records(folder) if record.get("status", "done") == "done"
            for row in structure_volumes(record)]  # fmt: skip
    if not rows:
        return None
    path = Path(folder) / TABLE
    write_text(path, fields_to_csv(StructureVolume, rows))
    return path


def _asymmetry(name: str, volume: float, other: Mapping[str, Any] | None) -> float | str:
    if other is None or not volume + other["volume_ml"]:
        return ""
    sign = 1 if side_of(name) == "left" else -1
    left_minus_right = sign * (volume - other["volume_ml"])
    return round(200 * left_minus_right / (volume + other["volume_ml"]), 3)
