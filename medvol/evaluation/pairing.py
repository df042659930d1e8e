"""Which prediction belongs to which reference."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.core.errors import InputError, MissingInputError
from medvol.core.files import sha256_file
from medvol.io import formats

#: What ``medvol predict`` leaves beside each result.
RECORD = "prediction.json"
_MAKER = ("name", "version", "weights_sha256")
#: File names that predictions carry inside a folder named after the case.
_IN_CASE_FOLDER = ("seg", "label", "mask", "prediction")
_ENDINGS = ("_seg", "_label", "_mask", "_pred", "_trans")


@dataclass(frozen=True)
class MaskFiles:
    """A case's two label maps, or its two masks of one structure.

    Attributes:
        case: Name of the case.
        pred: The prediction.
        ref: The reference.
        structure: What every voxel above 0 is; empty for label maps.
    """

    case: str
    pred: Path
    ref: Path
    structure: str = ""

    @property
    def record_path(self) -> Path:
        """Where ``medvol predict`` leaves its record of the case."""
        return self.pred.parent / RECORD

    def record(self) -> dict[str, Any]:
        """The ``prediction.json`` beside the prediction; empty where there is none."""
        return read_record(self.record_path)


def require_unaltered(path: Path) -> None:
    """Reject a prediction that is not what ``medvol predict`` wrote, by its record's digest.

    Raises:
        InputError: If it was cut or edited since.
    """
    stated = read_record(path.parent / RECORD).get("output_sha256")
    digest = stated.get(path.name) if isinstance(stated, dict) else None
    if digest is not None and sha256_file(path) != digest:
        raise InputError(f"{path}: is not what medvol predict wrote, by the digest in its "
                         "prediction.json; predict it again, or move it elsewhere")  # fmt: skip


def read_record(path: Path) -> dict[str, Any]:
    """A ``prediction.json``; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def makers(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Name, version and weights of each bundle that made predictions, and how many.

    Predictions without a record count for a maker without a name.
    """
    count: Counter[tuple[str, ...]] = Counter()
    for record in records:
        bundle = record.get("bundle")
        facts = bundle if isinstance(bundle, dict) else {}
        count[tuple(str(facts.get(name) or "") for name in _MAKER)] += 1
    return [{**dict(zip(_MAKER, key, strict=True)), "n": n} for key, n in sorted(count.items())]


def find_masks(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Label maps of a folder by case name.

    Understood are ``<case>/seg.nii.gz`` (also label, mask, prediction, and DICOM), as
    ``medvol predict`` writes them, and ``<case>.nii.gz``; the endings ``_seg``, ``_label``,
    ``_mask``, ``_pred`` and MONAI's ``_trans`` are not part of the name.

    Raises:
        MissingInputError: If there is no such folder or no label map in it.
        InputError: If two files claim one case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stem = _stem(path.name)
        if stem is None or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        name = stem if path.parent == folder else case_name(path)
        if name in found:
            # One case saved in several formats: the first suffix of the list is read.
            if found[name].parent == path.parent and _rank(path) != _rank(found[name]):
                found[name] = min(found[name], path, key=_rank)
                continue
            raise InputError(f"{path}: case {name!r} has another label map, {found[name]}")
        found[name] = path
    if not found:
        raise MissingInputError(f"{folder}: holds no label map ({', '.join(formats.ALL)})")
    return found


def case_name(path: Path) -> str:
    """The case of a label map: the file's name, or its folder's where ``predict`` wrote it.

    >>> case_name(Path("out/liver_3/seg.nii.gz")), case_name(Path("labels/liver_3_seg.nii.gz"))
    ('liver_3', 'liver_3')
    """
    stem = _stem(path.name) or path.name
    return path.absolute().parent.name if stem in _IN_CASE_FOLDER else stem


def is_mask_file(path: Path) -> bool:
    """Whether a path is one label map, by its name, and no folder or index of several."""
    return path.is_file() and _stem(path.name) is not None


def pair_masks(pred: Mapping[str, Path], ref: Mapping[str, Path], what: str) -> list[MaskFiles]:
    """Join predictions to references; each must have its partner.

    Args:
        pred: Case to predicted label map.
        ref: Case to reference label map.
        what: Names the predictions in messages.

    Raises:
        MissingInputError: If a reference has no prediction: left out, it would look like success.
    """
    if missing := sorted(set(ref) - set(pred)):
        raise MissingInputError(
            f"{what}: {len(missing)} of {len(ref)} cases have no prediction, for example "
            f"{missing[0]!r}; predict them, or take them out of the reference"
        )
    return [MaskFiles(case, pred[case], ref[case]) for case in sorted(ref)]


def is_template(path: str | os.PathLike[str]) -> bool:
    """Whether a path stands for one mask file per case and structure.

    >>> is_template("scans/{case}/{label}.nrrd"), is_template("scans")
    (True, False)
    """
    return "{case}" in str(path) and "{label}" in str(path)


def find_structures(template: str | os.PathLike[str]) -> dict[tuple[str, str], Path]:
    """Files that match a template such as ``scans/{case}/oncologist/{label}.nrrd``.

    ``{case}`` and ``{label}`` each stand for one name without separators.

    Returns:
        (case, structure) to file, sorted.

    Raises:
        MissingInputError: If nothing matches.
    """
    text = Path(os.path.abspath(template)).as_posix()
    pattern, seen = "", set()
    for part in re.split(r"(\{case\}|\{label\})", text):
        name = part.strip("{}")
        if part not in ("{case}", "{label}"):
            pattern += re.escape(part)
            continue
        pattern += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
        seen.add(name)
    root = Path(text.partition("{")[0].rpartition("/")[0] or "/")
    found = {}
    for path in sorted(root.rglob("*")) if root.is_dir() else ():
        if match := re.fullmatch(pattern, path.as_posix()):
            found[match["case"], match["label"]] = path
    if not found:
        raise MissingInputError(f"{template}: no file matches")
    return found


def pair_structures(
    pred: Mapping[tuple[str, str], Path], ref: Mapping[tuple[str, str], Path], what: str
) -> list[MaskFiles]:
    """Join masks of structures; every reference must have its prediction.

    Raises:
        MissingInputError: If one has none.
    """
    if missing := sorted(set(ref) - set(pred)):
        case, label = missing[0]
        raise MissingInputError(
            f"{what}: {len(missing)} of {len(ref)} structures have no prediction, for example "
            f"{label!r} of case {case!r}; predict them, or take them out of the reference"
        )
    return [MaskFiles(key[0], pred[key], ref[key], key[1]) for key in sorted(ref)]


def _stem(name: str) -> str | None:
    stem, suffix = formats.split_name(name)
    if not suffix:
        return None
    for ending in _ENDINGS:
        if stem.endswith(ending) and len(stem) > len(ending):
            return stem[: -len(ending)]
    return stem


def _rank(path: Path) -> int:
    return formats.ALL.index(formats.split_name(path.name)[1].lower())
