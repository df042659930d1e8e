"""A class name stands for one thing in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "medvol"
#: Names that still stand for two things; none joins.
REPEATED = frozenset({"Decision", "Forecast", "Job", "Measured", "Plan", "_Pool"})


def classes_by_name() -> dict[str, list[str]]:
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(path.relative_to(PACKAGE).as_posix())
    return found


def test_no_two_classes_share_a_name():
    classes = classes_by_name()
    assert len(classes) > 200
    repeated = {name: places for name, places in classes.items() if len(places) > 1}
    assert {name: places for name, places in repeated.items() if name not in REPEATED} == {}
