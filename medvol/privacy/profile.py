"""De-identification profiles: the values files in ``configs/privacy``."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from medvol.core.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE.parent / "configs" / "privacy", _PACKAGE / "_shipped" / "configs" / "privacy")


@dataclass(frozen=True)
class PrivacyProfile:
    """What the Basic Profile of PS3.15 is combined with.

    Attributes:
        name: Named in the report and in DeidentificationMethod.
        dates: ``remove`` them, or ``shift`` all of a patient's by one secret number of days.
        max_shift_days: Largest shift.
        device: ``remove`` or ``retain`` what identifies the scanner.
        keep: Keywords kept although the profile would remove them.
        remove: Keywords removed although the profile would keep them.
    """

    name: str
    dates: Literal["remove", "shift"] = "remove"
    max_shift_days: int = 365
    device: Literal["remove", "retain"] = "remove"
    keep: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


def load_profile(name_or_path: str | os.PathLike[str]) -> PrivacyProfile:
    """A profile by its name in ``configs/privacy`` or by the path of a values file.

    Raises:
        ConfigError: If there is none, or a value is not allowed.

    >>> load_profile("shifted_dates").dates
    'shift'
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        found = [place / f"{path.name}.yaml" for place in _PLACES]
        path = next((p for p in found if p.is_file()), path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        known = sorted({p.stem for place in _PLACES for p in place.glob("*.yaml")})
        raise ConfigError(
            f"{name_or_path}: is not a privacy profile; known: {', '.join(known)}, or the path "
            "of a .yaml file"
        ) from error
    return _checked(path, values)


def _checked(path: Path, values: Any) -> PrivacyProfile:
    known = {field.name for field in fields(PrivacyProfile)}
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        raise ConfigError(f"{path}: a privacy profile is a mapping with a name")
    if strange := sorted(set(values) - known):
        raise ConfigError(f"{path}: unknown key {strange[0]!r}; known: {', '.join(sorted(known))}")
    for key, allowed in (("dates", ("remove", "shift")), ("device", ("remove", "retain"))):
        if values.get(key, "remove") not in allowed:
            raise ConfigError(f"{path}: {key} must be one of {', '.join(allowed)}")
    days = values.get("max_shift_days", 365)
    if not isinstance(days, int) or not 1 <= days <= 36500:
        raise ConfigError(f"{path}: max_shift_days must be a whole number from 1 to 36500")
    lists = {key: tuple(_keywords(path, key, values.get(key))) for key in ("keep", "remove")}
    return PrivacyProfile(**{**values, **lists})


def _keywords(path: Path, key: str, value: Any) -> list[str]:
    from pydicom.datadict import tag_for_keyword

    words = value or []
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise ConfigError(f"{path}: {key} must be a list of DICOM keywords")
    for word in words:
        if tag_for_keyword(word) is None:
            raise ConfigError(f"{path}: {key} names {word!r}, which is not a DICOM keyword")
    return words
