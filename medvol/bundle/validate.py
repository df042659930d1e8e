"""What any config must be before it is run: plain numbers where numbers belong, no circles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from medvol.core.errors import ConfigError

_REFERENCE = re.compile(r"@([\w:#]+)")
_DEEPEST = 200
#: Ids whose last part is one of these hold a whole number of at least the given size.
_WHOLE = {
    "max_epochs": 1, "batch_size": 1, "sw_batch_size": 1, "val_interval": 1, "num_workers": 0,
    "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "epoch_length": 1, "patience": 1,
}  # fmt: skip
#: ... a finite number in this range, ends included.
_NUMBER = {"overlap": (0.0, 0.999), "learning_rate": (0.0, 1e3), "cache_rate": (0.0, 1.0)}
#: ... numbers that are all above 0 (a window size may also be -1: the image's own).
_SIZES = {"roi_size", "pixdim", "spacing_mm", "spatial_size"}


def iterate(content: Any, id_: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every node of a config with its MONAI id, parents before children.

    Raises:
        ConfigError: If it is nested deeper than any config needs.
    """
    if depth > _DEEPEST:
        raise ConfigError(f"{id_[:60]} ... is nested too deep")
    yield id_, content
    if isinstance(content, dict):
        children = list(content.items())
    else:
        children = list(enumerate(content)) if isinstance(content, list) else []
    for key, value in children:
        yield from iterate(value, f"{id_}::{key}" if id_ else str(key), depth + 1)


def validate_config(path: Path, content: dict[str, Any]) -> None:
    """Reject numbers of the wrong kind and references that run in a circle.

    Raises:
        ConfigError: Naming the file and the id.
    """
    try:
        nodes = dict(iterate(content))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    for id_, value in nodes.items():
        if fault := _fault(id_.rsplit("::", 1)[-1], value):
            raise ConfigError(f"{path}: {id_} is {value!r}, {fault}")
    _reject_circles(path, content)


def _fault(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value[:1] in ("$", "@", "%")):
        return None
    if name in _WHOLE and not (_is_whole(value) and value >= _WHOLE[name]):
        return f"not a whole number of at least {_WHOLE[name]}"
    if name in _NUMBER:
        low, high = _NUMBER[name]
        values = value if isinstance(value, list) else [value]
        if not all(_is_number(v) and low <= v <= high for v in values):
            return f"not a number from {low:g} to {high:g}"
    if name in _SIZES:
        values = value if isinstance(value, list) else [value]
        if not all(
            isinstance(v, str) or (_is_number(v) and (v > 0 or v in (-1, 0))) for v in values
        ):
            return "not a list of numbers above 0"
    return None


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reject_circles(path: Path, content: dict[str, Any]) -> None:
    """A circle among whole values that are nothing but references: ``a: "@b"``, ``b: "@a"``."""
    nodes = {id_: value for id_, value in iterate(content) if isinstance(value, str)}
    for start in nodes:
        seen, id_ = {start}, start
        while (value := nodes.get(id_)) is not None:
            found = _REFERENCE.fullmatch(value)
            if found is None:
                break
            id_ = found.group(1).replace("#", "::")
            if id_ in seen:
                raise ConfigError(f"{path}: {start} is part of a circular reference by {value!r}")
            seen.add(id_)
