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

from medvol.bundle.places import is_shipped
from medvol.bundle.validate import iterate, validate_config
from medvol.core.errors import ConfigError, MissingInputError, UnsafeFileError

_MODES = ("default", "callable")
_BARE_NAME = re.compile(r"[A-Z]\w*")
_MONAI_PACKAGES = ("transforms", "networks", "networks.nets", "losses", "metrics", "inferers",
                   "data", "handlers", "engines", "optimizers")  # fmt: skip
_ALLOWED = re.compile(
    r"medvol\.(engines|inferers|io|metrics|networks|transforms|datasets|uncertainty|explain)\.\w+"
    r"|monai\.(networks|transforms|losses|metrics|inferers|data|handlers|engines|optimizers)[\w.]*"
    r"|ignite\.(handlers|metrics)\.\w+|torch\.(optim|nn)(\.\w+)+"
)
#: Where something that an allowed name stands for must have been defined.
_DEFINED_IN = re.compile(
    r"(medvol\.(engines|inferers|io|metrics|networks|transforms|datasets|uncertainty|explain)"
    r"|monai\.(networks|transforms|losses|metrics|inferers|data|handlers|engines|optimizers)"
    r"|ignite\.(handlers|metrics)|torch\.(optim|nn))(\.|$)"
)


def read_config(path: str | os.PathLike[str], *, is_trusted: bool | None = None) -> dict[str, Any]:
    """Read one config of a bundle; a config is code, so an untrusted one is restricted.

    Args:
        path: A JSON or YAML config file.
        is_trusted: True reads anything; False rejects ``$`` expressions and targets outside the
            allow-list; None trusts exactly the shipped bundles.

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
        if isinstance(value, str) and value.lstrip().startswith("$"):
            raise UnsafeFileError(
                f"{path}: {id_} holds code ({value[:40]!r}), not allowed in an untrusted "
                "bundle; read it, then pass --trust-bundle"
            )
        if isinstance(value, str) and value.lstrip().startswith("%"):
            raise UnsafeFileError(
                f"{path}: {id_} pulls in another file ({value[:40]!r}), not allowed in an "
                "untrusted bundle"
            )
        if isinstance(value, dict) and value.get("_mode_", "default") not in _MODES:
            raise UnsafeFileError(
                f"{path}: {id_} asks for the mode {value['_mode_']!r}, which would stop in a "
                "debugger; not allowed in an untrusted bundle"
            )
        if isinstance(value, dict) and "_target_" in value:
            if not isinstance(value["_target_"], str):
                raise UnsafeFileError(f"{path}: {id_} has a target that is not a name")
            targets.setdefault(value["_target_"], id_)
    for is_allowed in (_has_legal_name, _is_defined_there):  # the second imports what is named
        for target, id_ in targets.items():
            if not is_allowed(target):
                raise UnsafeFileError(
                    f"{path}: {id_} calls {target!r}, which is not allowed in an untrusted bundle"
                )


def _has_legal_name(target: str) -> bool:
    return bool(_BARE_NAME.fullmatch(target) or _ALLOWED.fullmatch(target))


def _is_defined_there(target: str) -> bool:
    """Whether a name stands for a class or function of the packages that are allowed.

    Modules hold what they import, too: ``torch.nn.functional.torch.os.system`` is the system's.
    """
    try:
        found = pydoc.locate(target) if "." in target else _of_monai(target)
    except pydoc.ErrorDuringImport:
        return False
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return False
    return bool(_DEFINED_IN.match(found.__module__)) and "." not in found.__qualname__


def _of_monai(name: str) -> Any:
    """What MONAI finds by a bare name, in the packages that are allowed."""
    packages = (importlib.import_module(f"monai.{name}") for name in _MONAI_PACKAGES)
    return next((vars(found)[name] for found in packages if name in vars(found)), None)
