"""The `monai.bundle` workflow that is running us, and what its command line overrode."""

from __future__ import annotations

import difflib
import inspect
import sys
import types
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, ID_SEP_KEY

from medvol.core.errors import ConfigError, error_line


def running_workflow() -> ConfigWorkflow | None:
    """The MONAI workflow whose config is being evaluated, found on the call stack.

    MONAI hands a config neither its own path nor the overrides that were given, and both are
    needed to run from any folder and to refuse a misspelt option.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back
    return None


def find_bundle_root() -> str:
    """Absolute path of the bundle whose config is being evaluated.

    Raises:
        ConfigError: Outside a running workflow, unless the working directory is a bundle.
    """
    workflow = running_workflow()
    if workflow is not None:
        folder = Path(workflow.config_root_path).resolve()
        return str(folder.parent if folder.name == "configs" else folder)
    if Path("configs/metadata.json").is_file():
        return str(Path.cwd())
    raise ConfigError("bundle_root is unknown here; override bundle_root with the bundle's folder")


def use_handler(handler: Any) -> Any:
    """The handler that another part of the config defines.

    MONAI Label looks into every entry of ``train#handlers`` as a mapping, so none may be a bare
    reference like ``@ema``.
    """
    return handler


def brings_cases(workflow: ConfigWorkflow) -> bool:
    """Whether an override lists the run's cases itself, as MONAI Label does."""
    for id_ in ("train#dataset#data", "dataset#data"):
        if id_ in workflow.parser and isinstance(workflow.parser.get(id_), list):
            return True
    return False


def refuse_unknown_overrides(workflow: ConfigWorkflow) -> None:
    """Raise if the command line set an id that the bundle's own config files do not have.

    A new argument of a component is accepted when its target takes an argument of that name.

    Raises:
        ConfigError: Naming the first unknown id and the closest known one.
    """
    folder = Path(workflow.config_root_path)
    original: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name != "metadata.json":
            _merge(original, ConfigParser.load_config_file(str(path)))
    allowed = {"_meta_", *DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"], "output_dir"}
    given = {key: value for key, value in workflow.parser.get().items() if key not in allowed}
    for id_ in _added(given, original):
        parts = id_.split(ID_SEP_KEY)
        near = difflib.get_close_matches(parts[-1], _siblings(original, parts[:-1]), n=1)
        hint = f"; did you mean {ID_SEP_KEY.join([*parts[:-1], near[0]])!r}?" if near else ""
        raise ConfigError(f"{folder}: no option {id_!r} in this bundle{hint}")


def install_excepthook() -> None:
    """End a run with its cause as the last line, where MONAI's last line names a config node.

    A refusal is that line alone; any other error keeps its traceback above it.
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
