"""A locked run: what went in, with which versions and seed, and what came out."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medvol import __version__
from medvol.core.errors import InputError, MissingInputError
from medvol.core.files import sha256_file, write_json

#: What ``run.json`` calls an evaluation that a bundle's ``evaluate.json`` ran.
BUNDLE_RUN = "bundle run evaluate"
_FORMAT = 1
_PARTS = {"command": str, "options": dict, "inputs": dict, "outputs": dict, "versions": dict}
_PACKAGES = ("numpy", "scipy", "scikit-learn", "nibabel", "SimpleITK")


def write_run(
    folder: Path,
    command: str,
    options: Mapping[str, Any],
    inputs: Iterable[Path],
    outputs: Iterable[str],
    predicted_by: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Write ``run.json``: enough for ``medvol evaluate rerun`` to repeat it and to compare.

    Args:
        folder: The run's output folder.
        command: The verb.
        options: What the verb was called with, paths included.
        inputs: Every file that was read; a folder counts as its files.
        outputs: Names of the files in ``folder`` that the run decided.
        predicted_by: Of what was evaluated, who made it and how many cases; see
            :func:`medvol.evaluation.pairing.makers`.
    """
    write_json(
        folder / "run.json",
        {
            "medvol_run": _FORMAT,
            "command": command,
            "options": {k: _plain(v, folder) for k, v in options.items()},
            "inputs": {_relative(p, folder): sha256_file(p) for p in _files(inputs)},
            "outputs": {name: sha256_file(folder / name) for name in sorted(outputs)},
            "versions": versions(),
            "predicted_by": [dict(row) for row in predicted_by],
        },
    )


def read_run(path: Path) -> dict[str, Any]:
    """A ``run.json`` whose inputs are still what they were; paths are absolute again.

    Raises:
        MissingInputError: If the file, or an input, is gone.
        InputError: If it is not a run, or an input has changed since.
    """
    run = load_run(path)
    folder = path.parent.absolute()
    for name, digest in run["inputs"].items():
        file = folder / name
        if not file.is_file():
            raise MissingInputError(f"{path}: input {file} is gone")
        if sha256_file(file) != digest:
            raise InputError(f"{path}: input {file} has changed since the run")
    return run


def load_run(path: Path) -> dict[str, Any]:
    """A ``run.json``, its inputs not looked at; the options' paths are absolute again.

    Raises:
        MissingInputError: If there is no such file.
        InputError: If it is not a run.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(run, dict) or run.get("medvol_run") != _FORMAT:
        raise InputError(f"{path}: is not a run.json of this version of medvol")
    if missing := [name for name in _PARTS if not isinstance(run.get(name), _PARTS[name])]:
        raise InputError(f"{path}: is damaged: {missing[0]!r} is missing or of another kind")
    folder = path.parent.absolute()
    run["options"] = {k: _absolute(v, folder) for k, v in run["options"].items()}
    return run


def changed_outputs(run: Mapping[str, Any], folder: Path) -> list[str]:
    """Names of outputs in ``folder`` that differ from those that the run recorded."""
    return [
        name
        for name, digest in run["outputs"].items()
        if not (folder / name).is_file() or sha256_file(folder / name) != digest
    ]


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"medvol": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _files(inputs: Iterable[Path]) -> list[Path]:
    found: set[Path] = set()
    for path in inputs:
        if path.is_dir():
            found |= {p for p in path.rglob("*") if p.is_file()}
        else:
            found.add(path)
    return sorted(found)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def _plain(value: Any, folder: Path) -> Any:
    """A JSON value; paths carry a mark so that they can be made absolute again."""
    if isinstance(value, Path):
        return {"path": _relative(value, folder)}
    if isinstance(value, Mapping):
        is_by_value = all(isinstance(key, int) for key in value)
        return {"table" if is_by_value else "names": {str(k): v for k, v in value.items()}}
    return list(value) if isinstance(value, tuple) else value


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, dict) and "path" in value:
        return Path(os.path.normpath(folder / value["path"]))
    if isinstance(value, dict) and "table" in value:
        return {int(k): v for k, v in value["table"].items()}
    if isinstance(value, dict) and "names" in value:
        return {k: tuple(v) for k, v in value["names"].items()}
    return tuple(value) if isinstance(value, list) else value
