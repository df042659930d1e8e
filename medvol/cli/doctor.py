"""`medvol doctor`: what is installed, what is broken, and the fix."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import re
from typing import Any

import typer

from medvol.cli._options import Json

EXAMPLE = "medvol doctor --json"


#: Module to the package that pip installs it from.
_NEEDED = {
    "torch": "torch", "monai": "monai", "ignite": "pytorch-ignite", "numpy": "numpy",
    "scipy": "scipy", "nibabel": "nibabel", "SimpleITK": "SimpleITK", "pydicom": "pydicom",
    "PIL": "pillow",
}  # fmt: skip
_OPTIONAL = {
    "highdicom": "dicom", "pylibjpeg": "dicom", "libjpeg": "dicom", "openjpeg": "dicom",
    "openvino": "openvino", "onnxruntime": "onnx", "ray": "ray",
    "tensorboard": "track", "mlflow": "track", "numba": "fast", "nilearn": "demo",
}  # fmt: skip
_MINIMUM = {"torch": "2.10", "monai": "1.6"}


def run(is_json: Json = False) -> None:
    """Show versions, devices and broken installs, each with its fix."""
    rows = [_probe(name, None) for name in _NEEDED]
    rows += [_probe(name, extra) for name, extra in _OPTIONAL.items()]
    devices = _devices()
    problems = [row for row in rows if row["fix"] and row["needed"]]
    if is_json:
        print(json.dumps({"python": platform.python_version(), "packages": rows,
                          "devices": devices, "ok": not problems}))  # fmt: skip
    else:
        print(f"Python {platform.python_version()} on {platform.platform()}")
        for row in rows:
            print(f"  {row['name']:12} {row['version'] or 'missing':14} {row['fix'] or 'ok'}")
        for device in devices:
            print(f"  device       {device}")
    if problems:
        raise typer.Exit(1)


def _probe(name: str, extra: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "version": None, "needed": extra is None, "fix": None}
    try:
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken library raises whatever it likes
        where = f"medvol[{extra}]" if extra else _NEEDED[name]
        text = " ".join(str(error).split()) or type(error).__name__
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == name
        row["fix"] = f"{'' if is_absent else f'broken ({text}); '}pip install '{where}'"
        return row
    row["version"] = str(getattr(module, "__version__", "present"))
    minimum = _MINIMUM.get(name)
    if minimum and _numbers(row["version"]) < _numbers(minimum):
        row["fix"] = f"too old; pip install '{name}>={minimum}'"
    return row


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _devices() -> list[str]:
    try:
        import torch
    except Exception:  # noqa: BLE001 - listed among the packages
        return []
    found = [f"cpu with {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} {card.name}, {card.total_memory / 2**30:.0f} GiB")
    return found
