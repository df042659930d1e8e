"""The file of a study: which arms, on which data, how often, and what is compared.

A study is a YAML file in ``configs/studies`` (or anywhere) that ``medvol study FILE -o OUT --data
NAME=FOLDER`` runs::

    title: What helps against class imbalance?
    question: Does a reweighted loss beat plain cross-entropy on the same patients?
    data:                        # one or more; --data NAME=FOLDER for each
      chest_xray: {about: "labels.csv with file, label, patient_id"}
    folds: 5                     # patients are split into this many parts, grouped and stratified;
    test_folds: [0]              # each of these is the test set in turn, the next one validates,
    split_seed: 0                # the others train
    seeds: [0, 1, 2]             # every arm is trained once per seed; results are averaged
    weights: best                # on the validation part, or: last
    train: {max_epochs: 30}      # options of train.json for every arm
    arms:
      plain: {bundle: chest_xray_classification}
      focal:
        bundle: chest_xray_classification
        values: {loss: focal, focal_alpha: 0.25, focal_gamma: 2.0, label_smoothing: null}
        train: {max_epochs: 40}
    reference: plain             # every other arm is tested against this one
    operating_points: [fixed, "sensitivity>=0.90"]   # classifiers; fixed is 0.5
    metrics: [dice, hd95]        # masks
    taus_mm: [2.0]
    resamples: 10000

``values`` change the bundle's values file for that arm (null drops a value that the new parts do
not use); the bundle is written again into the study's folder and trained there, so that each arm is
a whole MONAI bundle afterwards. ``shipped: true`` takes a bundle's own weights and trains nothing;
whether they have seen the data is then for the author to state. An arm may also be masks that exist
already, one file per structure or per case: ``masks: "{case}/radiographer/{label}.nrrd"`` against
the data's ``reference: "{case}/oncologist/{label}.nrrd"``, both below the data set's folder.

The classes' thresholds other than ``fixed`` are set on the validation part, and observed on the
test part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from medvol.core.errors import ConfigError, MissingInputError

#: Kind of each field of a study that is one value, and of the entries of each that is a list.
_VALUES: dict[str, Any] = {
    "title": str, "question": str, "reference": str, "weights": str, "folds": int,
    "split_seed": int, "resamples": int, "train": Mapping,
}  # fmt: skip
_LISTS: dict[str, Any] = {
    "test_folds": int, "seeds": int, "metrics": str, "taus_mm": (int, float),
    "operating_points": str, "by": str,
}  # fmt: skip
_OF_ARM: dict[str, Any] = {
    "bundle": str, "masks": str, "shipped": bool, "values": Mapping, "train": Mapping,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


@dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
        name: Its name in tables and folders.
        bundle: A shipped bundle's name; empty for masks that exist.
        values: Changes to the bundle's values.
        train: Options of ``train.json``, over the study's own.
        shipped: Take the bundle's own weights and train nothing.
        masks: Template of existing masks, below the data set's folder.
    """

    name: str
    bundle: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    shipped: bool = False
    masks: str = ""


@dataclass(frozen=True)
class StudyData:
    """One data set.

    Attributes:
        name: Its name in tables and folders.
        about: What must lie there, for people.
        reference: Template of reference masks; empty where the data set names its labels.
    """

    name: str
    about: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Study:
    """A whole study; the module's docstring explains each field."""

    title: str
    arms: tuple[Arm, ...]
    data: tuple[StudyData, ...]
    question: str = ""
    reference: str = ""
    folds: int = 5
    test_folds: tuple[int, ...] = (0,)
    split_seed: int = 0
    seeds: tuple[int, ...] = (0,)
    weights: str = "best"
    train: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("dice", "hd95", "assd", "nsd_voxel")
    taus_mm: tuple[float, ...] = (2.0,)
    operating_points: tuple[str, ...] = ("fixed", "sensitivity>=0.90")
    by: tuple[str, ...] = ()
    resamples: int = 10_000


def find_study(name_or_path: str | Path) -> Path:
    """A study's file by path, or by the name of a shipped one.

    Raises:
        MissingInputError: Naming the shipped studies.
    """
    from medvol.bundle import configs_dir

    folder = configs_dir() / "studies"
    for path in (Path(name_or_path), folder / f"{name_or_path}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(path.stem for path in sorted(folder.glob("*.yaml")))
    raise MissingInputError(f"{name_or_path}: is not a study; shipped studies: {known}")


def read_study(path: Path, changes: Sequence[str] = ()) -> Study:
    """Read and check a study.

    Args:
        path: The YAML file.
        changes: ``KEY=VALUE`` each, a dotted key and a YAML value: ``train.max_epochs=2``.

    Raises:
        ConfigError: Naming the file and what is wrong.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be parsed: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no study")
    for change in changes:
        _change(content, change)
    return study_of(content, str(path))


def study_of(content: Mapping[str, Any], source: str) -> Study:
    """A study from its parsed content."""
    rest = dict(content)
    arms, data = rest.pop("arms", None), rest.pop("data", None)
    if not isinstance(arms, dict) or not isinstance(data, dict):
        raise ConfigError(f"{source}: needs 'arms' and 'data', a mapping each")
    nouns = {
        "arms": tuple(_noun(Arm, name, row, source) for name, row in arms.items()),
        "data": tuple(_noun(StudyData, name, row, source) for name, row in data.items()),
    }
    known = {one.name for one in fields(Study)}
    if unknown := sorted(set(rest) - known):
        raise ConfigError(
            f"{source}: field {unknown[0]!r} is unknown; choose from: {', '.join(known)}"
        )
    given = {key: v for key, v in rest.items() if v is not None}  # empty: the usual
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    _require_kinds(plain, nouns["arms"], source)
    study = Study(**{"title": Path(source).stem, **plain, **nouns})
    _require_valid(study, source)
    return study


def _require_kinds(plain: Mapping[str, Any], arms: Sequence[Arm], source: str) -> None:
    for name, value in plain.items():
        is_list = name in _LISTS
        if is_list and not isinstance(value, tuple):
            raise ConfigError(f"{source}: {name} is {value!r}; it must be a list")
        for entry in value if is_list else [value]:
            if not _is_of(entry, (_LISTS if is_list else _VALUES)[name]):
                raise ConfigError(f"{source}: {name} holds {entry!r}, which is of the wrong kind")
    for arm in arms:
        for name, kind in _OF_ARM.items():
            if not _is_of(value := getattr(arm, name), kind):
                raise ConfigError(f"{source}: {arm.name}: {name} is {value!r}, which is of the "
                                  "wrong kind")  # fmt: skip


def _is_of(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _noun(kind: type, name: str, row: Any, source: str) -> Any:
    known = {one.name for one in fields(kind)} - {"name"}
    if not isinstance(row or {}, dict):
        raise ConfigError(f"{source}: {name} is {row!r}, not a mapping")
    row = dict(row or {})
    if unknown := sorted(set(row) - known):
        raise ConfigError(f"{source}: {name} has no field {unknown[0]!r}; known: {sorted(known)}")
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"{source}: {name!r} is not a name; use letters, digits, _ and -")
    return kind(name=str(name), **{key: v for key, v in row.items() if v is not None})


def _change(content: dict[str, Any], change: str) -> None:
    import yaml

    key, sign, text = change.partition("=")
    if not sign:
        raise ConfigError(f"--set {change!r} is not of the form key=value")
    *parents, last = key.strip().split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise ConfigError(f"--set {change!r}: {parent} holds no fields")
    try:
        content[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {change!r}: {text!r} cannot be parsed") from error


def _require_valid(study: Study, source: str) -> None:
    if not study.arms or not study.data:
        raise ConfigError(f"{source}: has no arm, or no data set")
    if study.weights not in ("best", "last"):
        raise ConfigError(f"{source}: weights is {study.weights!r}; choose best or last")
    if study.reference and study.reference not in {arm.name for arm in study.arms}:
        raise ConfigError(f"{source}: reference {study.reference!r} is not an arm")
    if study.folds < 3 or not set(study.test_folds) <= set(range(study.folds)):
        raise ConfigError(f"{source}: test_folds {list(study.test_folds)} must lie in "
                          f"0 to {study.folds - 1}, and folds be at least 3")  # fmt: skip
    if not study.seeds or not study.test_folds:
        raise ConfigError(f"{source}: has no seed, or no test fold")
    for arm in study.arms:
        if bool(arm.bundle) == bool(arm.masks):
            raise ConfigError(f"{source}: arm {arm.name!r} needs a bundle, or masks, not both")
        if arm.masks and not all(data.reference for data in study.data):
            raise ConfigError(f"{source}: arm {arm.name!r} has masks, so data need a reference")
        if arm.shipped and (arm.values or arm.train):
            raise ConfigError(f"{source}: arm {arm.name!r} is shipped as it is; nothing can change")
