"""A run by ``python -m monai.bundle run``: its bundle's folder, its overrides, its last line.

MONAI passes a config neither its own path nor the overrides that were given; the search path of
Python and the command line of the process hold them.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import sys
import types
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, run, update_kwargs
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, ID_SEP_KEY

from medvol.core.errors import ConfigError, error_line
from medvol.core.shipped import bundles_dir

#: What ``monai.bundle.run`` takes beside overrides, and what its tracking adds to a config.
_ARGUMENTS = {*inspect.signature(run).parameters, "workflow_name", "workflow_type", "output_dir",
              *DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"]}  # fmt: skip


def find_bundle_root(name: str, is_shipped: bool = False) -> str:
    """Absolute folder of the bundle that a config belongs to; medvol itself overrides the id.

    In this order: the folder that MONAI's ``ConfigWorkflow.run`` puts on Python's search path, in
    second place, before it runs anything (documented, as of monai 1.6); the working directory, as
    MONAI's ``"bundle_root": "."`` means it; the shipped bundle. The first two count if they hold
    the bundle of this name.

    Args:
        name: The bundle's name in its metadata.
        is_shipped: Whether the config is a shipped bundle's own; a fork's is not.

    Raises:
        ConfigError: If none of the three is there.
    """
    for folder in (*sys.path[1:2], "."):
        if _name_in(Path(folder)) == name:
            return str(Path(folder).resolve())
    if is_shipped and (shipped := bundles_dir() / name).is_dir():
        return str(shipped)
    raise ConfigError(f"{name}: the bundle's folder is unknown here; override bundle_root with it")


def reject_unknown_overrides() -> None:
    """Raise if the command line set an id that the bundle's own config files do not have.

    A new argument of a component is accepted when its target takes an argument of that name.

    Raises:
        ConfigError: Naming the first unknown id and the closest known one.
    """
    line = _command_line()
    if not (files := _config_files(line)):
        return
    folder = files[0].parent
    original: dict[str, Any] = {}
    for path in [*files, *sorted(folder.glob("*.json"))]:
        if path.name != "metadata.json":
            _merge(original, ConfigParser.load_config_file(str(path)))
    parser = ConfigParser(ConfigParser.load_config_files([str(path) for path in files]))
    parser.update({key: value for key, value in line.items() if key not in _ARGUMENTS})
    for id_ in _added(parser.get(), original):
        parts = id_.split(ID_SEP_KEY)
        near = difflib.get_close_matches(parts[-1], _siblings(original, parts[:-1]), n=1)
        hint = f"; did you mean {ID_SEP_KEY.join([*parts[:-1], near[0]])!r}?" if near else ""
        raise ConfigError(f"{folder}: no option {id_!r} in this bundle{hint}")


def install_excepthook() -> None:
    """End a run with its cause as the last line, where MONAI's last line names a config node.

    A rejected input is that line alone; any other error keeps its traceback above it.
    """
    previous = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
    ) -> None:
        line = error_line(error)
        if line is None:
            previous(kind, error, trace)
            root = _root_cause(error)
            line = f"{type(root).__name__}: {' '.join(str(root).split())}"
        print(f"medvol: {line}", file=sys.stderr)  # noqa: T201 - there is no cli above us here

    if getattr(previous, "__name__", "") != "medvol_excepthook":
        hook.__name__ = "medvol_excepthook"
        sys.excepthook = hook


def use_handler(handler: Any) -> Any:
    """The handler that another part of the config defines.

    MONAI Label looks into every entry of ``train#handlers`` as a mapping, so none may be a bare
    reference like ``@ema``.
    """
    return handler


def _command_line() -> dict[str, Any]:
    """What ``python -m monai.bundle run`` was given, its args_file too; {} in other processes."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if getattr(spec, "name", "") != "monai.bundle.__main__" or sys.argv[1:2] not in (
        ["run"],
        ["run_workflow"],
    ):
        return {}
    import fire

    given: dict[str, Any] = {}

    @functools.wraps(run)
    def read(*args: Any, **named: Any) -> None:
        found = inspect.signature(run).bind(*args, **named).arguments
        given.update({**found.pop("override", {}), **found})

    fire.Fire(read, command=sys.argv[2:])
    return update_kwargs(given.pop("args_file", None), **given)


def _config_files(given: dict[str, Any]) -> list[Path]:
    files = given.get("config_file") or ()
    if isinstance(files, str):
        files = [files] if Path(files).is_file() else files.split(",")
    return [Path(file) for file in files]


def _name_in(folder: Path) -> str | None:
    """The name that a folder's metadata states; None if the folder is not a bundle."""
    try:
        metadata = json.loads((folder / "configs" / "metadata.json").read_text("utf-8"))
        return metadata["medvol"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        name = key.lstrip("+")
        for part in (parts := name.split(ID_SEP_KEY))[:-1]:
            into = into.setdefault(part, {}) if isinstance(into, dict) else {}
        if isinstance(value, dict) and isinstance(into.get(parts[-1]), dict):
            _merge(into[parts[-1]], value)
        else:
            into.setdefault(parts[-1], value)


def _added(given: dict[str, Any], original: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    target = given.get("_target_")
    for key, value in given.items():
        id_ = f"{prefix}{key}"
        if key not in original:
            if not (isinstance(target, str) and _takes(target, key)):
                found.append(id_)
        elif _same_target(value, original[key]):
            found += _added(value, original[key], f"{id_}{ID_SEP_KEY}")
    return found


def _same_target(one: Any, other: Any) -> bool:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return False
    return one.get("_target_") == other.get("_target_")


def _siblings(original: dict[str, Any], parts: list[str]) -> list[str]:
    for part in parts:
        original = original.get(part, {}) if isinstance(original, dict) else {}
    return list(original) if isinstance(original, dict) else []


def _takes(target: str, argument: str) -> bool:
    if argument.startswith("_") and argument.endswith("_"):
        return argument in {"_disabled_", "_requires_", "_desc_", "_mode_", "_imports_"}
    from monai.bundle import ComponentLocator
    from monai.utils import optional_import

    paths = ComponentLocator().get_component_module_name(target)
    where = paths[0] if isinstance(paths, list) else paths
    module, _, name = (f"{where}.{target}" if where else target).rpartition(".")
    component, found = optional_import(module, name=name)
    if not found:
        return True
    parameters = inspect.signature(component).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
