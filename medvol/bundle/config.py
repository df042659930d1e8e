"""Reading a bundle's config without trusting it."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pydoc
import re
from pathlib import Path
from typing import Any

from medvol.bundle.allowed import EXPRESSIONS, argument_fault, name_fault
from medvol.bundle.places import is_shipped
from medvol.bundle.validate import iterate, validate_config
from medvol.core.errors import ConfigError, MissingInputError, UnsafeFileError

_MODES = ("default", "callable")
_BARE_NAME = re.compile(r"[A-Z]\w*")
_MONAI_PACKAGES = ("transforms", "networks", "networks.nets", "losses", "metrics", "inferers",
                   "data", "handlers", "engines", "optimizers")  # fmt: skip
_PACKAGES = re.compile(r"(medvol|monai|torch\.nn|torch\.optim|ignite)(\.\w+)+")


def read_config(path: str | os.PathLike[str], *, is_trusted: bool | None = None) -> dict[str, Any]:
    """Read one config of a bundle; a config is code, so an untrusted one is restricted.

    Args:
        path: A JSON or YAML config file.
        is_trusted: True reads anything; False rejects what is not in the tables of
            ``medvol/bundle/allowed.py``; None trusts exactly the shipped bundles.

    Returns:
        The parsed mapping; nothing in it has been evaluated.

    Raises:
        MissingInputError: If the file does not exist.
        ConfigError: If it is not a mapping in JSON or YAML.
        UnsafeFileError: If an untrusted config holds code or a target that is not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such config")
    content = _parse(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is {type(content).__name__}, not a mapping")
    validate_config(path, content)
    if not (is_shipped(path) if is_trusted is None else is_trusted):
        _reject_code(path, content)
    return content


def _parse(path: Path) -> Any:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
        return _parse_yaml(text)
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deep") from error
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be parsed: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            text = " ".join(str(error).split())
            raise ConfigError(f"{path}: cannot be parsed: {text}") from error
        raise


def _parse_yaml(text: str) -> Any:
    """YAML without a repeated key and without aliases, which can stand for billions of nodes."""
    import yaml

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    waiting, seen = [root] if root else [], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            raise ValueError("it repeats a part by an alias; write it out")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _unique([(key.value, None) for key, _ in node.value if isinstance(key.value, str)])
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return yaml.safe_load(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key!r} appears twice, a duplicate")
        table[key] = value
    return table


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _reject_code(path: Path, content: dict[str, Any]) -> None:
    targets: dict[str, str] = {}
    for id_, value in iterate(content):
        if fault := _node_fault(id_, value):
            raise UnsafeFileError(f"{path}: {id_[:80]} {fault}, not allowed in an untrusted "
                                  "bundle; read it, then pass --trust-bundle")  # fmt: skip
        if isinstance(value, dict) and "_target_" in value:
            targets.setdefault(value["_target_"], id_)
    for target, id_ in targets.items():  # last, since this imports what is named
        if fault := _target_fault(target):
            raise UnsafeFileError(f"{path}: {id_} calls {target!r}, which {fault}: not allowed in "
                                  "an untrusted bundle; read it, pass --trust-bundle")  # fmt: skip


def _node_fault(id_: str, value: Any) -> str | None:
    """What is unsafe about one node of a config, apart from whom it calls."""
    if isinstance(value, str):
        return _text_fault(value)
    return _mapping_fault(id_, value) if isinstance(value, dict) else None


def _text_fault(value: str) -> str | None:
    text, shown = value.lstrip(), repr(value[:40])
    if text.startswith("$") and text not in EXPRESSIONS:
        return f"holds code ({shown})"
    if text.startswith("%"):
        return f"pulls in another file ({shown})"
    return f"takes a part of metadata.json ({shown})" if text.startswith("@_meta_") else None


def _mapping_fault(id_: str, value: dict[str, Any]) -> str | None:
    if odd := [key for key in value if "::" in str(key) or "#" in str(key)]:
        return f"has the key {odd[0][:40]!r}, which reads as the id of another entry"
    if value.get("_mode_", "default") not in _MODES:
        return f"asks for the mode {value['_mode_']!r}, which would stop in a debugger"
    if "_target_" not in value:
        return None
    is_name = isinstance(value["_target_"], str)
    return argument_fault(id_, value) if is_name else "has a target that is not a name"


def _target_fault(target: str) -> str | None:
    """Why a name may not be called; it is looked up, for a name can be an alias.

    Modules hold what they import, too: ``torch.nn.functional.torch.os.system`` is the system's.
    """
    unknown = "is not on the list of medvol/bundle/allowed.py"
    if not (_BARE_NAME.fullmatch(target) or _PACKAGES.fullmatch(target)):
        return unknown
    try:
        found = pydoc.locate(target) if "." in target else _of_monai(target)
    except pydoc.ErrorDuringImport:
        return unknown
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return unknown
    own = found.__qualname__
    if own != target.rpartition(".")[2]:
        return f"is another name of {own}; write that"
    return name_fault(found.__module__, own)


def _of_monai(name: str) -> Any:
    """What MONAI finds by a bare name, in the packages that are allowed."""
    packages = (importlib.import_module(f"monai.{name}") for name in _MONAI_PACKAGES)
    return next((vars(found)[name] for found in packages if name in vars(found)), None)
