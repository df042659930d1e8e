"""Run inside MONAI Label's environment: import every `_target_` of the bundles given."""

import importlib.util
import json
import sys
from pathlib import Path

from monai.bundle.config_item import ComponentLocator
from monai.utils.module import optional_import


def targets(node):
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def main() -> int:
    for absent in ("typer", "rich", "highdicom", "matplotlib"):
        assert importlib.util.find_spec(absent) is None, f"{absent} is installed here"
    locator, seen, missing = ComponentLocator(), set(), []
    for folder in map(Path, sys.argv[1:]):
        for task in ("train", "inference"):
            path = folder / "configs" / f"{task}.json"
            if path.is_file():
                seen |= set(targets(json.loads(path.read_text())))
    for name in sorted(seen):
        module = locator.get_component_module_name(name)
        home, _, attribute = (f"{module}.{name}" if module else name).rpartition(".")
        _, is_there = optional_import(home, name=attribute)
        if not is_there:
            try:
                getattr(importlib.import_module(home), attribute)
            except Exception as error:  # noqa: BLE001 - whatever breaks is reported
                missing.append(f"{name}: {error!r}")
    sys.stdout.write(f"{len(seen)} targets; {'; '.join(missing) or 'all import'}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
